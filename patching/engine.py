"""The engine on one batch of prompts: values under a mask, recomputed only where a change can reach.

At every port t the input is  x_t = Σ_s replacement_s + Σ_s mask[t, s] (current_s - replacement_s)  plus the constants
that no source owns. The first sum is stored per stage; the second is a matrix product of mask entries with *rows*,
the differences ``current_s - replacement_s``, over the edges that are on. `plan` says which rows and targets are new.

Layout: ``sample`` (masks) leads, then ``head`` or ``source``, ``example``, ``pos``, width. Two *lanes* exist: all
positions, and only each prompt's answer position (see `plan`). Positions before the first one at which any replacement
differs from the clean run can never change in a causal model and are cut off; only their keys and values remain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from patching.blocks import Context, Trace, forward
from patching.lens import LensModel
from patching.metrics import Contrast, Metric, Prediction
from patching.plan import ANSWER, FULL, Plan, Planner, Stage
from patching.task import Task


@dataclass
class Writes:
    """What every source adds, in head space: input, z of every head (see `blocks.Attention.share`), MLP outputs.

    Any of example and pos may be of length 1 and broadcast (a mean).
    """

    embedded: Tensor
    heads: list[Tensor]
    mlps: list[Tensor]

    def map(self, function: Any) -> Writes:
        """Apply a function to every tensor."""
        return Writes(function(self.embedded), list(map(function, self.heads)), list(map(function, self.mlps)))


class Batch:
    """Some prompts of a task with the values that every run on them starts from.

    Attributes:
        clean: trace of the clean run, from position ``start`` on (keys and values whole).
        replacement: what ablated edges carry.
        base: per stage, the residual when every edge is off (replacements and constants).
        start: first position that any mask can change.
        answer: index of the answer position of each prompt, counted from ``start``.
    """

    def __init__(
        self,
        model: LensModel,
        planner: Planner,
        task: Task,
        *,
        metric: Metric,
        prompts: Tensor,
        writes: Writes | None,
        added: Tensor | None,
        row_bytes: int,
    ) -> None:
        """Run the clean prompts and find the replacements.

        ``prompts`` supply the replacements position by position, with ``added`` on their embeddings, unless
        ``writes`` gives constants. A state may keep rows of up to ``row_bytes``.
        """
        self.model, self.planner, self.metric, self.row_bytes = model, planner, metric, row_bytes
        self.task = task
        self.answers, self.wrong = task.answers.to(model.device), task.wrong_answers.to(model.device)
        self.contrast = Contrast.of(self.answers, self.wrong)
        length = task.clean.shape[1]
        contexts = model.contexts(length)
        with torch.no_grad():
            clean = self._trace(model.embed(task.clean), contexts)
            replacing = None
            if writes is None:
                embedded = model.embed(prompts)
                replacing = self._trace(embedded if added is None else embedded + added, contexts)
                writes = Writes(replacing.embedded, replacing.heads, replacing.mlps)
                self.start = _first_change(task, (clean.embedded != replacing.embedded).any(-1))
            else:
                self.start = 0
            self.answer = task.positions.to(model.device) - self.start
            self.rows = torch.arange(len(task), device=model.device)
            self.contexts = tuple(_tail(context, self.start) for context in contexts)
            self.answer_contexts = tuple(context.queries(self.answer[:, None]) for context in self.contexts)
            self.clean = _cut(clean, self.start)
            self.replacement = writes.map(lambda value: value[..., self.start :, :]) if self.start else writes
            self.base = self._base()
            self.clean_log_probs: Tensor | None = None
            final = self.at_answer(self.clean.final)[..., 0, :]
            if metric.needs_clean:
                self.clean_log_probs = torch.log_softmax(model.readout.logits(final).double(), dim=-1)
            self.clean_metric = self.measure(final)
            self._replaced = None if replacing is None else _cut(replacing, self.start)

    def with_constants(self, constants: Writes) -> Batch:
        """The same batch with other replacements that every prompt shares; gradients flow to them."""
        other = copy(self)
        for made in ("kept", "ablated"):
            other.__dict__.pop(made, None)
        other.replacement, other._replaced = constants, None
        other.base = other._base()
        return other

    def subset(self, rows: slice) -> Batch:
        """Some of the prompts, with views of the same stored values; nothing is run."""

        def part(value: Tensor) -> Tensor:
            return value if value.shape[-3] == 1 else value[..., rows, :, :]

        other = copy(self)
        for made in ("kept", "ablated"):
            other.__dict__.pop(made, None)
        other.task = self.task.subset(rows)
        other.answers, other.wrong, other.answer = self.answers[rows], self.wrong[rows], self.answer[rows]
        other.contrast = Contrast.of(other.answers, other.wrong)
        other.rows = torch.arange(len(other.task), device=self.model.device)
        other.answer_contexts = tuple(context.queries(other.answer[:, None]) for context in self.contexts)
        other.clean, other.replacement = _mapped(self.clean, part), self.replacement.map(part)
        other.base = [part(value) for value in self.base]
        other.clean_log_probs = None if self.clean_log_probs is None else self.clean_log_probs[rows]
        other.clean_metric = self.clean_metric[rows]
        other._replaced = None if self._replaced is None else _mapped(self._replaced, part)
        return other

    def _trace(self, embedded: Tensor, contexts: tuple[Context, ...]) -> Trace:
        return forward(self.model.blocks, embedded, contexts, parallel=self.model.architecture.parallel)

    def _base(self) -> list[Tensor]:
        total = self.replacement.embedded
        rows: list[Tensor] = []
        for layer, block in enumerate(self.model.blocks):
            rows.append(total)
            heads = block.attention.write(self.replacement.heads[layer]).sum(0)
            after = total + heads
            if block.mlp is not None:
                rows.append(total if self.model.architecture.parallel else after)
                after = after + self.replacement.mlps[layer]
            total = after
        rows.append(total)
        constants = self.model.bias_prefix
        if self.model.architecture.has_mlp:
            picked = constants
        else:
            picked = constants[[*range(0, 2 * len(self.model.blocks), 2), -1]]
        return [row + constant for row, constant in zip(rows, picked, strict=True)]

    def at_answer(self, value: Float[Tensor, "*batch #example pos width"]) -> Float[Tensor, "*batch _ 1 width"]:
        """A value at each prompt's answer position."""
        if value.shape[-2] == 1:
            return value
        if value.shape[-3] != len(self.answer):
            value = value.expand(*value.shape[:-3], len(self.answer), *value.shape[-2:])
        return value[..., self.rows, self.answer, :].unsqueeze(-2)

    def measure(self, residual: Float[Tensor, "*sample example d_model"]) -> Float[Tensor, "*sample example"]:
        """The metric of final residuals at the answer positions."""
        prediction = Prediction(
            residual, self.model.readout, self.answers, self.wrong, self.clean_log_probs, self.contrast
        )
        return self.metric(prediction)

    @cached_property
    def kept(self) -> State:
        """`ones`, shared: to be looked from, never moved."""
        return self.ones()

    @cached_property
    def ablated(self) -> State:
        """`zeros`, shared: to be looked from, never moved."""
        return self.zeros()

    def ones(self) -> State:
        """The state in which every edge carries its own value: the clean run."""
        visible = np.array(self.planner.graph.n_visible)[:, None]
        mask = (np.arange(self.planner.n_sources) < visible).astype(self.mask_dtype)
        return State(self, mask, self.clean, self.clean_metric)

    def zeros(self) -> State:
        """The state in which every edge carries its replacement."""
        if self._replaced is None:
            self._replaced = self._all_off()
        final = self.at_answer(self.base[-1]).expand(len(self.answer), 1, -1)[:, 0]
        shape = (self.planner.n_targets, self.planner.n_sources)
        return State(self, np.zeros(shape, dtype=self.mask_dtype), self._replaced, self.measure(final))

    @property
    def mask_dtype(self) -> type[np.floating]:
        """Precise enough for the model's."""
        return np.float64 if self.model.dtype == torch.float64 else np.float32

    @torch.no_grad()
    def _all_off(self) -> Trace:
        """What every node computes when all it reads is replacements."""
        model, stages = self.model, iter(range(len(self.base)))
        examples, positions = self.clean.embedded.shape[:2]
        q: list[Tensor] = []
        k: list[Tensor] = []
        v: list[Tensor] = []
        heads: list[Tensor] = []
        mlps: list[Tensor] = []
        for layer, block in enumerate(model.blocks):
            context, attention = self.contexts[layer], block.attention
            x = self.base[next(stages)].expand(examples, positions, -1)
            normed = block.attention_norm(x).unsqueeze(0)
            parts = {s: attention.place(s, attention.project(s, normed), context.rope) for s in "qkv"}
            repeats = parts["q"].shape[0] // parts["k"].shape[0]
            keys, values = (parts[s].repeat_interleave(repeats, dim=0) for s in "kv")
            heads.append(attention.share(attention.attend(parts["q"], keys, values, context.bias)))
            for kept, letter in ((q, "q"), (k, "k"), (v, "v")):
                kept.append(parts[letter])
            if block.mlp is not None:
                x = self.base[next(stages)].expand(examples, positions, -1)
                mlps.append(block.mlp(block.mlp_norm(x)))
        embedded = self.replacement.embedded.expand(examples, positions, -1)
        return Trace(embedded, q, k, v, heads, mlps, [], [], [], [], self.base[-1].expand(examples, positions, -1))

    def difference(self, layer: int | None, kind: str, new: Tensor, index: Tensor | None, lane: int) -> Tensor:
        """Rows ``new - replacement`` in the residual stream: [*sample, source, example, pos, d_model]."""
        if kind == "input":
            old = self.replacement.embedded
            return (new - (self.at_answer(old) if lane == ANSWER else old)).unsqueeze(-4)
        assert layer is not None
        if kind == "mlp":
            old = self.replacement.mlps[layer]
            return (new - (self.at_answer(old) if lane == ANSWER else old)).unsqueeze(-4)
        old = self.replacement.heads[layer]
        old = old if index is None else old[index]
        return self.model.blocks[layer].attention.write(new - (self.at_answer(old) if lane == ANSWER else old), index)


