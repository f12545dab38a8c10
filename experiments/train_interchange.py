"""Train a standard transformer to compute what a program computes, node by node: strict interchange training.

    python -m experiments.train_interchange reverse --out patching/zoo/reverse_trained

A GPT-2 with random weights and more heads than the program needs learns three things at once, on the last token of
prompts: what the program says; what it says when variables come from another prompt, while the nodes that stand for
these variables write what they write on that prompt; and that the nodes which stand for nothing can be exchanged at
will. So it is known which nodes are the circuit, in weights that gradient descent made. The folder appears whole or not
at all. The same recipe on the same machine and library versions gives the same weights, bit for bit.

Source: InterpBench, arXiv 2407.14494. Ours exchanges several variables at once too, and useless nodes beside them, so
that what a node does on the way of no variable is trained away as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from experiments.interchange_training.card import model_card
from experiments.interchange_training.data import build_data
from experiments.interchange_training.fit import fit
from experiments.interchange_training.recipe import RECIPES, Recipe, architecture, build_model
from experiments.zoo_training.command import carry_out
from experiments.zoo_training.fit import reproducible
from experiments.zoo_training.folder import new_folder
from experiments.zoo_training.specialist import SCHEMA, device_name, versions, weights_digest, write
from graphs.components import ComponentGraph
from patching import compiled
from patching.compiled.interchange import alignment
from patching.compiled.language import Program
from patching.errors import InvalidOption

MEASURED: Final = 400
"""Interventions that accuracy is measured on, for each node and set of nodes."""

MEASURED_SEED: Final = 2**31


def train(
    name: str,
    out: Path,
    *,
    recipe: Recipe | None = None,
    force: bool = False,
    measured: int = MEASURED,
    progress: Callable[[range], Iterable[int]] = iter,
) -> dict[str, Any]:
    """Train, measure and save a model; `out` then holds it whole, or is as it was.

    Args:
        name: Of the program.
        out: Folder to make; the one above it must exist.
        recipe: What to train; the program's own by default.
        force: Replace a model that an earlier call left at `out`.
        measured: Interventions that accuracy is measured on, for each node and set of nodes.
        progress: Wraps the range of steps, as tqdm does.

    Returns:
        What `training.json` holds.

    Raises:
        ModelNotFound: There is no such program.
        InvalidOption: It has no variables that nodes could hold.
        OutputExists: `out` holds something, and `force` is not given or it is no model of ours.
        WriteFailed: The folder cannot be written.
    """
    from patching.compiled.compiler import tokenizer

    program = compiled.program(name)
    recipe = recipe or RECIPES.get(program.name, Recipe())
    if not alignment(program):
        raise InvalidOption(f"expected a program with variables for nodes to hold; {program.name} has none.")
    with new_folder(out, force=force) as folder, reproducible(recipe.threads):
        start, cpu_start = time.perf_counter(), time.process_time()
        data, model = build_data(program, recipe), build_model(program, recipe)
        nodes = ComponentGraph(architecture(program, recipe)).sources[1:]
        aligned = [nodes.index(node) for node in alignment(program)]
        losses = fit(model, data, aligned=aligned, recipe=recipe, progress=progress)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        tokenizer(program).save_pretrained(folder)
        model.save_pretrained(folder)
        record = {
            "schema": SCHEMA,
            "task": program.name,
            "truth": program.name,
            "made_by": made_by(program, recipe),
            "licence": "MIT",
            "recipe": asdict(recipe),
            "parameters": model.num_parameters(),
            "alignment": {str(node): list(names) for node, names in alignment(program).items()},
            "loss": losses,
            **measure(program, folder, n=measured),
            "seconds": round(seconds, 1),
            "cpu_seconds": round(cpu_seconds, 1),
            "device": device_name(recipe.threads),
            "versions": versions(),
            "weights_sha256": weights_digest(folder),
        }
        write(folder, record, card=model_card(record, program))
    return record


def made_by(program: Program, recipe: Recipe) -> str:
    """The command that trains a recipe, but for the folder."""
    own = RECIPES.get(program.name, Recipe()).steps
    steps = f" --steps {recipe.steps}" if recipe.steps != own else ""
    return f"python -m experiments.train_interchange {program.name} --seed {recipe.seed}{steps}"


def measure(program: Program, folder: Path, *, n: int) -> dict[str, Any]:
    """Load a saved model into the engine and measure it: `accuracy`, `interchange_accuracy` and `interchange`."""
    import torch

    from circuits import interchange
    from patching import LensModel

    with torch.random.fork_rng(devices=[]):  # Hugging Face draws weights before it reads them
        model = LensModel.load(folder, device="cpu")
    found = {
        split: interchange.report(model, program, n=n, seed=MEASURED_SEED, split=split)
        for split in ("train", "held-out")
    }
    rows = {split: {"n": each.task.n, "accuracy": round(each.task.accuracy, 4)} for split, each in found.items()}
    return {
        "accuracy": {program.name: rows},
        "interchange_accuracy": round(found["held-out"].interchange_accuracy, 4),
        "interchange": {split: each.to_dict() for split, each in found.items()},
    }


def main(
    program: Annotated[str, typer.Argument(help="Name of a program of patching.compiled.")],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    seed: Annotated[int | None, typer.Option(help="Seed of weights, interventions and batches.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Updates.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a model made earlier.")] = False,
) -> None:
    """Train a transformer to do what a program does, node by node, and save it in Hugging Face format."""
    given = {"seed": seed, "steps": steps}
    recipe = replace(RECIPES.get(program, Recipe()), **{key: each for key, each in given.items() if each is not None})
    carry_out(out, lambda progress: train(program, out, recipe=recipe, force=force, progress=progress))


if __name__ == "__main__":
    typer.run(main)
