"""Path patching: the effect that one part has on another along some paths alone.

Activation patching (`activation`) replaces what a part writes for everyone who reads it. Path patching replaces it
for some readers only. Four questions, four functions:

====================== ============================================================================== =============
`direct`               each edge by itself: one sender, one port                                      `MaskedRun`
`between`              all edges from some senders to some receivers, together                        `MaskedRun`
`through`              senders to receivers, directly or by way of MLPs (the variant of the IOI paper) `SiteRun`
`proportion_explained` do some edges suffice: everything else carries the replacement                 `MaskedRun`
====================== ============================================================================== =============

Senders are nodes that write (``input``, ``a9.h6``, ``m3``), receivers are ports (``a10.h7<q>``, ``a3.kv1<k>``, ``m11``,
``logits``) or nodes, which stand for all their ports. One or several may be given, as names or as objects.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from graphs.components import ComponentGraph
from graphs.nodes import INPUT, LOGITS, Edge, Node, Port, head
from patching.activation import SiteRun
from patching.blocks import Norm, identity_norm
from patching.effects import Effects
from patching.engine import Batch
from patching.errors import InvalidOption
from patching.masked import MaskedRun
from patching.metrics import Prediction
from patching.plan import FULL
from patching.progress import Progress, silent
from patching.sites import KINDS, Start, at, forward

NORMS = ("recomputed", "frozen")

Senders = Node | str | Iterable[Node | str]
Receivers = Port | Node | str | Iterable[Port | Node | str]
Edges = Edge | str | Iterable[Edge | str]


# --- direct edges ------------------------------------------------------------------------------------------------


def direct(run: MaskedRun, edges: Edges, *, norm: str = "recomputed", progress: Progress = silent) -> Effects:
    """The effect of each edge alone: one port reads the sender's replacement, everything after it runs freely.

    With ``d = replacement - clean`` of the sender's write, ``x`` the clean residual and ``W`` the receiver's matrix:

        recomputed:  receiver reads  norm(x + d) W
        frozen:      receiver reads  (norm(x) + weight * centre(d) / scale(x)) W

    The first is exact: the masked run with that edge's entry 0. The second keeps the norm's divisor of the clean run,
    so that the change is linear in ``d`` up to the receiver; both agree in models without norms. ``centre`` subtracts
    the mean for LayerNorm and does nothing for RMSNorm. Norms after the receiver are recomputed in either case.

    A prompt on which the sender's write does not change has effect 0 to the last bit.

    Cost: one run per edge of what follows its receiver; ``frozen`` adds one clean forward.

    Args:
        run: over edges.
        edges: edges or their names.
        norm: what the receiver's norm divides by.
        progress: called with the number of edges done and to do.

    Returns:
        Effects over the axis ``edge``, in the metric's unit.

    Raises:
        InvalidOption: an unknown ``norm``, no edges, an edge at a position, or a run over nodes or positions.
        UnknownEdge: the model has no such edge.

    Source: arXiv 2304.05969 (path patching, a single edge). ``frozen`` is the convention in which TransformerLens's
    direct path patching began (``delta / ln_scale @ W``, for folded and centred weights; later releases are exact);
    ours needs no folding and takes MLPs and logits as receivers too.

    Example:
        >>> from patching import toy
        >>> effects = direct(MaskedRun(toy.model(), toy.task()), ["input->a0.h0<v>", "a0.h1->logits"])
        >>> effects.axes, effects.labels[0], effects.values[0].tolist()
        (('edge',), ('input->a0.h0<v>', 'a0.h1->logits'), [1.0, -1.5])
    """
    if norm not in NORMS:
        raise InvalidOption(f"expected norm out of {', '.join(NORMS)}; got {norm!r}.")
    _check_level(run)
    chosen = _edges(run.graph, edges)
    measure = _frozen if norm == "frozen" else _recomputed
    effects = measure(run, chosen, progress) - run.clean_metric
    values = torch.where(_changed(run, [edge.source for edge in chosen]), effects, 0)
    names = tuple(str(edge) for edge in chosen)
    return _of_masked(run, values, "edge", names, "direct path patching", {"norm": norm, "edges": list(names)})


def between(run: MaskedRun, senders: Senders, receivers: Receivers) -> Effects:
    """The joint effect of everything that some senders send directly to some receivers.

    ``effect = metric(all edges of senders × receivers ablated together) - metric(clean)``, exact, norms recomputed.
    Pairs without an edge (the sender writes after that receiver reads) do not count.

    Cost: one run of what follows the first receiver.

    Args:
        run: over edges.
        senders: nodes that write.
        receivers: ports, or nodes for all their ports. Under grouped-query attention a head's keys and values are
            its group's, which other heads share.

    Returns:
        Effects with one entry, along the axis ``path``.

    Raises:
        InvalidOption: a sender from which, or a receiver to which, there is no edge; a node that does not write; a
            run over nodes or positions.
        UnknownNode, UnknownEdge: the model has no such node or port.

    Source: arXiv 2304.05969; `through` with ``freeze_mlps=True`` into the logits is the same when noising
    (unless a norm follows attention, see there).

    Example:
        >>> from patching import toy
        >>> run = MaskedRun(toy.model(), toy.task())
        >>> between(run, ["a0.h0", "a0.h1"], "logits").values[0].tolist()  # a0.h0 gives +1, a0.h1 gives -1.5
        [-0.5]
    """
    _check_level(run)
    sources, ports = _senders(run.graph, senders), _receivers(run.graph, receivers)
    off = _edges_between(run.graph, sources, ports)
    mask = run.ones()
    mask[[run.graph.number(edge) for edge in off]] = 0.0
    values = torch.where(_changed(run, sources).any(0), run(mask) - run.clean_metric, 0)[None]
    name = _path_name(sources, ports)
    options = {"senders": _names(sources), "receivers": _names(ports)}
    return _of_masked(run, values, "path", (name,), "path patching (direct edges)", options)


@torch.no_grad()
def _recomputed(run: MaskedRun, edges: list[Edge], progress: Progress) -> Float[Tensor, "edge example"]:
    """The metric with each edge off in turn."""
    numbers, step = [run.graph.number(edge) for edge in edges], run.samples_that_fit
    values: list[Tensor] = []
    for first in range(0, len(numbers), step):
        chosen = numbers[first : first + step]
        masks = run.ones().repeat(len(chosen), 1)
        masks[torch.arange(len(chosen)), chosen] = 0.0
        values.append(run(masks))
        progress(first + len(chosen), len(numbers))
    return torch.cat(values)


@torch.no_grad()
def _frozen(run: MaskedRun, edges: list[Edge], progress: Progress) -> Float[Tensor, "edge example"]:
    """The metric with each edge off in turn, its receiver's norm scale that of the clean run."""
    ports: dict[Port, list[int]] = defaultdict(list)
    for number, edge in enumerate(edges):
        ports[edge.reads].append(number)
    columns: list[Tensor] = []
    for done, batch in enumerate(run.batches):
        clean = _CleanRun(run, batch)
        column = run.clean_metric.new_zeros(len(edges), len(batch.task))
        seen = done * len(edges)
        for port, numbers in ports.items():
            senders = [edges[number].source for number in numbers]
            work = partial(_read_of, clean, port, senders)
            for rows, values in run.mask_chunks.over(len(numbers), run.samples_that_fit, work):
                column[numbers[rows]] = values
                seen += len(values)
                progress(seen, len(edges) * len(run.batches))
        columns.append(column)
    return torch.cat(columns, dim=-1)


