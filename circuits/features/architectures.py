"""The architectures of dictionaries: how pre-activations z become features f.

==================  ======================================================================  ================
`relu`              f = max(z, 0)                                                           Bricken et al. 2023
`tied`              the same, with W_enc the transpose of W_dec and no b_dec                2309.08600
`topk`              the k largest z of each row, of those the positive ones                 2406.04093
`batchtopk`         in use, z above a threshold that training saved                         2412.06410
`matryoshka`        `batchtopk`; its first features alone must reconstruct too              2503.17547
`gated`             one bias says whether a feature is on, another how strong it is         2404.16014
`jumprelu`          z where it is above the feature's threshold                             2407.14435
`transcoder`        reads what an MLP reads, reconstructs what it writes                    2406.11944
`skip_transcoder`   a transcoder plus a linear map of its input                             2501.18823
`identity`          every coordinate is a feature: neuron circuits as feature circuits
==================  ======================================================================  ================

Everywhere strict: z equal to the threshold is off. TopK may keep fewer than k, since only positive values count; which
of equal values it keeps is not defined. Where a feature is off it is +0, never -0 or a small number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.features.dictionary import Dictionary, random_directions, weight
from patching.errors import InvalidOption


def top(values: Float[Tensor, "*batch feature"], k: int, *, rectify: bool = True) -> Float[Tensor, "*batch feature"]:
    """The k largest values of each row, the negative ones among them set to 0 if `rectify`; all others 0.

    Example:
        >>> top(torch.tensor([3.0, -1.0, 2.0, -2.0]), 3).tolist()
        [3.0, 0.0, 2.0, 0.0]
    """
    best = values.topk(k, dim=-1, sorted=False)
    kept = best.values.relu() if rectify else best.values
    return torch.zeros_like(values).scatter(-1, best.indices, kept)


def jump(z: Float[Tensor, "*batch feature"], threshold: Float[Tensor, " feature"]) -> Float[Tensor, "*batch feature"]:
    """The z that are above the threshold and above 0; all others 0.

    Example:
        >>> jump(torch.tensor([0.5, 0.6, -1.0]), torch.tensor([0.5, 0.5, -2.0])).tolist()
        [0.0, 0.6000000238418579, 0.0]
    """
    return z.relu() * (z > threshold).to(z.dtype)


class Relu(Dictionary):
    """f = max(z, 0). Directions start at length 0.1 and may have any length.

    Source: Anthropic's April 2024 update (L1 weighted by the directions' lengths, b_dec not subtracted); with
    ``subtract_b_dec=True`` the encoder of Bricken et al. 2023.
    """

    architecture = "relu"
    decoder_norm_at_start = 0.1

    def activate(self, z: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch feature"]:
        """max(z, 0)."""
        return z.relu()


class Tied(Dictionary):
    """f = max(x @ W_dec^T + b_enc, 0), x_hat = f @ W_dec: one matrix, whose rows training keeps at length 1.

    b_dec is 0 and is not trained.

    Source: Cunningham et al. 2023 (2309.08600).
    """

    architecture = "tied"

    def make_weights(self, dtype: torch.dtype) -> None:
        """One matrix and one bias."""
        self.b_enc = weight(self.n_features, dtype=dtype)
        self.W_dec = weight(self.n_features, self.d_out, dtype=dtype)
        self.b_dec = weight(self.d_out, dtype=dtype).requires_grad_(False)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Random directions of length 1."""
        self.W_dec.copy_(random_directions(self.n_features, self.d_out, generator))

    @property
    def W_enc(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The transpose of W_dec."""
        return self.W_dec.T

    def activate(self, z: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch feature"]:
        """max(z, 0)."""
        return z.relu()

    @torch.no_grad()
    def untied(self) -> Relu:
        """The same map as a `Relu`, whose two matrices may then differ."""
        made = Relu(
            d_in=self.d_in,
            n_features=self.n_features,
            site=self.site,
            dtype=self.dtype,
            subtract_b_dec=self.subtract_b_dec,
            metadata=self.metadata,
        ).to(self.W_dec.device)
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            getattr(made, name).copy_(getattr(self, name))
        return made

    def fold_decoder_norm(self) -> Dictionary:
        """That of `untied`: the two matrices differ afterwards, unless all lengths are 1."""
        return self.untied().fold_decoder_norm()

    def fold_input_scale(self, scale: float, *, output_scale: float | None = None) -> Dictionary:
        """That of `untied`: the two matrices differ afterwards."""
        return self.untied().fold_input_scale(scale, output_scale=output_scale)


class TopK(Dictionary):
    """The k largest z of each row, of those the positive ones.

    With `rescale`, z is multiplied by the length of its feature's direction before the choice, and the features are
    divided by it again in `decode`: as if all directions had length 1.

    Attributes:
        k: how many features a row may have.
        rescale: see above.

    Source: Gao et al. 2024 (2406.04093); `rescale` is sae-lens's.
    """

    architecture = "topk"
    subtracts_by_default = True

    def __init__(self, *, k: int, rescale: bool = False, **shared: Any) -> None:
        super().__init__(**shared)
        self.k, self.rescale = checked_k(k, self.n_features), bool(rescale)

    def selection(self, z: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch feature"]:
        """The values of which the k largest are kept."""
        return z * self.decoder_norms() if self.rescale else z

    def activate(self, z: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch feature"]:
        """The k largest, rectified."""
        return top(self.selection(z), self.k)

    def decode(
        self, features: Float[Tensor, "*batch feature"], x: Float[Tensor, "*batch d_in"] | None = None
    ) -> Float[Tensor, "*batch d_out"]:
        """As `Dictionary.decode`, after undoing the rescaling; a direction of length 0 adds nothing."""
        if self.rescale:
            norms = self.decoder_norms()
            features = self._as_wide_as(features, "n_features") * torch.where(norms > 0, 1 / norms, 0.0)
        return super().decode(features)

    def fold_decoder_norm(self) -> Dictionary:
        """As `Dictionary.fold_decoder_norm`, with `rescale` alone: otherwise others would be among the k largest."""
        if not self.rescale:
            raise InvalidOption(
                "expected rescale=True to fold the directions' lengths into a top-k dictionary; without it, the k "
                "largest pre-activations would be others afterwards. Use the dictionary as it is."
            )
        folded = super().fold_decoder_norm()
        assert isinstance(folded, TopK)
        folded.rescale = False
        silent = self.decoder_norms() == 0  # rescaling never lets those be chosen before another
        with torch.no_grad():
            folded.W_enc[:, silent], folded.b_enc[silent] = 0.0, 0.0
        return folded


class BatchTopK(Dictionary):
    """In use: z above a threshold that training saved. In training: the k·B largest of a batch of B rows.

    Training (`circuits.features.training`) writes `threshold`; before that it is 0. The choice of training is not in
    `encode`, for it would make a row's features depend on the rest of its batch.

    Attributes:
        k: features per row on average in training; it need not be whole.
        threshold: [feature], a buffer: no gradient trains it.

    Source: Bussmann et al. 2024 (2412.06410).
    """

    architecture = "batchtopk"
    subtracts_by_default = True
    scales_with_features = ("b_enc", "threshold")
    threshold: Tensor

    def __init__(self, *, k: float, **shared: Any) -> None:
        super().__init__(**shared)
        finite = isinstance(k, int | float) and not isinstance(k, bool) and math.isfinite(k)
        if not finite or not 0 < k <= self.n_features:
            raise InvalidOption(f"expected k above 0 and up to n_features = {self.n_features}; got {k!r}.")
        self.k = k

    def make_weights(self, dtype: torch.dtype) -> None:
        """The four weights and the threshold."""
        super().make_weights(dtype)
        self.register_buffer("threshold", torch.zeros(self.n_features, dtype=dtype))

    def activate(self, z: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch feature"]:
        """The z above the threshold."""
        return jump(z, self.threshold)


class Matryoshka(BatchTopK):
    """BatchTopK whose first features alone must reconstruct too, for each of several prefixes.

    Attributes:
        prefixes: how many features each level has, rising, the last one all; if not given an eighth, a quarter, a
            half and all.

    Source: Bussmann et al. 2025 (2503.17547).
    """

    architecture = "matryoshka"

    def __init__(self, *, prefixes: Sequence[int] | None = None, **shared: Any) -> None:
        super().__init__(**shared)
        if prefixes is None:
            prefixes = sorted({max(1, self.n_features // part) for part in (8, 4, 2, 1)})
        whole = all(isinstance(prefix, int) and not isinstance(prefix, bool) for prefix in prefixes)
        rising = whole and list(prefixes) == sorted(set(prefixes))
        if not prefixes or not rising or prefixes[0] < 1 or prefixes[-1] != self.n_features:
            raise InvalidOption(f"expected prefixes that rise to n_features = {self.n_features}; got {list(prefixes)}.")
        self.prefixes = tuple(prefixes)

    def permute(self, order: Sequence[int] | Tensor) -> Dictionary:
        """As `Dictionary.permute`, with every feature staying in its level."""
        levels = torch.bucketize(torch.arange(self.n_features), torch.tensor(self.prefixes), right=True)
        index = torch.as_tensor(order, dtype=torch.long).cpu()
        permuted = super().permute(index)
        if not torch.equal(levels[index], levels):
            raise InvalidOption(
                f"expected every feature to stay between the same prefixes {self.prefixes}; got an order that moves "
                "some to another level. Permute within the levels."
            )
        return permuted


class JumpRelu(Dictionary):
    """z where it is above the feature's threshold, else 0.

    Attributes:
        threshold: [feature], 0 or more. `encode` gives it no gradient; training has its own
            (`circuits.features.losses`).

    Source: Rajamanoharan et al. 2024 (2407.14435), with the threshold itself as the parameter instead of its logarithm,
    which Adam hardly moves.
    """

    architecture = "jumprelu"
    scales_with_features = ("b_enc", "threshold")
    threshold: Tensor

    def __init__(self, *, threshold: float = 0.01, **shared: Any) -> None:
        super().__init__(**shared)
        self.threshold = weight(self.n_features, dtype=self.dtype, fill=checked_threshold(threshold))

    def activate(self, z: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch feature"]:
        """The z above the threshold."""
        return jump(z, self.threshold)


class Gated(Dictionary):
    """f = 1[y + b_gate > 0] · max(y · exp(r_mag) + b_mag, 0), with y = (x - b_dec) @ W_enc.

    Whether a feature is on and how strong it is are read along the same direction, with different biases and scales.
    `pre_activations` are those of the gate, and `b_enc` is another name of `b_gate`.

    Attributes:
        b_gate, b_mag, r_mag: [feature].

    Source: Rajamanoharan et al. 2024 (2404.16014).
    """

    architecture = "gated"
    subtracts_by_default = True
    scales_with_features = ("b_gate", "b_mag")
    b_gate: Tensor
    b_mag: Tensor
    r_mag: Tensor

    def make_weights(self, dtype: torch.dtype) -> None:
        """Two biases and a scale in place of b_enc."""
        self.W_enc = weight(self.d_in, self.n_features, dtype=dtype)
        self.b_gate = weight(self.n_features, dtype=dtype)
        self.b_mag = weight(self.n_features, dtype=dtype)
        self.r_mag = weight(self.n_features, dtype=dtype)
        self.W_dec = weight(self.n_features, self.d_out, dtype=dtype)
        self.b_dec = weight(self.d_out, dtype=dtype)

    @property
    def b_enc(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The gate's bias."""
        return self.b_gate

    def activate(self, z: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch feature"]:
        """Features of the gate's pre-activations; equal to `encode` up to rounding."""
        return (z > 0).to(z.dtype) * ((z - self.b_gate) * self.r_mag.exp() + self.b_mag).relu()

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch feature"]:
        """Features of x; the scale goes onto W_enc, as in sae-lens, for equal bits."""
        x = self.centred(x)
        gate = x @ self.W_enc + self.b_gate
        magnitude = x @ (self.W_enc * self.r_mag.exp()) + self.b_mag
        return (gate > 0).to(gate.dtype) * magnitude.relu()


class Identity(Dictionary):
    """Each coordinate is a feature, negative values included; the error is exactly 0. It has no parameters.

    With it, whatever is made for features works on neurons, the baseline of every feature circuit.
    """

    architecture = "identity"

    def __init__(self, **shared: Any) -> None:
        super().__init__(**shared)
        if self.d_in != self.n_features:
            raise InvalidOption(f"expected n_features = d_in = {self.d_in} of an identity; got {self.n_features}.")
        if self.subtract_b_dec:
            raise InvalidOption("expected subtract_b_dec=False: an identity has no b_dec.")

    _mark: Tensor

    def make_weights(self, dtype: torch.dtype) -> None:
        """Nothing but a mark of type and device."""
        self.register_buffer("_mark", torch.zeros(0, dtype=dtype), persistent=False)

    def initialise(self, generator: torch.Generator) -> None:
        """There is nothing to set."""

    @property
    def dtype(self) -> torch.dtype:
        """What inputs are converted to."""
        return self._mark.dtype

    @property
    def W_enc(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The identity matrix, made when asked for."""
        return torch.eye(self.d_in, dtype=self.dtype, device=self._mark.device)

    @property
    def W_dec(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The identity matrix, made when asked for."""
        return self.W_enc

    @property
    def b_enc(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Zeros."""
        return self._mark.new_zeros(self.d_in)

    @property
    def b_dec(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Zeros."""
        return self._mark.new_zeros(self.d_in)

    def decoder_norms(self) -> Float[Tensor, " feature"]:
        """Ones."""
        return self._mark.new_ones(self.d_in)

    def pre_activations(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch feature"]:
        """The input."""
        return self._as_wide_as(x, "d_in")

    def activate(self, z: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch feature"]:
        """The input."""
        return z

    def decode(
        self, features: Float[Tensor, "*batch feature"], x: Float[Tensor, "*batch d_in"] | None = None
    ) -> Float[Tensor, "*batch d_out"]:
        """The features."""
        return self._as_wide_as(features, "n_features")

    def fold_decoder_norm(self) -> Dictionary:
        """A copy: all lengths are 1."""
        return self._copy()

    def fold_input_scale(self, scale: float, *, output_scale: float | None = None) -> Dictionary:
        """Refused: features that scale with the input are no identity."""
        raise InvalidOption("expected a dictionary with weights to fold a scale into; an identity has none.")

    def permute(self, order: Sequence[int] | Tensor) -> Dictionary:
        """Refused: the order of the features is that of the coordinates."""
        raise InvalidOption(
            "expected a dictionary with weights to permute; the features of an identity are coordinates."
        )


def checked_k(k: int, n_features: int) -> int:
    """The k, if a row can have so many features."""
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= n_features:
        raise InvalidOption(f"expected k to be a whole number from 1 to n_features = {n_features}; got {k!r}.")
    return k


def checked_threshold(threshold: float) -> float:
    """The threshold, if it is a number that one can be."""
    finite = isinstance(threshold, int | float) and math.isfinite(threshold)
    if not finite or threshold < 0:
        raise InvalidOption(f"expected a threshold of 0 or more; got {threshold!r}.")
    return float(threshold)


KINDS: tuple[type[Dictionary], ...] = (Relu, Tied, TopK, BatchTopK, Matryoshka, Gated, JumpRelu, Identity)
