"""Interchange accuracy, measured by the engine: of compiled models, of wrong alignments, of the models that ship."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from circuits import reference
from circuits.interchange import accuracy, report, subsets, task_of
from graphs.nodes import Node
from patching import compiled
from patching.compiled import PROGRAMS, trained
from patching.compiled.interchange import Interchange, alignment, draw
from patching.errors import InvalidOption
from patching.lens import LensModel
from patching.model_sources import ZOO

SHIPPED = trained.names()


def nodes(*names: str) -> tuple[Node, ...]:
    return tuple(Node.parse(name) for name in names)


USELESS = {"reverse": "m1", "compare_counts": "a1.h0 a1.h1", "decoys": "a0.h1 m0 a1.h0 a1.h1 m1"}


@pytest.mark.parametrize("name", USELESS)
def test_compiled_models_do_what_their_program_does(name: str) -> None:
    seen: list[tuple[int, int]] = []
    found = report(compiled.model(name), PROGRAMS[name], n=24, progress=lambda done, total: seen.append((done, total)))
    assert found.interchange_accuracy == found.lowest == found.task.accuracy == 1.0
    assert {each.nodes for each in found.variables} == {(str(node),) for node in alignment(PROGRAMS[name])}
    assert {node for each in found.strict for node in each.nodes} == set(USELESS[name].split())
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert seen[-1][0] == seen[-1][1]
    assert json.loads(json.dumps(found.to_dict()))["lowest"] == 1.0


def test_what_is_not_exchanged_is_wrong_where_it_matters() -> None:
    """By hand: a model that is left alone answers the base, which is right just where the answer does not change."""
    program = PROGRAMS["reverse"]
    drawn = draw(program, nodes("a0.h0"), n=20, seed=0)
    left_alone = accuracy(compiled.model("reverse"), program, drawn, exchanged=())
    assert left_alone.n_changed == 10
    assert left_alone.accuracy == 0.5
    assert left_alone.accuracy_changed == 0.0


def test_a_model_that_computes_the_answer_elsewhere_fails() -> None:
    """`wanted` is held by the MLP; exchanging the head before it does the same, the one after it does more."""
    program = PROGRAMS["reverse"]
    drawn = draw(program, nodes("m0"), n=40, seed=0)
    model = compiled.model("reverse")
    assert accuracy(model, program, drawn).accuracy == 1.0
    assert accuracy(model, program, drawn, exchanged=nodes("a1.h0")).accuracy < 0.9


def test_sets_of_nodes() -> None:
    some = nodes("a0.h0", "a0.h1", "m0")
    assert len(subsets(some)) == 4
    assert subsets(some[:1]) == []
    many = tuple(Node.parse(f"a0.h{number}") for number in range(7))
    assert subsets(many) == [*itertools.pairwise(many), many]


def test_bad_requests_are_refused() -> None:
    program, model = PROGRAMS["reverse"], compiled.model("reverse")
    one, other = (draw(program, nodes(name), n=2, seed=0) for name in ("m0", "a0.h0"))
    with pytest.raises(InvalidOption, match="one set of nodes; got 2 sets"):
        accuracy(model, program, [*one, *other])
    with pytest.raises(InvalidOption, match="got 0 sets"):
        accuracy(model, program, [])
    tie = Interchange(("a",), ("b",), (), {}, None, matters=False)
    with pytest.raises(InvalidOption, match="several"):
        task_of(program, [tie])
    with pytest.raises(InvalidOption, match=r"where sort_unique stands; zoo:reverse has no a0.h1"):
        report(model, PROGRAMS["sort_unique"])
    with pytest.raises(InvalidOption, match="expected a model with the tokens"):
        report(compiled.model("key_value_lookup"), PROGRAMS["induction_by_hand"])
    with pytest.raises(InvalidOption, match="expected a program with variables for nodes to hold; copy_token has none"):
        report(compiled.model("copy_token"), PROGRAMS["copy_token"])


# --- the models that ship --------------------------------------------------------------------------------------------


def test_at_least_five_trained_models_ship() -> None:
    assert len(SHIPPED) >= 5


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_reaches_the_interchange_accuracy_of_its_card(name: str) -> None:
    folder = ZOO / f"{name}_trained"
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    model = LensModel.load(f"zoo:{name}_trained", device="cpu")
    found = report(model, PROGRAMS[name], n=100, seed=1, split="held-out")
    assert found.interchange_accuracy >= 0.95
    assert found.task.accuracy >= 0.95
    assert found.lowest >= 0.9
    assert record["interchange_accuracy"] >= 0.95
    assert abs(found.interchange_accuracy - record["interchange_accuracy"]) < 0.05
    changed = [each.accuracy_changed for each in (*found.variables, *found.joint) if each.accuracy_changed is not None]
    assert min(changed) >= 0.9  # so the accuracy is not that of interventions that change nothing
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_the_figures_of_the_card_are_measured(name: str) -> None:
    record = json.loads((ZOO / f"{name}_trained" / "training.json").read_text(encoding="utf-8"))
    model = LensModel.load(f"zoo:{name}_trained", device="cpu")
    for split, said in record["interchange"].items():
        assert report(model, PROGRAMS[name], n=said["task"]["n"], seed=2**31, split=split).to_dict() == said


@pytest.mark.parametrize("name", SHIPPED)
def test_the_model_is_a_standard_one_with_room_for_a_wrong_circuit(name: str) -> None:
    model = LensModel.load(f"zoo:{name}_trained", device="cpu")
    assert type(model.bridge.original_model).__name__ == "GPT2LMHeadModel"
    circuit = compiled.truth(f"{name}_trained")
    assert circuit.architecture == model.architecture
    useless = set(model.graph.sources) - set(circuit.nodes)
    assert len(useless) >= 3 * model.architecture.n_layers
    assert torch.isfinite(model.readout.unembed).all()


def test_trained_models_have_a_reference() -> None:
    found = reference.load("reverse_trained")
    assert found.circuit == compiled.truth("reverse_trained")
    assert found.model == "zoo:reverse_trained"
    assert {str(node) for each in found.groups.values() for node in each} == {"a0.h0", "m0", "a1.h0"}
    with pytest.raises(InvalidOption, match="Did you mean reverse_trained"):
        reference.load("reverse_traind")
