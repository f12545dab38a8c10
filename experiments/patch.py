"""Patch every place of one kind, and leave effects, figure and page in a run directory.

    settings -> model -> training-split prompts -> base and source run -> effects -> files

A run directory as `experiments.discover` makes it, but nothing of an unfinished one is kept: there are no decisions to
go on from, and most runs take seconds.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from circuits import tasks
from experiments import config as settings
from experiments import environment, task_files
from experiments.config import ABLATIONS, DIRECTIONS, KINDS, METRICS, PATCHING, PatchConfig, patch_command
from experiments.discover import (
    SEARCH_SPLIT,
    deaf,
    device_name,
    enough_memory,
    load_model,
    stoppable,
    to_json,
)
from experiments.errors import Interrupted
from experiments.model_files import digests
from experiments.progress_display import Display, Silence, duration
from experiments.run_directory import (
    CONFIG,
    ENVIRONMENT,
    RESULTS,
    RunDirectory,
    claimed,
    finished,
    is_begun,
    is_of,
    plan,
    results_of,
)
from graphs.circuit import visible

if TYPE_CHECKING:
    from rich.table import Table

    from patching.activation import SiteRun
    from patching.effects import Effects

COMMAND: Final = "patch"
SHOWN: Final = 10
"""How many of the largest effects the page and the terminal list."""


@dataclass(frozen=True)
class Patched:
    """A run directory that holds effects of patching.

    Attributes:
        folder: Where.
        config: The settings.
        effects: What was found.
        files: Names of its result files.
    """

    folder: Path
    config: PatchConfig
    effects: Effects
    files: tuple[str, ...]


def patch(config: PatchConfig, *, out: Path, overwrite: bool = False, show: Display | None = None) -> Patched:
    """Patch into a run directory.

    A run that is there already, finished, is not made again: its results are returned. An unfinished one is begun
    anew.

    Args:
        config: What to patch.
        out: The run directory; it is made if it is absent.
        overwrite: Replace another run that is there.
        show: Where progress goes; nowhere by default.

    Raises:
        WiretraceError: Something is wrong; the message says what, and what to do.
        Interrupted: Ctrl-C or SIGTERM; nothing is left then.
    """
    show = show or Silence()
    settings.require_shipped(config.model)
    identity = identify(config)
    again = overwrite or is_begun(out, identity)
    if plan(out, identity, overwrite=again, resume=False) == "finished":
        show.say(f"{out} holds this run already, finished. To do it again, add --overwrite.")
        return saved(out)
    made = [each for each in (out, *out.parents) if not each.exists()]
    with stoppable(), enough_memory():
        try:
            run, seconds = prepare(config, show=show)
        except KeyboardInterrupt:
            raise Interrupted("Stopped before anything was written.") from None
        identity = identify(config)  # now that a model of the hub is in the cache, with its files
        again = overwrite or is_begun(out, identity)
        with claimed(out, identity, overwrite=again, resume=False) as directory:
            try:
                _carry_out(config, run, directory, loading=seconds, show=directory.told(show))
            except KeyboardInterrupt:
                with deaf():
                    directory.discard(made=made, event="interrupted")
                raise Interrupted(f"Interrupted. Nothing is left in {out}.") from None
    return saved(out)


def identify(config: PatchConfig) -> dict[str, Any]:
    """What decides the result: the version, the settings and the contents of the model's files."""
    chosen = {name: value for name, value in config.to_dict().items() if name != "device"}
    return {
        "wiretrace": environment.version(),
        "command": COMMAND,
        "config": chosen,
        "model_files": digests(config.model),
        **task_files.identity(config.task),
    }


def prepare(config: PatchConfig, *, show: Display) -> tuple[SiteRun, float]:
    """Load the model, run both prompts of every pair, and say how long that took.

    Raises:
        WiretraceError: The model cannot be found, read or trusted, does not suit the task, or has no such site.
    """
    from patching.activation import SiteRun
    from patching.sites import kind_of

    start = time.perf_counter()
    show.say(f"Loading {config.model} …")
    model = load_model(config)
    kind_of(config.kind, model.architecture)
    task = tasks.load(config.task).make(model, n=config.prompts, seed=config.seed, split=SEARCH_SPLIT)
    run = SiteRun(model, task, ablation=config.ablation, direction=config.direction, metric=config.metric)
    return run, time.perf_counter() - start


def is_patched(folder: Path) -> bool:
    """Whether a folder is a run directory of this command."""
    return is_of(folder, COMMAND)


