"""Search a sparse feature circuit, and leave circuit, figure, page and report in a run directory."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from experiments import environment, task_files
from experiments.discover import deaf, device_name, enough_memory, stoppable, to_json
from experiments.errors import Interrupted
from experiments.feature_subject import Asked, Subject, config_of, open_dictionaries, prepare
from experiments.model_files import dictionary_digests, digests
from experiments.progress_display import Display
from experiments.run_directory import (
    ENVIRONMENT,
    claimed,
    finished,
    is_begun,
    is_of,
    plan,
    results_of,
)
from graphs.circuit import Circuit, visible

if TYPE_CHECKING:
    from circuits.features.dictionary import Dictionary
    from circuits.features.feature_faithfulness import FaithfulnessCurve, Worth

COMMAND: Final = "features circuit"


@dataclass(frozen=True)
class Search:
    """How to search: options of `circuits.features.feature_circuits.search`.

    Attributes:
        node_threshold, edge_threshold: absolute effects that nodes and edges must exceed.
        effects: of nodes: ig, atp or exact.
        edges: ig or clean.
        steps: of integrated gradients.
        positions: a node for each token position, for prompts whose positions are aligned.
        ablation: what patches carry.
        metric: the task's own by default.
        curve: judge circuits of growing size too, beside circuits of neurons (the coordinates at the same sites).
    """

    node_threshold: float
    edge_threshold: float
    effects: str = "ig"
    edges: str = "ig"
    steps: int = 10
    positions: bool = False
    ablation: str = "corrupt"
    metric: str | None = None
    curve: bool = False


@dataclass(frozen=True)
class Found:
    """A run directory that holds a feature circuit.

    Attributes:
        folder: Where.
        circuit: What was found.
        asked: The settings, as data.
        worth: What its nodes are worth on held-out prompts, as data.
    """

    folder: Path
    circuit: Circuit
    asked: Mapping[str, Any]
    worth: Mapping[str, Any]


def search(
    asked: Asked, settings: Search, dictionaries: Sequence[str], *, out: Path, overwrite: bool, show: Display
) -> Found:
    """Search into a run directory; a finished run of the same settings is not made again.

    Raises:
        WiretraceError: Something is wrong; the message says what, and what to do.
        Interrupted: Ctrl-C or SIGTERM; nothing is left then.
    """
    from circuits.features import feature_circuits

    by_name = open_dictionaries(dictionaries)
    opened = list(by_name.values())
    identity = _identity(asked, settings, list(by_name), opened)
    again = overwrite or is_begun(out, identity)
    if plan(out, identity, overwrite=again, resume=False) == "finished":
        show.say(f"{out} holds this run already, finished. To do it again, add --overwrite.")
        return saved(out)
    made = [each for each in (out, *out.parents) if not each.exists()]
    with stoppable(), enough_memory():
        try:
            subject = prepare(asked, known=opened, show=show)
            held_out = prepare(replace(asked, held_out=True), known=opened, loaded=subject.model, show=show)
        except KeyboardInterrupt:
            raise Interrupted("Stopped before anything was written.") from None
        identity = _identity(asked, settings, list(by_name), opened)  # now that the model's files are in the cache
        again = overwrite or is_begun(out, identity)
        with claimed(out, identity, overwrite=again, resume=False) as directory:
            show = directory.told(show)
            try:
                began = time.perf_counter()
                options = {**vars(settings), "aggregation": "none" if settings.positions else "sum"}
                del options["positions"], options["curve"]
                assert subject.task is not None
                with show.steps("Effects", unit="step") as progress:
                    circuit = feature_circuits.search(
                        subject.model, subject.task, opened, **options, progress=progress, say=show.say
                    )
                circuit = replace(circuit, provenance=dict(circuit.provenance) | _made(asked, identity))
                worth = _worth(circuit, held_out, opened, settings)
                if settings.curve:
                    show.say("Judging circuits of growing size, of features and of neurons …")
                curves = _curves(subject, held_out, opened, settings) if settings.curve else {}
                seconds = time.perf_counter() - began
                directory.write(ENVIRONMENT, to_json(_environment(subject, asked, identity)))
                directory.publish(lambda folder: _write(folder, circuit, subject, worth, seconds, curves))
                directory.set("finished")
            except KeyboardInterrupt:
                with deaf():
                    directory.discard(made=made, event="interrupted")
                raise Interrupted(f"Interrupted. Nothing is left in {out}.") from None
    return saved(out)


def is_feature_circuit(folder: Path) -> bool:
    """Whether a folder is a run directory of this command."""
    return is_of(folder, COMMAND)


def saved(folder: Path) -> Found:
    """What a finished run found.

    Raises:
        BadRun: The folder is no finished run of this command, or its results are gone or torn.
    """
    import json

    from graphs.atomic import read_text

    there = finished(folder, COMMAND, remedy="Begin it again with the command that began it.")
    with results_of(folder):
        report = json.loads(read_text(folder / "report.json", limit=10_000_000))
        return Found(folder, Circuit.load(folder / "circuit.json"), there.identity["config"], report["worth"])


def lines(found: Found) -> list[tuple[str, str]]:
    """What to say of a run: names and values."""
    circuit, worth = found.circuit, found.worth
    nodes = [node for node in circuit.nodes if node.site is not None]
    errors = sum(node.is_error for node in nodes)
    rows = [
        ("circuit", f"{len(nodes) - errors:,} features and {errors:,} error terms, {circuit.n_edges:,} edges"),
        ("faithfulness", f"{_number(worth['faithfulness'])} on held-out prompts, of {worth['nodes']:,} nodes"),
        ("completeness", f"{_number(worth['completeness'])}: what is left without them"),
        ("sign", "effect = metric(ablated) - metric(clean): negative helps"),
    ]
    note = circuit.provenance.get("note")
    return rows + ([("note", str(note))] if note else [])


def strongest(found: Found, n: int = 15) -> list[tuple[str, float]]:
    """The nodes with the largest effects."""
    scores = found.circuit.node_scores
    order = sorted(scores, key=lambda node: (-abs(scores[node]), str(node)))
    return [(str(node), scores[node]) for node in order[:n]]


def _identity(asked: Asked, settings: Search, names: Sequence[str], opened: Sequence[Dictionary]) -> dict[str, Any]:
    config = config_of(asked, opened)
    return {
        "wiretrace": environment.version(),
        "command": COMMAND,
        "config": {
            "task": config.task,
            "model": config.model,
            "prompts": config.prompts,
            "seed": config.seed,
            "dictionaries": list(names),
            **vars(settings),
        },
        "model_files": digests(config.model),
        "dictionary_files": {name: dictionary_digests(name) for name in names},
        **task_files.identity(config.task),
    }


def _made(asked: Asked, identity: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "wiretrace": environment.version(),
        "seed": asked.seed,
        "model_files": dict(identity["model_files"]),
        "dictionary_files": dict(identity["dictionary_files"]),
    }


def _worth(circuit: Circuit, held_out: Subject, dictionaries: Sequence[Dictionary], settings: Search) -> Worth:
    from circuits.features.feature_faithfulness import faithfulness

    assert held_out.task is not None
    return faithfulness(circuit, held_out.model, held_out.task, list(dictionaries), metric=settings.metric)


def _curves(
    subject: Subject, held_out: Subject, dictionaries: Sequence[Dictionary], settings: Search
) -> dict[str, FaithfulnessCurve]:
    """Faithfulness and completeness of circuits of features, and of coordinates, on held-out prompts."""
    from circuits.features import FeatureRun, create, faithfulness_curve
    from circuits.features.node_effects import node_effects

    assert subject.task is not None
    neurons = [create("identity", d_in=one.d_in, n_features=one.d_in, site=one.site) for one in dictionaries]
    found = {}
    for name, chosen in (("features", dictionaries), ("neurons", neurons)):
        run = FeatureRun(subject.model, subject.task, chosen, ablation=settings.ablation, metric=settings.metric)
        effects = node_effects(
            run, method=settings.effects, steps=settings.steps, aggregation="none" if settings.positions else "sum"
        )
        thresholds = [effects.strongest / 4**power for power in range(1, 8)]
        found[name] = faithfulness_curve(effects, task=held_out.task, thresholds=thresholds)
    return found


def _environment(subject: Subject, asked: Asked, identity: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    return environment.record(
        device=device_name(subject.model),
        threads=torch.get_num_threads(),
        seed=asked.seed,
        model_files=dict(identity["model_files"]),
    )


def _write(
    folder: Path,
    circuit: Circuit,
    subject: Subject,
    worth: Worth,
    seconds: float,
    curves: Mapping[str, FaithfulnessCurve],
) -> None:
    from circuits.features import plots
    from experiments.view import LARGEST, prompt
    from graphs.export import export, html

    assert subject.task is not None
    circuit.save(folder / "circuit.json")
    export(circuit, folder / "circuit.graphml")
    export(circuit, folder / "circuit.svg")
    if circuit.n_edges <= LARGEST:
        html.write(circuit, folder / "circuit.html", prompt=prompt(subject.model, subject.task))
    numbers = {name: value if math.isfinite(value) else None for name, value in vars(worth).items()}
    (folder / "report.json").write_text(to_json({"worth": numbers, "seconds": seconds}), encoding="utf-8")
    found = Found(folder, circuit, {}, numbers)
    rows = [f"- **{name}**: {visible(text)}" for name, text in lines(found)]
    table = [f"| `{name}` | {effect:+.4f} |" for name, effect in strongest(found)]
    body = ["# A sparse feature circuit", "", *rows, "", "| node | effect |", "|---|---:|", *table, ""]
    if curves:
        plots.faithfulness(curves, folder / "faithfulness.svg", title=f"{subject.model.name}, held-out prompts")
        body += ["![Faithfulness and completeness by number of nodes](faithfulness.svg)", ""]
    (folder / "report.md").write_text("\n".join([*body, "![The circuit](circuit.svg)", ""]), encoding="utf-8")


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
