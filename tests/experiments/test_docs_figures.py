"""The figures of the guide are there, small and valid, and are made again to the byte."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from experiments import docs_figures

FOLDER = Path(__file__).parents[2] / "docs" / "figures"
FILES = sorted(FOLDER.glob("*.*"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_figures_are_small_valid_and_shown(path: Path) -> None:
    assert path.stat().st_size < 150_000
    if path.suffix == ".svg":
        ET.fromstring(path.read_text(encoding="utf-8"))
    guides = [guide.read_text(encoding="utf-8") for guide in FOLDER.parent.glob("*.md")]
    assert any(f"(figures/{path.name})" in guide for guide in guides)


@pytest.mark.slow
def test_they_are_made_again_to_the_byte(tmp_path: Path) -> None:
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        made.append(docs_figures.draw(tmp_path / name, n=8, said=lambda _: None))
    assert [path.name for path in made[0]] == [path.name for path in made[1]]
    assert {path.name for path in made[0]} == {path.name for path in FILES}
    for one, two in zip(*made, strict=True):
        assert one.read_bytes() == two.read_bytes(), one.name
