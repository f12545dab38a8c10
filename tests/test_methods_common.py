"""What every row of `METHODS` promises: a new method needs a line in `OPTIONS` here if it has required options."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from typing import Any

import pytest
import torch

from circuits import METHODS
from circuits.methods import Method
from graphs.circuit import Circuit
from patching import toy
from patching.errors import InvalidOption
from patching.masked import MaskedRun
from patching.scores import Scores
from tests import tiny
from tests.leftovers import traces

OPTIONS: dict[str, dict[str, Any]] = {"acdc": {"tau": 0.05}}

ROWS = [
    pytest.param(method, level, id=f"{name}-{level}") for name, method in METHODS.items() for level in method.levels
]
each_row = pytest.mark.parametrize(("method", "level"), ROWS)
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def run_of(level: str, *, family: str = "llama", **options: Any) -> MaskedRun:
    run = MaskedRun(tiny.model(family), tiny.task(n=2, prefix=1), **options)
    return run.nodes() if level == "node" else run


def ask(method: Method, run: MaskedRun) -> Scores | Circuit:
    return method.function()(run, **OPTIONS.get(method.name, {}))


def numbers(result: Scores | Circuit) -> dict[str, float]:
    """Every unit with its value."""
    if isinstance(result, Scores):
        return {str(unit): float(value) for unit, value in zip(result.units, result.values, strict=True)}
    return {str(edge): result.scores[edge] for edge in result.edges}


@each_row
def test_gives_what_it_says(method: Method, level: str) -> None:
    run = run_of(level)
    result = ask(method, run)
    if method.gives == "scores":
        assert isinstance(result, Scores)
        assert (result.level, len(result)) == (level, run.n_units)
        assert result.standard_error is not None
        assert bool(torch.isfinite(result.values).all())
        assert result.values.dtype == torch.float64
    else:
        assert isinstance(result, Circuit)
        assert 0 < result.n_edges < run.n_units
        assert set(result.scores) == set(result.edges)
    assert result.architecture == run.graph.architecture


@each_row
def test_is_deterministic(method: Method, level: str) -> None:
    first, again = (numbers(ask(method, run_of(level))) for _ in range(2))
    assert first == again


@each_row
def test_does_not_use_or_move_the_global_random_numbers(method: Method, level: str) -> None:
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(numbers(ask(method, run_of(level))))
        assert torch.equal(torch.get_rng_state(), before)
    assert found[0] == found[1]


@each_row
def test_batches_change_nothing(method: Method, level: str) -> None:
    whole, one_by_one = (numbers(ask(method, run_of(level, memory=memory))) for memory in (1 << 27, 1))
    assert whole == pytest.approx(one_by_one, abs=1e-9)


@each_row
@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gpt_neox", "attention_only"])
def test_leaves_nothing_on_the_model(method: Method, level: str, family: str) -> None:
    run = run_of(level, family=family)
    before = traces(run.model)
    ask(method, run)
    assert traces(run.model) == before


@each_row
def test_does_not_move_the_run(method: Method, level: str) -> None:
    run = run_of(level)
    mask = (torch.rand(run.n_units, generator=torch.Generator().manual_seed(0)) < 0.7).double()
    before = run(mask)
    ask(method, run)
    assert torch.equal(run(mask), before)


@each_row
def test_says_where_its_numbers_are_from(method: Method, level: str) -> None:
    run = run_of(level, ablation="mean", metric="loss")
    result = ask(method, run)
    found = result.provenance if isinstance(result, Scores) else json.loads(result.to_json())["provenance"]
    expected = {
        "method": method.name, "model": "llama", "task": "random", "prompts": 2, "ablation": "mean", "metric": "loss",
        "dtype": "float64",
    }  # fmt: skip
    assert found.items() >= expected.items()
    assert found["options"].items() >= OPTIONS.get(method.name, {}).items()
    assert found["sign"] == "effect = metric(ablated) - metric(clean)"
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@each_row
def test_its_signs_are_effects(method: Method, level: str) -> None:
    """On the toy's second prompt head 1 gives 1.5 of the metric: losing it is negative."""
    run = MaskedRun(toy.model(), toy.task().subset(slice(1, 2)))
    result = ask(method, run.nodes() if level == "node" else run)
    assert numbers(result)["a0.h1" if level == "node" else "a0.h1->logits"] == pytest.approx(-1.5)


@each_row
def test_reports_progress_to_the_end(method: Method, level: str) -> None:
    run = run_of(level)
    seen: list[tuple[int, int]] = []
    options = OPTIONS.get(method.name, {})
    method.function()(run, progress=lambda done, total: seen.append((done, total)), **options)
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


@each_method
def test_refuses_runs_it_does_not_take(method: Method) -> None:
    run = run_of("edge")
    refused = [run.positions()] + [run.nodes()] * ("node" not in method.levels)
    for view in refused:
        with pytest.raises(InvalidOption, match=r"expected a run over"):
            ask(method, view)


@each_method
def test_signature(method: Method) -> None:
    """The run, and after it keywords only; the table lists those that a user may set."""
    function = method.function()
    run, *rest = inspect.signature(function).parameters.values()
    assert run.name == "run"
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in rest)
    known = {parameter.name: parameter for parameter in rest}
    assert method.options.keys() <= known.keys()
    for name, kind in method.options.items():
        assert known[name].annotation == kind.__name__
    required = {name for name, parameter in known.items() if parameter.default is inspect.Parameter.empty}
    assert required <= OPTIONS.get(method.name, {}).keys() <= known.keys()
    assert required <= method.options.keys()
    module, name = method.home.split(":")
    assert name == {"scores": "scores", "circuit": "search"}[method.gives]
    assert module.split(".")[-1] == method.name


@each_method
def test_docstring_teaches(method: Method) -> None:
    """What, formula or rule, cost, arguments, result, source, and an example that runs."""
    text = inspect.getdoc(method.function())
    assert text is not None
    for section in ("Cost:", "Args:", "Returns:", "Source:", "Example:"):
        assert section in text, f"{method.name} lacks {section}"
    assert ">>>" in text
    for identifier in re.findall(r"\d{4}\.\d{4,5}", method.source):
        assert identifier in text, f"{method.name} does not mention its source {identifier}"
    for option in method.options:
        assert re.search(rf"^ +{option}: ", text, re.MULTILINE), f"{method.name} does not explain {option}"


@each_method
def test_row_is_complete(method: Method) -> None:
    assert METHODS[method.name] is method
    assert method.gives in ("scores", "circuit")
    assert set(method.levels) <= {"edge", "node"}
    assert method.levels
    assert "arXiv" in method.source
    assert len(method.summary) > 20
    assert method.summary[-1] != "."
    assert inspect.getdoc(importlib.import_module(method.home.split(":")[0]))
