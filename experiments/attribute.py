"""Component attribution (COAR) as a scripted run: weights, held-out correlation, interactions, figures, a report.

    settings -> model -> training-split prompts -> random ablations, in shards -> weights -> held-out ablations -> files

The ablations are kept in the run directory as they are finished, so that an interrupted run goes on, other processes
and machines can compute some of them (`--shards`), and the same folder can be asked for more.
"""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from circuits import tasks
from experiments import config as settings
from experiments import environment, task_files
from experiments.config import ABLATIONS, ATTRIBUTE_SCHEMA, METRICS, MOST_PROMPTS
from experiments.discover import SEARCH_SPLIT, deaf, device_name, enough_memory, load_model, stoppable, to_json
from experiments.errors import BadConfig, Interrupted
from experiments.model_files import dictionary_digests, digests
from experiments.nearest import did_you_mean, require_known
from experiments.progress_display import Display, Silence, duration
from experiments.run_directory import (
    CONFIG,
    ENVIRONMENT,
    RESULTS,
    SAMPLES,
    RunDirectory,
    claimed,
    finished,
    is_begun,
    is_of,
    plan,
    results_of,
    shared,
)
from graphs.circuit import visible

if TYPE_CHECKING:
    from circuits.coar import Attribution, Interactions, Sampling
    from circuits.coar.evaluation import Evaluation, LearningCurve
    from patching.component_run import ComponentRun

COMMAND: Final = "attribute"
COMPONENTS: Final = ("input", "heads", "mlps", "neurons", "features")
ESTIMATORS: Final = (
    *("auto", "normal_equations", "ridge", "lasso", "elastic_net", "conjugate_gradients", "difference_of_means"),
)
SHOWN: Final = 8
"""How many components the terminal lists from either end."""

MOST_ALONE: Final = 2_000
"""Up to so many components, leaving one out is among the baselines; it costs a run for each."""

MOST_PAIRED: Final = 40
"""Interactions are fitted among so many components of the largest weights."""


