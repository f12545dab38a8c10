"""RelP: attribution patching with the backward pass of layer-wise relevance propagation.

The gradient of a deep model is noisy, for norms and nonlinearities bend it. `relevance_model` makes a twin of a model
that computes the same values, in which they pass gradients straight.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from patching.blocks import Attention, Block, Mlp, Norm
from patching.engine import Batch
from patching.first_order import averaged, require, require_slope
from patching.lens import LensModel
from patching.masked import MaskedRun
from patching.progress import Progress, silent
from patching.scores import Scores
from patching.tape import clean_embedding


def scores(run: MaskedRun, *, constant_patterns: bool = False, progress: Progress = silent) -> Scores:
    """Estimate of the effect of ablating each unit, from one modified backward pass.

    ``(replacement - clean) · g``, as in `atp.scores`, with g the gradient at the clean run of the same model in which
    norms divide by a constant (LN rule), ``f(x)`` is ``x · const`` with ``const = f(x) / x`` (identity rule), and a
    product of gate and value passes half its gradient to each (half rule). Values are unchanged, gradients are not. The
    sum of an output's edges is still its node.

    Cost: that of `atp.scores`: two forwards and one backward.

    Args:
        run: over edges, nodes or neurons.
        constant_patterns: let no gradient through attention patterns either (AH rule; off in the paper): queries and
            keys then get 0.
        progress: called with the number of batches done and to do.

    Returns:
        Signed effects in the metric's unit, mean and standard error over prompts.

    Raises:
        InvalidOption: the metric's gradient vanishes at the clean run (KL), or the run is by position.

    Source: arXiv 2508.21258, which scores nodes; here edges and neurons too.

    Example:
        >>> from patching import toy
        >>> run = MaskedRun(toy.model(), toy.task().subset(slice(1, 2)))
        >>> round(scores(run)["a0.h1->logits"], 6)  # no norm, no nonlinearity: what attribution patching gives
        -1.5
    """
    require_slope(run, only_clean=True)
    require(run, "relp")
    model = relevance_model(run.model, constant_patterns=constant_patterns)

    def twin(batch: Batch) -> Batch:
        other = copy(batch)
        other.model = model
        return other

    return averaged(
        run, "relp", {"constant_patterns": constant_patterns}, lambda batch: [(clean_embedding(batch), 1.0)],
        count=1, progress=progress, twin=twin,
    )  # fmt: skip


# --- the twin -------------------------------------------------------------------------------------------------------


class _ConstantScale(Norm):
    """A norm whose divisor passes no gradient."""

    def __call__(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        centre = x - x.mean(-1, keepdim=True) if self.centered else x
        unit = centre / self.scale(x)
        unit = unit if self.weight is None else unit * self.weight
        return unit if self.bias is None else unit + self.bias

    def scale(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch 1"]:
        return super().scale(x).detach()

    def pull_back(
        self, x: Float[Tensor, "*batch d_model"], gradient: Float[Tensor, "*more d_model"]
    ) -> Float[Tensor, "*more d_model"]:
        weighted = gradient if self.weight is None else gradient * self.weight
        if self.centered:
            weighted = weighted - weighted.mean(-1, keepdim=True)
        return weighted / self.scale(x)


@dataclass(frozen=True)
class _RelevanceMlp(Mlp):
    """An MLP under the identity and half rules."""

    def hidden(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_mlp"]:
        read = F.linear(x, self.w_in, self.b_in)
        if self.w_gate is None:
            return straight(self.activation, read)
        gate = straight(self.activation, F.linear(x, self.w_gate, self.b_gate))
        return 0.5 * (gate.detach() * read + gate * read.detach())


def straight(activation: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``x · (f(x) / x)`` with the ratio constant; where x is 0 the ratio is f's slope there."""
    held = x.detach()
    small = held.abs() < 1e-6
    safe = torch.where(small, torch.ones_like(held), held)
    step = torch.full_like(held, 1e-3)
    slope = (activation(step) - activation(-step)) / (2 * step)
    ratio = torch.where(small, slope, activation(held) / safe)
    return x * ratio + (activation(held) - held * ratio)  # the bracket is 0 but for f(0), and carries no gradient


class _HeldPattern(Attention):
    """Attention whose pattern passes no gradient."""

    def pattern(
        self,
        q: Float[Tensor, "*#sample head example query d_head"],
        k: Float[Tensor, "*#sample head example key d_head"],
        bias: Float[Tensor, "*batch query key"],
    ) -> Float[Tensor, "*_ head example query key"]:
        return super().pattern(q, k, bias).detach()


def relevance_model(model: LensModel, *, constant_patterns: bool = False) -> LensModel:
    """A model of the same values with the backward pass of layer-wise relevance propagation.

    Args:
        model: the model; it shares its weights.
        constant_patterns: let no gradient through the attention pattern.
    """
    twin = copy(model)
    twin.blocks = tuple(_relevance_block(block, constant_patterns=constant_patterns) for block in model.blocks)
    twin.readout = replace(model.readout, norm=_linear_norm(model.readout.norm))
    return twin


def _relevance_block(block: Block, *, constant_patterns: bool) -> Block:
    mlp = block.mlp
    if mlp is not None:
        mlp = _RelevanceMlp(**_fields(mlp) | {"post": _linear_norm(mlp.post)})
    normed = {name: _linear_norm(getattr(block.attention, name)) for name in ("query_norm", "key_norm", "post")}
    attention = (_HeldPattern if constant_patterns else Attention)(**_fields(block.attention) | normed)
    return Block(_linear_norm(block.attention_norm), attention, _linear_norm(block.mlp_norm), mlp)


def _fields(piece: Attention | Mlp) -> dict[str, Any]:
    return {field.name: getattr(piece, field.name) for field in fields(piece)}


def _linear_norm(norm: Any) -> Any:
    """The same norm under the LN rule; whatever is no norm stays as it is."""
    if not isinstance(norm, Norm):
        return norm
    return _ConstantScale(norm.weight, norm.bias, norm.eps, norm.centered)
