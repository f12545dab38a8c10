"""`wiretrace` from end to end on a tiny random model: what it writes, prints and repeats."""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from circuits.methods import METHODS
from experiments import saved_runs
from experiments.config import load
from graphs.circuit import Circuit

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformer_lens", "transformers", "pandas")


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_demo_finds_a_circuit_of_the_model_that_ships(wiretrace, monkeypatch, tmp_path):
    """As `make demo`, with fewer prompts and a larger tau."""
    monkeypatch.chdir(tmp_path)
    result = wiretrace("discover", "ioi", "--tau", 0.1, "--prompts", 16, "--held-out", 32)
    assert result.exit_code == 0, result.stderr
    found = read(tmp_path / "runs" / "ioi" / "report.json")["evaluation"]
    assert found["n_edges"] < 0.2 * found["n_possible"]
    assert found["faithfulness"] > 0.7
    assert found["random_faithfulness"] < 0.2
    assert abs(found["completeness_gap"]) < 0.2


# ------------------------------------------------------------------------------------------------- a finished run


def test_a_run_leaves_every_file_and_nothing_else(finished_run):
    assert sorted(path.name for path in finished_run.iterdir()) == [
        "circuit.graphml", "circuit.html", "circuit.json", "circuit.svg", "config.toml", "decisions.jsonl", "env.json",
        "log.jsonl", "report.json", "report.md", "status.json",
    ]  # fmt: skip
    assert read(finished_run / "status.json")["state"] == "finished"


def test_the_circuit_is_the_one_that_the_library_finds(finished_run, tiny_model):
    from circuits import acdc, tasks
    from circuits.evaluation import evaluate
    from patching import LensModel, MaskedRun

    model = LensModel.load(tiny_model)
    search = MaskedRun(model, tasks.ioi.make(model, n=8, seed=0, split="train"))
    held_out = MaskedRun(model, tasks.ioi.make(model, n=8, seed=0, split="held-out"))
    expected = acdc.search(search, tau=0.002)
    found = Circuit.load(finished_run / "circuit.json")
    assert 5 < found.n_edges < 105
    assert found.edges == expected.edges
    assert dict(found.scores) == dict(expected.scores)
    assert read(finished_run / "report.json")["evaluation"] == json.loads(
        json.dumps(evaluate(held_out, expected, seed=0).to_dict())
    )


def test_provenance_says_how_the_circuit_came_about(finished_run, tiny_model):
    provenance = Circuit.load(finished_run / "circuit.json").provenance
    assert provenance["method"] == "acdc"
    assert provenance["options"]["tau"] == 0.002
    assert provenance["model"] == str(tiny_model)
    assert (provenance["seed"], provenance["split"], provenance["prompts"]) == (0, "train", 8)
    assert set(provenance["model_files"]) >= {"config.json", "model.safetensors", "tokenizer.json"}


def test_the_environment_is_recorded(finished_run):
    record = read(finished_run / "env.json")
    assert record["versions"]["torch"].startswith("2.")
    assert record["device"] == "cpu" or record["device"].startswith("cuda")
    assert re.fullmatch(r"[0-9a-f]{64}", record["model_files"]["model.safetensors"])
    assert record["seeds"]["prompts"] == 0


def test_the_log_holds_one_decision_for_every_edge(finished_run):
    head, *rows = [json.loads(line) for line in (finished_run / "decisions.jsonl").read_text().splitlines()]
    circuit = Circuit.load(finished_run / "circuit.json")
    assert head["schema"] == "wiretrace-decisions/3"
    assert len(rows) == len({row["name"] for row in rows}) == circuit.n_possible
    assert {row["name"] for row in rows if row["kept"]} == {str(edge) for edge in circuit.edges}


def test_the_page_says_what_was_found(finished_run):
    page = (finished_run / "report.md").read_text(encoding="utf-8")
    found = read(finished_run / "report.json")["evaluation"]
    assert f"{found['n_edges']:,} of 110 edges" in page
    assert f"{found['faithfulness']:.1%}" in page
    assert f"{found['random_faithfulness']:.1%}" in page
    strongest = read(finished_run / "report.json")["strongest"][0]
    assert f"| `{strongest['edge']}` | {strongest['effect']:+.3f} |" in page
    for word in ("Ablated", "Faithfulness", "Effect", "Interval", "arXiv 2304.14997", "circuit.svg"):
        assert word in page


