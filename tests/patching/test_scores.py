"""Scores: names, rankings, comparison with scipy-free formulas, files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from graphs.components import Architecture
from graphs.errors import BadName, UnknownEdge, UnknownNode, WiretraceError
from graphs.nodes import Edge, Node
from patching import exact, toy
from patching.errors import InvalidOption
from patching.masked import MaskedRun
from patching.scores import Scores

SHAPE = Architecture(n_layers=1, n_heads=2)


def of_nodes(*values: float, **fields: object) -> Scores:
    return Scores(SHAPE, "node", torch.tensor(values, dtype=torch.float64), **fields)  # type: ignore[arg-type]


def of_edges() -> Scores:
    count = 13
    return Scores(SHAPE, "edge", torch.linspace(-1, 1, count, dtype=torch.float64), provenance={"method": "made up"})


def test_a_score_has_a_name() -> None:
    scores = of_nodes(0.5, -2.0, 1.0, 0.0)
    assert scores["a0.h0"] == -2.0
    assert scores[Node.parse("m0")] == 0.0
    assert of_edges()["m0->logits"] == of_edges()[Edge.parse("m0->logits")] == 1.0
    assert len(scores) == 4
    assert scores.units == scores.graph.sources
    assert of_edges().units == scores.graph.edges
    assert scores.importance.tolist() == [0.5, 2.0, 1.0, 0.0]


def test_ranking_is_by_size_and_ties_keep_their_order() -> None:
    scores = of_nodes(1.0, -1.0, 1.0, 2.0)
    assert scores.ranking() == [3, 0, 1, 2]
    assert scores.ranking(signed=True) == [1, 0, 2, 3]
    assert list(map(str, scores.top(2))) == ["m0", "input"]
    assert scores.top(0) == ()
    assert len(scores.top(4)) == 4


@pytest.mark.parametrize("n", [-1, 5])
def test_top_of_more_than_there_is_is_refused(n: int) -> None:
    with pytest.raises(InvalidOption, match=rf"n from 0 to 4, the number of nodes; got {n}"):
        of_nodes(1, 2, 3, 4).top(n)


def test_mean_and_standard_error_over_prompts() -> None:
    effects = torch.tensor([[1.0, 0, 0, 0], [3.0, 0, 0, 0], [5.0, 0, 0, 0]])
    scores = Scores.over_prompts(SHAPE, "node", effects, {})
    assert scores.values.tolist() == [3.0, 0, 0, 0]
    assert scores.standard_error is not None
    assert scores.standard_error.tolist() == pytest.approx([2.0 / math.sqrt(3), 0, 0, 0])
    assert Scores.over_prompts(SHAPE, "node", effects[:1], {}).standard_error is None


def test_comparison_with_numpy() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 13))
    ours = Scores(SHAPE, "edge", torch.from_numpy(a)).compare(Scores(SHAPE, "edge", torch.from_numpy(b)), k=5)
    ranks = [np.argsort(np.argsort(np.abs(x))) for x in (a, b)]
    tops = [set(np.argsort(-np.abs(x))[:5]) for x in (a, b)]
    assert ours["pearson"] == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert ours["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert ours["recall@5"] == len(tops[0] & tops[1]) / 5


def test_comparison_with_itself_is_perfect() -> None:
    assert of_edges().compare(of_edges(), k=100) == pytest.approx(
        {"pearson": 1.0, "spearman": 1.0, "recall@13": 1.0, "rank-biased overlap": 1.0, "false negatives@13": 0.0}
    )


def test_comparison_of_constants_is_undefined_not_wrong() -> None:
    assert math.isnan(of_nodes(0, 0, 0, 0).compare(of_nodes(1, 2, 3, 4))["pearson"])


def test_comparison_of_other_units_is_refused() -> None:
    with pytest.raises(InvalidOption, match=r"got 4 nodes and 13 edges"):
        of_nodes(1, 2, 3, 4).compare(of_edges())


def test_a_frame_has_a_row_per_unit() -> None:
    frame = of_nodes(1, -3, 2, 0, standard_error=torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)).to_frame()
    assert frame["node"].tolist() == ["a0.h0", "a0.h1", "input", "m0"]
    assert frame["effect"].tolist() == [-3, 2, 1, 0]
    assert frame["standard_error"].tolist() == pytest.approx([0.2, 0.3, 0.1, 0.4])
    assert "a0.h0" in of_nodes(1, -3, 2, 0)._repr_html_()


def test_repr_shows_the_largest() -> None:
    assert repr(of_nodes(1, -3, 2, 0, provenance={"method": "atp"})).startswith("Scores(atp, 4 nodes; a0.h0 -3.000")


@pytest.mark.parametrize(
    ("name", "error"),
    [("a0.h7", UnknownNode), ("logits", UnknownNode), ("m3", UnknownNode), ("nonsense", BadName)],
)
def test_unknown_nodes_are_refused(name: str, error: type[WiretraceError]) -> None:
    with pytest.raises(error):
        of_nodes(1, 2, 3, 4)[name]


def test_unknown_edges_are_refused_with_what_exists() -> None:
    with pytest.raises(UnknownEdge, match=r"a0.h0 to a0.h1"):
        of_edges()["a0.h9->m0"]
    with pytest.raises(UnknownEdge, match=r"reads only what is written before it"):
        of_edges()["m0->a0.h0<q>"]
    with pytest.raises(UnknownEdge, match=r"scores of edges, such as m0->logits; got a0.h0"):
        of_edges()[Node.parse("a0.h0")]
    with pytest.raises(UnknownNode, match=r"node that writes"):
        of_nodes(1, 2, 3, 4)[Edge.parse("m0->logits")]


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_file_holds_everything(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    scores = of_nodes(
        0.1,
        -2.0,
        1e-300,
        3.0,
        standard_error=torch.rand(4, dtype=torch.float64),
        provenance={"method": "atp", "options": {}},
    )
    scores.save(path)
    again = Scores.load(path)
    assert torch.equal(again.values, scores.values)
    assert again.standard_error is not None
    assert torch.equal(again.standard_error, scores.standard_error)  # type: ignore[arg-type]
    assert (again.architecture, again.level, again.provenance) == (SHAPE, "node", scores.provenance)


def test_nan_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    with pytest.raises(ValueError, match=r"JSON compliant|finite"):
        of_nodes(1.0, math.nan, 2.0, 3.0).save(path)
    assert list(tmp_path.iterdir()) == []


def test_files_that_do_not_hold_together_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    of_edges().save(path)
    whole = path.read_text()
    document = json.loads(whole)
    damaged = [
        whole[:-20],
        "",
        "[]",
        "null",
        "[" * 100_000,
        json.dumps(document | {"schema": "something-else/7"}),
        json.dumps(document | {"values": document["values"][:-1]}),
        json.dumps(document | {"values": "abc"}),
        whole.replace("-1.0", "-1e400"),
        json.dumps(document | {"level": "planet"}),
        json.dumps(document | {"architecture": {"n_layers": -1, "n_heads": 2}}),
        json.dumps({key: value for key, value in document.items() if key != "provenance"}),
    ]
    for text in damaged:
        path.write_text(text)
        with pytest.raises(InvalidOption, match=r"wiretrace-scores/1"):
            Scores.load(path)
    with pytest.raises(InvalidOption, match=r"missing\.json"):
        Scores.load(tmp_path / "missing.json")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidOption):
        Scores.load(path)


def test_a_notebook_shows_nodes_as_a_heat_map() -> None:
    scores = exact.scores(MaskedRun(toy.model(), toy.task().subset(slice(1, 2))).nodes())
    shown = scores._repr_html_()
    assert 'title="a0.h1" style="background:rgba(0,114,178,0.600)' in shown  # 1.5 of the input's 2.5, and it helps
    assert 'title="a0.h0" style="background:rgba(213,94,0,0.000)' in shown
    assert 'title="input"' in shown
    assert "<th>h1</th>" in shown
    assert "MLP" not in shown
    edges = exact.scores(MaskedRun(toy.model(), toy.task()))
    assert "layer 0" not in edges._repr_html_()
