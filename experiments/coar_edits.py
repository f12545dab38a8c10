"""Model edits from component attributions, on five faults: ``python -m experiments.coar_edits``.

The tasks of the COAR-Edit paper carried over to a transformer: fix one error, forget one answer, raise the weakest
group, remove a backdoor, resist a label. For each: attribute the output of a few target and reference prompts to every
neuron, rank by Welch's t, choose k on validation prompts, write the edit into the weights, and measure the
model's own forward on prompts that none of this has seen. Prints a table; --write puts it into docs/coar-edits.md.

Source: arXiv 2404.11534. There: images, convolution filters and rows of matrices.
"""

# ruff: noqa: TID253  # a script of its own, which the command line does not import
from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuits import coar
from circuits.coar.edit import Edit
from circuits.coar.ranking import Choice, Ranking, choose, rank
from circuits.tasks.ioi import generate
from experiments.edit_cases import CASES, Case, Sizes, drawn_ordinary, kin, parts_of
from experiments.planted_models import Pair
from graphs.atomic import write_text
from graphs.nodes import Node
from patching.component_run import ComponentRun
from patching.lens import LensModel
from patching.metrics import Metric, Prediction
from patching.task import Task

RANDOM_DRAWS = 10


def _margin(prediction: Prediction) -> Tensor:
    logits = prediction.logits
    answer = prediction.answers[:, :1].expand(*logits.shape[:-1], 1)
    rivals = logits.scatter(-1, answer, -torch.inf)
    return logits.gather(-1, answer).squeeze(-1) - rivals.amax(-1)


MARGIN = Metric("margin", True, _margin)
"""Logit of the answer minus the highest other logit of the whole vocabulary: above 0 exactly where the model is right.

The correct-class margin of the paper.
"""


@dataclass(frozen=True)
class Row:
    """What an edit did; accuracies are shares of prompts whose answer has the highest logit of all.

    Attributes:
        case: its name.
        note: what the target prompts are.
        k, units, of: how many units, which come first, out of how many.
        attributed: accuracy on the attributed targets, before and after.
        target, ordinary: accuracy on held-out targets and on held-out ordinary prompts, before and after.
        random, magnitude: held-out target and ordinary accuracy after ablating k random units (mean of ten draws), and
            the k whose output weights are longest.
        predicted, realised: change of the mean margin of the attributed targets.
        correlation: of predicted with true outputs on fresh random ablations, over the attributed prompts.
        seconds: wall clock for attributing, choosing and measuring.
    """

    case: str
    note: str
    k: int
    of: int
    units: tuple[str, ...]
    attributed: tuple[float, float]
    target: tuple[float, float]
    ordinary: tuple[float, float]
    random: tuple[float, float]
    magnitude: tuple[float, float]
    predicted: float
    realised: float
    correlation: float
    seconds: float


def task_of(model: LensModel, pairs: Sequence[Pair]) -> Task:
    """Prompts with their answers as a task; nothing is swapped, since edits replace by constants."""
    texts, answers = [text for text, _ in pairs], [answer for _, answer in pairs]
    made = Task.from_prompts(
        model.tokenizer, name="edit", clean=texts, corrupt=texts, answers=answers, wrong_answers=[[] for _ in pairs]
    )
    return made


def margins(model: LensModel, pairs: Sequence[Pair]) -> Float[Tensor, " example"]:
    """Margins from the model's own forward, edits in its weights included."""
    task = task_of(model, pairs)
    logits = model.logits(task.clean)[torch.arange(len(task)), task.positions].double()
    right = logits.gather(-1, task.answers)
    return (right - logits.scatter(-1, task.answers, -torch.inf).amax(-1, keepdim=True)).squeeze(-1)


def accuracy(model: LensModel, pairs: Sequence[Pair]) -> float:
    """Share of prompts whose margin is above 0."""
    return float((margins(model, pairs) > 0).double().mean())


