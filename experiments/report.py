"""What a run found, as data (`report.json`), as a page to read (`report.md`) and as a table for the terminal.

The page and the table are made from the data alone, so `wiretrace show` prints what the run printed.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from circuits import tasks
from circuits.methods import METHODS
from experiments import size_curves
from experiments.config import ABLATIONS, DEFAULT_N, METRICS, Config, command_line
from experiments.progress_display import duration
from graphs.circuit import Circuit, visible
from graphs.nodes import Edge

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA: Final = "wiretrace-report/1"
SHOWN: Final = 15
"""How many of the strongest edges the page lists."""

WIDE: Final = 0.5
"""An interval of the faithfulness that is wider than this deserves a note."""

ABOVE: Final = 1.05
"""So does a faithfulness above this."""


def document(
    config: Config,
    circuit: Circuit,
    *,
    evaluation: Mapping[str, Any],
    search: Mapping[str, Any],
    seconds: Mapping[str, float],
    device: str,
    curves: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What `report.json` holds.

    Args:
        config: The settings.
        circuit: What was found.
        evaluation: A `circuits.Report` as plain data.
        search: `clean`, `ablated`, `higher_is_better` (of the metric), `resumed_after` (decisions taken over).
        seconds: Wall time of each part of the run.
        device: Where the model was.
        curves: Circuits of other sizes by each ranking (`circuits.curves.Curve` as plain data), if they were judged.
    """
    return {
        "schema": SCHEMA,
        "config": config.to_dict(),
        "evaluation": dict(evaluation),
        "search": dict(search) | {"dead_ends": circuit.n_edges - circuit.prune().n_edges},
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "device": device,
        "strongest": [{"edge": str(edge), "effect": circuit.scores.get(edge)} for edge in _strongest(circuit)],
        "notes": [*_doubts(circuit, evaluation, search), *_remarks(config, evaluation)],
        **({"curves": dict(curves)} if curves else {}),
    }


def _strongest(circuit: Circuit) -> list[Edge]:
    """Edges by importance, ties in the order of the graph."""
    return sorted(circuit.edges, key=lambda edge: -abs(circuit.scores.get(edge, 0.0)))[:SHOWN]


def _doubts(circuit: Circuit, evaluation: Mapping[str, Any], search: Mapping[str, Any]) -> list[str]:
    """What a reader must know before believing the figures."""
    notes = []
    clean, ablated, metric = evaluation["clean"], evaluation["ablated"], evaluation["metric"]
    if evaluation["faithfulness"] is None:
        notes.append(
            f"Ablating everything does not change the {_plain(metric)} of this model ({clean:.3g}), so there is no "
            "behaviour to find a circuit of. Is this the right model, or ablation?"
        )
    elif (clean < ablated) if search["higher_is_better"] else (clean > ablated):
        notes.append(
            f"The whole model does worse than with everything ablated ({metric} {clean:.3g} and {ablated:.3g}): it "
            "does not do this task, and the faithfulness of a circuit means little."
        )
    elif metric.endswith("_difference") and clean <= 0:
        notes.append(
            f"On average the model prefers the wrong answer ({_plain(metric)} {clean:.3g}): it does not do this task."
        )
    low, high = evaluation["interval"] or (0.0, 0.0)
    if high - low > WIDE:
        notes.append(
            f"The interval of the faithfulness is wide ({low:.0%} to {high:.0%}): on some prompts whole and ablated "
            "model hardly differ. More held-out prompts narrow it."
        )
    if not circuit.n_edges:
        notes.append("No edge was kept: a smaller tau keeps more.")
    return notes


def _remarks(config: Config, evaluation: Mapping[str, Any]) -> list[str]:
    """What may surprise a reader."""
    faithfulness = evaluation["faithfulness"]
    signed = "absolute" in METHODS[config.method].options and not config.options.get("absolute")
    if faithfulness is None or faithfulness <= ABOVE or not signed:
        return []
    return [
        "The circuit alone does better than the whole model: the search also drops edges whose loss improves the "
        "metric. To keep those, add: --option absolute=true"
    ]


# ----------------------------------------------------------------------------------------------------- terminal


def table(report: Mapping[str, Any], *, folder: Path, files: tuple[str, ...]) -> Table:
    """The few figures that matter, for a terminal.

    Args:
        report: A document of `document`.
        folder: The run directory, for showing.
        files: Names of the files in it.
    """
    from rich.table import Table
    from rich.text import Text

    config, found = report["config"], report["evaluation"]
    rows = [
        ("circuit", f"{config['model']} · {config['task']} · {config['method']}"),
        ("size", _size(found)),
        ("faithfulness", f"{_share(found['faithfulness'])}{_interval(found)} on {found['prompts']:,} held-out prompts"),
        ("random circuits", f"{_share(found['random_faithfulness'])} with as many edges"),
        ("left without it", _share(found["completeness_gap"])),
        *size_curves.rows(report.get("curves", {})),
        ("time", _time(report["seconds"])),
        ("files", f"{folder}: {', '.join(files)}"),
    ]
    grid = Table(show_header=False, box=None, pad_edge=False)
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(Text(name), Text(visible(value)))
    return grid


