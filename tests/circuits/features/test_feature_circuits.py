"""Circuits of features: the planted one is found, files keep them, and options do what they say."""

from __future__ import annotations

import pytest
import torch

from circuits.features import agreement_toy as toy
from circuits.features.dictionary import create
from circuits.features.edge_effects import edge_effects
from circuits.features.feature_circuits import assemble, search
from circuits.features.feature_run import FeatureRun
from circuits.features.node_effects import node_effects
from circuits.tasks import ioi
from graphs.circuit import Circuit
from graphs.nodes import LOGITS
from patching.errors import InvalidOption
from patching.lens import LensModel
from tests import tiny
from tests.circuits.features import random_dictionaries

BOTH = pytest.mark.parametrize("clean", ["plural", "singular"])


def found(clean="plural", *, node_threshold=0.1, edge_threshold=0.1, changed="subject", **options):
    return search(
        toy.model(), toy.task(clean=clean, changed=changed), toy.dictionaries(),
        node_threshold=node_threshold, edge_threshold=edge_threshold, **options,
    )  # fmt: skip


@BOTH
@pytest.mark.parametrize("node_threshold", [1e-6, 0.1, 2.8])
def test_integrated_gradients_find_the_planted_circuit_in_both_directions(clean, node_threshold):
    """Precision and recall of 1, nodes and edges, at any threshold below the smallest effect."""
    circuit = found(clean, node_threshold=node_threshold, edge_threshold=min(node_threshold, 1.0))
    assert set(circuit.node_scores) == set(toy.nodes().values())
    assert set(circuit.edges) == set(toy.truth().edges)
    sign = -1 if clean == "plural" else 1
    assert all(sign * score > 2.8 for score in circuit.node_scores.values())


def test_attribution_patching_misses_what_is_behind_a_neuron_that_is_off():
    """Four nodes of six, in one direction; in the other it has them, but counts too much."""
    planted = toy.nodes()
    missed = set(planted.values()) - set(found("singular", effects="atp").node_scores)
    assert missed == {planted[name] for name in ("sing", "plur", "moved", "not moved")}
    other = found("plural", effects="atp").node_scores
    assert set(other) == set(planted.values())
    assert other[planted["sing"]] + other[planted["plur"]] == pytest.approx(-8, abs=1e-6)


@BOTH
def test_exact_effects_take_gradients_for_their_edges(clean):
    circuit = found(clean, effects="exact", steps=20)
    assert set(circuit.edges) == set(toy.truth().edges)
    expected = -4.0 if clean == "plural" else 2.0
    assert circuit.node_scores[toy.nodes()["sing"]] == pytest.approx(expected, abs=1e-9)


@BOTH
def test_what_nothing_depends_on_has_no_circuit(clean):
    circuit = found(clean, changed="distractor", node_threshold=1e-6, edge_threshold=1e-6)
    assert not circuit.edges
    assert not circuit.node_scores
    assert circuit.provenance["note"].startswith("no node exceeds 1e-06; the strongest has")


def test_summed_over_positions_the_nodes_have_none():
    circuit = found(aggregation="sum")
    assert {str(node) for node in circuit.node_scores} == {str(node.everywhere()) for node in toy.nodes().values()}
    assert {str(edge) for edge in circuit.edges} == {
        f"{edge.source.everywhere()}->{edge.target.everywhere()}" for edge in toy.truth().edges
    }


def test_a_thresholded_circuit_is_the_same_from_effects_that_are_there():
    model, task = tiny.model("gpt2"), tiny.task(n=3, length=5)
    dictionaries = random_dictionaries.everywhere(model, features=24)
    run = FeatureRun(model, task, dictionaries)
    effects = node_effects(run, steps=4)
    edges = edge_effects(run, effects, nodes=effects.nodes(0.02), steps=4)
    last = None
    for threshold in (0.02, 0.05, 0.1):
        made = assemble(effects, edges, node_threshold=threshold, edge_threshold=0.03)
        again = search(model, task, dictionaries, node_threshold=threshold, edge_threshold=0.03, steps=4)
        assert made.edges == again.edges
        assert made.node_scores == pytest.approx(again.node_scores)
        assert all(abs(score) > threshold for score in made.node_scores.values())
        ends = {end for edge in made.edges for end in (edge.source, edge.target)} - {LOGITS}
        assert ends <= set(made.node_scores)
        assert last is None or set(made.node_scores) < last
        last = set(made.node_scores)