SumKey = tuple[int, int, tuple[int, ...], bytes]  # stage, lane, shape and bytes of the mask entries


class State:
    """Values of every node under one mask: what later masks are evaluated against.

    The engine's one mutable object; `Trial.accept` moves it. Tensors are shared with the batch until first written.
    """

    def __init__(self, batch: Batch, mask: np.ndarray, values: Trace, metric: Tensor) -> None:
        self.batch, self.mask, self.metric = batch, mask, metric
        self.values: dict[str, list[Tensor]] = {
            "q": list(values.q), "k": list(values.k), "v": list(values.v),
            "heads": list(values.heads), "mlps": list(values.mlps),
        }  # fmt: skip
        self.embedded = batch.clean.embedded  # the input reads nothing: under any mask it is the clean one
        self.need_sources = np.full(batch.planner.n_sources, FULL, dtype=np.int8)
        self.need_targets = np.full(batch.planner.n_targets, FULL, dtype=np.int8)
        self._owned: set[tuple[str, int]] = set()
        self._buffers: dict[int, Tensor] = {}
        self._known: dict[int, np.ndarray] = {}
        self._sums: dict[SumKey, Tensor] = {}
        self._sums_dirty, self._sums_bytes = b"", 0

    def sums(self, dirty: np.ndarray) -> dict[SumKey, Tensor]:
        """Partial inputs over sources that are not dirty: valid for as long as the same sources are."""
        if dirty.tobytes() != self._sums_dirty:
            self._sums, self._sums_dirty, self._sums_bytes = {}, dirty.tobytes(), 0
        return self._sums

    def keep_sum(self, key: SumKey, value: Tensor) -> None:
        """Add to `sums`, unless that exceeds the budget."""
        if self._sums_bytes + value.nbytes <= self.batch.row_bytes:
            self._sums[key] = value
            self._sums_bytes += value.nbytes

    def rows(self, sources: np.ndarray, lane: int) -> Float[Tensor, "source example pos d_model"]:
        """Differences from the replacement of some sources (ascending), kept once computed if the budget allows.

        Where many are asked for, the rows of all sources come instead, since gathering costs more than adding zeros;
        rows not asked for may be out of date.
        """
        if not self._holds(lane):
            return torch.cat([rows for _members, rows in self._computed(sources.tolist(), lane)])
        buffer, known = self._buffers[lane], self._known[lane]
        if not known[sources].all():
            for members, rows in self._computed(sources[~known[sources]].tolist(), lane):
                buffer[members[0] : members[0] + len(members)] = rows
                known[members] = True
        if len(sources) == 1 + sources[-1] - sources[0]:
            return buffer[sources[0] : sources[-1] + 1]
        if 3 * len(sources) > sources[-1]:
            return buffer
        return buffer[torch.from_numpy(sources).to(buffer.device)]

    def _holds(self, lane: int) -> bool:
        """Make room for the rows of all sources, unless that exceeds the budget."""
        if lane not in self._buffers:
            like = self._view(self.embedded, lane)
            count = self.batch.planner.n_sources
            if count * like.nbytes > self.batch.row_bytes:
                return False
            self._known[lane] = np.zeros(count, dtype=bool)
            self._buffers[lane] = like.new_zeros((count, *like.shape))
        return True

    def _computed(self, sources: list[int], lane: int) -> Iterator[tuple[list[int], Tensor]]:
        """Rows of some sources, in runs of adjacent sources of one stage."""
        for stage, members in self._by_stage(sources):
            if stage is None:
                yield (
                    members,
                    self.batch.difference(None, "input", self._view(self.embedded, lane), None, lane),
                )
            elif stage.kind == "mlp":
                value = self._view(self.values["mlps"][stage.layer], lane)
                yield members, self.batch.difference(stage.layer, "mlp", value, None, lane)
            else:
                index = torch.tensor([source - stage.sources.start for source in members], device=self.embedded.device)
                value = self._view(self.values["heads"][stage.layer][index], lane)
                rows = self.batch.difference(stage.layer, "heads", value, index, lane)
                for start, stop in _runs(members):
                    yield members[start:stop], rows[start:stop]

    def _by_stage(self, sources: list[int]) -> list[tuple[Stage | None, list[int]]]:
        grouped: list[tuple[Stage | None, list[int]]] = [(None, [0])] if 0 in sources else []
        for stage in self.batch.planner.stages:
            members = [source for source in sources if stage.sources.start <= source < stage.sources.stop]
            if members:
                grouped.append((stage, members))
        return grouped

    def _view(self, value: Tensor, lane: int) -> Tensor:
        return self.batch.at_answer(value) if lane == ANSWER else value

    def own(self, name: str, layer: int) -> Tensor:
        """The stored values of a layer, safe to write into."""
        store = self.values[name]
        if (name, layer) not in self._owned:
            store[layer] = store[layer].clone()
            self._owned.add((name, layer))
        return store[layer]

    def settle(self, mask: np.ndarray, metric: Tensor, plan: Plan) -> None:
        """Record that the stored values are now those under ``mask``, as computed by ``plan``."""
        for known in self._known.values():
            known[plan.dirty_sources] = False
        self.sums(plan.dirty_sources)
        self.mask, self.metric = mask, metric
        self.need_sources = np.minimum(self.need_sources, plan.need_sources)
        self.need_targets = np.minimum(self.need_targets, plan.need_targets)

    def in_batches_of(self, size: int) -> Iterator[State]:
        """The state, some prompts at a time, to be looked from: values are shared as far as they are stored."""
        count = len(self.batch.task)
        if size >= count:
            yield self
            return
        for low in range(0, count, size):
            rows = slice(low, low + size)
            other = copy(self)
            other.batch, other.metric = self.batch.subset(rows), self.metric[rows]
            other.embedded = other.batch.clean.embedded
            other.values = {name: [value[..., rows, :, :] for value in part] for name, part in self.values.items()}
            other._owned, other._buffers, other._known, other._sums = set(), {}, {}, {}
            other._sums_dirty, other._sums_bytes = b"", 0
            yield other

    def covers(self, plan: Plan) -> bool:
        """Whether every stored value that the plan relies on is known wherever the plan needs it."""
        return bool((plan.need_sources <= self.need_sources).all() and (plan.need_targets <= self.need_targets).all())


