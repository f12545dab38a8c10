"""The main job: find the circuit of a task in a model, judge it on held-out prompts, and leave a run directory.

    settings -> model -> training-split prompts -> method -> circuit -> held-out prompts -> report -> files

Everything that can be refused is refused before the model is loaded, and nothing is written before the model and both
tasks are there. From then on `run_directory` keeps what is done whatever happens.
"""

from __future__ import annotations

import inspect
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from circuits import tasks
from circuits.methods import METHODS
from experiments import config as settings
from experiments import environment, exact_shards, report, saved_runs, task_files
from experiments.config import Config, PatchConfig, command_line
from experiments.errors import BadConfig, Interrupted, NoMemory
from experiments.model_files import digest, digests
from experiments.progress_display import Display, Silence
from experiments.run_directory import (
    CONFIG,
    DECISIONS,
    ENVIRONMENT,
    SHARDS,
    RunDirectory,
    claimed,
    done_so_far,
    plan,
)
from graphs.circuit import Circuit

if TYPE_CHECKING:
    from experiments.attribute import AttributeConfig
    from patching.ablations import Ablation
    from patching.lens import LensModel
    from patching.masked import MaskedRun
    from patching.scores import Scores

SEARCH_SPLIT: Final = "train"
HELD_OUT_SPLIT: Final = "held-out"
SMALL_WIDTH: Final = 512  # of the residual stream


@dataclass(frozen=True)
class Stage:
    """What a search needs, loaded.

    Attributes:
        model: The model.
        search: It on the prompts of the search.
        held_out: It on the prompts of the evaluation.
        seconds: How long loading took.
    """

    model: LensModel
    search: MaskedRun
    held_out: MaskedRun
    seconds: float


def discover(
    config: Config, *, out: Path, overwrite: bool = False, resume: bool = False, show: Display | None = None
) -> saved_runs.Saved:
    """Run a config into a run directory.

    A run that is there already, finished, is not run again: its results are returned.

    Args:
        config: What to run.
        out: The run directory; it is made if it is absent.
        overwrite: Replace another run that is there.
        resume: Continue this run if it is there, unfinished.
        show: Where progress goes; nowhere by default.

    Returns:
        The finished run.

    Raises:
        WiretraceError: Something is wrong; the message says what, and what to do.
        Interrupted: Ctrl-C or SIGTERM; the message says what is left and how to go on.
    """
    show = show or Silence()
    settings.require_shipped(config.model)
    if plan(out, identify(config), overwrite=overwrite, resume=resume) == "finished":
        show.say(f"{out} holds this run already, finished. To do it again, add --overwrite.")
        return saved_runs.saved(out)
    with stoppable(), enough_memory():
        try:
            stage = prepare(config, show=show)
        except KeyboardInterrupt:
            raise Interrupted("Stopped before anything was written.") from None
        identity = identify(config)  # now that a model of the hub is in the cache, with its files
        with claimed(out, identity, overwrite=overwrite, resume=resume) as directory:
            try:
                _carry_out(config, stage, directory, show=directory.told(show))
            except KeyboardInterrupt:
                raise Interrupted(_interrupt(config, directory)) from None
    return saved_runs.saved(out)


def identify(config: Config) -> dict[str, Any]:
    """What decides the result of a run: the version, the settings and the contents of the model's files."""
    chosen = {name: value for name, value in config.to_dict().items() if name != "device"}
    known = {"wiretrace": environment.version(), "config": chosen, "model_files": digests(config.model)}
    if settings.is_constants(config.ablation):
        known["ablation_file"] = digest(Path(config.ablation))
    return known | task_files.identity(config.task)


def prepare(config: Config, *, show: Display) -> Stage:
    """Load the model and put both tasks on it.

    Raises:
        BadConfig: The device is not there, or more edges are asked for than the model has.
        WiretraceError: The model cannot be found, read or trusted, or does not suit the task.
    """
    start = time.perf_counter()
    show.say(f"Loading {config.model} …")
    model = load_model(config)
    search = search_run(model, config)
    held_out = _run_on(model, config, split=HELD_OUT_SPLIT, n=config.held_out)
    count = units(search, config).n_units
    if config.n is not None and config.n > count:
        raise BadConfig(f"expected n to be at most {count:,}, the {config.level}s of this model; got {config.n:,}.")
    return Stage(model, search, held_out, time.perf_counter() - start)


def search_run(model: LensModel, config: Config) -> MaskedRun:
    """A model on the prompts of the search."""
    return _run_on(model, config, split=SEARCH_SPLIT, n=config.prompts)


def units(run: MaskedRun, config: Config) -> MaskedRun:
    """The run over what a config decides on or scores."""
    run = {"edge": run.edges, "node": run.nodes, "neuron": run.neurons}[config.level or "edge"]()
    return run.positions() if config.positions else run


def load_model(config: Config | PatchConfig | AttributeConfig) -> LensModel:
    """The model of a config, on its device; one thread where more would only wait for each other."""
    from patching.lens import LensModel

    _require_device(config.device)
    model = LensModel.load(config.model, device=config.device)
    _choose_threads(model)
    return model


