"""Every activation of a plain run in reach: read it, replace it, or take gradients at it.

A *site* is a place inside a layer; its spelling is that of TransformerLens's hooks. `forward` runs a model from any
site and position on and shows every later site to a visitor, whose answer is what the run goes on with.

==============  ====================================================================  ==========================
`resid_pre`     the residual stream that enters a layer                               example pos d_model
`q` `k` `v`     projections, before QK-norm and rotation; k and v per key/value group head example pos d_head
`pattern`       attention probabilities; its position is the query's                  head example query key
`z`             pattern · v, before the output matrix                                 head example pos d_head
`attn_out`      what the attention layer adds, its bias included                      example pos d_model
`resid_mid`     the stream between attention and MLP (not in parallel blocks)         example pos d_model
`neurons`       what multiplies the MLP's output weights                              example pos d_mlp
`mlp_out`       what the MLP adds                                                     example pos d_model
`resid_post`    the stream that leaves the layer                                      example pos d_model
==============  ====================================================================  ==========================

Samples, where there are several, lead. In the last layer only the answer positions' queries and MLP are computed,
since nothing else reads them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from graphs.components import Architecture
from patching.blocks import Context, Rope
from patching.errors import InvalidOption
from patching.lens import LensModel


@dataclass(frozen=True)
class Kind:
    """What a kind of site is made of.

    Attributes:
        name: as used everywhere.
        parts: what its first axis counts (``head``, ``group``), or None; neurons are parts along the last axis.
        stage: which of the three stages of a layer it belongs to: 0 reads attention's input, 1 is after the pattern
            was applied, 2 is the MLP.
        needs_mlp, sequential: whether it exists only with MLPs, only where attention and MLP follow one another.
        inside: whether it reaches the stream only through its layer's write (see `atp_star`).
    """

    name: str
    parts: str | None
    stage: int
    needs_mlp: bool = False
    sequential: bool = False
    inside: bool = True


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("resid_pre", None, 0, inside=False),
        Kind("q", "head", 0),
        Kind("k", "group", 0),
        Kind("v", "group", 0),
        Kind("pattern", "head", 0),
        Kind("z", "head", 1),
        Kind("attn_out", None, 1),
        Kind("resid_mid", None, 1, needs_mlp=True, sequential=True, inside=False),
        Kind("neurons", "neuron", 2, needs_mlp=True),
        Kind("mlp_out", None, 2, needs_mlp=True),
        Kind("resid_post", None, 2, inside=False),
    )
}

Visit = Callable[[str, int, Tensor, bool], Tensor]
"""Called with a kind, a layer, the value there, and whether the value holds the answer positions alone."""


@dataclass(frozen=True, order=True)
class Site:
    """One activation: a kind in a layer, one part of it or all, at one position or all.

    Attributes:
        kind: a name from `KINDS`.
        layer: from 0.
        part: head, key/value group or neuron; None for all of them.
        position: token position (of the query for patterns); None for all.

    Example:
        >>> str(Site("z", 9, 6)), str(Site("resid_pre", 3, position=10))
        ('z9.6', 'resid_pre3@10')
    """

    kind: str
    layer: int
    part: int | None = None
    position: int | None = None

    def __str__(self) -> str:
        part = "" if self.part is None else f".{self.part}"
        return f"{self.kind}{self.layer}{part}" + ("" if self.position is None else f"@{self.position}")

    @staticmethod
    def parse(text: str) -> Site:
        """The site spelled ``text``; the inverse of `str`.

        Raises:
            InvalidOption: it is no site's name.

        Example:
            >>> Site.parse("mlp_out3"), Site.parse("z9.6@4") == Site("z", 9, 6, 4)
            (Site(kind='mlp_out', layer=3, part=None, position=None), True)
        """
        match = re.fullmatch(r"([a-z_]+?)([0-9]{1,9})(?:\.([0-9]{1,9}))?(?:@([0-9]{1,9}))?", text)
        if match is None or match[1] not in KINDS:
            raise InvalidOption(
                f"expected a site as KIND and LAYER, such as mlp_out3, with KIND out of {', '.join(KINDS)}; "
                f"got {text!r}."
            )
        return Site(match[1], int(match[2]), *(None if number is None else int(number) for number in match.group(3, 4)))


def kind_of(name: str, architecture: Architecture) -> Kind:
    """The kind of a name, if models of this architecture have it.

    Raises:
        InvalidOption: no such kind, or not in this architecture.

    Example:
        >>> kind_of("z", Architecture(n_layers=2, n_heads=4)).parts
        'head'
    """
    if name not in KINDS:
        raise InvalidOption(f"expected a kind of site out of {', '.join(KINDS)}; got {name!r}.")
    kind = KINDS[name]
    if kind.needs_mlp and not architecture.has_mlp:
        have = ", ".join(other for other, what in KINDS.items() if not what.needs_mlp)
        raise InvalidOption(f"expected a site of an attention-only model ({have}); got {name}, and it has no MLP.")
    if kind.sequential and architecture.parallel:
        raise InvalidOption(
            f"expected a site that this model has; got {name}, but its blocks are parallel: attention and MLP read the "
            "same residual. Use resid_pre or resid_post."
        )
    return kind


def count_parts(kind: Kind, model: LensModel) -> int:
    """How many parts one layer has at a kind of site; 1 where it has none."""
    shape = model.architecture
    mlp = model.blocks[0].mlp
    neurons = 0 if mlp is None else mlp.w_in.shape[0]
    return {"head": shape.n_heads, "group": shape.n_kv_heads, "neuron": neurons, None: 1}[kind.parts]


@dataclass(frozen=True)
class Start:
    """Where a run begins, and what is known there.

    Attributes:
        layer: the first layer that is computed.
        stage: the first stage of that layer (see `Kind.stage`).
        position: the first position that is computed.
        residual: what enters the layer, from that position on.
        z, middle: of that layer, where stages before are skipped: z, and the stream between attention and MLP (the
            one that enters the layer plus attention's write, in parallel blocks).
        keys, values: raw k and v of every layer at the positions before.
    """

    layer: int
    stage: int
    position: int
    residual: Tensor
    z: Tensor | None = None
    middle: Tensor | None = None
    keys: tuple[Tensor, ...] = ()
    values: tuple[Tensor, ...] = ()


def forward(
    model: LensModel,
    contexts: tuple[Context, ...],
    start: Start,
    visit: Visit,
    *,
    answer: Int[Tensor, " example"],
    trim: bool = True,
) -> Float[Tensor, "*sample example d_model"]:
    """Run the model, showing every site to ``visit``; the final residual at the answer positions.

    Args:
        model: the model.
        contexts: of the whole prompts.
        start: where to begin.
        visit: sees every value and says what takes its place.
        answer: answer position of every prompt; what is returned for those before the start has no meaning.
        trim: compute only the answer positions in the last layer's queries and MLP.

    Cost: one forward of what follows the start, without the unembedding.
    """
    length = contexts[0].bias.shape[-1]
    tail = torch.arange(start.position, length, device=answer.device)
    parallel = model.architecture.parallel
    residual, local = start.residual, (answer - start.position).clamp(min=0)
    narrow = False
    for layer in range(start.layer, len(model.blocks)):
        block, context = model.blocks[layer], contexts[layer]
        attention = block.attention
        last = trim and layer == len(model.blocks) - 1
        stage = start.stage if layer == start.layer else 0
        wide = context.queries(tail) if start.position else context
        if stage == 0:
            residual = visit("resid_pre", layer, residual, False)
            normed = block.attention_norm(residual)
            read = normed.unsqueeze(-4)
            k = visit("k", layer, attention.project("k", read), False)
            v = visit("v", layer, attention.project("v", read), False)
            k = attention.place("k", k, wide.rope)
            if start.position:
                before = attention.place("k", start.keys[layer], _before(context, start.position))
                k, v = _joined(before, k), _joined(start.values[layer], v)
            if last:
                read, narrow = at(normed, local).unsqueeze(-4), True
            here = context.queries(answer[:, None]) if last else wide
            q = visit("q", layer, attention.project("q", read), last)
            q = attention.place("q", q, here.rope)
            repeats = q.shape[-4] // k.shape[-4]
            k, v = (t if repeats == 1 else t.repeat_interleave(repeats, dim=-4) for t in (k, v))
            pattern = visit("pattern", layer, attention.pattern(q, k, here.bias), last)
            z = torch.matmul(pattern.to(v.dtype), v)
        else:
            assert start.z is not None
            z, narrow = (at(start.z, local), True) if last else (start.z, False)
        entering = at(residual, local) if narrow else residual
        if stage <= 1:
            z = visit("z", layer, z, narrow)
            written = visit("attn_out", layer, attention.write_sum(attention.share(z)), narrow)
            middle = entering + written
            if block.mlp is not None and not parallel:
                middle = visit("resid_mid", layer, middle, narrow)
        else:
            assert start.middle is not None
            middle = at(start.middle, local) if narrow else start.middle
        if block.mlp is not None:
            neurons = block.mlp.hidden(block.mlp_norm(entering if parallel else middle))
            neurons = visit("neurons", layer, neurons, narrow)
            middle = middle + visit("mlp_out", layer, block.mlp.write(neurons), narrow)
        residual = visit("resid_post", layer, middle, narrow)
    return (residual if narrow else at(residual, local))[..., 0, :]


def at(value: Float[Tensor, "*batch example pos width"], answer: Int[Tensor, " example"]) -> Tensor:
    """A value at each prompt's answer position: [*batch, example, 1, width]."""
    return value[..., torch.arange(len(answer), device=answer.device), answer, :].unsqueeze(-2)


def _before(context: Context, position: int) -> Rope | None:
    """The rotary tables of the positions before one."""
    index = torch.arange(position, device=context.bias.device)
    return None if context.rope is None else context.rope.at(index)


def _joined(before: Tensor, new: Tensor) -> Tensor:
    return torch.cat((before.expand(*new.shape[:-4], *before.shape[-4:]), new), dim=-2)
