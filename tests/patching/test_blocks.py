"""The pieces of a block against torch, autograd, complex rotations, and the models they are pieces of."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from patching.blocks import Attention, Context, Mlp, Norm, Readout, Rope, forward, identity_norm, per_head
from tests import tiny
from tests.oracle import tolerance

EXACT = 1e-12


def numbers(*shape: int, seed: int = 0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64) + shift


def norm(*, centered: bool, weight: bool = True, bias: bool = True, eps: float = 1e-5, width: int = 6) -> Norm:
    return Norm(
        numbers(width, seed=1, shift=1.0) if weight else None,
        numbers(width, seed=2) if bias and centered else None,
        eps,
        centered,
    )


# --- norms ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("weight", [True, False])
@pytest.mark.parametrize("eps", [1e-5, 0.3])
class TestNorm:
    def test_is_the_formula(self, centered: bool, weight: bool, eps: float) -> None:
        piece = norm(centered=centered, weight=weight, bias=weight, eps=eps)
        x = numbers(2, 3, 6, shift=0.5)
        spread = x - x.mean(-1, keepdim=True) if centered else x
        scale = (spread.square().mean(-1, keepdim=True) + eps).sqrt()
        expected = spread / scale * (1 if piece.weight is None else piece.weight) + (
            0 if piece.bias is None else piece.bias
        )
        torch.testing.assert_close(piece(x), expected, rtol=0, atol=EXACT)
        torch.testing.assert_close(piece.scale(x), scale, rtol=0, atol=EXACT)

    def test_pull_back_is_what_autograd_gives(self, centered: bool, weight: bool, eps: float) -> None:
        piece = norm(centered=centered, weight=weight, eps=eps)
        x = numbers(2, 3, 6, shift=0.5).requires_grad_(True)
        gradient = numbers(2, 3, 6, seed=3)
        (expected,) = torch.autograd.grad(piece(x), x, gradient)
        torch.testing.assert_close(piece.pull_back(x.detach(), gradient), expected, rtol=0, atol=EXACT)

    def test_pull_back_broadcasts_over_leading_axes(self, centered: bool, weight: bool, eps: float) -> None:
        piece = norm(centered=centered, weight=weight, eps=eps)
        x, gradient = numbers(2, 3, 6), numbers(5, 2, 3, 6, seed=3)
        one_by_one = torch.stack([piece.pull_back(x, row) for row in gradient])
        torch.testing.assert_close(piece.pull_back(x, gradient), one_by_one, rtol=0, atol=EXACT)


def test_pull_back_survives_a_residual_of_zeros() -> None:
    for centered in (True, False):
        piece = norm(centered=centered)
        x = torch.zeros(1, 6, dtype=torch.float64, requires_grad=True)
        (expected,) = torch.autograd.grad(piece(x), x, numbers(1, 6))
        torch.testing.assert_close(piece.pull_back(x.detach(), numbers(1, 6)), expected, rtol=1e-12, atol=0)


# --- heads ----------------------------------------------------------------------------------------------------------


def test_per_head_is_every_head_s_own_matrix() -> None:
    x, weight = numbers(4, 3, 2, 5, 6), numbers(3, 6, 7, seed=1)
    torch.testing.assert_close(per_head(x, weight), torch.einsum("shbpd,hde->shbpe", x, weight), rtol=0, atol=EXACT)
    torch.testing.assert_close(per_head(x[0], weight), torch.einsum("hbpd,hde->hbpe", x[0], weight), rtol=0, atol=EXACT)


# --- rotary embeddings ----------------------------------------------------------------------------------------------


def turned(x: Tensor, first: Tensor, second: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of coordinates as complex numbers, turned."""
    whole = torch.complex(x[..., first], x[..., second]) * torch.polar(torch.ones_like(angle), angle)
    return whole.real, whole.imag


