"""A search that goes on after an interruption ends in the bits of the one that was not interrupted."""

from __future__ import annotations

import json

import pytest
import torch

from circuits import acdc
from circuits.acdc import Decision
from circuits.decision import Footing
from patching.errors import InvalidOption
from patching.masked import MaskedRun
from tests import tiny


def run_at(level: str) -> MaskedRun:
    run = MaskedRun(tiny.model("gpt2", dtype=torch.float32), tiny.task(n=3, prefix=1))
    return {"edges": run, "merged": run, "nodes": run.nodes(), "positions": run.positions()}[level]


@pytest.mark.parametrize("level", ["edges", "merged", "nodes", "positions"])
def test_a_search_goes_on_to_the_last_bit(level: str) -> None:
    run, options = run_at(level), {"tau": 0.02, "merged": level == "merged"}
    made: list[Decision] = []
    whole = acdc.search(run, watch=made.append, **options)  # type: ignore[arg-type]
    stages = [place for place, decision in enumerate(made) if decision.footing is not None]
    assert stages[0] == 0
    assert len(stages) > 3
    for cut in sorted({1, 2, 17, stages[2] - 1, stages[2], stages[2] + 1, len(made) - 1, len(made)}):
        again: list[Decision] = []
        found = acdc.search(run, decided=made[:cut], watch=again.append, **options)  # type: ignore[arg-type]
        assert dict(found.scores) == dict(whole.scores), f"after {cut} decisions"
        assert found.edges == whole.edges
        assert found.provenance == whole.provenance
        assert again == made[cut:]
        assert [decision.footing for decision in again] == [decision.footing for decision in made[cut:]]


def test_a_footing_is_exact_in_json() -> None:
    made: list[Decision] = []
    acdc.search(run_at("edges"), tau=0.02, watch=made.append)
    footings = [decision.footing for decision in made if decision.footing is not None]
    assert any(footing.habit != footings[0].habit for footing in footings)
    for footing in footings:
        assert Footing.from_list(json.loads(json.dumps(footing.to_list()))) == footing


def test_a_footing_of_another_model_is_refused() -> None:
    made: list[Decision] = []
    acdc.search(run_at("edges"), tau=0.02, watch=made.append)
    wrong = Decision(made[0].name, made[0].kept, made[0].delta, Footing(1.0, 0, 0.0, (0.0, 0.0), (0.0,)))
    with pytest.raises(InvalidOption, match="another model"):
        acdc.search(run_at("edges"), tau=0.02, decided=[wrong])
    with pytest.raises(InvalidOption, match="at least 5 numbers"):
        Footing.from_list([1.0, 2.0])


def test_decisions_of_another_order_are_refused_where_they_are_evaluated_again() -> None:
    made: list[Decision] = []
    acdc.search(run_at("edges"), tau=0.02, watch=made.append)
    with pytest.raises(InvalidOption, match="expected decision 1 to be about"):
        acdc.search(run_at("edges"), tau=0.02, decided=[made[0], made[2]])
