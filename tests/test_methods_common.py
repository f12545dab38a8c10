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

OPTIONS: dict[str, dict[str, Any]] = {
    "acdc": {"tau": 0.05},
    "subnetwork_probing": {"regularisation": 3.0, "steps": 12, "lr": 0.5},
    "edge_pruning": {"sparsity": 0.5, "steps": 12, "lr": 0.5},
    "ugs": {"regularisation": 0.02, "samples": 2, "steps": 5, "lr": 0.5},
    "coar": {"samples": 300},
    "information_bottleneck": {"beta": 0.5, "steps": 8, "lr": 0.4},
}

ABLATIONS = {"ceap": "gaussian-noise", "eap_gp": "gaussian-noise"}
"""What methods are asked with that do not take a mean for replacement."""

ROWS = [
    pytest.param(method, level, id=f"{name}-{level}") for name, method in METHODS.items() for level in method.levels
]
each_row = pytest.mark.parametrize(("method", "level"), ROWS)
effect_rows = pytest.mark.parametrize(
    ("method", "level"), [row for row in ROWS if row.values[0].effects and row.values[1] != "neuron"]
)
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def run_of(level: str, *, family: str = "llama", **options: Any) -> MaskedRun:
    run = MaskedRun(tiny.model(family), tiny.task(n=2, prefix=1), **options)
    return VIEWS[level](run)


VIEWS = {"edge": MaskedRun.edges, "node": MaskedRun.nodes, "neuron": MaskedRun.neurons}


def ask(method: Method, run: MaskedRun) -> Scores | Circuit:
    return method.function()(run, **OPTIONS.get(method.name, {}))


def numbers(result: Scores | Circuit) -> dict[str, float]:
    """Every unit with its value; of a search that decided on more than edges, what it says of those."""
    if isinstance(result, Scores):
        return {str(unit): float(value) for unit, value in zip(result.units, result.values, strict=True)}
    if "kept" in result.provenance:
        return dict(result.provenance["kept"])
    return {str(edge): result.scores[edge] for edge in result.edges}


@each_row
def test_gives_what_it_says(method: Method, level: str) -> None:
    run = run_of(level)
    result = ask(method, run)
    if method.gives == "scores":
        assert isinstance(result, Scores)
        assert (result.level, len(result)) == (level, run.n_units)
        assert result.standard_error is not None or method.name == "random"
        assert bool(torch.isfinite(result.values).all())
        assert result.values.dtype == torch.float64
    else:
        assert isinstance(result, Circuit)
        assert 0 < result.n_edges < run.graph.n_edges
        assert set(result.scores) == (set() if "kept" in result.provenance else set(result.edges))
    assert result.architecture == run.graph.architecture


@each_row
def test_is_deterministic(method: Method, level: str) -> None:
    first, again = (numbers(ask(method, run_of(level))) for _ in range(2))
    assert first == again


@each_row
def test_does_not_use_or_move_the_global_random_numbers(method: Method, level: str) -> None:
    run_of(level)  # making a model draws its weights
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
    if (level, family) == ("neuron", "attention_only"):
        pytest.skip("no neurons")
    run = run_of(level, family=family)
    before = traces(run.model)
    ask(method, run)
    assert traces(run.model) == before


@each_row
def test_does_not_move_the_run(method: Method, level: str) -> None:
    run = run_of(level)
    edges = run.edges()
    mask = (torch.rand(edges.n_units, generator=torch.Generator().manual_seed(0)) < 0.7).double()
    before = edges(mask)
    ask(method, run)
    assert torch.equal(edges(mask), before)


@each_row
def test_says_where_its_numbers_are_from(method: Method, level: str) -> None:
    ablation = ABLATIONS.get(method.name, "mean")
    run = run_of(level, ablation=ablation, metric="loss")
    result = ask(method, run)
    found = result.provenance if isinstance(result, Scores) else json.loads(result.to_json())["provenance"]
    expected = {
        "method": method.name, "model": "llama", "task": "random", "prompts": 2, "metric": "loss",
        "ablation": ablation, "dtype": "float64",
    }  # fmt: skip
    assert found.items() >= expected.items()
    assert found["options"].items() >= OPTIONS.get(method.name, {}).items()
    if method.effects:
        assert found["sign"] == "effect = metric(ablated) - metric(clean)"
    else:
        assert "not an effect" in found["sign"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


EFFECTS = {"coar": pytest.approx(-1.5 * 0.9, rel=0.01)}
"""COAR's effect is an average over runs in which the input that the head reads is kept with probability 0.9."""

SHARPER = {"coar": {"samples": 20_000}}
"""Options with which a method that samples comes near enough."""


@effect_rows
def test_its_signs_are_effects(method: Method, level: str) -> None:
    """On the toy's second prompt head 1 gives 1.5 of the metric: losing it is negative."""
    run = MaskedRun(toy.model(), toy.task().subset(slice(1, 2)))
    options = OPTIONS.get(method.name, {}) | SHARPER.get(method.name, {})
    result = method.function()(run.nodes() if level == "node" else run, **options)
    found = numbers(result)
    expected = EFFECTS.get(method.name, pytest.approx(-1.5))
    assert found.get("a0.h1", found.get("a0.h1->logits")) == expected


@each_row
def test_what_is_no_effect_is_positive(method: Method, level: str) -> None:
    """So that importance is the value itself, and nothing looks harmful."""
    if method.effects:
        pytest.skip("scores are effects")
    result = ask(method, run_of(level))
    assert isinstance(result, Scores)
    assert float(result.values.min()) >= 0
    assert "no effects" in (inspect.getdoc(method.function()) or "")


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
    refused = [] if method.by_position else [run.positions()]
    refused += [view(run) for level, view in VIEWS.items() if level not in method.levels]
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
    concept = module.split(".")[-1].removesuffix("_scores")
    plain = name == {"scores": "scores", "circuit": "search"}[method.gives]
    assert method.name in ({concept} if plain else {name, f"{concept}_{name}"})  # variants of a paper share a module


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
    assert set(method.levels) <= {"edge", "node", "neuron"}
    assert method.levels
    assert "arXiv" in method.source
    assert len(method.summary) > 20
    assert method.summary[-1] != "."
    assert inspect.getdoc(importlib.import_module(method.home.split(":")[0]))
