"""`zoo:agreement_toy`: a transformer of one layer, made by hand, that does number agreement. Names need no torch.

    the dog(s) near car(s) V  ->  are, if the subject is plural, else is

The residual stream has eight orthonormal directions, turned at random: *sing*, *plur*, *subj*, *dist*, *verb*,
*moved*, *out*, *junk*. Tokens embed sing, plur or junk; positions 1, 3 and 4 add subj, dist and verb. There is no norm.

    attention   score 30 (verb·x_query)(subj·x_key), value (plur - sing)·x, written along moved: -1 or +1 at the verb
    MLP         one neuron, relu(10 verb·x + 2 moved·x - 9), written along out: 3 for a plural subject, else 0
    logits      are: out·x, is: -out·x, so logit(are) - logit(is) is 6 or 0

It has no tokenizer: tokens are places in `VOCABULARY`. `circuits.features.agreement_toy` has its task, dictionaries of
its directions, and the true circuit of their features.

Source: the task of arXiv 2403.19647, with a model that can be done by hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor

    from patching.lens import LensModel

NAME = "zoo:agreement_toy"
"""As `LensModel.load` takes it."""

DIRECTIONS = ("sing", "plur", "subj", "dist", "verb", "moved", "out", "junk")
"""What each direction of the residual stream means."""

VOCABULARY = ("the", "dog", "dogs", "near", "car", "cars", "V", "is", "are")
_EMBEDS = {"dog": "sing", "dogs": "plur", "car": "sing", "cars": "plur", "the": "junk", "near": "junk", "V": "junk"}
_ADDS = {1: "subj", 3: "dist", 4: "verb"}


def directions(seed: int = 0) -> Float[Tensor, "direction d_model"]:
    """The rows of a random rotation, in the order of `DIRECTIONS` (float64)."""
    import torch

    drawn = torch.randn(8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(drawn).Q.T.contiguous()


def model(dtype: torch.dtype | None = None, *, seed: int = 0, device: str | torch.device | None = None) -> LensModel:
    """The model.

    Args:
        dtype: of the weights; float64 by default.
        seed: of the rotation of the residual stream.
        device: where to put it; the CPU by default.

    Example:
        >>> import torch
        >>> prompt = torch.tensor([[VOCABULARY.index(word) for word in "the dogs near car V".split()]])
        >>> logits = model().logits(prompt)[0, -1]
        >>> round((logits[VOCABULARY.index("are")] - logits[VOCABULARY.index("is")]).item(), 9)
        6.0
    """
    import torch

    from patching.lens import LensModel, native_bridge

    dtype = dtype or torch.float64
    bridge = native_bridge(
        d_model=8, d_head=1, n_layers=1, n_ctx=5, n_heads=1, d_vocab=len(VOCABULARY), d_mlp=1, act_fn="relu",
        normalization_type=None, dtype=dtype,
    )  # fmt: skip
    parts = bridge.original_model
    row = {name: direction.to(dtype) for name, direction in zip(DIRECTIONS, directions(seed), strict=True)}
    with torch.no_grad():
        for parameter in parts.parameters():
            parameter.zero_()
        for word, name in _EMBEDS.items():
            parts.tok_embed.weight[VOCABULARY.index(word)] = row[name]
        for position, name in _ADDS.items():
            parts.pos.weight[position] = row[name]
        attention, mlp = parts.layers[0].attn, parts.layers[0].mlp
        _linear(attention.q).weight[0] = 30 * row["verb"]
        _linear(attention.k).weight[0] = row["subj"]
        _linear(attention.v).weight[0] = row["plur"] - row["sing"]
        _linear(attention.o).weight[:, 0] = row["moved"]
        _linear(mlp.fc_in).weight[0] = 10 * row["verb"] + 2 * row["moved"]
        _linear(mlp.fc_in).bias[0] = -9
        _linear(mlp.fc_out).weight[:, 0] = row["out"]
        parts.head.weight[VOCABULARY.index("are")] = row["out"]
        parts.head.weight[VOCABULARY.index("is")] = -row["out"]
    return LensModel.wrap(bridge.to(device or "cpu", print_details=False), name=NAME)


def _linear(module: Any) -> Any:
    return getattr(module, "original_component", module)