@dataclass(frozen=True)
class AttributeConfig:
    """What to attribute.

    Args:
        task: A name of `circuits.tasks`.
        model: A model that ships (`zoo:ioi`), a folder in Hugging Face format, or a hub name.
        components: Names out of `COMPONENTS`, or of single nodes (`a2.h5`), separated by commas.
        dictionaries: Folders of dictionaries whose features are components, separated by commas.
        samples: Random ablations; None for ten for each component, from 1,000 to 20,000.
        stop: Instead of a number of samples: add some until the held-out correlation rises by less than this.
        keep: Probability that a component is kept.
        masks: `bernoulli` or `subset`.
        estimator: A name of `ESTIMATORS`.
        ablation: What an ablated component writes.
        metric: What is attributed; None for the task's own metric.
        interactions: Whether pairs are fitted too.
        prompts: How many training-split prompts.
        held_out: Held-out ablations for each share.
        seed: Of prompts and ablations.
        device: Where to run; None for the first GPU if there is one, else the CPU.

    Raises:
        UnknownName, UnknownTask: A name is not known; the nearest are offered.
        BadConfig: A number is out of range, or options contradict one another.
    """

    task: str
    model: str
    components: str = "heads,mlps"
    dictionaries: str | None = None
    samples: int | None = None
    stop: float | None = None
    keep: float = 0.9
    masks: str = "bernoulli"
    estimator: str = "auto"
    ablation: str = "corrupt"
    metric: str | None = None
    interactions: bool = False
    prompts: int = 32
    held_out: int = 200
    seed: int = 0
    device: str | None = None

    def __post_init__(self) -> None:
        tasks.load(self.task)
        require_known("an ablation", self.ablation, ABLATIONS)
        require_known("an estimator", self.estimator, ESTIMATORS)
        require_known("a kind of masks", self.masks, ("bernoulli", "subset"))
        if self.metric is not None:
            require_known("a metric", self.metric, METRICS)
        settings.check_model(self.model)
        settings.check_device(self.device)
        for name, least, most in (
            ("samples", 1, MOST_PROMPTS),
            ("prompts", 1, MOST_PROMPTS),
            ("held_out", 2, MOST_PROMPTS),
            ("seed", 0, 2**63 - 1),
        ):
            value = getattr(self, name)
            if name == "samples" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise BadConfig(f"expected {name} to be a whole number; got {value!r}.")
            settings.check_range(name, value, least=least, most=most)
        if not 0 < self.keep < 1:
            raise BadConfig(f"expected keep strictly between 0 and 1; got {self.keep}. Try 0.9.")
        if self.stop is not None and (self.samples is not None or not 0 <= self.stop < 1):
            raise BadConfig("expected either samples, or stop as a rise of the correlation from 0 to below 1.")
        if not self.families:
            raise BadConfig(f"expected components, such as heads,mlps; got {self.components!r}.")

    @property
    def families(self) -> tuple[str, ...]:
        """Names of families and nodes."""
        return tuple(name.strip() for name in self.components.split(",") if name.strip())

    @property
    def dictionary_names(self) -> tuple[str, ...]:
        """Names of dictionaries."""
        return tuple(name.strip() for name in (self.dictionaries or "").split(",") if name.strip())

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain data; those that were left open are absent."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @staticmethod
    def from_dict(document: Mapping[str, Any]) -> AttributeConfig:
        """The inverse of `to_dict`.

        Raises:
            BadConfig: A setting is unknown, missing or of the wrong type.
        """
        known = {each.name: str(each.type) for each in fields(AttributeConfig)}
        unknown = [name for name in document if name not in known]
        missing = [name for name in ("task", "model") if name not in document]
        if unknown or missing:
            raise BadConfig(
                f"expected settings out of {', '.join(known)}, task and model among them; "
                + (f"got {unknown[0]!r}.{did_you_mean(unknown[0], known)}" if unknown else f"{missing[0]} is missing.")
            )
        kinds = {"int": int, "float": (int, float), "bool": bool, "str": str}
        for name, value in document.items():
            kind = kinds[known[name].split()[0]]
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise BadConfig(f"expected the setting {name} to be {known[name].split()[0]}; got {value!r}.")
        return AttributeConfig(**document)

    def to_toml(self, *, comments: Sequence[str] = ()) -> str:
        """The settings as the text of a TOML file."""
        lines = [f"# {line}" for line in comments]
        pairs = {"schema": ATTRIBUTE_SCHEMA} | self.to_dict()
        return "\n".join([*lines, *(f"{name} = {settings.toml_value(value)}" for name, value in pairs.items()), ""])


@dataclass(frozen=True)
class Attributed:
    """A run directory that holds an attribution.

    Attributes:
        folder: Where.
        config: The settings.
        attribution: What was found.
        correlations: Rows of method, share ablated, held-out correlation and standard error.
        files: Names of its result files.
    """

    folder: Path
    config: AttributeConfig
    attribution: Attribution
    correlations: tuple[dict[str, Any], ...]
    files: tuple[str, ...]


def attribute(
    config: AttributeConfig, *, out: Path, overwrite: bool = False, show: Display | None = None
) -> Attributed:
    """Attribute into a run directory.

    A finished run is not made again: its results are returned. An unfinished one goes on with the ablations that it
    holds.

    Args:
        config: What to attribute.
        out: The run directory; it is made if it is absent.
        overwrite: Replace another run that is there.
        show: Where progress goes; nowhere by default.

    Raises:
        WiretraceError: Something is wrong; the message says what, and what to do.
        Interrupted: Ctrl-C or SIGTERM; finished shards stay.
    """
    show = show or Silence()
    settings.require_shipped(config.model)
    identity = identify(config)
    resume = not overwrite and is_begun(out, identity)
    if plan(out, identity, overwrite=overwrite, resume=resume) == "finished":
        show.say(f"{out} holds this run already, finished. To do it again, add --overwrite.")
        return saved(out)
    with stoppable(), enough_memory():
        run, seconds = prepare(config, show=show)
        check(config, run)
        identity = identify(config)  # now that a model of the hub is in the cache, with its files
        resume = not overwrite and is_begun(out, identity)
        with claimed(out, identity, overwrite=overwrite, resume=resume) as directory:
            try:
                _carry_out(config, run, directory, loading=seconds, show=directory.told(show))
            except KeyboardInterrupt:
                with deaf():
                    directory.set("interrupted")
                raise Interrupted(f"Interrupted. Give the command again to go on; {out} keeps what is done.") from None
    return saved(out)


