"""The SHIFT experiment on a few sentences: labels as planted, a table, and a file that can be marked and given back."""

from __future__ import annotations

import pytest
import torch

from circuits.features import create
from circuits.features.activations import Prompts
from experiments import shift_demo
from experiments.errors import BadConfig
from patching.lens import LensModel


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Small dictionaries without training, one for each site."""
    home = tmp_path_factory.mktemp("dictionaries")
    for number, site in enumerate(shift_demo.SITES):
        create("topk", d_in=64, n_features=24, k=4, seed=number, site=site).save(home / site)
    return home


def test_biased_and_balanced():
    for biased, expected in ((True, {(True, True), (False, False)}), (False, {(a, b) for a in (0, 1) for b in (0, 1)})):
        drawn = shift_demo.sentences(40, seed=3, biased=biased)
        assert {(one.gives, one.women) for one in drawn} == expected
        for one in drawn:
            words = set(one.text.replace(",", "").replace(".", "").split())
            assert (shift_demo.GIVES in words) == one.gives
            assert (shift_demo.SELLS in words) != one.gives
            assert bool(words & set(shift_demo.WOMEN)) == one.women
            assert bool(words & set(shift_demo.MEN)) != one.women
    assert shift_demo.sentences(5, seed=1, biased=True) != shift_demo.sentences(5, seed=2, biased=True)


def test_sentences_are_made_of_words_that_the_model_knows():
    model = LensModel.load("zoo:ioi")
    data = shift_demo.Data.draw(model, n=60)
    unknown = model.tokenizer.unk_token_id
    for part in (data.biased, data.balanced, data.test):
        assert isinstance(part.prompts, Prompts)
        assert not bool((part.prompts.tokens[part.prompts.keep] == unknown).any())
    assert torch.equal(data.biased.intended, data.biased.spurious)
    assert not torch.equal(data.test.intended, data.test.spurious)


def test_the_table_and_the_file(folder, tmp_path, capsys):
    shared = ["--dictionaries", str(folder), "--n", "40", "--listed", "12"]
    shift_demo.main([*shared, "--write", str(tmp_path / "pick.tsv")])
    text = (tmp_path / "pick.tsv").read_text(encoding="utf-8")
    first = next(line for line in text.splitlines() if line.startswith("\t"))
    (tmp_path / "pick.tsv").write_text(text.replace(first, f"x{first}"), encoding="utf-8")
    capsys.readouterr()
    shift_demo.main([*shared, "--selection", str(tmp_path / "pick.tsv")])
    rows = {line.split("|")[1].strip(): line for line in capsys.readouterr().out.splitlines()}
    assert {"original probe", "names deleted", "SHIFT", "SHIFT, retrained", "skyline"} <= set(rows)
    assert {"SHIFT, coordinates", "balanced probe (oracle)"} <= set(rows)
    assert rows["SHIFT"].split("|")[2].strip() == "1"


def test_a_dictionary_that_is_missing(tmp_path):
    with pytest.raises(BadConfig, match="there is none of resid_pre0"):
        shift_demo.dictionaries_in(tmp_path)
