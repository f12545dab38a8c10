"""A model small enough to do by hand: one attention layer, two heads, no norm, no MLP.

Four tokens, whose embeddings are the unit vectors e0 to e3 of a residual stream of width 4; no positions. Both heads
have query and key weights of zero, so every position attends equally to itself and all before it.

    head 0 writes 2 x_0 along e2, head 1 writes 3 x_1 along e2   (x: the mean of what is attended to)
    logits = the residual stream itself

On the prompt "0 1" the mean is (1/2, 1/2, 0, 0): head 0 writes 1 and head 1 writes 1.5 along e2, so
logit 2 - logit 3 = 2.5. On "0 0": head 0 writes 2, head 1 nothing, and the difference is 2.
"""

from __future__ import annotations

import torch

from patching.lens import LensModel, native_bridge
from patching.task import Task


def model(dtype: torch.dtype = torch.float64) -> LensModel:
    """The model."""
    bridge = native_bridge(
        d_model=4, d_head=1, n_layers=1, n_ctx=4, n_heads=2, d_vocab=4, attn_only=True, act_fn="relu",
        normalization_type=None, dtype=dtype,
    )  # fmt: skip
    parts = bridge.original_model
    with torch.no_grad():
        for parameter in parts.parameters():
            parameter.zero_()
        parts.tok_embed.weight.copy_(torch.eye(4))
        parts.head.weight.copy_(torch.eye(4))
        attention = parts.layers[0].attn
        _weight(attention.v)[0, 0] = 2.0  # head 0 reads e0
        _weight(attention.v)[1, 1] = 3.0  # head 1 reads e1
        _weight(attention.o)[2, :] = 1.0  # both write e2
    return LensModel.wrap(bridge, name="toy")


def _weight(linear: torch.nn.Module) -> torch.Tensor:
    inner = getattr(linear, "original_component", linear)
    weight = inner.weight
    assert isinstance(weight, torch.Tensor)
    return weight


def task() -> Task:
    """Four prompts of two tokens; the right answer is 2, the wrong one 3; corruption changes the second token."""
    clean = torch.tensor([[0, 1], [0, 1], [1, 1], [0, 0]])
    corrupt = torch.tensor([[0, 0], [0, 3], [1, 3], [0, 1]])
    answers, wrong = torch.full((4, 1), 2), torch.full((4, 1), 3)
    return Task("toy", clean, corrupt, answers, wrong, torch.full((4,), 1))
