"""The model made by hand does by hand what it says."""

from __future__ import annotations

import pytest
import torch

from circuits.features import agreement_toy as toy
from graphs.nodes import LOGITS, Edge
from patching.activation import SiteRun
from patching.errors import InvalidOption
from patching.lens import LensModel
from patching.sites import Site


def difference(model, tokens):
    logits = model.logits(tokens)[:, -1]
    return logits[:, toy.VOCABULARY.index("are")] - logits[:, toy.VOCABULARY.index("is")]


def test_directions_are_orthonormal():
    rows = toy.directions(3)
    torch.testing.assert_close(rows @ rows.T, torch.eye(8, dtype=torch.float64))
    assert not torch.equal(rows, toy.directions(4))


@pytest.mark.parametrize("seed", [0, 7])
def test_metric_is_six_for_a_plural_subject_and_zero_for_a_singular_one(seed):
    model = toy.model(seed=seed)
    for clean, expected in (("plural", 6.0), ("singular", 0.0)):
        found = difference(model, toy.task(clean=clean).clean)
        torch.testing.assert_close(found, torch.full((2,), expected, dtype=torch.float64), atol=1e-9, rtol=0)


def test_it_loads_by_its_name():
    model = LensModel.load("zoo:agreement_toy", dtype=torch.float64, device="cpu")
    torch.testing.assert_close(model.logits(toy.task().clean), toy.model().logits(toy.task().clean), rtol=0, atol=0)
    assert model.name == toy.model().name == toy.truth().provenance["model"] == "zoo:agreement_toy"
    assert LensModel.load("zoo:agreement_toy", device="cpu").dtype == torch.float32


def test_values_at_the_verb_are_those_done_by_hand():
    model, task = toy.model(), toy.task(clean="plural")
    run, rows = SiteRun(model, task), dict(zip(toy.DIRECTIONS, toy.directions(), strict=True))
    (part,) = run.parts

    def along(values, kind, name):
        return values[kind][0][:, toy.VERB] @ rows[name]

    near = {"atol": 1e-9, "rtol": 0}
    torch.testing.assert_close(along(part.base, "attn_out", "moved"), torch.ones(2).double(), **near)
    torch.testing.assert_close(along(part.source, "attn_out", "moved"), -torch.ones(2).double(), **near)
    torch.testing.assert_close(along(part.base, "mlp_out", "out"), torch.full((2,), 3.0).double(), **near)
    assert not part.source["mlp_out"][0][:, toy.VERB].any()
    pattern = part.base["pattern"][0][0, :, toy.VERB]
    assert (pattern[:, toy.SUBJECT] > 1 - 1e-12).all()


def test_prompts_say_what_changes():
    subject, distractor = toy.task(), toy.task(changed="distractor")
    assert (subject.clean != subject.corrupt).nonzero()[:, 1].tolist() == [1, 1]
    assert (distractor.clean != distractor.corrupt).nonzero()[:, 1].tolist() == [3, 3]
    assert subject.texts == ("the dogs near car V", "the dogs near cars V")
    assert torch.equal(subject.swapped().clean, toy.task(clean="singular").clean)


@pytest.mark.parametrize("wrong", [{"clean": "dual"}, {"changed": "verb"}])
def test_other_numbers_and_words_are_refused(wrong):
    with pytest.raises(InvalidOption, match="expected"):
        toy.task(**wrong)


def test_dictionaries_leave_no_error_and_read_single_directions():
    x = torch.randn(20, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for one in toy.dictionaries():
        torch.testing.assert_close(one.reconstruct(x), x)
        features = one.encode(toy.directions()[2])
        assert features[2].item() == pytest.approx(1)
        assert features.abs().sum().item() == pytest.approx(1)


def test_without_a_direction_the_error_term_holds_it():
    one = toy.dictionaries(without={"attn_out0": ("moved",)})[1]
    moved = toy.directions()[toy.DIRECTIONS.index("moved")]
    torch.testing.assert_close(one.error(2 * moved), 2 * moved)
    torch.testing.assert_close(one.error(toy.directions()[0]), torch.zeros(8).double(), atol=1e-12, rtol=0)
    with pytest.raises(InvalidOption, match="moved"):
        toy.dictionaries(without={"attn_out0": ("mvoed",)})


def test_truth_has_six_nodes_and_eight_edges():
    truth = toy.truth()
    assert {str(node) for node in truth.nodes} == {
        "input.f0@1", "input.f1@1", "a0.f5@4", "a0.f13@4", "m0.f6@4", "r0.f6@4", "logits",
    }  # fmt: skip
    assert Edge(toy.nodes()["left"], LOGITS) in truth.edges
    assert len(truth.edges) == 8


def test_only_the_planted_sites_carry_the_change():
    run = SiteRun(toy.model(), toy.task())
    whole = (run.source_metric - run.base_metric).mean()
    carried = run([(Site(kind, 0, position=place),) for kind, place in (("resid_pre", 1), ("attn_out", 4))])
    torch.testing.assert_close((carried - run.base_metric).mean(1), whole.expand(2), atol=1e-9, rtol=0)
    others = [(Site("resid_pre", 0, position=place),) for place in (0, 2, 3, 4)]
    assert (run(others) - run.base_metric).abs().max() < 1e-9
