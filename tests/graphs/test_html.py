"""The page: what stands in the file. What a browser makes of it is in test_page_in_browser.py."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import time
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings

from graphs import Architecture, Circuit, Edge, export
from graphs.errors import BadOption, WriteFailed
from graphs.export import html
from tests.graphs.page_samples import HOSTILE, large, rival, small
from tests.graphs.strategies import circuits

VOID = {"meta", "link", "input", "br", "hr", "img"}


class Reader(HTMLParser):
    """Collects elements and the text of scripts and styles; every element must be closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            if tag in ("script", "style", "title"):
                self.text.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in self.text:
            self.text[self.open[-1]][-1] += data


def record(page: str) -> dict:
    return json.loads(Reader(page).text["script"][0])


def test_every_element_is_closed_and_ids_are_unique():
    reader = Reader(html.dumps(small()))
    assert reader.open == []
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    said = {attributes.get(name) for _, attributes in reader.tags for name in ("for", "aria-controls")} - {None}
    assert said <= set(ids)


def test_scripts_name_only_elements_that_are_there():
    reader = Reader(html.dumps(small()))
    ids = {attributes["id"] for _, attributes in reader.tags if "id" in attributes}
    asked = set(re.findall(r"byId\('([^']+)'\)", reader.text["script"][1]))
    assert len(asked) > 20
    assert asked <= ids


