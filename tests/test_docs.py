"""The guides say what is so: examples print what they print, figures and tables are there and agree."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from circuits.methods import METHODS
from circuits.tasks import TASKS
from experiments.docs_site import pages
from graphs.export import EXPORTS, FORMATS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NOTEBOOKS = DOCS / "notebooks"  # rendered pages: the notebooks themselves run in their own tests
GUIDES = sorted(path for path in DOCS.rglob("*.md") if NOTEBOOKS not in path.parents)
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", flags=re.S | re.M)


def name_of(page: Path) -> str:
    return page.relative_to(DOCS).with_suffix("").as_posix()


@pytest.fixture
def as_found() -> Iterator[None]:
    """Tables to which an example adds a row are put back."""
    tables: list[dict[str, Any]] = [METHODS, TASKS, EXPORTS, FORMATS]
    before = [dict(table) for table in tables]
    modules = set(sys.modules)
    yield
    for table, rows in zip(tables, before, strict=True):
        table.clear()
        table.update(rows)
    for name in {"halfway", "gifts", "mermaid"} & (set(sys.modules) - modules):
        del sys.modules[name]


@pytest.mark.parametrize("guide", GUIDES, ids=name_of)
def test_examples_print_what_they_say(
    guide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], as_found: None
) -> None:
    """Each block of Python continues those above it on the page; one with a title is a file of that name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    names: dict[str, Any] = {}
    due = ""
    for language, head, body in FENCE.findall(guide.read_text(encoding="utf-8")):
        if language == "python":
            assert not due, f"printed, and not on the page: {due}"
            title = re.search(r'title="([^"]+)"', head)
            if title:
                (tmp_path / title[1]).write_text(body, encoding="utf-8")
            else:
                exec(compile(body, str(guide), "exec"), names)
                due = capsys.readouterr().out
        elif language == "text":
            assert due == body
            due = ""
    assert not due, f"printed, and not on the page: {due}"


def test_there_are_examples() -> None:
    shown = {name_of(guide) for guide in GUIDES if "```python" in guide.read_text(encoding="utf-8")}
    assert {"tutorial", "adding/method", "adding/task", "adding/model-family", "adding/export"} <= shown
    assert {"circuits", "coar-edits", "component-attribution", "features", "figures", "formats", "graphs"} <= shown
    assert {"ground-truth", "patching", "concepts/graph"} <= shown


@pytest.fixture(scope="module")
def made() -> set[Path]:
    """Where pages that follow from the code would be."""
    return {(DOCS / uri).resolve() for uri in pages.generate()}


@pytest.mark.parametrize("guide", sorted(DOCS.rglob("*.md")), ids=name_of)
def test_links_lead_somewhere(guide: Path, made: set[Path]) -> None:
    """In the repository, or, for pages that follow from the code, on the site."""
    for link in re.findall(r"\]\(([^)#:]+)\)", guide.read_text(encoding="utf-8")):
        assert (guide.parent / link).exists() or (guide.parent / link).resolve() in made, link


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
