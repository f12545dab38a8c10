"""Encoders that keep few of many features: the same numbers, without multiplying by zeros.

Of a TopK dictionary's features only k in a row are not 0. The encoder's product must be made in full, to know which;
but decoding, and every gradient, touch the kept entries alone: k · d_out numbers a row instead of feature · d_out.
At d = 768 with 16,384 features and k = 32 that saves four of a training step's five matrix products.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

LEAST_FEATURES = 1024
"""Below as many features, products with zeros are faster than looking entries up."""
LARGEST_SHARE = 1 / 16
"""Above this share of features kept, likewise."""

Select = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From pre-activations [row, feature] to the features kept, row by row, and where each row begins."""


@dataclass(frozen=True)
class Selected:
    """Kept entries of a matrix [row, feature].

    Attributes:
        values: activations of the entries, row after row.
        features: which feature each is of.
        offsets: the number of each row's first entry.
        n_features: how many features there are.
    """

    values: Float[Tensor, " entry"]
    features: Int[Tensor, " entry"]
    offsets: Int[Tensor, " row"]
    n_features: int

    def decode(self, W_dec: Float[Tensor, "feature d_out"], values: Tensor | None = None) -> Float[Tensor, "row d_out"]:
        """The sum of values times decoder rows. Cost: entries · d_out."""
        weights = self.values if values is None else values
        return F.embedding_bag(self.features, W_dec, self.offsets, mode="sum", per_sample_weights=weights)

    @property
    def rows(self) -> Int[Tensor, " entry"]:
        """The row of each entry."""
        return rows_of(self.offsets, len(self.features))

    def dense(self) -> Float[Tensor, "row feature"]:
        """The whole matrix."""
        whole = self.values.new_zeros(len(self.offsets), self.n_features)
        return whole.index_put((self.rows, self.features), self.values)


def pays(n_features: int, k: float) -> bool:
    """Whether looking entries up is faster than products with zeros (measured on a CPU)."""
    return n_features >= LEAST_FEATURES and k <= LARGEST_SHARE * n_features


def encode(
    x: Float[Tensor, "row d_in"],
    W_enc: Float[Tensor, "d_in feature"],
    bias: Float[Tensor, " feature"],
    select: Select,
) -> Selected:
    """Encode, and keep what ``select`` says: max(z, 0) at these entries.

    Cost: the product x @ W_enc; its gradient costs entries · d_in.
    """
    values, features, offsets = _Encode.apply(x, W_enc, bias, select)  # pyright: ignore[reportGeneralTypeIssues]
    return Selected(values.relu(), features, offsets, W_enc.shape[1])


class _Encode(torch.autograd.Function):
    """z at selected entries; the gradient goes to the weights, not to x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W_enc: Tensor, bias: Tensor, select: Select) -> tuple[Tensor, Tensor, Tensor]:
        z = torch.addmm(bias, x, W_enc)
        features, offsets = select(z)
        values = z[rows_of(offsets, len(features)), features]
        ctx.save_for_backward(x, features, offsets)
        ctx.n_features = z.shape[1]
        ctx.mark_non_differentiable(features, offsets)
        return values, features, offsets

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor, None]:
        x, features, offsets = ctx.saved_tensors
        values = gradients[0]
        order = torch.argsort(features, stable=True)
        counts = torch.bincount(features, minlength=ctx.n_features)
        starts = counts.cumsum(0) - counts
        rows = rows_of(offsets, len(features))
        weight = F.embedding_bag(rows[order], x, starts, mode="sum", per_sample_weights=values[order])
        bias = values.new_zeros(ctx.n_features).index_add_(0, features, values)
        return None, weight.T.contiguous(), bias, None


def rows_of(offsets: Int[Tensor, " row"], entries: int) -> Int[Tensor, " entry"]:
    """The row of each entry, from where the rows begin."""
    ends = torch.cat((offsets[1:], offsets.new_tensor([entries])))
    return torch.repeat_interleave(torch.arange(len(offsets), device=offsets.device), ends - offsets)


def top_of_rows(k: int) -> Select:
    """Keep the k largest of each row."""

    def select(z: Tensor) -> tuple[Tensor, Tensor]:
        best = z.topk(k, dim=-1).indices
        return best.flatten(), torch.arange(0, best.numel(), k, device=z.device)

    return select


def top_of_batch(count: int) -> Select:
    """Keep the ``count`` largest of all rows together."""

    def select(z: Tensor) -> tuple[Tensor, Tensor]:
        flat = largest(z.flatten(), count).sort().values
        rows = torch.div(flat, z.shape[1], rounding_mode="floor")
        counts = torch.bincount(rows, minlength=len(z))
        return flat % z.shape[1], counts.cumsum(0) - counts

    return select


def largest(values: Float[Tensor, " value"], count: int) -> Int[Tensor, " kept"]:
    """Where the ``count`` largest values stand, in no order.

    A sample tells a bound that somewhat more than ``count`` pass; these alone are compared. Where the sample misleads,
    all are.
    """
    n = len(values)
    stride = 61
    if count * 8 < n and count >= 32 * stride:
        sample = values[::stride]
        bound = sample.topk(count * 2 // stride, sorted=False).values.min()
        chosen = (values > bound).nonzero().flatten()
        if len(chosen) >= count:
            return chosen[values[chosen].topk(count, sorted=False).indices]
    return values.topk(min(count, n), sorted=False).indices
