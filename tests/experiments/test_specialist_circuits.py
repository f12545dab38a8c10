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
from patching.lens import LensModel, zoo_names
from patching.masked import MaskedRun
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
    """Attention probabilities, averaged over prompts: layer, head, query, key."""
    seen: dict[int, torch.Tensor] = {}

    def keep(kind: str, layer: int, value: torch.Tensor, _narrow: bool) -> torch.Tensor:
        if kind == "pattern":
            seen[layer] = value
        return value

    length = sequences.clean.shape[1]
    start = Start(0, 0, 0, induction.embed(sequences.clean))
    forward(induction, induction.contexts(length), start, keep, answer=sequences.positions, trim=False)
    stacked = torch.stack([seen[layer] for layer in sorted(seen)])
    return stacked.mean(next(axis for axis, size in enumerate(stacked.shape) if size == len(sequences)))


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
