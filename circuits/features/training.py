"""Training dictionaries on any stream of activations.

`train` takes a dictionary and batches (pairs of input and target for transcoders), and gives back a trained copy with
the course of the training. Inputs are scaled so that their length is √d on average, and the scale is folded into the
weights at the end; the sparsity penalty is warmed up, the learning rate falls to 0 at the end, decoder rows are held
at length 1 where the architecture wants it, and dead features are revived by an auxiliary loss or by resampling.

There is no model and no data set inside: see `circuits.features.activations` for activations of a model, and
`circuits.features.toys` for activations with planted features.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor

from circuits.features.dictionary import Dictionary
from circuits.features.losses import LOSSES, PENALTIES, Terms, Weighting
from circuits.features.training_state import Record, State, fingerprint
from circuits.features.upkeep import fold_scales, normalise, remove_parallel, resample
from patching.errors import InvalidOption, NotFinite
from patching.progress import Progress, silent

UNIT_NORM = frozenset({"topk", "batchtopk", "matryoshka", "jumprelu", "gated", "tied"})
"""Architectures whose decoder rows are held at length 1 unless the recipe says otherwise."""
THRESHOLD_RATE = 0.01
"""How fast the threshold of BatchTopK follows the weakest activation that was kept."""
LONGEST_SILENCE = 10_000_000
"""Tokens without firing after which a feature is dead at the latest (arXiv 2406.04093)."""

Batch = Tensor | tuple[Tensor, Tensor]


@runtime_checkable
class Resumable(Protocol):
    """A stream of batches that can be entered anywhere; others are read from their beginning to go on."""

    def from_step(self, step: int) -> Iterator[Any]:
        """The batches of ``step`` and later, without end."""
        ...


@dataclass(frozen=True)
class Recipe:
    """How to train, beyond steps, learning rate and sparsity.

    Attributes:
        warmup: share of the steps in which the sparsity coefficient rises from 0.
        decay: share of the steps, at the end, in which the learning rate falls to 0.
        scale: what inputs (and targets) are multiplied by in training; ``"auto"`` brings the first batch's mean length
            to √d. It is folded into the weights at the end.
        unit_norm: hold decoder rows at length 1; None for what the architecture wants.
        dead_after: tokens without firing after which a feature is dead; a tenth of the training's, at most
            10 million, by default.
        resample_every: replace dead features by directions of badly reconstructed inputs every so many steps, until
            the learning rate falls; None for never.
        record_every: steps between records; a hundredth of the steps by default.
        checkpoint_every: steps between checkpoints.
        seed: of resampling.
        weighting: the weights of the loss; its sparsity and dead features are set by training.
    """

    warmup: float = 0.05
    decay: float = 0.2
    scale: float | str = "auto"
    unit_norm: bool | None = None
    dead_after: int | None = None
    resample_every: int | None = None
    record_every: int | None = None
    checkpoint_every: int = 1000
    seed: int = 0
    weighting: Weighting = field(default_factory=Weighting)

    def __post_init__(self) -> None:
        for name in ("warmup", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidOption(f"expected {name} to be a share of the steps, 0 to 1; got {getattr(self, name)!r}.")
        if self.scale != "auto" and not (isinstance(self.scale, int | float) and 0 < self.scale < math.inf):
            raise InvalidOption(f"expected scale to be 'auto' or a number above 0; got {self.scale!r}.")
        for name in ("dead_after", "resample_every", "record_every", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InvalidOption(f"expected {name} to be a whole number of 1 or more; got {value!r}.")
        if self.weighting.penalty not in PENALTIES:
            raise InvalidOption(f"expected a penalty out of {', '.join(PENALTIES)}; got {self.weighting.penalty!r}.")
        if not self.weighting.bandwidth > 0:
            raise InvalidOption(f"expected a bandwidth above 0; got {self.weighting.bandwidth!r}.")

    def plain(self) -> dict[str, Any]:
        """As data, for provenance."""
        weighting = {key: value for key, value in vars(self.weighting).items() if key not in ("dead", "sparsity")}
        return {key: value for key, value in vars(self).items() if key != "weighting"} | weighting


@dataclass(frozen=True)
class Training:
    """A trained dictionary and how it came about.

    Attributes:
        dictionary: for inputs as they came, the scale folded in.
        history: records along the way, the last one of the last step.
        scales: what inputs and targets were multiplied by.
        tokens: how many this process trained on, and seconds it took.
        seconds: as said.
        asked: architecture, options and data, as plain data.
    """

    dictionary: Dictionary
    history: tuple[Record, ...]
    scales: tuple[float, float]
    tokens: int
    seconds: float
    asked: dict[str, Any]

    @property
    def last(self) -> Record:
        """How it ended."""
        return self.history[-1]


def train(
    dictionary: Dictionary,
    batches: Iterable[Batch],
    *,
    steps: int,
    lr: float = 3e-4,
    sparsity: float | None = None,
    recipe: Recipe | None = None,
    checkpoint: str | Path | None = None,
    progress: Progress = silent,
    on_record: Callable[[Record], None] | None = None,
) -> Training:
    """Train a dictionary.

    Args:
        dictionary: a new one (`create`), which stays as it is.
        batches: [batch, d_in], or pairs of these and [batch, d_out] for transcoders; begun again when it ends. Anything
            with ``from_step`` is entered where a resumed training goes on, anything else is read from its beginning.
        steps: updates, one batch each.
        lr: Adam's learning rate; 3e-4 is usual for language models, 3e-3 for toys.
        sparsity: lambda of the penalty (see `circuits.features.losses`). Architectures with a k take none.
        recipe: everything else.
        checkpoint: a file to write now and then, and to go on from if it is there. Going on ends with the same numbers,
            bit for bit, as never having stopped.
        progress: called with the number of steps done and to do.
        on_record: called with each record as it is made.

    Returns:
        A trained copy, and the course of the training.

    Raises:
        InvalidOption: an option out of range, batches of another width, a checkpoint of another training.
        NotFinite: the loss became NaN or infinite; the message names the step. The last checkpoint stays.
        InvalidWeights: the checkpoint cannot be read.
        WriteFailed: it cannot be written.

    Cost: per step and token, six products with d · feature numbers (encoder and decoder, forward and backward, less
    the encoder's input gradient); for TopK and BatchTopK with few of many features, two.

    Source: transformer-circuits.pub, April 2024 update (scale, warm-up, decay); arXiv 2406.04093 (TopK, auxiliary
    loss); arXiv 2407.14435 (JumpReLU). Adam's betas are 0.9 and 0.999 throughout.

    Example:
        >>> from circuits.features import create, toys
        >>> toy = toys.superposition(8, 16, 0.05)
        >>> training = train(create("topk", d_in=8, n_features=16, k=2), toy.batches(128), steps=100, lr=1e-2)
        >>> training.last.explained_variance > training.history[0].explained_variance + 0.2
        True
    """
    recipe = recipe or Recipe()
    _check(dictionary, steps, lr, sparsity)
    source = _Source(batches)
    x, y = _pair(source.first, dictionary)
    scales = _scales(recipe, dictionary, x, y)
    asked = {
        "architecture": dictionary.architecture, "d_in": dictionary.d_in, "d_out": dictionary.d_out,
        "n_features": dictionary.n_features, "dtype": str(dictionary.dtype), "steps": steps, "lr": lr,
        "sparsity": sparsity, "k": getattr(dictionary, "k", None), "recipe": recipe.plain(),
        "start": fingerprint(*dictionary.state_dict().values()), "first_batch": fingerprint(x, y),
    }  # fmt: skip
    run = _Run(State.start(copy.deepcopy(dictionary), lr), recipe, steps, lr, sparsity or 0.0, scales)
    if checkpoint is not None:
        if not Path(checkpoint).parent.is_dir():
            raise InvalidOption(f"expected a folder at {Path(checkpoint).parent} for the checkpoint; make it first.")
        if Path(checkpoint).exists():
            run.state.restore(checkpoint, asked)
    began, before = time.perf_counter(), run.tokens
    state = run.state
    stream = source.from_step(state.step)
    while state.step < steps:
        record = run.step(*_pair(next(stream), dictionary))
        if record is not None and on_record is not None:
            on_record(record)
        if checkpoint is not None and (state.step % recipe.checkpoint_every == 0 or state.step == steps):
            state.save(checkpoint, asked)
        progress(state.step, steps)
    seconds = time.perf_counter() - began
    trained = fold_scales(state.dictionary, scales).requires_grad_(False).eval()
    return Training(trained, tuple(state.history), scales, run.tokens - before, seconds, asked)


class _Run:
    """The loop's body: everything that one step does."""

    def __init__(
        self, state: State, recipe: Recipe, steps: int, lr: float, sparsity: float, scales: tuple[float, float]
    ) -> None:
        self.state, self.recipe, self.steps, self.lr, self.sparsity, self.scales = (
            state, recipe, steps, lr, sparsity, scales,
        )  # fmt: skip
        self.tokens = 0
        self.loss = LOSSES[state.dictionary.architecture]
        unit = recipe.unit_norm
        self.unit_norm = state.dictionary.architecture in UNIT_NORM if unit is None else unit
        if self.unit_norm and not state.step:
            normalise(state.dictionary)

    def step(self, x: Tensor, y: Tensor) -> Record | None:
        """One update."""
        state, recipe, steps = self.state, self.recipe, self.steps
        number = state.step
        x, y = x * self.scales[0], y * self.scales[1]
        warm = min(1.0, (number + 1) / max(1.0, recipe.warmup * steps))
        dead = self.dead(len(x))
        weighting = dataclasses.replace(recipe.weighting, sparsity=self.sparsity * warm, dead=dead)
        state.optimizer.zero_grad(set_to_none=True)
        terms = self.loss(state.dictionary, x, y, weighting)
        _require_finite(terms, x, y, number + 1, self.lr)
        terms.loss.backward()
        if self.unit_norm:
            remove_parallel(state.dictionary)
        for group in state.optimizer.param_groups:
            group["lr"] = self.lr * min(1.0, (steps - number) / max(1.0, recipe.decay * steps))
        state.optimizer.step()
        self._settle(terms)
        state.silent += len(x)
        state.silent[terms.fired] = 0
        state.step += 1
        self.tokens += len(x)
        self._resample(terms, x, y)
        every = recipe.record_every or max(1, steps // 100)
        if state.step % every and state.step != steps and state.step != 1:
            return None
        state.history.append(_record(state.step, terms, y, dead))
        return state.history[-1]

    def dead(self, batch: int) -> Bool[Tensor, " feature"]:
        """Features that have been silent for long."""
        limit = self.recipe.dead_after or min(LONGEST_SILENCE, max(1, self.steps * batch // 10))
        return self.state.silent >= limit

    @torch.no_grad()
    def _settle(self, terms: Terms) -> None:
        """What holds after every update: unit rows, thresholds of 0 or more, BatchTopK's threshold."""
        dictionary = self.state.dictionary
        if self.unit_norm:
            normalise(dictionary)
        threshold = getattr(dictionary, "threshold", None)
        if threshold is None:
            return
        if isinstance(threshold, torch.nn.Parameter):
            threshold.clamp_(min=0)
        elif (weakest := terms.weakest) is not None:
            rate = THRESHOLD_RATE if bool(threshold.any()) else 1.0
            threshold += rate * (weakest - threshold)

    @torch.no_grad()
    def _resample(self, terms: Terms, x: Tensor, y: Tensor) -> None:
        every = self.recipe.resample_every
        if every is None or self.state.step % every or self.state.step > (1 - self.recipe.decay) * self.steps:
            return
        dead = self.dead(len(x)).nonzero().flatten()
        if len(dead):
            generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + self.state.step)
            resample(self.state, dead, x, terms.error, generator)


class _Source:
    """Batches from any step on, and the first one without losing it."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self.batches = batches
        self.rest: Iterator[Batch] | None = None
        stream = iter(batches)
        try:
            self.first = next(stream)
        except StopIteration:
            raise InvalidOption("expected at least one batch; got none.") from None
        if stream is batches:  # it cannot be begun again
            self.rest = itertools.chain([self.first], stream)

    def from_step(self, step: int) -> Iterator[Batch]:
        if self.rest is None and isinstance(self.batches, Resumable):
            return self.batches.from_step(step)
        return itertools.islice(self._endless(), step, None)

    def _endless(self) -> Iterator[Batch]:
        if self.rest is not None:
            yield from self.rest
            raise InvalidOption(
                "expected as many batches as steps; the iterator ended. Give something that can be iterated again, "
                "such as a list or an ActivationBuffer, or fewer steps."
            )
        while True:
            yield from self.batches


def _pair(batch: Batch, dictionary: Dictionary) -> tuple[Tensor, Tensor]:
    """Input and target, in the dictionary's dtype and place."""
    x, y = batch if isinstance(batch, tuple | list) else (batch, batch)
    if dictionary.is_transcoder and isinstance(batch, Tensor):
        raise InvalidOption("expected pairs (input, target) for a transcoder; got single tensors.")
    for what, value, size in (("d_in", x, dictionary.d_in), ("d_out", y, dictionary.d_out)):
        if value.ndim != 2 or value.shape[1] != size or not len(value) or len(value) != len(x):
            raise InvalidOption(
                f"expected batches [batch, {what} = {size}] of at least one row; got shape {list(value.shape)}. Is "
                f"this the site that the dictionary is for ({dictionary.site})?"
            )
    like = dictionary.W_dec
    x = x.to(device=like.device, dtype=like.dtype)
    return x, (x if y is batch else y.to(device=like.device, dtype=like.dtype))


def _scales(recipe: Recipe, dictionary: Dictionary, x: Tensor, y: Tensor) -> tuple[float, float]:
    if not isinstance(recipe.scale, str):
        return float(recipe.scale), float(recipe.scale)
    lengths = [float(each.double().norm(dim=-1).mean()) for each in (x, y)]
    if not all(math.isfinite(length) and length > 0 for length in lengths):
        raise NotFinite(
            f"expected a first batch of finite activations that are not all 0; its mean lengths are {lengths}. Look at "
            "the activations, or give a scale."
        )
    return math.sqrt(dictionary.d_in) / lengths[0], math.sqrt(dictionary.d_out) / lengths[1]


def _check(dictionary: Dictionary, steps: int, lr: float, sparsity: float | None) -> None:
    architecture = dictionary.architecture
    if architecture not in LOSSES:
        raise InvalidOption(f"expected an architecture out of {', '.join(LOSSES)}; {architecture} has no training.")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InvalidOption(f"expected steps to be a whole number of 1 or more; got {steps!r}.")
    if not 0 < lr < math.inf:
        raise InvalidOption(f"expected lr above 0; got {lr!r}.")
    if dictionary.dtype not in (torch.float32, torch.float64):
        raise InvalidOption(
            f"expected a dictionary of float32 or float64; got {dictionary.dtype}, in which small updates (of "
            "thresholds above all) are lost. Train in float32 and convert afterwards."
        )
    if getattr(dictionary, "k", None) is not None:
        if sparsity:
            raise InvalidOption(f"expected no sparsity: how many features of a {architecture} are on is its k.")
    elif sparsity is None or not 0 <= sparsity < math.inf:
        raise InvalidOption(f"expected a sparsity of 0 or more for {architecture}; got {sparsity!r}.")
    if not bool(dictionary.W_enc.any()):
        raise InvalidOption("expected an encoder to start from; all of W_enc is 0, which no gradient leaves.")


def _require_finite(terms: Terms, x: Tensor, y: Tensor, step: int, lr: float) -> None:
    if math.isfinite(float(terms.loss.detach())):
        return
    if not bool(torch.isfinite(x).all()) or not bool(torch.isfinite(y).all()):
        raise NotFinite(f"expected finite activations; the batch of step {step} holds NaN or infinity.")
    raise NotFinite(
        f"expected a finite loss; it is {float(terms.loss.detach())} at step {step}: the training diverged. Lower lr "
        f"(it was {lr}) or the sparsity; the last checkpoint is from before."
    )


def _record(step: int, terms: Terms, y: Tensor, dead: Tensor) -> Record:
    total = (y - y.mean(0)).double().square().sum()
    explained = 1 - float(terms.error.double().square().sum() / total) if bool(total > 0) else math.nan
    return Record(
        step, float(terms.loss.detach()), float(terms.squared_error), float(terms.penalty), float(terms.auxiliary),
        terms.l0, explained, float(dead.double().mean()),
    )  # fmt: skip
