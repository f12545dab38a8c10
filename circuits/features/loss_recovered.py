"""How much of a model's predictions a dictionary keeps when its reconstruction takes the activation's place.

    cross-entropy recovered = (CE_ablated - CE_dictionary) / (CE_ablated - CE_clean)
    KL recovered            = 1 - KL(clean ‖ dictionary) / KL(clean ‖ ablated)

Ablated: the activation is replaced by zeros, or by its mean over the tokens that count. Both are given, since
libraries differ in which they mean. Nothing is clipped: a reconstruction can do worse than the baseline, or better
than the model. Where the baseline makes no difference (less than 1e-6) the ratio says nothing and is nan.

Only tokens that count are replaced and judged: never BOS or padding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.features.activations import Prompts, as_prompts, prompts_that_fit, read
from circuits.features.dictionary import Dictionary
from circuits.features.reading import Place, place_of
from patching.chunks import Chunks
from patching.errors import InvalidOption
from patching.lens import LensModel
from patching.masked import DEFAULT_BYTES, check_tokens
from patching.progress import Progress, silent
from patching.sites import Start, forward
from patching.task import Task

SMALLEST = 1e-6
"""Below this difference between the baseline and the clean run, a recovered share is nan."""


@dataclass(frozen=True)
class Recovered:
    """Losses in nats per predicted token, and the shares that are recovered.

    Attributes:
        tokens: how many predictions were judged.
        clean, dictionary, zero, mean: cross-entropy of the model, with the reconstruction, with zeros, with the mean.
        kl_dictionary, kl_zero, kl_mean: divergence of the clean predictions from those.

    Example:
        >>> losses = dict(clean=1.0, dictionary=2.0, zero=3.0, mean=1.0)
        >>> half = Recovered(100, **losses, kl_dictionary=1.0, kl_zero=4.0, kl_mean=0.0)
        >>> half.loss_recovered, half.kl_recovered, half.loss_recovered_mean
        (0.5, 0.75, nan)
    """

    tokens: int
    clean: float
    dictionary: float
    zero: float
    mean: float
    kl_dictionary: float
    kl_zero: float
    kl_mean: float

    @property
    def loss_recovered(self) -> float:
        """Of the cross-entropy, against zeros."""
        return _share(self.zero - self.dictionary, self.zero - self.clean)

    @property
    def loss_recovered_mean(self) -> float:
        """Of the cross-entropy, against the mean."""
        return _share(self.mean - self.dictionary, self.mean - self.clean)

    @property
    def kl_recovered(self) -> float:
        """Of the KL divergence, against zeros."""
        return _share(self.kl_zero - self.kl_dictionary, self.kl_zero)

    @property
    def kl_recovered_mean(self) -> float:
        """Of the KL divergence, against the mean."""
        return _share(self.kl_mean - self.kl_dictionary, self.kl_mean)

    def to_dict(self) -> dict[str, Any]:
        """Losses and shares as plain data."""
        values = asdict(self)
        losses: dict[str, Any] = {"predictions": values.pop("tokens")}
        losses |= {name if name.startswith("kl") else f"loss_{name}": value for name, value in values.items()}
        return losses | {name: getattr(self, name) for name in SHARES}

    def rows(self) -> list[tuple[str, str]]:
        """Names and values, for a table."""
        return [(name.replace("_mean", " (mean)").replace("_", " "), f"{getattr(self, name):.4f}") for name in SHARES]


SHARES = ("loss_recovered", "loss_recovered_mean", "kl_recovered", "kl_recovered_mean")


def _share(above: float, below: float) -> float:
    return above / below if abs(below) >= SMALLEST else math.nan


@torch.no_grad()
def measure(
    model: LensModel,
    dictionary: Dictionary,
    prompts: Prompts | Task | Int[Tensor, "example pos"],
    *,
    site: str | None = None,
    memory: int = DEFAULT_BYTES,
    progress: Progress = silent,
) -> Recovered:
    """Run a model with a dictionary's reconstruction in place of what it reconstructs.

    Judged are the predictions of the next token at every position that counts; of a task, the answer after each prompt
    too (the first, where there are several).

    Cost: per prompt, one forward up to the site for the mean, then four from its layer on (clean, reconstruction,
    zeros, mean).

    Args:
        model: the model.
        dictionary: to judge; its error term is left out.
        prompts: a task, token ids (every position counts) or `Prompts`.
        site: where the dictionary stands, if it does not say.
        memory: bytes for the forwards and the logits.
        progress: called with prompts done and in all.

    Raises:
        InvalidOption: the dictionary does not fit the site, or no position has a next token.

    Example:
        >>> from circuits.features.dictionary import create
        >>> from patching import toy
        >>> found = measure(toy.model(), create("identity", d_in=4, n_features=4, site="attn_out0"), toy.task())
        >>> found.loss_recovered, found.kl_recovered
        (1.0, 1.0)
    """
    place = place_of(dictionary, model, site=site)
    chosen = _with_answers(model, prompts) if isinstance(prompts, Task) else as_prompts(prompts)
    judged = chosen.keep[:, :-1] & chosen.keep[:, 1:]
    if isinstance(prompts, Task):
        rows = torch.arange(len(prompts))
        judged[rows, prompts.positions] = chosen.keep[rows, prompts.positions]
    if not bool(judged.any()):
        raise InvalidOption("expected some position with a next token that counts; every prompt is a single token.")
    size = prompts_that_fit(model, chosen.tokens.shape[1], memory // 4)
    chunks = Chunks("prompts", model.device)
    mean = _mean(model, place, chosen, chunks, size)
    losses = torch.zeros(4, dtype=torch.float64, device=model.device)
    divergences = torch.zeros(4, dtype=torch.float64, device=model.device)

    def work(piece: slice) -> list[tuple[Tensor, Tensor]]:
        finals = _finals(model, dictionary, place, mean, chosen.subset(piece))
        return list(_judged(model, finals, chosen.tokens[piece], judged[piece], memory))

    for piece, found in chunks.over(len(chosen), size, work):
        for loss, divergence in found:
            losses += loss
            divergences += divergence
        progress(piece.stop, len(chosen))
    count = int(judged.sum())
    clean, own, zero, average = (losses / count).tolist()
    _, kl_own, kl_zero, kl_average = (divergences / count).tolist()
    return Recovered(count, clean, own, zero, average, kl_own, kl_zero, kl_average)


def _with_answers(model: LensModel, task: Task) -> Prompts:
    """A task's prompts with the answer after each; the answer's own activation does not count."""
    check_tokens(model, task)
    base = Prompts.from_task(task)
    if base.tokens.shape[1] < model.n_ctx:
        tokens = torch.cat((base.tokens, torch.zeros(len(base), 1, dtype=base.tokens.dtype)), dim=1)
        keep = torch.cat((base.keep, torch.zeros(len(base), 1, dtype=torch.bool)), dim=1)
    else:
        raise InvalidOption(
            f"expected prompts of fewer than {model.n_ctx} tokens, so that the answer has room; got "
            f"{base.tokens.shape[1]}. Give the token ids instead."
        )
    rows = torch.arange(len(base))
    first = (task.answers >= 0).int().argmax(-1)
    tokens[rows, task.positions + 1] = task.answers[rows, first].to(tokens)
    return replace(base, tokens=tokens, keep=keep)


def _mean(model: LensModel, place: Place, prompts: Prompts, chunks: Chunks, size: int) -> Float[Tensor, " d_out"]:
    """Of the site, over the tokens that count, in float64."""

    def summed(piece: slice) -> Tensor:
        value = read(model, prompts.tokens[piece], [place.site])[str(place.site)]
        return value[prompts.keep[piece].to(value.device)].double().sum(0)

    total: Tensor | None = None
    for _piece, part in chunks.over(len(prompts), size, summed):
        total = part if total is None else total + part
    assert total is not None
    return total / prompts.n_tokens


def _finals(
    model: LensModel, dictionary: Dictionary, place: Place, mean: Tensor, prompts: Prompts
) -> list[Float[Tensor, "example pos d_model"]]:
    """The final residual of the clean run, and with the reconstruction, zeros and the mean in place."""
    layer = place.site.layer
    source = f"mlp_in{layer}" if place.transcoder else str(place.site)
    found = read(model, prompts.tokens, [f"resid_pre{layer}", source, place.site])
    true = found[str(place.site)]
    keep = prompts.keep.to(true.device).unsqueeze(-1)
    guess = dictionary.reconstruct(found[source]).to(true.dtype)
    values = [None, guess, torch.zeros_like(true), mean.to(true.dtype).expand_as(true)]
    contexts = model.contexts(prompts.tokens.shape[1])
    start = Start(layer, 0, 0, found[f"resid_pre{layer}"])
    last = (place.site.kind, place.site.layer)
    answer = torch.zeros(len(prompts), dtype=torch.long, device=true.device)
    finals: list[Tensor] = []
    for value in values:

        def visit(kind: str, at: int, current: Tensor, _narrow: bool, value: Tensor | None = value) -> Tensor:
            if value is not None and (kind, at) == last:
                current = torch.where(keep, value, current)
            if kind == "resid_post" and at == len(model.blocks) - 1:
                finals.append(current)
            return current

        forward(model, contexts, start, visit, answer=answer, trim=False)
    return finals


def _judged(
    model: LensModel,
    finals: list[Float[Tensor, "example pos d_model"]],
    tokens: Int[Tensor, "example pos"],
    judged: Bool[Tensor, "example pos_but_last"],
    memory: int,
) -> Iterator[tuple[Float[Tensor, " run"], Float[Tensor, " run"]]]:
    """Cross-entropy and divergence from the first run, summed over some positions at a time."""
    where = judged.to(model.device)
    following = tokens[:, 1:].to(model.device)[where]
    residuals = [final[:, :-1][where] for final in finals]
    step = max(1, memory // (8 * 8 * model.d_vocab))
    for low in range(0, len(following), step):
        part = slice(low, low + step)
        logs = [torch.log_softmax(model.readout.logits(residual[part]).double(), dim=-1) for residual in residuals]
        true = following[part].unsqueeze(-1)
        loss = torch.stack([-log.gather(-1, true).sum() for log in logs])
        yield loss, torch.stack([(logs[0].exp() * (logs[0] - log)).sum() for log in logs])
