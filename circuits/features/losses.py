"""What training minimises, one function for each architecture.

    x      activations [batch, d_in];  y what is reconstructed (x itself, but for transcoders)
    z      pre-activations;  f features;  x_hat = f @ W_dec + b_dec;  n_i = ||W_dec[i]||

Squared errors are summed over the width and averaged over the batch, so that a sparsity coefficient means the same at
every width as in the papers (libraries that average over the width differ by the factor d).

Every function gives `Terms` of a batch: the loss with its parts, which features fired, and how many were on. These are
rules of training; what a dictionary computes in use is `Dictionary.encode`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.features import selected
from circuits.features.dictionary import Dictionary
from circuits.features.selected import Selected
from patching.errors import InvalidOption

PENALTIES = ("step", "tanh", "target")
"""How JumpReLU's features are held few; see `jumprelu`."""


@dataclass(frozen=True)
class Weighting:
    """The weights of a loss.

    Attributes:
        sparsity: lambda, after warm-up. Architectures with a k have none.
        auxiliary: alpha of the auxiliary loss that revives dead features (topk, batchtopk, matryoshka).
        k_auxiliary: dead features that it uses in each row; half of d_out by default.
        dead: which features count as dead; None for none.
        penalty: of jumprelu, out of `PENALTIES`.
        bandwidth: epsilon, the width of jumprelu's window, in units of z.
        steepness: c of the penalty ``tanh``.
        target_l0: of the penalty ``target``.
        through_input: whether jumprelu's penalty has a pseudo-gradient to z as well.
    """

    sparsity: float = 0.0
    auxiliary: float = 1 / 32
    k_auxiliary: int | None = None
    dead: Bool[Tensor, " feature"] | None = None
    penalty: str = "step"
    bandwidth: float = 0.1
    steepness: float = 4.0
    target_l0: float | None = None
    through_input: bool = False


@dataclass(frozen=True)
class Terms:
    """The loss of a batch and what it is made of.

    Attributes:
        loss: a scalar, with its gradient.
        squared_error: mean over the batch of ``||y - x_hat||²``, without gradient.
        penalty: the sparsity term, weighted; without gradient.
        auxiliary: the auxiliary term, weighted; without gradient.
        fired: which features were on anywhere in the batch.
        features: of the batch, without gradient: all [batch, feature], or the kept ones in a row.
        rows: size of the batch.
        error: y - x_hat, without gradient.
    """

    loss: Float[Tensor, ""]
    squared_error: Float[Tensor, ""]
    penalty: Float[Tensor, ""]
    auxiliary: Float[Tensor, ""]
    fired: Bool[Tensor, " feature"]
    features: Tensor
    rows: int
    error: Float[Tensor, "batch d_out"]

    @property
    def l0(self) -> float:
        """Features that are on, on average."""
        on = torch.sign(self.features).abs_().sum(-1)  # twice as fast as count_nonzero, and exact: rows are short
        return float(on.double().sum()) / self.rows

    @property
    def weakest(self) -> Tensor | None:
        """The smallest activation that is not 0; None if there is none."""
        positive = self.features[self.features > 0]
        return positive.min() if len(positive) else None


Loss = Callable[[Dictionary, Tensor, Tensor, Weighting], Terms]


def relu(dictionary: Dictionary, x: Tensor, y: Tensor, weighting: Weighting) -> Terms:
    """``||x - x_hat||² + lambda Σ_i f_i n_i`` with f = max(z, 0).

    With rows of W_dec held at length 1 this is the older ``lambda Σ f_i``: what n_i adds to the gradient is parallel
    to its row, which training removes.

    Source: transformer-circuits.pub, April 2024 update (norms in the penalty); arXiv 2309.08600 (unit rows).
    """
    features = pre_activations(dictionary, x).relu()
    return _with_l1(dictionary, features, x, y, weighting)


def tied(dictionary: Dictionary, x: Tensor, y: Tensor, weighting: Weighting) -> Terms:
    """``||x - x_hat||² + lambda Σ_i f_i`` with f = max(x Mᵀ + b, 0), x_hat = f M and rows of M of length 1.

    Source: arXiv 2309.08600 (their code averages the squared error over the width).
    """
    return relu(dictionary, x, y, weighting)


