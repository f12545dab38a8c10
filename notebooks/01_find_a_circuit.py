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
# # Find a circuit
#
# A small model that ships with Wiretrace says "Mary" after "When Mary and John went to the store, John gave a drink
# to". Which of its edges carry that? Open this file as a notebook with jupytext, or run it as it is.

# %%
from circuits import acdc, evaluate, tasks, top_edges
from patching import LensModel, MaskedRun, atp, exact

model = LensModel.load("zoo:ioi")
model

# %% [markdown]
# A task is pairs of prompts: on the corrupt one, three other names leave nothing to copy.

# %%
task = tasks.ioi.make(model, n=16, seed=0, split="train")
run = MaskedRun(model, task)
print(task.texts[0])
print(f"logit difference: clean {run.clean_metric.mean():.2f}, corrupt {run.corrupt_metric.mean():.2f}")

# %% [markdown]
# First a cheap look: attribution patching scores every head at the cost of one backward pass. How far is it off?

# %%
heads = atp.scores(run.nodes())
true = exact.scores(run.nodes())
print(heads.compare(true))
heads.to_frame().head(8)

# %% [markdown]
# Then the search. The circuit shows its own picture in a notebook.

# %%
circuit = acdc.search(run, tau=0.2)
circuit

# %% [markdown]
# Is it any good on prompts that it was not found on, and better than as many edges by attribution?

# %%
held_out = MaskedRun(model, tasks.ioi.make(model, n=64, seed=1))
print(evaluate(held_out, circuit))
print()
print(evaluate(held_out, top_edges(atp.scores(run), n=circuit.n_edges)))
