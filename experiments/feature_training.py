"""Train dictionaries into folders: one, or one for each of several sparsities.

    prompts -> activations of a site -> training -> folder (weights, cfg.json, training.json), judged on other prompts

A folder is what sae-lens opens, with the course of the training beside it. While it is being made it holds a
checkpoint, from which an interrupted training goes on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from experiments import environment
from experiments.discover import deaf, enough_memory, stoppable, to_json
from experiments.errors import BadConfig, FolderTaken, Interrupted
from experiments.feature_subject import Asked, Subject, prepare
from experiments.progress_display import Bars, Display, Progress

if TYPE_CHECKING:
    from rich.table import Table

    from circuits.features.metrics import Report
    from circuits.features.training import Training
    from circuits.features.training_state import Record

CHECKPOINT: Final = "checkpoint.safetensors"
HISTORY: Final = "training.json"
DEFAULT_K: Final = 8
WIDER: Final = 8
"""Features per dimension of the site, unless said otherwise."""


@dataclass(frozen=True)
class Recipe:
    """What to train, and how long.

    Attributes:
        site: where, such as mlp_out1.
        architecture: of the dictionary.
        width: features; eight per dimension by default.
        k: features that are on, for architectures that fix it; 8 by default.
        sparsity: weight of the penalty, for the others.
        steps, batch, lr: of the training.
        seed: of the start, and of the order of tokens.
        budget: bytes of stored activations.
    """

    site: str
    architecture: str = "topk"
    width: int | None = None
    k: int | None = None
    sparsity: float | None = None
    steps: int = 2_000
    batch: int = 1_024
    lr: float = 1e-3
    seed: int = 0
    budget: int = 1 << 28

    @property
    def counts(self) -> bool:
        """Whether sparsity is a number of features."""
        from circuits.features.sweep import WITH_K

        return self.architecture in WITH_K or self.k is not None

    def at(self, value: float) -> Recipe:
        """The recipe with another sparsity."""
        if not self.counts:
            return dataclasses.replace(self, sparsity=value)
        if value != int(value):
            raise BadConfig(f"expected whole numbers to sweep over, as k of {self.architecture}; got {value:g}.")
        return dataclasses.replace(self, k=int(value))


@dataclass(frozen=True)
class Made:
    """A dictionary that was trained.

    Attributes:
        folder: Where.
        recipe: How.
        report: What it is worth on held-out prompts.
        last: The last record of the training.
    """

    folder: Path
    recipe: Recipe
    report: Report
    last: Record


def train(
    asked: Asked,
    recipe: Recipe,
    *,
    out: Path,
    sweep: tuple[float, ...] = (),
    overwrite: bool = False,
    resume: bool = False,
    show: Display,
) -> list[Made]:
    """Train one dictionary, or one for each value of a sweep, each in a folder of its own.

    Raises:
        FolderTaken: The folder holds something, and neither overwrite nor resume is asked for.
        Interrupted: Ctrl-C; the checkpoint stays, and the message says how to go on.
        WiretraceError: A setting, the model or the site is wrong.
    """
    if overwrite and resume:
        raise BadConfig("expected --overwrite (start again) or --resume (go on), not both.")
    recipe = _with_default_k(recipe, sweep)
    plans = [(out / _named(recipe.at(value), value), recipe.at(value)) for value in sweep] or [(out, recipe)]
    for folder, _ in plans:
        _require_room(folder, overwrite=overwrite, resume=resume)
    with stoppable(), enough_memory():
        subject = prepare(asked, show=show)
        others = subject
        if asked.text is None:
            others = prepare(dataclasses.replace(asked, held_out=True), loaded=subject.model, show=show)
        return [_one(subject, others, each, folder, overwrite=overwrite, show=show) for folder, each in plans]


def values_of(sweep: str | None) -> tuple[float, ...]:
    """The values of a sweep, in words such as ``4,8,16``.

    Raises:
        BadConfig: Something else, or a value twice.

    Example:
        >>> values_of("4,8")
        (4.0, 8.0)
    """
    if sweep is None:
        return ()
    try:
        values = tuple(float(each) for each in sweep.split(","))
    except ValueError:
        values = ()
    if not values or len(set(values)) < len(values) or not all(0 <= value < float("inf") for value in values):
        raise BadConfig(f"expected --sweep with different numbers of 0 or more, such as 4,8,16; got {sweep!r}.")
    return values


def table(made: list[Made]) -> Table:
    """The dictionaries of a sweep beside one another, as they do on held-out prompts."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE, pad_edge=False)
    for column in ("folder", "L0", "explained variance", "loss recovered", "dead", "dense"):
        grid.add_column(column, no_wrap=True, justify="left" if column == "folder" else "right")
    for each in made:
        report = each.report
        recovered = "" if report.recovered is None else f"{report.recovered.loss_recovered:.3f}"
        numbers = (f"{report.l0:.2f}", f"{report.explained_variance:.4f}", recovered)
        grid.add_row(Text(str(each.folder)), *numbers, f"{report.dead:.1%}", f"{report.dense:.1%}")
    return grid