class Work:
    """A case in progress: its attribution, ranking, choice of k and edit."""

    def __init__(self, case: Case, sizes: Sizes, attribution: coar.Attribution | None = None) -> None:
        self.case, self.sizes = case, sizes
        if attribution is not None:
            self.attribution = attribution
        self.run = self.run_on([*case.attributed[0], *case.attributed[1]])

    def run_on(self, pairs: Sequence[Pair]) -> ComponentRun:
        """The case's components on some prompts."""
        case = self.case
        task = task_of(case.model, pairs)
        return ComponentRun(case.model, task, components=case.components, ablation=case.ablation, metric=MARGIN)

    @cached_property
    def attribution(self) -> coar.Attribution:
        """Of the attributed targets, then the attributed ordinary prompts."""
        return coar.attribute(self.run, samples=self.sizes.samples, keep=self.case.keep, seed=0)

    @cached_property
    def ranking(self) -> Ranking:
        """First to ablate first."""
        count = len(self.case.attributed[0])
        targets, references = slice(0, count), slice(count, None)
        return rank(self.attribution, targets=targets, references=references, direction=self.case.direction)

    @cached_property
    def choice(self) -> Choice:
        """How many, from validation prompts: at most 2 % of the ordinary ones may be lost."""
        ks = range(0, min(self.sizes.most, len(self.ranking)) + 1, self.sizes.spacing)
        fine = range(min(9, len(self.ranking) + 1))
        validation = self.case.validation
        edits = self._edit_runs(validation)
        options: dict[str, Any] = {"max_damage": 0.02, "measure": "above-zero", "goal": self.case.goal}
        return choose(edits[0], self.ranking, references=edits[1], ks=[*fine, *ks], **options)

    def _edit_runs(self, pairs: tuple[list[Pair], list[Pair]]) -> list[ComponentRun]:
        """Runs on validation prompts in which units are replaced by what the edit will write, not by means anew."""
        whole = Edit.of(self.run, self.ranking.first(min(self.sizes.most, len(self.ranking))))
        return [whole.run(self.case.model, task_of(self.case.model, each), metric=MARGIN) for each in pairs]

    @cached_property
    def edit(self) -> Edit:
        """The chosen units at the attributed run's replacements."""
        return Edit.of(self.run, self.choice.units, provenance={"rule": self.choice.rule, "k": self.choice.k})

    def after(self, edit: Edit, *groups: Sequence[Pair]) -> tuple[float, ...]:
        """Accuracy of the edited model, from its own forward, on groups of prompts."""
        with edit.applied(self.case.model) as model:
            return tuple(accuracy(model, group) for group in groups)

    def random_units(self, draw: int) -> tuple[Node, ...]:
        """As many units as the edit has, at random."""
        order = torch.randperm(self.run.n_units, generator=torch.Generator().manual_seed(draw))
        return tuple(self.run.units[i] for i in order[: self.choice.k].tolist())

    def largest_units(self) -> tuple[Node, ...]:
        """As many, those whose output weights are longest."""
        lengths = torch.stack([_length(self.case.model, unit) for unit in self.run.units])
        order = torch.argsort(-lengths, stable=True)[: self.choice.k].tolist()
        return tuple(self.run.units[i] for i in order)

    def correlation(self) -> float:
        """How well the attribution predicts 100 fresh ablations: correlation per prompt, averaged."""
        masks = coar.MaskDesign(self.run.n_units, 100, self.case.keep, seed=1).rows(0, 100)
        true, predicted = self.run(masks.to(self.run.ones())), self.attribution.predict(masks)
        centred = [each - each.mean(0) for each in (true, predicted)]
        norms = centred[0].norm(dim=0) * centred[1].norm(dim=0)
        return float(((centred[0] * centred[1]).sum(0) / norms).mean())


def _length(model: LensModel, unit: Node) -> Tensor:
    block = model.blocks[unit.layer or 0]
    if unit.kind == "head":
        return block.attention.out[unit.index].norm()
    assert block.mlp is not None
    return block.mlp.w_out[:, unit.index].norm()