def saved(folder: Path) -> Patched:
    """What a finished run found.

    Raises:
        BadRun: The folder is no run directory of this command, its run is not finished, or its results are gone or
            torn.
    """
    from patching.effects import Effects

    there = finished(folder, COMMAND, remedy="Begin it again with the command that began it.")
    files = tuple(name for name in RESULTS if (folder / name).is_file())
    with results_of(folder):
        config = PatchConfig.from_dict(there.identity["config"])
        return Patched(folder, config, Effects.load(folder / "effects.json"), files)


def _carry_out(config: PatchConfig, run: SiteRun, directory: RunDirectory, *, loading: float, show: Display) -> None:
    """Patch, write."""
    _write_settings(config, run, directory)
    start = time.perf_counter()
    with show.steps(config.method, unit="patch" if config.method == "exact" else "pass") as progress:
        effects = _effects(config, run, progress)
    seconds = {"load": loading, "patch": time.perf_counter() - start}
    made = {
        "wiretrace": environment.version(),
        "seed": config.seed,
        "split": SEARCH_SPLIT,
        "model_files": dict(directory.identity["model_files"]),
    }
    effects = replace(effects, provenance=dict(effects.provenance) | made)
    page = markdown(config, effects, folder=directory.path, seconds=seconds, device=device_name(run.model))
    directory.publish(lambda folder: _write_results(folder, config, effects, page))
    directory.set("finished")


def _effects(config: PatchConfig, run: SiteRun, progress: Any) -> Effects:
    from patching import activation, atp_star, gradients, path
    from patching.sites import KINDS

    if config.to is not None:
        return path.sweep_senders(run, config.to.split(","), progress=progress)
    split = KINDS[config.kind].parts in ("head", "group") and config.window == 1 and not config.positions
    places: dict[str, Any] = {"parts": split, "positions": config.positions, "progress": progress}
    if config.method == "exact":
        return activation.sweep(run, config.kind, window=config.window, **places)
    gradient = {
        "relp": gradients.relp,
        "ig_inputs": gradients.inputs,
        "ig_activations": gradients.activations,
        "conductance": gradients.conductance,
    }.get(config.method)
    if gradient is not None:
        return gradient(run, config.kind, **places)
    star = config.method == "atp_star"
    return atp_star.scores(
        run, config.kind, qk_fix=star and config.qk_fix, grad_drop=star and config.grad_drop, **places
    )


def _write_settings(config: PatchConfig, run: SiteRun, directory: RunDirectory) -> None:
    import torch

    comments = [f"Wiretrace {environment.version()}. To make this run again: wiretrace run {CONFIG} --out FOLDER"]
    if config.metric is None:
        comments.append(f"The metric is the task's own: {run.metric.name}.")
    if config.device is None:
        comments.append(f"No device is named: it was {run.model.device}.")
    directory.write(CONFIG, settings.to_toml(config, comments=tuple(comments)))
    record = environment.record(
        device=device_name(run.model),
        threads=torch.get_num_threads(),
        seed=config.seed,
        model_files=dict(directory.identity["model_files"]),
    )
    directory.write(ENVIRONMENT, to_json(record))


def _write_results(folder: Path, config: PatchConfig, effects: Effects, page: str) -> None:
    effects.save(folder / "effects.json")
    effects.to_frame().to_csv(folder / "effects.csv", index=False, lineterminator="\n")
    effects.plot(folder / "heatmap.svg", title=f"{config.kind} · {config.model} · {config.task} · {config.direction}")
    (folder / "report.md").write_text(page, encoding="utf-8")


# ------------------------------------------------------------------------------------------------------- the table


