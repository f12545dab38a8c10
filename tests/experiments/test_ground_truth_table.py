"""The comparison of methods with circuits that are known, and compiled models on the command line."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from experiments import ground_truth_table, known_scores
from experiments.config import Config, default_model, require_shipped
from experiments.errors import UnknownName
from experiments.ground_truth_table import Found, Row, _recall_at_n, measure, table
from experiments.model_files import digests, known_zoo
from graphs.circuit import Circuit
from patching import MaskedRun, compiled
from patching.compiled import PROGRAMS
from patching.errors import InvalidOption

GUIDE = Path(__file__).parents[2] / "docs" / "ground-truth.md"


@pytest.fixture(scope="module")
def rows() -> dict[str, Row]:
    return {name: measure(name) for name in ("and_gate", "or_gate", "negative_head", "induction_by_hand", "count")}


def test_and_is_found_whole(rows: dict[str, Row]) -> None:
    row = rows["and_gate"]
    assert (row.edges, row.true) == (13, 5)
    assert (row.acdc.precision, row.acdc.recall, row.absolute.f1) == (1.0, 1.0, 1.0)
    assert (row.exact, row.eap, row.eap_recall, row.unseen) == (1.0, 1.0, 1.0, 0)


def test_of_or_one_branch_is_found(rows: dict[str, Row]) -> None:
    """3 of 5 edges; one at a time, only the edge to the logits matters: (1 · 8 + 4 · 8 / 2) / 40 = 0.6."""
    row = rows["or_gate"]
    assert (row.acdc.precision, row.acdc.recall) == (1.0, 0.6)
    assert row.absolute == row.acdc
    assert row.exact == pytest.approx(0.6)


def test_a_negative_head_is_found_by_absolute_changes_alone(rows: dict[str, Row]) -> None:
    assert (rows["negative_head"].acdc.precision, rows["negative_head"].acdc.recall) == (1.0, 0.5)
    assert rows["negative_head"].absolute.f1 == 1.0


def test_edge_attribution_is_blind_to_saturated_selectors_and_steps(rows: dict[str, Row]) -> None:
    """By hand: what goes through the pattern of the induction head, and through the count, has no slope."""
    assert rows["induction_by_hand"].unseen == 3
    assert rows["count"].unseen == 2
    assert rows["count"].eap == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert rows["induction_by_hand"].exact == rows["count"].exact == 1.0


def test_ties_share_the_room() -> None:
    scores = torch.tensor([3.0, 1.0, 1.0, 1.0, 0.0])
    assert _recall_at_n(scores, torch.tensor([True, True, False, False, False])) == pytest.approx((1 + 1 / 3) / 2)
    assert _recall_at_n(scores, torch.tensor([True, True, True, True, False])) == 1.0
    assert _recall_at_n(scores, torch.tensor([False, False, False, False, True])) == 0.0


def test_f1_of_nothing_is_nothing() -> None:
    assert Found(0.1, 0.0, 0.0).f1 == 0.0


def test_the_guide_holds_the_table_that_is_measured(rows: dict[str, Row]) -> None:
    text = GUIDE.read_text(encoding="utf-8")
    for line in table(rows.values()).splitlines():
        assert line in text
    for program in PROGRAMS.values():
        assert f"| `{program.name}` |" in text
        if program.note:
            assert program.note in text


def test_the_script_prints_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["ground_truth_table", "copy_token", "--prompts", "4"])
    assert ground_truth_table.main() == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3
    assert printed[2].startswith("| `copy_token` | 5 | 1 | 1.00 |")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reverse_ln"], "expected a program out of .* got 'reverse_ln'"),
        (["revers"], "Did you mean reverse"),
        (["--table", "trained", "reverse_trained"], "a program with a trained model .* got 'reverse_trained'"),
        (["--table", "models", "copy_token"], "a program with a trained model .* got 'copy_token'"),
        (["--table", "auroc", "--sharpness", "20", "and_gate"], "expected --sharpness with --table circuits alone"),
        (["--sharpness", "0", "and_gate"], "sharpness to be a positive number; got 0"),
        (["--sharpness", "nan", "and_gate"], "sharpness to be a positive number; got nan"),
        (["--prompts", "0", "and_gate"], "expected"),
        (["--table", "auroc", "--prompts", "0", "and_gate"], "expected"),
        (["--table", "trained", "--prompts", "-1", "reverse"], "expected"),
    ],
)
def test_what_cannot_be_measured_is_a_sentence(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert ground_truth_table.main(words) == 1
    said = capsys.readouterr()
    assert re.search(rf"^Error: .*{message}", said.err)
    assert not said.out


def test_less_sharp_heads_have_a_slope(rows: dict[str, Row]) -> None:
    """With 20 instead of 200, the pattern of the induction head is no step, and EAP sees through it."""
    assert measure("induction_by_hand", sharpness=20.0, taus=(1.0,)).unseen < rows["induction_by_hand"].unseen


# --- every method -----------------------------------------------------------------------------------------------------


def test_rankings_by_hand() -> None:
    """Of 8 edges 3 are true; EAP sees one, exact sees all, ACDC keeps all at every threshold, chance is chance."""
    (row,) = ground_truth_table.edge_rankings(["count"], prompts=32, seed=0)
    assert (row.name, row.unit, row.units, row.true) == ("count", "edges", 8, 3)
    assert row.auroc["exact"] == row.auroc["acdc"] == 1.0
    assert row.auroc["atp"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    text = GUIDE.read_text(encoding="utf-8")
    assert known_scores.table([row]).splitlines()[2] in text
    assert known_scores.table([row]).splitlines()[0] in text


def test_the_guide_holds_the_rankings_that_are_measured() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    rows = list(ground_truth_table.edge_rankings(["or_gate", "third_back", "negative_head"], prompts=32, seed=0))
    for line in known_scores.table(rows).splitlines()[2 : 2 + len(rows)]:
        assert line in text


def test_the_guide_holds_what_is_measured_on_a_trained_model() -> None:
    nodes, pairs = ground_truth_table.trained_rankings(["reverse"], prompts=32, seed=0)
    assert (nodes[0].units, nodes[0].true) == (10, 3)
    assert (pairs[0].units, pairs[0].true) == (6, 3)
    assert nodes[0].auroc["exact"] == 1.0
    assert nodes[0].auroc["information_flow"] is None
    text = GUIDE.read_text(encoding="utf-8")
    for rows in (nodes, pairs):
        assert known_scores.table(rows).splitlines()[2] in text


def test_a_model_with_one_node_has_no_pairs_to_tell_apart() -> None:
    nodes, pairs = ground_truth_table.trained_rankings(["previous_token"], prompts=8, seed=0)
    assert len(nodes) == 1
    assert not pairs


def test_methods_that_find_circuits_alone_are_not_ranked() -> None:
    run = MaskedRun(compiled.model("and_gate"), compiled.task("and_gate", n=4))
    with pytest.raises(InvalidOption, match="edge_pruning gives a circuit"):
        known_scores.scores_of("edge_pruning", run, taus=(0.1,))


def test_the_guide_holds_every_trained_model() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    table = ground_truth_table.printed("models", [], prompts=1, seed=0, sharpness=None)
    assert table in text
    assert table.count("`zoo:") == len(compiled.trained_names()) >= 5


# --- compiled models on the command line ----------------------------------------------------------------------------


def test_discover_finds_the_circuit_of_a_compiled_model(wiretrace, tmp_path) -> None:
    result = wiretrace("discover", "reverse", "--prompts", 16, "--held-out", 8, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    found = Circuit.load(tmp_path / "run" / "circuit.json")
    assert found.edges == compiled.truth("reverse").edges
    assert found.provenance["model"] == "zoo:reverse"
    assert "programs.py" in json.loads((tmp_path / "run" / "circuit.json").read_text())["provenance"]["model_files"]


def test_models_and_tasks_list_what_is_compiled(wiretrace) -> None:
    shown = wiretrace("models").stdout
    assert "5 of 13 edges" in shown
    assert all(name in shown for name in compiled.zoo_names())
    assert PROGRAMS["xproportion"].description[:20] in wiretrace("tasks").stdout


def test_compiled_models_are_the_default_of_their_task() -> None:
    assert default_model("two_hop") == "zoo:two_hop"
    require_shipped("zoo:two_hop")
    assert set(compiled.zoo_names()) <= set(known_zoo())
    with pytest.raises(UnknownName, match="Did you mean zoo:two_hop"):
        require_shipped("zoo:to_hop")
    Config("two_hop", "zoo:two_hop")


def test_the_digest_of_a_compiled_model_is_that_of_its_source() -> None:
    assert {"compiler.py", "language.py", "programs.py", "wiring.py"} <= set(digests("zoo:reverse"))
    assert digests("zoo:reverse") == digests("zoo:and_gate")