def _read_of(clean: _CleanRun, port: Port, senders: list[Node], rows: slice) -> Tensor:
    return clean.metric(port, senders[rows])


class _CleanRun:
    """The residuals of a clean run, from which one port at a time is made to read something else."""

    def __init__(self, run: MaskedRun, batch: Batch) -> None:
        self.model, self.batch = run.model, batch
        self.answer = batch.task.positions.to(self.model.device)
        self.contexts = self.model.contexts(batch.task.clean.shape[1])
        self.residuals: dict[str, list[Tensor]] = {"resid_pre": [], "resid_mid": []}
        start = Start(0, 0, 0, self.model.embed(batch.task.clean))
        self.final = forward(self.model, self.contexts, start, self._keep, answer=self.answer, trim=False)

    def _keep(self, kind: str, _layer: int, value: Tensor, _narrow: bool) -> Tensor:
        if kind in self.residuals:
            self.residuals[kind].append(value)
        return value

    def metric(self, port: Port, senders: list[Node]) -> Float[Tensor, "sender example"]:
        """The metric when a port reads each sender's replacement in turn."""
        change = torch.stack([_change(self.batch, sender) for sender in senders])
        change = F.pad(change, (0, 0, self.batch.start, 0))  # positions before the first change
        layer = port.node.layer
        if layer is None:
            return self._at_logits(change)
        entering = self.residuals["resid_pre"][layer][None]
        add = self._into_mlp(layer, change) if port.letter is None else self._into_head(port, entering, change)
        start = Start(layer, 0, 0, entering)
        return self.batch.measure(forward(self.model, self.contexts, start, add, answer=self.answer))

    def _at_logits(self, change: Tensor) -> Tensor:
        batch, readout = self.batch, self.model.readout
        change = at(change, self.answer)[..., 0, :]
        normed = readout.norm(self.final) + _linear_part(readout.norm, self.final, change)
        behind = replace(readout, norm=identity_norm)
        return batch.metric(
            Prediction(normed, behind, batch.answers, batch.wrong, batch.clean_log_probs, batch.contrast)
        )

    def _into_head(self, port: Port, entering: Tensor, change: Tensor) -> Callable[..., Tensor]:
        layer, part = port.node.layer, port.node.index
        assert layer is not None
        assert part is not None
        assert port.letter is not None
        block = self.model.blocks[layer]
        read = _linear_part(block.attention_norm, entering, change)
        added = read @ block.attention.weights[port.letter][part]

        def add(kind: str, where: int, value: Tensor, narrow: bool) -> Tensor:
            if (kind, where) != (port.letter, layer):
                return value
            value = value.expand(len(change), *value.shape[1:]).clone()
            value[:, part] += at(added, self.answer) if narrow else added
            return value

        return add

    def _into_mlp(self, layer: int, change: Tensor) -> Callable[..., Tensor]:
        block = self.model.blocks[layer]
        assert block.mlp is not None
        mlp, kind_read = block.mlp, "resid_pre" if self.model.architecture.parallel else "resid_mid"
        entering = self.residuals[kind_read][layer]
        normed = block.mlp_norm(entering) + _linear_part(block.mlp_norm, entering, change)

        def add(kind: str, where: int, value: Tensor, narrow: bool) -> Tensor:
            if (kind, where) != ("neurons", layer):
                return value
            return mlp.hidden(at(normed, self.answer) if narrow else normed)

        return add


