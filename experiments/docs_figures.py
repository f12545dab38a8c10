"""The figures of the guide `docs/figures.md`, from small runs: ``python -m experiments.docs_figures``.

Half a minute on one CPU core. The same weights and libraries give the same bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from circuits import acdc, coar, features, tasks
from circuits.coar import pictures
from circuits.curves import curve
from circuits.recovery import roc
from circuits.select import top_edges
from circuits.stability import bootstrap
from graphs import plots, trace
from graphs.circuit import Circuit
from graphs.export.comparison import draw_comparison, draw_consensus
from graphs.export.figure import write
from graphs.nodes import LOGITS, Node
from patching import ComponentRun, LensModel, MaskedRun, Scores, SiteRun, atp, compiled, eap_ig, exact, sweep

COLUMN = 3.3
"""Width of a column of a paper, in inches."""

FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def roles(circuit: Circuit) -> dict[str, list[Node]]:
    """Groups of heads and MLPs by what they are wired to.

    Example:
        >>> from graphs import Architecture, Edge
        >>> names = ["input->a0.h0<q>", "a0.h0->m1", "m1->logits"]
        >>> roles(Circuit(Architecture(2, 1), [Edge.parse(name) for name in names]))
        {'writes to the logits': [Node('m1')], 'reads the input alone': [Node('a0.h0')]}
    """
    last = {edge.source for edge in circuit.edges if edge.target == LOGITS}
    fed = {edge.target for edge in circuit.edges if edge.source.kind != "input"}
    inner = [node for node in circuit.nodes if node.kind not in ("input", "logits")]
    first = [node for node in inner if node not in fed and node not in last]
    return {"writes to the logits": [node for node in inner if node in last], "reads the input alone": first}


def draw(folder: Path, *, n: int = 32, said: Callable[[str], None] = print) -> list[Path]:
    """Write every figure; returns their paths.

    Args:
        folder: where to, must exist.
        n: prompts to search on.
        said: told of each file.
    """
    paths: list[Path] = []

    def file(name: str) -> Path:
        paths.append(folder / name)
        said(name)
        return paths[-1]

    model = LensModel.load("zoo:ioi")
    run = MaskedRun(model, tasks.ioi.make(model, n=n, seed=0, split="train"))
    found, steps = _search(run, tau=0.05)
    write(found, file("circuit.svg"), groups=roles(found), title="ACDC on zoo:ioi, tau 0.05")
    scores = {"EAP": atp.scores(run), "EAP-IG": eap_ig.inputs(run)}
    strongest = top_edges(scores["EAP-IG"], n=50)
    write(strongest, file("column.svg"), width=COLUMN)
    draw_comparison(found, strongest, file("comparison.svg"), names=("ACDC", "EAP-IG"), width=COLUMN)
    stable = bootstrap(lambda part: top_edges(eap_ig.inputs(part), n=50), run, resamples=20, seed=0)
    draw_consensus(stable.frequencies, file("frequency.svg"), architecture=found.architecture, least=0.2, width=COLUMN)
    trace.draw(steps, file("trace.png"), tau=0.05, unit="logit difference", title="ACDC on zoo:ioi")
    _faithfulness(MaskedRun(model, tasks.ioi.make(model, n=n, seed=0, split="held-out")), scores, file)
    _effects(model, n, scores, exact.scores(run), file)
    _reverse(file)
    _components(model, n, file)
    _features(model, n, file)
    return paths


def _effects(model: LensModel, n: int, scores: dict[str, Scores], true: Scores, file: Callable[[str], Path]) -> None:
    """Patching as a heat map, and estimates of single edges against what ablating them does."""
    patched = sweep(SiteRun(model, tasks.ioi.make(model, n=n, seed=0, split="train")), "z")
    patched.plot(file("heatmap.svg"), title="every head of zoo:ioi, noising")
    pairs = {name: list(zip(each.values.tolist(), true.values.tolist(), strict=True)) for name, each in scores.items()}
    plots.scatter(pairs, file("scatter.svg"), axes=("estimated effect", "measured effect"), title="edges of zoo:ioi")


def _search(run: MaskedRun, *, tau: float) -> tuple[Circuit, Sequence[trace.Step]]:
    """A search and its course, without times, which differ from run to run."""
    steps: list[trace.Step] = []
    found = acdc.search(run, tau=tau, watch=lambda made: steps.append(trace.Step(made.name, made.kept, made.delta)))
    return found, steps


def _faithfulness(held_out: MaskedRun, scores: dict[str, Scores], file: Callable[[str], Path]) -> None:
    lines, bands = {}, {}
    for name, ranking in scores.items():
        made = curve(held_out, ranking, fractions=FRACTIONS, random_rankings=0)
        points = zip(made.fractions, made.faithfulness, made.intervals, strict=True)
        known = [(share, value, ends) for share, value, ends in points if value is not None]
        lines[name] = [(share, value) for share, value, _ in known]
        if all(ends is not None for *_, ends in known):
            bands[name] = [ends for *_, ends in known]
    plots.faithfulness(lines, file("faithfulness.svg"), intervals=bands, title="zoo:ioi, held-out names")


def _reverse(file: Callable[[str], Path]) -> None:
    """A compiled model, whose circuit is known: found at positions, and held against the truth."""
    model = LensModel.load("zoo:reverse")
    run = MaskedRun(model, compiled.task("reverse", n=16, seed=0))
    true = compiled.truth("reverse")
    write(acdc.search(run.positions(), tau=0.1), file("positions.svg"), title="zoo:reverse, by position")
    curves = {
        name: list(roc(scores, true).points)
        for name, scores in {"EAP": atp.scores(run), "EAP-IG": eap_ig.inputs(run), "exact": exact.scores(run)}.items()
    }
    plots.roc(curves, file("roc.svg"), title="zoo:reverse, edges")


def _components(model: LensModel, n: int, file: Callable[[str], Path]) -> None:
    """Component attribution: weights, held-out correlation beside other methods, interactions."""
    run = ComponentRun(model, tasks.ioi.make(model, n=n, seed=0, split="train"))
    found = coar.attribute(run, samples=1_000)
    pictures.weights(found, file("weights.svg"), title="components of zoo:ioi")
    pictures.correlations(coar.evaluate(run, found, samples=100), file("correlation.svg"), title="zoo:ioi")
    strongest = sorted(found.mean().abs().argsort(descending=True, stable=True)[:16].tolist())
    pairs = coar.interactions(run, chosen=[run.units[place] for place in strongest])
    pictures.interaction_map(pairs, file("interactions.svg"), title="pairs of zoo:ioi")


def _features(model: LensModel, n: int, file: Callable[[str], Path]) -> None:
    """A circuit of the features of the dictionaries that ship."""
    dictionaries = [features.load("zoo:ioi", site) for site in features.shipped.shipped("zoo:ioi")]
    task = tasks.ioi.make(model, n=n, seed=0, split="train")
    found = features.search(model, task, dictionaries, node_threshold=0.3, edge_threshold=0.1, aggregation="sum")
    write(found, file("features.svg"), title="features of zoo:ioi")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/figures"), help="the folder (default: docs/figures)")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    draw(folder)
