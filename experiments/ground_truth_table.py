"""How well methods find circuits that are known by construction: ``python -m experiments.ground_truth_table``.

For every program of `patching.compiled`, methods search the model on pairs of prompts with different answers, and what
they find is held against the circuit that was read off the program. Prints a table in Markdown: how much of each
circuit is found, or, with ``--table auroc`` and ``--table trained``, how well every method ranks the edges of compiled
models, and the nodes of interchange-trained ones (`experiments.known_scores`).

Source: the tracr models and logic gates of the ACDC paper, arXiv 2304.14997, section 4 and appendix M.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from circuits import acdc
from circuits.recovery import auroc
from experiments import known_scores
from experiments.errors import BadConfig
from experiments.known_scores import DECIMALS, Ranking, rank_edges, rank_trained
from experiments.nearest import require_known
from graphs.circuit import Circuit
from graphs.errors import WiretraceError
from patching import LensModel, MaskedRun, compiled, exact
from patching.compiled.trained import SUFFIX, ZOO

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

TAUS = (0.001, 0.01, 0.1, 1.0, 3.0)
"""Thresholds, in logits; the right answer leads by 10 in most programs."""

TABLES = ("circuits", "auroc", "models", "trained")
"""What there is to print; ``models`` is what the cards of interchange-trained models say, and measures nothing."""


@dataclass(frozen=True)
class Found:
    """A circuit against the truth.

    Attributes:
        tau: threshold that gave it.
        precision: share of its edges that are true; 1 if it has none.
        recall: share of the true edges that it has.
    """

    tau: float
    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall.

        Example:
            >>> round(Found(0.1, 1.0, 0.6).f1, 2)
            0.75
        """
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


@dataclass(frozen=True)
class Row:
    """What the methods made of one program.

    Attributes:
        name: of the program.
        edges: of the model.
        true: edges of the circuit.
        acdc: the best of ACDC over thresholds.
        absolute: the same, comparing absolute changes with the threshold.
        exact: AUROC of exact edge effects, by absolute value.
        eap: AUROC of their first-order estimates (edge attribution patching).
        eap_recall: share of the true edges among as many edges of the largest estimates.
        unseen: true edges that the estimate gives exactly nothing.
    """

    name: str
    edges: int
    true: int
    acdc: Found
    absolute: Found
    exact: float
    eap: float
    eap_recall: float
    unseen: int


def measure(
    name: str, *, prompts: int = 32, seed: int = 0, taus: Sequence[float] = TAUS, sharpness: float | None = None
) -> Row:
    """Search one compiled model with every method and compare with the truth.

    Cost: two ACDC searches per threshold, one run per edge, and a backward.

    Args:
        name: of the program.
        prompts: pairs of the training split.
        seed: of the draw.
        taus: thresholds to try.
        sharpness: of the heads; that of the compiler by default, at which patterns are saturated.

    Raises:
        UnknownName: there is no such program; models with LayerNorm and trained ones are none.
        InvalidOption: sharpness is not a positive number, or there are no prompts.

    Example:
        >>> measure("previous_token", prompts=8).acdc.f1
        1.0
    """
    import torch

    from patching.compiled.compiler import SHARPNESS, compile_program

    require_known("a program", name, compiled.PROGRAMS)
    sharpness = SHARPNESS if sharpness is None else sharpness
    model = compile_program(compiled.program(name), dtype=torch.float64, sharpness=sharpness)
    run = MaskedRun(model, compiled.task(name, n=prompts, seed=seed))
    truth = compiled.truth(name)
    positive = run.mask_of(truth).bool()
    estimate, true = (values.abs().round(decimals=DECIMALS) for values in (eap(run), exact.scores(run).values))
    return Row(
        name=name,
        edges=run.n_units,
        true=truth.n_edges,
        acdc=_best(run, truth, taus, absolute=False),
        absolute=_best(run, truth, taus, absolute=True),
        exact=auroc(true, positive),
        eap=auroc(estimate, positive),
        eap_recall=_recall_at_n(estimate, positive),
        unseen=int((estimate[positive] == 0).sum()),
    )


def eap(run: MaskedRun) -> Float[Tensor, " edge"]:
    """First-order effect of every edge: minus the gradient of the metric with respect to the mask, where it is 1.

    Cost: a dense masked forward and backward. `atp.scores` gives the same numbers without the engine's masks.

    Source: arXiv 2310.10348, whose estimate this gradient is: change of the source times gradient at the target.
    """
    return -run.gradient(run.ones()).double()


def _best(run: MaskedRun, truth: Circuit, taus: Sequence[float], *, absolute: bool) -> Found:
    """The best F1 over thresholds; of equals, the first threshold."""
    found = []
    for tau in taus:
        kept = set(acdc.search(run, tau=tau, absolute=absolute).edges)
        shared = len(kept & set(truth.edges))
        found.append(Found(tau, shared / len(kept) if kept else 1.0, shared / truth.n_edges))
    return max(found, key=lambda each: each.f1)


def _recall_at_n(scores: Float[Tensor, " edge"], positive: Bool[Tensor, " edge"]) -> float:
    """Share of the n true edges among the n largest scores; tied ones count by the share of them that has room."""
    n = int(positive.sum())
    limit = scores.sort(descending=True).values[n - 1]
    above, tied = scores > limit, scores == limit
    room = (n - int(above.sum())) / int(tied.sum())
    return (int((above & positive).sum()) + room * int((tied & positive).sum())) / n


