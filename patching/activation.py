"""Activation patching: put activations of one run into another and see what the metric does.

A `SiteRun` holds two runs of a task, the *base* and the *source*. Patching a site gives the base run the source's
value there; everything after it runs freely. Noising, the base is the clean run; denoising, the corrupt one. Only what
follows a patched layer and position is computed, for many patches at a time.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from patching import ablations, metrics
from patching.ablations import Ablation
from patching.chunks import Chunks, check_memory
from patching.effects import Effects
from patching.errors import InvalidOption
from patching.lens import LensModel
from patching.masked import DEFAULT_BYTES, check_tokens
from patching.metrics import Contrast, Metric, Prediction
from patching.progress import Progress, silent
from patching.sites import KINDS, Kind, Site, Start, at, count_parts, forward, kind_of
from patching.task import Task

DIRECTIONS = ("noising", "denoising")
Values = dict[str, list[Tensor]]
Patch = tuple[Site, ...]
"""Sites that are patched together."""


class SiteRun:
    """A model on a task, ready to be patched at any site.

    Making one costs two forwards and keeps every activation of both.

    Args:
        model: the model.
        task: prompts and answers.
        ablation: what patches carry when noising, or what the base run is when denoising; a name from
            `ablations.ABLATIONS` or an `Ablation`.
        direction: ``noising`` (clean base, ablation patched in) or ``denoising`` (corrupt base, clean patched in).
        metric: a name from `metrics.METRICS` or a `Metric`; the task's own by default.
        memory: bytes that one call may use beyond what is stored; chunks are halved where there is less (`chunks`).

    Raises:
        InvalidOption: an unknown direction, or denoising from an ablation that is no run (zero, means).
        OutOfMemory: a single patch or prompt does not fit into the memory that there is.

    Source: arXiv 2309.16042 (noising and denoising, corruptions, metrics).

    Example:
        >>> from patching import toy
        >>> run = SiteRun(toy.model(), toy.task())
        >>> values = run([(Site("z", 0, 0),), (Site("resid_post", 0),)])
        >>> bool(torch.isclose(values[1], run.source_metric).all())
        True
    """

    def __init__(
        self,
        model: LensModel,
        task: Task,
        *,
        ablation: str | Ablation = "corrupt",
        direction: str = "noising",
        metric: str | Metric | None = None,
        memory: int = DEFAULT_BYTES,
    ) -> None:
        if direction not in DIRECTIONS:
            raise InvalidOption(f"expected a direction out of {', '.join(DIRECTIONS)}; got {direction!r}.")
        check_memory(memory)
        self.model, self.task, self.memory, self.direction = model, task, memory, direction
        self.patch_chunks, self.prompt_chunks = Chunks("patches", model.device), Chunks("prompts", model.device)
        self._finer: dict[int, list[Part]] = {}
        self.ablation = ablations.get(ablation)
        self.metric = metrics.get(task.metric if metric is None else metric)
        if direction == "denoising" and self.ablation.combine is not None:
            raise InvalidOption(
                f"expected an ablation that is a run of its own to denoise from (corrupt, resample, gaussian-noise); "
                f"got {self.ablation.name}, which replaces activations one by one. Use direction='noising'."
            )
        if self.ablation.constants is not None:
            raise InvalidOption(
                f"expected an ablation that says what every site carries; {self.ablation.name} has constants for whole "
                "nodes alone. Use MaskedRun."
            )
        check_tokens(model, task)
        self.length = task.clean.shape[1]
        size = max(1, min(len(task), memory // max(1, 2 * self.patch_bytes(1, self.length))))
        self.parts = self.prompt_chunks.fit(size, self._made)

    @property
    def largest_batch(self) -> int:
        """How many prompts are run together."""
        return len(self.parts[0].answer)

    def in_batches_of(self, size: int) -> SiteRun:
        """The same run with its prompts in parts of at most some size. Cost: as making the run."""
        if size not in self._finer:
            self._finer.clear()
            self._finer[size] = self._made(size)
        view = copy.copy(self)
        view.parts, view._finer = self._finer[size], {}
        return view

    @torch.no_grad()
    def _made(self, size: int) -> list[Part]:
        """The prompts in parts of some size."""
        model, task = self.model, self.task
        prompts = self.ablation.prompts(task)
        clean, other = model.embed(task.clean), self.ablation.embed(model, task, prompts)
        base, source = (clean, other) if self.direction == "noising" else (other, clean)
        parts: list[Part] = []
        for first in range(0, len(task), size):
            rows = slice(first, first + size)
            parts.append(Part(model, task.subset(rows), self.metric, clean[rows], base[rows], source[rows]))
        combine = self.ablation.combine
        if combine is None:
            return parts
        weights = self.ablation.weights(task).to(model.device)
        for kind in parts[0].source:
            for layer in range(len(model.blocks)):
                whole = torch.cat([part.source[kind][layer] for part in parts], dim=-3)
                pooled = combine(whole, weights)
                for part in parts:
                    own = part.source[kind][layer]
                    part.source[kind][layer] = pooled.expand_as(own)
        for part in parts:  # there is no run of these values: what the metric says of the last residual's
            part.source_metric = part.measure(at(part.source["resid_post"][-1], part.answer)[..., 0, :])
        return parts

    @property
    def base_metric(self) -> Float[Tensor, " example"]:
        """The metric of every prompt, unpatched."""
        return torch.cat([part.base_metric for part in self.parts])

    @property
    def source_metric(self) -> Float[Tensor, " example"]:
        """The metric of every prompt in the run that supplies the patches.

        Zeros and means are no run; then it is the metric with the final residual replaced by theirs.
        """
        return torch.cat([part.source_metric for part in self.parts])

    def __call__(self, patches: Sequence[Patch], *, progress: Progress = silent) -> Float[Tensor, "patch example"]:
        """The metric of every prompt under each patch.

        A patch whose values equal the base run's returns the base metric to the last bit.

        Cost: per patch, a forward of what follows its first layer and position.

        Raises:
            InvalidOption: a site that the model or the prompts do not have.
        """
        patches = [tuple(patch) for patch in patches]
        for site in {site for patch in patches for site in patch}:
            self._check(site)
        columns = []
        for number, part in enumerate(self.parts):

            def shown(done: int, _total: int, before: int = number * len(patches)) -> None:
                progress(before + done, len(self.parts) * len(patches))

            columns.append(part.run(patches, self.patches_at_once, self.patch_chunks, shown))
        return torch.cat(columns, dim=1)

    def jointly(
        self, units: Sequence[Patch]
    ) -> Callable[[Bool[Tensor, "subset unit"]], Float[Tensor, "subset example"]]:
        """A function from subsets of units to the effects of patching all units of each subset together.

        What `verification` works on.

        Args:
            units: the sites of every unit.

        Example:
            >>> from patching import toy
            >>> run = SiteRun(toy.model(), toy.task())
            >>> effect = run.jointly([(Site("z", 0, 0),), (Site("z", 0, 1),)])
            >>> tuple(effect(torch.tensor([[True, False], [True, True]])).shape)
            (2, 4)
        """

        def effects(subsets: Bool[Tensor, "subset unit"]) -> Float[Tensor, "subset example"]:
            patches = [tuple(site for i in row.nonzero().flatten().tolist() for site in units[i]) for row in subsets]
            return self(patches) - self.base_metric

        return effects

    def _check(self, site: Site) -> None:
        kind = kind_of(site.kind, self.model.architecture)
        layers, parts = len(self.model.blocks), count_parts(kind, self.model)
        if not 0 <= site.layer < layers:
            raise InvalidOption(f"expected a layer from 0 to {layers - 1}; got {site.layer} in {site}.")
        if site.part is not None and (kind.parts is None or not 0 <= site.part < parts):
            what = f"a {kind.parts} from 0 to {parts - 1}" if kind.parts else f"no part: {kind.name} has none"
            raise InvalidOption(f"expected {what}; got {site.part} in {site}.")
        if site.position is not None and not 0 <= site.position < self.length:
            raise InvalidOption(
                f"expected a position from 0 to {self.length - 1}, the longest prompt's last; got {site.position}."
            )

    def patches_at_once(self, examples: int, positions: int) -> int:
        """How many patches fit the byte budget."""
        return max(1, self.memory // max(1, self.patch_bytes(examples, positions)))

    def patch_bytes(self, examples: int, positions: int) -> int:
        """Bytes of the temporaries of one patch."""
        model = self.model
        mlp = count_parts(KINDS["neurons"], model) if model.architecture.has_mlp else 0
        heads = model.architecture.n_heads * model.blocks[0].attention.out.shape[1]
        token = 6 * model.d_model + 6 * heads + 3 * mlp
        patterns = 3 * model.architecture.n_heads * positions * self.length
        return model.dtype.itemsize * examples * (positions * token + patterns)

    def provenance(self, method: str, options: Mapping[str, object]) -> dict[str, object]:
        """How a result came about, as plain data."""
        return {
            "method": method,
            "options": dict(options),
            "model": self.model.name,
            "task": self.task.name,
            "prompts": len(self.task),
            "ablation": self.ablation.name,
            "metric": self.metric.name,
            "direction": self.direction,
            "sign": "effect = metric(patched) - metric(base)",
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "torch": torch.__version__,
        }

    def __repr__(self) -> str:
        return (
            f"SiteRun({self.model.name}, {self.task.name}, {len(self.task)} prompts, {self.direction}, "
            f"ablation={self.ablation.name}, metric={self.metric.name})"
        )


class Part:
    """Some prompts, with every activation of both runs."""

    def __init__(
        self, model: LensModel, task: Task, metric: Metric, clean: Tensor, base: Tensor, source: Tensor
    ) -> None:
        self.model, self.metric = model, metric
        self.answers, self.wrong = task.answers.to(model.device), task.wrong_answers.to(model.device)
        self.contrast = Contrast.of(self.answers, self.wrong)
        self.answer = task.positions.to(model.device)
        self.contexts = model.contexts(task.clean.shape[1])
        self.embedded = base
        self.base, final = self.record(base)
        self.source, other = self.record(source)
        self.clean_log_probs = None
        if metric.needs_clean:
            original = final if clean is base else other if clean is source else self.record(clean)[1]
            self.clean_log_probs = torch.log_softmax(model.readout.logits(original).double(), dim=-1)
        self.base_metric, self.source_metric = self.measure(final), self.measure(other)

    def record(self, embedded: Tensor) -> tuple[Values, Tensor]:
        """Every activation of a run, and its final residual."""
        values: Values = defaultdict(list)

        def keep(kind: str, _layer: int, value: Tensor, _narrow: bool) -> Tensor:
            values[kind].append(value)
            return value

        final = forward(self.model, self.contexts, Start(0, 0, 0, embedded), keep, answer=self.answer, trim=False)
        return values, final

    def measure(self, residual: Tensor) -> Float[Tensor, "*sample example"]:
        """The metric of final residuals."""
        return self.metric(
            Prediction(residual, self.model.readout, self.answers, self.wrong, self.clean_log_probs, self.contrast)
        )

    @cached_property
    def _changed(self) -> dict[tuple[str, int], Tensor]:
        return {}

    def changed(self, site: Site) -> Bool[Tensor, " pos"]:
        """The positions at which a site's two values differ for any prompt."""
        key = (site.kind, site.layer)
        if key not in self._changed:
            different = self.base[site.kind][site.layer] != self.source[site.kind][site.layer]
            if site.kind == "neurons":
                self._changed[key] = different.any(0).T  # [neuron, pos]
            elif KINDS[site.kind].parts:
                self._changed[key] = different.any(-1).any(1)  # [part, pos]
            else:
                self._changed[key] = different.any(-1).any(0)[None]
        found = self._changed[key]
        found = found.any(0) if site.part is None else found[site.part]
        if site.position is None:
            return found
        own = torch.zeros_like(found)
        own[site.position] = found[site.position]
        return own

    @torch.no_grad()
    def run(
        self, patches: Sequence[Patch], size: Callable[[int, int], int], chunks: Chunks, progress: Progress
    ) -> Tensor:
        """The metric under every patch; ``size`` says how many fit, given numbers of prompts and positions."""
        result = self.base_metric.repeat(len(patches), 1)
        groups: dict[tuple[int, int, int], list[tuple[int, list[Site]]]] = defaultdict(list)
        last = int(self.answer.max())
        for number, patch in enumerate(patches):
            active: list[Site] = []
            first = last + 1
            for site in patch:
                places = self.changed(site)[: last + 1].nonzero()
                if len(places):
                    active.append(site)
                    first = min(first, int(places[0]))
            if active:
                layer, stage = min((site.layer, KINDS[site.kind].stage) for site in active)
                groups[layer, stage, first].append((number, active))
        done = len(patches) - sum(map(len, groups.values()))
        length = self.contexts[0].bias.shape[-1]
        for (layer, stage, first), members in sorted(groups.items(), key=lambda item: item[0]):
            work = partial(self._patched, self.start(layer, stage, first), members)
            for rows, values in chunks.over(len(members), size(len(self.answer), length - first), work):
                result[[number for number, _ in members[rows]]] = values.to(result)
                done += len(values)
                progress(done, len(patches))
        return result

    def _patched(
        self, start: Start, members: list[tuple[int, list[Site]]], rows: slice
    ) -> Float[Tensor, "patch example"]:
        """The metric under some of the patches, which have their first layer, stage and position in common."""
        visit = _Replace(self, [sites for _, sites in members[rows]], start.position)
        final = forward(self.model, self.contexts, start, visit, answer=self.answer)
        return torch.where(self.answer >= start.position, self.measure(final), self.base_metric)

    def start(self, layer: int, stage: int, first: int) -> Start:
        """The base run up to a stage."""
        values = self.base

        def tail(value: Tensor) -> Tensor:
            return value[None, ..., first:, :]

        residual = tail(values["resid_pre"][layer])
        z = middle = None
        if stage >= 1:
            z = tail(values["z"][layer])
        if stage >= 2:
            middle = tail(values["resid_mid"][layer] if "resid_mid" in values else
                          values["resid_pre"][layer] + values["attn_out"][layer])  # fmt: skip
        before = ([value[..., :first, :] for value in values[letter]] for letter in "kv") if first else ((), ())
        keys, raw = before
        return Start(layer, stage, first, residual, z, middle, tuple(keys), tuple(raw))


