"""The same small runs, made once in this process, which every executor must equal."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments import executors
from tests.experiments.executors import small_runs


@pytest.fixture(scope="session")
def in_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every kind of run; read it, do not change it."""
    root = tmp_path_factory.mktemp("in_process")
    outcomes = executors.run("process", small_runs.stages(root))
    assert {outcome.state for outcome in outcomes} == {"finished"}
    return root
