"""The tasks of compiled models, whose circuit is known: one for each program of `patching.compiled`.

The clean prompt is one of the program's, the corrupt one another of the same length with another answer; the metric is
logit(answer) - logit(answer to the corrupt prompt). `zoo:NAME` is the model of the task `NAME`, and no other fits.

Example:
    >>> from circuits import tasks
    >>> from patching import LensModel
    >>> tasks.load("reverse").make(LensModel.load("zoo:reverse"), n=1, seed=0).texts
    ('^ c c b | b c',)
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from patching import compiled
from patching.compiled.prompts import SPLITS
from patching.errors import InvalidTask

if TYPE_CHECKING:
    from patching.task import Task


class HasTokenizer(Protocol):
    """Anything with a tokenizer, such as a `LensModel`."""

    tokenizer: Any


@functools.cache
def of(name: str) -> ModuleType:
    """The task of one program, in the form of a task module: `make`, `SPLITS`, and a description.

    Raises:
        ModelNotFound: There is no such program.

    Example:
        >>> of("and_gate").__doc__
        'Compiled, truth known: two bits, both of which must be 1.'
    """
    module = ModuleType(f"{__name__}.{name}", f"Compiled, truth known: {compiled.program(name).description}.")
    vars(module).update(make=functools.partial(make, name=name), SPLITS=SPLITS)
    return module


def make(
    model: HasTokenizer, *, name: str, n: int = 64, seed: int = 0, split: str = "held-out", length: int | None = None
) -> Task:
    """Draw prompts for a compiled model.

    Args:
        model: `zoo:NAME`.
        name: Of the program.
        n: How many prompts.
        seed: Seed of the draw.
        split: `"train"` or `"held-out"`; the same for programs of few prompts.
        length: Of all prompts, without the first token; any of the program's by default.

    Raises:
        InvalidTask: The model has another vocabulary.
        InvalidOption: An option is out of its range.
    """
    words = None if model.tokenizer is None else model.tokenizer.get_vocab()
    if words != {token: number for number, token in enumerate(compiled.program(name).vocabulary)}:
        raise InvalidTask(
            f"expected the model zoo:{name}, whose tokens are {' '.join(compiled.program(name).vocabulary)}; "
            f"got one of another vocabulary. Leave --model out, or name zoo:{name}."
        )
    return compiled.task(name, n=n, seed=seed, split=split, length=length)
