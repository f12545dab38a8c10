"""A model of one task: from a table of choices to its folder."""

from __future__ import annotations

import hashlib
import itertools
import json
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits import tasks
from circuits.tasks.text import Prompt
from experiments.zoo_training import models
from experiments.zoo_training.accuracy import MEASURED_SEED, measure
from experiments.zoo_training.card import model_card
from experiments.zoo_training.corpus import Corpus, Line, build_corpus
from experiments.zoo_training.fit import fit, reproducible
from experiments.zoo_training.folder import RECORD, new_folder
from experiments.zoo_training.recipe import Recipe
from experiments.zoo_training.tokenizer import word_level

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SCHEMA = "wiretrace-training/1"

MEASURED = 2000
"""Prompts of each split that accuracy is measured on."""


@dataclass(frozen=True)
class Specialist:
    """What a small model of one task is made of.

    Attributes:
        task: Its name, in `circuits.tasks.TASKS`; the model is `zoo:` and that name.
        recipe: Shape, steps and seed.
        lines: From a seed to training text without end, or to all there is.
        words: The vocabulary.
        splits: Which splits of the task accuracy is measured on.
        about: What the model does, for its card: a sentence or two.
        data: What its text is, and what training never sees, for its card.
        splitting: Where words end: a key of `tokenizer.SPLITTING`.
        mechanism: How the weights that ship do it, for its card; empty where that is not known.
    """

    task: str
    recipe: Recipe
    lines: Callable[[int], Iterator[Line]]
    words: Callable[[], Sequence[str]]
    splits: tuple[str, ...]
    about: str
    data: str
    splitting: str = "marks"
    mechanism: str = ""

    def tokenizer(self, recipe: Recipe) -> PreTrainedTokenizerFast:
        """One token per word."""
        return word_level(self.words(), n_ctx=recipe.n_ctx, splitting=self.splitting)

    def corpus(self, recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Corpus:
        """The training text of a recipe, tokenised."""
        return build_corpus(
            itertools.islice(self.lines(recipe.seed), recipe.n_sentences), tokenizer, n_ctx=recipe.n_ctx
        )

    def card(self, record: Mapping[str, Any]) -> str:
        """The model card of a training's record."""
        return model_card(record, about=self.about, data=self.data, mechanism=self.mechanism)

    def accuracy(self, model: Any, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
        """Accuracy on each split, as `training.json` has it."""
        generate = tasks.load(self.task).generate
        by_split = {split: generate(MEASURED, seed=MEASURED_SEED, split=split) for split in self.splits}
        return {self.task: {split: measure(model, tokenizer, prompts) for split, prompts in by_split.items()}}


def training_prompts(task: str, seed: int, **options: Any) -> Iterator[Prompt]:
    """Prompts of a task's training split without end."""
    generate = tasks.load(task).generate
    for part in itertools.count():
        yield from generate(1000, seed=1_000_000 * seed + part, split="train", **options)


def train(
    specialist: Specialist,
    out: Path,
    *,
    recipe: Recipe | None = None,
    force: bool = False,
    progress: Callable[[range], Iterable[int]] = iter,
) -> dict[str, Any]:
    """Train, measure and save a model; `out` then holds it whole, or is as it was.

    Args:
        specialist: What to train.
        out: Folder to make; the one above it must exist.
        recipe: Another than the specialist's own.
        force: Replace a model that an earlier call left at `out`.
        progress: Wraps the range of steps, as tqdm does.

    Returns:
        What `training.json` holds.

    Raises:
        OutputExists: `out` holds something, and `force` is not given or it is no model of ours.
        WriteFailed: The folder cannot be written.
        DoesNotFit: A line is longer than the model's context.
    """
    recipe = recipe or specialist.recipe
    with new_folder(out, force=force) as folder, reproducible(recipe.threads):
        start, cpu_start = time.perf_counter(), time.process_time()
        tokenizer = specialist.tokenizer(recipe)
        corpus = specialist.corpus(recipe, tokenizer)
        model = models.build(recipe, d_vocab=len(tokenizer))
        loss = fit(model, corpus.tokens, corpus.targets, recipe=recipe, progress=progress)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        tokenizer.save_pretrained(folder)
        models.save(model, folder)
        record = {
            "schema": SCHEMA,
            "task": specialist.task,
            "licence": "MIT",
            "made_by": made_by(specialist, recipe),
            "recipe": asdict(recipe),
            "d_vocab": len(tokenizer),
            "accuracy": specialist.accuracy(model, tokenizer),
            **facts(model, corpus, recipe, loss=loss, seconds=seconds, cpu_seconds=cpu_seconds),
            "weights_sha256": weights_digest(folder),
        }
        write(folder, record, card=specialist.card(record))
    return record


def made_by(specialist: Specialist, recipe: Recipe) -> str:
    """The command that trains a recipe, but for the folder."""
    words = ["python -m experiments.train_zoo", specialist.task, f"--seed {recipe.seed}"]
    if recipe.steps != specialist.recipe.steps:
        words.append(f"--steps {recipe.steps}")
    if recipe.n_sentences != specialist.recipe.n_sentences:
        words.append(f"--sentences {recipe.n_sentences}")
    return " ".join(words)


def facts(
    model: Any, corpus: Corpus, recipe: Recipe, *, loss: float, seconds: float, cpu_seconds: float
) -> dict[str, Any]:
    """What every record says of a training: sizes, loss, time, machine and versions."""
    return {
        "parameters": sum(weight.numel() for weight in models.parameters(model)),
        "corpus": {"lines": len(corpus.tokens), "tokens": corpus.n_targets, "sha256": corpus.sha256},
        "loss": round(loss, 4),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "device": device_name(recipe.threads),
        "versions": versions(),
    }


def device_name(threads: int) -> str:
    """This machine's kind of CPU, without its name."""
    return f"CPU ({platform.machine()}), {threads} thread{'s' * (threads > 1)}"


def versions() -> dict[str, str]:
    """Of the libraries that decide the weights."""
    return {name: version(name) for name in ("torch", "transformers", "tokenizers")}


def weights_digest(folder: Path) -> str:
    """SHA-256 of the weights in a folder."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def write(folder: Path, record: Mapping[str, Any], *, card: str) -> None:
    """Write the record and the model card."""
    (folder / RECORD).write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")