def test_the_policy_allows_this_script_and_style_and_no_other():
    page = html.dumps(small())
    reader = Reader(page)
    policy = next(attributes["content"] for _, attributes in reader.tags if "http-equiv" in attributes)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    for name, text in (("script-src", reader.text["script"][1]), ("style-src", reader.text["style"][0])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[name] == f"'sha256-{digest}'"
    assert "unsafe" not in policy


def test_nothing_is_fetched_and_no_markup_is_made_from_text():
    reader = Reader(html.dumps(small()))
    for tag, attributes in reader.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
        assert attributes.get("src") is None
        assert (attributes.get("href") or "#").startswith(("#", "data:"))
    script = reader.text["script"][1]
    forbidden = (
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "eval(",
        "Function(",
        "fetch(",
        "import(",
    )
    assert [word for word in forbidden if word in script] == []
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", script + reader.text["style"][0]) == []


def test_hostile_text_stays_text():
    circuit = small({"model": HOSTILE, HOSTILE: [HOSTILE, {"deep": HOSTILE}]})
    page = html.dumps(
        circuit, title=HOSTILE, groups={HOSTILE: ["m0"]}, prompt=html.Prompt([HOSTILE, "b"], HOSTILE, HOSTILE)
    )
    plain = html.dumps(circuit, title="t", groups={"g": ["m0"]}, prompt=html.Prompt(["a", "b"], "c", "d"))
    assert [tag for tag, _ in Reader(page).tags] == [tag for tag, _ in Reader(plain).tags]
    data = Reader(page).text["script"][0]
    assert not set("<>&\u2028\u2029") & set(data)
    assert page.isascii()
    assert "window.hacked" in record(page)["title"]
    assert Reader(page).text["title"][0] == record(page)["title"]
    assert "\\x00" in record(page)["title"]
    assert "\\u202e" in record(page)["title"]


@settings(max_examples=25, deadline=None)
@given(circuits())
def test_the_data_says_what_the_circuit_says(circuit):
    data = record(html.dumps(circuit))
    names, scores = [], {}
    for source, target, port, position, score, _, where, curve in data["edges"]:
        at = "" if position is None else f"@{position}"
        ends = [data["nodes"][end]["name"] for end in (source, target)]
        name = f"{ends[0]}->{ends[1]}{f'<{port}>' if port else ''}{at}"
        names.append(name)
        assert where == 1
        if score is not None:
            scores[Edge.parse(name)] = score
        numbers = re.findall(r"-?\d+", curve)
        assert len(numbers) % 6 == 2
    assert tuple(map(Edge.parse, names)) == circuit.edges
    assert scores == dict(circuit.scores)
    assert [node["name"] for node in data["nodes"]] == [str(node) for node in circuit.nodes]


def test_curves_begin_and_end_at_their_boxes():
    data = record(html.dumps(large(300)))
    for source, target, *_, curve in data["edges"]:
        numbers = [int(number) / 10 for number in re.findall(r"-?\d+", curve)]
        end_x = numbers[0] + sum(numbers[6::6])
        end_y = numbers[1] + sum(numbers[7::6])
        below, above = data["nodes"][source], data["nodes"][target]
        assert numbers[1] == pytest.approx(below["y"] - below["h"] / 2, abs=0.2)
        assert end_y == pytest.approx(above["y"] + above["h"] / 2, abs=0.2)
        assert abs(numbers[0] - below["x"]) <= below["w"] / 2 + 0.2
        assert abs(end_x - above["x"]) <= above["w"] / 2 + 0.2


def test_the_same_bytes_for_equal_circuits(tmp_path):
    circuit = small()
    again = Circuit(circuit.architecture, reversed(circuit.edges), circuit.scores, circuit.provenance)
    for name, each in (("a", circuit), ("b", again)):
        export(each, tmp_path / f"{name}.html", groups={"r": ["m0"]}, prompt=["x", "y"])
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert b"NaN" not in (tmp_path / "a.html").read_bytes().replace(b"isNaN", b"")


def test_two_circuits_are_told_apart():
    data = record(html.dumps(small(), other=rival()))
    rows = {data["nodes"][row[0]]["name"] + ">" + data["nodes"][row[1]]["name"]: row[4:7] for row in data["edges"]}
    assert rows["m0>a1.h1"] == [-2.0, -4.0, 3]
    assert rows["a1.h1>logits"] == [-4.0, None, 1]
    assert rows["m1>logits"] == [None, 0.75, 2]
    assert sorted(row[2] for row in rows.values()) == [1, 1, 2, 3, 3, 3, 3, 3]


def test_size_and_time_of_the_largest(tmp_path):
    start = time.process_time()
    export(large(), tmp_path / "large.html")
    assert time.process_time() - start < 10
    page = (tmp_path / "large.html").read_text(encoding="utf-8")
    assert len(page) - len(Reader(page).text["script"][0]) < 100_000
    assert len(page) < 400 * 5_000


def test_an_empty_circuit_and_one_with_positions_and_groups():
    assert record(html.dumps(Circuit(Architecture(1, 1), [])))["edges"] == []
    names = ["input->a0.kv0<k>@2", "input->a0.h1<q>", "a0.h1->logits@3"]
    data = record(html.dumps(Circuit(Architecture(1, 2, 1), [Edge.parse(name) for name in names])))
    assert sorted(row[3] for row in data["edges"] if row[3] is not None) == [2, 3]
    assert len(data["links"]) == 1
    assert all(row[4] is None for row in data["edges"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"title": 3}, "title is a text"),
        ({"other": "x"}, "other is a Circuit"),
        ({"other": Circuit(Architecture(3, 2), [])}, "one architecture"),
        ({"groups": ["a0.h0"]}, "groups are roles"),
        ({"groups": {"r": "a0.h0"}}, "needs a list of nodes"),
        ({"groups": {"r": ["a0.head0"]}}, "groups names a node that cannot be"),
        ({"groups": {"r": ["m0"], "s": ["m0"]}}, "two roles"),
        ({"prompt": "a text"}, "list of tokens"),
        ({"prompt": []}, "1 to 2,048 tokens"),
        ({"prompt": html.Prompt(["a"], 3)}, "are texts"),
        ({"attention": [[1.0]]}, "attention is a table"),
        ({"attention": {"m0": [[1.0]]}}, "belongs to heads"),
        ({"attention": {"a0.h0": [[1.0, 0.0]]}}, "as many rows as columns"),
        ({"attention": {"a0.h0": [[1.0]]}, "prompt": ["a", "b"]}, "2 rows and columns"),
        ({"attention": {"a0.h0": [[math.nan]]}}, "finite numbers"),
        ({"attention": {"a0.h0": [["x"]]}}, "matrix of numbers"),
    ],
)
def test_wrong_options_are_said(options, said):
    with pytest.raises(BadOption, match=said):
        html.dumps(small(), **options)


def test_what_cannot_be_written_is_said(tmp_path):
    with pytest.raises(WriteFailed, match="its folder does not exist"):
        html.write(small(), tmp_path / "none" / "c.html")


def test_inline_is_a_frame_that_holds_the_whole_page():
    frame = html.inline(small(), height=480, title=HOSTILE)
    (tag, attributes), *rest = Reader(frame._repr_html_()).tags
    assert (tag, rest) == ("iframe", [])
    assert attributes["srcdoc"] == html.dumps(small(), title=HOSTILE)
    assert attributes["height"] == "480"
    assert "allow-same-origin" not in attributes["sandbox"]
    for wrong in ({"height": 10}, {"height": True}, {"colour": "red"}):
        with pytest.raises(BadOption):
            html.inline(small(), **wrong)
