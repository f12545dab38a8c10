"""The tables of what there is: models, tasks, methods, and the environment. Nothing here loads torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from circuits import tasks
from circuits.methods import METHODS
from experiments.config import ABLATIONS, KINDS, METRICS, PATCHING, default_model
from experiments.model_files import FAMILIES, Shipped, describe, sizes, zoo
from graphs.errors import WiretraceError
from patching import agreement_toy, compiled
from patching.compiled.norms import SUFFIX

if TYPE_CHECKING:
    from rich.table import Table

WIDE: Final = 120
"""Columns from which a listing is a table of several columns."""


def model_rows() -> list[Mapping[str, Any]]:
    """Every model, as plain data: those that ship as files, those compiled from programs, the one made by hand.

    A compiled model that there is with LayerNorm too is followed by that one.
    """
    rows: list[Mapping[str, Any]] = [_shipped_row(describe(name)) for name in zoo()]
    normed = compiled.layer_norm_names()
    for name in compiled.zoo_names():
        both = (name, f"{name}{SUFFIX}")
        rows += [_compiled_row(each, layer_norm=each in normed) for each in both if each == name or each in normed]
    return [*rows, _HAND_MADE]


def models(*, width: int = WIDE) -> list[Table]:
    """Models that ship as files, with accuracy and provenance, and compiled ones, with what they compute.

    A compiled model and the same with LayerNorm stand in one row.

    Args:
        width: Columns of the terminal; facts stand below each other where it is narrow.
    """
    trained, built = [], []
    for row in model_rows():
        truth = _truth(row)
        if row.get("layer_norm"):
            name, (computes, shape, _) = built[-1]
            built[-1] = (f"{name}\n{row['model']}", (computes, f"{shape}\n{row['shape']}, LayerNorm", truth))
            continue
        if "computes" in row:
            built.append((row["model"], (row["computes"], row["shape"], truth)))
            continue
        count = "? weights" if row["parameters"] is None else f"{row['parameters']:,} weights"
        size = f"{count}, {row['bytes'] / 1e6:.1f} MB\n{row['shape']}"
        licence = f"\nlicence {row['licence']}" if row["licence"] else ""
        origin = f"{row['made_by'] or 'not recorded'}{licence}"
        trained.append((row["model"], (size, _accuracies(row), truth, origin)))
    return [
        _listed(("model", "size", "accuracy where held out", "true circuit", "made by"), trained, width=width),
        _listed(("compiled model", "computes", "size", "true circuit"), built, width=width),
    ]


def _shipped_row(found: Shipped) -> dict[str, Any]:
    circuit = None
    if found.truth is not None:
        with suppress(WiretraceError):  # a record may name a program of another version
            circuit = compiled.truth(found.name)
    return {
        "model": found.name,
        "provenance": "trained" if found.truth is None else "trained by interchange",
        "parameters": found.parameters,
        "bytes": found.size,
        "shape": found.shape,
        "tasks": list(found.tasks),
        "accuracy": {task: dict(splits) for task, splits in found.accuracy.items()},
        "truth": found.truth,
        "true_edges": None if circuit is None else circuit.n_edges,
        "possible_edges": None if circuit is None else circuit.n_possible,
        "interchange_accuracy": found.interchange_accuracy,
        "text_loss": found.text_loss,
        "made_by": found.made_by,
        "licence": found.licence,
    }


def _compiled_row(name: str, *, layer_norm: bool) -> dict[str, Any]:
    program, truth = compiled.program(name), compiled.truth(name)
    shape = truth.architecture
    width = program.width * (1 + layer_norm)  # which holds everything twice
    return {
        "model": name,
        "provenance": "compiled",
        "computes": program.description,
        "shape": sizes(shape.n_layers, shape.n_heads, width),
        "layer_norm": layer_norm,
        "tasks": [program.name],
        "truth": program.name,
        "true_edges": truth.n_edges,
        "possible_edges": truth.n_possible,
    }


_HAND_MADE: Final[Mapping[str, Any]] = {
    "model": agreement_toy.NAME,
    "provenance": "made by hand",
    "computes": "number agreement: is or are, whatever noun stands between; made by hand, for circuits of features",
    "shape": sizes(1, 1, len(agreement_toy.DIRECTIONS)),
    "layer_norm": False,
    "tasks": [],
    "truth": "circuits.features.agreement_toy",
    "true_edges": None,
    "possible_edges": None,
}


def _truth(row: Mapping[str, Any]) -> str:
    if row["truth"] is None:
        return "not known"
    known = f"{row['true_edges']} of {row['possible_edges']} edges" if row["true_edges"] is not None else row["truth"]
    agreement = row.get("interchange_accuracy")
    return known if agreement is None else f"{known}\ninterchange accuracy {agreement:.1%}"


def _accuracies(row: Mapping[str, Any]) -> str:
    """The lowest accuracy of each task; both splits of a model of one task."""
    lines = []
    for task, splits in row["accuracy"].items():
        split, accuracy = min(splits.items(), key=lambda item: item[1])
        lines.append(f"{task} {accuracy:.1%} ({split})")
    if row["text_loss"] is not None:
        lines.append(f"text {row['text_loss']:.2f} nats per token")
    return "\n".join(lines) or "not recorded"


def families() -> str:
    """The families that any model may be of, as a sentence."""
    return (
        f"Also any causal model of these families, from a folder in Hugging Face format or by its hub name: "
        f"{', '.join(FAMILIES.values())}; and attention-only or gated models of TransformerLens itself, in Python. "
        "Every model is checked when it is loaded: one that would be computed wrongly is refused."
    )


def task_rows() -> list[dict[str, Any]]:
    """Every task, as plain data: what it asks, its splits and corruptions, the models made for it, the default one."""
    models_of: dict[str, list[Mapping[str, Any]]] = {}
    for row in model_rows():
        for task in row["tasks"]:
            models_of.setdefault(task, []).append(row)
    rows = []
    for name in sorted(tasks.TASKS):
        module = tasks.load(name)
        able = models_of.get(name, [])
        rows.append(
            {
                "task": name,
                "asks": (module.__doc__ or "").strip().splitlines()[0],
                "compiled": compiled.is_compiled(f"zoo:{name}"),
                "splits": list(getattr(module, "SPLITS", ())),
                "corruptions": list(getattr(module, "CORRUPTIONS", ())),
                "models": {row["model"]: row.get("accuracy", {}).get(name, {}) for row in able},
                "default_model": _default(name),
            }
        )
    return rows


def task_tables(*, width: int = WIDE) -> list[Table]:
    """Tasks of text, with splits, corruptions and the models made for them, and those of compiled programs.

    Args:
        width: Columns of the terminal; facts stand below each other where it is narrow.
    """
    text, programs = [], []
    for row in task_rows():
        able = "\n".join(_able(row)) or "none ships"
        if row["compiled"]:
            programs.append((row["task"], (row["asks"].removeprefix("Compiled, truth known: "), able)))
        else:
            lists = (", ".join(row["splits"]), ", ".join(row["corruptions"]))
            text.append((row["task"], (row["asks"], able, *lists)))
    heads = ("task", "what it asks", "models (accuracy where held out)", "splits", "corruptions")
    return [
        _listed(heads, text, width=width),
        _listed(("task, truth known", "what it asks", "models"), programs, width=width),
    ]


def _able(row: Mapping[str, Any]) -> list[str]:
    """The models of a task, the default one first, each with its lowest accuracy."""
    names = sorted(row["models"], key=lambda name: name != row["default_model"])
    return [f"{name} {min(row['models'][name].values()):.1%}" if row["models"][name] else name for name in names]


def _default(task: str) -> str | None:
    try:
        return default_model(task)
    except WiretraceError:
        return None


def method_table() -> Table:
    """Every method: what it gives, its options, its source."""
    grid = _table("method", "gives", "options", "what it does", "source")
    for method in METHODS.values():
        options = [*method.options, *(["n"] if method.gives == "scores" else [])]
        grid.add_row(method.name, method.gives, "\n".join(options), f"{method.summary}; {method.cost}", method.source)
    return grid


CHOICES = {
    "metric": ("what it is", METRICS),
    "ablation": ("what an ablated edge carries", ABLATIONS),
    "kind": ("what `wiretrace patch --kind` patches", KINDS),
    "patching": ("what `wiretrace patch --method` does", PATCHING),
}


def choices(what: str) -> Table:
    """The choices of one sort, a key of `CHOICES`, in words."""
    words, known = CHOICES[what]
    grid = _table(what, words)
    for name, meaning in known.items():
        grid.add_row(name, meaning)
    return grid


def to_json(rows: Sequence[Mapping[str, Any]]) -> str:
    """A listing as JSON, for scripts."""
    return json.dumps(rows, indent=2, allow_nan=False)


def _listed(heads: tuple[str, ...], rows: Sequence[tuple[str, tuple[str, ...]]], *, width: int) -> Table:
    """Names with facts: a column each, or below each other where the terminal is narrow."""
    from rich.text import Text

    if width >= WIDE:
        grid = _table(*heads)
        for name, facts in rows:
            grid.add_row(Text(name), *map(Text, facts))
        return grid
    grid = _table(heads[0], "; ".join(heads[1:]))
    for name, facts in rows:
        grid.add_row(Text(name), Text("\n".join(fact for fact in facts if fact)), end_section=True)
    return grid


def _table(*names: str) -> Table:
    from rich import box
    from rich.table import Table

    grid = Table(box=box.SIMPLE, pad_edge=False)
    for number, name in enumerate(names):
        grid.add_column(name, no_wrap=number == 0, overflow="fold")
    return grid
