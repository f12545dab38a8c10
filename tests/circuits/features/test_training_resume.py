"""A training that was stopped, by whatever, ends as one that was not: bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from circuits.features import create, toys
from circuits.features.losses import Weighting
from circuits.features.training import Recipe, Training, train
from graphs.errors import WriteFailed
from patching.errors import InvalidOption, InvalidWeights, NotFinite

ROOT = Path(__file__).resolve().parents[3]
TOY = toys.superposition(8, 16, 0.05)
RECIPE = Recipe(checkpoint_every=7, record_every=3, dead_after=400, resample_every=15)
CASES = {
    "relu": ({}, 0.3), "topk": ({"k": 2}, None), "batchtopk": ({"k": 1.5}, None), "matryoshka": ({"k": 1.5}, None),
    "gated": ({}, 0.3), "jumprelu": ({}, 0.1), "tied": ({}, 0.3), "skip_transcoder": ({}, 0.3),
}  # fmt: skip


class Stopped(Exception):
    """What ends a training from outside."""


def run(architecture: str, *, checkpoint: Path | None = None, stop: int | None = None, **changes) -> Training:
    options, sparsity = CASES[architecture]

    def progress(done: int, _total: int) -> None:
        if done == stop:
            raise Stopped

    data = TOY.batches(64)
    if architecture == "skip_transcoder":
        data = [(TOY.sample(64, seed=i), TOY.sample(64, seed=i + 1)) for i in range(5)]
    arguments = {"steps": 50, "lr": 1e-2, "sparsity": sparsity, "recipe": RECIPE} | changes
    dictionary = create(architecture, d_in=8, n_features=16, **options)
    return train(dictionary, data, checkpoint=checkpoint, progress=progress, **arguments)


def same(one: Training, other: Training) -> bool:
    mine, theirs = one.dictionary.state_dict(), other.dictionary.state_dict()
    assert mine.keys() == theirs.keys()
    return one.history == other.history and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("architecture", CASES)
def test_stopped_anywhere_and_resumed_is_as_never_stopped(architecture, tmp_path):
    whole = run(architecture)
    path = tmp_path / "training.safetensors"
    for stop in (10, 33, 48):  # between checkpoints, each time further on
        with pytest.raises(Stopped):
            run(architecture, checkpoint=path, stop=stop)
    resumed = run(architecture, checkpoint=path)
    assert same(whole, resumed)
    assert resumed.tokens < whole.tokens, "it did not begin anew"
    assert resumed.asked == whole.asked


def test_a_finished_training_is_given_back(tmp_path):
    path = tmp_path / "training.safetensors"
    first, again = run("topk", checkpoint=path), run("topk", checkpoint=path)
    assert same(first, again)
    assert again.tokens == 0


def test_a_list_of_batches_goes_on_where_it_stopped(tmp_path):
    data = [TOY.sample(32, seed=i) for i in range(7)]
    path = tmp_path / "file"

    def go(checkpoint: Path | None, stop: int | None = None) -> Training:
        def progress(done: int, _total: int) -> None:
            if done == stop:
                raise Stopped

        dictionary = create("relu", d_in=8, n_features=16)
        return train(dictionary, data, steps=30, sparsity=0.1, recipe=RECIPE, checkpoint=checkpoint, progress=progress)

    with pytest.raises(Stopped):
        go(path, 20)
    assert same(go(path), go(None))


SCRIPT = """
import sys, time
import torch
torch.set_num_threads(1)
from circuits.features import create, toys
from circuits.features.training import Recipe, train
recipe = Recipe(checkpoint_every=5, record_every=3, dead_after=400)
train(create("topk", d_in=8, n_features=16, k=2), toys.superposition(8, 16, 0.05).batches(64), steps=400, lr=1e-2,
      recipe=recipe, checkpoint=sys.argv[1], progress=lambda *_: time.sleep(0.01))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal on this system")
def test_a_killed_process_loses_nothing_but_time(tmp_path):
    """kill -9 while it trains; whatever stands on the disk then is whole, and goes on to the same end."""
    path = tmp_path / "training.safetensors"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(path)], env=environment, cwd=tmp_path)
    deadline = time.monotonic() + 240
    while not path.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL, "it was killed before it was done"
    assert path.exists()
    recipe = Recipe(checkpoint_every=5, record_every=3, dead_after=400)

    def go(checkpoint: Path | None) -> Training:
        dictionary = create("topk", d_in=8, n_features=16, k=2)
        return train(dictionary, TOY.batches(64), steps=400, lr=1e-2, recipe=recipe, checkpoint=checkpoint)

    resumed, whole = go(path), go(None)
    assert same(resumed, whole)
    assert 0 < resumed.tokens < whole.tokens


def test_divergence_leaves_the_last_checkpoint(tmp_path):
    path = tmp_path / "file"
    good = [TOY.sample(16, seed=i) for i in range(20)]
    bad = [*good[:15], good[0] * float("inf")]
    with pytest.raises(NotFinite, match="step 16"):
        train(create("relu", d_in=8, n_features=16), bad, steps=20, sparsity=0.1, recipe=RECIPE, checkpoint=path)
    resumed = train(create("relu", d_in=8, n_features=16), good, steps=20, sparsity=0.1, recipe=RECIPE, checkpoint=path)
    assert resumed.tokens == 16 * 6, "from step 14 on"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 51}, "steps was 50 and is 51"),
        ({"lr": 2e-2}, "lr was"),
        ({"sparsity": 0.4}, "sparsity was 0.3 and is 0.4"),
        ({"recipe": Recipe(checkpoint_every=7, record_every=3, weighting=Weighting(auxiliary=0.5))}, "recipe was"),
    ],
)
def test_another_training_is_not_gone_on_with(changes, said, tmp_path):
    path = tmp_path / "file"
    with pytest.raises(Stopped):
        run("relu", checkpoint=path, stop=20)
    kept = path.read_bytes()
    with pytest.raises(InvalidOption, match=said):
        run("relu", checkpoint=path, **changes)
    assert path.read_bytes() == kept


def test_other_weights_or_other_data_are_not_gone_on_with(tmp_path):
    path = tmp_path / "file"

    def go(seed: int, data: int) -> Training:
        dictionary = create("relu", d_in=8, n_features=16, seed=seed)
        return train(dictionary, TOY.batches(8, seed=data), steps=10, sparsity=0.1, checkpoint=path)

    go(0, 0)
    with pytest.raises(InvalidOption, match="start was"):
        go(1, 0)
    with pytest.raises(InvalidOption, match="first_batch was"):
        go(0, 1)


@pytest.mark.parametrize("damage", ["cut", "garbage", "other"])
def test_a_damaged_checkpoint_is_refused(damage, tmp_path):
    path = tmp_path / "file"
    run("relu", checkpoint=path, steps=10)
    data = path.read_bytes()
    if damage == "other":
        from safetensors.torch import save_file

        save_file({"x": torch.zeros(2)}, path)
    else:
        path.write_bytes(data[: len(data) // 2] if damage == "cut" else b"no tensors at all")
    with pytest.raises(InvalidWeights, match="checkpoint"):
        run("relu", checkpoint=path, steps=10)


def test_a_disk_that_refuses_is_said_and_the_old_checkpoint_stays(tmp_path, monkeypatch):
    path = tmp_path / "file"
    with pytest.raises(Stopped):
        run("relu", checkpoint=path, stop=10)
    kept = path.read_bytes()

    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("graphs.atomic.os.replace", full)
    with pytest.raises(WriteFailed, match="no space"):
        run("relu", checkpoint=path)
    assert path.read_bytes() == kept
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
