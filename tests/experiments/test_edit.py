"""`wiretrace edit`: from an attribution to a saved edit that does what the table says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from circuits import tasks
from circuits.coar import Edit
from experiments.attribute import AttributeConfig, attribute
from experiments.cli import app
from experiments.edit import edit, target_rows
from experiments.errors import BadConfig
from patching import ComponentRun, LensModel

RUNNER = CliRunner()
CONFIG = AttributeConfig(
    task="ioi", model="zoo:ioi", components="neurons", ablation="zero", samples=700, prompts=6, held_out=10
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "ioi"
    attribute(CONFIG, out=folder)
    return folder


def test_an_edit_does_what_it_says(run: Path, tmp_path: Path) -> None:
    made = edit(run, targets="lowest:1", direction="raise", out=tmp_path / "edit.json", most=20)
    (name, count, before, after), *others = made.rows
    assert (name, count) == ("targets", 1)
    assert after > before
    assert len(made.edit) == made.choice.k > 0
    assert others[0][3] >= others[0][2] - 0.0501 * abs(others[0][2])  # validation prompts keep 95 %
    again = Edit.load(tmp_path / "edit.json")
    assert again == made.edit
    model = LensModel.load("zoo:ioi", device="cpu")
    task = tasks.ioi.make(model, n=6, seed=0, split="train")
    rows = again.provenance["rows"]
    whole = ComponentRun(model, task, components=("neurons",), ablation="zero")
    assert whole.clean_metric[rows].mean().item() == pytest.approx(before, abs=1e-4)
    with again.applied(model):
        edited = ComponentRun(model, task, components=("neurons",), ablation="zero").clean_metric
    assert edited[rows].mean().item() == pytest.approx(after, abs=1e-3)
    assert torch.equal(ComponentRun(model, task).clean_metric, whole.clean_metric)


def test_the_command(run: Path, tmp_path: Path) -> None:
    arguments = ["edit", str(run), "--targets", "0,1", "--direction", "lower", "--most", "5"]
    result = RUNNER.invoke(app, [*arguments, "--out", str(tmp_path / "e.json")])
    assert result.exit_code == 0, result.output
    assert "held-out prompts" in result.output
    quiet = RUNNER.invoke(app, [*arguments, "-q"])
    assert quiet.output.strip().endswith("edit.json")
    assert (run / "edit.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--targets", "99"], "prompts from 0 to 5"),
        (["--targets", "lowest:6"], "N below 6"),
        (["--targets", "0,1,2,3,4,5"], "no targets, to leave alone"),
        (["--direction", "up"], "raise or lower"),
        (["--max-damage", "-1"], "0 or more"),
        (["--out", "edit.txt"], "end in .json"),
    ],
)
def test_wrong_settings_are_one_sentence(run: Path, arguments: list[str], message: str) -> None:
    result = RUNNER.invoke(app, ["edit", str(run), *arguments])
    assert result.exit_code == 1, result.output
    assert message in result.output
    assert "Traceback" not in result.output


def test_runs_that_cannot_be_edited_from(tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["edit", str(tmp_path)])
    assert result.exit_code == 1
    assert "wiretrace attribute" in result.output
    corrupt = AttributeConfig(task="ioi", model="zoo:ioi", samples=40, prompts=3, held_out=5)
    attribute(corrupt, out=tmp_path / "x")
    result = RUNNER.invoke(app, ["edit", str(tmp_path / "x")])
    assert result.exit_code == 1
    assert "zero" in result.output


def test_targets_by_name() -> None:
    metric = torch.tensor([3.0, -1.0, 0.5, -2.0])
    assert target_rows("highest:1", metric) == [0]
    assert target_rows(" 2, 0", metric) == [0, 2]
    with pytest.raises(BadConfig, match="above 0 on all"):
        target_rows("wrong", metric.abs())
