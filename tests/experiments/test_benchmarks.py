"""The benchmark measures what it says: same circuits on both sides, ratios the right way up. Nothing is timed here."""

from __future__ import annotations

import sys
import time

import pytest
import torch

from circuits import acdc
from circuits.methods import METHODS
from experiments.benchmarks import measure, memory_rows, rows, score_rows
from patching import MaskedRun
from tests import tiny


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_sequential_loop_finds_the_same_circuit_and_counts_its_runs(family: str) -> None:
    run = MaskedRun(tiny.model(family), tiny.task(prefix=1))
    mask, evaluations = rows.sequential_acdc(run, 0.2)
    decisions: list[acdc.Decision] = []
    circuit = acdc.search(run, tau=0.2, watch=decisions.append)
    assert torch.equal(run.mask_of(circuit), mask)
    assert evaluations == 1 + sum(decision.delta is not None for decision in decisions)


def test_a_whole_run_is_the_masked_run() -> None:
    run = MaskedRun(tiny.model("gpt2"), tiny.task())
    mask = (torch.rand(run.n_units, generator=torch.Generator().manual_seed(0)) < 0.6).double()
    assert rows.WholeModel(run).damage(mask) == pytest.approx(float(run.damage(run(mask))), abs=1e-12)


def test_a_ratio_is_ours_over_the_floor() -> None:
    row = measure.at_most("x", lambda: _spin(0.02), lambda: _spin(0.005), bar=1.5, repeats=1, note="")
    assert row.ratio > 1.5
    assert not row.met


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_is_that_of_the_call() -> None:
    size = 64 << 20
    try:
        peak = measure.peak_bytes(lambda: bytearray(b"x") * size)
    except OSError as error:
        pytest.skip(f"this system does not let a process reset its peak: {error}")
    assert 0.9 * size < peak < 2.5 * size


def _spin(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_has_a_row_for_every_method_on_edges() -> None:
    try:
        found = list(
            memory_rows.rows(rows.random_gpt2(layers=1, heads=2, width=8, vocabulary=20), budget=1 << 30, bar=1)
        )
    except OSError as error:
        pytest.skip(f"this system does not let a process reset its peak: {error}")
    edges = [method for method in METHODS.values() if "edge" in method.levels]
    assert len(found) == len(edges)
    for row, method in zip(found, edges, strict=True):
        assert f"memory of {method.name}," in row.name
        assert row.met
        assert row.ratio == pytest.approx(row.ours / row.floor)


def test_plain_runs_count_what_ig_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two forwards for the ends of the path, and a forward and a backward for each point on it."""
    calls = {"forward": 0, "backward": 0}
    forward, backward = score_rows.forward, torch.autograd.grad

    def counted(name: str, function: object) -> object:
        def call(*args: object, **options: object) -> object:
            calls[name] += 1
            return function(*args, **options)  # type: ignore[operator]

        return call

    model = rows.random_gpt2(layers=1, heads=2, width=8, vocabulary=20)
    monkeypatch.setattr(score_rows, "forward", counted("forward", forward))
    monkeypatch.setattr(torch.autograd, "grad", counted("backward", backward))
    score_rows.plain_runs(model, rows.random_task(model), gradients=3)()
    assert calls == {"forward": 5, "backward": 3}
    row = score_rows.eap_ig(model, bar=1e9, repeats=1)
    assert row.met
    assert "EAP-IG (5 steps)" in row.name
