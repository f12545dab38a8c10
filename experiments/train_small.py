"""Train `zoo:small`, the language model that ships with Wiretrace.

    python -m experiments.train_small --out patching/zoo/small

A GPT-2 of 4 layers, 8 heads and width 256 on the standard library's text, generated English, and the training prompts
of six tasks (`experiments.small_model`). Next-token prediction on every token; matrices by Muon, the rest by AdamW.
Every few minutes a checkpoint is written; the same command goes on from it, to the weights that it would have come to
without stopping. On two cores this takes about an hour.
"""

from __future__ import annotations

import platform
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuits import tasks
from circuits.tasks.text import Prompt
from experiments.small_model import corpus, sentences, text, tokenizer
from experiments.small_model.card import model_card
from experiments.small_model.trainer import Recipe, Trainer, fit
from experiments.zoo_training.accuracy import MEASURED_SEED, measure
from experiments.zoo_training.command import carry_out
from experiments.zoo_training.fit import reproducible
from experiments.zoo_training.folder import new_folder
from experiments.zoo_training.specialist import SCHEMA, device_name, versions, weights_digest, write

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

SPLITS_MEASURED = ("train", "held-out-words", "held-out-templates")
IOI_SPLITS_MEASURED = ("train-names", "held-out-names", "held-out-all")
PROMPTS_MEASURED = 1000
TEXT_MEASURED = 400
"""Held-out passages on which the loss is measured, of prose and of code each."""

ORDINARY = "gelu_new"
"""GPT-2's name for the activation that is trained with: the same function, which every library knows by this name."""


def prepare(recipe: Recipe) -> tuple[PreTrainedTokenizerFast, Int[Tensor, "row pos"], str]:
    """Make the tokenizer and all rows of the training data.

    Returns:
        The tokenizer, the rows, and their SHA-256.
    """
    passages = text.passages(held_out=False)
    made = tokenizer.build(
        [*passages.prose, *passages.code], sentences.words(), size=recipe.d_vocab, n_ctx=recipe.n_ctx
    )
    count = recipe.steps * recipe.batch
    rows, digest = corpus.rows(
        made, passages, count=count, last=recipe.last_steps * recipe.batch, length=recipe.n_ctx + 1, seed=recipe.seed
    )
    return made, rows, digest


