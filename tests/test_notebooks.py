"""Notebooks run from top to bottom, their Jupyter files are the same cells, and their pages show the same code."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest

from experiments.notebook_pages import PAGES, cells, jupyter

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.py"))
LARGEST_PAGE = 400_000  # bytes, with figures

every = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_seven_in_order() -> None:
    assert [path.stem[:3] for path in NOTEBOOKS] == [f"0{number}_" for number in range(1, 8)]


@every
def test_a_notebook_runs(notebook: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = runpy.run_path(str(notebook))
    assert names["circuit"].n_edges > 0
    assert "faithfulness" in capsys.readouterr().out


@every
def test_the_jupyter_file_is_the_script_without_outputs(notebook: Path) -> None:
    text = notebook.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert text == jupyter(cells(notebook.read_text(encoding="utf-8"))), "run python -m experiments.notebook_pages"
    for cell in json.loads(text)["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@every
def test_jupytext_reads_the_same_cells(notebook: Path) -> None:
    jupytext = pytest.importorskip("jupytext", reason="jupytext is not installed (extra: notebooks)")
    found = jupytext.read(notebook)
    theirs = [(cell["cell_type"], cell["source"]) for cell in found["cells"]]
    assert theirs == [(cell.kind, cell.source) for cell in cells(notebook.read_text(encoding="utf-8"))]


@every
def test_the_page_shows_the_notebook_s_code(notebook: Path) -> None:
    page = (PAGES / f"{notebook.stem}.md").read_text(encoding="utf-8")
    shown = re.findall(r"^```python\n(.*?)\n```$", page, flags=re.DOTALL | re.MULTILINE)
    parts = cells(notebook.read_text(encoding="utf-8"))
    assert shown == [cell.source for cell in parts if cell.kind == "code"], "run python -m experiments.notebook_pages"
    for cell in parts:
        assert cell.source in page


@every
def test_the_page_has_outputs_and_its_figures_are_there(notebook: Path) -> None:
    page = (PAGES / f"{notebook.stem}.md").read_text(encoding="utf-8")
    assert "```text\n" in page
    figures = re.findall(r"^!\[Figure .*\]\((.*)\)$", page, flags=re.MULTILINE)
    assert sorted(figures) == sorted(path.name for path in PAGES.glob(f"{notebook.stem}-*.svg"))
    assert len(page.encode()) + sum((PAGES / name).stat().st_size for name in figures) < LARGEST_PAGE
    assert "Traceback" not in page
    assert "/tmp/" not in page


def test_there_are_no_pages_of_other_notebooks() -> None:
    assert {path.stem for path in PAGES.glob("*.md")} <= {path.stem for path in NOTEBOOKS} | {"index"}


@pytest.mark.slow
@every
def test_a_notebook_runs_in_jupyter(notebook: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed (extra: notebooks)")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (extra: notebooks)")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed (extra: notebooks)")
    made = nbformat.reads(notebook.with_suffix(".ipynb").read_text(encoding="utf-8"), as_version=4)
    nbformat.validate(made)
    folder = {"metadata": {"path": str(notebook.parents[1])}}
    nbclient.NotebookClient(made, timeout=600, kernel_name="python3", resources=folder).execute()
    text = json.dumps([cell.get("outputs", []) for cell in made["cells"]])
    assert "faithfulness" in text
    assert '"output_type": "error"' not in text
