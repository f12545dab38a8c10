"""How much checking finds the true top sites, method by method: ``python -m experiments.verified_recall --help``.

The comparison of the AtP* paper (arXiv 2403.00745, section 4) on any model and task: every site of a kind is patched
for the truth, cheap estimates rank them, and `patching.verification` says how many runs each ranking costs until the
top K are all found.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from circuits import tasks
from patching import Effects, LensModel, Site, SiteRun, atp_star, gradients, sweep, verification
from patching.verification import Comparison, Estimate, SubsetStatistics

BACKWARD = 2.0  # forwards that a backward counts as
FIX = 2.0  # the most that the QK fix costs, in forwards (measured: below 1)


def estimates(
    run: SiteRun, kind: str, *, positions: bool, seed: int = 0
) -> tuple[list[Estimate], Effects, SubsetStatistics]:
    """Every method's ranking with its cost, the truth, and what random subsets say.

    Costs per prompt pair, without the base run that all share: AtP one forward and one backward; the QK fix at most
    two forwards more; GradDrop the backward of l layers for each of L layers, ``(L - 1) / 2`` backwards; one forward
    per subset or block.
    """
    layers = len(run.model.blocks)
    true = sweep(run, kind, positions=positions)
    chosen: list[Estimate] = []
    once = 1.0 + BACKWARD
    drops = BACKWARD * (layers - 1) / 2
    variants: list[tuple[str, float, Callable[[], Effects]]] = [
        ("AtP", once, lambda: atp_star.scores(run, kind, positions=positions, qk_fix=False, grad_drop=False)),
        ("AtP + GradDrop", once + drops, lambda: atp_star.scores(run, kind, positions=positions, qk_fix=False)),
        ("RelP", once, lambda: gradients.relp(run, kind, positions=positions)),
        ("IG (5 steps)", 1 + 5 * once, lambda: gradients.inputs(run, kind, positions=positions)),
    ]
    if kind in ("q", "k"):
        variants += [
            ("AtP + QK fix", once + FIX, lambda: atp_star.scores(run, kind, positions=positions, grad_drop=False)),
            ("AtP*", once + FIX + drops, lambda: atp_star.scores(run, kind, positions=positions)),
        ]
    for name, cost, score in variants:
        chosen.append(Estimate(name, score().importance.flatten().double().cpu(), cost))
    units = [(site,) for site in sites(true, kind)]
    patched, count = run.jointly(units), len(units)
    chosen.append(verification.iterative(count, seed=seed))
    samples = max(64, count // 2)
    statistics = verification.subsampling(patched, count, samples=samples, share=0.1, seed=seed)
    chosen.append(statistics.estimate())
    chosen.append(verification.blocks(patched, count, size=max(2, round(count**0.5)), seed=seed))
    chosen.append(verification.hierarchical(patched, count, budget=max(8, count // 2), seed=seed))
    return chosen, true, statistics


def sites(effects: Effects, kind: str) -> list[Site]:
    """The site of every entry of a sweep, in order."""
    sizes = [range(len(known)) for known in effects.labels]
    grid = torch.cartesian_prod(*(torch.tensor(list(size)) for size in sizes)).reshape(-1, len(sizes)).tolist()
    found = []
    for entry in grid:
        place = dict(zip(effects.axes, entry, strict=True))
        part = next((place[axis] for axis in ("head", "group", "neuron") if axis in place), None)
        position = int(effects.labels[-1][place["position"]]) if "position" in place else None
        found.append(Site(kind, place["layer"], part, position))
    return found


def show(comparison: Comparison, console: Console) -> None:
    """The table on the terminal."""
    frame = comparison.to_frame()
    headers = {"estimate_cost": "cost", "aggregate": "relative cost"}
    table = Table(*(headers.get(column, column.replace("relative@", "K = ")) for column in map(str, frame.columns)))
    for row in frame.itertuples(index=False):
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row))
    console.print(table)


def main() -> None:
    """Measure, print, and write a figure and a table."""
    parser = argparse.ArgumentParser(prog="python -m experiments.verified_recall", description=__doc__)
    parser.add_argument("task", nargs="?", default="ioi", choices=sorted(tasks.TASKS))
    parser.add_argument("--model", default="zoo:ioi", help="zoo name, directory or hub name")
    parser.add_argument("--kind", default="q", help="kind of site (patching.sites.KINDS)")
    parser.add_argument("--positions", action="store_true", help="every position by itself")
    parser.add_argument("--n", type=int, default=16, help="prompts")
    parser.add_argument("--top", type=int, default=None, help="largest K; all by default")
    parser.add_argument("--direction", default="noising", choices=("noising", "denoising"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="figure (.svg, .pdf, .png); the table goes beside it")
    options = parser.parse_args()
    model = LensModel.load(options.model)
    run = SiteRun(
        model, tasks.load(options.task).make(model, n=options.n, seed=options.seed), direction=options.direction
    )
    found, true, statistics = estimates(run, options.kind, positions=options.positions, seed=options.seed)
    comparison = verification.compare(found, true.importance.flatten().double().cpu(), k=options.top)
    console = Console()
    show(comparison, console)
    best = min(zip(comparison.recalls, found, strict=True), key=lambda pair: pair[0].aggregate)[1]
    checked = best.order()[:10].tolist()
    console.print(
        f"After checking the top {len(checked)} of {best.name}: {statistics.bound(verified=checked).statement}"
    )
    if options.out is not None:
        comparison.plot(options.out)
        comparison.to_frame().to_csv(options.out.with_suffix(".csv"), index=False)


if __name__ == "__main__":
    main()