@pytest.mark.parametrize("adjacent", [True, False])
@pytest.mark.parametrize("width", [8, 4])  # all of the head, or its first half
def test_rope_turns_pairs_of_coordinates(adjacent: bool, width: int) -> None:
    position = torch.arange(5, dtype=torch.float64)[:, None]
    angle = position * 10.0 ** (-torch.arange(width // 2, dtype=torch.float64))
    table = angle.repeat_interleave(2, dim=-1) if adjacent else torch.cat((angle, angle), dim=-1)
    rope = Rope(table.cos(), table.sin(), adjacent)
    x = numbers(3, 5, 8)
    even, odd = torch.arange(0, width, 2), torch.arange(1, width, 2)
    first, second = (even, odd) if adjacent else (torch.arange(width // 2), torch.arange(width // 2, width))
    expected = x.clone()
    expected[..., first], expected[..., second] = turned(x, first, second, angle)
    torch.testing.assert_close(rope(x), expected, rtol=0, atol=EXACT)
    some = torch.tensor([3, 1])
    torch.testing.assert_close(rope.at(some)(x[:, some]), expected[:, some], rtol=0, atol=EXACT)


# --- attention ------------------------------------------------------------------------------------------------------


def attention(*, kv_heads: int = 4, softcap: float | None = None, post: Norm | None = None) -> Attention:
    shapes = {"q": 4, "k": kv_heads, "v": kv_heads}
    return Attention(
        weights={letter: numbers(count, 6, 2, seed=number) for number, (letter, count) in enumerate(shapes.items())},
        biases={letter: numbers(count, 2, seed=5 + number) for number, (letter, count) in enumerate(shapes.items())},
        out=numbers(4, 2, 6, seed=8),
        out_bias=numbers(6, seed=9),
        scale=2**-0.5,
        softcap=softcap,
        query_norm=identity_norm,
        key_norm=identity_norm,
        post=post,
    )


def causal(length: int) -> Tensor:
    return torch.full((length, length), -math.inf, dtype=torch.float64).triu(1)


def test_attend_is_softmax_attention() -> None:
    q, k, v = (numbers(4, 3, 5, 2, seed=seed) for seed in range(3))
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=causal(5))
    torch.testing.assert_close(attention().attend(q, k, v, causal(5)), expected, rtol=0, atol=EXACT)


def test_attend_caps_its_scores() -> None:
    q, k, v = (numbers(1, 1, 4, 2, seed=seed) for seed in range(3))
    scores = 1.5 * torch.tanh(q @ k.mT * 2**-0.5 / 1.5) + causal(4)
    expected = torch.softmax(scores, dim=-1) @ v
    torch.testing.assert_close(attention(softcap=1.5).attend(q, k, v, causal(4)), expected, rtol=0, atol=EXACT)


def test_attend_of_half_precision_normalises_in_single() -> None:
    q, k, v = (numbers(1, 1, 4, 2, seed=seed).bfloat16() for seed in range(3))
    exact = attention().attend(q.double(), k.double(), v.double(), causal(4))
    found = attention().attend(q, k, v, causal(4).bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=0.03)


def test_project_gives_each_head_its_own_read() -> None:
    piece = attention(kv_heads=2)
    x = numbers(3, 2, 3, 5, 6)  # sample, one read per group, example, pos, d_model
    for letter in "kv":
        one_by_one = torch.stack(
            [x[:, head] @ piece.weights[letter][head] + piece.biases[letter][head] for head in range(2)], dim=1
        )
        torch.testing.assert_close(piece.project(letter, x), one_by_one, rtol=0, atol=EXACT)
        shared = piece.project(letter, x[:, :1])
        same = torch.stack(
            [x[:, 0] @ piece.weights[letter][head] + piece.biases[letter][head] for head in range(2)], dim=1
        )
        torch.testing.assert_close(shared, same, rtol=0, atol=EXACT)


def test_project_some_heads() -> None:
    piece, x = attention(), numbers(1, 3, 5, 6)
    chosen = torch.tensor([3, 1])
    torch.testing.assert_close(piece.project("q", x, chosen), piece.project("q", x)[chosen], rtol=0, atol=EXACT)


def test_place_norms_and_turns_queries_and_keys_only() -> None:
    table = torch.full((5, 2), math.pi / 2, dtype=torch.float64)
    piece, rope, x = attention(), Rope(table.cos(), table.sin(), adjacent=True), numbers(4, 3, 5, 2)
    assert piece.place("v", x, rope) is x
    quarter = torch.stack((-x[..., 1], x[..., 0]), dim=-1)
    for letter in "qk":
        torch.testing.assert_close(piece.place(letter, x, rope), quarter, rtol=0, atol=EXACT)
        assert torch.equal(piece.place(letter, x, None), x)


@pytest.mark.parametrize("post", [None, norm(centered=False)])
def test_heads_share_what_the_layer_writes(post: Norm | None) -> None:
    """Also behind a norm, each head owns its part; the rest is the output bias."""
    piece, z = attention(post=post), numbers(4, 3, 5, 2)
    total = torch.einsum("hbpe,hed->bpd", z, piece.out)
    expected = (total if post is None else post(total)) + piece.out_bias
    share = piece.share(z)
    torch.testing.assert_close(piece.write_sum(share), expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(piece.write(share).sum(0) + piece.out_bias, expected, rtol=0, atol=1e-11)
    chosen = torch.tensor([2, 0])
    torch.testing.assert_close(piece.write(share[chosen], chosen), piece.write(share)[chosen], rtol=0, atol=EXACT)


def test_context_of_some_queries() -> None:
    table = numbers(5, 2)
    context = Context(causal(5), Rope(table, table, adjacent=False))
    tail = context.queries(torch.tensor([3, 4]))
    assert torch.equal(tail.bias, causal(5)[3:])
    assert tail.rope is not None
    assert torch.equal(tail.rope.cos, table[3:])
    own = context.queries(torch.tensor([[4], [2]]))  # one query for each of two examples
    assert own.bias.shape == (2, 1, 5)
    assert torch.equal(own.bias[1, 0], causal(5)[2])


# --- MLP and readout ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("post", [None, norm(centered=False)])
def test_mlp_is_its_formula(gated: bool, post: Norm | None) -> None:
    w_in, w_gate, w_out = numbers(7, 6), numbers(7, 6, seed=1), numbers(6, 7, seed=2)
    b_in, b_gate, b_out = numbers(7, seed=3), numbers(7, seed=4), numbers(6, seed=5)
    piece = Mlp(w_in, b_in, w_gate if gated else None, b_gate if gated else None, w_out, b_out, F.silu, post)
    x = numbers(2, 3, 6)
    inner = x @ w_in.T + b_in
    hidden = F.silu(x @ w_gate.T + b_gate) * inner if gated else F.silu(inner)
    expected = hidden @ w_out.T + b_out
    torch.testing.assert_close(piece(x), expected if post is None else post(expected), rtol=0, atol=EXACT)


@pytest.mark.parametrize("bias", [None, numbers(9, seed=4)])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_readout_of_a_few_tokens_is_that_of_all(bias: Tensor | None, softcap: float | None) -> None:
    piece = Readout(norm(centered=True), numbers(6, 9, seed=3), bias, softcap)
    residual = numbers(4, 2, 6)
    tokens = torch.tensor([[0, 8, 3], [5, 5, 1]])
    logits = piece.logits(residual)
    expected = logits.gather(-1, tokens.expand(4, 2, 3))
    torch.testing.assert_close(piece.logits_of(residual, tokens), expected, rtol=0, atol=EXACT)
    if softcap is not None:
        assert float(logits.abs().max()) < softcap


# --- the whole ------------------------------------------------------------------------------------------------------


def test_pieces_together_are_the_model(family: str) -> None:
    model, tokens = tiny.model(family), tiny.task().clean
    contexts = model.contexts(tokens.shape[1])
    trace = forward(model.blocks, model.embed(tokens), contexts, parallel=model.architecture.parallel)
    torch.testing.assert_close(
        model.readout.logits(trace.final), model.logits(tokens), rtol=0, atol=10 * tolerance(family)
    )


def test_a_forward_keeps_every_value(family: str) -> None:
    model, tokens = tiny.model(family), tiny.task().clean
    shape = model.architecture
    trace = forward(model.blocks, model.embed(tokens), model.contexts(tokens.shape[1]), parallel=shape.parallel)
    for kept in (trace.q, trace.k, trace.v, trace.heads, trace.projected, trace.attention_inputs):
        assert len(kept) == shape.n_layers
    assert len(trace.mlps) == len(trace.mlp_inputs) == len(trace.mlp_normed) == shape.n_layers * shape.has_mlp
    assert {len(q) for q in trace.q} == {len(z) for z in trace.heads} == {shape.n_heads}
    assert {len(k) for k in trace.k} == {len(v) for v in trace.v} == {shape.n_kv_heads}
