"""`zoo:sorting`: two layers that sort lists of up to six numbers."""

from __future__ import annotations

import random
from collections.abc import Iterator

from circuits.tasks.sorting import LENGTHS, WORDS, draw, text
from experiments.zoo_training.corpus import Line
from experiments.zoo_training.recipe import Recipe
from experiments.zoo_training.specialist import Specialist


def lines(seed: int) -> Iterator[Line]:
    """Lists that are not held out, each with all of it in order; there is no loss on the list itself."""
    rng = random.Random(seed)
    while True:
        numbers = draw(rng, length=rng.choice(LENGTHS), held_out=False)
        yield Line(text(numbers, 0), " ".join(map(str, sorted(numbers))))


SPECIALIST = Specialist(
    task="sorting",
    recipe=Recipe(steps=1500, n_layers=2, n_heads=4, d_model=64, d_mlp=128, n_ctx=16),
    lines=lines,
    words=lambda: ["->", *WORDS],
    splits=("train", "held-out"),
    about='A small GPT-2 that sorts: after "31 7 12 -> 7 12" it says "31".',
    data="Random lists of three to six distinct numbers from 0 to 31, each with all of it in ascending order. Sets of "
    "numbers that are held out (see `circuits/tasks/sorting.py`) occur in no order. There is no loss on the list.",
    splitting="spaces",
)
