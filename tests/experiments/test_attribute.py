"""`wiretrace attribute`: the whole command on the model that ships, shards, interruptions, wrong settings."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import networkx as nx
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from circuits.coar import Attribution
from circuits.features.dictionary import create
from experiments.attribute import AttributeConfig, attribute, compute_shards, identify, saved
from experiments.cli import app
from experiments.config import load
from experiments.errors import BadConfig, BadRun, FolderTaken, Interrupted
from experiments.model_files import dictionary_digests

SMALL = AttributeConfig(task="ioi", model="zoo:ioi", samples=600, prompts=4, held_out=30)
RUNNER = CliRunner()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "ioi"
    attribute(SMALL, out=folder)
    return folder


def test_a_run_leaves_everything(made: Path) -> None:
    found = saved(made)
    names = {path.name for path in made.iterdir()}
    assert {"attribution.safetensors", "attribution.csv", "weights.svg", "correlation.svg", "report.md"} <= names
    assert {"config.toml", "env.json", "status.json", "samples", "attribution.graphml"} <= names
    assert Attribution.load(made / "attribution.safetensors").units == found.attribution.units
    frame = pd.read_csv(made / "attribution.csv")
    assert frame["component"][0] == "a2.h5"  # the name mover of the model that ships
    assert nx.read_graphml(made / "attribution.graphml").number_of_nodes() == 27
    page = (made / "report.md").read_text(encoding="utf-8")
    assert "weights.svg" in page
    assert "held-out" in page
    best = {row["method"]: row["correlation"] for row in found.correlations if abs(row["ablated"] - 0.1) < 1e-9}
    assert best["coar"] > 0.8 > best["gradient_times_parameter"]


def test_the_command_prints_it_and_shows_it_again(made: Path) -> None:
    result = RUNNER.invoke(app, ["show", str(made)])
    assert result.exit_code == 0, result.output
    assert "a2.h5" in result.output
    assert "held-out correlation" in result.output
    again = RUNNER.invoke(app, ["run", str(made / "config.toml"), "--out", str(made), "-q"])
    assert again.exit_code == 0, again.output
    assert again.output.strip().endswith(str(made))


def test_the_config_comes_back(made: Path) -> None:
    assert load(made / "config.toml") == SMALL
    record = json.loads((made / "env.json").read_text(encoding="utf-8"))
    assert "torch" in str(record)


def test_shards_of_several_processes_make_the_same_run(made: Path, tmp_path: Path) -> None:
    assert compute_shards(SMALL, range(2, 3), out=tmp_path) == 3
    out = tmp_path / "whole"
    for span in ("0:1", "1:3"):
        arguments = ["attribute", "ioi", "--model", "zoo:ioi", "--samples", "600", "--prompts", "4", "--held-out", "30"]
        result = RUNNER.invoke(app, [*arguments, "--shards", span, "--out", str(out), "-q"])
        assert result.exit_code == 0, result.output
    assert f"Shards 1 to 2 of 3 are in {out}" in result.output
    stamps = {path: path.stat().st_mtime_ns for path in (out / "samples").iterdir()}
    attribute(SMALL, out=out)
    assert {path: path.stat().st_mtime_ns for path in (out / "samples").iterdir()} == stamps
    first, second = (Attribution.load(folder / "attribution.safetensors") for folder in (made, out))
    assert torch.equal(first.weights, second.weights)


def test_interactions_and_the_stopping_rule(tmp_path: Path) -> None:
    arguments = [
        "attribute",
        "ioi",
        "--model",
        "zoo:ioi",
        "--components",
        "a2.h5,a0.h2,m0,m1",
        "--stop",
        "0.05",
        "--interactions",
    ]
    result = RUNNER.invoke(app, [*arguments, "--prompts", "3", "--held-out", "20", "--out", str(tmp_path / "x")])
    assert result.exit_code == 0, result.output
    assert {"growth.svg", "interactions.csv", "interactions.svg"} <= {path.name for path in (tmp_path / "x").iterdir()}
    assert len(pd.read_csv(tmp_path / "x" / "interactions.csv")) == 6
    page = (tmp_path / "x" / "report.md").read_text(encoding="utf-8")
    assert "rose by less than 0.05" in page
    assert "of 6 pairs" in page


def test_features_of_a_dictionary_that_ships(tmp_path: Path) -> None:
    arguments = [
        "attribute",
        "ioi",
        "--model",
        "zoo:ioi",
        "--components",
        "features",
        "--dictionaries",
        "zoo:ioi/resid_post2",
    ]
    settings = ["--samples", "400", "--prompts", "3", "--held-out", "20", "--out", str(tmp_path / "x")]
    result = RUNNER.invoke(app, [*arguments, *settings])
    assert result.exit_code == 0, result.output
    frame = pd.read_csv(tmp_path / "x" / "attribution.csv")
    assert len(frame) == 257
    assert all(name.startswith("r2.") for name in frame["component"])


def test_a_killed_run_goes_on(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    arguments = [
        "attribute",
        "ioi",
        "--model",
        "zoo:ioi",
        "--samples",
        "600",
        "--prompts",
        "4",
        "--held-out",
        "30",
        "--out",
        str(out),
    ]
    env = os.environ | {"PYTHONPATH": os.getcwd(), "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "experiments", *arguments], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as child:
        deadline = time.monotonic() + 120
        while not list(out.glob("samples/shard-*")) and time.monotonic() < deadline and child.poll() is None:
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
    assert list(out.glob("samples/shard-*.safetensors"))
    with pytest.raises(BadRun, match="unfinished"):
        saved(out)
    result = RUNNER.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    torch.testing.assert_close(saved(out).attribution.weights, saved(made).attribution.weights, rtol=1e-4, atol=1e-4)


def test_another_run_is_not_overwritten(made: Path) -> None:
    other = AttributeConfig(task="ioi", model="zoo:ioi", samples=601, prompts=4, held_out=30)
    before = (made / "attribution.safetensors").read_bytes()
    with pytest.raises(FolderTaken, match="another run"):
        attribute(other, out=made)
    assert (made / "attribution.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--keep", "1"], "strictly between 0 and 1"),
        (["--keep", "0"], "strictly between 0 and 1"),
        (["--estimator", "rigde"], "did you mean ridge"),
        (["--components", ""], "expected components"),
        (["--components", "heads,a9.h0"], "it has no a9.h0"),
        (["--samples", "5", "--stop", "0.1"], "either samples, or stop"),
        (["--shards", "3:1"], "FIRST:LAST"),
        (["--shards", "0:99", "--samples", "300"], "shards from 0 to 1"),
        (["--samples", "5", "--estimator", "normal_equations"], "ridge"),
        (["--device", "gpu"], "expected a device such as cpu"),
        (["--device", "cuda:x"], "expected a device such as cpu"),
        (["--model", ""], "expected the name of a model"),
        (["--samples", "1000000000000"], "expected samples to be from 1 to 1,000,000"),
        (["--prompts", "0"], "expected prompts to be from 1 to 1,000,000"),
        (["--held-out", "1"], "expected held-out to be from 2 to 1,000,000"),
        (["--dictionaries", "nowhere", "--components", "features"], "nowhere"),
    ],
)
def test_wrong_settings_are_one_sentence(arguments: list[str], message: str, tmp_path: Path) -> None:
    common = ["--prompts", "2", "--held-out", "5", "--out", str(tmp_path / "x")]
    result = RUNNER.invoke(app, ["attribute", "ioi", "--model", "zoo:ioi", *common, *arguments])
    assert result.exit_code == 1, result.output
    assert message.lower() in result.output.lower()
    assert "Traceback" not in result.output
    assert not (tmp_path / "x").exists()


def test_settings_out_of_a_file_are_checked() -> None:
    with pytest.raises(BadConfig, match="keeep"):
        AttributeConfig.from_dict({"task": "ioi", "model": "zoo:ioi", "keeep": 0.5})
    with pytest.raises(BadConfig, match="model is missing"):
        AttributeConfig.from_dict({"task": "ioi"})
    with pytest.raises(BadConfig, match="setting samples to be int"):
        AttributeConfig.from_dict({"task": "ioi", "model": "zoo:ioi", "samples": "many"})


def test_a_name_beyond_ascii_comes_back(tmp_path: Path) -> None:
    config = AttributeConfig(task="ioi", model="modèles/🜁", dictionaries="büro/m0", stop=1e-05)
    (tmp_path / "config.toml").write_text(config.to_toml(comments=("made",)), encoding="utf-8")
    assert load(tmp_path / "config.toml") == config


def test_a_dictionary_that_was_trained_again_makes_another_run(tmp_path: Path) -> None:
    assert "dictionary_files" not in identify(SMALL)
    name = str(tmp_path / "büro[1]")
    create("relu", d_in=4, n_features=8, seed=0).save(name)
    config = AttributeConfig("ioi", "zoo:ioi", components="features", dictionaries=f"{name}, zoo:ioi/mlp_out1")
    before = identify(config)["dictionary_files"]
    assert list(before) == [name, "zoo:ioi/mlp_out1"]
    assert all({"cfg.json", "sae_weights.safetensors"} <= set(files) for files in before.values())
    create("relu", d_in=4, n_features=8, seed=1).save(name)
    after = identify(config)["dictionary_files"]
    assert after[name] != before[name]
    assert after["zoo:ioi/mlp_out1"] == before["zoo:ioi/mlp_out1"]


def test_all_that_decides_what_a_dictionary_computes_has_a_digest(tmp_path: Path) -> None:
    for name in ("ae.pt", "config.json", "layer_0.safetensors", "notes.txt"):
        (tmp_path / name).write_text(name)
    assert set(dictionary_digests(str(tmp_path))) == {"ae.pt", "config.json", "layer_0.safetensors"}
    assert set(dictionary_digests(str(tmp_path / "layer_0.safetensors"))) == {"config.json", "layer_0.safetensors"}
    assert dictionary_digests(str(tmp_path / "nowhere")) == {}


def test_the_stopping_rule_keeps_the_masks_and_what_it_has_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = AttributeConfig(
        "ioi", "zoo:ioi", components="a2.h5,a0.h2,m0,m1", stop=0.05, masks="subset", keep=0.5, prompts=2, held_out=20
    )

    def stop(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr("circuits.coar.evaluation.attribution_of", stop)
        with pytest.raises(Interrupted, match="keeps what is done"):
            attribute(config, out=tmp_path / "x")
    (kept,) = (tmp_path / "x" / "samples").glob("shard-*.safetensors")
    stamp = kept.stat().st_mtime_ns
    found = attribute(config, out=tmp_path / "x").attribution
    assert kept.stat().st_mtime_ns == stamp
    assert found.provenance["options"]["masks"] == "subset"
    assert found.weights.sum(1).abs().max() < 1e-6  # as weights of subsets have it


def test_a_first_run_of_a_hub_model_goes_on(uncached: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = AttributeConfig("ioi", "zoo:ioi", components="a2.h5,m0", samples=20, prompts=2, held_out=5)

    def killed(*_args: object) -> None:
        raise SystemExit(9)

    with monkeypatch.context() as context:
        context.setattr("experiments.attribute.baselines", killed)
        with pytest.raises(SystemExit):
            attribute(config, out=tmp_path / "x")
    assert json.loads((tmp_path / "x" / "env.json").read_text())["model_files"]
    assert attribute(config, out=tmp_path / "x").folder == tmp_path / "x"


def test_results_that_are_gone_are_said_to_be_so(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(made, out)
    (out / "report.json").unlink()
    for words in (["show", str(out)], ["run", str(made / "config.toml"), "--out", str(out), "-q"]):
        result = RUNNER.invoke(app, words)
        assert result.exit_code == 1, result.output
        assert "there is no file" in result.output
        assert "Make the run again with --overwrite." in result.output
