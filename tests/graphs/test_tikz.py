"""The TikZ drawing is the figure's, shows any title as it is, and compiles where there is a TeX."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings

from graphs import Architecture, Circuit, ComponentGraph, Edge
from graphs.export import figure, tikz
from graphs.export.picture import merged, picture
from graphs.layout import layout

from .strategies import TEXT, circuits

HOSTILE = (
    "50 % of {a}_b^c~\\input{/etc/passwd} #$& <|> \"q\" 'x' ``y'' -- café 中 \u202e\n\\end{document} ñ ï Å ø ß → ^^M"
)
NUMBER = r"-?[0-9]+\.[0-9]{2}"


def some_circuit() -> Circuit:
    edges = ComponentGraph(Architecture(3, 4, 2)).edges[::5]
    edges = (*edges, Edge(edges[0].source, edges[0].target, edges[0].port, 2))
    return Circuit(Architecture(3, 4, 2), edges, {edge: -number / 7 for number, edge in enumerate(edges)})


def wires(text: str) -> dict[str, tuple[str, float, bool, str]]:
    """Colour, width, whether it is dashed and start of the curve of each edge."""
    found = re.findall(
        rf"\\draw\[c(\w{{6}}), line width=([0-9.]+)bp(, dash pattern=[^,]*)?, opacity=[0-9.]+\] "
        rf"(\({NUMBER},{NUMBER}\)).*% (.*)",
        text,
    )
    return {edge: (colour, float(width), bool(dashes), start) for colour, width, dashes, start, edge in found}


@settings(max_examples=30, deadline=None)
@given(circuit=circuits(provenance={}))
def test_it_draws_what_the_figure_draws(circuit: Circuit) -> None:
    text, largest = tikz.dumps(circuit), figure.largest_importance(circuit)
    once, names = merged(circuit)
    plan = layout(once)
    drawn = wires(text)
    assert sorted(drawn) == sorted(names.values())
    for wire in plan.wires:
        colour, width, dashed, start = drawn[names[wire.edge]]
        score = once.scores.get(wire.edge)
        if score is None:
            assert dashed
            assert width < 0.6
        else:
            assert not dashed
            assert width == pytest.approx(figure.line_width(abs(score) / largest if largest else 0.3), abs=0.006)
        assert f"#{colour}" == ("#868C97" if not score else "#0072B2" if score < 0 else "#D55E00")
        assert start == f"({wire.path[0][0]:.2f},{wire.path[0][1]:.2f})"
    labels = dict(re.findall(rf"font=\\fontsize\{{6\.5bp\}}.* at (\({NUMBER},{NUMBER}\)) \{{(.*)\}};", text))
    places = {f"({box.x:.2f},{box.y:.2f})": str(box.node) for box in plan.boxes.values()}
    assert labels == places
    assert text.isascii()


def test_options_are_those_of_the_figure() -> None:
    text = tikz.dumps(some_circuit(), width=3.3, groups={"early & odd": ["a0.h1"]}, colour="port")
    assert r"early \& odd" in text
    assert {colour for colour, *_ in wires(text).values()} >= {"0072B2", "D55E00", "009E73"}
    assert "{0.1};" in text
    assert "{a0.h1};" not in text


def test_of_a_large_circuit_the_strongest_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    circuit = some_circuit()
    monkeypatch.setattr(tikz, "MOST_EDGES", 10)
    text = tikz.dumps(circuit)
    assert set(wires(text)) == set(merged(figure.strongest(circuit, n=10))[1].values())
    assert f"The strongest 10 of {circuit.n_edges} edges are drawn." in text


@settings(max_examples=300, deadline=None)
@given(text=TEXT)
def test_escaped_text_has_no_meaning_for_tex(text: str) -> None:
    escaped = tikz.escaped(text)
    assert escaped.isascii()
    assert escaped.isprintable()
    plain = re.sub(r"\\[{}%&#_]", "", escaped)
    assert plain.count("{") == plain.count("}")
    assert not set(re.sub(r"\\[~^]\{|\$(\\cdot|\\times|\\to|\\leq|\\geq|\\pm|-)\$", "", plain)) & set("#$%&_~^")
    commands = set(re.findall(r"\\([A-Za-z]+)", plain))
    assert commands <= {
        *("textbackslash", "textasciicircum", "textasciitilde", "textless", "textgreater", "textbar", "char"),
        *("ss", "ae", "AE", "o", "O", "oe", "l", "L", "i", "j", "r", "v", "c", "cdot", "times", "to", "leq", "geq"),
        *("pm", "ldots"),
    }


def test_a_title_by_hand() -> None:
    assert tikz.escaped("a\\b{c}") == r"a\textbackslash{}b\{c\}"
    assert tikz.escaped("Zoë") == tikz.escaped("Zoe\u0308") == r"Zo\"{e}"
    assert tikz.escaped("\x00") == r"\textbackslash{}x00"
    assert tikz.dumps(Circuit(Architecture(1, 1), []), title="x_1").count(r"{x\_1};") == 1


def shown(pdf: bytes) -> str:
    """The letters of an uncompressed PDF, without spaces, as the fonts encode them."""
    pieces = re.findall(rb"\(((?:[^()\\]|\\.)*)\)|T[jJ]", pdf)
    return re.sub(rb"\\([()\\])", rb"\1", b"".join(pieces)).decode("latin-1")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no TeX is installed")
@pytest.mark.skipif(
    shutil.which("kpsewhich") is None
    or not subprocess.run(["kpsewhich", "standalone.cls", "tikz.sty"], capture_output=True, check=False).stdout,
    reason="the TeX that is installed lacks the class standalone or TikZ",
)
def test_tex_compiles_it(tmp_path: Path) -> None:
    circuit = some_circuit()
    groups = {HOSTILE: ["a0.h0"]}
    tikz.write(circuit, tmp_path / "c.tex", title=HOSTILE, groups=groups)
    program = r"\pdfcompresslevel=0 \pdfobjcompresslevel=0 \input{c.tex}"
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "-jobname=c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    pdf = (tmp_path / "c.pdf").read_bytes()
    assert b"(1 page" in done.stdout
    text = shown(pdf)
    for node in circuit.nodes:
        assert str(node) in text
    assert "50%of" in text
    assert "root:" not in text  # nothing was read in
    box = re.search(rb"/MediaBox\s*\[\s*0\s+0\s+([0-9.]+)\s+([0-9.]+)", pdf)
    assert box is not None
    plan = layout(circuit)
    assert plan.width + 38 < float(box[1]) < max(plan.width, 500) + 80
    made = picture(circuit, title=HOSTILE, groups=groups)
    lines = len(made.title) + 1 + max(entry.row for entry in made.legend)
    assert plan.height < float(box[2]) < plan.height + 12 * lines + 40