def rows(effects: Effects) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Column names, and the largest effects by importance, in words and figures.

    The importance stands only where it is not the mean effect itself, the standard error only where there are two
    prompts or more, the share of the gap only where the effect has a sign and patches come from a run.
    """
    names = effects.names()
    order = effects.importance.flatten().argsort(descending=True, stable=True)[:SHOWN].tolist()
    columns = {
        " ".join(effects.axes): [names[i] for i in order],
        "mean effect": [_signed(effects.mean.flatten()[i], signed=effects.signed) for i in order],
    }
    if len(effects.values) > 1:
        columns["standard error"] = [f"{float(effects.standard_error.flatten()[i]):.3f}" for i in order]
    if effects.signed:
        columns["importance"] = [f"{float(effects.importance.flatten()[i]):.3f}" for i in order]
    if _has_gap(effects):
        columns["share of the gap"] = [_percent(effects.normalised.flatten()[i]) for i in order]
    columns["detected"] = ["yes" if effects.detected.flatten()[i] else "" for i in order]
    return tuple(columns), list(zip(*columns.values(), strict=True))


def _has_gap(effects: Effects) -> bool:
    gap = float((effects.source_metric - effects.base_metric).mean())
    return effects.signed and gap != 0 and _is_run(effects)


def _is_run(effects: Effects) -> bool:
    """Whether patches come from a run, rather than being zero or means, which no metric belongs to."""
    from patching import ablations

    return ablations.get(str(effects.provenance["ablation"])).is_run


def _signed(value: Any, *, signed: bool) -> str:
    return format(float(value), "+.3f" if signed else ".3f").replace("-", "−")


def _percent(value: Any) -> str:
    return f"{float(value):.0%}".replace("-", "−")


def table(made: Patched) -> tuple[Table, Table]:
    """What was patched, and the largest effects, for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    config, effects = made.config, made.effects
    metric = str(effects.provenance["metric"])
    lines = [
        ("patched", f"{config.model} · {config.task} · {config.kind}: {KINDS[config.kind]}{_together(config)}"),
        ("how", f"{config.method}, {config.direction} ({config.ablation}), {len(effects.values):,} prompts"),
        (_plain(metric), _metrics(config, effects)),
        ("sign", _sign(config, effects)),
        ("files", f"{made.folder}: {', '.join(made.files)}"),
    ]  # fmt: skip
    head = Table(show_header=False, box=None, pad_edge=False)
    head.add_column(style="bold", no_wrap=True)
    head.add_column(overflow="fold")
    for name, value in lines:
        head.add_row(Text(name), Text(visible(value)))
    columns, largest = rows(effects)
    grid = Table(box=box.SIMPLE, pad_edge=False)
    for column in columns:
        grid.add_column(column, no_wrap=True, justify="right" if column in _FIGURES else "left")
    for row in largest:
        grid.add_row(*map(Text, row))
    return head, grid


_FIGURES: Final = ("mean effect", "standard error", "importance", "share of the gap")


# -------------------------------------------------------------------------------------------------------- the page


def markdown(config: PatchConfig, effects: Effects, *, folder: Path, seconds: Mapping[str, float], device: str) -> str:
    """The page.

    Args:
        config: The settings.
        effects: What was found.
        folder: The run directory, as the commands on the page name it.
        seconds: `load` and `patch`, wall time.
        device: Where the model was.
    """
    metric = str(effects.provenance["metric"])
    columns, largest = rows(effects)
    bars = "|".join("---:" if column in _FIGURES else "---" for column in columns)
    body = [f"| {' | '.join(row)} |" for row in largest]
    parts = [
        f"# Patching `{config.kind}` of `{visible(config.model)}` on the task `{config.task}`",
        f"Patched: {KINDS[config.kind]} (`{config.kind}`){_together(config)}, in {DIRECTIONS[config.direction]}. "
        f"{len(effects.values):,} prompts of the training split, seed {config.seed}. Mean {_plain(metric)}: "
        f"{_metrics(config, effects)}.",
        *(f"> **Note.** {note}" for note in notes(config, effects)),
        f"![Effects over {' and '.join(effects.axes)}](heatmap.svg)",
        "\n".join(
            [
                f"## Largest effects\n\nThe {len(largest)} largest of {effects.mean.numel():,} by importance; all "
                "are in `effects.csv`.\n",
                f"| {' | '.join(columns)} |",
                f"|{bars}|",
                *body,
            ]
        ),
        _conventions(config, effects, seconds=seconds, device=device),
        _further(config, folder),
    ]
    return "\n\n".join(parts) + "\n"


def notes(config: PatchConfig, effects: Effects) -> list[str]:
    """What a reader must know before believing the figures."""
    from patching import metrics

    metric = metrics.get(str(effects.provenance["metric"]))
    clean, other = effects.base_metric.mean(), effects.source_metric.mean()
    clean, other = (clean, other) if config.direction == "noising" else (other, clean)
    notes = []
    if _is_run(effects) and not bool(clean > other if metric.higher_is_better else clean < other):
        notes.append(
            f"The model does no better on the clean prompts than in the ablated run ({_plain(metric.name)} "
            f"{float(clean):.3g} and {float(other):.3g}): it does not do this task, and effects mean little."
        )
    if len(effects.values) < 2:
        notes.append("There is a single prompt, so nothing says how far effects vary. Add --prompts.")
    return notes