def test_every_command_on_the_page_is_one(finished_run, wiretrace):
    page = (finished_run / "report.md").read_text(encoding="utf-8")
    commands = re.search(r"```sh\n(.*?)```", page, flags=re.S)
    assert commands
    for line in commands[1].splitlines():
        name, *words = shlex.split(line)
        assert name == "wiretrace"
        names = {word for word in words[1:] if word.startswith("--")}
        shown = wiretrace(words[0], "--help").stdout
        assert names <= set(re.findall(r"--[a-z-]+", shown))


def test_the_python_on_the_page_runs(finished_run):
    page = (finished_run / "report.md").read_text(encoding="utf-8")
    program = re.search(r"```python\n(.*?)```", page, flags=re.S)
    assert program
    names: dict = {}
    exec(program[1], names)
    assert names["graph"].number_of_edges() == names["circuit"].n_edges


# --------------------------------------------------------------------------------------------------- doing it again


def test_the_same_settings_give_the_same_bytes(finished_run, discover, tmp_path):
    result = discover(tmp_path / "again")
    assert result.exit_code == 0, result.stderr
    for name in ("circuit.json", "circuit.graphml", "circuit.svg", "config.toml"):
        assert (tmp_path / "again" / name).read_bytes() == (finished_run / name).read_bytes(), name


def test_a_config_file_makes_its_run_again(finished_run, wiretrace, tmp_path):
    result = wiretrace("run", finished_run / "config.toml", "--out", tmp_path / "again", "--quiet")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip() == str(tmp_path / "again")
    assert (tmp_path / "again" / "circuit.json").read_bytes() == (finished_run / "circuit.json").read_bytes()
    assert load(tmp_path / "again" / "config.toml") == load(finished_run / "config.toml")


def test_a_finished_run_is_shown_and_not_run_again(finished_run, discover, monkeypatch):
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in finished_run.iterdir()}
    monkeypatch.setattr("experiments.discover.prepare", lambda *a, **k: pytest.fail("loaded the model"))
    for flags in ((), ("--resume",)):
        result = discover(finished_run, *flags)
        assert result.exit_code == 0
        assert "already, finished" in result.stderr
        assert "faithfulness" in result.stdout
    assert before == {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in finished_run.iterdir()}


def test_overwrite_replaces_another_run_and_keeps_notes(discover, wiretrace, tmp_path):
    out = tmp_path / "run"
    assert discover(out, "--method", "atp", "--n", 20).exit_code == 0
    assert wiretrace("export", out, "--to", "png").exit_code == 0
    (out / "notes.txt").write_text("mine")
    assert {"scores.json", "circuit.png"} <= {path.name for path in out.iterdir()}
    assert discover(out, "--overwrite").exit_code == 0
    names = {path.name for path in out.iterdir()}
    assert "notes.txt" in names
    assert not {"scores.json", "circuit.png"} & names


# ---------------------------------------------------------------------------------------------------- other methods


EDGE_SCORES = [name for name, method in METHODS.items() if method.gives == "scores" and "edge" in method.levels]


def test_a_method_that_scores_nodes_alone_leaves_a_circuit_of_nodes(discover, tmp_path):
    from patching import Scores

    result = discover(tmp_path / "run", "--method", "coar", "--n", 5, "--option", "samples=100")
    assert result.exit_code == 0, result.stderr
    circuit, scores = Circuit.load(tmp_path / "run" / "circuit.json"), Scores.load(tmp_path / "run" / "scores.json")
    kept = {str(node) for node in circuit.nodes if node.kind != "kv"} - {"input", "logits"}
    assert kept <= {str(node) for node in scores.top(5)}
    assert scores.provenance["options"]["samples"] == 100


@pytest.mark.parametrize("method", EDGE_SCORES)
def test_methods_that_score_leave_their_scores(discover, tmp_path, method):
    from patching import Scores

    result = discover(tmp_path / "run", "--method", method, "--n", 20)
    assert result.exit_code == 0, result.stderr
    circuit, scores = Circuit.load(tmp_path / "run" / "circuit.json"), Scores.load(tmp_path / "run" / "scores.json")
    assert circuit.n_edges <= 20
    assert {str(edge) for edge in circuit.edges} <= {str(edge) for edge in scores.top(20)}
    assert scores.provenance["method"] == method
    assert scores.provenance["seed"] == 0
    assert not (tmp_path / "run" / "decisions.jsonl").exists()
    assert "scores.json" in result.stdout