Update = tuple[str, int, Tensor | None, int, Tensor]


@dataclass
class Trial:
    """The metric under some masks, and the values that differ from the state they were evaluated against."""

    state: State
    masks: np.ndarray
    plan: Plan
    metric: Float[Tensor, "sample example"]
    updates: list[Update] = field(default_factory=list)

    def accept(self, sample: int) -> State:
        """Move the state to one of the masks, and return it."""
        state, batch = self.state, self.state.batch
        for name, layer, *_ in self.updates:
            state.own(name, layer)  # takes memory: where there is none, the state is still the one it was
        for name, layer, index, lane, tensor in self.updates:
            whole = state.own(name, layer)
            new = tensor[sample if tensor.shape[0] > 1 else 0]
            if lane == ANSWER:
                place = (batch.rows, batch.answer) if index is None else (index[:, None], batch.rows, batch.answer)
                whole[place] = new.squeeze(-2)
            elif index is None:
                whole[:] = new
            else:
                whole[index, :, whole.shape[2] - new.shape[2] :] = new
        state.settle(self.masks[sample].copy(), self.metric[sample], self.plan)
        return state


@dataclass
class Lane:
    """New rows at one set of positions, in the order in which they were computed."""

    samples: int
    capacity: int
    grad: bool
    columns: list[int] = field(default_factory=list)
    buffer: Tensor | None = None
    parts: list[Tensor] = field(default_factory=list)

    def append(self, columns: list[int], rows: Tensor) -> None:
        """Add rows [sample, source, example, pos, d_model]; one buffer for all unless gradients must flow."""
        if self.grad:
            self.parts.append(rows)
        else:
            if self.buffer is None:
                self.buffer = rows.new_empty((self.samples, self.capacity, *rows.shape[2:]))
            self.buffer[:, len(self.columns) : len(self.columns) + len(columns)] = rows
        self.columns.extend(columns)

    def first(self, count: int) -> Tensor:
        """The first rows."""
        if self.buffer is not None:
            return self.buffer[:, :count]
        return torch.cat(self.parts, dim=1)[:, :count]


