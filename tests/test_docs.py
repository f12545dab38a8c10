"""The guides say what is so: examples print what they print, figures and tables are there and agree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GUIDES = sorted((ROOT / "docs").glob("*.md"))


def blocks(guide: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", guide.read_text(encoding="utf-8"), flags=re.S)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_examples_print_what_they_say(
    guide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    examples, printed = blocks(guide, "python"), blocks(guide, "text")
    assert examples
    for example, expected in zip(examples, printed, strict=True):
        exec(compile(example, str(guide), "exec"), {})
        assert capsys.readouterr().out == expected


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_links_lead_somewhere(guide: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", guide.read_text(encoding="utf-8")):
        assert (guide.parent / link).exists(), link


def test_the_table_of_verified_recall_is_the_file() -> None:
    assert recall_table(ROOT / "docs" / "verified-recall.csv") in (ROOT / "docs" / "patching.md").read_text("utf-8")


def recall_table(path: Path) -> str:
    import pandas as pd

    frame = pd.read_csv(path).sort_values("aggregate", kind="stable")
    head = "| method | forwards for the estimate | relative cost | at K = 1 | K = 10 | K = 100 |\n"
    head += "|---|---:|---:|---:|---:|---:|"
    rows = (
        f"| {name} | {cost:g} | **{aggregate:.2f}** | {one:.1f} | {ten:.1f} | {hundred:.1f} |"
        for name, cost, aggregate, one, ten, hundred in frame.itertuples(index=False)
    )
    return "\n".join([head, *rows])