def _linear_part(norm: Callable[[Tensor], Tensor], x: Tensor, change: Tensor) -> Tensor:
    """What a change of x adds behind a norm whose divisor stays that of x."""
    if not isinstance(norm, Norm):
        return change
    centred = change - change.mean(-1, keepdim=True) if norm.centered else change
    scaled = centred / norm.scale(x)
    return scaled if norm.weight is None else scaled * norm.weight


def _change(batch: Batch, sender: Node) -> Float[Tensor, "example pos d_model"]:
    """Replacement minus clean value of what a sender writes, from the batch's first position on."""
    if sender == INPUT:
        return -batch.difference(None, "input", batch.clean.embedded, None, FULL).squeeze(-4)
    layer = sender.layer
    assert layer is not None
    if sender.kind == "mlp":
        return -batch.difference(layer, "mlp", batch.clean.mlps[layer], None, FULL).squeeze(-4)
    assert sender.index is not None
    one = torch.tensor([sender.index], device=batch.answer.device)
    return -batch.difference(layer, "heads", batch.clean.heads[layer][one], one, FULL).squeeze(-4)


@torch.no_grad()
def _changed(run: MaskedRun, senders: list[Node]) -> Bool[Tensor, "sender example"]:
    """Whether a sender's write changes up to the answer position."""
    rows: dict[Node, Tensor] = {}
    for sender in dict.fromkeys(senders):
        parts = [_up_to(_change(batch, sender).ne(0).any(-1), batch.answer) for batch in run.batches]
        rows[sender] = torch.cat(parts)
    return torch.stack([rows[sender] for sender in senders])