class _Replace:
    """A visitor that puts the source's values where the patches say."""

    def __init__(self, part: Part, patches: list[list[Site]], first: int) -> None:
        self.part, self.first, self.samples = part, first, len(patches)
        self.todo: dict[tuple[str, int], list[tuple[int, Site]]] = defaultdict(list)
        for sample, sites in enumerate(patches):
            for site in sites:
                self.todo[site.kind, site.layer].append((sample, site))

    def __call__(self, kind: str, layer: int, value: Tensor, narrow: bool) -> Tensor:
        todo = self.todo.get((kind, layer))
        if todo is None:
            return value
        value = value.expand(self.samples, *value.shape[1:]).clone()
        source = self.part.source[kind][layer]
        source = at(source, self.part.answer) if narrow else source[..., self.first :, :]
        for sample, site in todo:
            old, new = value[sample], source
            if site.part is not None:
                part = slice(site.part, site.part + 1)
                old, new = (x[..., part] if kind == "neurons" else x[part] for x in (old, new))
            if site.position is None:
                old.copy_(new)
            elif narrow:
                rows = self.part.answer == site.position
                old[..., rows, :, :] = new[..., rows, :, :]
            else:
                old[..., site.position - self.first, :] = new[..., site.position - self.first, :]
        return value


def sweep(
    run: SiteRun,
    kind: str,
    *,
    parts: bool | None = None,
    positions: bool | Iterable[int] = False,
    window: int = 1,
    progress: Progress = silent,
) -> Effects:
    """Patch every place of one kind in turn.

    Args:
        run: base and source.
        kind: a name from `sites.KINDS`.
        parts: each head, group or neuron by itself; by default wherever the kind has heads or groups and ``window``
            is 1.
        positions: each position by itself: True for all, or some of them.
        window: layers patched together, ``w`` of them around each (arXiv 2202.05262: layers ``l - w//2`` up to
            ``l + ceil(w/2) - 1``, cut at the ends). The result is a joint effect; ``singles`` holds the sum of the
            single ones.
        progress: called with the number of patches done and to do.

    Returns:
        An array layer × (head, group or neuron) × position, the last two where asked for.

    Raises:
        InvalidOption: a kind, window or position that does not exist here, or nothing selected.

    Cost: one patch for each entry (see `SiteRun`).

    Source: arXiv 2309.16042.

    Example:
        >>> from patching import toy
        >>> effects = sweep(SiteRun(toy.model(), toy.task()), "z")
        >>> effects.axes, tuple(effects.mean.shape)
        (('layer', 'head'), (1, 2))
    """
    what = kind_of(kind, run.model.architecture)
    layers = len(run.model.blocks)
    if isinstance(window, bool) or not isinstance(window, int) or not 1 <= window <= layers:
        raise InvalidOption(f"expected a window of 1 to {layers} layers, as many as the model has; got {window!r}.")
    if parts is None:
        parts = splits(what, None) and window == 1
    if parts and what.parts is None:
        raise InvalidOption(f"expected parts=False: {kind} has no heads, groups or neurons.")
    chosen = chosen_positions(run, positions)
    members = range(count_parts(what, run.model)) if parts else (None,)
    spans = [range(max(0, layer - window // 2), min(layers, layer + (window + 1) // 2)) for layer in range(layers)]
    patches = [
        tuple(Site(kind, layer, part, position) for layer in span)
        for span in spans
        for part in members
        for position in chosen
    ]
    effects = (run(patches, progress=progress) - run.base_metric).T
    axes, labels = axes_of(what, layers, members if parts else None, chosen)
    shape = [len(known) for known in labels]
    values = effects.reshape(len(effects), *shape)
    singles = None
    if window > 1:
        single = sweep(run, kind, parts=parts, positions=positions).values
        singles = torch.stack([single[:, list(span)].sum(1) for span in spans], dim=1)
    options = {"kind": kind, "parts": parts, "positions": [p for p in chosen if p is not None], "window": window}
    return Effects(
        values, axes, labels, run.base_metric, run.source_metric, run.provenance("activation patching", options),
        singles=singles,
    )  # fmt: skip


def splits(kind: Kind, parts: bool | None) -> bool:
    """Whether parts are taken one by one: heads and groups by default, neurons on request."""
    return kind.parts in ("head", "group") if parts is None else parts and kind.parts is not None


def chosen_positions(run: SiteRun, positions: bool | Iterable[int]) -> list[int | None]:
    """The positions of a sweep: ``[None]`` for all at once.

    Raises:
        InvalidOption: none are chosen.
    """
    if positions is False:
        return [None]
    chosen = list(range(run.length)) if positions is True else list(positions)
    if not chosen:
        raise InvalidOption("expected at least one position; got none. positions=True takes all.")
    return list(chosen)


def axes_of(
    kind: Kind, layers: int, members: Sequence[int | None] | range | None, positions: list[int | None]
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Names and labels of the axes of an array over layers, parts and positions."""
    axes, labels = ["layer"], [tuple(f"L{layer}" for layer in range(layers))]
    if members is not None:
        assert kind.parts is not None
        letter = {"head": "H", "group": "G", "neuron": "N"}[kind.parts]
        axes.append(kind.parts)
        labels.append(tuple(f"{letter}{member}" for member in members))
    if positions != [None]:
        axes.append("position")
        labels.append(tuple(str(position) for position in positions))
    return tuple(axes), tuple(labels)
