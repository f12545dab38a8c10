"""What is done to a dictionary's weights around the gradient steps of training.

Decoder rows are held at length 1, dead features get new directions, the scale of the inputs is folded in, and the
threshold of BatchTopK is fitted.
"""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.features.dictionary import Dictionary
from circuits.features.training_state import State
from patching.errors import InvalidOption


@torch.no_grad()
def normalise(dictionary: Dictionary) -> None:
    """Bring every decoder row to length 1."""
    dictionary.W_dec.copy_(unit(dictionary.W_dec))


def unit(rows: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
    """Rows of length 1; rows of zeros stay."""
    return rows / rows.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)


def remove_parallel(dictionary: Dictionary) -> None:
    """Take off the part of each decoder row's gradient that is parallel to the row.

    A step along it would be undone by the normalisation, but would stay in Adam's moments.
    """
    gradient = dictionary.W_dec.grad
    if gradient is None:
        return
    rows = unit(dictionary.W_dec.detach())
    gradient -= (gradient * rows).sum(-1, keepdim=True) * rows


def resample(
    state: State,
    dead: Int[Tensor, " dead"],
    x: Float[Tensor, "batch d_in"],
    error: Float[Tensor, "batch d_out"],
    generator: torch.Generator,
) -> None:
    """Give dead features the directions of inputs that are reconstructed badly.

    Inputs are drawn with probability proportional to ``||error||⁴``. The decoder row becomes the error's direction, as
    long as the living rows are on average, and so does the column of the encoder, but a fifth as long as the living
    ones are; at full length, and with their mean threshold, where features must pass a threshold or be among the
    largest to be on at all. Biases and Adam's moments become 0.

    Source: transformer-circuits.pub 2023 (Towards Monosemanticity, appendix); there the decoder takes the input's
    direction, here what is left of it, so that several dead features of one batch do not all repeat it.
    """
    dictionary = state.dictionary
    alive = torch.ones(dictionary.n_features, dtype=torch.bool, device=dead.device)
    alive[dead] = False
    weights = error.square().sum(-1).square().double().cpu()
    if not bool(weights.sum() > 0):
        return
    rows = torch.multinomial(weights, len(dead), replacement=True, generator=generator).to(dead.device)
    lengths = dictionary.W_dec.norm(dim=-1)
    reading = dictionary.W_enc.norm(dim=0)
    decoder_length, encoder_length = (
        float(each[alive].mean()) if bool(alive.any()) else 1.0 for each in (lengths, reading)
    )
    threshold = getattr(dictionary, "threshold", None)
    strength = 0.2 if threshold is None and getattr(dictionary, "k", None) is None else 1.0
    dictionary.W_dec[dead] = decoder_length * unit(error[rows])
    if threshold is not None and bool(alive.any()):
        threshold[dead] = threshold[alive].mean()
    if dictionary.architecture != "tied":
        centred = x[rows] - dictionary.b_dec if dictionary.subtract_b_dec else x[rows]
        direction = unit(error[rows]) if error.shape[1] == x.shape[1] else unit(centred)
        dictionary.W_enc[:, dead] = strength * encoder_length * direction.T
    for name, weight in dictionary.named_parameters():
        if name in ("b_enc", "b_gate", "b_mag", "r_mag"):
            weight[dead] = 0.0
    state.silent[dead] = 0
    state.forget(dead)


@torch.no_grad()
def fold_scales(dictionary: Dictionary, scales: tuple[float, float]) -> Dictionary:
    """The dictionary for activations as they come, of one that was trained on scaled ones.

    `Dictionary.fold_input_scale`, but a tied dictionary stays tied: it has one matrix for reading and writing, so its
    bias is divided, and with it its features.

    Args:
        dictionary: as trained.
        scales: what inputs and targets were multiplied by.

    Example:
        >>> from circuits.features import create
        >>> dictionary, x = create("tied", d_in=4, n_features=8), torch.ones(1, 4)
        >>> folded = fold_scales(dictionary, (2.0, 2.0))
        >>> bool(torch.allclose(folded.reconstruct(x), dictionary.reconstruct(2 * x) / 2))
        True
    """
    if dictionary.architecture == "tied":
        folded = copy.deepcopy(dictionary)
        folded.b_enc /= scales[0]
        return folded
    return dictionary.fold_input_scale(scales[0], output_scale=scales[1] if dictionary.is_transcoder else None)


@torch.no_grad()
def fit_threshold(dictionary: Dictionary, x: Float[Tensor, "token d_in"], *, l0: float | None = None) -> Dictionary:
    """A copy of a BatchTopK dictionary with the threshold under which a given number of features is on, on average.

    Training leaves a threshold that follows the weakest activation kept; this one is exact for the tokens given.

    Args:
        dictionary: batchtopk or matryoshka.
        x: activations; the more, the better.
        l0: features that shall be on; the dictionary's k by default.

    Raises:
        InvalidOption: the architecture has no threshold to fit, or fewer features are above 0 at all (then 0 is it).

    Cost: one encoding of x.
    """
    if dictionary.architecture not in ("batchtopk", "matryoshka"):
        raise InvalidOption(f"expected a batchtopk or matryoshka dictionary; got {dictionary.architecture}.")
    wanted = float(getattr(dictionary, "k")) if l0 is None else l0  # noqa: B009
    count = round(wanted * len(x))
    z = dictionary.pre_activations(x).relu().flatten()
    if not 0 < count < len(z):
        raise InvalidOption(f"expected l0 between 0 and {dictionary.n_features}, with enough tokens; got {wanted!r}.")
    best = z.topk(count + 1).values
    fitted = copy.deepcopy(dictionary)
    getattr(fitted, "threshold").fill_((best[-1] + best[-2]) / 2)  # noqa: B009
    return fitted
