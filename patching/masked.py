"""The one engine call: the task metric of each prompt when some edges carry replacements.

    run(mask)[sample, example] = metric when every edge with mask 1 carries its own current value
                                 and every edge with mask 0 carries its replacement

Every method of the project is a few lines on top of this. `engine` computes it, `plan` decides what to recompute;
here masks are checked, spread over batches and samples under a byte budget, and put together again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from graphs.circuit import Circuit
from graphs.components import ComponentGraph
from graphs.nodes import Edge, Node
from patching import ablations, metrics
from patching.ablations import Ablation
from patching.chunks import Chunks, check_memory, with_fewer_prompts
from patching.engine import Batch, State, Trial, Writes, evaluate, slopes
from patching.errors import InvalidMask, InvalidOption, InvalidTask
from patching.lens import LensModel
from patching.metrics import Metric
from patching.plan import Planner
from patching.scores import neurons
from patching.task import Task

if TYPE_CHECKING:
    from patching.component_run import ComponentRun

DEFAULT_BYTES = 512 << 20
"""The same everywhere, since rounding depends on the shape of a batch; see `chunks`."""


class MaskedRun:
    """A model on a task, ready to be run under masks.

    Making one costs a clean and a corrupt forward. Masks are vectors over `units`: the edges of the model
    (default), or its nodes (`nodes()`), optionally at every position (`positions()`).

    Args:
        model: the model.
        task: prompts and answers.
        ablation: what an edge with mask 0 carries; a name from `ablations.ABLATIONS` or an `Ablation`.
        metric: a name from `metrics.METRICS` or a `Metric`; the task's own by default.
        memory: bytes that one call may use beyond what is stored; samples and prompts are chunked to fit, and chunks
            halved where there is less (see `chunks`).

    Raises:
        InvalidOption: an unknown ablation or metric, or a budget that is no number of bytes.
        OutOfMemory: a single mask or prompt does not fit into the memory that there is.

    Example:
        >>> from patching import toy
        >>> run = MaskedRun(toy.model(), toy.task())
        >>> mask = run.ones()
        >>> bool((run(mask) == run.clean_metric).all())
        True
    """

    def __init__(
        self,
        model: LensModel,
        task: Task,
        *,
        ablation: str | Ablation = "corrupt",
        metric: str | Metric | None = None,
        memory: int = DEFAULT_BYTES,
    ) -> None:
        check_memory(memory)
        self.model, self.task, self.memory = model, task, memory
        self.mask_chunks, self.prompt_chunks = Chunks("masks", model.device), Chunks("prompts", model.device)
        self.ablation = ablations.get(ablation)
        self.metric = metrics.get(task.metric if metric is None else metric)
        self.graph: ComponentGraph = model.graph
        self.level = "edge"
        self.per_position = False
        check_tokens(model, task)
        joined = any(block.attention.post is not None for block in model.blocks)
        self.planner = Planner(self.graph, joined=joined)
        self._finer: tuple[int, tuple[Batch, ...], tuple[Batch, ...]] | None = None
        size = max(1, min(len(self.task), self.memory // max(1, self._bytes(1))))
        self.batches = self.prompt_chunks.fit(size, self._made)
        self.batch_size = self.largest_batch

    def _made(self, size: int) -> tuple[Batch, ...]:
        """The prompts in batches of some size."""
        prompts = self.ablation.prompts(self.task)
        rows = [slice(start, start + size) for start in range(0, len(self.task), size)]
        writes = None if self.ablation.is_run else self._constants(prompts, rows)
        added = self.ablation.disturbance(self.model, self.task)
        return tuple(
            Batch(
                self.model,
                self.planner,
                self.task.subset(row),
                metric=self.metric,
                prompts=prompts[row],
                writes=writes,
                added=None if added is None else added[row],
                row_bytes=self.memory,
            )
            for row in rows
        )

    @property
    def largest_batch(self) -> int:
        """How many prompts the largest batch has."""
        return max(len(batch.task) for batch in self.batches)

    def in_batches_of(self, size: int) -> MaskedRun:
        """The same run with its prompts in batches of at most some size, which share what is stored. Nothing is run.

        Values are the same but for rounding.

        Example:
            >>> from patching import toy
            >>> run = MaskedRun(toy.model(), toy.task())
            >>> [len(batch.task) for batch in run.in_batches_of(3).batches]
            [3, 1]
        """
        if self._finer is None or self._finer[:2] != (size, self.batches):
            pieces = (
                batch.subset(slice(low, low + size)) if len(batch.task) > size else batch
                for batch in self.batches
                for low in range(0, len(batch.task), size)
            )
            self._finer = (size, self.batches, tuple(pieces))
        return self._view(batches=self._finer[2], batch_size=min(size, self.batch_size), _finer=None)

    @torch.no_grad()
    def _constants(self, prompts: Tensor, rows: list[slice]) -> Writes:
        """Replacements that are the same for all prompts: given, or pooled over them (means, zero)."""
        from patching.blocks import forward

        given, combine = self.ablation.constants, self.ablation.combine
        if given is not None:
            return given.map(lambda value: value.to(self.model.device, self.model.dtype))
        assert combine is not None
        contexts = self.model.contexts(prompts.shape[1])
        parallel = self.model.architecture.parallel
        weights = self.ablation.weights(self.task).to(self.model.device)
        runs: list[Writes] = []
        for row in rows:
            trace = forward(self.model.blocks, self.model.embed(prompts[row]), contexts, parallel=parallel)
            runs.append(Writes(trace.embedded, trace.heads, trace.mlps))
        join = [torch.cat(parts, dim=-3) for parts in zip(*(_flat(run) for run in runs), strict=True)]
        layers = len(self.model.blocks)
        return Writes(join[0], join[1 : 1 + layers], join[1 + layers :]).map(lambda value: combine(value, weights))

    # --- units -----------------------------------------------------------------------------------------------------

    @property
    def units(self) -> tuple[Edge, ...] | tuple[Node, ...]:
        """What the last axis of a mask stands for."""
        if self.level == "neuron":
            return neurons(self.graph.architecture, self.n_units)
        return self.graph.edges if self.level == "edge" else self.graph.sources

    @property
    def n_units(self) -> int:
        """How many there are."""
        if self.level == "neuron":
            return sum(block.mlp.w_in.shape[0] for block in self.model.blocks if block.mlp is not None)
        return self.graph.n_edges if self.level == "edge" else len(self.graph.sources)

    def nodes(self) -> MaskedRun:
        """The same run with masks over nodes: one value per source, for all its outgoing edges."""
        return self._view(level="node")

    def edges(self) -> MaskedRun:
        """The same run with masks over edges."""
        return self._view(level="edge")

    def neurons(self) -> MaskedRun:
        """The same run with masks over the neurons of all MLPs: what each multiplies its output weights with.

        Such masks run through `ComponentRun`, which is there for them; gradient methods score neurons as they do edges.

        Raises:
            InvalidOption: the model has no MLPs.
        """
        if not self.graph.architecture.has_mlp:
            raise InvalidOption(f"expected a model with MLPs; {self.model.name} has attention only, so no neurons.")
        return self._view(level="neuron")

    def with_constants(self, constants: Writes) -> MaskedRun:
        """The same run with other constants in place of replaced values, to train them.

        With a mask that requires gradients, the metric carries gradients to the constants too.

        Args:
            constants: of the shapes that a zero ablation has: ``[1, 1, d_model]`` for the input and each MLP,
                ``[head, 1, 1, d_head]`` for each layer's heads (any axis of length 1 may be whole).

        Raises:
            InvalidOption: this run's own replacements are not constants.
        """
        if self.ablation.is_run:
            raise InvalidOption(
                f"expected a run whose replacements are constants, such as one with ablation='zero'; "
                f"got {self.ablation.name}."
            )
        view = self._view(batches=tuple(batch.with_constants(constants) for batch in self.batches))
        view.__dict__.pop("corrupt_metric", None)
        return view

    def positions(self) -> MaskedRun:
        """The same run with masks that have a position axis before the unit axis."""
        return self._view(per_position=True)

    def everywhere(self) -> MaskedRun:
        """The same run with masks that have no position axis."""
        return self._view(per_position=False)

    def _view(self, **changes: object) -> MaskedRun:
        view = copy.copy(self)
        for name, value in changes.items():
            setattr(view, name, value)
        return view

    @property
    def mask_shape(self) -> tuple[int, ...]:
        """Shape of one mask: [unit], or [pos, unit]."""
        return (self.task.clean.shape[1], self.n_units) if self.per_position else (self.n_units,)

    def ones(self) -> Float[Tensor, "*pos unit"]:
        """The mask that keeps everything."""
        return torch.ones(self.mask_shape, dtype=torch.float64 if self.model.dtype == torch.float64 else torch.float32)

    def zeros(self) -> Float[Tensor, "*pos unit"]:
        """The mask that ablates everything."""
        return torch.zeros_like(self.ones())

    def mask_of(self, circuit: Circuit) -> Float[Tensor, "*pos edge"]:
        """The edge mask that keeps a circuit and ablates the rest.

        By position for a run by `positions`; an edge without a position is then kept at all of them.

        Raises:
            InvalidMask: the circuit is of another model, or of positions that this run does not have.
        """
        if circuit.architecture != self.graph.architecture:
            raise InvalidMask(
                f"expected a circuit of a model with {self.graph}; got one of {ComponentGraph(circuit.architecture)}. "
                "Load the model that the circuit was found in."
            )
        mask = self.edges().zeros()
        places = [edge.position for edge in circuit.edges if edge.position is not None]
        if not self.per_position:
            if places:
                raise InvalidMask(
                    f"expected edges at every position; {len(places):,} of the circuit's are at one position each. "
                    "Use run.positions()."
                )
            mask[[self.graph.number(edge) for edge in circuit.edges]] = 1.0
            return mask
        if places and max(places) >= len(mask):
            raise InvalidMask(
                f"expected positions below {len(mask)}, the length of these prompts; the circuit has {max(places)}. "
                "Judge it on prompts of the length that it was found on."
            )
        for edge in circuit.edges:
            mask[slice(None) if edge.position is None else edge.position, self.graph.number(edge.everywhere())] = 1.0
        return mask

    # --- running ---------------------------------------------------------------------------------------------------

    @property
    def clean_metric(self) -> Float[Tensor, " example"]:
        """The metric of every prompt with nothing ablated."""
        return torch.cat([batch.clean_metric for batch in self.batches])

    @cached_property
    def corrupt_metric(self) -> Float[Tensor, " example"]:
        """The metric of every prompt with every edge ablated."""
        return torch.cat([batch.ablated.metric for batch in self.batches])

    def __call__(self, mask: Float[Tensor, "*sample_pos unit"]) -> Float[Tensor, "*sample example"]:
        """The metric of every prompt under one mask or many.

        Values do not depend on what was run before. Cost: at most one forward per mask, and only what the mask
        changes relative to the clean run (when most of it is 1) or to the fully ablated one.

        Args:
            mask: ``[*sample, unit]``, or ``[*sample, pos, unit]`` for a run by `positions`; 1 keeps, 0 ablates,
                values between mix. Masks with ``requires_grad`` carry gradients (see `gradient`).

        Returns:
            The metric in its own unit (float64).

        Raises:
            InvalidMask: wrong shape, or values that are not finite.
            NotFinite: the metric is NaN or infinite.
        """
        if self.level == "neuron":
            return self._neuron_run(mask)
        flat, lead = self._checked(mask)
        if mask.requires_grad:
            values = [torch.cat([self._differentiable(row, batch) for batch in self.batches]) for row in flat]
            return torch.stack(values).reshape(*lead, -1)
        mostly = (flat == 1).float().mean(tuple(range(1, flat.ndim))) > 0.5
        result = torch.empty(len(flat), len(self.task), dtype=torch.float64, device=self.model.device)
        for keep in (True, False):
            chosen = (mostly == keep).nonzero().flatten()
            work = partial(self._evaluated, flat, chosen, keep)
            for rows, values in self.mask_chunks.over(len(chosen), self.samples_that_fit, work):
                result[chosen[rows].to(result.device)] = values
        return result.reshape(*lead, len(self.task))

    def _evaluated(self, flat: Tensor, chosen: Tensor, keep: bool, rows: slice) -> Float[Tensor, "sample example"]:
        """The metric under some of the chosen masks, relative to the clean run or the ablated one."""
        masks = self.expand(flat[chosen[rows]])
        values = [evaluate(b.kept if keep else b.ablated, self._own(masks, b)).metric for b in self.batches]
        return torch.cat(values, dim=-1)

    def _differentiable(self, row: Tensor, batch: Batch) -> Float[Tensor, " example"]:
        """The metric of one batch under one mask, with gradients."""
        tensor = self._spread(row[None].to(self.model.device))
        masks = tensor.detach().cpu().numpy()
        own = tensor[:, batch.start :] if self.per_position else tensor
        return evaluate(batch.ablated, self._own(masks, batch), tensor=own).metric[0]

    def gradient(self, mask: Float[Tensor, "*sample_pos unit"]) -> Float[Tensor, "*sample_pos unit"]:
        """Gradient of the mean metric with respect to the mask, for every unit, also where the mask is 0.

        Cost per mask: about one dense masked forward and backward.

        Raises:
            InvalidOption: the metric has no gradient.
        """
        return self.value_and_gradient(mask)[1]

    def value_and_gradient(
        self, mask: Float[Tensor, "*sample_pos unit"]
    ) -> tuple[Float[Tensor, "*sample example"], Float[Tensor, "*sample_pos unit"]]:
        """The metric of every prompt under each mask, and `gradient`, one batch and mask in memory at a time.

        Raises:
            InvalidOption: the metric has no gradient.
        """
        flat, lead = self._checked(mask.detach())
        values, slopes = [], torch.zeros_like(flat)
        for row, slope in zip(flat, slopes, strict=True):
            value, gradient = self._slope(row)
            slope += gradient
            values.append(value)
        return torch.cat(values).reshape(*lead, len(self.task)), slopes.reshape(mask.shape)

    @with_fewer_prompts
    def _slope(self, row: Tensor) -> tuple[Float[Tensor, " example"], Tensor]:
        """The metric of every prompt under one mask, and the gradient of its mean."""
        values, slope = [], torch.zeros_like(row)
        for batch in self.batches:
            leaf = row.clone().requires_grad_(True)
            value = self._differentiable(leaf, batch)
            if not value.requires_grad:
                raise InvalidOption(
                    f"expected a metric with a gradient; {self.metric.name} has none. Use kl or logit_difference."
                )
            slope += torch.autograd.grad(value.sum(), leaf)[0] / len(self.task)
            values.append(value.detach())
        return torch.cat(values), slope

    @cached_property
    def _neuron_run(self) -> ComponentRun:
        from patching.component_run import ComponentRun

        run = ComponentRun.of(self)
        return run.positions() if self.per_position else run

    def damage(self, values: Float[Tensor, "*sample example"]) -> Float[Tensor, "*sample"]:
        """How much worse than the clean run, averaged over prompts: KL, or clean metric minus metric."""
        return self.metric.damage(values, self.clean_metric).mean(-1)

    def cursor(self, mask: Float[Tensor, "*pos unit"] | None = None) -> Cursor:
        """A place to walk from: looks at masks near the current one cost only what they change."""
        return Cursor(self, mask)

    def provenance(self, method: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """How a result came about, as plain data."""
        return {
            "method": method,
            "options": dict(options),
            "model": self.model.name,
            "task": self.task.name,
            "prompts": len(self.task),
            "ablation": self.ablation.name,
            "metric": self.metric.name,
            "direction": "noising: clean prompts, replacements from the ablation",
            "sign": "effect = metric(ablated) - metric(clean)",
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "torch": torch.__version__,
        }

    # --- masks -----------------------------------------------------------------------------------------------------

    def _checked(self, mask: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        shape = self.mask_shape
        if tuple(mask.shape[-len(shape) :]) != shape or mask.ndim < len(shape):
            axes = "[*sample, pos, unit]" if self.per_position else "[*sample, unit]"
            raise InvalidMask(
                f"expected a mask {axes} ending in {list(shape)}, one entry per {self.level}; got {list(mask.shape)}."
            )
        if not bool(torch.isfinite(mask.detach()).all()):
            raise InvalidMask("expected finite mask values from 0 (ablate) to 1 (keep); got NaN or infinity.")
        lead = tuple(mask.shape[: mask.ndim - len(shape)])
        return mask.reshape(-1, *shape), lead

    @cached_property
    def _places(self) -> tuple[np.ndarray, np.ndarray]:
        """Target and source of every edge."""
        visible = np.array(self.graph.n_visible)
        targets = np.repeat(np.arange(len(visible)), visible)
        return targets, np.concatenate([np.arange(count) for count in visible])

    @cached_property
    def edge_sources(self) -> Tensor:
        """Number of the source of every edge."""
        return torch.from_numpy(self._places[1])

    def expand(self, flat: Tensor) -> np.ndarray:
        """Masks over units as matrices [sample, (pos,) target, source]."""
        return self._spread(flat.detach().cpu()).numpy()

    def _spread(self, flat: Tensor) -> Tensor:
        flat = flat.to(torch.float64 if self.model.dtype == torch.float64 else torch.float32)
        targets, sources = (torch.from_numpy(places) for places in self._places)
        shape = (len(self.graph.targets), len(self.graph.sources))
        values = flat if self.level == "edge" else flat[..., sources]
        places = (targets * shape[1] + sources).to(flat.device)
        whole = flat.new_zeros(*flat.shape[:-1], shape[0] * shape[1])
        return whole.index_copy(-1, places, values).unflatten(-1, shape)

    def _own(self, masks: np.ndarray, batch: Batch) -> np.ndarray:
        """The positions that a batch computes."""
        return masks[:, batch.start :] if self.per_position else masks

    # --- memory ----------------------------------------------------------------------------------------------------

    def _bytes(self, examples: int) -> int:
        """Bytes of the temporaries of one dense sample: rows of all sources, inputs of one stage, MLP, logits."""
        shape, model = self.graph.architecture, self.model
        ports = shape.n_heads + 2 * shape.n_kv_heads
        length = self.task.clean.shape[1]
        mlp = max((block.mlp.w_in.shape[0] if block.mlp else 0) for block in model.blocks)
        tokens = examples * length * (model.d_model * (len(self.graph.sources) + 3 * ports) + 2 * mlp)
        scores = 2 * examples * shape.n_heads * length * length
        vocabulary = 3 * 2 * examples * model.d_vocab
        return (tokens + scores + vocabulary) * model.dtype.itemsize

    @property
    def samples_that_fit(self) -> int:
        """How many masks are evaluated at once within the byte budget."""
        return max(1, self.memory // max(1, self._bytes(self.batch_size)))

    def __repr__(self) -> str:
        return (
            f"MaskedRun({self.model.name}, {self.task.name}, {len(self.task)} prompts, {self.n_units:,} {self.level}s, "
            f"ablation={self.ablation.name}, metric={self.metric.name})"
        )


class Cursor:
    """A walk over masks: look at some near the current one, move to one of those just looked at.

    Example:
        >>> from patching import toy
        >>> run = MaskedRun(toy.model(), toy.task())
        >>> cursor = run.cursor()
        >>> fewer = run.ones()
        >>> fewer[0] = 0
        >>> values = cursor.look(fewer[None])
        >>> cursor.move(0)
        >>> bool((cursor.metric == values[0]).all())
        True
    """

    def __init__(self, run: MaskedRun, mask: Tensor | None = None) -> None:
        self.run = run
        self._states: list[State] = [batch.ones() for batch in run.batches]
        self._trials: list[Trial] = []
        self._looked = np.empty(0)
        if mask is not None:
            self.look(mask[None])
            self.move(0)

    @property
    def metric(self) -> Float[Tensor, " example"]:
        """The metric of every prompt under the current mask."""
        return torch.cat([state.metric for state in self._states])

    def look(self, masks: Float[Tensor, "sample *pos unit"]) -> Float[Tensor, "sample example"]:
        """The metric under some masks; all are evaluated at once, so mind `MaskedRun.samples_that_fit`.

        Where memory is short, fewer at once; what one of them is worth does not depend on that but for rounding.
        """
        flat, _ = self.run._checked(masks)
        whole = self.run.expand(flat)
        self._trials, self._looked = [], whole

        def look(size: int) -> Tensor:
            keep = size >= len(whole)  # else the values of the mask that is moved to are computed once more, by `move`
            starts = range(0, max(1, len(whole)), size)
            parts = [self._tried(whole[low : low + size], keep=keep) for low in starts]
            self._trials = parts[0] if keep else []
            return torch.cat([torch.cat([trial.metric for trial in part], dim=-1) for part in parts])

        return self.run.mask_chunks.fit(len(whole), look)

    def _tried(self, masks: np.ndarray, *, keep: bool) -> list[Trial]:
        states = zip(self._states, self.run.batches, strict=True)
        return [evaluate(state, self.run._own(masks, batch), keep=keep) for state, batch in states]

    def slopes(self, stage: int) -> Float[Tensor, "*pos edge"]:
        """Gradient of the mean metric, at the current mask, for the edges into one stage's ports.

        By position for a run by `MaskedRun.positions`. 0 for all other edges, and for those that are off. Cost: what
        follows the stage, forward and backward.

        Args:
            stage: number of the stage in ``run.planner.stages``.
        """
        run = self.run
        targets, sources = run._places
        shape = (run.task.clean.shape[1], run.graph.n_edges) if run.per_position else (run.graph.n_edges,)

        def summed(size: int) -> np.ndarray:
            total = np.zeros(shape)
            for state in (piece for whole in self._states for piece in whole.in_batches_of(size)):
                own = slopes(state, stage, positional=run.per_position)[..., targets, sources]
                total[state.batch.start if run.per_position else 0 :] += own
            return total

        return torch.from_numpy(run.prompt_chunks.fit(run.largest_batch, summed) / len(run.task))

    def move(self, sample: int) -> None:
        """Make one of the masks just looked at the current one."""
        if not self._trials:
            self._trials, sample = self._tried(self._looked[sample : sample + 1], keep=True), 0
        self._states = [trial.accept(sample) for trial in self._trials]
        self._trials = []


def _flat(writes: Writes) -> Iterator[Tensor]:
    yield writes.embedded
    yield from writes.heads
    yield from writes.mlps


def check_tokens(model: LensModel, task: Task) -> None:
    """Whether a task's token ids and lengths fit a model.

    Raises:
        InvalidTask: they do not.
    """
    highest = max(int(tokens.max()) for tokens in (task.clean, task.corrupt, task.answers, task.wrong_answers))
    if highest >= model.d_vocab:
        raise InvalidTask(
            f"expected token ids below {model.d_vocab}, the vocabulary of {model.name}; got {highest}. "
            "Was the task made with another model's tokenizer?"
        )
    if task.clean.shape[1] > model.n_ctx:
        raise InvalidTask(
            f"expected prompts of at most {model.n_ctx} tokens, the context of {model.name}; got "
            f"{task.clean.shape[1]}. Shorten the prompts."
        )
