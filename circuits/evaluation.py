"""What a circuit is worth: how much of the behaviour is left when everything outside it is ablated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.bootstrap import Interval, Scale
from circuits.knockout import KnockOut, Minimality, edge_run, in_blocks, knock_out, mean_and_spread
from circuits.knockout import minimality as each_edge
from circuits.random_circuits import random_edges, random_paths
from graphs.circuit import Circuit
from graphs.components import ComponentGraph
from patching.errors import InvalidOption
from patching.masked import MaskedRun
from patching.progress import Progress, silent


@dataclass(frozen=True)
class Report:
    """The worth of a circuit on some prompts; metrics are means over prompts, in the metric's unit.

    Attributes:
        metric: name of the metric.
        prompts: how many.
        clean: the metric of the whole model.
        ablated: the metric with every edge ablated.
        circuit: the metric with every edge outside the circuit ablated.
        complement: the metric with every edge of the circuit ablated.
        faithfulness: (circuit - ablated) / (clean - ablated); 1 is the whole model, 0 nothing. Not clipped. None when
            the gap between clean and ablated is too small to divide by.
        interval: 95 % bootstrap interval of faithfulness over prompts.
        completeness_gap: (complement - ablated) / (clean - ablated): what the model still does without the circuit;
            0 when the circuit is all there is.
        random_faithfulness: faithfulness of random circuits of as many edges (mean of several).
        n_edges, n_nodes, n_possible: size of the circuit, and edges of the model (at every position, if the circuit's
            edges have positions).
        ablation: what ablated edges carry.
        random_spread: standard deviation of faithfulness over those random circuits.
        random_paths: faithfulness of random unions of paths from input to logits, of at least as many edges (mean of
            several): a harder comparison, for random edges rarely join up. None for circuits with positions.
        random_paths_spread: standard deviation over those.
        kl: KL(model ‖ circuit) of the next token, in nats, mean over prompts.
        kl_worst: the same on the prompt where it is largest.
        kl_ablated: KL(model ‖ everything ablated).
        kl_faithfulness: 1 - kl / kl_ablated: 1 is the whole model, 0 nothing, below 0 worse than nothing.
        kl_random: the same for the random circuits (mean).
        kl_random_spread: standard deviation over them.
        intervals: 95 % bootstrap intervals over prompts, of every figure above by its name; none for a single prompt.
        minimality: what each edge does within the circuit, if asked for.
        knock_out: what the model does as the circuit's edges go, if asked for.
        notes: what a reader should know before believing the figures.
    """

    metric: str
    prompts: int
    clean: float
    ablated: float
    circuit: float
    complement: float
    faithfulness: float | None
    interval: Interval | None
    completeness_gap: float | None
    random_faithfulness: float | None
    n_edges: int
    n_nodes: int
    n_possible: int
    ablation: str = ""
    random_spread: float | None = None
    random_paths: float | None = None
    random_paths_spread: float | None = None
    kl: float | None = None
    kl_worst: float | None = None
    kl_ablated: float | None = None
    kl_faithfulness: float | None = None
    kl_random: float | None = None
    kl_random_spread: float | None = None
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    minimality: Minimality | None = None
    knock_out: KnockOut | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> Mapping[str, Any]:
        """As plain data."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"{self.n_edges:,} of {self.n_possible:,} edges ({self.n_edges / self.n_possible:.2%}), "
            f"{self.n_nodes} nodes; {self.prompts} prompts",
            f"{self.metric}: model {self.clean:.3f}, circuit {self.circuit:.3f}, "
            f"all ablated {self.ablated:.3f}, all but the circuit {self.complement:.3f}",
            f"faithfulness {self._share('faithfulness')}",
            f"  random circuits of this size {self._share('random_faithfulness', self.random_spread)}",
        ]
        if self.random_paths is not None:
            lines.append(f"  random paths of this size {self._share('random_paths', self.random_paths_spread)}")
        lines.append(f"left without the circuit {self._share('completeness_gap')}")
        if self.kl is not None and self.kl_ablated is not None:
            lines.append(
                f"KL to the model {self.kl:.3g} (worst prompt {self.kl_worst:.3g}, all ablated {self.kl_ablated:.3g}): "
                f"KL faithfulness {self._share('kl_faithfulness')}; "
                f"random circuits {self._share('kl_random', self.kl_random_spread)}"
            )
        lines += [f"minimality: {self.minimality}"] if self.minimality is not None else []
        lines += [f"knock-out: {self.knock_out}"] if self.knock_out is not None else []
        return "\n".join(lines + [f"note: {note}" for note in self.notes])

    def _share(self, name: str, spread: float | None = None) -> str:
        """A figure as a percentage, with its spread and interval."""
        value = getattr(self, name)
        if value is None:
            asked = self.faithfulness is None or not name.endswith(("random", "random_faithfulness"))
            return "undefined (no gap between clean and ablated)" if asked else "not asked for"
        around = "" if spread is None else f" ± {spread:.1%}"
        low_high = self.intervals.get(name)
        return f"{value:.1%}{around}" + (
            f" (95 %: {low_high[0]:.1%} to {low_high[1]:.1%})" if low_high is not None else ""
        )


