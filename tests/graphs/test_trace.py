"""The picture of a search."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from graphs.errors import BadCircuit, UnknownFormat
from graphs.trace import Step, draw, kept_after

STEPS = [
    Step("m1->logits", True, 0.4, 0.1),
    Step("m0->logits", False, 0.01, 0.2),
    Step("input->logits", False, -0.2, 0.3),
    Step("m0->m1", True, 2.0, 0.4),
    Step("input->m1", False, 0.0, 0.45),
    Step("input->m0", False, None, 0.5),
]


def drawn(path, **options) -> str:
    draw(STEPS, path, **options)
    return path.read_text(encoding="utf-8")


def test_what_is_left():
    assert kept_after(STEPS, 0) == [step.name for step in STEPS]
    assert kept_after(STEPS, 3) == ["m1->logits", "m0->m1", "input->m1", "input->m0"]
    assert kept_after(STEPS, 6) == ["m1->logits", "m0->m1"]
    with pytest.raises(BadCircuit, match="from 0 to 6; got 7"):
        kept_after(STEPS, 7)


def test_the_picture_counts_what_it_shows(tmp_path):
    svg = drawn(tmp_path / "trace.svg", tau=0.05, unit="logit_difference", title="a & b <i> $x$")
    ET.fromstring(svg)
    texts = set(re.findall(r">([^<>\n]+)</text>", svg))
    assert {"dropped (3)", "kept (2)", "read by nothing (1)", "tau 0.05"} <= texts
    assert "decision (6 in 0.5 s; 2 left)" in texts
    assert "a &amp; b &lt;i&gt; $x$" in texts


def test_a_replay_shows_the_beginning_on_the_same_axes(tmp_path):
    whole, start = (drawn(tmp_path / f"{n}.svg", tau=0.05, upto=n) for n in (6, 2))
    assert "decision (2 in 0.2 s; 5 left)" in start
    assert "kept (1)" in start

    def ticks(svg: str) -> list[str]:
        return re.findall(r">([−\d.${}^\\a-z]+)</text>", svg)

    assert ticks(whole) == ticks(start)


def test_the_same_trace_gives_the_same_bytes(tmp_path):
    for suffix in ("svg", "pdf", "png"):
        one, two = (tmp_path / f"{n}.{suffix}" for n in (1, 2))
        draw(STEPS, one, tau=0.05)
        draw(STEPS, two, tau=0.05)
        assert one.read_bytes() == two.read_bytes()


def test_bad_input(tmp_path):
    with pytest.raises(BadCircuit, match="at least one decision"):
        draw([], tmp_path / "x.svg")
    with pytest.raises(BadCircuit, match="upto from 0 to 6"):
        draw(STEPS, tmp_path / "x.svg", upto=9)
    with pytest.raises(UnknownFormat, match="written as"):
        draw(STEPS, tmp_path / "x.gif")
    assert list(tmp_path.iterdir()) == []
