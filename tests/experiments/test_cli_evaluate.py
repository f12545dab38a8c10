"""`wiretrace evaluate`, `wiretrace trace`, and the levels of `wiretrace discover`."""

from __future__ import annotations

import json

import pytest

from graphs.circuit import Circuit
from tests.experiments.test_cli_bad_input import refused


def test_a_run_is_judged_on_its_own_terms(finished_run, wiretrace, tmp_path):
    shown = wiretrace("evaluate", finished_run, "--out", tmp_path / "judged.json")
    assert shown.exit_code == 0, shown.stderr
    record = json.loads((tmp_path / "judged.json").read_text())
    before = json.loads((finished_run / "report.json").read_text())["evaluation"]
    for name in ("prompts", "clean", "ablated", "circuit", "complement", "faithfulness"):
        assert record["report"][name] == pytest.approx(before[name])
    assert f"faithfulness {before['faithfulness']:.1%}" in shown.stdout
    assert record["tests"] == record["curves"] == {}


def test_everything_at_once(finished_run, wiretrace, tiny_model, discover, tmp_path):
    assert discover(tmp_path / "atp", "--method", "atp", "--n", 30).exit_code == 0
    words = ("--minimality", "--knockout", "--tests", "--curve", "--truth", finished_run, "--prompts", 6)
    files = ("--out", tmp_path / "all.json", "--figure", tmp_path / "curve.svg")
    shown = wiretrace("evaluate", tmp_path / "atp", *words, *files)
    assert shown.exit_code == 0, shown.stderr
    for word in ("minimality:", "knock-out:", "equivalence: p =", "CPR", "CMD", "against the true circuit:"):
        assert word in shown.stdout
    record = json.loads((tmp_path / "all.json").read_text())
    assert set(record["tests"]) == {"equivalence", "independence", "minimality", "sufficiency", "necessity"}
    assert set(record["curves"]) == {"absolute", "signed"}
    true, found = (Circuit.load(run / "circuit.json") for run in (finished_run, tmp_path / "atp"))
    assert record["recovery"]["edges"]["found_and_true"] == len(set(true.edges) & set(found.edges))
    assert record["recovery"]["edge_roc"]["positives"] == true.n_edges
    assert "share of edges kept" in (tmp_path / "curve.svg").read_text()


def test_a_file_needs_a_task(finished_run, wiretrace, tiny_model, tmp_path):
    path = tmp_path / "theirs.json"
    path.write_bytes((finished_run / "circuit.json").read_bytes())
    assert "expected --task" in refused(wiretrace("evaluate", path))
    words = ("--task", "ioi", "--model", tiny_model, "--prompts", 8)
    assert wiretrace("evaluate", path, *words).stdout == wiretrace("evaluate", finished_run).stdout


def test_what_evaluate_refuses(finished_run, wiretrace, tmp_path):
    assert "there is no run or file" in refused(wiretrace("evaluate", tmp_path / "nowhere"))
    assert "scores.json for --curve" in refused(wiretrace("evaluate", finished_run, "--curve"))
    assert "circuit of a model" in refused(wiretrace("evaluate", finished_run, "--model", "zoo:ioi"))
    assert "own model only" in refused(wiretrace("evaluate", finished_run, "--truth", "ioi"))
    said = refused(wiretrace("evaluate", finished_run, "--truth", "ioii"))
    assert "name a reference circuit: docstring" in said
    assert "Did you mean ioi" in said
    figure = wiretrace("evaluate", finished_run, "--figure", tmp_path / "x.svg")
    assert figure.exit_code == 1
    assert "expected --curve with --figure" in figure.stderr


def test_the_course_of_a_search(finished_run, wiretrace, tmp_path):
    for upto in ((), ("--upto", 20)):
        shown = wiretrace("trace", finished_run, "--out", tmp_path / "trace.svg", *upto)
        assert shown.exit_code == 0, shown.stderr
        assert shown.stdout.strip() == str(tmp_path / "trace.svg")
    assert "decision (20 in" in (tmp_path / "trace.svg").read_text()
    assert "is not one" in refused(wiretrace("trace", tmp_path))


@pytest.mark.parametrize(
    ("words", "level"),
    [
        (("--level", "node"), "node"),
        (("--positions",), "edge by position"),
        (("-o", "merged=true", "-o", "order=shuffle"), "edge"),
    ],
)
def test_what_a_search_decides_on(discover, wiretrace, tmp_path, words, level):
    out = tmp_path / "run"
    assert discover(out, "--tau", 0.05, *words).exit_code == 0
    circuit = Circuit.load(out / "circuit.json")
    assert circuit.provenance["level"] == level
    assert all((edge.position is not None) == ("--positions" in words) for edge in circuit.edges)
    again = wiretrace("run", out / "config.toml", "--out", tmp_path / "again")
    assert again.exit_code == 0, again.stderr
    assert Circuit.load(tmp_path / "again" / "circuit.json").edges == circuit.edges


