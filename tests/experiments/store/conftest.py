"""Stores of run directories that nobody ran: the files that runs leave, made in a moment."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.config_file import build, settings_of
from experiments.run_directory import Status

Make = Callable[..., Path]


def report(settings: dict[str, Any], *, faithfulness: float | None = 0.5, edges: int = 10) -> dict[str, Any]:
    """What `report.json` of a search holds, as far as stores read it."""
    return {
        "schema": "wiretrace-report/1",
        "config": {name: value for name, value in settings.items() if name != "schema"},
        "evaluation": {
            "faithfulness": faithfulness,
            "interval": None if faithfulness is None else [faithfulness - 0.1, faithfulness + 0.1],
            "random_faithfulness": 0.01,
            "completeness_gap": 0.02,
            "n_edges": edges,
            "n_nodes": 5,
            "n_possible": 100,
            "kl": 0.3,
            "kl_faithfulness": 0.9,
            "clean": 3.0,
            "ablated": 0.0,
        },
        "seconds": {"total": 1.5},
        "device": "cpu",
        "notes": [],
    }


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Make a run directory in `tmp_path / "runs"`: `make("a", method="atp", seed=3, state="failed")`."""

    def made(name: str, *, state: str = "finished", error: str | None = None, root: Path | None = None, **given: Any):
        found = {key: given.pop(key) for key in ("faithfulness", "edges") if key in given}
        base = {"schema": "wiretrace-config/1", "task": "ioi", "model": "zoo:ioi", "method": "atp"}
        settings = settings_of(build(base | given))
        folder = (root or tmp_path / "runs") / name
        folder.mkdir(parents=True)
        identity = {
            "wiretrace": "0.1.0",
            "config": {key: value for key, value in settings.items() if key != "schema"},
            "model_files": {},
        }
        status = Status(state, identity, "2026-01-01T00:00:00Z", "2026-01-01T00:00:09Z", 1, error)  # type: ignore[arg-type]
        (folder / "status.json").write_text(status.to_json())
        if state == "finished":
            (folder / "report.json").write_text(json.dumps(report(settings, **found)))
        return folder

    return made
