"""MLflow: a database of its own in the run directory, unless MLFLOW_TRACKING_URI names a server.

`mlflow ui --backend-store-uri sqlite:///RUN/tracking/mlflow/mlflow.db` shows it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from experiments.run_log import Entry
from experiments.tracking import Tracker, numbers

EXPERIMENT: Final = "wiretrace"
LONGEST: Final = 500  # characters of a setting, within what every version takes

_ENDS: Final = {"failed": "FAILED", "interrupted": "KILLED"}


def tracker(folder: Path, *, name: str, settings: Mapping[str, Any]) -> Tracker:
    """Send the events of one run to a run of MLflow, by a client of its own: nothing global is touched.

    Args:
        folder: where the database goes.
        name: of the run.
        settings: its parameters.
    """
    from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]  # an extra

    client = MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}")
    run = client.create_run(_experiment(client), run_name=name).info.run_id
    for key, value in settings.items():
        client.log_param(run, key, str(value)[:LONGEST])
    state = "FINISHED"

    def track(entry: Entry) -> None:
        nonlocal state
        values, step = numbers(entry)
        for key, value in values.items():
            client.log_metric(run, key, value, step=0 if step is None else step)
        state = _ENDS.get(entry.event, state)
        if entry.event == "closed":
            client.set_terminated(run, state)

    return track


def _experiment(client: Any) -> str:
    """The number of our experiment, which is made if it is not there."""
    known = client.get_experiment_by_name(EXPERIMENT)
    if known is None:
        try:
            return client.create_experiment(EXPERIMENT)
        except Exception:
            known = client.get_experiment_by_name(EXPERIMENT)
            if known is None:
                raise  # or else a worker that started together with this one has made it meanwhile
    return known.experiment_id
