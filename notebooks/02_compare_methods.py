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
# # Judge methods where the circuit is known
#
# A method can only be trusted where the truth is known. Wiretrace compiles small programs into transformers, so that
# the edges which carry a behaviour follow from the program. This one writes letters backwards after a separator.

# %%
from circuits import acdc, evaluate, roc
from circuits.curves import curve
from circuits.hypothesis_tests import equivalence, sufficiency
from circuits.recovery import recover
from circuits.stability import bootstrap
from patching import MaskedRun, atp, compiled, eap_ig, exact

model = compiled.model("reverse")
true = compiled.truth("reverse")
true

# %%
run = MaskedRun(model, compiled.task("reverse", n=32, seed=0))
print(run.task.texts[0])

# %% [markdown]
# Scores are held against the truth by their ROC curve. Gradients see nothing through a softmax that is all but hard,
# which these programs need; ablating each edge by itself sees everything.

# %%
for name, scores in {"EAP": atp.scores(run), "EAP-IG": eap_ig.inputs(run), "exact": exact.scores(run)}.items():
    print(f"{name:<7}{roc(scores, true)}")

# %% [markdown]
# ACDC at several thresholds, each the circuit that the plain loop finds.

# %%
for tau, circuit in zip((0.001, 0.1, 30.0), acdc.sweep(run, taus=(0.001, 0.1, 30.0)), strict=True):
    print(f"tau {tau}: {circuit.n_edges} edges; {str(recover(circuit, true)).splitlines()[0]}")

# %% [markdown]
# Without a truth there are other questions: does the circuit do what the model does, is it better than random ones,
# how much of it would other prompts have given, and how does faithfulness grow with size?

# %%
circuit = acdc.search(run, tau=0.1)
held_out = MaskedRun(model, compiled.task("reverse", n=64, seed=1, split="held-out"))
print(evaluate(held_out, circuit))
print(equivalence(held_out, circuit))
print(sufficiency(held_out, circuit))
print(bootstrap(lambda resample: acdc.search(resample, tau=0.1), run, resamples=8))
print(curve(held_out, exact.scores(run)))