def write_report(report: Report, path: Path) -> None:
    """Write the numbers of a report as JSON; what is undefined is null.

    Raises:
        WriteFailed: The system refuses.
    """
    from graphs.atomic import write_text

    plain = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in report.to_dict().items()
    }
    write_text(path, to_json(plain))


def judge(subject: Subject, dictionary: Any, *, show: Display, memory: int = 1 << 28) -> Report:
    """What a dictionary is worth on prompts: reconstruction, sparsity, and what predictions keep."""
    from circuits.features.activation_buffer import ActivationBuffer
    from circuits.features.loss_recovered import measure
    from circuits.features.metrics import report
    from circuits.features.reading import place_of

    place = place_of(dictionary, subject.model)
    target = str(place.site) if place.transcoder else None
    rows = ActivationBuffer(subject.model, subject.prompts, place.source, target=target, batch=4_096, budget=memory)
    with show.steps("Predictions", unit="prompt") as progress:
        recovered = measure(subject.model, dictionary, subject.judged, memory=memory, progress=progress)
    batches: Any = rows  # pairs for transcoders
    return report(dictionary, batches, recovered=recovered)


def _one(subject: Subject, others: Subject, recipe: Recipe, folder: Path, *, overwrite: bool, show: Display) -> Made:
    from circuits.features.activation_buffer import ActivationBuffer
    from circuits.features.training import train as fit

    checkpoint = folder / CHECKPOINT
    dictionary = _start(subject, recipe)
    source, target = (recipe.site, None) if not dictionary.is_transcoder else _ends(recipe.site)
    buffer = ActivationBuffer(
        subject.model,
        subject.prompts,
        source,
        target=target,
        batch=recipe.batch,
        seed=recipe.seed,
        budget=recipe.budget,
    )
    folder.mkdir(parents=True, exist_ok=True)
    if overwrite:
        checkpoint.unlink(missing_ok=True)
    show.say(f"Training {dictionary.architecture} on {buffer.n_tokens:,} tokens of {recipe.site} …")
    steps = 0

    try:
        with _followed(show) as (progress, on_record):

            def count(done: int, total: int) -> None:
                nonlocal steps
                steps = done
                progress(done, total)

            training = fit(
                dictionary,
                buffer,
                steps=recipe.steps,
                lr=recipe.lr,
                sparsity=recipe.sparsity,
                checkpoint=checkpoint,
                progress=count,
                on_record=on_record,
            )
    except KeyboardInterrupt:
        with deaf():
            raise Interrupted(_where_to_go_on(folder, steps, recipe.steps)) from None
    training.dictionary.save(folder)
    (folder / HISTORY).write_text(to_json(_history(recipe, training)), encoding="utf-8")
    checkpoint.unlink(missing_ok=True)
    return Made(folder, recipe, judge(others, training.dictionary, show=show), training.last)


