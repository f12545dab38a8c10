"""Curves that judge methods: each can be told from the others, is named, and holds what it says."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from graphs import plots, trace
from graphs.errors import BadCircuit, UnknownFormat

CURVE = [(0.01, 0.2), (0.1, 0.9), (1.0, 1.0)]
SVG = "{http://www.w3.org/2000/svg}"


def texts(path: Path) -> set[str]:
    root = ET.fromstring(path.read_text(encoding="utf-8"))
    return {"".join(element.itertext()).strip() for element in root.iter(f"{SVG}text")}


def styles(n: int) -> list[tuple[str, str]]:
    return [(style["color"], style["marker"]) for style in (plots._style(k, "x", CURVE) for k in range(n))]


def test_no_two_of_many_curves_look_alike():
    assert len(set(styles(56))) == 56
    assert styles(9)[8] != styles(1)[0]


def test_long_curves_have_markers_too(tmp_path):
    for number in (0, 8):
        points = [(k / 500, k / 500) for k in range(501)]
        style = plots._style(number, "x", points)
        assert style["marker"]
        assert len(points[:: style["markevery"]]) <= 21


@pytest.mark.parametrize("draw", [plots.roc, plots.faithfulness])
def test_every_name_stands_in_the_legend(draw, tmp_path):
    names = ["_hidden", "__", "$x^2$", "a & b <i>", "=", "plain"]
    draw(dict.fromkeys(names, CURVE), tmp_path / "x.svg", title="_title")
    assert {*names, "_title"} <= texts(tmp_path / "x.svg")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(value, tmp_path):
    with pytest.raises(BadCircuit, match="finite faithfulness; the curve 'EAP'"):
        plots.faithfulness({"EAP": [(0.1, value)]}, tmp_path / "x.svg")
    with pytest.raises(BadCircuit, match="from 0 to 1"):
        plots.roc({"EAP": [(0.1, value)]}, tmp_path / "x.svg")
    with pytest.raises(BadCircuit, match="above 0 and up to 1"):
        plots.faithfulness({"EAP": [(value, 0.5)]}, tmp_path / "x.svg")
    with pytest.raises(BadCircuit, match="intervals as"):
        plots.faithfulness({"EAP": [(0.1, 0.5)]}, tmp_path / "x.svg", intervals={"EAP": [(0.1, value)]})
    assert not list(tmp_path.iterdir())


def test_order_is_checked(tmp_path):
    for draw in (plots.roc, plots.faithfulness):
        with pytest.raises(BadCircuit, match="ascending order; those of the curve 'EAP'"):
            draw({"ACDC": CURVE, "EAP": CURVE[::-1]}, tmp_path / "x.svg")
    with pytest.raises(BadCircuit, match="true positive rates that ascend"):
        plots.roc({"EAP": [(0.1, 0.9), (0.2, 0.3)]}, tmp_path / "x.svg")
    plots.faithfulness({"EAP": [(0.1, 0.9), (0.2, 0.3)]}, tmp_path / "x.svg")  # faithfulness may fall
    with pytest.raises(BadCircuit, match="at least one curve"):
        plots.roc({"EAP": []}, tmp_path / "x.svg")
    with pytest.raises(UnknownFormat):
        plots.roc({"EAP": CURVE}, tmp_path / "x.gif")


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_the_same_curves_give_the_same_bytes(suffix, tmp_path):
    for name in "ab":
        plots.faithfulness({"EAP": CURVE}, tmp_path / f"{name}.{suffix}", intervals={"EAP": [(0.1, 0.3)] * 3})
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


@pytest.mark.parametrize("tau", [-0.5, 0.0, 1e-9, 3.0])
def test_a_trace_may_have_any_finite_threshold(tau, tmp_path):
    steps = [trace.Step("m0->logits", True, 0.4, 0.1), trace.Step("input->logits", False, -2.0, 0.2)]
    trace.draw(steps, tmp_path / "x.svg", tau=tau)
    assert re.search(rf">tau {re.escape(f'{tau:g}')}<", (tmp_path / "x.svg").read_text(encoding="utf-8"))


def test_a_trace_that_is_not_finite_is_refused(tmp_path):
    step = trace.Step("m0->logits", True, math.nan, 0.1)
    with pytest.raises(BadCircuit, match="finite rises; got nan for m0->logits"):
        trace.draw([step], tmp_path / "x.svg")
    with pytest.raises(BadCircuit, match="tau as a finite number; got inf"):
        trace.draw([trace.Step("m0->logits", True, 0.1, 0.1)], tmp_path / "x.svg", tau=math.inf)


def test_estimates_against_truth(tmp_path):
    pairs = {"EAP": [(-0.5, -0.7), (0.1, 0.0)], "_x $y$": [(0.2, 0.3)]}
    plots.scatter(pairs, tmp_path / "a.svg", title="T")
    plots.scatter(pairs, tmp_path / "b.svg", title="T")
    svg = (tmp_path / "a.svg").read_text()
    assert svg == (tmp_path / "b.svg").read_text()
    for word in ("estimated", "measured", "EAP", "_x $y$", "T"):
        assert f">{word}</text>" in svg
    plots.scatter({"all": [(n / 100, n / 50) for n in range(100)]}, tmp_path / "all.svg")
    assert (tmp_path / "all.svg").read_text().count("<use ") >= 100  # every point has its mark
    with pytest.raises(BadCircuit, match="finite points"):
        plots.scatter({"a": [(float("nan"), 0.0)]}, tmp_path / "c.svg")
    with pytest.raises(BadCircuit, match="at least one"):
        plots.scatter({}, tmp_path / "c.svg")


def test_shares_are_labelled_as_percentages_that_do_not_run_into_one_another(tmp_path: Path) -> None:
    """Over less than a decade too, where matplotlib would label minor ticks."""
    plots.faithfulness({"atp": [(0.018, 0.2), (0.086, 0.7)], "acdc": [(0.118, 1.1)]}, tmp_path / "a.svg")
    labels = re.findall(r">([^<>]*%|[^<>]*10\S*)<", (tmp_path / "a.svg").read_text(encoding="utf-8"))
    assert labels == ["2%", "5%", "10%"]
