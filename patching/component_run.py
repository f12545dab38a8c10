"""Runs under masks over components: heads, MLPs, neurons, dictionary features.

    run(mask)[sample, example] = metric when every component with mask 1 writes its own current value
                                 and every component with mask 0 its replacement

A component's one mask value counts for everything that reads it, so a run is one plain forward in which some writes
are exchanged, whatever the number of components: what random ablations (COAR), feature circuits and model edits need.
Masks over edges, where readers see different things, are `MaskedRun`'s.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from graphs.errors import BadName
from graphs.nodes import INPUT, Node, head, mlp, neuron
from patching import ablations, metrics
from patching.ablations import Ablation
from patching.chunks import Chunks, check_memory, with_fewer_prompts
from patching.errors import InvalidMask, InvalidOption
from patching.lens import LensModel
from patching.masked import DEFAULT_BYTES, MaskedRun, check_tokens
from patching.metrics import Contrast, Metric, Prediction
from patching.progress import Progress, silent
from patching.sites import Site, Start, at, forward, kind_of
from patching.task import Task

FAMILIES = ("input", "heads", "mlps", "neurons", "features")


@runtime_checkable
class Dictionary(Protocol):
    """What a dictionary of features must offer to have its features masked: an encoder and an affine decoder."""

    @property
    def site(self) -> str | None:
        """Where it reads and writes, spelled as `patching.sites.Site`: ``mlp_out1``."""
        ...

    @property
    def n_features(self) -> int:
        """How many features it has."""
        ...

    def encode(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch feature"]:
        """Activations of the features."""
        ...

    def decode(self, features: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch d_model"]:
        """What features stand for."""
        ...


@dataclass(frozen=True)
class Group:
    """Components that are masked at one site.

    Attributes:
        family: one of `FAMILIES`.
        site: kind of site (`patching.sites`) at which they are exchanged.
        layer: of the site.
        size: how many components the site has.
        units: the components that masks speak of.
        members: their places among the site's components; None where they are all there, in order.
        start: place of the first of them in a mask.
        dictionary: of features.
    """

    family: str
    site: str
    layer: int
    size: int
    units: tuple[Node, ...]
    members: Tensor | None
    start: int
    dictionary: Dictionary | None = None

    def values(self, mask: Float[Tensor, "*axes unit"]) -> Float[Tensor, "*axes member"]:
        """The mask of every component of the site, 1 for those that masks do not speak of."""
        own = mask[..., self.start : self.start + len(self.units)]
        if self.members is None:
            return own
        whole = own.new_ones(*own.shape[:-1], self.size)
        return whole.index_copy(-1, self.members.to(own.device), own)


class ComponentRun:
    """A model on a task, ready to be run with components kept or replaced.

    Making one costs a clean and a replaced forward.

    Args:
        model: the model.
        task: prompts and answers.
        components: families out of `FAMILIES`, or the nodes themselves (``Node.parse("a0.h1")``), or both. A family's
            whole MLPs and neurons can be masked together; a neuron then counts before its MLP.
        dictionaries: of features, for the family ``features`` (all features and error terms of each).
        ablation: what a component with mask 0 writes; a name from `ablations.ABLATIONS` or an `Ablation`.
        metric: a name from `metrics.METRICS` or a `Metric`; the task's own by default.
        memory: bytes that one call may use beyond what is stored; samples and prompts are chunked to fit, and chunks
            halved where there is less (see `chunks`).

    Raises:
        InvalidOption: unknown families or nodes, nothing to mask, dictionaries of sites that the model lacks.
        OutOfMemory: a single mask or prompt does not fit into the memory that there is.

    Cost of a call: one forward per mask and prompt, without the embeddings, from the first layer that the masks
    change, and without positions before the first one at which replacements differ (a common prefix).

    Example:
        >>> from patching import toy
        >>> run = ComponentRun(toy.model(), toy.task())
        >>> [str(unit) for unit in run.units]
        ['a0.h0', 'a0.h1']
        >>> bool((run(run.ones()) == run.clean_metric).all())
        True
    """

    def __init__(
        self,
        model: LensModel,
        task: Task,
        *,
        components: Sequence[str | Node] = ("heads", "mlps"),
        dictionaries: Sequence[Dictionary] = (),
        ablation: str | Ablation = "corrupt",
        metric: str | Metric | None = None,
        memory: int = DEFAULT_BYTES,
    ) -> None:
        check_memory(memory)
        self.model, self.task, self.memory = model, task, memory
        self.mask_chunks, self.prompt_chunks = Chunks("masks", model.device), Chunks("prompts", model.device)
        self.ablation = ablations.get(ablation)
        self.metric = metrics.get(task.metric if metric is None else metric)
        self.axes: tuple[str, ...] = ()
        self._finer: dict[int, list[Part]] = {}
        check_tokens(model, task)
        self.groups = tuple(groups_of(model, components, dictionaries))
        self.units = tuple(unit for group in self.groups for unit in group.units)
        self.n_units = len(self.units)
        if self.ablation.constants is not None and {g.family for g in self.groups} - {"input", "heads", "mlps"}:
            raise InvalidOption(
                f"expected heads, MLPs and the input alone; {self.ablation.name} has no constants for neurons or "
                "features. Choose another ablation."
            )
        size = max(1, min(len(task), memory // max(1, 2 * self._bytes(1))))
        self.parts = self.prompt_chunks.fit(size, self._made)

    @classmethod
    def of(
        cls, run: MaskedRun, *, components: Sequence[str | Node] | None = None, dictionaries: Sequence[Dictionary] = ()
    ) -> ComponentRun:
        """The same model, task, ablation and metric, masked by components: those of the run's level by default.

        Raises:
            InvalidOption: a run over edges without ``components``.
        """
        if components is None:
            if run.level == "edge":
                raise InvalidOption("expected a run over nodes or neurons; got one over edges. Use run.nodes().")
            components = ("neurons",) if run.level == "neuron" else run.graph.sources
        return cls(
            run.model,
            run.task,
            components=components,
            dictionaries=dictionaries,
            ablation=run.ablation,
            metric=run.metric,
            memory=run.memory,
        )

    @torch.no_grad()
    def _made(self, size: int) -> list[Part]:
        """The prompts in parts of some size."""
        prompts = self.ablation.prompts(self.task)
        replaced = self.ablation.embed(self.model, self.task, prompts)
        parts = [
            Part(self, self.task.subset(slice(low, low + size)), replaced[low : low + size])
            for low in range(0, len(self.task), size)
        ]
        constants, combine = self.ablation.constants, self.ablation.combine
        if self.ablation.is_run:
            return parts
        weights = self.ablation.weights(self.task).to(self.model.device)
        for number in range(len(self.groups)):
            if constants is not None:
                fixed = self._constant(number).to(self.model.device, self.model.dtype)
                pooled = (fixed,)
            else:
                assert combine is not None
                columns = zip(*(part.replacements[number] for part in parts), strict=True)
                pooled = tuple(combine(torch.cat(column, dim=-3), weights) for column in columns)
            for part in parts:
                part.replacements[number] = pooled
        for part in parts:
            part.first = 0
        return parts

    @property
    def largest_batch(self) -> int:
        """How many prompts are run together."""
        return len(self.parts[0])

    def in_batches_of(self, size: int) -> ComponentRun:
        """The same run with its prompts in parts of at most some size. Cost: as making the run."""
        if size not in self._finer:
            self._finer.clear()
            self._finer[size] = self._made(size)
        return self._view(parts=self._finer[size], _finer={})

    def _constant(self, number: int) -> Tensor:
        constants, group = self.ablation.constants, self.groups[number]
        assert constants is not None
        if group.family == "input":
            return constants.embedded
        return constants.heads[group.layer] if group.family == "heads" else constants.mlps[group.layer]

    # --- views -----------------------------------------------------------------------------------------------------

    def per_prompt(self) -> ComponentRun:
        """The same run with masks of their own for each prompt: ``[*sample, example, unit]``."""
        return self._view(axes=("example", *(axis for axis in self.axes if axis != "example")))

    def positions(self) -> ComponentRun:
        """The same run with masks that have a position axis before the unit axis."""
        return self._view(axes=(*(axis for axis in self.axes if axis != "pos"), "pos"))

    def _view(self, **changes: object) -> ComponentRun:
        view = copy.copy(self)
        for name, value in changes.items():
            setattr(view, name, value)
        return view

    @property
    def mask_shape(self) -> tuple[int, ...]:
        """Shape of one mask: [unit], with an example and a position axis before it in the views that have them."""
        sizes = {"example": len(self.task), "pos": self.task.clean.shape[1]}
        return (*(sizes[axis] for axis in self.axes), self.n_units)

    def ones(self) -> Float[Tensor, "*axes unit"]:
        """The mask that keeps everything."""
        return torch.ones(self.mask_shape, dtype=torch.float64 if self.model.dtype == torch.float64 else torch.float32)

    def zeros(self) -> Float[Tensor, "*axes unit"]:
        """The mask that replaces everything that it speaks of."""
        return torch.zeros_like(self.ones())

    def mask_without(self, units: Sequence[Node]) -> Float[Tensor, "*axes unit"]:
        """The mask that replaces some components and keeps the others.

        Raises:
            InvalidOption: a component that the run does not have.
        """
        mask = self.ones()
        mask[..., [self.index(unit) for unit in units]] = 0.0
        return mask

    def index(self, unit: str | Node) -> int:
        """Where a component stands in masks.

        Raises:
            InvalidOption: it does not stand there.
        """
        node = Node.parse(unit) if isinstance(unit, str) else unit
        try:
            return self._index[node]
        except KeyError:
            raise InvalidOption(
                f"expected a component of this run ({self.units[0]} to {self.units[-1]}); got {node}."
            ) from None

    @cached_property
    def _index(self) -> dict[Node, int]:
        return {unit: place for place, unit in enumerate(self.units)}

    # --- running ---------------------------------------------------------------------------------------------------

    @property
    def clean_metric(self) -> Float[Tensor, " example"]:
        """The metric of every prompt with nothing replaced."""
        return torch.cat([part.clean_metric for part in self.parts])

    def __call__(
        self, mask: Float[Tensor, "*axes unit"], *, progress: Progress = silent
    ) -> Float[Tensor, "*sample example"]:
        """The metric of every prompt under one mask or many.

        Args:
            mask: ``[*sample, unit]`` (see `mask_shape` for views); 1 keeps, 0 replaces, values between mix.
            progress: called with the number of masks done and to do.

        Returns:
            The metric in its own unit (float64).

        Raises:
            InvalidMask: wrong shape, or values that are not finite.
            NotFinite: the metric is NaN or infinite.
        """
        flat, lead = self._checked(mask)
        result = torch.empty(len(flat), len(self.task), dtype=torch.float64, device=self.model.device)
        done = 0
        for chosen, layer in self._by_first_layer(flat):
            work = partial(self._evaluate, flat, chosen, layer)
            for rows, values in self.mask_chunks.over(len(chosen), self.samples_that_fit, work):
                result[chosen[rows].to(result.device)] = values
                done += len(values)
                progress(done, len(flat))
        return result.reshape(*lead, len(self.task))

    @torch.no_grad()
    def _evaluate(self, flat: Tensor, chosen: Tensor, layer: int, rows: slice) -> Float[Tensor, "sample example"]:
        """The metric under some of the chosen masks, of which none changes anything before a layer."""
        mask = self._spread(flat[chosen[rows]])
        columns, low = [], 0
        for part in self.parts:
            own = mask if mask.shape[1] == 1 else mask[:, low : low + len(part)]
            columns.append(part.run(own, layer))
            low += len(part)
        return torch.cat(columns, dim=-1)

    @with_fewer_prompts
    def slopes(self, mask: Float[Tensor, "*axes unit"] | None = None) -> Float[Tensor, "example unit"]:
        """Derivative of every prompt's metric with respect to every component's mask, at a mask (1 by default).

        First-order effect of replacing component i in prompt e: ``-slopes[e, i]`` (attribution patching). With
        positions, the sum over them.

        Cost: one forward and backward.

        Raises:
            InvalidOption: the metric has no gradient.
        """
        at_mask = self.ones() if mask is None else mask
        flat, _ = self._checked(at_mask)
        whole = self._spread(flat)
        rows, low = [], 0
        for part in self.parts:
            own = whole if whole.shape[1] == 1 else whole[:, low : low + len(part)]
            leaf = own.detach().expand(1, len(part), *own.shape[2:]).clone().requires_grad_(True)
            value = part.run(leaf, 0)
            if not value.requires_grad:
                raise InvalidOption(f"expected a metric with a gradient; {self.metric.name} has none.")
            rows.append(torch.autograd.grad(value.sum(), leaf)[0][0].sum(1))
            low += len(part)
        return torch.cat(rows).double()

    def _by_first_layer(self, flat: Tensor) -> Iterator[tuple[Tensor, int]]:
        """Masks that change the same first layer, together: what stands before it need not run again."""
        changed = (flat != 1).reshape(len(flat), -1, self.n_units).any(1)
        first = torch.full((len(flat),), len(self.model.blocks))
        for group in reversed(self.groups):
            here = changed[:, group.start : group.start + len(group.units)].any(1).cpu()
            first = torch.where(here & (group.layer < first), group.layer, first)
        for layer in first.unique().tolist():
            yield (first == layer).nonzero().flatten(), layer

    def _checked(self, mask: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        shape = self.mask_shape
        if mask.ndim < len(shape) or tuple(mask.shape[mask.ndim - len(shape) :]) != shape:
            axes = ", ".join(("*sample", *self.axes, "unit"))
            raise InvalidMask(f"expected a mask [{axes}] ending in {list(shape)}; got {list(mask.shape)}.")
        if not bool(torch.isfinite(mask).all()):
            raise InvalidMask("expected finite mask values from 0 (replace) to 1 (keep); got NaN or infinity.")
        lead = tuple(mask.shape[: mask.ndim - len(shape)])
        if mask.requires_grad:
            raise InvalidMask("expected a mask that needs no gradient; slopes(mask) gives the derivatives.")
        return mask.reshape(-1, *shape), lead

    def _spread(self, flat: Tensor) -> Float[Tensor, "sample example_or_1 pos_or_1 unit"]:
        flat = flat.to(self.model.device, self.model.dtype)
        if "example" not in self.axes:
            flat = flat.unsqueeze(1)
        return flat if "pos" in self.axes else flat.unsqueeze(2)

    @property
    def samples_that_fit(self) -> int:
        """How many masks are evaluated at once within the byte budget."""
        return max(1, self.memory // max(1, self._bytes(len(self.parts[0]))))

    def _bytes(self, examples: int) -> int:
        """Bytes of the temporaries of one sample: a layer's activations, patterns, features and the logits."""
        model, length = self.model, self.task.clean.shape[1]
        heads = model.architecture.n_heads * model.blocks[0].attention.out.shape[1]
        width = max((block.mlp.w_in.shape[0] if block.mlp else 0) for block in model.blocks)
        features = max((group.size for group in self.groups if group.dictionary), default=0)
        masks = self.n_units if self.axes else 0
        token = 10 * model.d_model + 8 * heads + 4 * width + 5 * features + masks
        patterns = 4 * model.architecture.n_heads * length * length
        return (examples * (length * token + patterns + 2 * model.d_vocab) + self.n_units) * model.dtype.itemsize

    def provenance(self, method: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """How a result came about, as plain data."""
        return {
            "method": method,
            "options": dict(options),
            "model": self.model.name,
            "task": self.task.name,
            "prompts": len(self.task),
            "components": self.n_units,
            "ablation": self.ablation.name,
            "metric": self.metric.name,
            "direction": "noising: clean prompts, replacements from the ablation",
            "sign": "effect = metric(ablated) - metric(clean)",
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "torch": torch.__version__,
        }

    def __repr__(self) -> str:
        return (
            f"ComponentRun({self.model.name}, {self.task.name}, {len(self.task)} prompts, {self.n_units:,} components, "
            f"ablation={self.ablation.name}, metric={self.metric.name})"
        )


class Part:
    """Some prompts: where their clean run stands before every layer, and what replaces each group's values."""

    def __init__(self, run: ComponentRun, task: Task, replaced: Float[Tensor, "example pos d_model"]) -> None:
        model = run.model
        self.model, self.metric, self.groups = model, run.metric, run.groups
        self.answers, self.wrong = task.answers.to(model.device), task.wrong_answers.to(model.device)
        self.contrast = Contrast.of(self.answers, self.wrong)
        self.answer = task.positions.to(model.device)
        self.contexts = model.contexts(task.clean.shape[1])
        embedded = model.embed(task.clean)
        different = (embedded != replaced).any(-1).any(0).nonzero().flatten()
        self.first = int(different[0]) if len(different) else embedded.shape[1]
        self.streams: list[Tensor] = []
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        final = self._clean(embedded)
        self.clean_log_probs = None
        if run.metric.needs_clean:
            self.clean_log_probs = torch.log_softmax(model.readout.logits(final).double(), dim=-1)
        self.clean_metric = self.measure(final)
        self.replacements = self._recorded(replaced)

    def __len__(self) -> int:
        return len(self.answer)

    def _clean(self, embedded: Tensor) -> Tensor:
        """Run the clean prompts, keeping what a run from any layer and position on needs."""
        kept = {"resid_pre": self.streams, "k": self.keys, "v": self.values}

        def keep(kind: str, _layer: int, value: Tensor, _narrow: bool) -> Tensor:
            if kind in kept:
                kept[kind].append(value[..., : self.first, :].clone() if kind in "kv" else value)
            return value

        return forward(self.model, self.contexts, Start(0, 0, 0, embedded), keep, answer=self.answer)

    def _recorded(self, embedded: Tensor) -> list[tuple[Tensor, ...]]:
        """What each group's components write in a run: one tensor, or features and error term."""
        found: dict[int, tuple[Tensor, ...]] = {}

        def keep(kind: str, layer: int, value: Tensor, _narrow: bool) -> Tensor:
            for number, group in enumerate(self.groups):
                if (group.site, group.layer) != (kind, layer):
                    continue
                if group.dictionary is not None:
                    features = group.dictionary.encode(value)
                    found[number] = (features, value - group.dictionary.decode(features))
                elif group.family == "heads":
                    found[number] = (self.model.blocks[layer].attention.share(value),)
                else:
                    found[number] = (value,)
            return value

        forward(self.model, self.contexts, Start(0, 0, 0, embedded), keep, answer=self.answer, trim=False)
        return [found[number] for number in range(len(self.groups))]

    def measure(self, residual: Float[Tensor, "*sample example d_model"]) -> Float[Tensor, "*sample example"]:
        """The metric of final residuals."""
        return self.metric(
            Prediction(residual, self.model.readout, self.answers, self.wrong, self.clean_log_probs, self.contrast)
        )

    def run(self, mask: Float[Tensor, "sample example_or_1 pos_or_1 unit"], layer: int) -> Tensor:
        """The metric under masks that leave everything before a layer as it is."""
        if layer == len(self.model.blocks) or self.first > int(self.answer.max()):
            return self.clean_metric.expand(len(mask), -1)
        first = self.first
        keys, values = (tuple(kept) if first else () for kept in (self.keys, self.values))
        start = Start(layer, 0, first, self.streams[layer][None, :, first:], keys=keys, values=values)
        final = forward(self.model, self.contexts, start, _Mix(self, mask), answer=self.answer)
        return torch.where(self.answer >= first, self.measure(final), self.clean_metric)


class _Mix:
    """A visitor that mixes current values and replacements as masks say."""

    def __init__(self, part: Part, mask: Tensor) -> None:
        self.part, self.mask = part, mask
        self.places: dict[tuple[str, int], list[int]] = {}
        for number, group in enumerate(part.groups):
            self.places.setdefault((group.site, group.layer), []).append(number)
        self.z: Tensor | None = None

    def __call__(self, kind: str, layer: int, value: Tensor, narrow: bool) -> Tensor:
        attention = self.part.model.blocks[layer].attention
        if kind == "z" and attention.post is not None and (kind, layer) in self.places:
            self.z = value  # heads are mixed as shares of the normed sum, below
            return value
        if kind == "attn_out" and self.z is not None:
            (number,) = self.places["z", layer]
            value, self.z = attention.write_sum(self._heads(number, attention.share(self.z), narrow)), None
        for number in self.places.get((kind, layer), ()):
            group = self.part.groups[number]
            if group.dictionary is not None:
                value = self._features(number, value, narrow)
            elif group.family == "heads":
                value = self._heads(number, value, narrow)
            else:
                keep = self._keep(number, narrow)
                value = torch.lerp(self._replacement(number, 0, narrow), value, keep)
        return value

    def _keep(self, number: int, narrow: bool) -> Float[Tensor, "sample example_or_1 pos_or_1 member"]:
        keep = self.part.groups[number].values(self.mask)
        if keep.shape[2] == 1:
            return keep
        if narrow:
            return at(keep.expand(-1, len(self.part.answer), -1, -1), self.part.answer)
        return keep[:, :, self.part.first :]

    def _replacement(self, number: int, which: int, narrow: bool) -> Tensor:
        value = self.part.replacements[number][which]
        if value.shape[-2] == 1:
            return value
        if not narrow:
            return value[..., self.part.first :, :]
        return at(value.expand(*value.shape[:-3], len(self.part.answer), *value.shape[-2:]), self.part.answer)

    def _heads(self, number: int, value: Tensor, narrow: bool) -> Tensor:
        keep = self._keep(number, narrow).movedim(-1, 1).unsqueeze(-1)  # sample head example pos 1
        return torch.lerp(self._replacement(number, 0, narrow), value, keep)

    def _features(self, number: int, value: Tensor, narrow: bool) -> Tensor:
        """``x + decode(mixed) - decode(f) + mixed error - error``: bit for bit x where everything is kept."""
        dictionary = self.part.groups[number].dictionary
        assert dictionary is not None
        keep = self._keep(number, narrow)
        features = dictionary.encode(value)
        decoded = dictionary.decode(features)
        error = value - decoded
        mixed = torch.lerp(self._replacement(number, 0, narrow), features, keep[..., :-1])
        rest = torch.lerp(self._replacement(number, 1, narrow), error, keep[..., -1:])
        return value + (dictionary.decode(mixed) - decoded) + (rest - error)


def groups_of(
    model: LensModel, components: Sequence[str | Node], dictionaries: Sequence[Dictionary] = ()
) -> Iterator[Group]:
    """Groups of components in the order in which a model computes them.

    Raises:
        InvalidOption: unknown families or nodes, twice the same, nothing at all, or a dictionary of another width.
    """
    if isinstance(components, str | Node):
        components = (components,)
    families = [name for name in components if isinstance(name, str) and name in FAMILIES]
    nodes = [_parsed(one) if isinstance(one, str) else one for one in components if one not in families]
    if not components:
        raise InvalidOption(f"expected components: families out of {', '.join(FAMILIES)}, or nodes; got none.")
    if len(set(nodes)) < len(nodes):
        raise InvalidOption("expected every component once; some come twice.")
    wanted, used, start = set(nodes), set(), 0
    for family, site, layer, units, dictionary in _every_group(model, dictionaries):
        whole = family in families
        chosen = [place for place, unit in enumerate(units) if whole or unit in wanted] if wanted or whole else []
        used.update(units[place] for place in chosen)
        if chosen:
            members = None if len(chosen) == len(units) else torch.tensor(chosen)
            own = tuple(units[place] for place in chosen)
            yield Group(family, site, layer, len(units), own, members, start, dictionary)
            start += len(own)
    missing = sorted(str(node) for node in wanted - used)
    if missing:
        advice = " Give the dictionaries of features." if any(".f" in name or "err" in name for name in missing) else ""
        raise InvalidOption(
            f"expected components that {model.name} has ({model.graph}); it has no {', '.join(missing[:5])}.{advice}"
        )
    if not start:
        advice = " Give the dictionaries of features." if families == ["features"] else ""
        raise InvalidOption(f"expected something to mask; {model.name} has no {', '.join(families)}.{advice}")


def _parsed(name: str) -> Node:
    try:
        return Node.parse(name)
    except BadName as error:
        raise InvalidOption(f"expected a family out of {', '.join(FAMILIES)}, or a node; {error}.") from error


def _every_group(
    model: LensModel, dictionaries: Sequence[Dictionary]
) -> Iterator[tuple[str, str, int, tuple[Node, ...], Dictionary | None]]:
    at_site: dict[str, Dictionary] = {}
    for dictionary in dictionaries:
        site = _site_of(dictionary, model)
        if str(site) in at_site:
            raise InvalidOption(f"expected one dictionary for each site; there are two of {site}.")
        at_site[str(site)] = dictionary

    def features(kind: str, layer: int) -> Iterator[tuple[str, str, int, tuple[Node, ...], Dictionary | None]]:
        dictionary = at_site.get(f"{kind}{layer}")
        if dictionary is not None:
            yield "features", kind, layer, feature_units(Site(kind, layer), dictionary.n_features), dictionary

    yield "input", "resid_pre", 0, (INPUT,), None
    yield from features("resid_pre", 0)
    for layer, block in enumerate(model.blocks):
        yield "heads", "z", layer, tuple(head(layer, index) for index in range(model.architecture.n_heads)), None
        yield from features("attn_out", layer)
        if block.mlp is not None:
            width = block.mlp.w_in.shape[0]
            yield "neurons", "neurons", layer, tuple(neuron(layer, index) for index in range(width)), None
            yield "mlps", "mlp_out", layer, (mlp(layer),), None
            yield from features("mlp_out", layer)
        yield from features("resid_post", layer)


FEATURE_SITES: dict[str, Literal["input", "attn", "mlp", "resid"]] = {
    "resid_pre": "input",
    "attn_out": "attn",
    "mlp_out": "mlp",
    "resid_post": "resid",
}
"""Kinds of sites that have dictionaries, and what their features' nodes call them."""


def feature_units(site: Site, n_features: int) -> tuple[Node, ...]:
    """The nodes of a dictionary's features, and of its error term after them."""
    from graphs.nodes import error, feature

    name = FEATURE_SITES[site.kind]
    layer = None if name == "input" else site.layer
    return (*(feature(name, layer, index) for index in range(n_features)), error(name, layer))


def _site_of(dictionary: Dictionary, model: LensModel) -> Site:
    site = Site.parse(dictionary.site or "")
    kind_of(site.kind, model.architecture)
    if site.kind not in FEATURE_SITES or (site.kind == "resid_pre" and site.layer):
        raise InvalidOption(
            f"expected a dictionary at attn_out, mlp_out or resid_post of a layer, or at resid_pre0; got {site}. "
            "A dictionary at resid_pre of a later layer is one at resid_post of the layer before."
        )
    if site.layer >= len(model.blocks):
        raise InvalidOption(f"expected a layer from 0 to {len(model.blocks) - 1}; got a dictionary of {site}.")
    if getattr(dictionary, "is_transcoder", False):
        raise InvalidOption(
            f"expected dictionaries that read where they write; the transcoder of {site} reads what the MLP reads. Use "
            "an autoencoder of mlp_out."
        )
    width = getattr(dictionary, "d_in", model.d_model)
    if width != model.d_model:
        raise InvalidOption(
            f"expected a dictionary of {model.name}'s width {model.d_model}; the one of {site} reads {width}."
        )
    return site
