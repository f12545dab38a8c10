"""What the README says is so: its example prints what it prints, its commands exist, its files are there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

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
    from experiments.cli import app

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


def test_its_benchmark_table_is_what_was_measured() -> None:
    from experiments.benchmarks.measure import table

    document = json.loads((ROOT / "experiments" / "benchmarks" / "results.json").read_text(encoding="utf-8"))
    assert table(document) in TEXT
