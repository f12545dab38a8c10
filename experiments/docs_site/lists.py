"""The pages of methods, tasks, models and benchmarks: tables made from what is there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from circuits import tasks
from circuits.methods import METHODS, Method
from experiments.docs_site import api
from experiments.model_files import ZOO, Shipped, describe, zoo
from patching import agreement_toy, compiled

RESULTS = api.ROOT / "experiments" / "benchmarks" / "results.json"


def methods() -> str:
    """Every row of `METHODS`: what it computes, what that costs, when to use it, its source and options."""
    parts = [
        "# Methods\n",
        "Every method by its name on the command line, made from the table `circuits.methods.METHODS`. "
        "[Scores](concepts/scores.md) and [searches](concepts/searches.md) have the formulas, "
        "[circuits](circuits.md) shows how to use them, and [ground truth](ground-truth.md#what-methods-make-of-them) "
        "holds some against circuits that are known.\n",
        "*Forward* and *backward* are passes over all prompts. A *partial run* computes only what a change of the mask "
        "can reach.\n",
    ]
    for title, kind in (("Searches: they give a circuit", "circuit"), ("Scores: a number for every unit", "scores")):
        rows = [_method(each) for each in METHODS.values() if each.gives == kind]
        parts += [f"## {title}\n", _table(("method", "what it computes", "cost", "when", "source"), rows)]
    options = [
        (_code(each.name), ", ".join(each.levels), "yes" if each.by_position else "", _options(each), _function(each))
        for each in METHODS.values()
    ]
    return "\n".join(
        [
            *parts,
            "## Measured\n",
            measured() + "\n",
            "## Units and options\n",
            "Options are given as `wiretrace discover TASK --method NAME -o OPTION=VALUE`, or as keyword arguments of "
            "the function. Scores become circuits with `--n` and `--selection`.\n",
            _table(("method", "units", "by position", "options", "function"), options),
        ]
    )


def measured() -> str:
    """The comparison of all methods on one task, as it stands in the guide `docs/circuits.md`.

    Raises:
        ValueError: It is not there.
    """
    text = (api.ROOT / "docs" / "circuits.md").read_text(encoding="utf-8")
    found = re.search(r"^All methods at about .*?^\| method \|.*?\n\n.*?(?=\n\n)", text, flags=re.S | re.M)
    if found is None:
        raise ValueError("expected in docs/circuits.md the table that begins with 'All methods at about'")
    return found[0]


def _method(method: Method) -> tuple[str, ...]:
    return (_code(method.name), method.summary, method.cost, method.when, method.source)


def _options(method: Method) -> str:
    return ", ".join(f"`{name}` ({kind.__name__})" for name, kind in method.options.items())


def _function(method: Method) -> str:
    return f"`{method.home.replace(':', '.')}`"


def task_page() -> str:
    """Every row of `TASKS` with a file of its own, by section; the programs in one table on the page of models."""
    names = [name for name in tasks.TASKS if name not in compiled.PROGRAMS]
    parts = [
        "# Tasks\n",
        "A task makes pairs of prompts, clean and corrupt, with right and wrong answers, for any model whose tokenizer "
        "has the words. `wiretrace discover TASK` works on each; in Python it is `tasks.NAME.make(model, n=, seed=)`. "
        "This page is made from `circuits.tasks.TASKS`.\n",
        f"Beside those below, each of the {len(compiled.PROGRAMS)} [compiled programs](models.md#compiled-models) is a "
        "task of its own, for the model of the same name.\n",
    ]
    return "\n".join([*parts, *(_task(name) for name in sorted(names))])


def _task(name: str) -> str:
    module = tasks.load(name)
    head, _, rest = (module.__doc__ or "").strip().partition("\n")
    rest = re.sub(r"^Example:\n(?:[ ]{4}.*\n?|\n)*", "", rest.strip(), flags=re.M)
    parts = [f"## {name}\n", f"{head.strip()}\n", f"{rest.strip()}\n"]
    for title in ("splits", "corruptions", "templates"):
        known = getattr(module, title.upper(), None)
        if known:
            parts.append(f"**{title.capitalize()}**: {', '.join(map(_code, known))}.\n")
    example = _example(module)
    return "\n".join([*parts, *([f"A pair:\n\n```json\n{example}\n```\n"] if example else [])])


def _example(module: Any) -> str:
    """The first pair that a task draws, where it draws pairs of text."""
    generate = getattr(module, "generate", None)
    if generate is None:
        return ""
    (prompt,) = generate(1, seed=0)
    wanted = ("clean", "corrupt", "answer", "answers", "wrong_answer", "wrong_answers")
    shown = {name: getattr(prompt, name) for name in wanted if hasattr(prompt, name)}
    return json.dumps(shown, ensure_ascii=False, indent=2, default=str)


def model_page() -> str:
    """Models that ship, compiled ones, and what else loads."""
    from experiments.listings import families

    shipped = [describe(name) for name in zoo()]
    rows = [
        (
            f"[{_code(each.name)}]({_card(each.name)})",
            "?" if each.parameters is None else f"{each.parameters:,}",
            f"{each.size / 1e6:.1f} MB",
            each.shape,
            "<br>".join(_accuracy(each)) or "not recorded",
            each.licence or "see the card",
        )
        for each in shipped
    ]
    scripts = [f"- {_code(each.name)}: {_code(each.made_by)}" for each in shipped if each.made_by]
    return "\n".join(
        [
            "# Models\n",
            "`LensModel.load(NAME)` and `--model NAME` take each of them, without a network.\n",
            "## Trained models\n",
            "Small models whose training is a script of this repository; each has a card.\n",
            _table(("model", "parameters", "weights", "shape", "accuracy on held-out prompts", "licence"), rows),
            "Made again by:\n",
            *scripts,
            "",
            "## Compiled models\n",
            "Their weights follow from a program, so their circuit is known: [ground truth](ground-truth.md). "
            "Edges are those of the circuit under the default ablation.\n",
            f"{len(compiled.layer_norm_names())} of them there are with LayerNorm too, of twice the width: "
            f"{', '.join(map(_code, compiled.layer_norm_names()))}. {_code(agreement_toy.NAME)} was made by hand; its "
            "circuit is one of features (`circuits.features.agreement_toy`).\n",
            _table(("model", "what the answer is", "layers", "heads", "width", "true edges", "of"), _compiled()),
            "## Other models\n",
            families() + "\n",
        ]
    )


def _accuracy(model: Shipped) -> Iterable[str]:
    """What a model is known to do, one line each."""
    for task, splits in model.accuracy.items():
        for split, share in splits.items():
            yield f"{task}, {split}: {share:.1%}"
    if model.truth is not None:
        yield f"truth known: the circuit of `{model.truth}`"
    if model.interchange_accuracy is not None:
        yield f"interchange accuracy {model.interchange_accuracy:.1%}"
    if model.text_loss is not None:
        yield f"held-out text: {model.text_loss:.3f} nats per token"


def _compiled() -> Iterable[tuple[str, ...]]:
    for name in compiled.zoo_names():
        truth, program = compiled.truth(name), compiled.program(name)
        shape = truth.architecture
        sizes = (shape.n_layers, shape.n_heads, program.width, truth.n_edges, truth.n_possible)
        yield (_code(name), program.description, *(f"{size:,}" for size in sizes))


def _card(name: str) -> str:
    return f"models/{name.removeprefix('zoo:')}.md"


def cards() -> dict[str, str]:
    """The card of every model that ships as files: path below `docs` -> Markdown, without the header for the hub."""
    made = {}
    for name in zoo():
        path = ZOO / name.removeprefix("zoo:") / "README.md"
        if path.is_file():
            made[_card(name)] = re.sub(r"\A---\n.*?\n---\n", "", path.read_text(encoding="utf-8"), flags=re.S)
        else:
            made[_card(name)] = f"# {name}\n\nThis model has no card.\n"
    return made


def benchmarks() -> str:
    """The table of `results.json`, with the bars that were missed named first."""
    from experiments.docs_site.markdown import section

    document = json.loads(RESULTS.read_text(encoding="utf-8"))
    missed = [row for row in document["rows"] if not row["met"]]
    said = f"{len(missed)} of {len(document['rows'])} rows miss their bar" + (":\n" if missed else ".\n")
    where = document["machine"]
    rows = [
        (row["name"], f"**{row['ratio']:.2f}×**", row["bar"] + ("" if row["met"] else " (missed)"), *_sides(row))
        for row in document["rows"]
    ]
    after = re.sub(r"\A.*<!-- end of the benchmark table -->", "", section("How fast"), flags=re.S).strip()
    return "\n".join(
        [
            "# Benchmarks\n",
            "Ratios of our time or memory to that of something else in the same process, on one machine, by `make "
            "bench`. A bar says what the ratio should be.\n",
            f"Measured on {where['cpu']} ({where['cores']} cores, {where['threads']} thread used), Python "
            f"{where['python']}, torch {where['torch']}.\n",
            said,
            *(f"- {row['name']}: {row['ratio']:.2f}×, bar {row['bar']}" for row in missed),
            "",
            _table(("what", "ratio", "bar", "ours", "against"), rows),
            after,
            "",
        ]
    )


def _sides(row: dict[str, Any]) -> tuple[str, str]:
    return (f"{row['ours']:,.1f} {row['unit']}", f"{row['floor']:,.1f} {row['unit']}")


def _code(name: object) -> str:
    return f"`{name}`"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
