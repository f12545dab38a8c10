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
# # A circuit of features
#
# Dictionaries for every site of `zoo:ioi` write each activation as a few of many features and an error term.
# Integrated gradients say what each feature and error term does to the task.

# %%
from circuits import features, tasks
from circuits.features import agreement_toy
from patching import LensModel

model = LensModel.load("zoo:ioi")
dictionaries = [features.load("zoo:ioi", site) for site in features.shipped.shipped("zoo:ioi")]
train = tasks.ioi.make(model, n=32, seed=0, split="train")
held_out = tasks.ioi.make(model, n=32, seed=0, split="held-out")

run = features.FeatureRun(model, train, dictionaries)
effects = features.node_effects.node_effects(run, aggregation="sum")
curve = features.faithfulness_curve(effects, task=held_out, thresholds=(0.1, 0.01, 0.002))
for threshold, worth in zip(curve.thresholds, curve.worth, strict=True):
    print(f"nodes above {threshold}: {worth.nodes}, faithfulness {worth.faithfulness:.2f}")

# %% [markdown]
# The strongest nodes and the edges between them. Error terms, which the dictionaries do not explain, are dashed.

# %%
circuit = features.search(model, train, dictionaries, node_threshold=0.3, edge_threshold=0.1, aggregation="sum")
circuit

# %% [markdown]
# What does one of these features respond to, and what happens when it is turned up?

# %%
last = features.load("zoo:ioi", "resid_post2")
gallery = features.collect(model, last, features.activations.Prompts.from_task(train), k=3)
gallery.feature(195)

# %%
text = "Then, Sean and Erin went to the store. Erin gave a sandwich to"
edits = [features.steering.add("r2.f195", 15.0)]
print(features.generation.compare(model, text, edits=edits, dictionaries=[last], n=1, listed=3))

# %% [markdown]
# Where the truth is known, all of it is found: the agreement model was built by hand.

# %%
toy = agreement_toy.model()
true = agreement_toy.truth()
found = features.search(toy, agreement_toy.task(), agreement_toy.dictionaries(), node_threshold=1.0, edge_threshold=0.5)
print("nodes as planted:", found.nodes == true.nodes)