def _conventions(config: PatchConfig, effects: Effects, *, seconds: Mapping[str, float], device: str) -> str:
    metric = str(effects.provenance["metric"])
    lines = [
        f"**Direction.** {config.direction}: {DIRECTIONS[config.direction]}. Ablated values are "
        f"{ABLATIONS[config.ablation]} (`{config.ablation}`). Everything after a patch runs freely.",
        f"**Effect.** metric(patched) − metric(base), averaged over prompts. {_sign(config, effects)}",
        f"**Metric.** `{metric}`: {METRICS[metric]}.",
        f"**Method.** {config.method}: {PATCHING[config.method]}{_repairs(config)}.",
        "**Importance** is the mean over prompts of absolute effects (arXiv 2403.00745): prompts of opposite sign do "
        "not cancel, as they do in the mean effect.",
        "**Standard error** is that of the mean over prompts.",
        "**Share of the gap** is the mean effect over the mean difference between the two runs: 0 changes nothing, "
        "100 % does what patching everything does.",
        "**Detected** are effects more than two standard deviations from the mean over all places (arXiv 2309.16042). "
        "It is a rule of thumb and no test.",
        "**Names.** `L2 H5` is head 5 of layer 2, `G` a key/value group; positions count tokens. Counting starts at "
        "0. Prompts of different length have different tokens at a position.",
        f"**Time.** Loading {duration(seconds['load'])}, patching {duration(seconds['patch'])}, on {device}.",
    ]
    return "\n".join(["## What the words mean\n", *(f"- {line}" for line in lines)])


def _further(config: PatchConfig, folder: Path) -> str:
    here = shlex.quote(str(folder))
    other = replace(config, direction="denoising" if config.direction == "noising" else "noising")
    if config.ablation not in ("corrupt", "resample", "gaussian-noise"):
        other = replace(config, seed=config.seed + 1)
    commands = [
        f"wiretrace show {here}",
        patch_command(other, out=f"{folder}-other"),
        f"wiretrace run {shlex.quote(str(folder / CONFIG))} --out {shlex.quote(f'{folder}-again')}",
    ]
    python = [
        "from patching.effects import Effects",
        "",
        f"effects = Effects.load({str(folder / 'effects.json')!r})",
        "frame = effects.to_frame()  # a pandas.DataFrame",
    ]
    return "\n".join(
        [
            "## Look further\n",
            "The table again, the same another way round, and this run made anew:\n",
            "```sh",
            *commands,
            "```\n",
            "In Python, with every prompt's effects:\n",
            "```python",
            *python,
            "```",
        ]
    )


# ------------------------------------------------------------------------------------------------------ the words


def _together(config: PatchConfig) -> str:
    """What is patched at once, where that is more or less than one head or layer."""
    said = []
    if config.window > 1:
        said.append(f"{config.window} layers together")
    if config.kind == "neurons" or (config.kind in ("q", "k", "v", "pattern", "z") and _pooled(config)):
        said.append(f"all {'neurons' if config.kind == 'neurons' else 'heads'} of a layer together")
    if config.positions:
        said.append("each position by itself")
    if config.to is not None:
        said.append(f"into {config.to} alone, directly or by way of MLPs")
    return f" ({', '.join(said)})" if said else ""


def _pooled(config: PatchConfig) -> bool:
    return config.window > 1 or config.positions


def _repairs(config: PatchConfig) -> str:
    out = [name for name, used in (("QK fix", config.qk_fix), ("GradDrop", config.grad_drop)) if not used]
    return f"; here without {' and '.join(out)}" if out else ""


def _sign(config: PatchConfig, effects: Effects) -> str:
    """What the sign of an effect means, in a sentence."""
    from patching import metrics

    if not effects.signed:
        return "Absolute by construction (GradDrop): large means that the place matters, either way."
    better = metrics.get(str(effects.provenance["metric"])).higher_is_better
    if config.direction == "noising":
        return f"{'Negative' if better else 'Positive'}: losing the clean value there hurts, so the place helps."
    return f"{'Positive' if better else 'Negative'}: the clean value there restores the behaviour."


def _metrics(config: PatchConfig, effects: Effects) -> str:
    """The metric of the run that is patched, and of the one that supplies the patches."""
    here, other = ("clean", config.ablation) if config.direction == "noising" else (config.ablation, "clean")
    said = f"{_mean(effects.base_metric)} unpatched ({here})"
    return said + (f", {_mean(effects.source_metric)} where patches come from ({other})" if _is_run(effects) else "")


def _mean(values: Any) -> str:
    return f"{float(values.mean()):.3f}".replace("-", "−")


def _plain(name: str) -> str:
    return name.replace("_", " ")
