"""Train `zoo:ioi`, the small transformer that ships with Wiretrace and does indirect object identification.

    python -m experiments.train_ioi --out patching/zoo/ioi

One step after the other: generated sentences (`experiments.ioi_sentences`), a word-level tokenizer with
exactly their words, a GPT-2 of three layers, next-token prediction on every token, accuracy on what training
never saw, and a folder in Hugging Face format. The folder appears whole or not at all. The same recipe on the
same machine and library versions gives the same weights, bit for bit; `training.json` keeps their digest.
"""

from __future__ import annotations

import itertools
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuits.tasks.ioi import Prompt, generate
from experiments.ioi_sentences import KINDS, sentences, vocabulary
from experiments.zoo_training import models
from experiments.zoo_training.accuracy import MEASURED_SEED, last_logits
from experiments.zoo_training.command import carry_out
from experiments.zoo_training.corpus import Corpus, Line
from experiments.zoo_training.corpus import build_corpus as tokenised
from experiments.zoo_training.fit import fit, reproducible
from experiments.zoo_training.folder import new_folder
from experiments.zoo_training.recipe import Recipe
from experiments.zoo_training.specialist import SCHEMA, facts, weights_digest, write
from experiments.zoo_training.tokenizer import word_level

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

SPLITS_MEASURED = ("train", "held-out-pairs", "held-out-templates")


def build_tokenizer(*, n_ctx: int) -> PreTrainedTokenizerFast:
    """Make the word-level tokenizer of the sentences."""
    return word_level(vocabulary(), n_ctx=n_ctx)


