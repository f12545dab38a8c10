"""The page of a dictionary as text: self-contained, escaped, reproducible; labels go out and come back."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
import torch

from circuits.features import create, page
from circuits.features.examples import collect
from circuits.features.page import InlinePage, read_labels
from patching import toy
from patching.errors import InvalidOption
from tests import tiny
from tests.graphs.page_samples import HOSTILE


def small(**options):
    """A gallery of the identity at the toy's attention output: feature 2 is active everywhere, 0, 1 and 3 nowhere."""
    dictionary = create("identity", d_in=4, n_features=4, site="attn_out0", dtype=torch.float64)
    return collect(toy.model(), dictionary, toy.task(), **options)


def record(text):
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


class Loads(HTMLParser):
    """What a page would fetch, and its inline scripts and styles."""

    def __init__(self):
        super().__init__()
        self.fetched, self.inline, self.tags = [], [], []
        self._inside = False

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        given = dict(attributes)
        self.fetched += [given[name] for name in ("src", "href", "action", "data", "poster") if name in given]
        if tag in ("script", "style"):
            self.inline.append([tag, given, ""])
            self._inside = True

    def handle_endtag(self, tag):
        self._inside = False

    def handle_data(self, data):
        if self._inside:
            self.inline[-1][2] += data


def loads(text):
    parser = Loads()
    parser.feed(text)
    return parser


def test_the_record_says_what_the_gallery_says():
    gallery = small(k=2, quantiles=(0.5,))
    data = record(page.dumps(gallery, labels={2: "the sum"}))
    assert data["prefix"] == "a0.f"
    assert data["tokens"] == 8
    assert data["active"] == [0, 0, 8, 0]
    assert data["labels"] == {"2": "the sum"}
    assert data["maximum"][2] == gallery.feature(2).maximum == 3.0
    words, prompts = data["words"], data["prompts"]
    for row, example in zip(data["examples"][2], (*gallery.feature(2).top, *gallery.feature(2).along), strict=True):
        prompt, position, start, activations, quantile = row
        assert (position, quantile) == (example.position, example.quantile)
        assert activations == [pytest.approx(value, rel=1e-3) for value in example.activations]
        shown = [words[number] for number in prompts[prompt][start : start + len(activations)]]
        assert tuple(shown) == example.tokens
    assert next([words[number], value] for number, value in data["raised"][3]) == ["‹3›", 1]
    assert data["examples"][0] == []


def test_examples_along_the_range_are_left_out_where_all_are_listed_anyway():
    assert all(row[4] is None for row in record(page.dumps(small(k=8, per_prompt=False)))["examples"][2])


def test_it_needs_nothing_else_and_only_its_own_scripts_run():
    text = page.dumps(small())
    found = loads(text)
    assert set(found.fetched) <= {"data:,", "#feature"}
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    assert policy[1].startswith("default-src 'none'")
    for tag, given, content in found.inline:
        if given.get("type") == "application/json":
            continue
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy[1]
    assert "unsafe" not in policy[1]
    assert not re.search(r"\bon[a-z]+=|style=\"|https?://(?!www\.w3\.org/2000/svg)|innerHTML|eval\(", text)


def test_it_is_ascii_and_the_same_each_time(tmp_path):
    gallery = small()
    text = page.dumps(gallery, title="Ünïcode › title")
    assert text.isascii()
    page.write(gallery, tmp_path / "features.html", title="Ünïcode › title")
    assert (
        (tmp_path / "features.html").read_text(encoding="utf-8") == text == page.dumps(small(), title="Ünïcode › title")
    )


def test_hostile_text_is_never_markup():
    gallery = small()
    gallery.words.update(dict.fromkeys(gallery.words, HOSTILE))
    text = page.dumps(gallery, title=HOSTILE, labels={2: HOSTILE})
    assert loads(text).tags.count("script") == 2
    assert "img" not in loads(text).tags
    data = record(text)
    assert data["labels"]["2"].startswith("</script>")
    assert "\u202e" not in data["words"][0]
    assert "\x00" not in data["title"]
    shown = gallery.feature(2, label=HOSTILE)._repr_html_()
    assert loads(shown).tags.count("script") == loads(shown).tags.count("img") == 0
    assert "\u202e" not in shown


def test_a_feature_in_a_notebook_needs_no_script():
    view = small(k=2).feature(2, label="the sum")
    shown = view._repr_html_()
    assert "a0.f2" in shown
    assert "the sum" in shown
    assert shown.count("<tr>") == 2
    assert loads(shown).fetched == []
    dead = small().feature(0)._repr_html_()
    assert "dead" in dead
    assert "<tr>" not in dead


def test_the_whole_page_in_a_notebook_is_a_frame_of_its_own():
    inline = page.inline(small(), height=400)
    assert isinstance(inline, InlinePage)
    assert "allow-same-origin" not in inline._repr_html_()
    assert 'sandbox="allow-scripts allow-downloads"' in inline._repr_html_()
    assert "400 pixels" in repr(inline)
    with pytest.raises(InvalidOption, match="height"):
        page.inline(small(), height=10)


def test_labels_come_back_from_a_file(tmp_path):
    file = tmp_path / "labels.json"
    file.write_text(json.dumps({"model": "toy", "labels": {"2": "the sum", "0": "ä"}}), encoding="utf-8")
    assert read_labels(file) == {2: "the sum", 0: "ä"}
    for content, sentence in (
        ("{", "is no JSON"),
        ("[]", "something else"),
        ('{"labels": {"x": "a"}}', "something else"),
    ):
        file.write_text(content)
        with pytest.raises(InvalidOption, match=sentence):
            read_labels(file)
    with pytest.raises(InvalidOption, match="there is no file"):
        read_labels(tmp_path / "nothing.json")


@pytest.mark.parametrize("labels", [{4: "a"}, {-1: "a"}, {True: "a"}, {0: 3}])
def test_labels_of_features_that_are_not_there_are_refused(labels):
    with pytest.raises(InvalidOption, match="expected"):
        page.dumps(small(), labels=labels)


def test_a_dictionary_without_any_live_feature_gives_a_page():
    dictionary = create("relu", d_in=32, n_features=6, site="mlp_out0", dtype=torch.float64)
    with torch.no_grad():
        dictionary.b_enc.fill_(-1e9)
    data = record(page.dumps(collect(tiny.model("gpt2"), dictionary, tiny.task())))
    assert data["active"] == [0] * 6
    assert data["prompts"] == []


def test_features_of_neurons_have_no_logit_effects():
    model = tiny.model("gpt2")
    width = model.blocks[0].mlp.w_in.shape[0]
    dictionary = create("identity", d_in=width, n_features=width, site="neurons0", dtype=torch.float64)
    data = record(page.dumps(collect(model, dictionary, tiny.task())))
    assert data["raised"] == [[]] * width
    assert data["prefix"] == "neurons0.f"