def _up_to(different: Bool[Tensor, "example pos"], answer: Tensor) -> Bool[Tensor, " example"]:
    """Whether anything differs at or before the answer position."""
    positions = torch.arange(different.shape[-1], device=answer.device)
    return (different & (positions <= answer[:, None])).any(-1)


# --- the variant of the IOI paper -----------------------------------------------------------------------------------


def through(run: SiteRun, senders: Senders, receivers: Receivers, *, freeze_mlps: bool = False) -> Effects:
    """The effect that senders have by way of receivers, along direct paths and, unless frozen, paths through MLPs.

    Four runs. A: the source, B: the base. C: the base with each sender's output (z of a head, write of an MLP) from
    A, every other head's z from B, MLPs computed anew unless ``freeze_mlps``; what the receivers read is recorded.
    D: the base with the receivers (q, k, v of heads; neurons of MLPs; the final residual) set to what C recorded,
    everything else free. ``effect = metric(D) - metric(B)``.

    The paper freezes q, k and v of every head in C. Freezing z is the same, since nothing else leaves a head. In D a
    receiver keeps what C recorded, whatever earlier receivers write: with ``freeze_mlps=True`` this is `between`
    exactly if no receiver reads another. Behind a norm after attention (Gemma 2 and 3) a sender's new z also rescales
    what the layer's other heads add, which `between` leaves alone.

    A prompt on which no sender changes has effect 0 to the last bit.

    Cost: a forward from the first sender on and one from the first receiver on; A and B are part of the run.

    Args:
        run: base and source.
        senders: nodes that write; the input counts as one.
        receivers: ports, or nodes for all their ports; the logits only by themselves.
        freeze_mlps: leave only direct paths: MLPs keep the base's output in C.

    Returns:
        Effects with one entry, along the axis ``path``.

    Raises:
        InvalidOption: the senders' activations are the same in both runs; a sender from which, or a receiver to
            which, there is no path; logits among other receivers; a node that does not write.
        UnknownNode, UnknownEdge: the model has no such node or port.

    Source: arXiv 2211.00593, appendix B. The paper noises; ours also denoises where the run does, and keeps every
    prompt's effect.

    Example:
        >>> from patching import toy
        >>> run = SiteRun(toy.model(), toy.task())
        >>> through(run, "a0.h1", "logits").values[:2].tolist()
        [[-1.5], [-1.5]]
    """
    graph = run.model.graph
    sources, ports = _senders(graph, senders), _receivers(graph, receivers)
    _edges_between(graph, sources, ports)
    _check_logits_alone(ports)
    changed = _sender_changes(run, [sources])
    if not bool(changed.any()):
        raise InvalidOption(
            f"expected senders that do something else in the source run; {_list(sources)} has the same activations in "
            "both runs on every prompt, so there is nothing to patch. Check the corruption, or choose later senders."
        )
    values = torch.where(changed, _through(run, [sources], ports, freeze_mlps) - run.base_metric, 0)
    options = {"senders": _names(sources), "receivers": _names(ports), "freeze_mlps": freeze_mlps}
    provenance = run.provenance("path patching (IOI)", options)
    labels = ((_path_name(sources, ports),),)
    return Effects(values.T, ("path",), labels, run.base_metric, run.source_metric, provenance)


