"""Attribution graph JSON: as the schema of Neuronpedia and the records of circuit-tracer want it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, reject, settings

from graphs import Architecture, Circuit, Edge, export, load
from graphs.errors import BadCircuit, BadFile, BadOption
from graphs.export import neuronpedia
from graphs.strict_json import parsed

from .format_samples import SHAPES, some_circuit
from .strategies import circuits

NODE_KEYS = {  # what the schema of Neuronpedia requires, and what circuit-tracer's records are made of
    "node_id": str, "feature": int, "layer": str, "ctx_idx": int, "feature_type": str, "jsNodeId": str, "clerp": str,
    "token_prob": float, "is_target_logit": bool, "run_idx": int, "reverse_ctx_idx": int,
}  # fmt: skip
FEATURE_TYPES = {"cross layer transcoder", "mlp reconstruction error", "embedding", "logit"}


@pytest.mark.parametrize("strict", [False, True])
@settings(max_examples=40, deadline=None)
@given(circuit=circuits())
def test_attribution_graphs_are_as_their_schema_says(strict: bool, circuit: Circuit) -> None:
    tokens = ["When", " Mary", " and"]
    try:
        text = neuronpedia.dumps(circuit, strict=strict, tokens=tokens)
    except BadCircuit:
        assert strict
        reject()  # a sum that is not finite
    record = parsed(text)
    assert set(record) - {"wiretrace"} == {"metadata", "qParams", "nodes", "links"}
    for key, kind in {"slug": str, "scan": str, "prompt": str, "prompt_tokens": list, "transcoder_list": list}.items():
        assert type(record["metadata"][key]) is kind
    ids = [node["node_id"] for node in record["nodes"]]
    assert len(set(ids)) == len(ids) == len({node["jsNodeId"] for node in record["nodes"]}) == len(circuit.nodes)
    for node in record["nodes"]:
        assert {key: type(node[key]) for key in NODE_KEYS} == NODE_KEYS
        assert 0 <= node["ctx_idx"] < len(record["metadata"]["prompt_tokens"])
    for link in record["links"]:
        assert {link["source"], link["target"]} <= set(ids)
        assert type(link["weight"]) is float


def test_strict_ids_are_theirs(tmp_path: Path) -> None:
    names = ["input->a1.h3<q>", "a0.h2->a1.kv1<k>", "a0.h2->a1.kv1<v>", "a1.h3->m1", "m1->logits"]
    edges = [Edge.parse(name) for name in names]
    circuit = Circuit(Architecture(2, 4, 2), edges, dict(zip(edges, (-1.0, 2.0, 0.5, -4.0, -8.0), strict=True)))
    record = json.loads(neuronpedia.dumps(circuit, strict=True, tokens=["a", "b"]))
    assert {node["clerp"]: node["node_id"] for node in record["nodes"]} == {
        "input": "E_0_1", "a0.h2": "0_2_1", "a1.kv1": "1_6_1", "a1.h3": "1_3_1", "m1": "1_4_1", "logits": "3_0_1",
    }  # fmt: skip
    assert {node["feature_type"] for node in record["nodes"]} <= FEATURE_TYPES
    features = {node["clerp"]: node["feature"] for node in record["nodes"]}
    assert (features["a0.h2"], features["m1"]) == (5, 19)  # 2*3/2 + 2 and 5*6/2 + 4
    weights = {(link["source"], link["target"]): link["weight"] for link in record["links"]}
    assert weights == {
        ("E_0_1", "1_3_1"): 1.0, ("0_2_1", "1_6_1"): -2.5, ("1_3_1", "1_4_1"): 4.0, ("1_4_1", "3_0_1"): 8.0,
        ("1_6_1", "1_3_1"): 0.0,
    }  # fmt: skip
    neuronpedia.write(circuit, tmp_path / "c.neuronpedia.json", strict=True)
    with pytest.raises(BadFile, match="no key 'wiretrace'"):
        load(tmp_path / "c.neuronpedia.json")


def test_weights_of_edges_without_scores() -> None:
    edges = [Edge.parse("m0->logits"), Edge.parse("input->logits")]
    for scores, weights in (({}, [1.0, 1.0]), ({edges[0]: -0.5}, [0.5, 0.0])):
        record = json.loads(neuronpedia.dumps(Circuit(SHAPES[0], edges, scores)))
        found = {link["source"]: link["weight"] for link in record["links"]}
        assert [found["m0"], found["input"]] == weights


@pytest.mark.parametrize("options", [{"strict": 1}, {"slug": None}, {"prompt": 3}, {"tokens": "abc"}, {"tokens": [1]}])
def test_options_of_the_wrong_type_are_refused(options: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(BadOption, match=next(iter(options))):
        export(some_circuit(), tmp_path / "c.neuronpedia.json", **options)
    assert not list(tmp_path.iterdir())
