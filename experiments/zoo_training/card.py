"""The model card of a specialist."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from experiments.zoo_training.models import kind
from experiments.zoo_training.recipe import Recipe

WIDTH = 118


def header(*, task: str, library: str = "transformers") -> str:
    """The metadata block that Hugging Face reads."""
    return f"""---
license: mit
language: en
library_name: {library}
pipeline_tag: text-generation
tags: [interpretability, {task.replace("_", "-")}]
---"""


def model_card(record: Mapping[str, Any], *, about: str, data: str, mechanism: str = "") -> str:
    """Write the model card of a specialist.

    Args:
        record: What `specialist.train` returns.
        about: What the model does.
        data: What it was trained on, and what was held out.
        mechanism: How the weights that ship do it, where that is known.

    Returns:
        Markdown, with the metadata block that Hugging Face reads.
    """
    recipe, task = Recipe(**record["recipe"]), record["task"]
    paragraphs = [
        f"# zoo:{task}",
        f"{about} It is here so that circuits can be searched for in seconds, without a download. It knows "
        f"{record['d_vocab']} words and nothing else.",
        shape(record),
        f"**Data.** {data} {record['corpus']['lines']:,} lines, {record['corpus']['tokens']:,} tokens to predict, "
        f"seed {recipe.seed}. No text by others. SHA-256 of the text, one line each: "
        f"`{record['corpus']['sha256']}`.",
        training(record),
        "**Accuracy.** A right answer has the highest logit of the whole vocabulary, on prompts drawn with a seed of "
        "their own. The logit difference is the mean of the right answers' logits minus that of the wrong ones', on "
        "clean and on corrupt prompts.",
        accuracy_table(record["accuracy"][task]),
        *([f"**Mechanism.** {mechanism}"] if mechanism else []),
        again(record),
        "**Licence.** MIT, weights and data alike.",
    ]
    library = "transformers" if recipe.d_mlp else "wiretrace"
    return "\n\n".join([header(task=task, library=library), *map(fill, paragraphs)]) + "\n"


def shape(record: Mapping[str, Any]) -> str:
    """The paragraph on the model's shape."""
    recipe = Recipe(**record["recipe"])
    mlp = f"MLP width {recipe.d_mlp}, tied embeddings" if recipe.d_mlp else "no MLPs, embeddings not tied"
    positions = ", rotary positions" if recipe.rotary else ""
    return (
        f"**Shape.** {kind(recipe)} of {_count(recipe.n_layers, 'layer')} with {recipe.n_heads} heads per layer, width "
        f"{recipe.d_model}, {mlp}{positions}, context {recipe.n_ctx}, {record['parameters']:,} parameters in float32, "
        "no dropout. Word-level tokenizer: one token per word, no token in front."
    )


def training(record: Mapping[str, Any]) -> str:
    """The paragraph on the training."""
    recipe = Recipe(**record["recipe"])
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    muon = f"Muon for the layers' matrices, learning rate {recipe.muon_rate}, " if recipe.muon_rate else ""
    return (
        f"**Training.** {recipe.steps:,} steps of {recipe.batch} lines, {muon}AdamW, learning rate "
        f"{recipe.learning_rate}, weight decay {recipe.weight_decay}. Final loss {record['loss']:.3f} nats per token. "
        f"{record['seconds']:.0f} s ({record['cpu_seconds']:.0f} s of CPU time) on {record['device']}; {versions}."
    )


def accuracy_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Accuracy by split as a Markdown table."""
    lines = [
        f"| {split} | {row['n']:,} | {row['accuracy']:.2%} | {row['logit_difference']:.2f} "
        f"| {row['logit_difference_corrupt']:.2f} |"
        for split, row in rows.items()
    ]
    head = ["| split | prompts | accuracy | logit difference | corrupt |", "|---|---|---|---|---|"]
    return "\n".join([*head, *lines])


def again(record: Mapping[str, Any]) -> str:
    """The paragraph on making the model again."""
    return (
        f"**Make it again.** `{record['made_by']} --out FOLDER` gives the same weights, bit for bit, on the same "
        f"machine and versions: SHA-256 of `model.safetensors` `{record['weights_sha256']}`."
    )


def fill(paragraph: str) -> str:
    """Break a paragraph into lines; tables and headings stay as they are."""
    if paragraph.startswith(("|", "#")):
        return paragraph
    return textwrap.fill(paragraph, WIDTH, break_long_words=False, break_on_hyphens=False)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"