def test_prompt_by_prompt_thresholds_keep_more():
    model, task = tiny.model("gpt2"), tiny.task(n=3, length=5)
    dictionaries = random_dictionaries.everywhere(model, features=24, only=["attn_out0", "mlp_out0", "resid_post0"])
    options = {"node_threshold": 0.1, "edge_threshold": 0.1, "steps": 4}
    mean, example = (search(model, task, dictionaries, threshold_on=order, **options) for order in ("mean", "example"))
    assert set(mean.node_scores) < set(example.node_scores)
    assert set(mean.edges) < set(example.edges)


def test_files_and_graphs_keep_feature_circuits():
    circuit = found()
    again = Circuit.from_json(circuit.to_json())
    assert again == circuit
    assert again.node_scores == circuit.node_scores
    graph = circuit.to_networkx()
    assert graph.nodes["m0.f6@4"]["position"] == 4
    assert Circuit.from_networkx(graph).edges == circuit.edges
    options = circuit.provenance["options"]
    assert options["nodes"]["rule"] == "midpoint"
    assert options["edges"]["method"] == "ig"
    assert circuit.provenance["dictionaries"]["mlp_out0"] == "relu, 16 features"


def test_progress_goes_through_nodes_and_edges():
    seen = []
    found(progress=lambda done, total: seen.append((done, total)))
    assert seen[:4] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert seen[-1][0] == seen[-1][1]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"node_threshold": -1.0}, "threshold of 0 or more"),
        ({"edge_threshold": -1.0}, "threshold of 0 or more"),
        ({"effects": "attribution"}, "expected a method"),
        ({"edges": "attribution"}, "expected a method"),
        ({"threshold_on": "max"}, "threshold_on"),
        ({"most_edges": 1}, "expected at most 1 edges"),
    ],
)
def test_options_out_of_range_are_refused(options, sentence):
    with pytest.raises(InvalidOption, match=sentence):
        found(**options)


def test_neurons_of_the_model_that_ships():
    """A circuit of neurons on indirect object identification: what reaches the logits is the whole effect."""
    model = LensModel.load("zoo:ioi")
    task = ioi.make(model, n=4, seed=0)
    sites = random_dictionaries.sites(model)
    dictionaries = [create("identity", d_in=model.d_model, n_features=model.d_model, site=site) for site in sites]
    run = FeatureRun(model, task, dictionaries)
    whole = float((run.patched_metric - run.clean_metric).mean())
    effects = node_effects(run, steps=20, aggregation="sum")
    assert effects.total(run.sites[-1]) == pytest.approx(whole, rel=0.01)
    circuit = search(model, task, dictionaries, node_threshold=0.5, edge_threshold=0.1, aggregation="sum", steps=4)
    assert 10 < len(circuit.node_scores) < 400
    assert all(node.index is not None for node in circuit.node_scores)
    assert torch.isfinite(torch.tensor(list(circuit.scores.values()))).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_gpu_gives_the_same_circuit():
    task = tiny.task(n=3, length=5)
    made = []
    for device in ("cpu", "cuda"):
        model = LensModel.wrap(tiny.hugging_face("gpt2").to(device), name="gpt2")
        dictionaries = random_dictionaries.everywhere(model, features=24)
        made.append(search(model, task, dictionaries, node_threshold=0.05, edge_threshold=0.05, steps=4))
    assert made[0].edges == made[1].edges
    assert made[0].node_scores == pytest.approx(made[1].node_scores)
