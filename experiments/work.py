"""What a run consists of: pieces of work that any process can do, in any order within a stage, more than once.

    units(settings, folder)   the pieces of a run: shards, then what gathers them; or the whole run as one piece
    perform(unit)             does one and leaves its result in the run directory, whole or not at all

A piece is plain data, and what it computes follows from that data alone: shards have the same borders whoever computes
them, and every piece runs on a fixed number of threads, since sums depend on it in their last bits. So the files of
results are the same, byte for byte, whatever did the work. Times differ, of course: they stand in `TIMED`.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from experiments import exact_shards
from experiments import run_directory as directories
from experiments.config import Config, PatchConfig
from experiments.config_file import build
from experiments.errors import BadConfig
from experiments.progress_display import Display, Silence
from experiments.store import rows

if TYPE_CHECKING:
    from circuits.coar import Sampling
    from experiments.attribute import AttributeConfig
    from patching.component_run import ComponentRun
    from patching.masked import MaskedRun

    AnyConfig = Config | PatchConfig | AttributeConfig

TIMED: Final = ("status.json", "env.json", "log.jsonl", "decisions.jsonl", "report.json", "report.md")
"""Files that say when, where or how long besides what: of `report.json` the parts `seconds`, `device` and
`search.resumed_after`, of `report.md` the line of times and the folder's name, of `decisions.jsonl` each `seconds`. All
other files of a run are the same, byte for byte, whatever did the work."""


ABLATIONS: Final = 256
"""Random ablations of a shard: `circuits.coar.sampling.SHARD_ROWS`, without loading torch to know it."""


@dataclass(frozen=True)
class Unit:
    """A piece of work.

    Attributes:
        settings: Of the run, with their schema.
        folder: The run directory.
        shard: Which part of the run; None for the whole of it, or for gathering its shards.
        threads: How many threads torch computes with on a CPU. Results depend on it in their last bits.
    """

    settings: Mapping[str, Any]
    folder: str
    shard: int | None = None
    threads: int = 1

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    @staticmethod
    def from_dict(document: Mapping[str, Any]) -> Unit:
        """The inverse of `to_dict`."""
        return Unit(**document)

    def __str__(self) -> str:
        return self.folder if self.shard is None else f"{self.folder}, shard {self.shard}"


def units(settings: Mapping[str, Any], folder: str | os.PathLike[str], *, threads: int = 1) -> list[list[Unit]]:
    """The pieces of a run, in stages: those of a stage may be done at once, and need all of the stage before.

    Attributions and exact sweeps are cut into shards; everything else is one piece (a search goes on from its decisions
    when it is interrupted). The list follows from the settings, never from what is done already.

    Cost: for an exact sweep, and an attribution that does not say how many samples, the model is loaded to count its
    units.

    Args:
        settings: Of one run, with their schema.
        folder: Its run directory.
        threads: How many threads each piece computes with on a CPU.

    Raises:
        BadConfig: The settings are wrong, or ``threads`` is not positive.

    Example:
        >>> settings = {"schema": "wiretrace-attribute/1", "task": "ioi", "model": "zoo:ioi", "samples": 600}
        >>> [len(stage) for stage in units(settings, "runs/ioi")]
        [3, 1]
    """
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise BadConfig(f"expected threads to be a whole number of 1 or more; got {threads!r}.")
    plain = json.loads(json.dumps(dict(settings)))
    count = _count_shards(build(plain), plain, threads)
    whole = [Unit(plain, os.fspath(folder), None, threads)]
    if count < 2:
        return [whole]
    return [[Unit(plain, os.fspath(folder), index, threads) for index in range(count)], whole]


def together(plans: Iterable[list[list[Unit]]]) -> list[list[Unit]]:
    """The stages of many runs: first all that can be begun at once, and so on.

    Example:
        >>> one, two = Unit({}, "a"), Unit({}, "b")
        >>> [len(stage) for stage in together([[[one], [one]], [[two]]])]
        [2, 1]
    """
    stages: list[list[Unit]] = []
    for plan in plans:
        for number, stage in enumerate(plan):
            if number == len(stages):
                stages.append([])
            stages[number] += stage
    return stages


def perform(unit: Unit, *, show: Display | None = None) -> bool:
    """Do a piece of work; what is done already is left as it is.

    Args:
        unit: The piece.
        show: Where progress goes; nowhere by default.

    Returns:
        Whether there was anything to do.

    Raises:
        WiretraceError: The run cannot be made so; the message says why.
        FolderBusy: Another process has the folder for itself.
        Interrupted: Ctrl-C or SIGTERM; what is done is kept.
    """
    config = build(unit.settings)
    if is_finished(unit):
        return False
    with _threads(unit.threads):
        if unit.shard is not None:
            return _perform_shard(unit, config)
        forget()  # or there would be two models in memory
        _perform_whole(config, Path(unit.folder), show or Silence())
        return True


def is_finished(unit: Unit) -> bool:
    """Whether the run that a piece belongs to is there, complete, with results that can be read."""
    folder = Path(unit.folder)
    there = directories.status(folder)
    if there is None or there.state != "finished":
        return False
    if directories.differences(there.identity, identity(build(unit.settings))):
        return False
    return rows.read(folder.parent, folder.name)["state"] == "finished"


def renew(settings: Mapping[str, Any], folder: str | os.PathLike[str]) -> None:
    """Empty a folder of another run, or of this one, so that it can be made again from the start.

    Raises:
        FolderTaken: It holds files that are not of a run, or somebody is writing there.
    """
    directories.emptied(Path(folder), identity(build(settings)))


def identity(config: AnyConfig) -> dict[str, Any]:
    """What decides the result of a run."""
    from experiments import attribute, discover, patch

    if isinstance(config, Config):
        return discover.identify(config)
    return patch.identify(config) if isinstance(config, PatchConfig) else attribute.identify(config)


def forget() -> None:
    """Drop the model that is kept from one shard to the next."""
    _kept.clear()


# --------------------------------------------------------------------------------------------------------- shards


@dataclass(frozen=True)
class _Exact:
    """An exact sweep, ready to be computed."""

    run: MaskedRun
    identity: Mapping[str, Any]
    key: str

    @property
    def n_shards(self) -> int:
        return exact_shards.n_shards(self.run.n_units)

    def compute(self, folder: Path, index: int) -> bool:
        """Whether anything was to do."""
        there = exact_shards.load(folder / directories.SHARDS, index, n_units=self.run.n_units, key=self.key)
        if there is None:
            exact_shards.shard(self.run, index, folder=folder / directories.SHARDS, key=self.key)
        return there is None


@dataclass(frozen=True)
class _Ablations:
    """The random ablations of an attribution, ready to be run."""

    run: ComponentRun
    identity: Mapping[str, Any]
    sampling: Sampling

    @property
    def n_shards(self) -> int:
        return self.sampling.n_shards

    def compute(self, folder: Path, index: int) -> bool:
        """Whether anything was to do."""
        from circuits import coar
        from circuits.coar.sampling import kept_shard

        if kept_shard(folder / directories.SAMPLES, self.sampling, index) is not None:
            return False
        coar.shard(self.run, self.sampling, index).save(folder / directories.SAMPLES)
        return True


_counts: dict[str, int] = {}
_kept: dict[str, _Exact | _Ablations] = {}
_LOCK: Final = threading.Lock()


def _perform_shard(unit: Unit, config: AnyConfig) -> bool:
    ready = _ready(config, unit.settings, unit.threads)
    with directories.shared(Path(unit.folder), ready.identity) as unfinished:
        if not unfinished:
            return False
        if not 0 <= (unit.shard or 0) < ready.n_shards:
            raise BadConfig(f"expected a shard from 0 to {ready.n_shards - 1}; got {unit.shard}.")
        return ready.compute(Path(unit.folder), unit.shard or 0)


def _perform_whole(config: AnyConfig, folder: Path, show: Display) -> None:
    from experiments import attribute, discover, patch

    if isinstance(config, Config):
        discover.discover(config, out=folder, resume=True, show=show)
    elif isinstance(config, PatchConfig):
        patch.patch(config, out=folder, show=show)
    else:
        attribute.attribute(config, out=folder, show=show)


def _count_shards(config: AnyConfig, settings: Mapping[str, Any], threads: int) -> int:
    """How many shards a run has; 0 if it is not cut."""
    if isinstance(config, PatchConfig):
        return 0
    if isinstance(config, Config):
        if config.method != "exact":
            return 0
    elif config.stop is not None:
        return 0
    elif config.samples is not None:
        return math.ceil(config.samples / ABLATIONS)
    name = _counted(config)
    if name not in _counts:
        _counts[name] = _ready(config, settings, threads).n_shards
    return _counts[name]


def _counted(config: AnyConfig) -> str:
    """What the number of a run's units follows from, so that a sweep over seeds loads its model once to count them."""
    known = identity(config)
    names = {"task", "model", "level", "positions", "components", "dictionaries"}
    if isinstance(config, Config) and config.positions:
        names |= {"prompts", "seed"}  # prompts of some tasks are as long as the longest that was drawn
    chosen = {name: value for name, value in known["config"].items() if name in names}
    return json.dumps(known | {"config": chosen}, sort_keys=True)


