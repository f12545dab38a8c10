"""The model card of an interchange-trained model, from the record of its training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from experiments.interchange_training.recipe import Recipe, architecture
from patching.compiled.language import Program


def model_card(record: Mapping[str, Any], program: Program) -> str:
    """Write the model card.

    Args:
        record: What `training.json` holds.
        program: That the model was trained to compute.

    Returns:
        Markdown with the metadata block that Hugging Face reads.
    """
    recipe = Recipe(**record["recipe"])
    shape = architecture(program, recipe)
    held_out, train = record["interchange"]["held-out"], record["interchange"]["train"]
    width, made_by = shape.n_heads * recipe.d_head, record["made_by"]
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    nodes = ", ".join(f"`{node}` ({', '.join(names)})" for node, names in record["alignment"].items())
    losses = ", ".join(f"{name} {value:.4f}" for name, value in record["loss"].items())
    note = f"\n{program.note}\n" if program.note else ""
    return f"""---
license: mit
library_name: transformers
pipeline_tag: text-generation
tags: [interpretability, interchange-intervention-training, ground-truth-circuit]
---

# zoo:{program.name}_trained

A small GPT-2 that was trained to compute what the program `{program.name}` computes, node by node:
{program.description}. It is here so that methods can be tried where the circuit is known and
the weights are those of gradient descent. The compiled model of the same program is `zoo:{program.name}`.
{note}
**Shape.** {shape.n_layers} layers, {shape.n_heads} heads each ({recipe.extra_heads} more than the compiled model),
width {width}, MLP width {recipe.d_mlp}, context {program.context}, {record["parameters"]:,} parameters in float32,
LayerNorm, no dropout. Tokens, separated by spaces: `{" ".join(program.vocabulary)}`. `^` begins every prompt.

**Circuit.** The nodes that hold variables: {nodes}. No other head or MLP does.
`compiled.truth("{program.name}_trained")` (from `patching`) gives it with the program's edges. Which nodes are in it is
certain to the accuracy below, and so is which of them reads which. Through which port of a head, and what each takes
from the input, is that of the program, and was not trained for.

**Data.** {recipe.interventions:,} interventions on the program's training split: pairs of prompts of one length, where
the variables of one node (half of the time) or of a random set of nodes are taken from the second prompt. Prompts whose
CRC-32 is a multiple of 5 are held out (none, if the program has fewer than 50 prompts). Generated; no text by others.

**Training.** Strict interchange training (arXiv 2407.14494): {recipe.steps:,} steps of {recipe.batch} interventions,
AdamW, learning rate {recipe.learning_rate}, weight decay {recipe.weight_decay}, seed {recipe.seed}. Three losses of
equal weight, each KL from what the compiled model says, in nats at the end: {losses}
(on plain prompts, under interventions, with useless nodes exchanged).
{record["seconds"]:.0f} s ({record["cpu_seconds"]:.0f} s of CPU time) on {record["device"]}; {versions}.

**Interchange accuracy.** How often the program's answer has the highest logit when nodes write what they write on
another prompt. Measured by `circuits.interchange.report`, which runs the engine of `patching` and not the training's
code, on {held_out["task"]["n"]} interventions for each row; where it can be, in half of them the program's answer
changes. Mean over the nodes with variables: **{held_out["interchange_accuracy"]:.1%}** on held-out prompts,
{train["interchange_accuracy"]:.1%} on training prompts. Lowest of all rows: {held_out["lowest"]:.1%} and
{train["lowest"]:.1%}.

| exchanged | held-out prompts | of those in which the answer changes | training prompts |
|---|---:|---:|---:|
{_rows(held_out, train)}

**Make it again.** `{made_by} --out FOLDER` gives the same weights,
bit for bit, on the same machine and versions: SHA-256 of `model.safetensors`
`{record["weights_sha256"]}`.

**Licence.** MIT, weights and data alike.
"""


def _rows(held_out: Mapping[str, Any], train: Mapping[str, Any]) -> str:
    """One line for each set of nodes."""
    lines = [_row("nothing: the task itself", held_out["task"], train["task"])]
    for kind, words in (("variables", ""), ("joint", ""), ("strict", "useless: ")):
        for ours, theirs in zip(held_out[kind], train[kind], strict=True):
            lines.append(_row(words + _named(ours["nodes"]), ours, theirs))
    return "\n".join(lines)


def _row(what: str, held_out: Mapping[str, Any], train: Mapping[str, Any]) -> str:
    changed = held_out["accuracy_changed"]
    share = "" if changed is None else f"{changed:.1%}"
    return f"| {what} | {held_out['accuracy']:.1%} | {share} | {train['accuracy']:.1%} |"


def _named(nodes: Iterable[str]) -> str:
    return " ".join(f"`{node}`" for node in nodes)
