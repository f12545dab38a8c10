"""Dictionaries between two sites: the architectures `transcoder` and `skip_transcoder`."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.features.architectures import checked_k, checked_threshold, jump, top
from circuits.features.dictionary import Dictionary, random_directions, weight
from patching.errors import InvalidOption


class Transcoder(Dictionary):
    """Reads what an MLP reads and reconstructs what it writes; b_dec belongs to the output and is never subtracted.

    Attributes:
        threshold: [feature] of a JumpReLU, if it was given; otherwise None and the activation is a ReLU.
        k: of a top-k activation, if it was given; otherwise None.
        rectify: whether top-k sets negative values to 0. circuit-tracer's does not.

    Source: Dunefsky et al. 2024 (2406.11944).
    """

    architecture = "transcoder"
    decoder_norm_at_start = 0.1
    threshold: Tensor | None

    def __init__(
        self, *, threshold: float | None = None, k: int | None = None, rectify: bool = True, **shared: Any
    ) -> None:
        super().__init__(**shared)
        if self.subtract_b_dec:
            raise InvalidOption("expected subtract_b_dec=False: a transcoder's b_dec belongs to what it writes.")
        if threshold is not None and k is not None:
            raise InvalidOption("expected threshold or k, not both: they are two activations. Leave one out.")
        self.k, self.rectify = None if k is None else checked_k(k, self.n_features), bool(rectify)
        start = None if threshold is None else checked_threshold(threshold)
        made = None if start is None else weight(self.n_features, dtype=self.dtype, fill=start)
        self.register_parameter("threshold", made)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Random directions to read (length 1) and, apart from them, to write (length 0.1)."""
        self.W_dec.copy_(random_directions(self.n_features, self.d_out, generator) * self.decoder_norm_at_start)
        self.W_enc.copy_(random_directions(self.n_features, self.d_in, generator).T)

    @property
    def is_transcoder(self) -> bool:
        """True."""
        return True

    def activate(self, z: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch feature"]:
        """ReLU, JumpReLU or top-k."""
        if self.k is not None:
            return top(z, self.k, rectify=self.rectify)
        return z.relu() if self.threshold is None else jump(z, self.threshold)

    def fold_decoder_norm(self) -> Dictionary:
        """As `Dictionary.fold_decoder_norm`, with the threshold; a top-k transcoder raises."""
        if self.k is not None:
            raise InvalidOption(
                "expected a transcoder without k to fold the directions' lengths into; the k largest pre-activations "
                "would be others afterwards. Use it as it is."
            )
        folded = super().fold_decoder_norm()
        if self.threshold is not None:
            norms = self.decoder_norms().detach()
            assert isinstance(folded.threshold, Tensor)
            with torch.no_grad():
                folded.threshold.mul_(torch.where(norms > 0, norms, 1.0))
        return folded


class SkipTranscoder(Transcoder):
    """A transcoder with a linear path: y = f @ W_dec + b_dec + x @ W_skip^T, W_skip 0 at the start.

    Attributes:
        W_skip: [d_out, d_in].

    Source: Paulo et al. 2025 (2501.18823).
    """

    architecture = "skip_transcoder"
    W_skip: Tensor

    def make_weights(self, dtype: torch.dtype) -> None:
        """The four weights and the skip."""
        super().make_weights(dtype)
        self.W_skip = weight(self.d_out, self.d_in, dtype=dtype)

    def decode(
        self, features: Float[Tensor, "*batch feature"], x: Float[Tensor, "*batch d_in"] | None = None
    ) -> Float[Tensor, "*batch d_out"]:
        """As `Dictionary.decode`, plus the linear map of x."""
        if x is None:
            raise InvalidOption("expected x, a linear map of which a skip transcoder adds: give decode(features, x).")
        return super().decode(features) + self._as_wide_as(x, "d_in") @ self.W_skip.T

    @torch.no_grad()
    def fold_input_scale(self, scale: float, *, output_scale: float | None = None) -> Dictionary:
        """As `Dictionary.fold_input_scale`, with W_skip * scale / output_scale."""
        folded = super().fold_input_scale(scale, output_scale=output_scale)
        assert isinstance(folded, SkipTranscoder)
        folded.W_skip.mul_(scale / (scale if output_scale is None else output_scale))
        return folded


KINDS: tuple[type[Dictionary], ...] = (Transcoder, SkipTranscoder)