def sweep_senders(
    run: SiteRun, receivers: Receivers, *, freeze_mlps: bool = False, progress: Progress = silent
) -> Effects:
    """`through` for every single head as the sender: the figures of the IOI paper.

    Heads from which no receiver can be reached have effect 0.

    Cost: two forwards per head, each of what follows it (many heads of a layer at a time).

    Args:
        run: base and source.
        receivers: as in `through`.
        freeze_mlps: as in `through`.
        progress: called with the number of heads done and to do.

    Returns:
        Effects over ``layer`` × ``head``.

    Raises:
        InvalidOption: no head can reach the receivers, or none that can has other activations in the source run;
            logits among other receivers.
        UnknownNode, UnknownEdge: the model has no such node or port.

    Source: arXiv 2211.00593, section 3 and appendix B.

    Example:
        >>> from patching import toy
        >>> effects = sweep_senders(SiteRun(toy.model(), toy.task()), "logits")
        >>> effects["L0", "H0"], effects["L0", "H1"]
        (0.0, -0.75)
    """
    graph, shape = run.model.graph, run.model.architecture
    ports = _receivers(graph, receivers)
    _check_logits_alone(ports)
    heads = [head(layer, index) for layer in range(shape.n_layers) for index in range(shape.n_heads)]
    able = [node for node in heads if any(_sees(graph, port, node) for port in ports)]
    if not able:
        raise InvalidOption(
            f"expected receivers that read after some head writes; got {_list(ports)}. Choose receivers further on."
        )
    changed = _sender_changes(run, [[node] for node in able])
    if not bool(changed.any()):
        raise InvalidOption(
            "expected heads that do something else in the source run; all have the same activations in both runs, so "
            "there is nothing to patch. Check the corruption."
        )
    values = run.base_metric.new_zeros(len(heads), len(run.base_metric))
    found = _through(run, [[node] for node in able], ports, freeze_mlps, progress) - run.base_metric
    places = [heads.index(node) for node in able]
    values[places] = torch.where(changed, found, 0)
    labels = (tuple(f"L{layer}" for layer in range(shape.n_layers)), tuple(f"H{i}" for i in range(shape.n_heads)))
    options = {"senders": "every head", "receivers": _names(ports), "freeze_mlps": freeze_mlps}
    return Effects(
        values.T.reshape(-1, shape.n_layers, shape.n_heads),
        ("layer", "head"),
        labels,
        run.base_metric,
        run.source_metric,
        run.provenance("path patching (IOI)", options),
    )


@torch.no_grad()
def _through(
    run: SiteRun, groups: list[list[Node]], ports: list[Port], freeze_mlps: bool, progress: Progress = silent
) -> Float[Tensor, "group example"]:
    """The metric of run D for each group of senders."""
    columns: list[Tensor] = []
    for number, part in enumerate(run.parts):
        step = run.patches_at_once(len(part.answer), run.length)
        made: list[Tensor] = []
        done = number * len(groups)
        for _, same in groupby(groups, key=_begin):
            members = list(same)
            work = partial(_some_c_and_d, part, members, ports, freeze_mlps)
            for _rows, values in run.patch_chunks.over(len(members), step, work):
                made.append(values)
                done += len(values)
                progress(done, len(run.parts) * len(groups))
        columns.append(torch.cat(made))
    return torch.cat(columns, dim=-1)


def _begin(senders: list[Node]) -> tuple[int, int]:
    """Layer and stage at which a run with new senders departs from the base."""
    return min((0, 0) if node.layer is None else (node.layer, 1) for node in senders)


def _some_c_and_d(part: Any, groups: list[list[Node]], ports: list[Port], freeze_mlps: bool, rows: slice) -> Tensor:
    return _runs_c_and_d(part, groups[rows], ports, freeze_mlps)


def _runs_c_and_d(part: Any, groups: list[list[Node]], ports: list[Port], freeze_mlps: bool) -> Tensor:
    """The metric of run D, for groups of senders that begin at the same place."""
    send = _Send(part, groups, ports, freeze_mlps)
    final = forward(part.model, part.contexts, part.start(*_begin(groups[0]), 0), send, answer=part.answer)
    if Port(LOGITS) not in ports:
        layer, stage = min((layer, KINDS[kind].stage) for kind, layer in send.seen)
        receive = _Receive(send.wanted, send.seen, len(groups))
        final = forward(part.model, part.contexts, part.start(layer, stage, 0), receive, answer=part.answer)
    return part.measure(final).expand(len(groups), -1)