def work_through(case: Case, sizes: Sizes, *, attribution: coar.Attribution | None = None) -> Row:
    """Attribute (unless given), choose, edit, measure and undo."""
    start = time.perf_counter()
    work, model = Work(case, sizes, attribution), case.model
    groups = (case.attributed[0], *case.held_out)
    before = [accuracy(model, group) for group in groups]
    mean_before = float(margins(model, case.attributed[0]).mean())
    after = work.after(work.edit, *groups)
    with work.edit.applied(model):
        realised = float(margins(model, case.attributed[0]).mean()) - mean_before
    draws = [work.after(Edit.of(work.run, work.random_units(draw)), *case.held_out) for draw in range(RANDOM_DRAWS)]
    return Row(
        case=case.name,
        note=case.note,
        k=work.choice.k,
        of=work.run.n_units,
        units=tuple(str(unit) for unit in work.choice.units),
        attributed=(before[0], after[0]),
        target=(before[1], after[1]),
        ordinary=(before[2], after[2]),
        random=(statistics.fmean(d[0] for d in draws), statistics.fmean(d[1] for d in draws)),
        magnitude=_pair(work.after(Edit.of(work.run, work.largest_units()), *case.held_out)),
        predicted=work.ranking.predicted(work.choice.k)[0],
        realised=realised,
        correlation=work.correlation(),
        seconds=time.perf_counter() - start,
    )


def _pair(values: tuple[float, ...]) -> tuple[float, float]:
    return values[0], values[1]


def errors(sizes: Sizes) -> list[Row]:
    """Every error of the shipped model among many prompts, each fixed by an edit of its own.

    One attribution serves all: a row for each error, and the rows of the shared references. Held-out targets are the
    error's kin: the same sentence with other places and objects.
    """
    model = LensModel.load("zoo:ioi", device="cpu")
    found = generate(sizes.searched, seed=11, split="held-out-templates")
    pairs = [(prompt.clean, prompt.answer) for prompt in found]
    wrong = [pairs[row] for row in (margins(model, pairs) <= 0).nonzero().flatten().tolist()]
    if not wrong:
        return []
    shared = parts_of(sizes, drawn_ordinary(), drawn_ordinary())
    references = shared[0][1]
    case = Case("fix one error", model, (wrong, references), (wrong, shared[1][1]), ([], shared[2][1]), goal=1.0)
    whole = Work(case, sizes).attribution
    rows = []
    for row, error in enumerate(wrong):
        keep = [row, *range(len(wrong), len(wrong) + len(references))]
        own = replace(whole, weights=whole.weights[keep], intercept=whole.intercept[keep], standard_error=None)
        one = replace(
            case, attributed=([error], references), validation=([error], shared[1][1]),
            held_out=(kin(error)[: sizes.held_out], shared[2][1]), note=f'"{error[0]}"',
        )  # fmt: skip
        rows.append(work_through(one, sizes, attribution=own))
    return rows


# --- what is printed ------------------------------------------------------------------------------------------------

