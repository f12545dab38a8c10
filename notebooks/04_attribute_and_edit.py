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
# # What every component adds, and a model edited by it
#
# Component attribution (COAR) keeps components at random, many times over, and regresses each prompt's output on what
# was kept. The weights predict ablations that were never run, of several components at once.

# %%
from circuits import coar, evaluate, tasks, top_edges
from patching import ComponentRun, LensModel, MaskedRun, eap_ig

model = LensModel.load("zoo:ioi")
task = tasks.ioi.make(model, n=16, seed=0, split="train")
run = ComponentRun(model, task, components=("heads", "mlps"))

found = coar.attribute(run, samples=1000)
found

# %% [markdown]
# What that is worth: correlation of predicted and true outputs under held-out ablations, beside cheaper methods.

# %%
print(coar.evaluate(run, found, samples=100))

# %% [markdown]
# Which components need each other (above 0), and which stand in for one another (below 0)?

# %%
pairs = coar.interactions(run, samples=2000)
pairs

# %% [markdown]
# Components, interactions and a circuit's edges are one networkx graph.

# %%
circuit = top_edges(eap_ig.inputs(MaskedRun(model, task)), n=60)
graph = coar.to_networkx(found, interactions=pairs, circuit=circuit)
print(graph)
print(f"faithfulness of the circuit: {evaluate(MaskedRun(model, task), circuit).faithfulness:.0%}")

# %% [markdown]
# An edit: switch off the neurons that set one prompt apart from the others, so that its output falls. The model's own
# weights change, and change back.

# %%
neurons = ComponentRun(model, task, components=("neurons",), ablation="zero")
weights = coar.attribute(neurons, samples=800)
ranking = coar.rank(weights, targets=[0], references=range(1, 16), direction="lower")
edit = coar.Edit.of(neurons, ranking.first(5))
before = neurons.clean_metric
with edit.applied(model):
    after = ComponentRun(model, task).clean_metric
print(edit)
print(f"prompt 0: {before[0]:.2f} to {after[0]:.2f}")
print(f"the others on average: {before[1:].mean():.2f} to {after[1:].mean():.2f}")