@pytest.mark.parametrize(
    ("words", "nodes"), [(("--level", "node", "--n", 3), 4), (("--selection", "greedy", "--n", 9), None)]
)
def test_how_scores_become_a_circuit(discover, tmp_path, words, nodes):
    out = tmp_path / "run"
    assert discover(out, "--method", "atp", *words).exit_code == 0
    circuit = Circuit.load(out / "circuit.json")
    selection = circuit.provenance["selection"]
    assert selection["method"] == ("top_nodes" if nodes else "greedy_edges")
    assert circuit.prune().edges == circuit.edges
    assert "dead_ends_removed" in selection
    if nodes:
        assert len(circuit.nodes) <= nodes + 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--level", "neuron"), "expected a level out of edge, node for acdc"),
        (("--method", "atp", "--positions"), "takes all positions together; acdc can"),
        (("--signed",), "expected no signed: acdc decides by itself"),
        (("--method", "atp", "--selection", "gready"), "Did you mean greedy"),
        (("--method", "atp", "--level", "node", "--selection", "greedy"), "expected the selection top for nodes"),
        (("--method", "atp", "--level", "node", "--n", 99), "the nodes of this model; got 99"),
        (("-o", "order=backwards"), "expected an order out of paper"),
    ],
)
def test_levels_and_selections_that_are_refused(discover, tmp_path, words, message):
    assert message in refused(discover(tmp_path / "run", *words))


def test_trained_constants_from_file_to_circuit(discover, wiretrace, tiny_model, tmp_path):
    path = tmp_path / "optimal.safetensors"
    few = ("--model", tiny_model, "--prompts", 8, "--held-out", 8, "--steps", 20)
    shown = wiretrace("ablation", "ioi", "--model", "zoo:ioi", "--out", path, *few)
    assert shown.exit_code == 0, shown.stderr
    assert "optimal" in shown.stdout
    assert "mean-clean" in shown.stdout
    assert discover(tmp_path / "run", "--ablation", path, "--tau", 0.01).exit_code == 0
    assert Circuit.load(tmp_path / "run" / "circuit.json").provenance["ablation"] == "optimal"
    judged = wiretrace("evaluate", tmp_path / "run")
    assert judged.exit_code == 0, judged.stderr
    assert "a trained constant" in (tmp_path / "run" / "report.md").read_text()


def test_constants_that_are_none(discover, wiretrace, tmp_path):
    assert "absent.safetensors" in refused(discover(tmp_path / "run", "--ablation", tmp_path / "absent.safetensors"))
    (tmp_path / "torn.safetensors").write_bytes(b"{}")
    assert "torn.safetensors" in refused(discover(tmp_path / "run", "--ablation", tmp_path / "torn.safetensors"))
    assert "expected --out to end in .safetensors" in refused(wiretrace("ablation", "ioi", "--out", tmp_path / "x.pt"))
    assert not (tmp_path / "run").exists()
    absent = tmp_path / "absent" / "x.safetensors"
    assert "in a folder that is there" in refused(wiretrace("ablation", "ioi", "--out", absent))


@pytest.mark.parametrize("name", ["theirs.pt", "theirs.mib.json"])
def test_importances_of_the_leaderboard_are_judged_here(discover, wiretrace, tiny_model, tmp_path, name):
    """What EAP-IG and MIB keep of a method: the same curve as from the run itself."""
    from circuits import mib
    from graphs.export import mib as text
    from patching.scores import Scores

    assert discover(tmp_path / "atp", "--method", "atp", "--n", 30).exit_code == 0
    scores, circuit = Scores.load(tmp_path / "atp" / "scores.json"), Circuit.load(tmp_path / "atp" / "circuit.json")
    effects = dict(zip(scores.units, scores.values.tolist(), strict=True))
    write = mib.write_pt if name.endswith(".pt") else text.write
    write(circuit, tmp_path / name, d_model=32, edges=effects)
    words = ("--task", "ioi", "--model", tiny_model, "--prompts", 8, "--curve", "--quiet")
    theirs, ours = wiretrace("evaluate", tmp_path / name, *words), wiretrace("evaluate", tmp_path / "atp", *words)
    assert theirs.exit_code == ours.exit_code == 0, theirs.stderr + ours.stderr
    after = "share of units"
    assert theirs.stdout.split(after)[1:] != []
    assert [part.split("note:")[0].splitlines()[:11] for part in theirs.stdout.split(after)[1:]] == [
        part.split("note:")[0].splitlines()[:11] for part in ours.stdout.split(after)[1:]
    ]


def test_a_method_on_other_prompts(finished_run, wiretrace, tmp_path):
    shown = wiretrace("stability", finished_run, "--resamples", 3, "--out", tmp_path / "stability.json")
    assert shown.exit_code == 0, shown.stderr
    record = json.loads((tmp_path / "stability.json").read_text())
    true = Circuit.load(finished_run / "circuit.json")
    assert set(record["whole"]) == {str(edge) for edge in true.edges}
    assert "3 resamples: Jaccard" in shown.stdout
    halves = wiretrace("stability", finished_run, "--resamples", 4, "--threshold", 0.75)
    assert halves.exit_code == 0, halves.stderr
    assert "expected by chance" in halves.stdout
    assert "threshold above 0.5" in refused(wiretrace("stability", finished_run, "--threshold", 0.2))
    assert "expected --task" in refused(wiretrace("stability", tmp_path))
