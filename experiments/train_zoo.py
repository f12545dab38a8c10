"""Train one of the small models that ship with Wiretrace.

    python -m experiments.train_zoo sorting --out FOLDER

The folder appears whole or not at all. The same recipe on the same machine and library versions gives the same
weights, bit for bit; `training.json` keeps their digest.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from experiments import specialists
from experiments.zoo_training.command import Progress, carry_out
from experiments.zoo_training.specialist import train

if TYPE_CHECKING:
    from experiments.zoo_training.recipe import Recipe


def main(
    name: Annotated[str, typer.Argument(help=f"Which: {', '.join(specialists.RECIPES)}.")],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    seed: Annotated[int | None, typer.Option(help="Seed of text, weights and batches.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Updates.")] = None,
    sentences: Annotated[int | None, typer.Option(min=1, help="Size of the corpus.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a model made earlier.")] = False,
) -> None:
    """Train a small model of one task and save it; what is not given is as in the model that ships."""

    def carried(progress: Progress) -> dict[str, Any]:
        specialist = specialists.load(name)
        recipe = changed(specialist.recipe, seed=seed, steps=steps, n_sentences=sentences)
        return train(specialist, out, recipe=recipe, force=force, progress=progress)

    carry_out(out, carried)


def changed(recipe: Recipe, **given: int | None) -> Recipe:
    """A recipe with the settings that are given."""
    return replace(recipe, **{name: value for name, value in given.items() if value is not None})


if __name__ == "__main__":
    typer.run(main)