def evaluate(
    run: MaskedRun,
    circuit: Circuit,
    *,
    random_circuits: int = 10,
    resamples: int = 1000,
    seed: int = 0,
    minimality: bool = False,
    knockout: bool = False,
    progress: Progress = silent,
) -> Report:
    """Run the circuit alone, its complement, and random circuits of its size.

    ``faithfulness = (m(circuit) - m(ablated)) / (m(clean) - m(ablated))``, a ratio of means over prompts.

    Cost: two masked runs and two per random circuit; for the KL, a clean and an ablated forward, a masked run and one
    per random circuit. ``minimality`` adds one run per edge, ``knockout`` up to 21, and 105 for its random orders.

    Args:
        run: prompts (preferably not those of the search), ablation and metric.
        circuit: of this model; edges may have positions.
        random_circuits: how many random circuits of each kind to compare with.
        resamples: of prompts, for the intervals.
        seed: of the random circuits and resamples.
        minimality: also take out each edge alone.
        knockout: also take the circuit's edges out of the whole model, one after the other.
        progress: called with the number of runs done and in all; each of the two additions counts anew.

    Raises:
        InvalidMask: the circuit is of a model of another shape, or of positions that the prompts lack.
        InvalidOption: a negative count.

    Source: faithfulness as in arXiv 2403.19647 and 2504.13151 (f(C)); there it is not clipped either.

    Example:
        >>> from patching import MaskedRun, toy
        >>> from circuits import acdc
        >>> run = MaskedRun(toy.model(), toy.task())
        >>> evaluate(run, acdc.search(run, tau=0.0)).prompts
        4
    """
    run = edge_run(run, circuit)
    if random_circuits < 0 or resamples < 0:
        raise InvalidOption(f"expected counts of 0 or more; got {random_circuits=}, {resamples=}.")
    generator = torch.Generator().manual_seed(seed)
    own = run.mask_of(circuit)
    edges, paths = _random_masks(run, circuit, own, random_circuits, generator)
    masks = torch.cat((own[None], 1 - own[None], edges, paths))
    values = in_blocks(run, len(masks), masks.__getitem__, progress=progress)
    scale = Scale.of(run, resamples=resamples, generator=generator)
    figures = _figures(scale, values, len(edges)) | _kl(run, masks[: 2 + len(edges)], values, scale)
    intervals = figures.pop("intervals") | figures.pop("kl_intervals")
    options: dict[str, Any] = {"resamples": resamples, "seed": seed, "progress": progress}
    report = Report(
        metric=run.metric.name,
        prompts=len(run.task),
        interval=intervals.get("faithfulness"),
        n_edges=circuit.n_edges,
        n_nodes=len(circuit.nodes),
        n_possible=own.numel(),
        ablation=run.ablation.name,
        intervals=intervals,
        minimality=each_edge(run, circuit, **options) if minimality else None,
        knock_out=knock_out(run, circuit, **options) if knockout else None,
        **figures,
    )
    return _with_notes(report, scale, higher_is_better=run.metric.higher_is_better)


def kl_run(run: MaskedRun) -> MaskedRun:
    """The same model, prompts and replacements judged by KL(model ‖ run); costs a clean and an ablated forward."""
    if run.metric.name == "kl":
        return run
    other = MaskedRun(run.model, run.task, ablation=run.ablation, metric="kl", memory=run.memory)
    if not run.ablation.is_run:  # constants may have been trained since the run was made
        other = other.with_constants(run.batches[0].replacement)
    return other.positions() if run.per_position else other