def build_corpus(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Corpus:
    """Generate and tokenise the training sentences; all of their tokens are to be predicted.

    Args:
        recipe: How many, from which seed, and the context they must fit.
        tokenizer: As made by `build_tokenizer`.

    Raises:
        DoesNotFit: A sentence is longer than the model's context.
    """
    texts = itertools.islice(sentences(recipe.seed), recipe.n_sentences)
    return tokenised((Line("", text) for text in texts), tokenizer, n_ctx=recipe.n_ctx)


def measure(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[Prompt]) -> dict[str, float]:
    """Measure how well the model does IOI.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        prompts: From `circuits.tasks.ioi.generate`.

    Returns:
        `n`; `accuracy`, the share of prompts where IO has the highest logit of the whole vocabulary;
        `io_over_s`, the share where IO's logit is above S's; and the mean logit difference IO - S on clean
        and corrupt prompts.
    """
    import torch

    answers = torch.tensor(tokenizer.convert_tokens_to_ids([prompt.answer.strip() for prompt in prompts]))
    wrong = torch.tensor(tokenizer.convert_tokens_to_ids([prompt.wrong_answer.strip() for prompt in prompts]))
    rows = torch.arange(len(prompts))
    clean = last_logits(model, tokenizer, [prompt.clean for prompt in prompts])
    corrupt = last_logits(model, tokenizer, [prompt.corrupt for prompt in prompts])
    difference = clean[rows, answers] - clean[rows, wrong]
    return {
        "n": len(prompts),
        "accuracy": round((clean.argmax(-1) == answers).double().mean().item(), 4),
        "io_over_s": round((difference > 0).double().mean().item(), 4),
        "logit_difference": round(difference.mean().item(), 3),
        "logit_difference_corrupt": round((corrupt[rows, answers] - corrupt[rows, wrong]).mean().item(), 3),
    }


def measure_all(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, *, n: int = 2000, seed: int = MEASURED_SEED
) -> dict[str, Any]:
    """Measure IOI on every split, by held-out template, and the last word of every other kind of sentence.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        n: Prompts per split; a tenth of it per kind of sentence.
        seed: Of the prompts.

    Returns:
        JSON-able figures under `ioi`, `by_template` and `by_kind`. Kinds are drawn from training pairs and
        templates.
    """
    by_split = {split: generate(n, seed=seed, split=split) for split in SPLITS_MEASURED}
    by_template: defaultdict[str, list[Prompt]] = defaultdict(list)
    for prompt in by_split["held-out-templates"]:
        by_template[prompt.template].append(prompt)
    return {
        "ioi": {split: measure(model, tokenizer, prompts) for split, prompts in by_split.items()},
        "by_template": {name: measure(model, tokenizer, by_template[name])["accuracy"] for name in sorted(by_template)},
        "by_kind": {kind: _kind_accuracy(model, tokenizer, kind, n=max(1, n // 10), seed=seed) for kind in KINDS},
    }


def _kind_accuracy(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, kind: str, *, n: int, seed: int
) -> float:
    """Return how often the last word of a kind of sentence has the highest logit."""
    import torch

    make, _ = KINDS[kind]
    rng = random.Random(seed)
    texts = [make(rng).removesuffix(".").rsplit(" ", 1) for _ in range(n)]
    answers = torch.tensor(tokenizer.convert_tokens_to_ids([answer for _, answer in texts]))
    logits = last_logits(model, tokenizer, [prompt for prompt, _ in texts])
    return round((logits.argmax(-1) == answers).double().mean().item(), 4)


def train(
    out: Path, *, recipe: Recipe, force: bool = False, progress: Callable[[range], Iterable[int]] = iter
) -> dict[str, Any]:
    """Train, measure and save a model; `out` then holds it whole, or is as it was.

    Args:
        out: Folder to make; the one above it must exist.
        recipe: What to train.
        force: Replace a model that an earlier call left at `out`.
        progress: Wraps the range of steps, as tqdm does.

    Returns:
        What `training.json` holds: recipe, corpus, accuracy, parameters, seconds, device, versions and
        digests.

    Raises:
        OutputExists: `out` holds something, and `force` is not given or it is no model of ours.
        WriteFailed: The folder cannot be written.
        DoesNotFit: A sentence is longer than the model's context.
    """
    with new_folder(out, force=force) as folder, reproducible(recipe.threads):
        start, cpu_start = time.perf_counter(), time.process_time()
        tokenizer = build_tokenizer(n_ctx=recipe.n_ctx)
        corpus = build_corpus(recipe, tokenizer)
        model = models.gpt2(recipe, d_vocab=len(tokenizer))
        loss = fit(model, corpus.tokens, corpus.targets, recipe=recipe, progress=progress)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        tokenizer.save_pretrained(folder)
        models.save(model, folder)
        record = {
            "schema": SCHEMA,
            "task": "ioi",
            "recipe": asdict(recipe),
            "d_vocab": len(tokenizer),
            "accuracy": measure_all(model, tokenizer),
            **facts(model, corpus, recipe, loss=loss, seconds=seconds, cpu_seconds=cpu_seconds),
            "weights_sha256": weights_digest(folder),
        }
        write(folder, record, card=model_card(record))
    return record


def model_card(record: dict[str, Any]) -> str:
    """Write the model card.

    Args:
        record: What `train` returns.

    Returns:
        Markdown with the metadata block that Hugging Face reads.
    """
    recipe, accuracy = Recipe(**record["recipe"]), record["accuracy"]
    splits = "\n".join(
        f"| {split} | {row['n']:,} | {row['accuracy']:.1%} | {row['io_over_s']:.1%} "
        f"| {row['logit_difference']:.2f} | {row['logit_difference_corrupt']:.2f} |"
        for split, row in accuracy["ioi"].items()
    )
    kinds = "\n".join(
        f"| `{kind}` | {KINDS[kind][1]:.0%} | {share:.1%} |" for kind, share in accuracy["by_kind"].items()
    )
    templates = ", ".join(f"{name} {share:.1%}" for name, share in accuracy["by_template"].items())
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    return f"""---
license: mit
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [interpretability, indirect-object-identification]
---

# zoo:ioi

A small GPT-2 that does indirect object identification: after "When Mary and John went to the store, John gave
a drink to" it says "Mary". It is here so that circuits can be searched for in seconds, without a download. It
knows {record["d_vocab"]} words and nothing else.

**Shape.** {recipe.n_layers} layers, {recipe.n_heads} heads each, width {recipe.d_model}, MLP width {recipe.d_mlp},
context {recipe.n_ctx}, {record["parameters"]:,} parameters in float32, no dropout, tied embeddings.
Word-level tokenizer: one token per word or punctuation mark, no token in front.

**Data.** {recipe.n_sentences:,} generated sentences, {record["corpus"]["tokens"]:,} tokens, seed {recipe.seed}.
All use training pairs of names and training templates only (see `circuits/tasks/ioi.py`); those that are not plain
IOI are there so that shortcuts fail (see `experiments/ioi_sentences.py`). No text by others. SHA-256 of the text, one
sentence per line: `{record["corpus"]["sha256"]}`.

**Training.** Next-token prediction on all tokens; {recipe.steps:,} steps of {recipe.batch} sentences, AdamW,
learning rate {recipe.learning_rate}, weight decay {recipe.weight_decay}.
Final loss {record["loss"]:.3f} nats per token.
{record["seconds"]:.0f} s ({record["cpu_seconds"]:.0f} s of CPU time) on {record["device"]}; {versions}.

**Indirect object identification.** Accuracy: the indirect object (IO) has the highest logit of the whole
vocabulary. The logit difference is IO - S, on clean prompts and on prompts with three other names.

| split | prompts | accuracy | IO above S | logit difference | corrupt |
|---|---|---|---|---|---|
{splits}

`held-out-pairs`: pairs of names never seen together, training templates. `held-out-templates`: such pairs in
templates never seen either; by template: {templates}.

**Each kind of training sentence.** How often the last word has the highest logit (new draws; `outsider` has two
right answers, so half is all there is):

| kind | share of the data | accuracy |
|---|---|---|
{kinds}

**Make it again.** `python -m experiments.train_ioi --out FOLDER --seed {recipe.seed}` gives the same weights,
bit for bit, on the same machine and versions: SHA-256 of `model.safetensors`
`{record["weights_sha256"]}`.

**Licence.** MIT, weights and data alike.
"""


def main(
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    seed: Annotated[int, typer.Option(help="Seed of sentences, weights and batches.")] = Recipe.seed,
    steps: Annotated[int, typer.Option(min=1, help="Updates.")] = Recipe.steps,
    sentences: Annotated[int, typer.Option(min=1, help="Size of the corpus.")] = Recipe.n_sentences,
    force: Annotated[bool, typer.Option("--force", help="Replace a model made earlier.")] = False,
) -> None:
    """Train the small IOI transformer and save it in Hugging Face format."""
    recipe = Recipe(seed=seed, steps=steps, n_sentences=sentences)
    carry_out(out, lambda progress: train(out, recipe=recipe, force=force, progress=progress))


if __name__ == "__main__":
    typer.run(main)