class _Send:
    """The visitor of run C, one sample for each group of senders; ``seen`` is what the receivers read.

    ``wanted`` says which parts of which sites those are (None: the whole).
    """

    def __init__(self, part: Any, groups: list[list[Node]], ports: list[Port], freeze_mlps: bool) -> None:
        self.part, self.groups, self.freeze_mlps = part, groups, freeze_mlps
        self.seen: dict[tuple[str, int], Tensor] = {}
        self.wanted: dict[tuple[str, int], list[int] | None] = {}
        for node, letter in ports:
            if letter is not None and node.layer is not None:
                parts = self.wanted.setdefault((letter, node.layer), [])
                assert parts is not None
                assert node.index is not None
                parts.append(node.index)
            elif node.layer is not None:
                self.wanted["neurons", node.layer] = None

    def __call__(self, kind: str, layer: int, value: Tensor, narrow: bool) -> Tensor:
        if kind == "z":
            return self._sent(kind, layer, self._base(kind, layer, narrow), narrow, "head")
        if kind == "mlp_out":
            if self.freeze_mlps:
                value = self._base(kind, layer, narrow)
            return self._sent(kind, layer, value, narrow, "mlp")
        if kind == "resid_pre" and layer == 0:
            return self._sent(kind, layer, value, narrow, "input")
        if (kind, layer) in self.wanted:
            self.seen[kind, layer] = value
        return value

    def _base(self, kind: str, layer: int, narrow: bool) -> Tensor:
        value = self.part.base[kind][layer]
        return (at(value, self.part.answer) if narrow else value)[None]

    def _sent(self, kind: str, layer: int, value: Tensor, narrow: bool, what: str) -> Tensor:
        """The value with the source's in place of what senders write."""
        source = self.part.source[kind][layer]
        source = at(source, self.part.answer) if narrow else source
        value = value.expand(len(self.groups), *value.shape[1:]).clone()
        for sample, nodes in enumerate(self.groups):
            for node in nodes:
                if node.kind == what and (node.layer or 0) == layer:
                    place = sample if node.index is None else (sample, node.index)
                    value[place] = source if node.index is None else source[node.index]
        return value


class _Receive:
    """The visitor of run D: receivers get what run C recorded."""

    def __init__(
        self, wanted: dict[tuple[str, int], list[int] | None], seen: dict[tuple[str, int], Tensor], samples: int
    ) -> None:
        self.wanted, self.seen, self.samples = wanted, seen, samples

    def __call__(self, kind: str, layer: int, value: Tensor, _narrow: bool) -> Tensor:
        if (kind, layer) not in self.seen:
            return value
        seen, parts = self.seen[kind, layer], self.wanted[kind, layer]
        if parts is None:
            return seen
        value = value.expand(self.samples, *value.shape[1:]).clone()
        value[:, parts] = seen[:, parts]
        return value


def _sender_changes(run: SiteRun, groups: list[list[Node]]) -> Bool[Tensor, "group example"]:
    """Whether any sender of a group differs between the runs, up to the answer position."""
    rows: list[Tensor] = []
    for nodes in groups:
        row = torch.zeros(len(run.base_metric), dtype=torch.bool, device=run.base_metric.device)
        for node in nodes:
            row |= torch.cat([_up_to(_site_differs(part, node), part.answer) for part in run.parts])
        rows.append(row)
    return torch.stack(rows)


def _site_differs(part: Any, node: Node) -> Bool[Tensor, "example pos"]:
    kind = {"head": "z", "mlp": "mlp_out", "input": "resid_pre"}[node.kind]
    base, source = (values[kind][node.layer or 0] for values in (part.base, part.source))
    different = (base != source).any(-1)
    return different if node.index is None else different[node.index]


def _check_logits_alone(ports: list[Port]) -> None:
    if Port(LOGITS) in ports and len(ports) > 1:
        raise InvalidOption(
            f"expected logits as the only receiver; got {_list(ports)}. The final residual is set as a whole, so no "
            "other receiver could count: ask for them in two calls, or use `between`."
        )