def _size(found: Mapping[str, Any]) -> str:
    share = found["n_edges"] / found["n_possible"]
    return f"{found['n_edges']:,} of {found['n_possible']:,} edges ({share:.1%}), between {found['n_nodes']:,} nodes"


def _share(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.1%}"


def _interval(found: Mapping[str, Any]) -> str:
    if found["interval"] is None:
        return ""
    low, high = found["interval"]
    return f" (95 % interval {low:.1%} to {high:.1%})"


def _time(seconds: Mapping[str, float]) -> str:
    return f"{duration(seconds['total'])} (search {duration(seconds['search'])})"


# --------------------------------------------------------------------------------------------------------- page


def markdown(report: Mapping[str, Any], *, folder: Path) -> str:
    """The page.

    Args:
        report: A document of `document`.
        folder: The run directory, as the commands on the page name it.
    """
    config = Config.from_dict(report["config"])
    parts = [
        f"# A circuit of `{visible(config.model)}` for the task `{config.task}`",
        _summary(report, config),
        *(f"> **Note.** {note}" for note in report["notes"]),
        "![The circuit: input at the bottom, logits at the top; width is importance, colour is the port](circuit.svg)",
        _figures(report),
        *_sizes(report),
        _edges(report),
        _conventions(report, config),
        _further(config, folder),
    ]
    return "\n\n".join(parts) + "\n"


def _summary(report: Mapping[str, Any], config: Config) -> str:
    found = report["evaluation"]
    return (
        f"**{config.method}** kept **{_size(found)}**. On {found['prompts']:,} prompts that the search never saw, the "
        f"circuit alone, with everything outside it ablated, does **{_share(found['faithfulness'])}** of what the "
        f"whole model does{_interval(found)}; random circuits of as many edges do "
        f"{_share(found['random_faithfulness'])}. With the circuit ablated instead, "
        f"{_share(found['completeness_gap'])} is left.\n\n"
        f"Task: {_task_summary(config.task)}"
    )


def _task_summary(task: str) -> str:
    return (tasks.load(task).__doc__ or task).strip().splitlines()[0].replace("*", r"\*")


def _figures(report: Mapping[str, Any]) -> str:
    found, search, seconds = report["evaluation"], report["search"], report["seconds"]
    metric = _plain(found["metric"])
    resumed = f", continued after {search['resumed_after']:,} decisions" if search["resumed_after"] else ""
    rows = [
        ("Size", f"{_size(found)}; {search['dead_ends']:,} edges on no path from input to logits"),
        ("Faithfulness", f"{_share(found['faithfulness'])}{_interval(found)}"),
        ("Random circuits of this size", f"{_share(found['random_faithfulness'])} (mean of several)"),
        ("Left without the circuit", _share(found["completeness_gap"])),
        *size_curves.rows(report.get("curves", {})),
        (f"Mean {metric}, whole model", f"{found['clean']:.4g}"),
        (f"Mean {metric}, circuit alone", f"{found['circuit']:.4g}"),
        (f"Mean {metric}, everything ablated", f"{found['ablated']:.4g}"),
        (f"Mean {metric}, all but the circuit", f"{found['complement']:.4g}"),
        (
            "Time",
            f"{duration(seconds['total'])}: loading {duration(seconds['load'])}, "
            f"search {duration(seconds['search'])}{resumed}, evaluation {duration(seconds['evaluate'])}",
        ),
        ("Device", report["device"]),
    ]
    lines = [f"| {name} | {value} |" for name, value in rows]
    return "\n".join([f"## Figures\n\nOn {found['prompts']:,} held-out prompts.\n", "| | |", "|---|---|", *lines])


def _sizes(report: Mapping[str, Any]) -> list[str]:
    """The curve over sizes, if it was asked for and there is one."""
    if not report.get("curves") or report["evaluation"]["faithfulness"] is None:
        return []
    return [
        "## Other sizes\n\n![Faithfulness by the share of units kept](faithfulness.svg)\n\nCircuits of 0.1 to 100 % of "
        "the units, by absolute and by signed scores. CPR is the area under the curve (more is better), CMD the area "
        "between it and 1 (less is better); arXiv 2504.13151."
    ]


def _edges(report: Mapping[str, Any]) -> str:
    rows = [
        f"| `{row['edge']}` | {'' if row['effect'] is None else format(row['effect'], '+.3f')} |"
        for row in report["strongest"]
    ]
    if not rows:
        return "## Strongest edges\n\nThere are none."
    total = report["evaluation"]["n_edges"]
    title = f"The {len(rows)} strongest of {total:,}; all are in `circuit.json`." if len(rows) < total else "All edges."
    return "\n".join([f"## Strongest edges\n\n{title}\n", "| edge | effect |", "|---|---:|", *rows])


