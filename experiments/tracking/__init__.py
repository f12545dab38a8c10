"""Optional tracking of runs: what goes into a run's log also goes to TensorBoard, Weights & Biases or MLflow.

A tracker is one callable, called with every `experiments.run_log.Entry` of one run from ``started`` to ``closed``.
Each module here has one function that makes it:

    tracker(folder, *, name, settings) -> Callable[[Entry], None]

where ``folder`` is the tracker's own, inside the run directory. None needs a network. Nothing is tracked unless it is
asked for, by ``--track NAME`` or the environment variable `VARIABLE`, which workers inherit. A tracker that raises is
told of once and left out from then on: it never ends a run.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from experiments.errors import BadConfig
from experiments.nearest import did_you_mean
from experiments.run_log import Entry

Tracker = Callable[[Entry], None]

VARIABLE: Final = "WIRETRACE_TRACK"
FOLDER: Final = "tracking"
MOST_NUMBERS: Final = 200


@dataclass(frozen=True)
class Kind:
    """A tracker that can be asked for.

    Attributes:
        module: where `tracker` is.
        needs: the package that it imports.
        title: what people call it.
    """

    module: str
    needs: str
    title: str


TRACKERS: Final[dict[str, Kind]] = {
    "tensorboard": Kind("experiments.tracking.tensorboard", "tensorboard", "TensorBoard"),
    "wandb": Kind("experiments.tracking.wandb", "wandb", "Weights & Biases"),
    "mlflow": Kind("experiments.tracking.mlflow", "mlflow", "MLflow"),
}


def check(names: Iterable[str]) -> tuple[str, ...]:
    """Names of trackers, each once, that can be used here.

    Raises:
        BadConfig: an unknown name, or a package that is not installed.
    """
    chosen = tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
    for name in chosen:
        if name not in TRACKERS:
            raise BadConfig(
                f"expected a tracker out of {', '.join(TRACKERS)}; got {name!r}.{did_you_mean(name, TRACKERS)}"
            )
        if importlib.util.find_spec(TRACKERS[name].needs) is None:
            raise BadConfig(
                f"expected {TRACKERS[name].needs} to be installed, which --track {name} needs. "
                f"Install it: pip install {TRACKERS[name].needs} (or -e '.[tracking]' for all)."
            )
    return chosen


def asked() -> tuple[str, ...]:
    """The trackers that the environment asks for, as it spells them."""
    return tuple(filter(None, (name.strip() for name in os.environ.get(VARIABLE, "").split(","))))


class Trackers:
    """The trackers of one run.

    Args:
        folder: the run directory.
        settings: what the run is, shown beside its figures.
        names: of `TRACKERS`.
        report: told, once for each tracker that fails, what happened.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], names: Iterable[str], report: Callable[[str], object]
    ) -> None:
        self._report = report
        self._live: dict[str, Tracker] = {}
        for name in names:
            try:
                check([name])
                module = importlib.import_module(TRACKERS[name].module)
                own = folder / FOLDER / name
                own.mkdir(parents=True, exist_ok=True)
                self._live[name] = module.tracker(own, name=folder.resolve().name, settings=flat(settings))
            except Exception as error:
                self._failed(name, error)

    def tell(self, entry: Entry) -> None:
        """Pass a line of the log on."""
        for name, tracker in list(self._live.items()):
            try:
                tracker(entry)
            except Exception as error:
                del self._live[name]
                self._failed(name, error)

    def _failed(self, name: str, error: Exception) -> None:
        said = str(error).strip().splitlines()[0] if str(error).strip() else "no more is known"
        self._report(f"{name} does not track this run ({type(error).__name__}: {said}). The run goes on.")


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, with names such as ``config.options.tau``.

    Example:
        >>> flat({"config": {"tau": 0.1, "options": {"order": "latest"}}})
        {'config.tau': 0.1, 'config.options.order': 'latest'}
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{key}.")
        else:
            found[key] = value
    return found


def numbers(entry: Entry) -> tuple[dict[str, float], int | None]:
    """The figures that an entry holds, by name, and the step that they belong to.

    Progress is the share that is done; results are every number of the report.

    Example:
        >>> from experiments.run_log import Entry
        >>> numbers(Entry(4, "", 1, "progress", {"what": "acdc", "done": 5, "total": 20}))
        ({'progress/acdc': 0.25}, 5)
    """
    fields = entry.fields
    if entry.event in ("progress", "ended") and fields.get("total"):
        return {f"progress/{_name(fields.get('what', ''))}": fields["done"] / fields["total"]}, int(fields["done"])
    if entry.event == "published" and isinstance(fields.get("numbers"), Mapping):
        found = {f"result/{_name(name)}": value for name, value in flat(fields["numbers"]).items() if _is_number(value)}
        return dict(list(found.items())[:MOST_NUMBERS]), None
    return {}, None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _name(text: object) -> str:
    """A name that every tracker takes."""
    return re.sub(r"[^A-Za-z0-9_.\- /]", "_", str(text)) or "_"
