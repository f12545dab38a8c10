"""The interactive page of a circuit, with an example of its task and what its heads attend to: `wiretrace view`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from circuits import tasks
from experiments import saved_runs
from experiments.config import Config
from experiments.discover import SEARCH_SPLIT, load_model
from experiments.feature_circuit import is_feature_circuit
from experiments.progress_display import Display, Silence
from experiments.run_directory import status
from graphs.circuit import Circuit
from graphs.export import html

if TYPE_CHECKING:
    import torch

    from patching.lens import LensModel
    from patching.task import Task

LARGEST: Final = 5_000
"""Edges of a circuit that gets a page with its run; more make a page that is slow to draw."""


def attention(model: LensModel, task: Task) -> dict[str, torch.Tensor]:
    """Every head's attention pattern [query, key] on the first prompt of a task, by the head's name.

    Cost: one forward.
    """
    import torch

    from patching.sites import Start, forward

    patterns: dict[str, torch.Tensor] = {}
    length = int(task.positions[0]) + 1

    def keep(kind: str, layer: int, value: torch.Tensor, _narrow: bool) -> torch.Tensor:
        if kind == "pattern":
            patterns.update({f"a{layer}.h{index}": head[0].cpu() for index, head in enumerate(value)})
        return value

    with torch.no_grad():
        start = Start(0, 0, 0, model.embed(task.clean[:1, :length]))
        forward(model, model.contexts(length), start, keep, answer=task.positions[:1].to(model.device), trim=False)
    return patterns


def prompt(model: LensModel, task: Task) -> html.Prompt | None:
    """The first prompt of a task, token by token, with its first right and wrong answer; None without a tokenizer."""
    if model.tokenizer is None:
        return None
    spell = model.tokenizer.decode
    ids = task.clean[0, : int(task.positions[0]) + 1].tolist()
    answers = [spell([int(each[0, 0])]) if int(each[0, 0]) >= 0 else "" for each in (task.answers, task.wrong_answers)]
    return html.Prompt([spell([each]) for each in ids], *answers)


def example(model: LensModel, task: Task) -> dict[str, Any]:
    """The options of a page that show the first prompt of a task."""
    shown = prompt(model, task)
    return {} if shown is None else {"prompt": shown, "attention": attention(model, task)}


def page(
    source: Path,
    *,
    out: Path | None = None,
    other: Path | None = None,
    plain: bool = False,
    show: Display | None = None,
) -> Path:
    """Write the page of a circuit.

    Args:
        source: A run directory, or a file that circuits are read from.
        out: The page; beside the circuit by default.
        other: A second circuit of the same architecture, to be told apart from the first.
        plain: Leave out the example, so that no model is loaded. A file has none.
        show: Where progress goes.

    Returns:
        Where it is.

    Raises:
        WiretraceError: A circuit cannot be read, the two do not belong together, or the page cannot be written.
    """
    circuit = saved_runs.circuit_at(source)
    second: Circuit | None = None if other is None else saved_runs.circuit_at(other)
    path = out or (source / "circuit.html" if source.is_dir() else source.with_suffix(".html"))
    there = status(source) if source.is_dir() else None
    options: dict[str, Any] = {}
    if there is not None and not plain and not is_feature_circuit(source):
        (show or Silence()).say("Loading the model for an example; --plain leaves it out …")
        config = Config.from_dict(there.identity["config"])
        model = load_model(config)
        options = example(model, tasks.load(config.task).make(model, n=1, seed=config.seed, split=SEARCH_SPLIT))
    html.write(circuit, path, other=second, **options)
    return path
