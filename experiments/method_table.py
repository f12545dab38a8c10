"""Every method on one task, at one size, judged on held-out prompts: ``python -m experiments.method_table``.

Methods that score give their top edges, grown from the logits so that they join up; ACDC gets the largest threshold
that keeps at least as many edges, edge pruning that sparsity. The other learned masks have a price and no size: theirs
is what their default price gives. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from circuits import acdc, evaluate, tasks
from circuits.methods import METHODS, Method
from circuits.select import greedy_edges
from graphs.circuit import Circuit
from patching import LensModel, MaskedRun

TAUS = tuple(0.01 * 1.25**step for step in range(24))


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        method: Its name.
        edges: How many its circuit has.
        faithfulness: Of the metric, on held-out prompts.
        kl: 1 - KL(model ‖ circuit) / KL(model ‖ ablated).
        left: Faithfulness of everything but the circuit.
        seconds: CPU time of the method.
    """

    method: str
    edges: int
    faithfulness: float | None
    kl: float | None
    left: float | None
    seconds: float


def found(method: Method, run: MaskedRun, *, n: int) -> Circuit:
    """The circuit of a method, of about n edges where it lets itself be asked for a size."""
    if method.gives == "scores":
        return greedy_edges(method.function()(run), n=n)
    if method.name == "acdc":
        fitting = [circuit for circuit in acdc.sweep(run, taus=TAUS) if circuit.n_edges >= n]
        return fitting[-1]
    if method.name == "edge_pruning":
        return method.function()(run, sparsity=1 - n / run.n_units)
    return method.function()(run)


def measure(
    *, task: str = "ioi", model: str = "zoo:ioi", n: int = 80, prompts: int = 32, held_out: int = 100
) -> list[Row]:
    """Run every method that works on edges."""
    lens, made = LensModel.load(model), tasks.load(task)
    run = MaskedRun(lens, made.make(lens, n=prompts, seed=0, split="train"))
    judge = MaskedRun(lens, made.make(lens, n=held_out, seed=0, split="held-out"))
    rows = []
    for method in METHODS.values():
        if "edge" in method.levels:
            start = time.process_time()
            circuit = found(method, run, n=n)
            seconds = time.process_time() - start
            report = evaluate(judge, circuit, random_circuits=0, resamples=0)
            figures = (report.faithfulness, report.kl_faithfulness, report.completeness_gap)
            rows.append(Row(method.name, circuit.n_edges, *figures, seconds))
    return rows


def table(rows: Sequence[Row]) -> str:
    """As Markdown, most faithful by KL first."""

    def share(value: float | None) -> str:
        return "–" if value is None else f"{value:.0%}"

    lines = [
        "| method | edges | faithfulness | KL faithfulness | left without it | seconds (CPU) |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in sorted(rows, key=lambda row: -(row.kl or 0.0)):
        lines.append(
            f"| `{row.method}` | {row.edges} | {share(row.faithfulness)} | {share(row.kl)} | {share(row.left)} "
            f"| {row.seconds:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.method_table", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--task", default="ioi")
    parser.add_argument("--model", default="zoo:ioi")
    parser.add_argument("--n", type=int, default=80, help="edges of each circuit")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--held-out", type=int, default=100)
    sys.stdout.write(table(measure(**vars(parser.parse_args(arguments)))))


if __name__ == "__main__":
    main()