def topk(dictionary: Dictionary, x: Tensor, y: Tensor, weighting: Weighting) -> Terms:
    """``||x - x_hat||² + alpha ||e - e_hat||²``, f the k largest z of a row, of those the positive ones.

    The second term is there while features are dead: e = x - x_hat, without gradient, and e_hat is what the largest
    pre-activations of dead features make of it (without b_dec), so that they learn what the others leave over.

    Source: arXiv 2406.04093.
    """
    k = int(getattr(dictionary, "k"))  # noqa: B009  # of topk and of transcoders with a k
    if getattr(dictionary, "rescale", False) or not getattr(dictionary, "rectify", True):
        return _dense_topk(dictionary, x, y, weighting)
    return _by_selection(dictionary, x, y, weighting, selected.top_of_rows(k), float(k))


def batchtopk(dictionary: Dictionary, x: Tensor, y: Tensor, weighting: Weighting) -> Terms:
    """As `topk`, with the ``int(k · batch)`` largest z of the whole batch.

    In use a threshold takes the place of the choice among the batch (`training.fit_threshold`).

    Source: arXiv 2412.06410.
    """
    k = float(getattr(dictionary, "k"))  # noqa: B009
    count = max(1, int(k * len(x)))
    return _by_selection(dictionary, x, y, weighting, selected.top_of_batch(count), k)


def matryoshka(dictionary: Dictionary, x: Tensor, y: Tensor, weighting: Weighting) -> Terms:
    """`batchtopk`, plus ``||x - (f[:m] @ W_dec[:m] + b_dec)||²`` for every shorter prefix m of the features.

    Source: arXiv 2503.17547. The terms are summed; the last prefix is the whole dictionary.
    """
    return batchtopk(dictionary, x, y, weighting)


def gated(dictionary: Dictionary, x: Tensor, y: Tensor, weighting: Weighting) -> Terms:
    """``||x - x_hat||² + lambda Σ_i max(p_i, 0) n_i + ||x - (max(p, 0) @ W_dec + b_dec)||²``, p the gate's z.

    In the last term the decoder is frozen: it trains the gate, whose own step has no gradient.

    Source: arXiv 2404.16014 (rows of W_dec of length 1).
    """
    weights: dict[str, Tensor] = dict(dictionary.named_parameters())
    shared = pre_activations(dictionary, x) - weights["b_gate"]
    gate = shared + weights["b_gate"]
    opened = gate.relu()
    strength = (shared * weights["r_mag"].exp() + weights["b_mag"]).relu()
    features = (gate.detach() > 0).to(strength.dtype) * strength
    error = y - dictionary.decode(features, x)
    squared = _squared(error)
    penalty = weighting.sparsity * _weighted_sum(opened, dictionary.W_dec)
    frozen = _squared(y - (opened @ dictionary.W_dec.detach() + dictionary.b_dec.detach()))
    return _terms(squared + penalty + frozen, squared, penalty, frozen, features, error)


def jumprelu(dictionary: Dictionary, x: Tensor, y: Tensor, weighting: Weighting) -> Terms:
    """``||x - x_hat||² + penalty`` with f = z where z > theta, else 0.

    Penalties: ``step`` lambda Σ_i H(z_i - theta_i), the number of features that are on; ``tanh``
    lambda Σ_i tanh(c f_i n_i); ``target`` lambda (L0 / L0* - 1)², L0 the batch's mean of the step penalty. Steps have
    pseudo-gradients (`JumpRelu`, `Step`).

    Source: arXiv 2407.14435, equations 9 to 12; transformer-circuits.pub, January 2025 update (tanh).
    """
    threshold: Tensor = dictionary.get_parameter("threshold")
    z = pre_activations(dictionary, x)
    features = jump(z, threshold, weighting.bandwidth)
    error = y - dictionary.decode(features, x)
    squared = _squared(error)
    if weighting.penalty == "tanh":
        size = torch.tanh(weighting.steepness * features * dictionary.W_dec.norm(dim=-1))
        penalty = weighting.sparsity * size.sum(-1).mean()
    else:
        count = step(z, threshold, weighting.bandwidth, weighting.through_input).sum(-1).mean()
        if weighting.penalty == "target":
            if weighting.target_l0 is None:
                raise InvalidOption("expected target_l0, how many features shall be on, for the penalty 'target'.")
            count = (count / weighting.target_l0 - 1) ** 2
        penalty = weighting.sparsity * count
    return _terms(squared + penalty, squared, penalty, None, features, error)


