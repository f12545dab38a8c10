"""Small models of one task each, that train in minutes on a CPU core: one file per model.

`RECIPES` lists them. A file has a `SPECIALIST`: shape and steps, training text, vocabulary, and what its card says.
`python -m experiments.train_zoo NAME --out FOLDER` trains one.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from experiments.nearest import require_known

if TYPE_CHECKING:
    from experiments.zoo_training.specialist import Specialist

RECIPES: dict[str, str] = {
    "docstring": "experiments.specialists.docstring",
    "greater_than": "experiments.specialists.greater_than",
    "induction": "experiments.specialists.induction",
    "modular_addition": "experiments.specialists.modular_addition",
    "sorting": "experiments.specialists.sorting",
}
"""Every specialist's name, which is its task's, and the module that has it."""


def load(name: str) -> Specialist:
    """The specialist of that name.

    Raises:
        UnknownName: There is none; the nearest are offered.

    Example:
        >>> load("sorting").task
        'sorting'
    """
    return importlib.import_module(RECIPES[require_known("a model", name, RECIPES)]).SPECIALIST