def check(config: AttributeConfig, run: ComponentRun) -> None:
    """Refuse what the regression would refuse, before anything is run or written.

    Raises:
        InvalidOption: Too few samples for this estimator.
    """
    from circuits.coar.estimators import check

    samples = run.n_units + 1 if config.stop is not None else sampling_of(config, run).design.samples
    check(config.estimator, samples=samples, n_units=run.n_units)


def compute_shards(config: AttributeConfig, numbers: Sequence[int], *, out: Path, show: Display | None = None) -> int:
    """Compute some shards of a run's ablations into its folder, beside others who do the same; how many there are.

    A plain function of the settings and numbers, for workers of any kind. The run that then asks for the whole
    (`attribute`) finds them done.

    Raises:
        BadConfig: the number of samples is not fixed (``stop``), or there is no such shard.
    """
    from circuits import coar

    if config.stop is not None:
        raise BadConfig("expected a fixed number of samples for shards; --stop decides as it goes. Use --samples.")
    settings.require_shipped(config.model)
    run, _ = prepare(config, show=show or Silence())
    sampling = sampling_of(config, run)
    wrong = [number for number in numbers if not 0 <= number < sampling.n_shards]
    if wrong:
        raise BadConfig(f"expected shards from 0 to {sampling.n_shards - 1}; got {wrong[0]}.")
    with shared(out, identify(config)) as unfinished, (show or Silence()).steps("ablations", unit="run") as progress:
        if unfinished:
            coar.sample(run, sampling, folder=out / SAMPLES, only=numbers, progress=progress)
    return sampling.n_shards


def sampling_of(config: AttributeConfig, run: ComponentRun) -> Sampling:
    """Which ablations a config draws of its run."""
    from circuits.coar import MaskDesign, Sampling
    from circuits.coar.estimate import default_samples

    samples = default_samples(run.n_units) if config.samples is None else config.samples
    return Sampling.of(run, MaskDesign(run.n_units, samples, config.keep, config.seed, config.masks))


def identify(config: AttributeConfig) -> dict[str, Any]:
    """What decides the result: the version, the settings and the contents of the files of model and dictionaries."""
    chosen = {name: value for name, value in config.to_dict().items() if name != "device"}
    known = {
        "wiretrace": environment.version(),
        "command": COMMAND,
        "config": chosen,
        "model_files": digests(config.model),
    }
    if config.dictionary_names:
        known["dictionary_files"] = {name: dictionary_digests(name) for name in config.dictionary_names}
    return known | task_files.identity(config.task)


def prepare(config: AttributeConfig, *, show: Display) -> tuple[ComponentRun, float]:
    """Load the model and make the run.

    Raises:
        WiretraceError: The model cannot be found, read or trusted, or does not have these components.
    """
    from patching.component_run import ComponentRun

    start = time.perf_counter()
    show.say(f"Loading {config.model} …")
    model = load_model(config)
    task = tasks.load(config.task).make(model, n=config.prompts, seed=config.seed, split=SEARCH_SPLIT)
    dictionaries = []
    for name in config.dictionary_names:
        from experiments.feature_subject import open_dictionary

        dictionaries.append(open_dictionary(name).to(model.device, model.dtype))
    run = ComponentRun(
        model,
        task,
        components=config.families,
        dictionaries=dictionaries,
        ablation=config.ablation,
        metric=config.metric,
    )
    return run, time.perf_counter() - start


def is_attributed(folder: Path) -> bool:
    """Whether a folder is a run directory of this command."""
    return is_of(folder, COMMAND)


