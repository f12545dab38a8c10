"""A tiny random model that can read IOI prompts, in a folder, and the command line as a function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2 of two layers with the word-level tokenizer of `zoo:ioi`: 110 edges, loads in a moment.

    Its weights are larger than a fresh GPT-2's, so that attention is not uniform and effects differ.
    """
    import torch

    from experiments.train_ioi import build_tokenizer
    from experiments.zoo_training import models
    from experiments.zoo_training.recipe import Recipe

    recipe = Recipe(n_layers=2, n_heads=4, d_model=32, d_mlp=32)
    tokenizer = build_tokenizer(n_ctx=recipe.n_ctx)
    model = models.gpt2(recipe, d_vocab=len(tokenizer))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def wiretrace() -> Callable[..., Result]:
    """The command line in this process: `wiretrace("discover", "ioi", "--tau", 0.1)` gives exit code and output."""
    from typer.testing import CliRunner

    from experiments.cli import app

    def run(*words: object) -> Result:
        result = CliRunner().invoke(app, [str(word) for word in words])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def discover(wiretrace: Callable[..., Result], tiny_model: Path) -> Callable[..., Result]:
    """`wiretrace discover ioi` on the tiny model, with few prompts; more words override."""

    def run(out: Path, *words: object) -> Result:
        few = ("--prompts", 8, "--held-out", 8, "--tau", 0.002)
        few = few if "--method" not in words else few[:4]
        return wiretrace("discover", "ioi", "--model", tiny_model, *few, "--out", out, *words)

    return run


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A finished ACDC run on the tiny model; read it, do not change it."""
    from experiments.config import Config
    from experiments.discover import discover

    folder = tmp_path_factory.mktemp("runs") / "finished"
    config = Config("ioi", str(tiny_model), options={"tau": 0.002}, prompts=8, held_out=8)
    discover(config, out=folder)
    return folder


@pytest.fixture
def uncached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of the hub, the first time: their files are on this machine only once they have been loaded."""
    from experiments import model_files
    from patching.lens import LensModel

    folder, load = model_files._folder, LensModel.load
    loaded: set[str] = set()

    def first(name: str, **options: object) -> LensModel:
        model = load(name, **options)  # type: ignore[arg-type]
        loaded.add(name)
        return model

    monkeypatch.setattr(model_files, "_folder", lambda name: folder(name) if name in loaded else None)
    monkeypatch.setattr(LensModel, "load", first)
