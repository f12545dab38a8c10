"""Behaviours to find the circuit of: one task per file.

`TASKS` lists what there is. A task module offers `make(model, *, n, seed, split, ...) -> Task`, and
`tasks.ioi` and `tasks.load("ioi")` are that module, imported when first asked for. Listing tasks therefore
loads neither torch nor a model.

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

from circuits.tasks.errors import UnknownTask
from patching.compiled.programs import PROGRAMS

TASKS: dict[str, str] = {
    "ioi": "circuits.tasks.ioi",
    **dict.fromkeys(PROGRAMS, "circuits.tasks.compiled"),
}
"""Every task's name and the module that makes it; the programs of `patching.compiled` share one."""


def load(name: str) -> ModuleType:
    """Import the module of one task.

    Args:
        name: A key of `TASKS`, such as `"ioi"`.

    Returns:
        The module, whose `make` builds the `Task`.

    Raises:
        UnknownTask: No task has this name; the nearest names are offered.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UnknownTask(f"expected a task out of {', '.join(sorted(TASKS))}; got {name!r}.{hint}")
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
