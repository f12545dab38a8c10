"""Would other prompts have given the same circuit? A run's method on resampled prompts: `wiretrace stability`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from circuits import tasks
from circuits.methods import METHODS
from experiments.config import Config
from experiments.discover import (
    SEARCH_SPLIT,
    ablation_of,
    enough_memory,
    load_model,
    selected,
    stoppable,
    to_json,
    units,
)
from experiments.progress_display import Display, Silence
from graphs.atomic import write_text

if TYPE_CHECKING:
    from circuits.stability import Stability, StabilitySelection
    from graphs.circuit import Circuit
    from patching.masked import MaskedRun

SCHEMA: Final = "wiretrace-stability/1"


def resample(
    config: Config, *, resamples: int, threshold: float | None = None, show: Display | None = None
) -> Stability | StabilitySelection:
    """Run a config's method on other draws of its training prompts.

    Args:
        config: What was run.
        resamples: How many draws.
        threshold: None for as many prompts drawn with replacement; else for halves, of which an edge has to be in this
            share.
        show: Where progress goes.

    Raises:
        WiretraceError: The model or task is not what it has to be, or a number is out of range.
    """
    from circuits.stability import bootstrap, stability_selection
    from patching.masked import MaskedRun

    show = show or Silence()
    with stoppable(), enough_memory():
        show.say(f"Loading {config.model} …")
        model = load_model(config)
        task = tasks.load(config.task).make(model, n=config.prompts, seed=config.seed, split=SEARCH_SPLIT)
        run = MaskedRun(model, task, ablation=ablation_of(config, model), metric=config.metric)
        view, method = units(run, config), _method(config)
        with show.steps("stability", unit="circuit") as progress:
            if threshold is None:
                return bootstrap(method, view, resamples=resamples, seed=config.seed, progress=progress)
            return stability_selection(
                method, view, threshold=threshold, resamples=resamples, seed=config.seed, progress=progress
            )


def _method(config: Config) -> Callable[[MaskedRun], Circuit]:
    method = METHODS[config.method]
    function = method.function()

    def found(run: MaskedRun) -> Circuit:
        result = function(run, **config.options)
        return result if method.gives == "circuit" else selected(config, result)

    return found


def write(found: Stability | StabilitySelection, path: Path) -> None:
    """As JSON.

    Raises:
        WriteFailed: The system refuses.
    """
    write_text(path, to_json({"schema": SCHEMA} | found.to_dict()))
