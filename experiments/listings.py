"""The tables of what there is: models, tasks, methods, and the environment. Nothing here loads torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from circuits import tasks
from circuits.methods import METHODS
from experiments.config import ABLATIONS, KINDS, METRICS, PATCHING
from experiments.model_files import FAMILIES, describe, zoo
from patching import compiled

if TYPE_CHECKING:
    from rich.table import Table


def models() -> Table:
    """Every model that ships, with size and accuracy, and every compiled one, with the size of its true circuit."""
    grid = _table("model", "parameters", "size", "shape", "accuracy on held-out prompts")
    for name in zoo():
        shipped = describe(name)
        splits = [f"{share:.1%} ({split})" for split, share in shipped.accuracy.items()]
        count = "?" if shipped.parameters is None else f"{shipped.parameters:,}"
        grid.add_row(name, count, f"{shipped.size / 1e6:.1f} MB", shipped.shape, "\n".join(splits) or "not recorded")
    for name in compiled.zoo_names():
        truth = compiled.truth(name)
        shape = truth.architecture
        known = f"truth known: {truth.n_edges} of {truth.n_possible} edges"
        size = f"{shape.n_layers} layers, {shape.n_heads} heads, width {compiled.program(name).width}"
        grid.add_row(name, "compiled", "no file", size, known)
    return grid


def families() -> str:
    """The families that any model may be of, as a sentence."""
    return (
        f"Also any causal model of these families, from a folder in Hugging Face format or by its hub name: "
        f"{', '.join(FAMILIES.values())}; and attention-only or gated models of TransformerLens itself, in Python. "
        "Every model is checked when it is loaded: one that would be computed wrongly is refused."
    )


def task_table() -> Table:
    """Every task: what it asks, its splits and corruptions."""
    grid = _table("task", "what it asks", "splits", "corruptions")
    for name in sorted(tasks.TASKS):
        module = tasks.load(name)
        first = (module.__doc__ or "").strip().splitlines()[0]
        lists = ["\n".join(getattr(module, table, ())) for table in ("SPLITS", "CORRUPTIONS")]
        grid.add_row(name, first, *lists)
    return grid


def method_table() -> Table:
    """Every method: what it gives, its options, its source."""
    grid = _table("method", "gives", "options", "what it does", "source")
    for method in METHODS.values():
        options = [*method.options, *(["n"] if method.gives == "scores" else [])]
        grid.add_row(method.name, method.gives, "\n".join(options), method.summary, method.source)
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


def _table(*names: str) -> Table:
    from rich import box
    from rich.table import Table

    grid = Table(box=box.SIMPLE, pad_edge=False)
    for number, name in enumerate(names):
        grid.add_column(name, no_wrap=number == 0, overflow="fold")
    return grid