def _start(subject: Subject, recipe: Recipe) -> Any:
    """A new dictionary that says what it is trained on."""
    from circuits.features.activations import width
    from circuits.features.dictionary import create

    d_in = width(subject.model, recipe.site)
    options: dict[str, Any] = {} if recipe.k is None else {"k": recipe.k}
    about = {
        "model_name": subject.config.model,
        "task": None if subject.task is None else subject.config.task,
        "prompts": len(subject.prompts),
        "seed": recipe.seed,
        "wiretrace": environment.version(),
    }
    return create(
        recipe.architecture,
        d_in=d_in,
        n_features=WIDER * d_in if recipe.width is None else recipe.width,
        seed=recipe.seed,
        site=recipe.site,
        metadata={name: value for name, value in about.items() if value is not None},
        **options,
    )


def _ends(site: str) -> tuple[str, str]:
    """What a transcoder reads and writes."""
    if not site.startswith("mlp_out"):
        raise BadConfig(f"expected a transcoder at an MLP's output, such as mlp_out1; got {site}.")
    return site.replace("mlp_out", "mlp_in"), site


def _with_default_k(recipe: Recipe, sweep: tuple[float, ...]) -> Recipe:
    if recipe.counts:
        return dataclasses.replace(recipe, k=DEFAULT_K) if recipe.k is None else recipe
    if recipe.sparsity is not None or sweep:
        return recipe
    raise BadConfig(f"expected --sparsity, the weight of the penalty of a {recipe.architecture} dictionary.")


def _require_room(folder: Path, *, overwrite: bool, resume: bool) -> None:
    if overwrite or not folder.exists() or not any(folder.iterdir()):
        return
    if resume and (folder / CHECKPOINT).is_file():
        return
    if resume:
        raise FolderTaken(f"there is no training to go on with in {folder}: it holds no {CHECKPOINT}.")
    unfinished = " It holds an unfinished training: go on with --resume." if (folder / CHECKPOINT).is_file() else ""
    raise FolderTaken(
        f"{folder} is not empty.{unfinished} Choose another --out, or replace what is there with --overwrite."
    )


def _named(recipe: Recipe, value: float) -> str:
    return f"k{recipe.k}" if recipe.counts else f"sparsity{value:g}"


def _history(recipe: Recipe, training: Training) -> Mapping[str, Any]:
    return {
        "wiretrace": environment.version(),
        "recipe": vars(recipe),
        "asked": training.asked,
        "scales": list(training.scales),
        "tokens": training.tokens,
        "seconds": training.seconds,
        "history": [vars(record) for record in training.history],
    }


def _where_to_go_on(folder: Path, done: int, steps: int) -> str:
    if (folder / CHECKPOINT).is_file():
        return f"Interrupted after {done:,} of {steps:,} steps. Go on with the same command and --resume."
    folder.rmdir()
    return f"Interrupted after {done:,} of {steps:,} steps, before the first checkpoint; nothing is left in {folder}."


@contextmanager
def _followed(show: Display) -> Iterator[tuple[Progress, Callable[[Record], None]]]:
    """Progress with the newest record: at the bar's end on a terminal, as a line now and then elsewhere."""
    if isinstance(show, Bars):
        from tqdm import tqdm

        with tqdm(desc="Training", unit="step", smoothing=0.1, dynamic_ncols=True) as bar:

            def update(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            yield update, lambda record: bar.set_postfix_str(_words(record), refresh=False)
        return
    seen = 0

    def now_and_then(record: Record) -> None:
        nonlocal seen
        seen += 1
        if seen % 10 == 1:
            show.say(f"step {record.step:,}: {_words(record)}")

    with show.steps("Training", unit="step") as progress:
        yield progress, now_and_then


def _words(record: Record) -> str:
    return (
        f"loss {record.loss:.4g}, L0 {record.l0:.1f}, explained variance {record.explained_variance:.3f}, "
        f"dead {record.dead:.0%}"
    )
