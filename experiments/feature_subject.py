"""What the commands about features work on: a dictionary, its model, and prompts to run it on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits import tasks
from experiments.config import Config, default_model
from experiments.discover import HELD_OUT_SPLIT, SEARCH_SPLIT, load_model
from experiments.errors import BadConfig
from experiments.progress_display import Display

if TYPE_CHECKING:
    from circuits.features.activations import Prompts
    from circuits.features.dictionary import Dictionary
    from patching.lens import LensModel
    from patching.task import Task

LARGEST_TEXT = 100_000_000
"""Bytes of a file of prompts."""


@dataclass(frozen=True)
class Asked:
    """Which model and prompts a command was given; None for what the dictionary was trained with.

    Attributes:
        task: name of a task.
        model: name or folder of a model.
        text: a file of prompts, one per line, in place of a task's.
        prompts: how many of the task's prompts.
        seed: of these.
        device: where to run.
        held_out: take the task's held-out split.
    """

    task: str | None = None
    model: str | None = None
    text: Path | None = None
    prompts: int = 256
    seed: int = 0
    device: str | None = None
    held_out: bool = False


@dataclass(frozen=True)
class Subject:
    """A model with prompts.

    Attributes:
        config: names and numbers, checked.
        model: the model.
        task: the task, unless prompts are text.
        prompts: what to run, with the positions that count.
    """

    config: Config
    model: LensModel
    task: Task | None
    prompts: Prompts

    @property
    def judged(self) -> Task | Prompts:
        """What predictions are judged on: the task with its answers, or else the prompts."""
        return self.prompts if self.task is None else self.task


def open_dictionary(name: str) -> Dictionary:
    """One dictionary: a folder or file in any known format, or one that ships (``zoo:ioi/mlp_out1``).

    Raises:
        BadConfig: The name is of several dictionaries.
        InvalidWeights: There is none, or one that cannot be trusted.
    """
    found = open_dictionaries([name])
    if len(found) > 1:
        sites = ", ".join(f"{name}/{each.site}" for each in found.values())
        raise BadConfig(f"expected one dictionary; {name} has {len(found)}: {sites}.")
    return next(iter(found.values()))


def open_dictionaries(names: Sequence[str]) -> dict[str, Dictionary]:
    """Dictionaries by their names; the name of a model (``zoo:ioi``) stands for all that ship for it.

    Raises:
        InvalidOption: None ships for a model or site.
        InvalidWeights: A folder holds none, or one that cannot be trusted.
    """
    from circuits.features import shipped
    from circuits.features.dictionary import Dictionary

    found: dict[str, Dictionary] = {}
    for name in names:
        if not name.startswith("zoo:"):
            found[name] = Dictionary.load(name)
            continue
        model, _, site = name.partition("/")
        for each in [site] if site else shipped.shipped(model):
            found[f"{model}/{each}"] = shipped.load(model, each)
            found[f"{model}/{each}"].metadata.setdefault("model_name", model)
    return found


def model_for(dictionary: Dictionary, *, model: str | None, device: str | None, show: Display) -> LensModel:
    """The model that a dictionary is of, or another one that is named.

    Raises:
        BadConfig: Nothing says which.
        WiretraceError: It cannot be found, read or trusted.
    """
    name = model or _said("model_name", [dictionary])
    if name is None:
        raise BadConfig("expected a model: the dictionary does not say which. Give --model.")
    show.say(f"Loading {name} …")
    return load_model(Config(task=next(iter(tasks.TASKS)), model=name, method="random", device=device))


def prepare(
    asked: Asked, *, known: Sequence[Dictionary] = (), loaded: LensModel | None = None, show: Display
) -> Subject:
    """Load the model and make the prompts.

    Args:
        asked: Which.
        known: Dictionaries, which may say what they were trained on.
        loaded: The model, if it is there already.
        show: Where progress goes.

    Raises:
        BadConfig: Nothing says which model or prompts.
        WiretraceError: The model cannot be found, read or trusted, or does not suit the task.
    """
    from circuits.features.activations import Prompts

    config = config_of(asked, known)
    if loaded is None:
        show.say(f"Loading {config.model} …")
    model = loaded or load_model(config)
    if asked.text is not None:
        return Subject(config, model, None, Prompts.from_texts(_lines(asked.text), model))
    split = HELD_OUT_SPLIT if asked.held_out else SEARCH_SPLIT
    task = tasks.load(config.task).make(model, n=asked.prompts, seed=asked.seed, split=split)
    return Subject(config, model, task, Prompts.from_task(task))


def default_subject(task: str) -> str:
    """The model that is used when none is named: the task's specialist if dictionaries of it ship.

    Raises:
        BadConfig: No model ships for the task.

    Example:
        >>> default_subject("ioi")
        'zoo:ioi'
    """
    from circuits.features import shipped

    return f"zoo:{task}" if f"zoo:{task}" in shipped.models() else default_model(task)


def config_of(asked: Asked, known: Sequence[Dictionary]) -> Config:
    """Names and numbers, checked, with what the dictionaries say filled in.

    Raises:
        BadConfig: Nothing says which model or prompts, or a number is out of its range.
    """
    task = asked.task or _said("task", known) or _task_of(asked.model or _said("model_name", known))
    if task is None and asked.text is None:
        raise BadConfig("expected prompts: the dictionary does not say which. Give --task, or --text with a file.")
    model = asked.model or _said("model_name", known) or (None if task is None else default_subject(task))
    if model is None:
        raise BadConfig("expected a model: the dictionary does not say which. Give --model.")
    # A config checks names and numbers; text belongs to no task, but the config wants one.
    return Config(
        task=task or next(iter(tasks.TASKS)),
        model=model,
        method="random",
        prompts=asked.prompts,
        held_out=asked.prompts,
        seed=asked.seed,
        device=asked.device,
    )


def _task_of(model: str | None) -> str | None:
    """The task that a model ships for."""
    name = (model or "").removeprefix("zoo:")
    return name if model != name and name in tasks.TASKS else None


def _said(what: str, known: Sequence[Dictionary]) -> str | None:
    """What the dictionaries say about their training, if they agree."""
    said: set[Any] = {each.metadata.get(what) for each in known} - {None}
    only = said.pop() if len(said) == 1 else None
    return only if isinstance(only, str) and (what != "task" or only in tasks.TASKS) else None


def _lines(path: Path) -> list[str]:
    from graphs.atomic import read_text

    lines = [line for line in read_text(path, limit=LARGEST_TEXT).splitlines() if line.strip()]
    if not lines:
        raise BadConfig(f"expected a prompt on each line of {path}; it is empty.")
    return lines
