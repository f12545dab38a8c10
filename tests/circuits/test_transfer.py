"""One circuit on several runs: a table of the reports that `evaluate` gives."""

from __future__ import annotations

import json

import pytest

from circuits import transfer
from circuits.evaluation import evaluate
from circuits.select import top_edges
from graphs.circuit import Circuit
from graphs.nodes import Edge
from patching import atp, toy
from patching.errors import InvalidMask, InvalidOption
from patching.masked import MaskedRun
from tests import tiny


def test_each_row_is_an_evaluation() -> None:
    model = tiny.model("gpt2")
    runs = {
        "same": MaskedRun(model, tiny.task(n=4)),
        "other prompts": MaskedRun(model, tiny.task(n=6, seed=1, length=9)),
        "zero": MaskedRun(model, tiny.task(n=4), ablation="zero"),
        "probability": MaskedRun(model, tiny.task(n=4), metric="probability"),
        "other weights": MaskedRun(tiny.model("gpt2", seed=1), tiny.task(n=4)),
    }
    circuit = top_edges(atp.scores(runs["same"]), n=30)
    seen: list[tuple[int, int]] = []
    found = transfer.across(circuit, runs, random_circuits=2, seed=3, progress=lambda *step: seen.append(step))
    assert list(found.reports) == list(runs)
    for name, run in runs.items():
        assert found.reports[name] == evaluate(run, circuit, random_circuits=2, seed=3)
    table = found.to_frame()
    assert table["run"].tolist() == list(runs)
    assert table["ablation"].tolist() == ["corrupt", "corrupt", "zero", "corrupt", "corrupt"]
    assert table["metric"].tolist()[3] == "probability"
    assert table["prompts"].tolist() == [4, 6, 4, 4, 4]
    assert seen == [(n, 5) for n in range(1, 6)]
    assert all(name in str(found) for name in runs)
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_circuit_that_does_not_fit_is_refused() -> None:
    run = MaskedRun(toy.model(), toy.task())
    with pytest.raises(InvalidMask, match=r"circuit of a model with"):
        transfer.across(Circuit(run.graph.architecture, ()), {"other": MaskedRun(tiny.model("gpt2"), tiny.task())})
    placed = Circuit(run.graph.architecture, [Edge.parse("input->logits@5")])
    with pytest.raises(InvalidMask, match=r"positions below 2.*prompts of the length"):
        transfer.across(placed, {"short": run})
    with pytest.raises(InvalidOption, match=r"at least one run"):
        transfer.across(placed, {})
