"""Interchange accuracy: whether the nodes of a model do what the variables of a program do.

For a base and a source prompt, the writes of some nodes are exchanged for those that they make on the source. A model
that implements the program then answers as the program does when the variables of these nodes are exchanged; exchanging
nodes that hold no variable changes no answer. `patching.compiled.interchange` says what the program answers, and
`MaskedRun` over nodes runs the model, so this does not depend on how a model came about.

Source: arXiv 2106.02997; strict: arXiv 2407.14494.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from graphs.nodes import INPUT, Node
from patching.compiled.interchange import Interchange, alignment, draw
from patching.compiled.language import Program
from patching.errors import InvalidOption
from patching.lens import LensModel
from patching.masked import MaskedRun
from patching.progress import Progress, silent
from patching.task import Task

MOST_SUBSETS = 31
"""Sets of nodes are all tried together up to this number; beyond, single nodes, pairs, and all of them."""


@dataclass(frozen=True)
class Accuracy:
    """How often a model answers as the program does, under one interchange.

    Attributes:
        nodes: whose writes were exchanged, as text.
        n: interventions.
        accuracy: share of them in which the program's answer has the highest logit of all.
        n_changed: those in which the program's answer is another than without the interchange.
        accuracy_changed: share of these; None if there are none.
    """

    nodes: tuple[str, ...]
    n: int
    accuracy: float
    n_changed: int
    accuracy_changed: float | None


@dataclass(frozen=True)
class Report:
    """How far a model implements a program.

    Attributes:
        task: plain accuracy.
        variables: for each node that holds variables, its interchange.
        joint: for sets of several such nodes.
        strict: for each node that holds none, and for all of them together.
    """

    task: Accuracy
    variables: tuple[Accuracy, ...]
    joint: tuple[Accuracy, ...]
    strict: tuple[Accuracy, ...]

    @property
    def interchange_accuracy(self) -> float:
        """The mean over nodes that hold variables: the figure of the literature.

        Half of the interventions on each node are such that the program's answer changes, as far as there are any.
        """
        return sum(each.accuracy for each in self.variables) / len(self.variables)

    @property
    def lowest(self) -> float:
        """The lowest accuracy of all: of any node or set of nodes, with variables or without."""
        return min(each.accuracy for each in (self.task, *self.variables, *self.joint, *self.strict))

    def to_dict(self) -> dict[str, Any]:
        """As plain data, shares to four places."""

        def row(each: Accuracy) -> dict[str, Any]:
            return {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(each).items()}

        named = {"variables": self.variables, "joint": self.joint, "strict": self.strict}
        return {
            "interchange_accuracy": round(self.interchange_accuracy, 4),
            "lowest": round(self.lowest, 4),
            "task": row(self.task),
            **{name: [row(each) for each in rows] for name, rows in named.items()},
        }


def report(
    model: LensModel, program: Program, *, n: int = 200, seed: int = 0, split: str = "held-out",
    progress: Progress = silent,
) -> Report:  # fmt: skip
    """Measure every node, sets of nodes, and the nodes that should not matter.

    Args:
        model: one in which the program's nodes stand where its compiled model has them; it may have more.
        program: that it should implement.
        n: interventions on each node or set.
        seed: of their draw.
        split: `train` or `held-out`; both prompts of an intervention are of it.
        progress: told of every node or set.

    Cost: n forwards with one node or set replaced, for each, and two plain runs of n prompts.

    Raises:
        InvalidOption: the model has fewer layers or heads than the program, or another vocabulary; or the program has
            no variables that nodes could hold.

    Example:
        >>> from patching import compiled
        >>> found = report(compiled.model("reverse"), compiled.program("reverse"), n=16)
        >>> found.interchange_accuracy, found.lowest
        (1.0, 1.0)
    """
    aligned = tuple(alignment(program))
    _check(model, program, aligned)
    others = tuple(node for node in model.graph.sources if node not in aligned and node != INPUT)
    joint = subsets(aligned)
    total, done = 1 + len(aligned) + len(joint) + len(others) + (len(others) > 1), 0

    def measured(sets: Iterable[tuple[Node, ...]], *, strict: bool = False) -> tuple[Accuracy, ...]:
        nonlocal done
        found = []
        for nodes in sets:
            drawn = draw(program, () if strict else nodes, n=n, seed=seed, split=split)
            found.append(accuracy(model, program, drawn, exchanged=nodes))
            done += 1
            progress(done, total)
        return tuple(found)

    return Report(
        task=measured([()])[0],
        variables=measured((node,) for node in aligned),
        joint=measured(joint),
        strict=measured([*((node,) for node in others), *([others] if len(others) > 1 else [])], strict=True),
    )


def accuracy(
    model: LensModel, program: Program, drawn: Sequence[Interchange], *, exchanged: Sequence[Node] | None = None
) -> Accuracy:
    """How often a model answers as the program does, when nodes write what they write on the source prompts.

    Args:
        model: the model.
        program: whose answers are right.
        drawn: interventions, all on the same nodes.
        exchanged: the model's nodes whose writes are exchanged; those of the interventions by default.

    Cost: a run over nodes with one mask: two plain forwards of all prompts, and what follows the nodes once more.

    Raises:
        InvalidOption: no interventions, or several sets of nodes among them.

    Example:
        >>> from patching import compiled
        >>> program = compiled.program("and_gate")
        >>> drawn = draw(program, tuple(alignment(program))[:1], n=8, seed=0)
        >>> accuracy(compiled.model("and_gate"), program, drawn)
        Accuracy(nodes=('a0.h0',), n=8, accuracy=1.0, n_changed=4, accuracy_changed=1.0)
    """
    sets = {each.nodes for each in drawn}
    if len(sets) != 1:
        raise InvalidOption(f"expected interventions on one set of nodes; got {len(sets)} sets.")
    nodes = tuple(drawn[0].nodes if exchanged is None else exchanged)
    run = MaskedRun(model, task_of(program, drawn), metric="margin").nodes()
    mask = run.ones()
    mask[[run.graph.source_index[node] for node in nodes]] = 0.0
    right = (run(mask) > 0).cpu()
    changed = torch.tensor([each.matters for each in drawn])
    return Accuracy(
        nodes=tuple(map(str, nodes)),
        n=len(drawn),
        accuracy=float(right.double().mean()),
        n_changed=int(changed.sum()),
        accuracy_changed=float(right[changed].double().mean()) if bool(changed.any()) else None,
    )


def task_of(program: Program, drawn: Sequence[Interchange]) -> Task:
    """Bases as clean prompts, sources as corrupt ones; the answer is the program's under the interchange.

    Raises:
        InvalidOption: an intervention has no single answer.
    """
    number = {token: row for row, token in enumerate(program.vocabulary)}
    if any(each.answer is None for each in drawn):
        raise InvalidOption("expected interventions with one right answer each; some have several. Leave those out.")
    return Task(
        name=program.name,
        clean=prompt_rows(program, [each.base for each in drawn]),
        corrupt=prompt_rows(program, [each.source for each in drawn]),
        answers=torch.tensor([[number[str(each.answer)]] for each in drawn]),
        wrong_answers=torch.full((len(drawn), 1), -1),
        positions=torch.tensor([len(each.base) for each in drawn]),
        metric="margin",
        starts_with_bos=True,
    )


def prompt_rows(program: Program, prompts: Sequence[Sequence[str]]) -> torch.Tensor:
    """Token ids of prompts with `BOS` in front, padded on the right with it: [prompt, context]."""
    number = {token: row for row, token in enumerate(program.vocabulary)}
    rows = torch.zeros(len(prompts), program.context, dtype=torch.long)
    for row, prompt in zip(rows, prompts, strict=True):
        row[1 : len(prompt) + 1] = torch.tensor([number[token] for token in prompt])
    return rows


def subsets(nodes: Sequence[Node]) -> list[tuple[Node, ...]]:
    """Sets of two or more nodes: all of them if they are few, else pairs of neighbours and all nodes together.

    Example:
        >>> from graphs import Node
        >>> [" ".join(map(str, each)) for each in subsets([Node.parse(name) for name in ("a0.h0", "m0", "a1.h0")])]
        ['a0.h0 m0', 'a0.h0 a1.h0', 'm0 a1.h0', 'a0.h0 m0 a1.h0']
    """
    from itertools import chain, combinations, pairwise

    if len(nodes) < 2:
        return []
    if 2 ** len(nodes) - 1 <= MOST_SUBSETS:
        return list(chain.from_iterable(combinations(nodes, size) for size in range(2, len(nodes) + 1)))
    return [*pairwise(nodes), tuple(nodes)]


def _check(model: LensModel, program: Program, aligned: Sequence[Node]) -> None:
    if not aligned:
        raise InvalidOption(f"expected a program with variables for nodes to hold; {program.name} has none.")
    missing = [str(node) for node in aligned if node not in model.graph.source_index]
    if missing:
        raise InvalidOption(
            f"expected a model with {', '.join(map(str, aligned))}, where {program.name} stands; {model.name} has no "
            f"{', '.join(missing)}."
        )
    words = None if model.tokenizer is None else model.tokenizer.get_vocab()
    if words is not None and words != {token: row for row, token in enumerate(program.vocabulary)}:
        raise InvalidOption(
            f"expected a model with the tokens {' '.join(program.vocabulary)} of {program.name}; {model.name} has "
            "others."
        )