def table(rows: Iterable[Row]) -> str:
    """The rows as a table in Markdown."""
    lines = [
        "| program | edges | true | ACDC: best F1 | precision | recall | with absolute changes | exact: AUROC | "
        "EAP: AUROC | EAP: recall at n | true edges that EAP scores 0 |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        best = row.acdc
        lines.append(
            f"| `{row.name}` | {row.edges} | {row.true} | {best.f1:.2f} | {best.precision:.2f} | {best.recall:.2f} | "
            f"{row.absolute.f1:.2f} | {row.exact:.2f} | {row.eap:.2f} | {row.eap_recall:.2f} | {row.unseen} |"
        )
    return "\n".join(lines)


def edge_rankings(names: Iterable[str], *, prompts: int, seed: int) -> Iterator[Ranking]:
    """How well every method ranks the edges of compiled models."""
    import torch

    for name in names:
        run = MaskedRun(compiled.model(name, dtype=torch.float64), compiled.task(name, n=prompts, seed=seed))
        yield rank_edges(name, run, taus=TAUS)


def trained_rankings(names: Iterable[str], *, prompts: int, seed: int) -> tuple[list[Ranking], list[Ranking]]:
    """How well every method ranks the nodes of interchange-trained models, and which of them read which."""
    import torch

    nodes: list[Ranking] = []
    pairs: list[Ranking] = []
    for name in names:
        model = LensModel.load(f"zoo:{name}{SUFFIX}", dtype=torch.float64, device="cpu")
        run = MaskedRun(model, compiled.task(name, n=prompts, seed=seed))
        by_node, by_pair = rank_trained(name, run, taus=TAUS)
        nodes.append(by_node)
        pairs += [] if by_pair is None else [by_pair]
    return nodes, pairs


def trained_models(names: Iterable[str]) -> str:
    """What the records of interchange-trained models say, as a table in Markdown."""
    lines = [
        "| model | nodes with variables | of | accuracy, held out | interchange accuracy, held out | on training "
        "prompts | lowest of all nodes and sets, held out | CPU seconds |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in names:
        folder = ZOO / f"{name}{SUFFIX}"
        record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        held_out, train = record["interchange"]["held-out"], record["interchange"]["train"]
        nodes = "; ".join(f"`{node}` {', '.join(held)}" for node, held in record["alignment"].items())
        shape = compiled.truth(f"{name}{SUFFIX}").architecture
        lines.append(
            f"| `zoo:{name}{SUFFIX}` | {nodes} | {shape.n_layers * (shape.n_heads + 1)} | "
            f"{held_out['task']['accuracy']:.1%} | {record['interchange_accuracy']:.1%} | "
            f"{train['interchange_accuracy']:.1%} | {held_out['lowest']:.1%} | {record['cpu_seconds']:.0f} |"
        )
    return "\n".join(lines)


def printed(what: str, names: Sequence[str], *, prompts: int, seed: int, sharpness: float | None) -> str:
    """One of the tables, a key of `TABLES`, in Markdown.

    Args:
        what: which.
        names: of programs; in tables of trained models, of those that have one.
        prompts: pairs of prompts.
        seed: of the draw.
        sharpness: of the heads, in the first table alone; that of the compiler by default.

    Raises:
        UnknownName: there is no such program, or it has no trained model.
        BadConfig: a sharpness for another table.
    """
    if sharpness is not None and what != "circuits":
        raise BadConfig(
            f"expected --sharpness with --table circuits alone; the models of --table {what} have their own."
        )
    known = _trained_programs() if what in ("models", "trained") else tuple(compiled.PROGRAMS)
    for name in names:
        require_known("a program with a trained model" if what in ("models", "trained") else "a program", name, known)
    names = names or known
    if what == "circuits":
        return table(measure(name, prompts=prompts, seed=seed, sharpness=sharpness) for name in names)
    if what == "auroc":
        return known_scores.table(edge_rankings(names, prompts=prompts, seed=seed))
    if what == "models":
        return trained_models(names)
    return "\n\n".join(known_scores.table(rows) for rows in trained_rankings(names, prompts=prompts, seed=seed) if rows)


def _trained_programs() -> tuple[str, ...]:
    """The programs that have a trained model, in their own order."""
    return tuple(name for name in compiled.PROGRAMS if f"zoo:{name}{SUFFIX}" in compiled.trained_names())


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.ground_truth_table", description=__doc__)
    parser.add_argument("programs", nargs="*", metavar="PROGRAM", help="all of the table by default")
    parser.add_argument("--prompts", type=int, default=32, help="pairs of prompts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--sharpness", type=float, help="of the heads, for --table circuits; 200 by default, 20 leaks 0.005 %%"
    )
    parser.add_argument("--table", choices=TABLES, default="circuits", help="which table")
    options = parser.parse_args(arguments)
    chosen = {"prompts": options.prompts, "seed": options.seed, "sharpness": options.sharpness}
    try:
        found = printed(options.table, options.programs, **chosen)
    except WiretraceError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    sys.stdout.write(f"{found}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