def _random_masks(
    run: MaskedRun, circuit: Circuit, own: Tensor, count: int, generator: torch.Generator
) -> tuple[Float[Tensor, "sample *pos edge"], Float[Tensor, "sample *pos edge"]]:
    """Masks of random edges and of random paths; where edges have positions, of random edges at random positions."""
    none = own[None][:0]
    if any(edge.position is not None for edge in circuit.edges):
        size = int(own.sum())
        flat = torch.zeros(count, own.numel(), dtype=own.dtype)
        for row in flat:
            row[torch.randperm(len(row), generator=generator)[:size]] = 1.0
        return flat.reshape(count, *own.shape), none

    def draw(kind: Callable[..., Bool[Tensor, " edge"]]) -> Tensor:
        graph: ComponentGraph = run.graph
        rows = [kind(graph, n=circuit.n_edges, generator=generator).to(own.dtype) for _ in range(count)]
        return torch.stack([row.expand(own.shape) for row in rows]) if rows else none

    return draw(random_edges), draw(random_paths)


def _figures(scale: Scale, values: Float[Tensor, "sample example"], n_random: int) -> dict[str, Any]:
    """Of the circuit, its complement, random circuits and random paths, in this order."""
    circuit, complement = values[:2]
    edges, paths = values[2 : 2 + n_random], values[2 + n_random :]
    means = {"clean": scale.clean, "ablated": scale.ablated, "circuit": circuit, "complement": complement}
    shares = {"faithfulness": circuit, "completeness_gap": complement}
    shares |= {"random_faithfulness": edges.mean(0)} if len(edges) else {}
    shares |= {"random_paths": paths.mean(0)} if len(paths) else {}
    intervals = {name: scale.mean_interval(value) for name, value in means.items()}
    intervals |= {name: scale.share_interval(value) for name, value in shares.items()}
    random, spread = mean_and_spread([scale.share(row) for row in edges])
    random_path, path_spread = mean_and_spread([scale.share(row) for row in paths])
    return {
        **{name: float(value.mean()) for name, value in means.items()},
        "faithfulness": scale.share(circuit),
        "completeness_gap": scale.share(complement),
        "random_faithfulness": random,
        "random_spread": spread,
        "random_paths": random_path,
        "random_paths_spread": path_spread,
        "intervals": {name: each for name, each in intervals.items() if each is not None},
    }


def _kl(run: MaskedRun, masks: Tensor, values: Float[Tensor, "sample example"], scale: Scale) -> dict[str, Any]:
    """KL to the model, of the circuit and of random circuits; ``masks`` start with the circuit and its complement."""
    judge = kl_run(run)
    if judge is not run:
        chosen = torch.cat((masks[:1], masks[2:]))
        values = in_blocks(judge, len(chosen), chosen.__getitem__)
    else:
        values = torch.cat((values[:1], values[2 : len(masks)]))
    kl_scale = scale.with_ends(judge.clean_metric, judge.corrupt_metric)
    circuit, random = values[0], values[1:]
    intervals = {
        "kl": kl_scale.mean_interval(circuit),
        "kl_ablated": kl_scale.mean_interval(kl_scale.ablated),
        "kl_faithfulness": kl_scale.share_interval(circuit),
        "kl_random": kl_scale.share_interval(random.mean(0)) if len(random) else None,
    }
    mean, spread = mean_and_spread([kl_scale.share(row) for row in random])
    return {
        "kl": float(circuit.mean()),
        "kl_worst": float(circuit.max()),
        "kl_ablated": float(kl_scale.ablated.mean()),
        "kl_faithfulness": kl_scale.share(circuit),
        "kl_random": mean,
        "kl_random_spread": spread,
        "kl_intervals": {name: each for name, each in intervals.items() if each is not None},
    }


def _with_notes(report: Report, scale: Scale, *, higher_is_better: bool) -> Report:
    """The report with what should be known before its figures are believed."""
    notes = list(scale.doubts)
    faithfulness = report.faithfulness
    if faithfulness is not None and (report.clean < report.ablated) == higher_is_better:
        notes.append("the whole model does worse than with everything ablated: it does not do this task.")
    if report.n_edges in (0, report.n_possible):
        what = "has no edges: ask for more, or a lower threshold" if not report.n_edges else "is the whole model"
        notes.append(f"the circuit {what}.")
    if faithfulness is not None and faithfulness > 1.05:
        notes.append("the circuit does better than the whole model: what it leaves out works against the task.")
    best = max((each for each in (report.random_faithfulness, report.random_paths) if each is not None), default=None)
    if faithfulness is not None and best is not None and 0 < report.n_edges < report.n_possible and (
        best >= faithfulness
    ):  # fmt: skip
        notes.append("random circuits of this size do as well.")
    if report.prompts < 2:
        notes.append("one prompt has no intervals.")
    return replace(report, notes=tuple(notes))