class Evaluation:
    """One pass over the stages for a chunk of masks. Use `evaluate` or `slopes`.

    Args:
        tensor: the masks as a tensor that gradients flow to.
        keep: collect the new values in ``updates``.
        leaf_stage: number of the stage whose inputs become leaves of the autograd graph, collected in ``leaves``.
    """

    def __init__(
        self,
        state: State,
        masks: np.ndarray,
        plan: Plan,
        *,
        tensor: Tensor | None = None,
        keep: bool = False,
        leaf_stage: int | None = None,
    ) -> None:
        self.state, self.batch, self.masks, self.plan, self.tensor = state, state.batch, masks, plan, tensor
        self.leaf_stage = leaf_stage
        self.leaves: list[tuple[np.ndarray, int, Tensor]] = []  # targets, lane, inputs [target, example, pos, d_model]
        self.grad = tensor is not None or leaf_stage is not None
        self.model = self.batch.model
        self.planner = self.batch.planner
        self.samples = len(masks)
        self.positional = masks.ndim == 4
        self.varied = (masks[1:] != masks[:1]).any(axis=tuple({*range(masks.ndim - 2), masks.ndim - 1}))
        self.sums = state.sums(plan.dirty_sources)
        everywhere = plan.dirty_sources & (plan.need_sources == FULL)
        self.lanes = {
            FULL: Lane(len(masks), int(everywhere.sum()), self.grad),
            ANSWER: Lane(len(masks), int(plan.dirty_sources.sum()), self.grad),
        }
        self.keep = keep
        self.updates: list[Update] = []
        if tensor is not None:  # the input reads nothing, yet its edges have gradients
            for lane in (FULL, ANSWER):
                row = self.state.rows(np.array([0]), lane)[None]
                self.lanes[lane].append([0], row.expand(self.samples, *row.shape[1:]))

    def run(self) -> Float[Tensor, "sample example"]:
        """The metric of every mask."""
        for number, stage in enumerate(self.planner.stages):
            dirty = self.plan.dirty_targets[stage.targets]
            if stage.kind == "logits":
                if not dirty.any():
                    return self.state.metric.expand(self.samples, -1)
                x, _ = self.mix(number, stage, np.array([stage.targets.start]), ANSWER)
                return self.batch.measure(x[:, 0, :, 0]).expand(self.samples, -1)
            if stage.kind == "mlp":
                if dirty.any():
                    self.mlp(number, stage)
            elif self.plan.dirty_sources[stage.sources].any():
                self.attention(number, stage)
        raise AssertionError("the last stage is the logits")

    def mix(
        self, number: int, stage: Stage, targets: np.ndarray, lane: int
    ) -> tuple[Float[Tensor, "sample unique example pos d_model"], np.ndarray]:
        """The inputs of some targets of a stage, once for every distinct row of the mask.

        Returns the inputs and which input each target reads.
        """
        wanted = targets
        masks = self.masks if self.varied[targets].any() else self.masks[:1]
        entries = masks[..., targets, : stage.visible]
        chosen, which = (np.arange(len(targets)),) * 2 if self.tensor is not None else _distinct(entries)
        targets, entries = targets[chosen], entries[..., chosen, :]
        base = self.batch.base[number]
        base = self.batch.at_answer(base) if lane == ANSWER else base
        shape = (
            len(self.batch.answer),
            1 if lane == ANSWER else self.batch.clean.embedded.shape[1],
            base.shape[-1],
        )
        total = base.expand(shape)[None, None]
        if self.tensor is None:
            total = self.add_fixed(total, number, stage, entries, lane)
        fresh = [column for column in self.lanes[lane].columns if column < stage.visible]
        if fresh:
            rows = self.lanes[lane].first(len(fresh))
            total = self.weigh(total, self.fresh_entries(targets, fresh, rows), rows, lane)
        if number != self.leaf_stage:
            return total, which
        total = total.detach()[:, torch.from_numpy(which).to(total.device)].requires_grad_(True)
        self.leaves.append((wanted, lane, total))
        return total, np.arange(len(which))

    def add_fixed(self, start: Tensor, number: int, stage: Stage, entries: np.ndarray, lane: int) -> Tensor:
        """``start`` plus what comes through edges that are on from sources that keep their stored values."""
        on = (entries != 0).any(axis=tuple(range(entries.ndim - 1)))
        on &= ~self.plan.dirty_sources[: stage.visible]
        columns = np.flatnonzero(on)
        if not len(columns):
            return start
        key = (number, lane, entries.shape, entries.tobytes()) if len(entries) == 1 else None
        if key in self.sums:
            return self.sums[key]
        rows = self.state.rows(columns, lane)
        # Where all rows came instead of these, the others count 0 times.
        entries = np.where(on, entries, 0) if len(rows) > len(columns) else entries[..., columns]
        total = self.weigh(start, torch.from_numpy(entries).to(rows), rows[None, : entries.shape[-1]], lane)
        if key is not None:
            self.state.keep_sum(key, total)
        return total

    def weigh(self, start: Tensor, entries: Tensor, rows: Tensor, lane: int) -> Tensor:
        """``start`` plus mask-weighted sums of rows: [sample (or 1), target, example, pos, d_model]."""
        sizes = rows.shape[2:]
        count = rows.shape[1]
        if self.positional:
            pattern, weights = ("npts", entries) if lane == FULL else ("nbts", entries[:, self.batch.answer])
            return start + torch.einsum(f"{pattern},nsbpd->ntbpd", weights, rows.expand(len(weights), *rows.shape[1:]))
        if rows.shape[0] == 1:
            rows = rows.expand(len(entries), *rows.shape[1:])
        made = (len(entries), entries.shape[-2], *sizes)
        flat = start.expand(made).reshape(*made[:2], -1)
        return torch.baddbmm(flat, entries, rows.reshape(len(entries), count, -1)).reshape(made)

    def fresh_entries(self, targets: np.ndarray, columns: list[int], like: Tensor) -> Tensor:
        """Mask entries of some targets for the newly computed rows."""
        if self.tensor is not None:
            return self.tensor[..., torch.from_numpy(targets)[:, None], torch.tensor(columns)].to(like)
        return torch.from_numpy(self.masks[..., targets[:, None], columns]).to(like)

    def mlp(self, number: int, stage: Stage) -> None:
        """Recompute one MLP."""
        lane = int(self.plan.need_sources[stage.sources][0])
        block = self.model.blocks[stage.layer]
        assert block.mlp is not None
        x, _ = self.mix(number, stage, np.array([stage.targets.start]), lane)
        written = block.mlp(block.mlp_norm(x[:, 0]))
        self.remember("mlps", stage.layer, None, lane, written)
        self.write(stage, "mlp", [stage.sources.start], None, lane, written)

    def attention(self, number: int, stage: Stage) -> None:
        """Recompute the dirty heads of one attention layer, those needed everywhere and those at the answer."""
        plan, layer = self.plan, stage.layer
        heads = np.flatnonzero(plan.dirty_sources[stage.sources])
        need = plan.need_sources[stage.sources]
        groups = np.unique(self.planner.groups(heads))
        queries, keys, values = self.planner.ports(stage)
        dirty = {
            letter: plan.dirty_targets[ports] for letter, ports in zip("qkv", (queries, keys, values), strict=True)
        }
        everywhere = heads[need[heads] == FULL]
        wanted = {
            "q": everywhere[dirty["q"][everywhere]],
            "k": groups[dirty["k"][groups]],
            "v": groups[dirty["v"][groups]],
        }
        new = self.project(number, stage, wanted, FULL)
        k, v = (self.merged(letter, layer, groups, wanted[letter], new.get(letter)) for letter in "kv")
        for lane in (FULL, ANSWER):
            members = heads[need[heads] == lane]
            if not len(members):
                continue
            if lane == ANSWER:
                wanted["q"] = members[dirty["q"][members]]
                new = self.project(number, stage, {"q": wanted["q"]}, ANSWER)
            q = self.merged("q", layer, members, wanted["q"], new.get("q"), lane=lane)
            place = np.searchsorted(groups, self.planner.groups(members))
            whole = len(place) == len(groups) and (place == np.arange(len(groups))).all()
            index = torch.from_numpy(place).to(self.model.device)
            head_k, head_v = (k, v) if whole else (k[:, index], v[:, index])
            self.attend(stage, members, lane, q, head_k, head_v)

    def attend(self, stage: Stage, heads: np.ndarray, lane: int, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Compute z of some heads, remembered and added to the rows."""
        attention = self.model.blocks[stage.layer].attention
        contexts = self.batch.answer_contexts if lane == ANSWER else self.batch.contexts
        z = attention.share(attention.attend(q, k, v, contexts[stage.layer].bias))
        index = torch.from_numpy(heads).to(self.model.device)
        self.remember("heads", stage.layer, index, lane, z)
        whole = None if len(heads) == self.planner.n_heads else index
        self.write(stage, "heads", [int(head) + stage.sources.start for head in heads], whole, lane, z)

    def project(
        self, number: int, stage: Stage, wanted: dict[str, np.ndarray], lane: int
    ) -> dict[str, Float[Tensor, "sample head example pos d_head"]]:
        """New q, k and v of some heads (groups for k and v), as the scores use them."""
        starts = dict(zip("qkv", (ports.start for ports in self.planner.ports(stage)), strict=True))
        targets = np.concatenate([starts[letter] + members for letter, members in wanted.items()])
        if not len(targets):
            return {}
        block = self.model.blocks[stage.layer]
        x, which = self.mix(number, stage, targets, lane)
        normed = block.attention_norm(x)
        contexts = self.batch.answer_contexts if lane == ANSWER else self.batch.contexts
        made: dict[str, Tensor] = {}
        done = 0
        for letter, members in wanted.items():
            if len(members):
                size = block.attention.weights[letter].shape[0]
                index = None if len(members) == size else torch.from_numpy(members).to(x.device)
                own = slice(done, done + len(members))
                raw = block.attention.project(letter, _reads(normed, which, own), index)
                made[letter] = block.attention.place(letter, raw, contexts[stage.layer].rope)
                self.remember(letter, stage.layer, torch.from_numpy(members).to(x.device), lane, made[letter])
            done += len(members)
        return made

    def merged(
        self,
        letter: str,
        layer: int,
        members: np.ndarray,
        fresh: np.ndarray,
        new: Tensor | None,
        *,
        lane: int = FULL,
    ) -> Tensor:
        """q, k or v of some heads: new where there is one, else as stored. Keys and values span all positions."""
        stored = self.state.values[letter][layer]
        prefix = self.batch.start if letter != "q" else 0
        if new is not None and len(fresh) == len(members) and not prefix:
            return new
        old = stored[torch.from_numpy(members).to(stored.device)]
        old = self.batch.at_answer(old) if lane == ANSWER else old
        if new is None:
            return old.unsqueeze(0)
        place = torch.from_numpy(np.searchsorted(members, fresh)).to(stored.device)
        if self.tensor is not None:  # only the prefix is old: autograd forbids writing into it
            return torch.cat((old[..., :prefix, :].expand(new.shape[0], *old[..., :prefix, :].shape), new), dim=-2)
        merged = old.expand(new.shape[0], *old.shape).clone()
        merged[:, place, :, prefix:] = new
        return merged

    def remember(self, name: str, layer: int, index: Tensor | None, lane: int, value: Tensor) -> None:
        """Keep a new value for `Trial.accept`."""
        if self.keep:
            self.updates.append((name, layer, index, lane, value))

    def write(
        self, stage: Stage, kind: str, columns: list[int], index: Tensor | None, lane: int, value: Tensor
    ) -> None:
        """Turn new values into rows of the residual stream."""
        rows = self.batch.difference(stage.layer, kind, value, index, lane)
        if lane == FULL:
            self.lanes[FULL].append(columns, rows)
            rows = self.batch.at_answer(rows)
        self.lanes[ANSWER].append(columns, rows)


def evaluate(state: State, masks: np.ndarray, *, keep: bool = False, tensor: Tensor | None = None) -> Trial:
    """The metric under some masks, computing only what they change relative to a state.

    Args:
        state: of the same batch.
        masks: [sample, target, source] or [sample, pos, target, source].
        keep: keep the new values, so that one of the masks can be accepted.
        tensor: the same masks as a tensor that gradients flow to; then every node is computed.
    """
    reduced = tuple(range(masks.ndim - 2))
    if tensor is not None:
        everything = np.ones(masks.shape[-2:], dtype=bool)
        plan = state.batch.planner.plan(everything, everything)
        return Trial(state, masks, plan, Evaluation(state, masks, plan, tensor=tensor).run())
    before = state.mask if state.mask.ndim == masks.ndim - 1 else state.mask[None]
    on, changed = (masks != 0).any(reduced), (masks != before).any(reduced)
    plan = state.batch.planner.plan(on, changed)
    if not state.covers(plan):
        state = state.batch.zeros()  # moved by `Trial.accept`, so not the shared one
        plan = state.batch.planner.plan(on, on)
    with torch.no_grad():
        evaluation = Evaluation(state, masks, plan, keep=keep)
        return Trial(state, masks, plan, evaluation.run(), evaluation.updates)


def slopes(state: State, number: int, *, positional: bool = False) -> Float[np.ndarray, "*pos target source"]:
    """Gradient of the summed metric with respect to the mask entries of the edges into one stage's ports.

    ``d metric / d mask[t, s] = Σ_example,pos (d metric / d x_t) · (current_s - replacement_s)`` at the state's own
    mask; with ``positional`` one entry for each position that the batch computes instead of their sum. Entries of
    edges that are off, or that the logits do not see, are 0. Cost: one evaluation of what follows the stage, forward
    and backward.
    """
    stage, mask = state.batch.planner.stages[number], state.mask
    length = state.embedded.shape[-2]
    if positional and mask.ndim == 2:
        mask = np.broadcast_to(mask, (length, *mask.shape))
    everywhere = mask != 0
    on = everywhere.any(0) if mask.ndim == 3 else everywhere
    changed = np.zeros_like(on)
    changed[stage.targets] = True
    plan = state.batch.planner.plan(on, changed)
    result = np.zeros(mask.shape)
    if not plan.dirty_targets[stage.targets].any():
        return result
    evaluation = Evaluation(state, mask[None], plan, leaf_stage=number)
    with torch.enable_grad():
        metric = evaluation.run().sum()
    leaves = [leaf for _targets, _lane, leaf in evaluation.leaves]
    for (targets, lane, _leaf), gradient in zip(evaluation.leaves, torch.autograd.grad(metric, leaves), strict=True):
        columns = np.flatnonzero(on[targets].any(0))
        rows = state.rows(columns, lane)
        rows = rows[torch.from_numpy(columns)] if len(rows) > len(columns) else rows
        rows = rows.expand(-1, *gradient.shape[2:])
        place = (targets[:, None], columns)
        if not positional:
            result[place] = torch.einsum("tbpd,sbpd->ts", gradient[0], rows).double().cpu().numpy()
        elif lane == FULL:
            result[:, *place] = torch.einsum("tbpd,sbpd->pts", gradient[0], rows).double().cpu().numpy()
        else:
            each = torch.einsum("tbpd,sbpd->bts", gradient[0], rows).double()
            summed = each.new_zeros(length, *each.shape[1:]).index_add_(0, state.batch.answer, each)
            result[:, *place] = summed.cpu().numpy()
    return np.where(everywhere, result, 0.0)


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Slices of an ascending list within which numbers are adjacent."""
    breaks = [i for i in range(1, len(numbers)) if numbers[i] != numbers[i - 1] + 1]
    return list(pairwise([0, *breaks, len(numbers)]))


def _reads(x: Float[Tensor, "sample unique *rest"], which: np.ndarray, own: slice) -> Tensor:
    """The input of each of some readers, or the one input that they share, without copying where possible."""
    wanted = which[own]
    if (np.diff(wanted) == 1).all():
        return x[:, wanted[0] : wanted[-1] + 1]
    if (wanted == wanted[0]).all():
        return x[:, wanted[:1]]
    return x.index_select(1, torch.from_numpy(wanted).to(x.device))


def _distinct(entries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct rows along the second last axis: their first indices, and which one each row equals."""
    if entries.shape[-2] == 1:
        return np.array([0]), np.array([0])
    rows = np.ascontiguousarray(np.moveaxis(entries, -2, 0)).reshape(entries.shape[-2], -1)
    seen: dict[bytes, int] = {}
    which = np.array([seen.setdefault(row.tobytes(), len(seen)) for row in rows])
    first = np.array([int(np.argmax(which == value)) for value in range(len(seen))])
    return first, which


def _first_change(task: Task, different: Bool[Tensor, "example pos"]) -> int:
    """The first position at which any prompt differs from the run that replaces it, at most an answer position."""
    places = different.any(0).nonzero().flatten()
    first = int(places[0]) if len(places) else task.clean.shape[1]
    return min(first, int(task.positions.min()))


def _tail(context: Context, start: int) -> Context:
    length = context.bias.shape[-1]
    return context.queries(torch.arange(start, length, device=context.bias.device)) if start else context


def _cut(trace: Trace, start: int) -> Trace:
    """A trace from some position on; keys and values stay whole, and what only gradients need is dropped."""
    tail = [[value[..., start:, :] for value in part] for part in (trace.q, trace.heads, trace.mlps)]
    return Trace(
        trace.embedded[:, start:],
        tail[0],
        trace.k,
        trace.v,
        tail[1],
        tail[2],
        [],
        [],
        [],
        [],
        trace.final[:, start:],
    )


def _mapped(trace: Trace, function: Callable[[Tensor], Tensor]) -> Trace:
    """A trace with a function applied to every value, without what only gradients need."""
    lists = (trace.q, trace.k, trace.v, trace.heads, trace.mlps)
    q, k, v, heads, mlps = ([function(value) for value in part] for part in lists)
    return Trace(function(trace.embedded), q, k, v, heads, mlps, [], [], [], [], function(trace.final))
