"""What the README says is so: its example prints what it prints, its commands exist, its files are there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from experiments.cli import app

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.S)


def test_the_example_prints_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("python")
    assert len(example.strip().splitlines()) <= 20
    exec(compile(example, "README.md", "exec"), {})
    (printed,) = blocks("text")
    assert capsys.readouterr().out == printed
    assert (tmp_path / "ioi.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_its_commands_exist() -> None:
    wanted = {name for line in re.findall(r"^wiretrace (.+)$", TEXT, flags=re.M) for name in line.split()[:1]}
    wanted |= {"tasks", "methods", "env"}
    for command in sorted(wanted):
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0, command


def test_its_make_targets_exist() -> None:
    rules = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"\bmake ([a-z][a-z0-9-]*)", "\n".join(blocks("sh")))):
        assert re.search(rf"^{target}:", rules, flags=re.M), target


def test_its_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / link).exists(), link


def test_its_benchmark_rows_are_what_was_measured() -> None:
    from experiments.benchmarks.measure import table

    measured = table(json.loads((ROOT / "experiments" / "benchmarks" / "results.json").read_text(encoding="utf-8")))
    (part,) = re.findall(r"<!-- benchmark table.*?-->(.*)<!-- end of the benchmark table -->", TEXT, flags=re.S)
    rows = [line for line in part.splitlines() if line.startswith("| ")]
    assert len(rows) > 10
    assert set(rows) <= set(measured.splitlines())
    assert {line for line in measured.splitlines() if "missed" in line} <= set(rows), "what missed its bar is said"
    assert next(line for line in measured.splitlines() if line.startswith("Measured on")) in part


def commands() -> list[list[str]]:
    """The words of every `wiretrace` command in the README, without comments."""
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("wiretrace ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


def test_its_commands_do_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command as it stands there, in its order, in one empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("webbrowser.open", lambda address: True)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    assert len(commands()) > 15
    for words in commands():
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, f"wiretrace {' '.join(words)}: {result.output[-2000:]}"
    assert {"ioi", "agreement", "reverse", "coar", "my_task"} <= {path.name for path in (tmp_path / "runs").iterdir()}
    assert (tmp_path / "runs.html").exists()
    assert (tmp_path / "both.svg").exists()