def saved(folder: Path) -> Attributed:
    """What a finished run found.

    Raises:
        BadRun: The folder is no run directory of this command, its run is not finished, or its results are gone or
            torn.
    """
    import json

    from circuits.coar import Attribution
    from graphs.atomic import read_text

    there = finished(folder, COMMAND, remedy="Go on with the command that began it.")
    with results_of(folder):
        config = AttributeConfig.from_dict(there.identity["config"])
        found = Attribution.load(folder / "attribution.safetensors")
        rows = tuple(json.loads(read_text(folder / "report.json"))["correlations"])
    files = tuple(name for name in RESULTS if (folder / name).is_file())
    return Attributed(folder, config, found, rows, files)


# ------------------------------------------------------------------------------------------------------- the work


def _carry_out(
    config: AttributeConfig, run: ComponentRun, directory: RunDirectory, *, loading: float, show: Display
) -> None:
    from circuits import coar

    _write_settings(config, run, directory)
    start = time.perf_counter()
    curve = None
    with show.steps("ablations", unit="run") as progress:
        if config.stop is None:
            sampling = sampling_of(config, run)
            shards = coar.sample(run, sampling, folder=directory.path / SAMPLES, progress=progress)
            outputs = coar.merge(shards, sampling)
            from circuits.coar.estimate import attribution_of

            found = attribution_of(run, sampling.design, outputs, estimator=config.estimator)
        else:
            curve = coar.learning_curve(
                run, keep=config.keep, seed=config.seed, rise=config.stop, held_out_samples=config.held_out,
                masks=config.masks, estimator=config.estimator, folder=directory.path / SAMPLES, progress=progress,
            )  # fmt: skip
            found = curve.chosen
    sampled = time.perf_counter() - start
    with show.steps("held-out ablations", unit="run") as progress:
        evaluation = coar.evaluate(run, found, samples=config.held_out, baselines=baselines(run), progress=progress)
    pairs = _pairs(config, run, found, show) if config.interactions else None
    made = {
        "wiretrace": environment.version(),
        "split": SEARCH_SPLIT,
        "model_files": dict(directory.identity["model_files"]),
    }
    found = replace(found, provenance=dict(found.provenance) | made)
    seconds = {"load": loading, "ablations": sampled, "rest": time.perf_counter() - start - sampled}
    device = device_name(run.model)

    def write(folder: Path) -> None:
        _write_results(folder, config, found, evaluation, curve, pairs)
        page = markdown(config, found, evaluation, curve, pairs, folder=directory.path, seconds=seconds, device=device)
        (folder / "report.md").write_text(page, encoding="utf-8")

    directory.publish(write)
    directory.set("finished")


def baselines(run: ComponentRun) -> tuple[str, ...]:
    """The baselines that suit the components and the ablation, and do not take for ever."""
    families = {group.family for group in run.groups}
    chosen = ["leave_one_out"] if run.n_units <= MOST_ALONE else []
    chosen.append("attribution_patching")
    if families <= {"heads", "mlps", "neurons"}:
        chosen.append("gradient_times_parameter")
        if run.ablation.is_run:
            chosen.append("conductance")
    return tuple(chosen)


def _pairs(config: AttributeConfig, run: ComponentRun, found: Attribution, show: Display) -> Interactions:
    from circuits import coar

    mean = found.mean().abs()
    chosen = [run.units[place] for place in sorted(mean.argsort(descending=True, stable=True)[:MOST_PAIRED].tolist())]
    with show.steps("pairs", unit="run") as progress:
        return coar.interactions(run, chosen=chosen, keep=min(config.keep, 0.8), seed=config.seed, progress=progress)


def _write_settings(config: AttributeConfig, run: ComponentRun, directory: RunDirectory) -> None:
    import torch

    comments = [f"Wiretrace {environment.version()}. To make this run again: wiretrace run {CONFIG} --out FOLDER"]
    directory.write(CONFIG, config.to_toml(comments=comments))
    record = environment.record(
        device=device_name(run.model),
        threads=torch.get_num_threads(),
        seed=config.seed,
        model_files=dict(directory.identity["model_files"]),
    )
    directory.write(ENVIRONMENT, to_json(record))