def _choose_threads(model: LensModel) -> None:
    """One thread for small models on a CPU: two wait for each other longer than they save."""
    import torch

    chosen = any(os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"))
    if model.device.type == "cpu" and model.d_model < SMALL_WIDTH and not chosen:
        torch.set_num_threads(1)


def _require_device(name: str | None) -> None:
    import torch

    if name is None:
        return
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    kind, _, number = name.partition(":")
    if int(number or 0) >= there[kind]:
        usable = [each for each, count in there.items() if count]
        raise BadConfig(
            f"expected a device out of {', '.join(usable)}; got {name!r}, which torch {torch.__version__} cannot use "
            "here. `wiretrace env` shows more."
        )


def _run_on(model: LensModel, config: Config, *, split: str, n: int) -> MaskedRun:
    from patching.masked import MaskedRun

    task = tasks.load(config.task).make(model, n=n, seed=config.seed, split=split)
    return MaskedRun(model, task, ablation=ablation_of(config, model), metric=config.metric)


def ablation_of(config: Config, model: LensModel) -> str | Ablation:
    """The ablation that a config names: one of the table, or trained constants out of a file.

    Raises:
        InvalidOption: The file is not there, or holds no constants for this model.
    """
    from patching import optimal

    return optimal.load(config.ablation, model) if settings.is_constants(config.ablation) else config.ablation


def _carry_out(config: Config, stage: Stage, directory: RunDirectory, *, show: Display) -> None:
    """Search, evaluate, write."""
    start = time.perf_counter()
    _write_settings(config, stage, directory)
    circuit, scores, taken_over = _search(config, stage.search, directory, show=show)
    searched = time.perf_counter()
    show.say(f"Evaluating {circuit.n_edges:,} edges on {len(stage.held_out.task):,} held-out prompts …")
    evaluation = _evaluation(stage.held_out, circuit, seed=config.seed)
    curves = _curves(config, stage.held_out, scores)
    evaluated = time.perf_counter()
    made = {
        "wiretrace": environment.version(),
        "seed": config.seed,
        "split": SEARCH_SPLIT,
        "model_files": dict(directory.identity["model_files"]),
    }
    circuit = replace(circuit, provenance=dict(circuit.provenance) | made)
    document = report.document(
        config,
        circuit,
        evaluation=evaluation,
        search=_baselines(stage.search) | {"resumed_after": taken_over},
        seconds={
            "load": stage.seconds,
            "search": searched - start,
            "evaluate": evaluated - searched,
            "total": stage.seconds + evaluated - start,
        },
        device=device_name(stage.model),
        curves=curves,
    )
    if scores is not None:
        scores = replace(scores, provenance=dict(scores.provenance) | made)
    directory.publish(lambda folder: _write_results(folder, circuit, scores, document, stage, named=directory.path))
    directory.set("finished")


def _write_settings(config: Config, stage: Stage, directory: RunDirectory) -> None:
    import torch

    comments = [
        f"Wiretrace {environment.version()}. To make this run again: wiretrace run {CONFIG} --out FOLDER",
    ]
    if config.metric is None:
        comments.append(f"The metric is the task's own: {stage.search.metric.name}.")
    if config.device is None:
        comments.append(f"No device is named: it was {stage.model.device}.")
    directory.write(CONFIG, settings.to_toml(config, comments=tuple(comments)))
    record = environment.record(
        device=device_name(stage.model),
        threads=torch.get_num_threads(),
        seed=config.seed,
        model_files=dict(directory.identity["model_files"]),
    )
    directory.write(ENVIRONMENT, to_json(record))


def _search(
    config: Config, run: MaskedRun, directory: RunDirectory, *, show: Display
) -> tuple[Circuit, Scores | None, int]:
    """Run the method; returns the circuit, the scores if it gives scores, and how many decisions were taken over."""
    method = METHODS[config.method]
    function = method.function()
    run = units(run, config)
    followed = "watch" in inspect.signature(function).parameters
    with _followed(directory, show) if followed else nullcontext(({}, 0)) as (extra, taken_over):
        if taken_over:
            show.say(f"Going on after {taken_over:,} decisions.")
        with show.steps(method.name, unit="edge" if followed else "step", done=taken_over) as progress:
            found: Any
            if method.name == "exact":
                folder = directory.path / SHARDS
                found = exact_shards.scores(run, folder=folder, key=directory.key, progress=progress)
            else:
                found = function(run, **config.options, **extra, progress=progress)
    if method.gives == "circuit":
        return found, None, taken_over
    return selected(config, found), found, taken_over


def selected(config: Config, scores: Scores) -> Circuit:
    """The circuit that a config takes from scores.

    Raises:
        InvalidOption: There are fewer units than asked for.
    """
    from circuits.select import greedy_edges, top_edges, top_nodes

    take = top_nodes if config.level != "edge" else {"top": top_edges, "greedy": greedy_edges}[config.selection]
    n = min(settings.DEFAULT_N, len(scores)) if config.n is None else config.n
    return take(scores, n=n, signed=config.signed)


@contextmanager
def _followed(directory: RunDirectory, show: Display) -> Iterator[tuple[dict[str, Any], int]]:
    """Arguments that make a search log its decisions, and take over those of an interrupted one."""
    from circuits.acdc import Decision, Footing

    log = directory.decisions()
    if log.damaged is not None:
        show.say(
            f"{directory.path / DECISIONS} is damaged from line {log.damaged} on: going on from the {len(log.rows):,} "
            "decisions before it."
        )
    footings = [None if row.footing is None else Footing.from_list(row.footing) for row in log.rows]
    decided = [
        Decision(row.name, row.kept, row.delta, footing) for row, footing in zip(log.rows, footings, strict=True)
    ]
    with directory.writer(log) as writer:

        def watch(decision: Decision) -> None:
            footing = None if decision.footing is None else decision.footing.to_list()
            writer.append(decision.name, decision.kept, decision.delta, footing)

        yield {"decided": decided, "watch": watch}, len(decided)


def _evaluation(run: MaskedRun, circuit: Circuit, *, seed: int) -> Mapping[str, Any]:
    from circuits import evaluate

    return evaluate(run, circuit, seed=seed).to_dict()


def _curves(config: Config, run: MaskedRun, scores: Scores | None) -> Mapping[str, Any]:
    """How faithful circuits of other sizes are, if that is asked for."""
    if scores is None or not config.curve:
        return {}
    from experiments import size_curves

    return {name: curve.to_dict() for name, curve in size_curves.both(run, scores, seed=config.seed).items()}


def _baselines(run: MaskedRun) -> dict[str, Any]:
    return {
        "prompts": len(run.task),
        "clean": float(run.clean_metric.mean()),
        "ablated": float(run.corrupt_metric.mean()),
        "higher_is_better": run.metric.higher_is_better,
    }


def device_name(model: LensModel) -> str:
    """Where a model is, with the name of a GPU."""
    if model.device.type != "cuda":
        return str(model.device)
    import torch

    return f"{model.device} ({torch.cuda.get_device_name(model.device)})"


def _write_results(
    folder: Path, circuit: Circuit, scores: Scores | None, document: Mapping[str, Any], stage: Stage, *, named: Path
) -> None:
    """Every result file; `named` is what the report calls the folder."""
    from experiments.view import LARGEST, example
    from graphs.export import export

    circuit.save(folder / "circuit.json")
    export(circuit, folder / "circuit.graphml")
    export(circuit, folder / "circuit.svg")
    if circuit.n_edges <= LARGEST:
        export(circuit, folder / "circuit.html", **example(stage.model, stage.search.task))
    if scores is not None:
        scores.save(folder / "scores.json")
    if document.get("curves") and document["evaluation"]["faithfulness"] is not None:
        from experiments import size_curves

        config = document["config"]
        title = f"{config['task']}, {config['model']}, {config['ablation']}"
        size_curves.draw(document["curves"], folder / "faithfulness.svg", title=title)
    (folder / "report.json").write_text(to_json(document), encoding="utf-8")
    (folder / "report.md").write_text(report.markdown(document, folder=named), encoding="utf-8")


def to_json(document: Mapping[str, Any]) -> str:
    """The text of a JSON file."""
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


# ----------------------------------------------------------------------------------------------------- stopping


def _interrupt(config: Config, directory: RunDirectory) -> str:
    """Mark the run as interrupted; returns what to tell the user."""
    with deaf():
        directory.set("interrupted")
        made = done_so_far(directory.path)
    kept = "Nothing was decided yet in"
    if made:
        kept = f"The {made} made so far {'are' if made.endswith('s') else 'is'} kept in"
    go_on = command_line(config, out=directory.path, flags=("--resume",))
    return f"Interrupted. {kept} {directory.path}. Go on with: {go_on} (or start again with --overwrite)."


@contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGTERM end a run as Ctrl-C does, for as long as the block lasts."""
    with _handling(signal.default_int_handler):
        yield


@contextmanager
def deaf() -> Iterator[None]:
    """Let nobody interrupt the few lines that say a run was interrupted."""
    with _handling(signal.SIG_IGN):
        yield


def _handling(handler: Callable[..., Any] | signal.Handlers) -> AbstractContextManager[None]:
    """Handle SIGINT and SIGTERM; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        return nullcontext()
    return _handled(handler)


@contextmanager
def _handled(handler: Callable[..., Any] | signal.Handlers) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)


@contextmanager
def enough_memory() -> Iterator[None]:
    """Running out of memory is said in a sentence."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        from patching.chunks import is_out_of_memory

        text = str(error)
        if is_out_of_memory(error):
            raise NoMemory(
                "the run needs more memory than there is. Use fewer --prompts and --held-out, or another --device. "
                f"({text.splitlines()[0] if text else 'MemoryError'})"
            ) from error
        raise
