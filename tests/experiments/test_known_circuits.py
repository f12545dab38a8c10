"""Methods against circuits that are known, from a config to the table."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest

from experiments import known_circuits
from experiments.errors import BadConfig, NoMemory
from experiments.known_circuits import SCHEMA, KnownCircuit, Row, compare, load, main, table, write
from graphs.errors import WiretraceError
from patching import compiled

CONFIGS = Path(__file__).parents[2] / "experiments" / "configs"
TEXT = """
schema = "wiretrace-known-circuit/1"
task = "reverse"
model = "zoo:reverse"
prompts = 8

[methods.acdc]
tau = [0.01, 1.0]

[methods.atp]

[methods.exact]
"""


def written(tmp_path: Path, text: str = TEXT) -> Path:
    path = tmp_path / "known.toml"
    path.write_text(text)
    return path


def test_every_config_of_the_schema_can_be_read() -> None:
    found = sorted(path for path in CONFIGS.glob("*.toml") if SCHEMA in path.read_text(encoding="utf-8"))
    assert len(found) >= 8
    for path in found:
        config = load(path)
        assert {"acdc", "hisp", "subnetwork_probing"} & set(config.methods)


def test_the_circuit_of_a_compiled_model_is_found(tmp_path: Path) -> None:
    rows = compare(load(written(tmp_path)))
    assert [(row.method, row.level) for row in rows] == [
        (method, level) for method in ("acdc", "atp", "exact") for level in ("edge", "node")
    ]
    acdc = rows[0]
    assert acdc.auc == 1.0  # one of the thresholds keeps the true edges and no other
    assert all(0.0 <= row.auc <= row.smooth_auc <= 1.0 for row in rows)


def test_a_level_on_which_everything_is_true_is_left_out() -> None:
    rows = compare(
        KnownCircuit(task="induction_by_hand", model="zoo:induction_by_hand", methods={"atp": {}}, prompts=8)
    )
    assert [row.level for row in rows] == ["edge"]
    assert "| – |" in table({"x": rows})


def test_what_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(written(tmp_path)), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "| comparison | acdc (edges) | atp (edges) | exact (edges) |" in shown
    folder = tmp_path / "out" / "known"
    record = json.loads((folder / "results.json").read_text())
    assert record["schema"] == "wiretrace-known-circuit-results/1"
    assert len(record["rows"]) == 6
    svg = (folder / "roc-edges.svg").read_text()
    assert {"acdc", "atp", "exact", "true positive rate"} <= set(re.findall(r">([^<>\n]+)</text>", svg))


def test_zero_ablation_asks_for_constants_too() -> None:
    options = {"task": "reverse", "model": "zoo:reverse", "methods": {"atp": {}}}
    few = known_circuits.reference(KnownCircuit(**options))
    more = known_circuits.reference(KnownCircuit(**options, ablation="zero"))
    assert set(few.edges) < set(more.edges)


def test_a_reference_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "truth.json"
    compiled.truth("reverse").save(path)
    config = KnownCircuit(task="reverse", model="zoo:reverse", methods={"atp": {}}, reference=str(path))
    assert known_circuits.reference(config).edges == compiled.truth("reverse").edges


def test_a_reference_by_name() -> None:
    config = KnownCircuit(task="reverse", model="zoo:reverse_trained", methods={"atp": {}}, reference="reverse_trained")
    assert known_circuits.reference(config).edges == compiled.truth("reverse_trained").edges


def test_the_best_of_each_level_is_bold() -> None:
    rows = [Row(method, level, auc, auc, (), 0.0) for method, level, auc in (
        ("a", "edge", 0.5), ("b", "edge", 0.75), ("a", "node", 0.9), ("b", "node", 0.9))]  # fmt: skip
    assert table({"x": rows}).splitlines()[2] == "| x | 0.500 | **0.750** | **0.900** | **0.900** |"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("wiretrace-known-circuit/1", "wiretrace-config/1", "expected schema"),
        ('task = "rev', 'tsk = "rev', r"Did you mean task\?"),
        ('task = "reverse"', "task = 3", "expected 'task' in the config, text"),
        ("prompts = 8", "prompts = 0", "expected prompts to be from 1"),
        ("[methods.atp]", "[methods.apt]", r"Did you mean atp\?"),
        ("tau = [0.01, 1.0]", "tua = 1.0", "options of acdc out of tau"),
        ("tau = [0.01, 1.0]", 'tau = [0.1]\norder = ["eap"]', "at most one list"),
        ("tau = [0.01, 1.0]", "tau = []", "one value for tau"),
        ("tau = [0.01, 1.0]", 'tau = [0.01, "x"]', "expected tau to be of type float; got 'x'"),
        ("tau = [0.01, 1.0]", "tau = -1.0", "expected tau to be 0 or more"),
        ("[methods.atp]", "[methods]\natp = 3", r"expected \[methods.atp\] to be a table of options; got 3"),
        ("prompts = 8", 'prompts = "8"', "the setting prompts to be a whole number; got '8'"),
        ("prompts = 8", "seed = true", "the setting seed to be a whole number; got True"),
        ("prompts = 8", "seed = -1", "expected seed to be from 0"),
        ("prompts = 8", "metric = 3", "the setting metric to be text; got 3"),
        ("prompts = 8", 'ablation = ["zero"]', "the setting ablation to be text"),
        ("prompts = 8", 'ablation = "mine.safetensors"', "an ablation"),
        ("prompts = 8", "reference = 3", "the setting reference to be text; got 3"),
        ("prompts = 8", "prompts = ", "expected a TOML file"),
        ("prompts = 8", 'reference = "nowhere.json"', "nowhere.json"),
        ("prompts = 8", 'reference = "reverse_traind"', r"Did you mean reverse_trained"),
        ('model = "zoo:reverse"', 'model = "zoo:ioi"', "expected a reference|token"),
    ],
)
def test_configs_that_are_none(tmp_path: Path, before: str, after: str, message: str) -> None:
    assert before in TEXT
    with pytest.raises((BadConfig, WiretraceError), match=message):
        compare(load(written(tmp_path, TEXT.replace(before, after))))


def test_too_little_memory_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(config: KnownCircuit) -> None:
        raise MemoryError

    monkeypatch.setattr(known_circuits, "prepare", prepare)
    with pytest.raises(NoMemory, match="needs more memory than there is"):
        compare(KnownCircuit(task="reverse", model="zoo:reverse", methods={"atp": {}}))


def test_sigterm_ends_it_as_ctrl_c_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_circuits, "prepare", lambda config: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        compare(KnownCircuit(task="reverse", model="zoo:reverse", methods={"atp": {}}))


def test_errors_are_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "absent.toml")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("Error: ")
    assert "absent.toml" in said


def test_nothing_is_written_for_a_bad_config(tmp_path: Path) -> None:
    with pytest.raises(WiretraceError):
        load(written(tmp_path, TEXT.replace("[methods.atp]", "[methods.apt]")))
    assert [path.name for path in tmp_path.iterdir()] == ["known.toml"]
    config = load(written(tmp_path))
    write(
        config, [Row("a", level, 0.5, 0.5, ((0.0, 0.0), (1.0, 1.0)), 0.0) for level in ("edge", "node")], tmp_path / "x"
    )
    assert {path.name for path in (tmp_path / "x").iterdir()} == {"results.json", "roc-edges.svg", "roc-nodes.svg"}


def test_on_the_command_line(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from experiments.cli import app

    path, out = written(tmp_path), tmp_path / "out"
    first = CliRunner().invoke(app, ["run", str(path), "--out", str(out)])
    assert first.exit_code == 0, first.output
    assert "| known |" in first.stdout
    assert (out / "results.json").is_file()
    for words in (["--workers", "2"], ["--retries", "1"], ["--ray-address", "here:1"], ["--executor", "workers"]):
        refused = CliRunner().invoke(app, ["run", str(path), "--out", str(tmp_path / "other"), *words])
        assert (refused.exit_code, "made in one piece" in refused.stderr) == (1, True)
    again = CliRunner().invoke(app, ["run", str(path), "--out", str(out)])
    assert again.exit_code == 1
    assert "is not empty" in again.stderr
    assert CliRunner().invoke(app, ["run", str(path), "--out", str(out), "--overwrite", "-q"]).stdout.strip() == str(
        out
    )
