"""Train `zoo:ioi`, the small transformer that ships with Wiretrace and does indirect object identification.

    python -m experiments.train_ioi --out patching/zoo/ioi

One step after the other: generated sentences (`experiments.ioi_sentences`), a word-level tokenizer with
exactly their words, a GPT-2 of three layers, next-token prediction on every token, accuracy on what training
never saw, and a folder in Hugging Face format. The folder appears whole or not at all. The same recipe on the
same machine and library versions gives the same weights, bit for bit; `training.json` keeps their digest.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuits.tasks.ioi import Prompt, generate
from experiments.ioi_sentences import KINDS, sentences, vocabulary
from graphs.errors import WiretraceError, WriteFailed

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

END = "<|endoftext|>"
UNKNOWN = "<unk>"
IGNORED = -100
"""The target of positions that carry no loss: PyTorch's default for it."""

RECORD = "training.json"
"""The machine-readable half of the model card; also what marks a folder as one of ours to overwrite."""

MEASURED_SEED = 2**31
"""Seed of the prompts that accuracy is measured on; training sentences come from other seeds."""

SPLITS_MEASURED = ("train", "held-out-pairs", "held-out-templates")


class OutputExists(WiretraceError):
    """The output folder holds something already."""


class DoesNotFit(WiretraceError):
    """The recipe cannot be trained as asked."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, apart from library versions.

    Attributes:
        seed: Of the sentences, the initial weights and the batches.
        n_sentences: Size of the corpus, from which batches are drawn with replacement.
        steps: Updates.
        batch: Sentences per update.
        learning_rate: At its peak; 100 steps of linear warm-up, then a cosine down to a twentieth.
        weight_decay: AdamW's, on matrices; it shrinks what no sentence needs, so the circuit comes out clean.
        initial_std: Of the initial weights. GPT-2's 0.02 is made for a width of 768 and learns later here.
        n_layers: Transformer blocks.
        n_heads: Attention heads per block.
        d_model: Width of the residual stream.
        d_mlp: Hidden width of each MLP.
        n_ctx: Most tokens in a prompt.
        threads: PyTorch's, since sums depend on how they are split.
    """

    seed: int = 0
    n_sentences: int = 100_000
    steps: int = 4000
    batch: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    initial_std: float = 0.06
    n_layers: int = 3
    n_heads: int = 8
    d_model: int = 64
    d_mlp: int = 128
    n_ctx: int = 40
    threads: int = 1


