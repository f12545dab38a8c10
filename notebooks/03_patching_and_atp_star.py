# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Patching, and what estimates of it are worth
#
# Activation patching asks the model itself: put one part's value of another run into this one, and look at the answer.
# Gradients answer for every part at once, but only nearly. Here both are done, and the estimate is held to account.

# %%
from circuits import evaluate, tasks, top_nodes
from patching import LensModel, MaskedRun, SiteRun, atp_star, exact, path, sweep

model = LensModel.load("zoo:ioi")
task = tasks.ioi.make(model, n=16, seed=0, split="train")
run = SiteRun(model, task, direction="denoising")

# %% [markdown]
# Every head's output of the clean run, put into the corrupt run: what brings the answer back?

# %%
heads = sweep(run, "z")
heads

# %% [markdown]
# The same for the stream at every position. The answer starts at the names and ends at the last token.

# %%
places = sweep(run, "resid_pre", positions=True)
places

# %% [markdown]
# What reaches the query of the strongest head, directly or by way of MLPs, is path patching.

# %%
senders = path.sweep_senders(run, "a2.h5<q>")
print("into a2.h5<q>:", ", ".join(f"{name} {effect:+.3f}" for name, effect in senders.top(3)))

# %% [markdown]
# Now the estimates. A query acts through a softmax, which a gradient sees as a straight line: attribution patching is
# off there. AtP\* recomputes the softmax, and drops one layer's gradient at a time so that effects that cancel show.

# %%
true = sweep(run, "q")
estimates = {
    "AtP": atp_star.scores(run, "q", qk_fix=False, grad_drop=False),
    "AtP, QK fix": atp_star.scores(run, "q", grad_drop=False),
}
for name, estimate in estimates.items():
    print(f"{name:<12} Pearson {estimate.compare(true)['pearson']:.3f} with the truth")

dropped = atp_star.scores(run, "q")
print("AtP*, largest:", ", ".join(f"{name} {effect:.3f}" for name, effect in dropped.top(3)))

# %% [markdown]
# Single parts are not a circuit. The nodes that matter most, when each is ablated alone, are taken together and judged
# on prompts that they were not found on.

# %%
nodes = exact.scores(MaskedRun(model, task).nodes())
held_out = MaskedRun(model, tasks.ioi.make(model, n=64, seed=1))
for n in (4, 8, 16):
    circuit = top_nodes(nodes, n=n)
    print(f"{n:>2} nodes: faithfulness {evaluate(held_out, circuit).faithfulness:.0%}")
