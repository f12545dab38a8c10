"""The arithmetic of a transformer block, piece by piece.

A block is two writers to one residual stream. Everything here is a pure function of tensors that are views of
the model's own weights; nothing is copied, hooked or flagged. The pieces are cut where the engine needs to cut:

    residual -> norm -> project to q | k | v (per head) -> attend -> z (per head) -> write (per head, d_model)
    residual -> norm -> mlp -> write
    residual -> final norm -> unembed

Shapes carry the head axis before the example axis (``head example pos d_head``), so that taking a few heads is
taking a few rows. Any leading axes (samples) broadcast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Norm:
    """LayerNorm (``centered``) or RMSNorm over the last axis, with optional scale and shift.

    ``y = x̂ * weight + bias`` with ``x̂ = (x - mean) / sqrt(var + eps)``, or ``x̂ = x / sqrt(mean(x²) + eps)``.
    """

    weight: Float[Tensor, " d_model"] | None
    bias: Float[Tensor, " d_model"] | None
    eps: float
    centered: bool

    def __call__(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The normed x."""
        if self.centered:
            return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)

    def scale(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch 1"]:
        """The divisor ``sqrt(var + eps)`` of x."""
        spread = x - x.mean(-1, keepdim=True) if self.centered else x
        return (spread.pow(2).mean(-1, keepdim=True) + self.eps).sqrt()

    def pull_back(
        self, x: Float[Tensor, "*batch d_model"], gradient: Float[Tensor, "*more d_model"]
    ) -> Float[Tensor, "*more d_model"]:
        """Vector–Jacobian product: the gradient at x of a function whose gradient at ``norm(x)`` is given.

        ``dx = (g - mean(g) - x̂ mean(g x̂)) / scale`` with ``g = weight * gradient``; exact, eps included.
        RMSNorm lacks the ``mean(g)`` term. Broadcasts over leading axes of ``gradient``.
        """
        scale = self.scale(x)
        centre = x - x.mean(-1, keepdim=True) if self.centered else x
        unit = centre / scale
        weighted = gradient if self.weight is None else gradient * self.weight
        along = torch.linalg.vecdot(weighted, unit.expand_as(weighted)).unsqueeze(-1) / x.shape[-1]
        result = weighted.addcmul(unit, along, value=-1.0)
        if self.centered:
            result = result - weighted.mean(-1, keepdim=True)
        return result / scale


def per_head(
    x: Float[Tensor, "*sample head example pos width"], weight: Float[Tensor, "head width out"]
) -> Float[Tensor, "*sample head example pos out"]:
    """Every head's own matrix applied to every head's own input, without copying weights for each sample."""
    heads, examples, positions, width = x.shape[-4:]
    samples = x.reshape(-1, heads, examples * positions, width)
    result = torch.stack([torch.bmm(sample, weight) for sample in samples])
    return result.reshape(*x.shape[:-1], weight.shape[-1])


def identity_norm(x: Tensor) -> Tensor:
    """Stands where a model has no norm: x as a tensor of its own, so that the gradient there is that of this reader."""
    return x.view_as(x)


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding tables of the positions in play.

    ``adjacent`` rotates pairs (0, 1), (2, 3), …; otherwise dimension i pairs with i + width / 2.
    """

    cos: Float[Tensor, "*batch pos width"]
    sin: Float[Tensor, "*batch pos width"]
    adjacent: bool

    def at(self, index: Tensor) -> Rope:
        """The tables at some positions (any integer tensor or slice of the position axis)."""
        return Rope(self.cos[..., index, :], self.sin[..., index, :], self.adjacent)

    def __call__(self, x: Float[Tensor, "*batch pos d_head"]) -> Float[Tensor, "*batch pos d_head"]:
        """The rotated x."""
        width = self.cos.shape[-1]
        turned, rest = x[..., :width], x[..., width:]
        if self.adjacent:
            swapped = torch.stack((-turned[..., 1::2], turned[..., 0::2]), dim=-1).flatten(-2)
        else:
            first, second = turned.chunk(2, dim=-1)
            swapped = torch.cat((-second, first), dim=-1)
        rotated = turned * self.cos + swapped * self.sin
        return torch.cat((rotated, rest), dim=-1) if rest.shape[-1] else rotated


@dataclass(frozen=True)
class Context:
    """What an attention layer sees of positions: which keys each query may use, and the rotary tables.

    ``bias`` is 0 where a query (row) may look and -inf where it may not.
    """

    bias: Float[Tensor, "*batch query key"]
    rope: Rope | None

    def queries(self, index: Tensor) -> Context:
        """The context of some queries only; keys stay whole.

        An index of shape [example, 1] gives every example its own query position.
        """
        return Context(self.bias[..., index, :], self.rope.at(index) if self.rope else None)


Letter = str  # "q", "k" or "v"


@dataclass(frozen=True)
class Attention:
    """One attention layer, head by head.

    Weights are ``head d_model d_head`` (``kv_head`` for k and v) and ``head d_head d_model`` for ``out``.
    ``post`` is a norm applied to the summed write (Gemma-2): a head's write is then its share of the normed sum
    under the run's own scale, which is exact and linear in the head given that scale.
    """

    weights: dict[Letter, Float[Tensor, "head d_model d_head"]]
    biases: dict[Letter, Float[Tensor, "head d_head"] | None]
    out: Float[Tensor, "head d_head d_model"]
    out_bias: Float[Tensor, " d_model"] | None
    scale: float
    softcap: float | None
    query_norm: Callable[[Tensor], Tensor]
    key_norm: Callable[[Tensor], Tensor]
    post: Norm | None

    def project(
        self,
        letter: Letter,
        x: Float[Tensor, "*sample read example pos d_model"],
        heads: Tensor | None = None,
    ) -> Float[Tensor, "*sample head example pos d_head"]:
        """The q, k or v projection of some heads (all by default).

        ``x`` is the normed residual: one for all heads (axis ``read`` of length 1), or one for each.
        """
        weight, bias = self.weights[letter], self.biases[letter]
        if heads is not None:
            weight = weight[heads]
            bias = None if bias is None else bias[heads]
        shared = x.shape[-4] == 1
        value = torch.einsum("...bpd,tde->...tbpe", x.squeeze(-4), weight) if shared else per_head(x, weight)
        return value if bias is None else value + bias[:, None, None, :]

    def place(
        self, letter: Letter, value: Float[Tensor, "*sample head example pos d_head"], rope: Rope | None
    ) -> Float[Tensor, "*sample head example pos d_head"]:
        """A projection as the scores use it: normed (QK-norm) and rotated; values stay as they are."""
        if letter == "v":
            return value
        value = (self.query_norm if letter == "q" else self.key_norm)(value)
        return rope(value) if rope else value

    def scores(
        self,
        q: Float[Tensor, "*#sample head example query d_head"],
        k: Float[Tensor, "*#sample head example key d_head"],
    ) -> Float[Tensor, "*_ head example query key"]:
        """``cap(scale q kᵀ)``, before the mask."""
        scores = torch.matmul(q * self.scale, k.transpose(-1, -2))
        return scores if self.softcap is None else torch.tanh(scores / self.softcap) * self.softcap

    def pattern(
        self,
        q: Float[Tensor, "*#sample head example query d_head"],
        k: Float[Tensor, "*#sample head example key d_head"],
        bias: Float[Tensor, "*batch query key"],
    ) -> Float[Tensor, "*_ head example query key"]:
        """``softmax(scores + bias)``; the softmax of half-precision scores runs in float32."""
        scores = self.scores(q, k) + bias
        return torch.softmax(scores, dim=-1, dtype=torch.float32 if scores.dtype.itemsize < 4 else None)

    def attend(
        self,
        q: Float[Tensor, "*#sample head example query d_head"],
        k: Float[Tensor, "*#sample head example key d_head"],
        v: Float[Tensor, "*#sample head example key d_head"],
        bias: Float[Tensor, "*batch query key"],
    ) -> Float[Tensor, "*_ head example query d_head"]:
        """``z = pattern v``."""
        return torch.matmul(self.pattern(q, k, bias).to(v.dtype), v)

    def share(
        self, z: Float[Tensor, "*sample head example pos d_head"]
    ) -> Float[Tensor, "*sample head example pos d_head"]:
        """The z that counts in the residual stream: divided by the scale of the norm after attention, if there is one.

        With such a norm, z must hold all heads of the layer.
        """
        if self.post is None:
            return z
        total = torch.einsum("...hbpe,hed->...bpd", z, self.out)
        return z / self.post.scale(total).unsqueeze(-4)

    def write(
        self, share: Float[Tensor, "*sample head example pos d_head"], heads: Tensor | None = None
    ) -> Float[Tensor, "*sample head example pos d_model"]:
        """What each head adds to the residual stream."""
        out = self.out if heads is None else self.out[heads]
        written = per_head(share, out)
        return written if self.post is None or self.post.weight is None else written * self.post.weight

    def write_sum(
        self, share: Float[Tensor, "*sample head example pos d_head"]
    ) -> Float[Tensor, "*sample example pos d_model"]:
        """What the whole layer adds, the output bias included."""
        written = torch.einsum("...hbpe,hed->...bpd", share, self.out)
        if self.post is not None and self.post.weight is not None:
            written = written * self.post.weight
        return written if self.out_bias is None else written + self.out_bias


@dataclass(frozen=True)
class Mlp:
    """``out(act(in(x)))``, or ``out(act(gate(x)) * in(x))`` when gated, then the norm after it if there is one.

    Weights are in torch's linear layout, ``features_out features_in``.
    """

    w_in: Float[Tensor, "d_mlp d_model"]
    b_in: Float[Tensor, " d_mlp"] | None
    w_gate: Float[Tensor, "d_mlp d_model"] | None
    b_gate: Float[Tensor, " d_mlp"] | None
    w_out: Float[Tensor, "d_model d_mlp"]
    b_out: Float[Tensor, " d_model"] | None
    activation: Callable[[Tensor], Tensor]
    post: Norm | None

    def __call__(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """What the MLP writes, given its normed input."""
        return self.write(self.hidden(x))

    def hidden(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_mlp"]:
        """The neurons: what multiplies the output weights."""
        hidden = F.linear(x, self.w_in, self.b_in)
        if self.w_gate is None:
            return self.activation(hidden)
        return self.activation(F.linear(x, self.w_gate, self.b_gate)) * hidden

    def write(self, hidden: Float[Tensor, "*batch d_mlp"]) -> Float[Tensor, "*batch d_model"]:
        """What the neurons write together."""
        written = F.linear(hidden, self.w_out, self.b_out)
        return written if self.post is None else self.post(written)


@dataclass(frozen=True)
class Block:
    """Attention and, unless the model is attention-only, an MLP, with the norms in front of them."""

    attention_norm: Callable[[Tensor], Tensor]
    attention: Attention
    mlp_norm: Callable[[Tensor], Tensor]
    mlp: Mlp | None


@dataclass(frozen=True)
class Readout:
    """Final norm and unembedding."""

    norm: Callable[[Tensor], Tensor]
    unembed: Float[Tensor, "d_model d_vocab"]
    bias: Float[Tensor, " d_vocab"] | None
    softcap: float | None

    def _cap(self, logits: Tensor) -> Tensor:
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def logits(self, residual: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab"]:
        """All logits."""
        logits = torch.matmul(self.norm(residual), self.unembed)
        return self._cap(logits if self.bias is None else logits + self.bias)

    def logits_of(
        self, residual: Float[Tensor, "*sample example d_model"], tokens: Tensor
    ) -> Float[Tensor, "*sample example token"]:
        """The logits of a few tokens of each example (``tokens``: [example, token]), without the rest."""
        columns = self.unembed.T[tokens]  # [example token d_model]
        logits = torch.einsum("...bd,btd->...bt", self.norm(residual), columns)
        return self._cap(logits if self.bias is None else logits + self.bias[tokens])


@dataclass
class Trace:
    """Every value of one plain run, per layer; the head axis leads where there is one.

    ``q``, ``k`` and ``v`` are as the scores use them, ``heads`` is z as it counts in the residual stream
    (`Attention.share`), ``mlps`` the MLP writes. The lists ``projected`` (raw q, k, v), ``attention_inputs``,
    ``mlp_inputs`` (residuals) and ``mlp_normed`` are what gradients with respect to ports need.
    """

    embedded: Float[Tensor, "example pos d_model"]
    q: list[Tensor]
    k: list[Tensor]
    v: list[Tensor]
    heads: list[Tensor]
    mlps: list[Tensor]
    projected: list[dict[Letter, Tensor]]
    attention_inputs: list[Tensor]
    mlp_inputs: list[Tensor]
    mlp_normed: list[Tensor]
    final: Float[Tensor, "example pos d_model"]


def forward(
    blocks: tuple[Block, ...],
    embedded: Float[Tensor, "example pos d_model"],
    contexts: tuple[Context, ...],
    *,
    parallel: bool,
) -> Trace:
    """A plain run of all blocks, keeping every component's value. Cost: one forward without the unembedding."""
    trace = Trace(embedded, [], [], [], [], [], [], [], [], [], embedded)
    residual = embedded
    for block, context in zip(blocks, contexts, strict=True):
        attention = block.attention
        normed = block.attention_norm(residual).unsqueeze(0)
        raw = {letter: attention.project(letter, normed) for letter in "qkv"}
        q, k, v = (attention.place(letter, raw[letter], context.rope) for letter in "qkv")
        repeats = q.shape[0] // k.shape[0]
        keys, values = (t if repeats == 1 else t.repeat_interleave(repeats, dim=0) for t in (k, v))
        share = attention.share(attention.attend(q, keys, values, context.bias))
        after = residual + attention.write_sum(share)
        trace.attention_inputs.append(residual)
        trace.projected.append(raw)
        for kept, value in ((trace.q, q), (trace.k, k), (trace.v, v), (trace.heads, share)):
            kept.append(value)
        if block.mlp is not None:
            mlp_input = residual if parallel else after
            mlp_normed = block.mlp_norm(mlp_input)
            written = block.mlp(mlp_normed)
            trace.mlp_inputs.append(mlp_input)
            trace.mlp_normed.append(mlp_normed)
            trace.mlps.append(written)
            after = after + written
        residual = after
    trace.final = residual
    return trace
