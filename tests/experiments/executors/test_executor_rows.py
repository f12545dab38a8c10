"""The rows of executors and the store measure what they say. Nothing is held to a bar here."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.benchmarks import executor_rows
from experiments.executors import Outcome
from experiments.store import Store
from experiments.work import Unit


def test_a_store_of_many_runs_is_one_to_the_store(tmp_path: Path) -> None:
    executor_rows.many_runs(tmp_path, 12)
    found = Store(tmp_path).rows()
    assert len(found) == 12
    assert {row["state"] for row in found} == {"finished"}


def test_overhead_is_over_the_same_shards() -> None:
    settings = {**executor_rows.COAR, "prompts": 2, "samples": 300}
    row = executor_rows.overhead("COAR", settings, executor_rows._ablations, repeats=1)
    assert "2 shards in a run directory over the function called 2 times" in row.name
    assert row.ratio == pytest.approx(row.ours / row.floor)
    assert 0.2 < row.ratio < 5


def test_scaling_is_over_half_of_one_worker_s_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """With workers that take 0.4 s alone and 0.3 s together, 0.3 over 0.2."""
    import time

    def pretended(name: str, stages: list[list[Unit]], *, workers: int) -> list[Outcome]:
        assert name == "workers"
        time.sleep(0.4 if workers == 1 else 0.3)
        return [Outcome(unit, "finished") for stage in stages for unit in stage]

    monkeypatch.setattr(executor_rows.executors, "run", pretended)
    row = executor_rows.scaling("COAR", [{**executor_rows.COAR, "samples": 600}])
    assert "3 shards" in row.name
    assert row.ratio == pytest.approx(1.5, rel=0.3)
    assert not row.met


def test_a_command_is_held_to_seconds() -> None:
    row = executor_rows.command(["--help"], bar=1_000.0, repeats=1)
    assert (row.name, row.bar, row.met) == ("wiretrace --help", "≤ 1000 s", True)
    assert row.ours == pytest.approx(row.ratio * row.floor)