def transcoder(dictionary: Dictionary, x: Tensor, y: Tensor, weighting: Weighting) -> Terms:
    """The loss of the encoder that it has (`relu`, `topk` or `jumprelu`), with the MLP's output as the target.

    Source: arXiv 2406.11944; arXiv 2501.18823 (skip transcoders).
    """
    if getattr(dictionary, "k", None) is not None:
        return topk(dictionary, x, y, weighting)
    return relu(dictionary, x, y, weighting) if dictionary.threshold is None else jumprelu(dictionary, x, y, weighting)


LOSSES: dict[str, Loss] = {
    "relu": relu,
    "tied": tied,
    "topk": topk,
    "batchtopk": batchtopk,
    "matryoshka": matryoshka,
    "gated": gated,
    "jumprelu": jumprelu,
    "transcoder": transcoder,
    "skip_transcoder": transcoder,
}
"""The loss of each architecture that can be trained."""


class JumpRelu(torch.autograd.Function):
    """``f = z · 1[z > theta]`` with pseudo-gradients.

        df/dz = 1[z > theta]        df/dtheta = -(theta / eps) K((z - theta) / eps)        K(u) = 1[|u| < 1/2]

    Source: arXiv 2407.14435.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        """The features."""
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return z * (z > threshold)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """As above."""
        (gradient,) = gradients
        z, threshold = ctx.saved_tensors
        window = _window(z, threshold, ctx.bandwidth)
        near = (gradient * window).sum(tuple(range(z.ndim - 1)))
        return gradient * (z > threshold), -(threshold / ctx.bandwidth) * near, None


class Step(torch.autograd.Function):
    """``H = 1[z > theta]`` with pseudo-gradients.

        dH/dtheta = -(1 / eps) K((z - theta) / eps)        dH/dz = 0, or the opposite of that where it is asked for

    Source: arXiv 2407.14435.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float, through_input: bool) -> Tensor:
        """1 or 0."""
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth, ctx.through_input = bandwidth, through_input
        return (z > threshold).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        """As above."""
        (gradient,) = gradients
        z, threshold = ctx.saved_tensors
        near = gradient * _window(z, threshold, ctx.bandwidth) / ctx.bandwidth
        return near if ctx.through_input else None, -near.sum(tuple(range(z.ndim - 1))), None, None


def jump(z: Float[Tensor, "*batch feature"], threshold: Float[Tensor, " feature"], bandwidth: float) -> Tensor:
    """Features: z above the threshold, else 0, with the pseudo-gradients of `JumpRelu`.

    Example:
        >>> theta = torch.tensor([0.5], requires_grad=True)
        >>> jump(torch.tensor([[0.52]]), theta, 0.1).sum().backward()
        >>> theta.grad.tolist()
        [-5.0]
    """
    return JumpRelu.apply(z, threshold, bandwidth)  # pyright: ignore[reportReturnType]


def step(
    z: Float[Tensor, "*batch feature"], threshold: Float[Tensor, " feature"], bandwidth: float, through_input: bool
) -> Tensor:
    """1 above the threshold, else 0, with the pseudo-gradients of `Step`."""
    return Step.apply(z, threshold, bandwidth, through_input)  # pyright: ignore[reportReturnType]