def build_tokenizer(*, n_ctx: int) -> PreTrainedTokenizerFast:
    """Make the word-level tokenizer: each word and punctuation mark of the sentences is one token.

    Spaces only separate, so `" Mary"` and `"Mary"` are the same token. Nothing is put before or after a text.

    Args:
        n_ctx: Longest prompt that the model takes.

    Returns:
        A tokenizer whose `bos_token`, `eos_token` and `pad_token` are all `<|endoftext|>`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [END, UNKNOWN, *vocabulary()]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece(cleanup=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        unk_token=UNKNOWN,
        model_max_length=n_ctx,
    )


def build_model(recipe: Recipe, *, d_vocab: int) -> GPT2LMHeadModel:
    """Make a GPT-2 with random weights, drawn from the recipe's seed.

    Args:
        recipe: The shape and the seed.
        d_vocab: Size of the vocabulary.

    Returns:
        A float32 model on the CPU, without dropout, its unembedding tied to its embedding.
    """
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=d_vocab,
        n_positions=recipe.n_ctx,
        n_embd=recipe.d_model,
        n_layer=recipe.n_layers,
        n_head=recipe.n_heads,
        n_inner=recipe.d_mlp,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=recipe.initial_std,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return GPT2LMHeadModel(config)


def pad(rows: Sequence[Sequence[int]], *, fill: int) -> Int[Tensor, "row pos"]:
    """Stack rows of token ids, shorter ones padded on the right."""
    import torch

    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], True, fill)


def build_corpus(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast
) -> tuple[Int[Tensor, "sentence pos"], Int[Tensor, "sentence pos"], str]:
    """Generate and tokenise the training sentences.

    Args:
        recipe: How many, from which seed, and the context they must fit.
        tokenizer: As made by `build_tokenizer`.

    Returns:
        Tokens; targets, which are the tokens one position on, the end of the text, then `IGNORED`; and the
        SHA-256 of the text, one sentence per line.

    Raises:
        DoesNotFit: A sentence is longer than the model's context.
    """
    texts = list(itertools.islice(sentences(recipe.seed), recipe.n_sentences))
    rows = [encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch(texts)]
    longest = max(range(len(rows)), key=lambda i: len(rows[i]))
    if len(rows[longest]) > recipe.n_ctx:
        raise DoesNotFit(
            f"expected sentences of at most n_ctx = {recipe.n_ctx} tokens; got one of {len(rows[longest])}: "
            f"{texts[longest]!r}. Raise n_ctx."
        )
    end = tokenizer.backend_tokenizer.get_vocab()[END]
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    return pad(rows, fill=end), pad([[*row[1:], end] for row in rows], fill=IGNORED), digest


def fit(
    model: GPT2LMHeadModel,
    tokens: Int[Tensor, "sentence pos"],
    targets: Int[Tensor, "sentence pos"],
    *,
    recipe: Recipe,
    progress: Callable[[range], Iterable[int]] = iter,
) -> float:
    """Train the model in place: next-token cross-entropy on every token, AdamW, gradients clipped to norm 1.

    Args:
        model: From `build_model`.
        tokens: From `build_corpus`.
        targets: From `build_corpus`.
        recipe: Steps, batch, learning rate, weight decay and seed.
        progress: Wraps the range of steps, as tqdm does.

    Returns:
        The mean loss of the last twentieth of the steps, in nats per token.
    """
    import torch

    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    vectors = [weight for weight in model.parameters() if weight.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, recipe.steps))
    generator = torch.Generator().manual_seed(recipe.seed)
    losses: list[float] = []
    model.train()
    for _ in progress(range(recipe.steps)):
        chosen = torch.randint(len(tokens), (recipe.batch,), generator=generator)
        wanted = targets[chosen]
        length = int((wanted != IGNORED).sum(-1).max())
        batch = tokens[chosen, :length]
        logits = model(batch, attention_mask=torch.ones_like(batch), use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted[:, :length].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    model.eval()
    last = losses[-math.ceil(recipe.steps / 20) :]
    return sum(last) / len(last)


def _rate(step: int, steps: int) -> float:
    """Return the learning rate as a share of its peak."""
    return min(1.0, (step + 1) / 100) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def last_logits(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]
) -> Float[Tensor, "prompt d_vocab"]:
    """Return the logits after the last token of each prompt; causal attention never sees the padding."""
    import torch

    rows = [encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch(list(texts))]
    ends = torch.tensor([len(row) - 1 for row in rows])
    tokens = pad(rows, fill=0)
    with torch.no_grad():
        logits = model(tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits
    return logits[torch.arange(len(rows)), ends]


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
    with _new_folder(out, force=force) as folder, _reproducible(recipe.threads):
        start, cpu_start = time.perf_counter(), time.process_time()
        tokenizer = build_tokenizer(n_ctx=recipe.n_ctx)
        tokens, targets, digest = build_corpus(recipe, tokenizer)
        model = build_model(recipe, d_vocab=len(tokenizer))
        loss = fit(model, tokens, targets, recipe=recipe, progress=progress)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
        record = {
            "schema": "wiretrace-training/1",
            "task": "ioi",
            "recipe": asdict(recipe),
            "parameters": model.num_parameters(),
            "d_vocab": len(tokenizer),
            "corpus": {"tokens": int((targets != IGNORED).sum()), "sha256": digest},
            "loss": round(loss, 4),
            "accuracy": measure_all(model, tokenizer),
            "seconds": round(seconds, 1),
            "cpu_seconds": round(cpu_seconds, 1),
            "device": f"CPU ({platform.machine()}), {recipe.threads} thread{'s' * (recipe.threads > 1)}",
            "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
            "weights_sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        }
        (folder / RECORD).write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(model_card(record), encoding="utf-8")
        for path in folder.iterdir():
            path.chmod(0o644)
    return record


@contextmanager
def _reproducible(threads: int) -> Iterator[None]:
    """Fix the number of threads and forbid nondeterministic kernels, for as long as the block lasts."""
    import torch

    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])


@contextmanager
def _new_folder(out: Path, *, force: bool) -> Iterator[Path]:
    """Give a folder beside `out` that takes its place when the block ends well, and vanishes otherwise."""
    out = out.resolve()
    taken = out.exists() and not (out.is_dir() and not any(out.iterdir()))
    if taken and not force:
        raise OutputExists(f"expected a new folder; {out} exists. Choose another, or give --force to replace it.")
    if taken and not (out / RECORD).is_file():
        raise OutputExists(f"expected a folder made by this script; {out} has no {RECORD}. Choose another one.")
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    except OSError as error:
        raise WriteFailed(
            f"cannot write in {out.parent}: {error.strerror}. Make that folder, or choose another."
        ) from error
    try:
        folder.chmod(0o755)
        yield folder
        _take_place(folder, out)
    except OSError as error:
        raise WriteFailed(f"cannot write {out}: {error.strerror}. Nothing was left there.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _take_place(folder: Path, out: Path) -> None:
    """Rename `folder` to `out`; what stood there goes, or stays if the renaming fails."""
    old = folder / ".replaced"
    if out.exists():
        out.rename(old)
    try:
        folder.rename(out)
    except BaseException:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(out / old.name, ignore_errors=True)


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
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
    from tqdm import tqdm

    recipe = Recipe(seed=seed, steps=steps, n_sentences=sentences)
    try:
        record = train(
            out, recipe=recipe, force=force, progress=lambda steps: tqdm(steps, desc="training", unit="step")
        )
    except WiretraceError as error:
        typer.echo(str(error), err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo(f"Stopped; {out} is as it was.", err=True)
        sys.exit(130)
    typer.echo(json.dumps(record["accuracy"], indent=2))
    typer.echo(f"{out}: {record['parameters']:,} parameters, trained in {record['seconds']:.0f} s")


if __name__ == "__main__":
    typer.run(main)
