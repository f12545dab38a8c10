"""Edits of features while a model runs: identities that need no reference implementation."""

from __future__ import annotations

import pytest
import torch

from circuits.features import create
from circuits.features.activations import read
from circuits.features.steering import Steered, ablate, add, clamp, scale
from patching import toy
from patching.errors import InvalidOption, InvalidTask, NotFinite
from patching.lens import TOLERANCES
from patching.sites import Start, forward
from tests import tiny
from tests.leftovers import traces

FAMILIES = ("gpt2", "llama", "gpt_neox", "gemma2", "attention_only")


def dictionary_at(site="resid_post0", **options):
    made = create("relu", d_in=32, n_features=24, seed=2, site=site, dtype=torch.float64, **options)
    with torch.no_grad():
        made.b_enc.fill_(0.3)
        made.b_dec.copy_(torch.linspace(-1, 1, 32, dtype=torch.float64))
    return made


def exact_at(site):
    return create("identity", d_in=32, n_features=32, site=site, dtype=torch.float64)


def replaced(model, tokens, site, value):
    """Logits with the value at a site replaced, by a visitor of this test's own."""
    kept = []

    def visit(kind, layer, current, _narrow):
        current = value if f"{kind}{layer}" == site else current
        if f"{kind}{layer}" == f"resid_post{len(model.blocks) - 1}":
            kept.append(current)
        return current

    start = Start(0, 0, 0, model.embed(tokens))
    answer = torch.zeros(len(tokens), dtype=torch.long)
    forward(model, model.contexts(tokens.shape[1]), start, visit, answer=answer, trim=False)
    return model.readout.logits(kept[0])


@pytest.fixture
def tokens():
    return tiny.task().clean


@pytest.mark.parametrize("family", FAMILIES)
def test_without_edits_it_is_the_model(family, tokens):
    model = tiny.model(family)
    own = model.logits(tokens)
    assert float((Steered(model).logits(tokens) - own).abs().max() / own.abs().max()) < TOLERANCES[torch.float64]


@pytest.mark.parametrize("family", FAMILIES)
def test_edits_that_change_nothing_change_no_bit(family, tokens):
    model, dictionary = tiny.model(family), dictionary_at()
    plain = Steered(model).logits(tokens)
    edits = [add(3, 0.0), scale(5, 1.0), scale("r0.err", 1.0), ablate(1, positions=())]
    assert torch.equal(Steered(model, edits=edits, dictionaries=[dictionary]).logits(tokens), plain)
    assert not torch.equal(Steered(model, edits=[add(3, 0.5)], dictionaries=[dictionary]).logits(tokens), plain)