# --- how much some edges explain ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Explained:
    """How far a model that keeps some edges alone is from the whole model.

    Attributes:
        unexplained: divergence of every prompt under the hypothesis; its mean is the average unexplained effect.
        total: divergence of every prompt with no edge kept; its mean is the average total effect.
        provenance: method, options, model, task, ablation, metric.
    """

    unexplained: Float[Tensor, " example"]
    total: Float[Tensor, " example"]
    provenance: dict[str, Any]

    @property
    def proportion(self) -> float:
        """``1 - mean(unexplained) / mean(total)``: 1 explains all, 0 nothing; below 0 the edges mislead."""
        return 1 - float(self.unexplained.mean()) / float(self.total.mean())

    def __repr__(self) -> str:
        return (
            f"Explained({self.proportion:.3f} of the total effect, {float(self.total.mean()):.3f} "
            f"{self.provenance['metric']}, {len(self.total)} prompts)"
        )


def proportion_explained(run: MaskedRun, edges: Edges) -> Explained:
    """How much of the model's behaviour some edges explain by themselves.

        δ(prompt) = |metric(only these edges kept) - metric(clean)|
        proportion = 1 - mean(δ) / mean(δ with no edge kept)

    δ cannot cancel over prompts. With the metric ``kl`` it is KL(clean ‖ hypothesis), which the paper recommends;
    with any other it is an absolute difference of metrics, which sees only what that metric sees.

    Hypotheses are sets of edges. In the paper they are sets of paths of the *treeified* graph, in which every path
    from the input to the output has copies of its nodes to itself; important paths carry the clean value. A set of
    edges stands for the paths that use these edges alone, and an edge left out carries what its sender computes on
    the replacement throughout. Sets of paths that no set of edges gives (A→B→C and D→B→E but not A→B→E) cannot be
    asked for.

    It measures sufficiency only: any superset that changes nothing scores as well, and superfluous edges cost
    nothing.

    Cost: two runs.

    Args:
        run: over edges.
        edges: edges or their names, for example ``circuit.edges``; an empty list is the empty hypothesis.

    Raises:
        InvalidOption: ablating every edge changes the metric of no prompt; an edge at a position; a run over nodes
            or positions.
        UnknownEdge: the model has no such edge.

    Source: arXiv 2304.05969 (unexplained and total effect); edges instead of paths, as said above.

    Example:
        >>> from patching import toy
        >>> run = MaskedRun(toy.model(), toy.task(), metric="kl")
        >>> proportion_explained(run, run.graph.edges).proportion, proportion_explained(run, []).proportion
        (1.0, 0.0)
    """
    _check_level(run)
    chosen = _edges(run.graph, edges, empty=True)
    mask = run.zeros()
    mask[[run.graph.number(edge) for edge in chosen]] = 1.0
    unexplained, total = ((run(each) - run.clean_metric).abs() for each in (mask, run.zeros()))
    unchanged = not any(bool(_changed(run, [source]).any()) for source in run.graph.sources)
    if unchanged or float(total.mean()) == 0:
        raise InvalidOption(
            f"expected prompts on which ablating every edge changes {run.metric.name}; none does, so there is nothing "
            "to explain. Choose another corruption or ablation."
        )
    options = {"edges": [str(edge) for edge in chosen]}
    return Explained(unexplained, total, run.provenance("proportion explained", options))


# --- names ----------------------------------------------------------------------------------------------------------


def _of_masked(
    run: MaskedRun, values: Tensor, axis: str, names: tuple[str, ...], method: str, options: dict[str, Any]
) -> Effects:
    return Effects(values.T, (axis,), (names,), run.clean_metric, run.corrupt_metric, run.provenance(method, options))


def _check_level(run: MaskedRun) -> None:
    if run.level != "edge" or run.per_position:
        raise InvalidOption(
            "expected a run over edges at every position at once; got one over nodes or by position. Use MaskedRun as "
            "it is made, before nodes() or positions()."
        )


