"""Dictionaries: an activation x as a sparse sum of feature directions, plus an error term.

    z     = (x - b_dec) @ W_enc + b_enc     pre-activations; some architectures do not subtract b_dec
    f     = activation(z)                   features, most of them 0
    x_hat = f @ W_dec + b_dec               reconstruction
    error = x - x_hat                       what the features leave over, so x = x_hat + error

Architectures differ in the activation (`circuits.features.architectures`). A transcoder reads one site and
reconstructs another. `encode` is the rule for using a dictionary, never the one of training: the features of one row
do not depend on the other rows of a batch.

A dictionary is saved as a folder in the layout of sae-lens, so that what is trained here opens there; `Dictionary.load`
reads that and the other formats of `circuits.features.formats`.
"""

from __future__ import annotations

import copy
import inspect
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from patching.errors import InvalidOption

FEATURE_AXIS = {"W_enc": 1, "W_dec": 0, "b_enc": 0, "b_gate": 0, "b_mag": 0, "r_mag": 0, "threshold": 0}
"""Which axis of a weight counts features; weights that are not named here have none."""

_SHAPE = ("d_in", "n_features", "d_out", "site", "dtype")


class Dictionary(nn.Module):
    """What every architecture has: shapes, weights, `encode`, `decode` and the error term.

    Made by `create` or `Dictionary.load`. Inputs of any float type are converted to the type of the weights. Train in
    float32: at the size of Adam's steps a threshold in bfloat16 rounds back to where it was.

    Attributes:
        architecture: its name in `create`.
        d_in, d_out: width of what it reads and of what it reconstructs; they differ for transcoders alone.
        n_features: how many features.
        site: where it belongs, spelled as `patching.sites.Site` (``"mlp_out1"``), or None. Of a transcoder, the site
            that it reconstructs.
        subtract_b_dec: whether the encoder reads x - b_dec.
        metadata: what else is known (JSON values): model, data, training. Files carry it.
        W_enc, b_enc, W_dec, b_dec: [d_in, feature], [feature], [feature, d_out] and [d_out]. Row i of W_dec is the
            direction of feature i.
    """

    architecture: str = ""
    subtracts_by_default: ClassVar[bool] = False
    decoder_norm_at_start: ClassVar[float] = 1.0
    scales_with_features: ClassVar[tuple[str, ...]] = ("b_enc",)
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor

    def __init__(
        self,
        *,
        d_in: int,
        n_features: int,
        d_out: int | None = None,
        site: str | None = None,
        dtype: torch.dtype = torch.float32,
        subtract_b_dec: bool | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.d_in, self.n_features = _positive("d_in", d_in), _positive("n_features", n_features)
        self.d_out = self.d_in if d_out is None else _positive("d_out", d_out)
        self.site = _checked_site(site)
        self.subtract_b_dec = self.subtracts_by_default if subtract_b_dec is None else bool(subtract_b_dec)
        self.metadata: dict[str, Any] = dict(metadata or {})
        if self.d_in != self.d_out and not self.is_transcoder:
            raise InvalidOption(
                f"expected d_out = d_in = {self.d_in} of a {self.architecture} dictionary; got {self.d_out}. "
                "Transcoders alone have an output of another width."
            )
        if not dtype.is_floating_point:
            raise InvalidOption(f"expected a float type of weights, such as torch.float32; got {dtype}.")
        self.make_weights(dtype)

    # ------------------------------------------------------------------------------------------------- weights

    def make_weights(self, dtype: torch.dtype) -> None:
        """Register the parameters, all 0."""
        self.W_enc = weight(self.d_in, self.n_features, dtype=dtype)
        self.b_enc = weight(self.n_features, dtype=dtype)
        self.W_dec = weight(self.n_features, self.d_out, dtype=dtype)
        self.b_dec = weight(self.d_out, dtype=dtype)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Set weights to start training from: random directions, W_enc the transpose of W_dec, biases 0."""
        self.W_dec.copy_(random_directions(self.n_features, self.d_out, generator) * self.decoder_norm_at_start)
        self.W_enc.copy_(self.W_dec.T)

    @property
    def is_transcoder(self) -> bool:
        """Whether it reconstructs another site than it reads."""
        return False

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.W_dec.dtype

    def decoder_norms(self) -> Float[Tensor, " feature"]:
        """The length of every feature's direction."""
        return self.W_dec.norm(dim=-1)

    # ----------------------------------------------------------------------------------------------------- use

    def pre_activations(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch feature"]:
        """Pre-activations z = x @ W_enc + b_enc, with b_dec taken off x first where `subtract_b_dec` says so.

        Args:
            x: activations at the site that it reads.

        Raises:
            InvalidOption: the last axis of x is not d_in wide.
        """
        return self.centred(x) @ self.W_enc + self.b_enc

    def activate(self, z: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch feature"]:
        """Features of pre-activations, by the rule of inference."""
        raise NotImplementedError

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch feature"]:
        """Features of x, by the rule of inference; those of a row never depend on the other rows.

        Args:
            x: activations at the site that it reads.

        Raises:
            InvalidOption: the last axis of x is not d_in wide.

        Example:
            >>> dictionary = create("topk", d_in=4, n_features=8, k=2)
            >>> features = dictionary.encode(torch.ones(3, 4))
            >>> features.shape, int((features != 0).sum(-1).max())
            (torch.Size([3, 8]), 2)
        """
        return self.activate(self.pre_activations(x))

    def decode(
        self, features: Float[Tensor, "*batch feature"], x: Float[Tensor, "*batch d_in"] | None = None
    ) -> Float[Tensor, "*batch d_out"]:
        """The output features @ W_dec + b_dec: affine in the features.

        Args:
            features: as `encode` gives them, or changed.
            x: the input, which skip transcoders alone need.

        Raises:
            InvalidOption: the last axis of the features is not n_features wide, or a skip transcoder got no x.
        """
        return self._as_wide_as(features, "n_features") @ self.W_dec + self.b_dec

    def reconstruct(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """decode(encode(x))."""
        return self.decode(self.encode(x), x)

    def error(
        self, x: Float[Tensor, "*batch d_in"], target: Float[Tensor, "*batch d_out"] | None = None
    ) -> Float[Tensor, "*batch d_out"]:
        """What the reconstruction misses: target - reconstruct(x), so that their sum is the target.

        Args:
            x: activations at the site that it reads.
            target: activations at the site that it reconstructs; transcoders alone need it, for others it is x.

        Raises:
            InvalidOption: a transcoder got no target.

        Example:
            >>> dictionary = create("relu", d_in=4, n_features=8)
            >>> x = torch.ones(2, 4)
            >>> torch.allclose(dictionary.reconstruct(x) + dictionary.error(x), x)
            True
        """
        if target is None and self.is_transcoder:
            raise InvalidOption(
                f"expected a target: a {self.architecture} reconstructs another site than it reads. Give error(x, "
                "target) with the activations there."
            )
        return (x if target is None else target) - self.reconstruct(x)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """`reconstruct`, as `torch.nn.Module` calls it."""
        return self.reconstruct(x)

    # ------------------------------------------------------------------------------- the same map, other weights

    @torch.no_grad()
    def fold_decoder_norm(self) -> Dictionary:
        """The same reconstruction with every direction of length 1; feature i becomes feature i times its old length.

        W_dec / n, W_enc * n, and biases and thresholds * n, with n the length of each direction (a direction of
        length 0 stays as it is). `subtract_b_dec` and b_dec stay.

        Returns:
            A new dictionary; this one is not changed.

        Raises:
            InvalidOption: the k largest pre-activations would be others (top-k without `rescale`).

        Example:
            >>> dictionary = create("relu", d_in=4, n_features=8)
            >>> torch.allclose(dictionary.fold_decoder_norm().decoder_norms(), torch.ones(8))
            True
        """
        folded = self._copy()
        norms = self.decoder_norms()
        norms = torch.where(norms > 0, norms, 1.0)
        folded.W_dec.div_(norms[:, None])
        folded.W_enc.mul_(norms)
        for name in self.scales_with_features:
            getattr(folded, name).mul_(norms)
        return folded

    @torch.no_grad()
    def fold_input_scale(self, scale: float, *, output_scale: float | None = None) -> Dictionary:
        """A dictionary for x out of this one, which was trained on scale * x.

        W_enc * scale, W_dec / scale, b_dec / scale: pre-activations and features keep their values, since z does, and
        the reconstruction is that of this dictionary divided by the scale.

        Args:
            scale: what activations were multiplied by in training, above 0.
            output_scale: the same for what a transcoder reconstructs, where it is another.

        Returns:
            A new dictionary; this one is not changed.

        Raises:
            InvalidOption: a scale that is not a finite number above 0, or an output scale without a transcoder.

        Example:
            >>> dictionary = create("relu", d_in=4, n_features=8)
            >>> x = torch.ones(2, 4)
            >>> torch.allclose(dictionary.fold_input_scale(4.0).encode(x), dictionary.encode(4 * x))
            True
        """
        if output_scale is not None and not self.is_transcoder:
            raise InvalidOption(f"expected no output_scale: a {self.architecture} dictionary reads what it writes.")
        inward = _checked_scale("scale", scale)
        outward = inward if output_scale is None else _checked_scale("output_scale", output_scale)
        folded = self._copy()
        folded.W_enc.mul_(inward)
        folded.W_dec.div_(outward)
        folded.b_dec.div_(outward)
        return folded

    @torch.no_grad()
    def permute(self, order: Sequence[int] | Tensor) -> Dictionary:
        """The same dictionary with its features in another order: new feature i is old feature order[i].

        Args:
            order: every index of a feature once.

        Returns:
            A new dictionary; this one is not changed.

        Raises:
            InvalidOption: an index is missing or there twice, or the order of the features has a meaning (identity;
                across the prefixes of a matryoshka).
        """
        index = torch.as_tensor(order, dtype=torch.long).cpu()
        if not torch.equal(index.sort().values, torch.arange(self.n_features)):
            raise InvalidOption(f"expected each index from 0 to {self.n_features - 1} once; got {index.tolist()}.")
        permuted = self._copy()
        for name, tensor in (*permuted.named_parameters(), *permuted.named_buffers()):
            if name in FEATURE_AXIS:
                tensor.copy_(tensor.index_select(FEATURE_AXIS[name], index.to(tensor.device)))
        return permuted

    # --------------------------------------------------------------------------------------------------- files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a folder in the layout of sae-lens: ``cfg.json`` and ``sae_weights.safetensors``.

        sae-lens (6 or newer) opens every architecture but identity and top-k transcoders, which it lacks; a tied
        dictionary is a standard one there, a BatchTopK or Matryoshka one a JumpReLU. What it has no place for (the
        architecture's name, k, prefixes, the site) stands in its metadata. A folder that holds a dictionary is
        replaced; if writing fails, it is left as it was.

        Raises:
            WriteFailed: the system refuses.
            InvalidOption: metadata that JSON cannot hold, or weights that are not finite.

        Example:
            >>> create("gated", d_in=4, n_features=8, site="mlp_out1").save("gated")
            >>> Dictionary.load("gated").site
            'mlp_out1'
        """
        from circuits.features.formats import sae_lens

        sae_lens.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, input_scale: float | None = None) -> Dictionary:
        """Read a dictionary in any format of `circuits.features.formats`, found out from what is there.

        Args:
            path: a folder of sae-lens (ours are the same), a file of a circuit-tracer transcoder, or a folder or
                ``ae.pt`` file of dictionary_learning.
            input_scale: what to multiply activations by, for sae-lens folders whose scale was never folded in.

        Raises:
            InvalidWeights: files that are missing, cut short, of the wrong shape, not finite or able to run code, or
                that belong to a dictionary which this library cannot run. Nothing is loaded then.
        """
        from circuits.features import formats

        return formats.load(path, input_scale=input_scale)

    def centred(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """What the encoder multiplies: x in the type of the weights, less b_dec where `subtract_b_dec` says so."""
        x = self._as_wide_as(x, "d_in")
        return x - self.b_dec if self.subtract_b_dec else x

    def extra_repr(self) -> str:
        """Shapes and site, as `print` shows them."""
        wide = f"{self.d_in} -> {self.n_features}" + (f" -> {self.d_out}" if self.is_transcoder else "")
        return f"{self.architecture}, {wide}, site={self.site}"

    def _copy(self) -> Dictionary:
        return copy.deepcopy(self)

    def _as_wide_as(self, value: Tensor, name: str) -> Tensor:
        """The value in the type of the weights, if its last axis fits."""
        width = getattr(self, name)
        if value.ndim == 0 or value.shape[-1] != width:
            raise InvalidOption(
                f"expected a last axis of {name} = {width}; got shape {tuple(value.shape)}. Is this the site that the "
                f"dictionary belongs to ({self.site})?"
            )
        return value.to(self.dtype)


def create(
    architecture: str,
    *,
    d_in: int,
    n_features: int,
    seed: int = 0,
    site: str | None = None,
    d_out: int | None = None,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Dictionary:
    """A dictionary to train: random directions, encoder and decoder transposes of one another, biases 0.

    Transcoders start from separate random directions, since they read and write different spaces.

    Args:
        architecture: ``relu``, ``topk``, ``batchtopk``, ``matryoshka``, ``gated``, ``jumprelu``, ``transcoder``,
            ``skip_transcoder``, ``identity`` or ``tied``: see `circuits.features.architectures`.
        d_in: width of what it reads.
        n_features: how many features.
        seed: of the random directions; the same seed gives the same weights on every machine.
        site: where it belongs, such as ``"mlp_out1"``.
        d_out: width of what a transcoder reconstructs; d_in if not given.
        dtype: of the weights.
        **options: ``k`` (topk, batchtopk, matryoshka, transcoders), ``rescale`` (topk), ``prefixes`` (matryoshka),
            ``threshold`` (jumprelu, transcoders), ``rectify`` (transcoders), ``subtract_b_dec`` and ``metadata``.

    Raises:
        InvalidOption: an unknown architecture or option, one that is missing or out of its range (k above n_features).

    Example:
        >>> dictionary = create("jumprelu", d_in=4, n_features=8, site="resid_post0", threshold=0.1)
        >>> dictionary.encode(torch.zeros(4)).tolist() == [0.0] * 8
        True
    """
    made = blank(architecture, d_in=d_in, n_features=n_features, site=site, d_out=d_out, dtype=dtype, **options)
    made.initialise(torch.Generator().manual_seed(seed))
    return made


def blank(architecture: str, **options: Any) -> Dictionary:
    """A dictionary of weights 0, for readers of files to fill; the options are those of `create`, less the seed."""
    kinds = _kinds()
    if architecture not in kinds:
        raise InvalidOption(f"expected an architecture out of {', '.join(kinds)}; got {architecture!r}.")
    kind = kinds[architecture]
    _require_options(kind, {name: value for name, value in options.items() if name not in _SHAPE})
    return kind(**options)


def weight(*shape: int, dtype: torch.dtype, fill: float = 0.0) -> nn.Parameter:
    """A parameter of one value everywhere."""
    return nn.Parameter(torch.full(shape, fill, dtype=dtype))


def random_directions(count: int, width: int, generator: torch.Generator) -> Float[Tensor, "count width"]:
    """Rows of length 1, evenly over the sphere, in float64."""
    rows = torch.randn(count, width, generator=generator, dtype=torch.float64)
    return rows / rows.norm(dim=-1, keepdim=True)


def _kinds() -> dict[str, type[Dictionary]]:
    from circuits.features import architectures, transcoders

    return {kind.architecture: kind for kind in (*architectures.KINDS, *transcoders.KINDS)}


def _require_options(kind: type[Dictionary], options: Mapping[str, Any]) -> None:
    """Options that the architecture has, and all that it must have."""
    own = {
        name: parameter
        for part in kind.__mro__
        if issubclass(part, Dictionary) and "__init__" in vars(part)
        for name, parameter in inspect.signature(part.__init__).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in _SHAPE
    }
    unknown = sorted(set(options) - set(own))
    if unknown:
        raise InvalidOption(f"expected options of {kind.architecture} out of {', '.join(own)}; got {unknown[0]!r}.")
    missing = [name for name, parameter in own.items() if parameter.default is parameter.empty and name not in options]
    if missing:
        raise InvalidOption(f"expected {' and '.join(missing)} for {kind.architecture}; it has no default.")


def _positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidOption(f"expected {name} to be a whole number, 1 or more; got {value!r}.")
    return value


def _checked_scale(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise InvalidOption(f"expected {name} to be a finite number above 0; got {value!r}.")
    return float(value)


def _checked_site(site: str | None) -> str | None:
    if site is not None and not (isinstance(site, str) and re.fullmatch(r"[a-z_]+[0-9]+", site)):
        raise InvalidOption(f'expected a site such as "mlp_out1" (a kind and a layer) or None; got {site!r}.')
    return site