def _write_results(
    folder: Path,
    config: AttributeConfig,
    found: Attribution,
    evaluation: Evaluation,
    curve: LearningCurve | None,
    pairs: Interactions | None,
) -> None:
    import networkx as nx

    from circuits import coar
    from circuits.coar import pictures

    title = f"{config.model} · {config.task} · {config.ablation}"
    found.save(folder / "attribution.safetensors")
    found.to_frame().to_csv(folder / "attribution.csv", index=False, lineterminator="\n")
    pictures.weights(found, folder / "weights.svg", title=title)
    evaluation.to_frame().to_csv(folder / "correlation.csv", index=False, lineterminator="\n")
    pictures.correlations(evaluation, folder / "correlation.svg", title=title)
    if curve is not None:
        pictures.growth(curve, folder / "growth.svg", title=title)
    if pairs is not None:
        pairs.to_frame().to_csv(folder / "interactions.csv", index=False, lineterminator="\n")
        pictures.interaction_map(pairs, folder / "interactions.svg", title=title)
    g = coar.to_networkx(found, interactions=pairs, top=1_000)
    g.graph["provenance"] = to_json(dict(g.graph["provenance"]))
    nx.write_graphml(g, folder / "attribution.graphml")
    rows = [_clean(row) for row in evaluation.to_frame().to_dict(orient="records")]
    (folder / "report.json").write_text(to_json({"correlations": rows}), encoding="utf-8")