def _edges(graph: ComponentGraph, edges: Edges, *, empty: bool = False) -> list[Edge]:
    """Edges of the model, once each, in the order given."""
    given = [edges] if isinstance(edges, Edge | str) else list(edges)
    chosen = list(dict.fromkeys(edge if isinstance(edge, Edge) else Edge.parse(edge) for edge in given))
    if not chosen and not empty:
        raise InvalidOption("expected at least one edge, such as a9.h6->logits; got none.")
    for edge in chosen:
        graph.check_edge(edge)
        if edge.position is not None:
            raise InvalidOption(f"expected edges at every position; got {edge}. Use {edge.everywhere()}.")
    return chosen


def _senders(graph: ComponentGraph, senders: Senders) -> list[Node]:
    """Nodes that write, in the order of the model."""
    given = [senders] if isinstance(senders, Node | str) else list(senders)
    nodes = {node if isinstance(node, Node) else Node.parse(node) for node in given}
    for node in sorted(nodes, key=str):
        graph.check_node(node)
        if node not in graph.source_index:
            raise InvalidOption(
                f"expected senders that write to the residual stream (the input, heads, MLPs); got {node}."
                + (f" Name its heads: {_list(graph.query_heads(node))}." if node.kind == "kv" else "")
            )
    if not nodes:
        raise InvalidOption("expected at least one sender, such as a9.h6; got none.")
    return sorted(nodes, key=lambda node: graph.source_index[node])


def _receivers(graph: ComponentGraph, receivers: Receivers) -> list[Port]:
    """Ports of the model, in its order; a node stands for all its ports."""
    given = [receivers] if isinstance(receivers, Port | Node | str) else list(receivers)
    ports: set[Port] = set()
    for one in given:
        port = one if isinstance(one, Port) else Port(one) if isinstance(one, Node) else _parsed(one)
        if port.letter is None and port.node.kind in ("head", "kv"):
            ports.update(graph.readers(port.node))
            continue
        if port.node == INPUT:
            raise InvalidOption("expected receivers that read the residual stream; got input, which only writes.")
        if port not in graph.target_index:
            graph.check_edge(Edge(INPUT, port.node, port.letter))  # says what there is instead
        ports.add(port)
    if not ports:
        raise InvalidOption("expected at least one receiver, such as a10.h7<q> or logits; got none.")
    return sorted(ports, key=lambda port: graph.target_index[port])


def _parsed(name: str) -> Port:
    """A port, or a node as a port without a letter."""
    return Port.parse(name) if "<" in name else Port(Node.parse(name))


def _sees(graph: ComponentGraph, port: Port, sender: Node) -> bool:
    return graph.source_index[sender] < graph.n_visible[graph.target_index[port]]


def _edges_between(graph: ComponentGraph, senders: Sequence[Node], ports: Sequence[Port]) -> list[Edge]:
    """All edges from senders to ports.

    Raises:
        InvalidOption: a sender or a port has none.
    """
    pairs = [(sender, port) for sender in senders for port in ports if _sees(graph, port, sender)]
    idle = [sender for sender in senders if sender not in {sender for sender, _ in pairs}]
    deaf = [port for port in ports if port not in {port for _, port in pairs}]
    if idle:
        raise InvalidOption(
            f"expected senders that write before a receiver reads; got {_list(idle)}, after every one of "
            f"{_list(ports)}. Leave it out, or choose later receivers."
        )
    if deaf:
        raise InvalidOption(
            f"expected receivers that read after a sender writes; got {_list(deaf)}, before every one of "
            f"{_list(senders)}. Leave it out, or choose earlier senders."
        )
    return [Edge(sender, port.node, port.letter) for sender, port in pairs]


def _names(items: Iterable[Node | Port]) -> list[str]:
    return [str(item) for item in items]


def _list(items: Iterable[Node | Port]) -> str:
    return ", ".join(_names(items))


def _path_name(senders: Sequence[Node], ports: Sequence[Port]) -> str:
    return f"{_list(senders)} -> {_list(ports)}"