def test_options_of_a_method_reach_it(discover, tmp_path):
    result = discover(tmp_path / "run", "-o", "absolute=true", "--ablation", "mean", "--metric", "kl")
    assert result.exit_code == 0, result.stderr
    provenance = Circuit.load(tmp_path / "run" / "circuit.json").provenance
    assert provenance["options"]["absolute"] is True
    assert (provenance["ablation"], provenance["metric"]) == ("mean", "kl")
    config = load(tmp_path / "run" / "config.toml")
    assert (config.options, config.ablation, config.metric) == ({"tau": 0.002, "absolute": True}, "mean", "kl")


def test_a_circuit_without_edges_is_a_result(discover, tmp_path):
    result = discover(tmp_path / "run", "--tau", 1000)
    assert result.exit_code == 0, result.stderr
    assert "0 of 110 edges" in result.stdout
    assert "No edge was kept" in result.stdout
    assert Circuit.load(tmp_path / "run" / "circuit.json").n_edges == 0


# --------------------------------------------------------------------------------------------------------- terminal


def test_the_terminal_shows_a_table_and_the_figure(discover, tmp_path):
    result = discover(tmp_path / "run")
    assert result.exit_code == 0
    for word in ("size", "faithfulness", "95 % interval", "random circuits", "time", "report.md"):
        assert word in result.stdout
    assert result.stdout.splitlines()[-2:] == [
        f"Figure: {tmp_path / 'run' / 'circuit.svg'}",
        f"Interactive page: {tmp_path / 'run' / 'circuit.html'}",
    ]
    assert "Loading" in result.stderr
    assert "\r" not in result.stderr, "a bar has no place in a pipe"


def test_quiet_prints_the_folder_alone(discover, tmp_path):
    result = discover(tmp_path / "run", "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{tmp_path / 'run'}\n", "")


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals on this system")
def test_a_terminal_gets_a_bar_with_the_time_left(monkeypatch):
    """Also one that does not know its own size, such as this one."""
    from experiments.progress_display import display

    main, terminal = os.openpty()
    with os.fdopen(terminal, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with display(quiet=False).steps("acdc", unit="edge", done=40) as progress:
            progress(41, 100)
            progress(100, 100)
        shown = ""
        while "100/100" not in shown and select.select([main], [], [], 5)[0]:  # a terminal hands on when it likes
            shown += os.read(main, 10_000).decode()
    os.close(main)
    assert "acdc: 100%" in shown
    assert "100/100 [00:00<00:00" in shown


def test_a_pipe_gets_a_line_now_and_then():
    import io

    from experiments.progress_display import Lines

    stream = io.StringIO()
    with Lines(stream, between=0.0).steps("acdc", unit="edge", done=40) as progress:
        progress(70, 100)
        progress(100, 100)
    assert re.fullmatch(r"acdc: 70 of 100 edges \(70%\), about [0-9.]+ s left\n", stream.getvalue())


# ---------------------------------------------------------------------------------------------------- looking at runs


def test_show_prints_what_the_run_printed(finished_run, wiretrace):
    result = wiretrace("show", finished_run)
    assert result.exit_code == 0
    assert "faithfulness" in result.stdout
    strongest = read(finished_run / "report.json")["strongest"]
    assert len(strongest) == 15
    for row in strongest:
        assert row["edge"] in result.stdout


@pytest.mark.parametrize("suffix", ["graphml", "svg", "pdf", "png", "json"])
def test_export_writes_each_format(finished_run, wiretrace, tmp_path, suffix):
    out = tmp_path / f"figure.{suffix}"
    result = wiretrace("export", finished_run, "--to", suffix, "--out", out)
    assert (result.exit_code, result.stdout) == (0, f"{out}\n"), result.stderr
    assert out.stat().st_size > 100
    if suffix == "json":
        assert out.read_bytes() == (finished_run / "circuit.json").read_bytes()


def test_export_takes_a_circuit_file_and_reads_the_format_off_the_name(finished_run, wiretrace, tmp_path):
    circuit = tmp_path / "mine.json"
    circuit.write_bytes((finished_run / "circuit.json").read_bytes())
    assert wiretrace("export", circuit, "--out", tmp_path / "a.svg").exit_code == 0
    assert wiretrace("export", circuit, "--to", "svg").stdout == f"{tmp_path / 'mine.svg'}\n"
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "mine.svg").read_bytes()


