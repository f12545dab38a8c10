"""Edits from a run of `wiretrace attribute`: rank components, choose how many on other prompts, save, report.

attribution -> Welch's t of targets against the other prompts -> k on validation prompts -> held-out prompts -> edit
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits import tasks
from experiments.attribute import AttributeConfig, prepare, saved
from experiments.discover import HELD_OUT_SPLIT, SEARCH_SPLIT
from experiments.errors import BadConfig
from experiments.progress_display import Display, Silence

if TYPE_CHECKING:
    from torch import Tensor

    from circuits.coar import Edit
    from circuits.coar.ranking import Choice
    from patching.component_run import ComponentRun

DAMAGE = 0.05
"""How much of their mean metric the other prompts may lose, unless told."""


@dataclass(frozen=True)
class Edited:
    """What an edit does.

    Attributes:
        edit: the edit.
        choice: every number of components that was tried.
        rows: name, prompts, mean metric before and after, of the targets and of prompts that were not used.
        metric: its name.
        out: the file.
    """

    edit: Edit
    choice: Choice
    rows: tuple[tuple[str, int, float, float], ...]
    metric: str
    out: Path


def edit(
    folder: Path,
    *,
    targets: str,
    direction: str,
    out: Path,
    most: int | None = None,
    max_damage: float | None = None,
    show: Display | None = None,
) -> Edited:
    """Make an edit from the attribution in a run directory.

    Args:
        folder: of a run of `wiretrace attribute`, whose ablation gives one value for all prompts (zero, mean).
        targets: numbers of prompts with commas, ``wrong`` (metric below 0), or ``lowest:N`` and ``highest:N``.
        direction: ``raise`` or ``lower`` the targets' output.
        out: the file of the edit, ending in .json.
        most: the most components that may be ablated.
        max_damage: how much worse the mean metric of other prompts may become; 5 % of it by default.
        show: where progress goes.

    Raises:
        WiretraceError: something is wrong; the message says what.
    """
    from circuits.coar import Edit, choose, rank
    from patching.component_run import ComponentRun

    if out.suffix != ".json":
        raise BadConfig(f"expected --out to end in .json; got {out}.")
    show = show or Silence()
    made = saved(folder)
    config, found = made.config, made.attribution
    run, _ = prepare(config, show=show)
    Edit.of(run, run.units[:1])  # refuses ablations that are no constants, before anything is computed
    rows = target_rows(targets, run.clean_metric)
    others = [row for row in range(len(run.task)) if row not in set(rows)]
    if not others:
        raise BadConfig("expected some prompts that are no targets, to leave alone. Name fewer targets.")
    ranking = rank(found, targets=rows, references=others, direction=direction)  # pyright: ignore[reportArgumentType]

    def on(task: Any) -> ComponentRun:
        return ComponentRun(run.model, task, components=run.units, ablation=config.ablation, metric=config.metric)

    import torch

    maker = tasks.load(config.task)
    validation = on(maker.make(run.model, n=config.prompts, seed=config.seed + 1, split=SEARCH_SPLIT))
    chosen_targets = on(run.task.subset(torch.tensor(rows)))
    limit = DAMAGE * abs(float(validation.clean_metric.mean())) if max_damage is None else max_damage
    count = min(len(ranking), 100 if most is None else most)
    with show.steps("edits", unit="edit") as progress:
        choice = choose(
            chosen_targets, ranking, references=validation, max_damage=limit, ks=range(count + 1), progress=progress
        )
    result = Edit.of(run, choice.units, provenance=_told(config, targets, rows, direction, choice))
    result.save(out)
    held_out = maker.make(run.model, n=config.prompts, seed=config.seed, split=HELD_OUT_SPLIT)
    judged = (
        ("targets", chosen_targets), ("validation prompts", validation), ("held-out prompts", on(held_out)),
    )  # fmt: skip
    table_rows = tuple((name, len(each.task), *_before_and_after(each, result)) for name, each in judged)
    return Edited(result, choice, table_rows, run.metric.name, out)


def target_rows(text: str, metric: Tensor) -> list[int]:
    """The prompts that a person named.

    Raises:
        BadConfig: none, or numbers that are not there.

    Example:
        >>> import torch
        >>> target_rows("lowest:2", torch.tensor([3.0, -1.0, 0.5])), target_rows("wrong", torch.tensor([3.0, -1.0]))
        ([1, 2], [1])
    """
    count = len(metric)
    kind, _, number = text.partition(":")
    if kind in ("lowest", "highest") and number.isdigit() and 1 <= int(number) < count:
        order = metric.argsort(descending=kind == "highest", stable=True)
        return sorted(order[: int(number)].tolist())
    if text == "wrong":
        rows = (metric < 0).nonzero().flatten().tolist()
        if not rows:
            raise BadConfig("expected prompts that the model gets wrong; its metric is above 0 on all of them.")
        return rows
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) < count for part in parts):
        raise BadConfig(
            f"expected targets as numbers of prompts from 0 to {count - 1} with commas, wrong, lowest:N or highest:N "
            f"with N below {count}; got {text!r}."
        )
    return sorted({int(part) for part in parts})


def _before_and_after(run: ComponentRun, edit: Edit) -> tuple[float, float]:
    before = float(run.clean_metric.mean())
    if not edit.units:
        return before, before
    return before, float(run(run.mask_without(edit.units)).mean())


def _told(config: AttributeConfig, targets: str, rows: list[int], direction: str, choice: Choice) -> dict[str, Any]:
    settings = replace(config, device=None).to_dict()
    chosen = {"targets": targets, "rows": rows, "direction": direction, "k": choice.k, "rule": choice.rule}
    return chosen | {"run": settings}


def table(made: Edited) -> tuple[Any, Any]:
    """The edit, and what it changes, for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    head = Table(show_header=False, box=None, pad_edge=False)
    head.add_column(style="bold", no_wrap=True)
    head.add_column(overflow="fold")
    units = " ".join(map(str, made.edit.units)) or "none: every edit that was tried does harm"
    for name, value in (("ablated", units), ("chosen", made.choice.rule), ("file", str(made.out))):
        head.add_row(Text(name), Text(value))
    grid = Table(box=box.SIMPLE, pad_edge=False, title=f"mean {made.metric.replace('_', ' ')}", title_justify="left")
    for column in ("", "prompts", "before", "after"):
        grid.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, count, before, after in made.rows:
        grid.add_row(name, str(count), *(f"{value:.3f}".replace("-", "−") for value in (before, after)))
    return head, grid