HEADER = (
    "| task | target prompts | k | attributed targets | held-out targets | held-out ordinary | random k | largest k |\n"
    "|---|---|---:|---:|---:|---:|---:|---:|"
)


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown, accuracies in per cent.

    Example:
        >>> accuracies = (0, 1), (0.1, 0.9), (1, 0.99), (0.1, 1), (0, 1)
        >>> row = Row("task", "note", 2, 9, ("m0.n1",), *accuracies, 3.0, 2.5, 0.9, 1.0)
        >>> print(table([row]).splitlines()[-1])
        | task | note | 2 of 9 | 0 → 100 | 10 → **90** | 100 → 99 | 10 / 100 | 0 / 100 |
    """
    lines = [HEADER]
    for row in rows:
        shown = [f"{_percent(a)} → {_percent(b)}" for a, b in (row.attributed, row.ordinary)]
        target = f"{_percent(row.target[0])} → **{_percent(row.target[1])}**"
        others = [f"{_percent(a)} / {_percent(b)}" for a, b in (row.random, row.magnitude)]
        cells = (row.case, row.note, f"{row.k} of {row.of}", shown[0], target, shown[1], *others)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}".removesuffix(".0")


def summary(rows: Sequence[Row]) -> str:
    """What became of errors that were fixed one by one, in a sentence."""
    if not rows:
        return "The model made no error."
    fixed = [row for row in rows if row.attributed[1] == 1]
    cost = statistics.median(row.ordinary[0] - row.ordinary[1] for row in rows)
    kin_before, kin_after = (statistics.median(row.target[which] for row in rows) for which in (0, 1))
    ks = [row.k for row in fixed]
    return (
        f"{len(fixed)} of {len(rows)} errors were fixed, by {_span(ks)} (median {statistics.median(ks or [0]):g}); "
        f"the median accuracy on the error's kin went from {_percent(kin_before)} to {_percent(kin_after)} %, and the "
        f"median loss on ordinary prompts was {100 * cost:.1f} points."
    )


def _span(values: Sequence[int]) -> str:
    if not values or max(values) == 1:
        return "one unit each" if values else "no units"
    return f"{min(values)} to {max(values)} units"


def details(rows: Sequence[Row]) -> str:
    """How well each edit was foreseen, in Markdown."""
    lines = ["| task | correlation | predicted | realised | units, first to ablate first |", "|---|---:|---:|---:|---|"]
    for row in rows:
        units = ", ".join(f"`{unit}`" for unit in row.units[:8]) + (", …" if len(row.units) > 8 else "")
        numbers = f"{row.correlation:.2f} | {row.predicted:+.2f} | {row.realised:+.2f}"
        lines.append(f"| {row.case} | {numbers} | {units or 'none'} |")
    return "\n".join(lines)


def run_all(sizes: Sizes, names: Sequence[str], *, told: Callable[[str], None]) -> tuple[list[Row], list[Row]]:
    """The errors, and the named cases."""
    fixed = errors(sizes) if "errors" in names else []
    rows = []
    for name in names:
        if name in CASES:
            told(name)
            rows.append(work_through(CASES[name](sizes), sizes))
    return fixed, rows


def main(arguments: Sequence[str]) -> None:
    """Run the tasks and print the table; with --write, put it into a guide too."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    known = ("errors", *CASES)
    asked = {"nargs": "*", "default": known, "choices": (*known, known), "metavar": "TASK"}
    parser.add_argument("names", help=f"out of {', '.join(known)}; all if none is given", **asked)
    parser.add_argument("--write", metavar="FILE", help="a guide in which to replace the tables")
    parser.add_argument("--json", metavar="FILE", help="where to keep the rows")
    options = parser.parse_args(arguments)
    if options.write and set(options.names) != set(known):
        parser.error("--write replaces whole tables: leave out the names of tasks")
    torch.set_num_threads(1)
    fixed, rows = run_all(Sizes(), options.names, told=_say)
    shown = [*fixed[:1], *rows]
    one_by_one = f"{summary(fixed)}\n\n" if "errors" in options.names else ""
    sys.stdout.write(f"{table(shown)}\n\n{one_by_one}{details(shown)}\n")
    if options.json:
        write_text(options.json, json.dumps([asdict(row) for row in (*fixed, *rows)], indent=1))
    if options.write:
        guide = Path(options.write)
        write_text(guide, filled(guide.read_text(encoding="utf-8"), shown, fixed))


def _say(name: str) -> None:
    sys.stderr.write(f"{name}\n")


def filled(text: str, rows: Sequence[Row], fixed: Sequence[Row]) -> str:
    """A guide with its tables replaced: what stands between ``<!-- name -->`` and ``<!-- end -->``."""
    parts = {"table": table(rows), "errors": summary(fixed), "details": details(rows)}
    for name, content in parts.items():
        start, end = text.index(f"<!-- {name} -->"), text.index("<!-- end -->", text.index(f"<!-- {name} -->"))
        text = f"{text[:start]}<!-- {name} -->\n{content}\n{text[end:]}"
    return text


if __name__ == "__main__":
    main(sys.argv[1:])