def _ready(config: AnyConfig, settings: Mapping[str, Any], threads: int) -> _Exact | _Ablations:
    """A run with its model loaded; kept until another is asked for, since a worker gets many shards of one run."""
    name = _named(settings, identity(config), threads)
    with _LOCK:
        if name not in _kept:
            _kept.clear()
            with _threads(threads):
                ready = _prepared(config)
            name = _named(settings, ready.identity, threads)  # loading puts a model of the hub into the cache
            _kept[name] = ready
        return _kept[name]


def _named(settings: Mapping[str, Any], identity: Mapping[str, Any], threads: int) -> str:
    return json.dumps([settings, identity, threads], sort_keys=True)


def _prepared(config: AnyConfig) -> _Exact | _Ablations:
    from experiments import attribute, discover
    from experiments.config import require_shipped

    require_shipped(config.model)
    with discover.enough_memory():
        if isinstance(config, Config):
            model = discover.load_model(config)
            run = discover.units(discover.search_run(model, config), config)
            now = identity(config)
            return _Exact(run, now, directories.key_of(now))
        assert not isinstance(config, PatchConfig)
        components, _seconds = attribute.prepare(config, show=Silence())
        attribute.check(config, components)
        return _Ablations(components, identity(config), attribute.sampling_of(config, components))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """So many threads, here and for whoever reads the setting; as before when the block ends."""
    import torch

    name = "OMP_NUM_THREADS"
    before, setting = torch.get_num_threads(), os.environ.get(name)
    os.environ[name] = str(count)
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if setting is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = setting
