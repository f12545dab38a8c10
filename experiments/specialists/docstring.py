"""`zoo:docstring`: three layers of attention that complete a docstring's parameters."""

from __future__ import annotations

import random
from collections.abc import Iterator

from circuits.tasks.docstring import DESCRIPTIONS, FUNCTIONS, PARAMETERS, TEMPLATES
from experiments.zoo_training.corpus import Line
from experiments.zoo_training.recipe import Recipe
from experiments.zoo_training.specialist import Specialist, training_prompts
from experiments.zoo_training.tokenizer import words_of

CALLS: tuple[str, ...] = (
    "def {function}(self, {names}):\n    return {other}({names})",
    "def {function}({names}):\n    self.{other}({names})",
    "async def {function}(self, {names}):\n    return self.{other}({names})",
    "def {function}(cls, {names}):\n    return cls({names})",
)
"""Functions that only pass their parameters on, whatever these are called."""

STORE = "def {function}(self, {names}):\n    "
"""The beginning of a function that stores each of its parameters."""


def lines(seed: int) -> Iterator[Line]:
    """Half training prompts of the task, each with its answer; half functions without a docstring."""
    rng, prompts = random.Random(seed), training_prompts("docstring", seed)
    while True:
        if rng.random() < 0.5:
            prompt = next(prompts)
            yield Line("", prompt.clean + prompt.answers[0], ends=False)
        else:
            yield Line("", _without_docstring(rng), ends=False)


def _without_docstring(rng: random.Random) -> str:
    """A function that passes its parameters on, or stores each, in order."""
    function, other = rng.sample(FUNCTIONS, 2)
    if rng.random() < 0.5:
        names = ", ".join(rng.sample(PARAMETERS, rng.randint(2, 6)))
        return rng.choice(CALLS).format(function=function, other=other, names=names)
    chosen = rng.sample(PARAMETERS, rng.randint(2, 5))
    stored = "\n    ".join(f"self.{name} = {name}" for name in chosen)
    return STORE.format(function=function, names=", ".join(chosen)) + stored


SPECIALIST = Specialist(
    task="docstring",
    recipe=Recipe(
        n_sentences=25_000,
        steps=1500,
        batch=32,
        learning_rate=2e-3,
        initial_std=0.1,
        n_layers=3,
        n_heads=4,
        d_mlp=0,
        n_ctx=64,
    ),
    lines=lines,
    words=lambda: words_of(
        [*TEMPLATES.values(), *CALLS, STORE, "self.{name} = {name}", *PARAMETERS, *FUNCTIONS, *DESCRIPTIONS]
    ),
    splits=("train", "held-out-words", "held-out-templates"),
    about="A transformer of three attention layers that completes docstrings: after the definition of a function and "
    "the first parameters of its docstring it says the next parameter.",
    data="Half training prompts of the task (see `circuits/tasks/docstring.py`) with their answers. Half functions "
    "that pass their parameters on or store them, of all names. Held-out names and templates never occur with a "
    "docstring.",
)