def _clean(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row as JSON holds it: what is not a number is absent."""
    return {str(key): value for key, value in row.items() if not (isinstance(value, float) and math.isnan(value))}


# ------------------------------------------------------------------------------------------------------ the words


def rows_of(found: Attribution) -> list[tuple[str, str, str]]:
    """Component, weight and standard error, of those that help most and those that hurt most."""
    frame = found.to_frame()
    chosen = frame if len(frame) <= 2 * SHOWN else frame.iloc[[*range(SHOWN), *range(-SHOWN, 0)]]
    errors = chosen["standard_error"] if "standard_error" in chosen else [math.nan] * len(chosen)
    rows = zip(chosen["component"], chosen["weight"], errors, strict=True)
    return [
        (name, f"{weight:+.3f}".replace("-", "−"), "" if math.isnan(error) else f"{error:.3f}")
        for name, weight, error in rows
    ]


def correlation_rows(correlations: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Column names and cells of the table of held-out correlation: a row for each method, a column for each share."""
    shares = sorted({float(row["ablated"]) for row in correlations})
    methods = list(dict.fromkeys(str(row["method"]) for row in correlations))
    found = {(str(row["method"]), float(row["ablated"])): row for row in correlations}
    body = []
    for method in methods:
        cells = []
        for share in shares:
            row = found[method, share]
            error = f" ± {row['standard_error']:.3f}" if "standard_error" in row else ""
            cells.append(f"{row['correlation']:.3f}{error}" if "correlation" in row else "undefined")
        body.append([method.replace("_", " ").replace("coar", "COAR"), *cells])
    return ["method", *(f"{share:.3g} ablated" for share in shares)], body


def table(made: Attributed) -> tuple[Any, Any, Any]:
    """What was attributed, the components at either end, and the held-out correlations, for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    config, found = made.config, made.attribution
    options = found.provenance["options"]
    head = Table(show_header=False, box=None, pad_edge=False)
    head.add_column(style="bold", no_wrap=True)
    head.add_column(overflow="fold")
    for name, value in (
        ("attributed", f"{config.model} · {config.task} · {len(found.units):,} components ({config.components})"),
        ("how", f"{options['samples']:,} random ablations ({config.ablation}, keep {config.keep:g}), "
                f"{len(found.weights):,} prompts"),
        ("estimator", str(options["reason"])),
        ("sign", f"positive: keeping the component raises the {str(found.provenance['metric']).replace('_', ' ')}"),
        ("files", f"{made.folder}: {', '.join(made.files)}"),
    ):  # fmt: skip
        head.add_row(Text(name), Text(visible(value)))
    ends = Table(box=box.SIMPLE, pad_edge=False)
    for column, justify in (("component", "left"), ("weight", "right"), ("standard error", "right")):
        ends.add_column(column, justify=justify, no_wrap=True)  # pyright: ignore[reportArgumentType]
    for row in rows_of(found):
        ends.add_row(*map(Text, row))
    columns, body = correlation_rows(made.correlations)
    judged = Table(box=box.SIMPLE, pad_edge=False, title="held-out correlation", title_justify="left")
    for column in columns:
        judged.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for cells in body:
        judged.add_row(*map(Text, cells))
    return head, ends, judged


def markdown(
    config: AttributeConfig,
    found: Attribution,
    evaluation: Evaluation,
    curve: LearningCurve | None,
    pairs: Interactions | None,
    *,
    folder: Path,
    seconds: Mapping[str, float],
    device: str,
) -> str:
    """The page of a run."""
    options = found.provenance["options"]
    metric = str(found.provenance["metric"]).replace("_", " ")
    columns, body = correlation_rows([_clean(row) for row in evaluation.to_frame().to_dict(orient="records")])
    ends = rows_of(found)
    silent_prompts = sorted({row for one in evaluation.agreements for row in one.undefined})
    parts = [
        f"# Component attribution of `{visible(config.model)}` on the task `{config.task}`",
        f"{len(found.units):,} components (`{config.components}`), {options['samples']:,} random ablations "
        f"({ABLATIONS[config.ablation]}; each component kept with probability {config.keep:g}), "
        f"{len(found.weights):,} prompts of the training split, seed {config.seed}. {options['reason']}",
    ]
    if silent_prompts:
        parts.append(f"> **Note.** Prompts {silent_prompts[:10]} do not vary under ablation and have no correlation.")
    parts += [
        f"![Weights](weights.svg)\n\nA weight says what keeping the component adds to the {metric}, averaged over "
        "prompts; bars are standard errors over prompts.",
        _markdown_table(["component", "weight", "standard error"], ends),
        "## How well it predicts\n\nCorrelation of predicted and true outputs under held-out random ablations, for "
        "each prompt, then averaged; beside methods that cost less.",
        "![Held-out correlation](correlation.svg)",
        _markdown_table(columns, body),
    ]
    if curve is not None:
        parts.append(f"## How many ablations\n\n![Growth](growth.svg)\n\n```\n{curve}\n```")
    if pairs is not None:
        strong = len(pairs.strong())
        parts.append(
            f"## Interactions\n\n![Interactions](interactions.svg)\n\n{strong} of {len(pairs.pairs)} pairs lie three "
            f"standard errors or more from 0. With pairs the model explains {float(pairs.explained.mean()):.1%} of the "
            f"variance of the outputs, without {float(pairs.first_order.mean()):.1%}."
        )
    again = shlex.quote(str(folder / CONFIG))
    parts += [
        "## What the words mean\n\n"
        "- **Weight**: coefficient of least squares of the output on the masks (arXiv 2404.11534). It is what the "
        f"component adds on average while others are ablated with probability {1 - config.keep:.3g}; with fewer "
        "ablations it comes near the effect of ablating it alone.\n"
        "- **Effect** (project's sign): metric(ablated) − metric(clean) ≈ −weight.\n"
        f"- **Time.** Loading {duration(seconds['load'])}, ablations {duration(seconds['ablations'])}, the rest "
        f"{duration(seconds['rest'])}, on {device}.",
        "## Look further\n\n```sh\n"
        f"wiretrace show {shlex.quote(str(folder))}\n"
        f"wiretrace run {again} --out {shlex.quote(f'{folder}-again')}\n```\n\n"
        "```python\nfrom circuits.coar import Attribution\n\n"
        f"found = Attribution.load({str(folder / 'attribution.safetensors')!r})\nfound.to_frame()\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _markdown_table(columns: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    bars = "|".join(["---", *["---:"] * (len(columns) - 1)])
    return "\n".join([f"| {' | '.join(columns)} |", f"|{bars}|", *(f"| {' | '.join(row)} |" for row in body)])
