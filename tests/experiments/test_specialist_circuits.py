"""Circuits of the small models that ship: found by the command line, and known ones where the mechanism is known."""

from __future__ import annotations

import json

import pytest
import torch

from circuits import tasks
from experiments import specialists
from experiments.config import default_model
from graphs.circuit import Circuit
from patching import exact
from patching.lens import LensModel
from patching.masked import MaskedRun
from patching.model_sources import zoo_names
from patching.sites import Start, forward
from patching.task import Task

NAMES = sorted(name for name in specialists.RECIPES if f"zoo:{name}" in zoo_names())


@pytest.mark.parametrize("name", NAMES)
def test_the_specialist_is_offered_and_discover_finds_a_faithful_circuit_in_it(name, wiretrace, tmp_path):
    """By scores, which takes seconds; a third of the edges keeps most of what the model does."""
    parts = LensModel.load(f"zoo:{name}", device="cpu").graph
    n = parts.n_edges // 3
    few = ("--method", "eap_ig_inputs", "--n", n, "--prompts", 16, "--held-out", 32)
    assert default_model(name) in (f"zoo:{name}", "zoo:small")
    result = wiretrace("discover", name, "--model", f"zoo:{name}", *few, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["config"]["model"] == f"zoo:{name}"
    assert 0 < Circuit.load(tmp_path / "run" / "circuit.json").n_edges <= n
    assert 0.5 < report["evaluation"]["faithfulness"] < 1.5


def mean_patterns(model: LensModel, task: Task) -> torch.Tensor:
    """Attention probabilities, averaged over prompts: layer, head, query, key."""
    seen: dict[int, torch.Tensor] = {}

    def keep(kind: str, layer: int, value: torch.Tensor, _narrow: bool) -> torch.Tensor:
        if kind == "pattern":
            seen[layer] = value
        return value

    length = task.clean.shape[1]
    start = Start(0, 0, 0, model.embed(task.clean))
    forward(model, model.contexts(length), start, keep, answer=task.positions, trim=False)
    stacked = torch.stack([seen[layer] for layer in sorted(seen)])
    return stacked.mean(next(axis for axis, size in enumerate(stacked.shape) if size == len(task)))


# ------------------------------------------------------------------------------------------------------- induction


BEFORE, REPEAT, GAP, LINE = 3, 2, 4, 3
"""Words before the part that comes again, words of it that come again, words between, and tokens of "The list :"."""

CUE = LINE + BEFORE + REPEAT - 1
"""Where the last word of the cue stood first; the answer stood one later."""


@pytest.fixture(scope="module")
def induction() -> LensModel:
    return LensModel.load("zoo:induction", device="cpu", dtype=torch.float64)


@pytest.fixture(scope="module")
def sequences(induction) -> Task:
    """Prompts of one shape, so that every role has its position."""
    task = tasks.load("induction").make(
        induction, n=64, seed=2, template="list", before=BEFORE, repeat=REPEAT, gap=GAP, split="held-out"
    )
    assert (task.clean[:, CUE] == task.clean[:, -1]).all()
    assert (task.clean[:, CUE + 1] == task.answers[:, 0]).all()
    return task


@pytest.fixture(scope="module")
def patterns(induction, sequences) -> torch.Tensor:
    return mean_patterns(induction, sequences)


def previous_token_head(patterns: torch.Tensor) -> tuple[int, float]:
    """The head of layer 0 that looks one back the most, from where the answer stood first."""
    back = patterns[0][:, CUE + 1, CUE]
    return int(back.argmax()), float(back.max())


def test_one_head_looks_one_back(patterns):
    head, share = previous_token_head(patterns)
    assert share > 0.8
    one_back = patterns[0, head].diagonal(-1)
    assert (one_back[LINE - 1 : CUE + GAP] > 0.6).all(), "from every place where a repeated part may stand"
    assert patterns[0][[other for other in range(4) if other != head], CUE + 1, CUE].max() < 0.8


def test_every_head_of_the_second_layer_looks_to_what_came_next(patterns):
    assert (patterns[1][:, -1, CUE + 1] > 0.8).all()
    assert patterns[0][:, -1, CUE + 1].max() < 0.5, "layer 0 cannot know where the answer stood"


def test_exact_patching_finds_the_same_heads(induction, sequences, patterns):
    """Without the one head of layer 0 half is lost; those of layer 1 stand in for one another, and each counts."""
    run = MaskedRun(induction, sequences)
    nodes = exact.scores(run.nodes())
    before, after = ([nodes[f"a{layer}.h{head}"] for head in range(4)] for layer in range(2))
    clean = run.clean_metric.mean().item()
    head = previous_token_head(patterns)[0]
    assert before[head] < -clean / 2
    assert min(effect for other, effect in enumerate(before) if other != head) > -clean / 4
    assert max(after) < -clean / 10
    assert min(after) > -clean / 2


def test_the_layers_compose_through_keys(induction, sequences, patterns):
    run = MaskedRun(induction, sequences)
    between = [edge for edge in run.units if str(edge.source).startswith("a0.") and str(edge.target).startswith("a1.")]
    effects = exact.scores(run, only=between)
    worst = sorted(between, key=lambda edge: effects[edge])[:4]
    head = previous_token_head(patterns)[0]
    assert {str(edge) for edge in worst} == {f"a0.h{head}->a1.h{other}<k>" for other in range(4)}


# ------------------------------------------------------------------------------------------------------- docstring


DUE, BEFORE_IT, DESCRIBED = 13, 11, 29
"""Tokens of template "method": the parameter due and the one before it in the definition; the one described last."""

MOVERS = ("a3.h0", "a3.h1", "a3.h3")
"""The heads that look at the parameter that is due."""


@pytest.fixture(scope="module")
def docstring() -> LensModel:
    return LensModel.load("zoo:docstring", device="cpu", dtype=torch.float64)


def functions(model: LensModel, **options: str) -> Task:
    return tasks.load("docstring").make(model, n=32, seed=2, template="method", **options)


def test_heads_of_the_docstring_model_look_where_its_card_says(docstring):
    task = functions(docstring)
    assert (task.clean[:, DUE] == task.answers[:, 0]).all()
    assert (task.clean[:, BEFORE_IT] == task.clean[:, DESCRIBED]).all()
    seen = mean_patterns(docstring, task)
    assert seen[0, 3, -1, DESCRIBED] > 0.8
    assert seen[0, 3, DUE, DUE] > 0.8
    assert seen[2, 1, DUE, BEFORE_IT] > 0.9
    movers = {f"a{layer}.h{head}" for layer in range(4) for head in range(4) if seen[layer, head, -1, DUE] > 0.8}
    assert movers == set(MOVERS)
    assert seen[:3, :, -1, DUE].max() < 0.5, "layers below the last do not know yet"


@pytest.mark.parametrize(
    ("corruption", "kind", "source"),
    [("random_doc", "q", "a0.h3"), ("random_def", "k", "a2.h1"), ("random_answer", "v", "a0.h3")],
)
def test_each_corruption_shows_one_way_into_the_movers(docstring, corruption, kind, source):
    """The docstring decides where they look, the definition before the answer where it is found, the answer what."""
    run = MaskedRun(docstring, functions(docstring, corruption=corruption))
    into = [edge for edge in run.units if str(edge.target).startswith(MOVERS)]
    effects = exact.scores(run, only=into)
    by_kind = {each: [edge for edge in into if str(edge).endswith(f"<{each}>")] for each in "qkv"}
    strongest = {str(edge) for edge in sorted(into, key=lambda edge: effects[edge])[: 2 if kind == "v" else 3]}
    assert strongest <= {f"{source}->{mover}<{kind}>" for mover in MOVERS}
    elsewhere = {each: min(effects[edge] for edge in edges) for each, edges in by_kind.items() if each != kind}
    assert min(elsewhere.values()) > min(effects[edge] for edge in by_kind[kind]) / 3
    assert kind == "k" or min(elsewhere.values()) > -0.2


def test_the_head_that_looks_one_parameter_back_reads_it_from_the_first_layer(docstring):
    run = MaskedRun(docstring, functions(docstring, corruption="random_def"))
    into = [edge for edge in run.units if str(edge.target).startswith("a2.h1")]
    effects = exact.scores(run, only=into)
    first, second = sorted(into, key=lambda edge: effects[edge])[:2]
    assert str(first) == "a0.h3->a2.h1<v>"
    assert effects[second] > effects[first] / 10
