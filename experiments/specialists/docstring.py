"""`zoo:docstring`: three layers of attention that complete a docstring's parameters."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from circuits.tasks.docstring import DESCRIPTIONS, FUNCTIONS, HELD_OUT_TEMPLATES, PARAMETERS, TEMPLATES
from circuits.tasks.text import part
from experiments.zoo_training.corpus import Line
from experiments.zoo_training.recipe import Recipe
from experiments.zoo_training.specialist import Specialist, training_prompts
from experiments.zoo_training.tokenizer import words_of

CALLS: tuple[str, ...] = (
    "def {function}(self, {names}):\n    return {other}({used}",
    "def {function}({names}):\n    self.{other}({used}",
    "async def {function}(self, {names}):\n    return self.{other}({used}",
    "def {function}(cls, {names}):\n    return cls({used}",
)
"""Functions that only pass their parameters on, whatever these are called."""

STORE = "def {function}(self, {names}):\n    "
"""The beginning of a function that stores each of its parameters."""


NAMES = part(PARAMETERS, held_out=False)
"""Those that may stand in a docstring."""

HELD_OUT = [re.compile(re.sub(r"\\{\w+\\}", r"\\w+", re.escape(template))) for template in HELD_OUT_TEMPLATES.values()]
"""The shapes that no docstring of the text has."""


def lines(seed: int) -> Iterator[Line]:
    """Training prompts of the task, docstrings of other shapes, and functions without a docstring."""
    rng, prompts = random.Random(seed), training_prompts("docstring", seed)
    while True:
        kind = rng.random()
        if kind < 0.1:
            prompt = next(prompts)
            yield Line(prompt.clean, prompt.answers[0].strip(), ends=False)
        else:
            yield _of_any_shape(rng) if kind < 0.5 else _without_docstring(rng)


def _of_any_shape(rng: random.Random) -> Line:
    """A docstring of training names, in no held-out shape.

    From the few shapes of the task a model learns by heart where the answer stands.
    """
    while True:
        names = rng.sample(NAMES, rng.randint(3, 7))
        first = rng.randint(0, min(2, len(names) - 2))
        said = names[first : first + rng.randint(2, 4)]
        start = f"{rng.choice(('def', 'async def'))} {rng.choice(FUNCTIONS)}({rng.choice(('self', 'cls'))}, "
        words, the = rng.randint(0, 3), rng.choice(("", "the "))
        body = "".join(f"    :param {name}: {the}{_words(rng, words)}\n" for name in said[:-1])
        text = f'{start}{", ".join(names)}):\n    """{_words(rng, rng.randint(1, 4))}\n\n{body}    :param'
        if not any(shape.match(text) for shape in HELD_OUT):
            return Line(text, said[-1], ends=False)


def _words(rng: random.Random, count: int) -> str:
    """Some words of a description."""
    return " ".join(rng.sample(DESCRIPTIONS, count))


def _without_docstring(rng: random.Random) -> Line:
    """A function that passes its parameters on, or stores them, in order from some parameter on."""
    function, other = rng.sample(FUNCTIONS, 2)
    if rng.random() < 0.5:
        names, used = _parameters(rng, most=10)
        text = rng.choice(CALLS).format(function=function, other=other, names=names, used=used[0])
        return Line(f"{text},", ", ".join(used[1:]), ends=False)
    names, used = _parameters(rng, most=6)
    stored = [f"self.{name} = {name}" for name in used]
    given = STORE.format(function=function, names=names) + f"{stored[0]}\n    self."
    return Line(given, "\n    ".join(stored[1:]).removeprefix("self."), ends=False)


def _parameters(rng: random.Random, *, most: int) -> tuple[str, list[str]]:
    """The parameters of a definition, and some of them that follow one another."""
    names = rng.sample(PARAMETERS, rng.randint(3, most))
    first = rng.randint(0, len(names) - 2)
    return ", ".join(names), names[first : rng.randint(first + 2, len(names))]


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
        rotary=True,
    ),
    lines=lines,
    words=lambda: words_of(
        [*TEMPLATES.values(), *CALLS, STORE, "self.{name} = {name}", *PARAMETERS, *FUNCTIONS, *DESCRIPTIONS]
    ),
    splits=("train", "held-out-words", "held-out-templates"),
    about="A transformer of three attention layers that completes docstrings: after the definition of a function "
    "and the first parameters of its docstring it says the next parameter.",
    data="One tenth training prompts of the task (see `circuits/tasks/docstring.py`), four tenths docstrings of the "
    "same names with other numbers of parameters and words, the rest functions that pass their parameters on or store "
    "them, of all names. Held-out names and the shapes of held-out templates never occur with a docstring. There "
    "is no loss but on what follows from the definition.",
)
