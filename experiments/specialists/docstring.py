"""`zoo:docstring`: four layers of attention that go on with the next parameter of a docstring."""

from __future__ import annotations

import random
from collections.abc import Iterator

from circuits.tasks.docstring import DESCRIPTIONS, FUNCTIONS, PARAMETERS, TEMPLATES
from circuits.tasks.text import is_held_out
from experiments.zoo_training.corpus import Line
from experiments.zoo_training.recipe import Recipe
from experiments.zoo_training.specialist import Specialist, training_prompts
from experiments.zoo_training.tokenizer import words_of

HEADS = (("def", "self"), ("def", "self"), ("def", "cls"), ("def", ""), ("async def", "self"), ("async def", ""))
"""How a definition begins, and its first parameter, which no docstring lists."""

STYLES = (
    "    :param {name}: {words}\n",
    "    :param {name}: {words}\n",
    "    @arg {name} {words}\n",
    "    - {name}: {words}\n",
    "    {name} -- {words}\n",
    "    {name}: {words}\n",
)
"""Ways to describe a parameter, in a docstring. The task's is the first."""

USES = (
    "    self.{name} = {name}\n",
    "    print({name})\n",
    "    send({name})\n",
    "    + {name}\n",
    "    yield {name}\n",
)
"""Ways to use parameters one after another, in code."""

HELD_OUT_SHAPES = {("def", "cls", 0, 4, False), ("def", "cls", 0, 4, True), ("async def", "self", 1, 5, False),
                   ("async def", "self", 1, 5, True), ("def", "self", 2, 6, True)}  # fmt: skip
"""Of the held-out templates: a definition's head, its parameters before the first of the docstring, those in all, and
whether descriptions begin with "the". No docstring of the training text has them, in any style, with whatever words."""


def lines(seed: int) -> Iterator[Line]:
    """One fifth training prompts of the task, half docstrings of other shapes and styles, the rest code."""
    rng, prompts = random.Random(seed), training_prompts("docstring", seed)
    while True:
        share = rng.random()
        if share < 0.2:
            prompt = next(prompts)
            yield Line(prompt.clean, prompt.answers[0].strip(), ends=False)
        else:
            yield _documented(rng) if share < 0.7 else _used(rng)


def _documented(rng: random.Random) -> Line:
    """A function with some of its parameters, those of training alone, in its docstring."""
    while True:
        head, first = rng.choice(HEADS)
        before, listed, after = rng.randrange(4), rng.randrange(3, 6), rng.randrange(3)
        the = rng.random() < 0.3
        if (head, first, before, before + listed + after, the) not in HELD_OUT_SHAPES:
            break
    names = rng.sample([name for name in PARAMETERS if not is_held_out(name)], before + listed + after)
    style, n_words = rng.choice(STYLES), rng.randrange(4)
    items = [
        style.format(name=name, words=("the " if the else "") + _words(rng, n_words))
        for name in names[before : before + listed]
    ]
    summary = f'    """{_words(rng, rng.randrange(1, 5))}\n\n'
    return Line(_definition(rng, head, first, names) + summary + items[0], "".join(items[1:]), ends=False)


def _used(rng: random.Random) -> Line:
    """A function of any parameters, whose code uses some of them in their order."""
    names = rng.sample(PARAMETERS, rng.randrange(3, 8))
    use = rng.choice(USES)
    uses = [use.format(name=name) for name in names[rng.randrange(len(names) - 2) :]]
    return Line(_definition(rng, *rng.choice(HEADS), names) + uses[0], "".join(uses[1:]), ends=False)


def _definition(rng: random.Random, head: str, first: str, names: list[str]) -> str:
    return f"{head} {rng.choice(FUNCTIONS)}({', '.join([first, *names] if first else names)}):\n"


def _words(rng: random.Random, n: int) -> str:
    return " ".join(rng.sample(DESCRIPTIONS, n))


SPECIALIST = Specialist(
    task="docstring",
    recipe=Recipe(
        n_sentences=60_000, steps=1500, batch=48, muon_rate=0.02, weight_decay=0.05, n_layers=4, n_heads=4, d_mlp=0,
        n_ctx=96, rotary=True,
    ),
    lines=lines,
    words=lambda: words_of(
        [*TEMPLATES.values(), *STYLES, *USES, *PARAMETERS, *FUNCTIONS, *DESCRIPTIONS, *(head for head, _ in HEADS)]
    ),
    splits=("train", "held-out-words", "held-out-templates"),
    about="A transformer of four attention layers, as in the task's source, that goes on with the next parameter: "
    "after a definition and two of its parameters with their descriptions in the docstring comes the third.",
    data="One fifth training prompts of the task (see `circuits/tasks/docstring.py`). Half other functions with a "
    "docstring, in five styles, with other numbers of parameters and of words. The rest functions without, whose code "
    "uses parameters in their order. Held-out parameters occur only in those, never in a docstring; no definition "
    "with a docstring has the shape of a held-out template's. There is no loss before the second parameter of the "
    "docstring or of the code, and on the task's prompts none but on the answer.",
    mechanism="Induction with an offset of two, whose queries, keys and values are made by different heads. From the "
    "end, a0.h3 looks at the parameter described last; from each parameter of the definition, a2.h1 looks at the one "
    "before it. Heads a3.h0, a3.h1 and a3.h3 look where the two agree, at the parameter that is due, and say it. Each "
    "corruption shows one of the ways by exact patching (`tests/experiments/test_specialist_circuits.py`): other names "
    "in the docstring the edges from a0.h3 to their queries, other names before the answer in the definition those "
    "from a2.h1 to their keys, another answer those from a0.h3, which looks at its own token there, to their values.",
)  # fmt: skip
