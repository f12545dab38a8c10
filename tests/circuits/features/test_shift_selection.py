"""The file in which a person marks features: written, marked by an editor or a spreadsheet, read, and refused."""

from __future__ import annotations

import pytest
import torch

from circuits.features import create, examples
from circuits.features.activations import Prompts
from circuits.features.labelled_prompts import LabelledPrompts
from circuits.features.pooled_run import PooledRun
from circuits.features.probing import Probe
from circuits.features.shift import LatentEffects, latent_effects
from circuits.features.shift_selection import lines, read, write
from graphs.errors import BadFile
from graphs.nodes import Node
from patching import toy
from patching.errors import InvalidOption


@pytest.fixture(scope="module")
def ranked():
    identity = create("identity", d_in=4, n_features=4, site="resid_pre0", dtype=torch.float64)
    run = PooledRun(toy.model(), "resid_post0", dictionaries=[identity])
    prompts = Prompts.from_tokens(torch.tensor([[2, 2, 0], [3, 3, 1], [3, 0, 1]]))
    data = LabelledPrompts(prompts, torch.tensor([True, False, False]), torch.tensor([True, False, False]))
    probe = Probe(torch.tensor([1.0, -1.0, 4.0, -3.0], dtype=torch.float64), 0.0)
    effects = latent_effects(run, probe, data)
    return effects, {"resid_pre0": examples.collect(run.model, identity, prompts, k=2)}


def test_written_marked_and_read(ranked, tmp_path):
    effects, galleries = ranked
    rows = lines(effects, galleries, n=3, examples=2)
    assert [row.feature for row in rows] == [node for node, _ in effects.ranked(3)]
    path = tmp_path / "pick.tsv"
    write(path, rows, task="the first\ttoken", marked=[rows[1].feature])
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# Put an x before every feature that has nothing to do with the first token, and save.\n")
    header, *body = text.splitlines()[1:]
    assert header.split("\t") == ["remove", "feature", "effect", "active", "examples"]
    assert all(len(line.split("\t")) == 5 for line in body)
    for row, line in zip(rows, body, strict=True):
        assert f"«‹{row.feature.index}›»" in line  # feature i is token i's
        assert row.words == (f"‹{row.feature.index}›",) * len(row.examples)
    found = read(path, known=[row.feature for row in rows])
    assert found.marked == (rows[1].feature,)
    assert found.listed == tuple(row.feature for row in rows)
    path.write_text(text.replace(f"\n\t{rows[0].feature}\t", f"\nX\t{rows[0].feature}\t"), encoding="utf-8")
    assert read(path).marked == (rows[0].feature, rows[1].feature)


@pytest.mark.parametrize(
    "text",
    [
        "remove\tfeature\nx\tm0.f1\n\tr0.f2\n",
        "\ufeffremove,feature,effect\r\nx,m0.f1,-0.5\r\n,r0.f2,0.1\r\n",
        'feature;remove\n"m0.f1";yes\n\nr0.f2;-\n',
        '# a note\n"# another, quoted"\nRemove\tFeature\nX\tm0.f1\textra\n\tr0.f2',
    ],
)
def test_what_editors_and_spreadsheets_save(text, tmp_path):
    path = tmp_path / "pick"
    path.write_text(text, encoding="utf-8", newline="")
    found = read(path)
    assert found.marked == (Node.parse("m0.f1"),)
    assert found.listed == (Node.parse("m0.f1"), Node.parse("r0.f2"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file is empty"),
        ("# only a note\n", "the file is empty"),
        ("mark\tlatent\nx\tm0.f1\n", "line 1: expected a header with the columns remove and feature; got mark, latent"),
        ("remove\tfeature\nx\tm0.g1\n", "line 2: expected a feature such as m0.f7; got 'm0.g1'"),
        ("remove\tfeature\nx\tm0\n", "line 2: expected a feature such as m0.f7, at all positions; got m0"),
        ("remove\tfeature\nx\tm0.err\n", "line 2: expected a feature"),
        ("remove\tfeature\nx\tm0.f1@3\n", "line 2: expected a feature such as m0.f7, at all positions; got m0.f1@3"),
        ("remove\tfeature\nx\n", "line 2: expected a feature"),
        ("remove\tfeature\nx\tm0.f1\n\n\tm0.f1\n", "line 4: m0.f1 comes twice"),
        ("remove\tfeature\nx\tm0.f9\n", "line 2: m0.f9 is none of the features that were listed"),
        ("remove\tfeature\nperhaps\tm0.f1\n", "line 2: expected x or nothing before m0.f1; got 'perhaps'"),
    ],
)
def test_bad_files_name_the_line(text, said, tmp_path):
    path = tmp_path / "pick.tsv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadFile) as caught:
        read(path, known=[Node.parse("m0.f1")])
    assert said in str(caught.value)


def test_all_wrong_lines_are_named_at_once(tmp_path):
    path = tmp_path / "pick.tsv"
    path.write_text("remove\tfeature\n" + "".join(f"?\tm0.f{i}\n" for i in range(12)), encoding="utf-8")
    with pytest.raises(BadFile, match=r"12 wrong lines.*line 2.*line 11.*and 2 more"):
        read(path)
    with pytest.raises(BadFile):
        read(tmp_path / "none.tsv")
    (tmp_path / "bytes.tsv").write_bytes(b"\xff\xfe\x00x")
    with pytest.raises(BadFile):
        read(tmp_path / "bytes.tsv")


def test_lines_without_examples_and_bad_options(ranked):
    effects, galleries = ranked
    bare = lines(effects, {}, n=2)
    assert all(row.active is None and row.shown() == "" for row in bare)
    helping = lines(effects, galleries, n=10, signed=True)
    assert all(row.effect < 0 for row in helping)
    with pytest.raises(InvalidOption, match="at least one feature"):
        lines(effects, galleries, n=0)
    other = LatentEffects({site: values[:3] for site, values in effects.values.items()}, effects.errors, {})
    with pytest.raises(InvalidOption, match="another's"):
        lines(other, galleries)