def test_compare_says_what_two_circuits_share(finished_run, wiretrace, tmp_path):
    circuit = Circuit.load(finished_run / "circuit.json")
    fewer = Circuit(circuit.architecture, circuit.edges[1:])
    fewer.save(tmp_path / "fewer.json")
    result = wiretrace("compare", finished_run, tmp_path / "fewer.json")
    assert result.exit_code == 0
    assert f"only a: {circuit.edges[0]}" in result.stdout
    assert f"{(circuit.n_edges - 1) / circuit.n_edges:.3f}" in result.stdout


# ------------------------------------------------------------------------------------------------------ what there is


def test_listings_name_everything(wiretrace):
    assert "ioi" in wiretrace("tasks").stdout
    shown = wiretrace("methods").stdout
    for name, method in METHODS.items():
        assert name in shown
        assert method.source.split(",")[0] in shown
    assert "Gemma" in wiretrace("models").stdout


def test_models_tell_size_and_accuracy(wiretrace, tiny_model, tmp_path, monkeypatch):
    (tmp_path / "ioi").symlink_to(tiny_model)
    (tmp_path / "copy").mkdir()
    for path in tiny_model.iterdir():
        (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
    record = {"task": "ioi", "accuracy": {"ioi": {"train": {"accuracy": 1}, "held-out-pairs": {"accuracy": 0.981}}}}
    (tmp_path / "copy" / "training.json").write_text(json.dumps(record))
    monkeypatch.setattr("experiments.model_files.ZOO", tmp_path)
    shown = wiretrace("models").stdout
    assert "98.1% (held-out-pairs)" in shown
    assert "not recorded" in shown
    assert "2 layers, 4 heads, width 32" in shown
    from transformers import GPT2LMHeadModel

    assert f"{GPT2LMHeadModel.from_pretrained(tiny_model).num_parameters():,}" in shown


def test_every_command_explains_itself(wiretrace):
    overview = wiretrace("--help").stdout
    for name in ("discover", "patch", "run", "show", "export", "compare", "models", "tasks", "methods", "env"):
        assert name in overview
        result = wiretrace(name, "--help")
        assert result.exit_code == 0
        assert "Usage" in result.stdout
    assert wiretrace("--version").stdout.startswith("wiretrace 0.")


def test_nothing_but_a_run_imports_torch(finished_run, tmp_path):
    """Looked up in a fresh process, after each command; the clock would prove less."""
    commands = [
        ["--help"], ["--version"], ["discover", "--help"], ["models"], ["tasks"], ["methods"], ["env"],
        ["show", str(finished_run)], ["compare", str(finished_run), str(finished_run)],
        ["export", str(finished_run), "--out", str(tmp_path / "a.json")],
        ["export", str(finished_run), "--out", str(tmp_path / "a.graphml")],
        ["discover", "io"], ["discover", "ioi", "--model", "gpt2", "--tau", "-1"],
        ["discover", "ioi", "--model", "gpt2", "--out", str(finished_run)],
    ]  # fmt: skip
    program = (
        "import json, sys\n"
        "from experiments.cli import app\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    try:\n"
        "        app(words, prog_name='wiretrace')\n"
        "    except SystemExit:\n"
        "        pass\n"
        f"    loaded = sorted(set({HEAVY!r}) & set(sys.modules))\n"
        "    if loaded:\n"
        "        sys.exit(f'{words} loads {loaded}')\n"
        "print('nothing heavy')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, json.dumps(commands)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.stdout.endswith("nothing heavy\n"), result.stderr


def test_the_module_is_the_command():
    result = subprocess.run(
        [sys.executable, "-m", "experiments", "tasks"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert "ioi" in result.stdout


def test_saved_runs_are_read_whole(finished_run):
    made = saved_runs.saved(finished_run)
    assert made.status.state == "finished"
    assert saved_runs.circuit_at(finished_run) == saved_runs.circuit_at(finished_run / "circuit.json")