def pre_activations(dictionary: Dictionary, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch feature"]:
    """The z of `Dictionary.pre_activations`, for training.

    b_dec comes off through the bias, (x - b_dec) W + b = x W + (b - b_dec W), so that no gradient to x is made.
    """
    return torch.addmm(_bias(dictionary), x, dictionary.W_enc)


def auxiliary(
    dictionary: Dictionary, x: Tensor, error: Float[Tensor, "batch d_out"], weighting: Weighting
) -> Float[Tensor, ""]:
    """``alpha ||e - e_hat||²`` over dead features; 0 if there are none (see `topk`)."""
    dead = weighting.dead
    if dead is None or not weighting.auxiliary or not bool(dead.any()):
        return error.new_zeros(())
    index = dead.nonzero().flatten()
    z = torch.addmm(_bias(dictionary)[index], x, dictionary.W_enc[:, index])
    k = min(weighting.k_auxiliary or max(1, dictionary.d_out // 2), len(index))
    best = z.topk(k, dim=-1)
    features = torch.zeros_like(z).scatter(-1, best.indices, best.values.relu())
    return weighting.auxiliary * _squared(error.detach() - features @ dictionary.W_dec[index])


def _bias(dictionary: Dictionary) -> Tensor:
    if dictionary.subtract_b_dec:
        return dictionary.b_enc - dictionary.b_dec @ dictionary.W_enc
    return dictionary.b_enc


def _with_l1(dictionary: Dictionary, features: Tensor, x: Tensor, y: Tensor, weighting: Weighting) -> Terms:
    error = y - dictionary.decode(features, x)
    squared = _squared(error)
    penalty = weighting.sparsity * _weighted_sum(features, dictionary.W_dec)
    return _terms(squared + penalty, squared, penalty, None, features, error)


def _by_selection(
    dictionary: Dictionary, x: Tensor, y: Tensor, weighting: Weighting, select: selected.Select, k: float
) -> Terms:
    """Keep some entries, reconstruct, and revive the dead; by look-up or by products, whichever is faster."""
    if selected.pays(dictionary.n_features, k):
        kept = selected.encode(x, dictionary.W_enc, _bias(dictionary), select)
    else:
        kept = _dense_selection(pre_activations(dictionary, x), select)
    blocks = _decoded(dictionary, kept)
    constant = dictionary.decode(x.new_zeros(len(x), dictionary.n_features), x) if _skips(dictionary) else None
    whole = dictionary.b_dec if constant is None else constant
    squared = nested = x.new_zeros(())
    error = y
    for number, block in enumerate(blocks):
        error = error - block - whole if number == 0 else error - block
        squared = _squared(error)
        nested = nested + squared
    revival = auxiliary(dictionary, x, error, weighting)
    values = kept.values.detach() if isinstance(kept, Selected) else kept.detach()
    fired = torch.zeros(dictionary.n_features, dtype=torch.bool, device=x.device)
    if isinstance(kept, Selected):
        fired[kept.features[values != 0]] = True
    else:
        fired = (values != 0).any(0)
    return Terms(
        nested + revival, squared.detach(), (nested - squared).detach(), revival.detach(), fired, values, len(x),
        error.detach(),
    )  # fmt: skip


def _skips(dictionary: Dictionary) -> bool:
    return dictionary.architecture == "skip_transcoder"


def _dense_selection(z: Tensor, select: selected.Select) -> Tensor:
    features, offsets = select(z.detach())
    mask = torch.zeros_like(z)
    mask[selected.rows_of(offsets, len(features)), features] = 1.0
    return z.relu() * mask


def _decoded(dictionary: Dictionary, kept: Selected | Tensor) -> list[Tensor]:
    """What each block of features writes: one block, or those between the prefixes of a matryoshka dictionary."""
    prefixes: tuple[int, ...] = getattr(dictionary, "prefixes", (dictionary.n_features,))
    starts = (0, *prefixes[:-1])
    W_dec = dictionary.W_dec
    if isinstance(kept, Tensor):
        return [kept[:, start:stop] @ W_dec[start:stop] for start, stop in zip(starts, prefixes, strict=True)]
    if len(prefixes) == 1:
        return [kept.decode(W_dec)]
    inside = [(kept.features >= start) & (kept.features < stop) for start, stop in zip(starts, prefixes, strict=True)]
    return [kept.decode(W_dec, kept.values * mask) for mask in inside]


def _dense_topk(dictionary: Dictionary, x: Tensor, y: Tensor, weighting: Weighting) -> Terms:
    """TopK over z · n_i, or with negative values, as the dictionary itself computes it."""
    features = dictionary.activate(pre_activations(dictionary, x))
    error = y - dictionary.decode(features, x)
    squared = _squared(error)
    revival = auxiliary(dictionary, x, error, weighting)
    return _terms(squared + revival, squared, torch.zeros_like(squared), revival, features, error)


def _squared(error: Tensor) -> Tensor:
    """Summed over the width, averaged over the batch."""
    return error.square().sum() / len(error)


def _weighted_sum(features: Tensor, W_dec: Tensor) -> Tensor:
    """Σ_i f_i n_i, averaged over the batch; summed over the batch first, which is one pass and no second matrix."""
    return (features.sum(0) @ W_dec.norm(dim=-1)) / len(features)


def _window(z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    return ((z - threshold).abs() < bandwidth / 2).to(z.dtype)


def _terms(
    loss: Tensor, squared: Tensor, penalty: Tensor, extra: Tensor | None, features: Tensor, error: Tensor
) -> Terms:
    values = features.detach()
    none = torch.zeros_like(squared)
    return Terms(
        loss,
        squared.detach(),
        penalty.detach(),
        (none if extra is None else extra).detach(),
        (values != 0).any(0),
        values,
        len(values),
        error.detach(),
    )
