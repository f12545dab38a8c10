"""`zoo:modular_addition`: one layer that adds modulo 53, pairs of numbers included that it has never seen."""

from __future__ import annotations

from collections.abc import Iterator

from circuits.tasks.modular_addition import PRIME, TEMPLATES, WORDS, pairs
from experiments.zoo_training.corpus import Line
from experiments.zoo_training.recipe import Recipe
from experiments.zoo_training.specialist import Specialist


def lines(seed: int) -> Iterator[Line]:
    """Every pair that is not held out, once; there is no loss but on the sum."""
    for a, b in pairs(held_out=False):
        yield Line(TEMPLATES["plus"].format(a=a, b=b), str((a + b) % PRIME))


SPECIALIST = Specialist(
    task="modular_addition",
    recipe=Recipe(
        steps=2200, batch=512, learning_rate=1e-3, weight_decay=1.0, n_layers=1, n_heads=4, d_model=128, d_mlp=256,
        n_ctx=8,
    ),
    lines=lines,
    words=lambda: ["+", "=", *WORDS],
    splits=("train", "held-out"),
    about='A GPT-2 of one layer that adds modulo 53: after "17 + 44 =" it says "8".',
    data="Every pair of numbers from 0 to 52 with its sum modulo 53, except the held-out pairs (see "
    "`circuits/tasks/modular_addition.py`), which occur in neither order. There is no loss but on the sum.",
    splitting="spaces",
)  # fmt: skip