def _conventions(report: Mapping[str, Any], config: Config) -> str:
    metric = report["evaluation"]["metric"]
    higher = "higher" if report["search"]["higher_is_better"] else "lower"
    lines = [
        "**Names.** `input` is the embedding, `a1.h3` head 3 of layer 1, `m1` the MLP of layer 1, `logits` the final "
        "residual stream. `m0->a1.h3<q>` is what `m0` writes as the query of that head reads it; `<k>` and `<v>` are "
        "its key and value. Counting starts at 0.",
        f"**Ablated.** An ablated edge carries {ABLATIONS.get(config.ablation, 'a trained constant')} "
        f"(`{config.ablation}`) in place of its "
        "source's own value. The rest of the model runs on the clean prompt (noising).",
        f"**Metric.** `{metric}`: {METRICS[metric]}, averaged over prompts; {higher} is better.",
        f"**Effect.** {_effect(config)}",
        f"**Method.** {config.method}{_options(config)}: {METHODS[config.method].summary}; "
        f"{METHODS[config.method].cost}. Source: {METHODS[config.method].source}.",
        "**Faithfulness.** (circuit − ablated) / (whole model − ablated), a ratio of means over prompts, not clipped: "
        "1 is the whole model, 0 is nothing, above 1 the circuit does better alone.",
        "**Left without the circuit.** The same ratio with the circuit's edges ablated and all others kept. Near 0, "
        "nothing else does the task; well above 0, other edges can do it too.",
        "**Interval.** 95 % percentile bootstrap over the held-out prompts. It says nothing about another seed, "
        "threshold or ablation.",
        f"**Prompts.** {report['search']['prompts']:,} of the training split for the search, "
        f"{report['evaluation']['prompts']:,} held-out ones for the figures above, seed {config.seed}.",
    ]
    return "\n".join(["## What the words mean\n", *(f"- {line}" for line in lines)])


def _effect(config: Config) -> str:
    sign = "metric with the edge ablated minus metric without; negative where the edge helps (if higher is better)"
    if METHODS[config.method].gives == "circuit":
        return f"{sign}, at the moment the search decided on it, with all edges dropped before already ablated."
    return f"{sign}, everything else intact."


def _options(config: Config) -> str:
    options = [f"{name} = {value}" for name, value in config.options.items()]
    if METHODS[config.method].gives == "scores":
        count = f"the {config.n:,}" if config.n else f"the {DEFAULT_N} (or all)"
        rank = "that help most" if config.signed else "of largest effect"
        grown = ", grown from the logits" if config.selection == "greedy" else ""
        options.append(f"{count} {config.level}s {rank}{grown}, then without dead ends")
    return f" ({', '.join(options)})" if options else ""


def _further(config: Config, folder: Path) -> str:
    here = shlex.quote(str(folder))
    smaller, suffix = _smaller(config)
    beside = f"{folder}-{suffix}"
    commands = [
        f"wiretrace show {here}",
        f"wiretrace export {here} --to pdf",
        command_line(smaller, out=beside),
        f"wiretrace compare {here} {shlex.quote(beside)}",
        f"wiretrace run {shlex.quote(str(folder / 'config.toml'))} --out {shlex.quote(f'{folder}-again')}",
    ]
    python = [
        "from graphs import Circuit",
        "",
        f"circuit = Circuit.load({str(folder / 'circuit.json')!r})",
        "graph = circuit.to_networkx()  # a networkx.MultiDiGraph",
    ]
    return "\n".join(
        [
            "## Look further\n",
            "The same again on the terminal, a figure for a paper, a smaller circuit, the two compared, and this run "
            "made anew:\n",
            "```sh",
            *commands,
            "```\n",
            "In Python:\n",
            "```python",
            *python,
            "```\n",
            "`circuit.graphml` opens in Gephi, yEd and Cytoscape; `report.json` holds every figure of this page, "
            "`env.json` the versions and the digests of the model's files.",
        ]
    )


def _smaller(config: Config) -> tuple[Config, str]:
    """Settings for a smaller circuit of the same kind, and a name for its folder."""
    tau = config.options.get("tau")
    if isinstance(tau, float):
        more = float(f"{2 * tau or 0.01:.6g}")
        return replace(config, options=dict(config.options) | {"tau": more}), f"tau-{more:g}"
    if METHODS[config.method].gives == "scores":
        fewer = max(1, (config.n or DEFAULT_N) // 3)
        return replace(config, n=fewer), f"n-{fewer}"
    return replace(config, seed=config.seed + 1), f"seed-{config.seed + 1}"


def _plain(name: str) -> str:
    return name.replace("_", " ")
