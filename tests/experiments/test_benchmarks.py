"""The benchmark measures what it says: same circuits on both sides, ratios the right way up. Nothing is timed here."""

from __future__ import annotations

import sys
import time

import pytest
import torch

from circuits import acdc
from experiments.benchmarks import measure, rows
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