def test_a_clamp_to_its_own_value_changes_rounding_alone(tokens):
    model, dictionary = tiny.model("gpt2"), dictionary_at()
    own = dictionary.encode(read(model, tokens[:1], ["resid_post0"])["resid_post0"])[0].detach()
    edits = [clamp(f"r0.f{index}@{at}", float(own[at, index])) for index in (2, 11) for at in range(own.shape[0])]
    logits = Steered(model, edits=edits, dictionaries=[dictionary]).logits(tokens[:1])
    assert torch.allclose(logits, Steered(model).logits(tokens[:1]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("site", ["resid_pre0", "attn_out0", "resid_mid1", "mlp_out0", "resid_post1"])
def test_an_exact_dictionary_sets_the_activation_exactly(site, tokens):
    """The identity's features are the site's coordinates: clamping one is replacing one coordinate."""
    model = tiny.model("gpt2")
    value = read(model, tokens, [site])[site].clone()
    value[:, 2:4, 5] = 1.25
    logits = Steered(model, edits=[clamp(5, 1.25, positions=slice(2, 4))], dictionaries=[exact_at(site)]).logits(tokens)
    assert torch.allclose(logits, replaced(model, tokens, site, value), rtol=1e-12, atol=1e-12)


def test_an_added_feature_moves_the_site_along_its_direction_and_keeps_the_error(tokens):
    model, dictionary = tiny.model("gpt2"), dictionary_at("mlp_out0")
    value = read(model, tokens, ["mlp_out0"])["mlp_out0"] + 0.7 * dictionary.W_dec.detach()[4]
    logits = Steered(model, edits=[add("m0.f4", 0.7)], dictionaries=[dictionary]).logits(tokens)
    assert torch.allclose(logits, replaced(model, tokens, "mlp_out0", value), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma2"])
@pytest.mark.parametrize("bias", [True, False])
def test_without_features_and_error_only_the_bias_is_left(family, bias, tokens):
    model, dictionary = tiny.model(family), dictionary_at("mlp_out0")
    if not bias:
        torch.nn.init.zeros_(dictionary.b_dec)
    logits = Steered(model, edits=[ablate(None), ablate("m0.err")], dictionaries=[dictionary]).logits(tokens)
    left = dictionary.b_dec.detach().expand(*tokens.shape, 32)
    assert torch.allclose(logits, replaced(model, tokens, "mlp_out0", left), rtol=1e-9, atol=1e-9)


def test_without_the_error_the_reconstruction_is_left(tokens):
    model, dictionary = tiny.model("gpt2"), dictionary_at()
    value = dictionary.reconstruct(read(model, tokens, ["resid_post0"])["resid_post0"]).detach()
    logits = Steered(model, edits=[ablate("r0.err")], dictionaries=[dictionary]).logits(tokens)
    assert torch.allclose(logits, replaced(model, tokens, "resid_post0", value), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_a_transcoder_reads_the_mlps_input_and_moves_its_output(family, tokens):
    model = tiny.model(family)
    dictionary = create("skip_transcoder", d_in=32, n_features=12, site="mlp_out1", seed=1, dtype=torch.float64)
    with torch.no_grad():
        dictionary.W_enc.copy_(torch.randn(32, 12, generator=torch.Generator().manual_seed(0)))
        dictionary.W_skip.copy_(torch.randn(32, 32, generator=torch.Generator().manual_seed(1)))
    found = read(model, tokens, ["mlp_in1", "mlp_out1"])
    features = dictionary.encode(found["mlp_in1"])
    value = found["mlp_out1"] + (features[..., 3:4] * 2.0).detach() * dictionary.W_dec.detach()[3]
    assert bool((features[..., 3] > 0).any())
    logits = Steered(model, edits=[scale(3, 3.0)], dictionaries=[dictionary]).logits(tokens)
    assert torch.allclose(logits, replaced(model, tokens, "mlp_out1", value), rtol=1e-10, atol=1e-10)


def test_edits_follow_one_another_and_sites_do(tokens):
    model = tiny.model("gpt2")
    first, second = exact_at("resid_post0"), exact_at("resid_post1")
    edits = [add("r0.f1", 2.0), scale("r0.f1", 0.5), clamp("r1.f0", -1.0)]
    logits = Steered(model, edits=edits, dictionaries=[second, first]).logits(tokens)
    early = read(model, tokens, ["resid_post0"])["resid_post0"].clone()
    early[..., 1] = (early[..., 1] + 2.0) * 0.5
    kept = {}

    def visit(kind, layer, value, _narrow):
        if (kind, layer) == ("resid_post", 0):
            return early
        if (kind, layer) == ("resid_post", 1):
            kept["final"] = value = value.index_fill(-1, torch.tensor([0]), -1.0)
        return value

    answer = torch.zeros(len(tokens), dtype=torch.long)
    forward(
        model, model.contexts(tokens.shape[1]), Start(0, 0, 0, model.embed(tokens)), visit, answer=answer, trim=False
    )
    assert torch.allclose(logits, model.readout.logits(kept["final"]), rtol=1e-12, atol=1e-12)


def test_positions_before_an_edit_stay_as_they_are(tokens):
    model = tiny.model("gpt2")
    edited = Steered(model, edits=[add(0, 5.0, positions=[4, 99])], dictionaries=[exact_at("resid_pre0")]).logits(
        tokens
    )
    plain = Steered(model).logits(tokens)
    assert torch.equal(edited[:, :4], plain[:, :4])
    assert not torch.allclose(edited[:, 4], plain[:, 4])


def test_nothing_is_left_behind(tokens):
    model = tiny.model("gpt2")
    before = traces(model)
    Steered(model, edits=[add(0, 5.0)], dictionaries=[exact_at("resid_pre0")]).logits(tokens)
    with pytest.raises(NotFinite, match="edit less"):
        Steered(model, edits=[clamp(0, 1e308), scale(0, 1e300)], dictionaries=[exact_at("resid_post1")]).logits(tokens)
    assert traces(model) == before


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: add("a0.h1", 1.0), "expected a feature or an error term"),
        (lambda: add("m0.err", 1.0), "it is a vector"),
        (lambda: clamp(3, float("nan")), "expected a finite number"),
        (lambda: scale("m0.f3@2", 1.0, positions=[1]), "expected positions in one place"),
        (lambda: ablate(2, positions=[-1]), "expected positions of 0 or more"),
        (lambda: add(1.5, 1.0), "expected a feature's node or number"),
    ],
)
def test_edits_that_make_no_sense_are_refused(make, sentence):
    with pytest.raises(InvalidOption) as caught:
        make()
    assert sentence in str(caught.value)


def test_edits_of_features_that_no_dictionary_has_are_refused():
    model, dictionary = toy.model(), create("identity", d_in=4, n_features=4, site="attn_out0", dtype=torch.float64)
    for edit in (add(4, 1.0), add("a0.f4", 1.0), add("r0.f1", 1.0), add("m0.f1", 1.0)):
        with pytest.raises(InvalidOption, match=r"expected a feature of the dictionaries \(a0.f0 to f3\)"):
            Steered(model, edits=[edit], dictionaries=[dictionary])
    with pytest.raises(InvalidOption, match="there is none"):
        Steered(model, edits=[add(0, 1.0)])
    other = create("identity", d_in=4, n_features=4, site="resid_post0", dtype=torch.float64)
    with pytest.raises(InvalidOption, match="got feature 0"):
        Steered(model, edits=[add(0, 1.0)], dictionaries=[dictionary, other])
    with pytest.raises(InvalidOption, match="one dictionary per site"):
        Steered(model, edits=[add("a0.f0", 1.0)], dictionaries=[dictionary, dictionary])
    with pytest.raises(InvalidTask, match="token ids from 0 to 3"):
        Steered(model).logits(torch.tensor([[7]]))
