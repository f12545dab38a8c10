"""Behaviours to find the circuit of: one task per file.

`TASKS` lists what there is. A task module offers `make(model, *, n, seed, split, ...) -> Task`, and
`tasks.ioi` and `tasks.load("ioi")` are that module, imported when first asked for. Listing tasks therefore
loads neither torch nor a model. Tasks of text also offer `generate`, which writes prompts
without a model, and keep words and templates apart in the same `SPLITS` (`circuits.tasks.text`).

Example:
    >>> from circuits import tasks
    >>> "ioi" in tasks.TASKS, "reverse" in tasks.TASKS
    (True, True)
    >>> tasks.load("ioi").generate(1, seed=0)[0].answer.startswith(" ")
    True
"""

from __future__ import annotations

import difflib
import importlib
from types import ModuleType

from circuits.tasks import file_task
from circuits.tasks.errors import UnknownTask
from circuits.tasks.file_task import from_file
from patching.compiled.programs import PROGRAMS

TASKS: dict[str, str] = {
    "agreement": "circuits.tasks.agreement",
    "arithmetic": "circuits.tasks.arithmetic",
    "capitals": "circuits.tasks.capitals",
    "docstring": "circuits.tasks.docstring",
    "greater_than": "circuits.tasks.greater_than",
    "induction": "circuits.tasks.induction",
    "ioi": "circuits.tasks.ioi",
    "modular_addition": "circuits.tasks.modular_addition",
    "multiple_choice": "circuits.tasks.multiple_choice",
    "pronouns": "circuits.tasks.pronouns",
    "sorting": "circuits.tasks.sorting",
    **dict.fromkeys(PROGRAMS, "circuits.tasks.compiled"),
}
"""Every task's name and the module that makes it; the programs of `patching.compiled` share one."""


__all__ = ["TASKS", "from_file", "load"]


def load(name: str) -> ModuleType:
    """Import the module of one task, or make one of a file of your own pairs.

    Args:
        name: A key of `TASKS`, such as `"ioi"`, or the path of a `.json`, `.jsonl` or `.csv` file (`from_file`), which
            is read when `make` is called.

    Returns:
        The module, whose `make` builds the `Task`.

    Raises:
        UnknownTask: No task has this name; the nearest names are offered.
    """
    if name not in TASKS and file_task.is_file(name):
        return file_task.of(name)
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UnknownTask(
            f"expected a task out of {', '.join(sorted(TASKS))}, or a file of your own pairs (.json, .jsonl, .csv); "
            f"got {name!r}.{hint}"
        )
    module = importlib.import_module(TASKS[name])
    return module.of(name) if name in PROGRAMS else module


def __getattr__(name: str) -> ModuleType:
    """Make `tasks.ioi` work without importing every task in advance."""
    if name in TASKS:
        return load(name)
    raise AttributeError(f"module {__name__!r} has no task or attribute {name!r}; tasks: {', '.join(sorted(TASKS))}")


def __dir__() -> list[str]:
    """List the tasks beside the module's own names."""
    return sorted({*globals(), *TASKS})