def measure_tasks(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Accuracy of every task by split, and by template where words are held out, or words and template."""
    measured: dict[str, Any] = {"by_template": {}}
    for task in corpus.TASKS:
        splits = IOI_SPLITS_MEASURED if task == "ioi" else SPLITS_MEASURED
        by_split = {
            split: tasks.load(task).generate(PROMPTS_MEASURED, seed=MEASURED_SEED, split=split) for split in splits
        }
        measured[task] = {split: measure(model, tokenizer, prompts) for split, prompts in by_split.items()}
        by_template: defaultdict[str, list[Prompt]] = defaultdict(list)
        for prompt in (prompt for split in splits[1:] for prompt in by_split[split]):
            by_template[prompt.template].append(prompt)
        measured["by_template"][task] = {
            name: measure(model, tokenizer, prompts)["accuracy"] for name, prompts in sorted(by_template.items())
        }
    return measured


def text_loss(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, passages: Sequence[str], *, n_ctx: int
) -> tuple[float, int]:
    """Nats per token on passages, each cut at the model's context; and how many tokens that were."""
    import torch

    total, count = 0.0, 0
    for passage in passages:
        ids = torch.tensor(tokenizer.backend_tokenizer.encode(passage).ids[:n_ctx])
        if len(ids) < 2:
            continue
        with torch.no_grad():
            logits = model(ids[None], attention_mask=torch.ones_like(ids[None]), use_cache=False).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum"))
        count += len(ids) - 1
    return total / count, count


def measure_text(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, *, n_ctx: int) -> dict[str, float | int]:
    """The loss on held-out modules of the standard library."""
    unseen = text.passages(held_out=True)
    found: dict[str, float | int] = {}
    total = tokens = 0.0
    for kind in ("prose", "code"):
        passages = getattr(unseen, kind)
        every = max(1, len(passages) // TEXT_MEASURED)
        loss, count = text_loss(model, tokenizer, passages[::every], n_ctx=n_ctx)
        found[kind] = round(loss, 4)
        total, tokens = total + loss * count, tokens + count
    return {"held_out": round(total / tokens, 4), "n_tokens": int(tokens), **found}


def train(
    out: Path,
    *,
    recipe: Recipe,
    work: Path,
    force: bool = False,
    progress: Callable[[range], Any] = iter,
) -> dict[str, Any]:
    """Train, measure and save the model; `out` then holds it whole, or is as it was.

    Args:
        out: Folder to make; the one above it must exist.
        recipe: What to train.
        work: Where the checkpoint goes; an earlier one there, of the same recipe, is gone on from.
        force: Replace a model that an earlier call left at `out`.
        progress: Wraps the range of steps, as tqdm does.

    Returns:
        What `training.json` holds.

    Raises:
        OutputExists: `out` holds something, and `force` is not given or it is no model of ours.
        OtherRecipe: `work` holds a checkpoint of another recipe.
        WriteFailed: A folder cannot be written.
    """
    with new_folder(out, force=force) as folder, reproducible(recipe.threads):
        made, rows, digest = prepare(recipe)
        trainer = Trainer(recipe)
        fit(trainer, rows, work=work, digest=digest, progress=progress)
        made.save_pretrained(folder)
        trainer.model.config.activation_function = ORDINARY
        trainer.model.save_pretrained(folder)
        last = trainer.losses[-max(1, recipe.steps // 20) :]
        record = {
            "schema": SCHEMA,
            "tasks": list(corpus.TASKS),
            "licence": "MIT (trained on text of Python's standard library, PSF-2.0)",
            "made_by": made_by(recipe),
            "recipe": asdict(recipe),
            "d_vocab": len(made),
            "parameters": sum(weight.numel() for weight in trainer.model.parameters()),
            "corpus": {"tokens": rows.numel(), "shares": corpus.SHARES, "sha256": digest},
            "loss": round(sum(last) / len(last), 4),
            "text_loss": measure_text(trainer.model, made, n_ctx=recipe.n_ctx),
            "accuracy": measure_tasks(trainer.model, made),
            "seconds": round(trainer.seconds, 1),
            "cpu_seconds": round(trainer.cpu_seconds, 1),
            "device": device_name(recipe.threads),
            "versions": {"python": platform.python_version(), **versions()},
            "weights_sha256": weights_digest(folder),
        }
        write(folder, record, card=model_card(record))
    return record


def made_by(recipe: Recipe) -> str:
    """The command that trains a recipe, but for the folder."""
    steps = f" --steps {recipe.steps}" if recipe.steps != Recipe.steps else ""
    return f"python -m experiments.train_small --seed {recipe.seed} --threads {recipe.threads}{steps}"


def main(
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    work: Annotated[Path, typer.Option(help="Folder of the checkpoint, from which the same command goes on.")] = Path(
        "runs/train_small"
    ),
    seed: Annotated[int, typer.Option(help="Seed of data and weights.")] = Recipe.seed,
    steps: Annotated[int, typer.Option(min=1, help="Updates.")] = Recipe.steps,
    threads: Annotated[int, typer.Option(min=1, help="Of PyTorch.")] = Recipe.threads,
    force: Annotated[bool, typer.Option("--force", help="Replace a model made earlier.")] = False,
) -> None:
    """Train the small language model and save it in Hugging Face format."""
    recipe = replace(Recipe(), seed=seed, steps=steps, last_steps=steps // 10, threads=threads)
    carry_out(out, lambda progress: train(out, recipe=recipe, work=work, force=force, progress=progress))


if __name__ == "__main__":
    typer.run(main)
