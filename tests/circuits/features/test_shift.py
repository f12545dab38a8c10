"""SHIFT: by hand on the toy, where the accuracies are known; effects against finite differences and each other."""

from __future__ import annotations

import math

import pytest
import torch

from circuits.features import create
from circuits.features.activations import Prompts, read
from circuits.features.labelled_prompts import LabelledPrompts, accuracies, delete_tokens, table
from circuits.features.pooled_run import PooledRun
from circuits.features.probing import Probe
from circuits.features.shift import evaluate, fit_probe, latent_effects, skyline
from graphs.nodes import Node
from patching import toy
from patching.errors import InvalidOption
from patching.sites import Site, Start
from tests import tiny

SITES = ("resid_pre0", "attn_out0", "mlp_out0", "resid_post0", "attn_out1", "resid_post1")
STEPS = 60


def sentence(intended: bool, spurious: bool) -> list[int]:
    """Tokens 0 and 1 say the intended label once, tokens 2 and 3 the spurious one twice; the rest is padding."""
    return [2 if spurious else 3, 2 if spurious else 3, 0 if intended else 1, 0]


def data(*, biased: bool) -> LabelledPrompts:
    pairs = [(True, True), (False, False)] if biased else [(a, b) for a in (True, False) for b in (True, False)]
    rows = torch.tensor([sentence(*pair) for pair in pairs] * 3)
    prompts = Prompts.from_tokens(rows, lengths=torch.full((len(rows),), 3))
    first, second = (torch.tensor([pair[side] for pair in pairs] * 3) for side in (0, 1))
    return LabelledPrompts(prompts, first, second)


def identity(site: str, width: int = 4):
    return create("identity", d_in=width, n_features=width, site=site, dtype=torch.float64)


def nodes(*names: str) -> list[Node]:
    return [Node.parse(name) for name in names]


def test_fifty_per_cent_becomes_a_hundred():
    """Mean embeddings are (±1/3 along e0 - e1) and (±2/3 along e2 - e3): the probe follows the spurious label alone.

    Its weights are in proportion to the differences of the class means, so the logit is a (1/9 i + 4/9 s) with labels
    i, s = ±1, and s decides. Without features 2 and 3 the logit is a/9 i, as the bias is 0.
    """
    run = PooledRun(toy.model(), "resid_pre0", dictionaries=[identity("resid_pre0")])
    train, test = data(biased=True), data(biased=False)
    probe = fit_probe(run, train)
    assert probe.bias == pytest.approx(0.0, abs=1e-9)
    assert (probe.weight[2] / probe.weight[0]).item() == pytest.approx(2.0)
    before = evaluate(run, probe, test)
    assert (before.intended, before.spurious, before.worst) == (0.5, 1.0, 0.0)
    assert before.groups == {(True, True): 1.0, (True, False): 0.0, (False, True): 0.0, (False, False): 1.0}
    marked = nodes("input.f2", "input.f3")
    after = evaluate(run, probe, test, without=marked)
    assert (after.intended, after.spurious, after.worst) == (1.0, 0.5, 1.0)
    again = evaluate(run, fit_probe(run, train, without=marked), test, without=marked)
    assert again.intended == 1.0
    wrong = evaluate(run, probe, test, without=nodes("input.f0", "input.f1"))
    assert (wrong.intended, wrong.spurious) == (0.5, 1.0)  # the control: the other two do not help
    assert skyline(run, probe, test, 2) == tuple(marked)


def test_effects_by_hand():
    """Zeroing feature 2 takes its share of the mean, 2/3, times its weight from the logit where it is on."""
    run = PooledRun(toy.model(), "resid_pre0", dictionaries=[identity("resid_pre0")])
    probe = Probe(torch.tensor([1.0, -1.0, 4.0, -4.0], dtype=torch.float64), 0.5)
    for method in ("atp", "ig", "exact"):
        found = latent_effects(run, probe, data(biased=True), method=method)
        # half of the prompts have token 2, where -4 * 2/3; in the others the label is negative, and so on
        assert found.values[Site("resid_pre", 0)].tolist() == pytest.approx([-1 / 6, -1 / 6, -4 / 3, -4 / 3])
        assert found["input.f2"] == pytest.approx(-4 / 3)
        assert [str(node) for node, _ in found.ranked(2)] == ["input.f2", "input.f3"]
    assert found.provenance["method"] == "shift-exact"
    assert math.isnan(found["input.err"])


def test_features_before_the_probe_act_through_the_model():
    """Head 0 writes 2 x_0 and head 1 3 x_1 along e2, x the mean so far; zeroing token 0's feature stops head 0.

    On (3, 3, 1, .) the means of e1 are 0, 0, 1/3: head 1 writes 1 along e2 at the third token, 1/3 on average.
    """
    run = PooledRun(toy.model(), "resid_post0", dictionaries=[identity("resid_pre0"), identity("attn_out0")])
    prompts = Prompts.from_tokens(torch.tensor([[3, 3, 1, 0]]), lengths=torch.tensor([3]))
    assert run(prompts)[0].tolist() == pytest.approx([0.0, 1 / 3, 1 / 3, 2 / 3])
    assert run(prompts, without=nodes("input.f1"))[0].tolist() == pytest.approx([0.0, 0.0, 0.0, 2 / 3])
    assert run(prompts, without=nodes("a0.f2"))[0].tolist() == pytest.approx([0.0, 1 / 3, 0.0, 2 / 3])


@pytest.fixture(scope="module")
def random_run() -> PooledRun:
    """Random dictionaries, far from complete, at every site of a small model."""
    model = tiny.model("gpt2")
    made = []
    for number, site in enumerate(SITES):
        one = create("relu", d_in=32, n_features=20, site=site, seed=number, dtype=torch.float64)
        with torch.no_grad():
            one.b_dec.copy_(0.1 * torch.randn(32, generator=torch.Generator().manual_seed(number)))
            one.W_dec.mul_(3.0)
        made.append(one)
    return PooledRun(model, "resid_post1", dictionaries=made)


@pytest.fixture(scope="module")
def random_data() -> LabelledPrompts:
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(0, tiny.VOCAB, (6, tiny.LENGTH), generator=generator)
    prompts = Prompts.from_tokens(tokens, lengths=torch.tensor([7, 4, 6, 7, 3, 5]))
    prompts.keep[:, 0] = False
    return LabelledPrompts(prompts, torch.arange(6) % 2 == 0, torch.arange(6) < 3)


@pytest.fixture(scope="module")
def random_probe() -> Probe:
    return Probe(torch.randn(32, generator=torch.Generator().manual_seed(1), dtype=torch.float64), 0.2)


def logits_towards(run, probe, data, without=()):
    return probe.logits(run(data.prompts, without=without)) * (data.intended.double() * 2 - 1)


def test_exact_effects_are_what_zeroing_does(random_run, random_data, random_probe):
    found = latent_effects(random_run, random_probe, random_data, method="exact")
    clean = logits_towards(random_run, random_probe, random_data)
    for name in ("input.f3", "a0.f5", "m0.f0", "r0.f7", "a1.f2", "a1.f19", "r1.f4"):
        changed = logits_towards(random_run, random_probe, random_data, nodes(name))
        assert found[name] == pytest.approx(float((changed - clean).mean()), abs=1e-9)


def test_integrated_gradients_add_up(random_run, random_data, random_probe):
    """Features and error term of a site together: the metric with the site at b_dec, minus the metric."""
    found = latent_effects(random_run, random_probe, random_data, method="ig", steps=STEPS)
    clean = logits_towards(random_run, random_probe, random_data)
    keep = random_data.prompts.keep.unsqueeze(-1)
    for site, dictionary in random_run.dictionaries.items():
        there = read(random_run.model, random_data.prompts.tokens, [site, f"resid_pre{site.layer}"])
        moved = torch.where(keep, dictionary.b_dec, there[str(site)])
        start = Start(site.layer, 0, 0, there[f"resid_pre{site.layer}"])
        with torch.no_grad():
            value = random_run.run(
                start, random_data.prompts, lambda here, now, site=site, moved=moved: moved if here == site else now
            )
            after = random_probe.logits(random_run.pool(value, random_data.prompts.keep))
        difference = float((after * (random_data.intended.double() * 2 - 1) - clean).mean())
        total = float(found.values[site].sum()) + found.errors[site]
        assert total == pytest.approx(difference, rel=2e-3, abs=2e-3), site


def test_methods_agree_where_the_probe_reads(random_run, random_data, random_probe):
    """At the probe's own site the logit is affine in the features, so all three are exact."""
    site = Site("resid_post", 1)
    values = [
        latent_effects(random_run, random_probe, random_data, method=method, steps=3).values[site]
        for method in ("atp", "ig", "exact")
    ]
    assert torch.allclose(values[0], values[1], atol=1e-9)
    assert torch.allclose(values[0], values[2], atol=1e-9)


def test_attribution_is_the_derivative(random_run, random_data, random_probe):
    """Against a central difference: a feature's direction taken off, in proportion to its activation."""
    site = Site("mlp_out", 0)
    dictionary = random_run.dictionaries[site]
    found = latent_effects(random_run, random_probe, random_data, method="atp").values[site]
    there = read(random_run.model, random_data.prompts.tokens, [site, "resid_pre0"])
    features = dictionary.encode(there[str(site)]) * random_data.prompts.keep.unsqueeze(-1)
    index = int(found.abs().argmax())
    push = features[..., index : index + 1] * dictionary.W_dec[index]
    sides = random_data.intended.double() * 2 - 1

    def metric(size: float) -> float:
        def change(here: Site, now: torch.Tensor) -> torch.Tensor:
            return now - size * push if here == site else now

        with torch.no_grad():
            value = random_run.run(Start(0, 0, 0, there["resid_pre0"]), random_data.prompts, change)
            return float((random_probe.logits(random_run.pool(value, random_data.prompts.keep)) * sides).mean())

    assert float(found[index]) == pytest.approx((metric(1e-5) - metric(-1e-5)) / 2e-5, rel=1e-5)


def test_memory_and_padding_do_not_matter(random_run, random_data, random_probe):
    small = PooledRun(random_run.model, "resid_post1", dictionaries=list(random_run.dictionaries.values()), memory=1)
    other = Prompts(torch.where(random_data.prompts.keep, random_data.prompts.tokens, 7), random_data.prompts.keep)
    other.tokens[:, 0] = random_data.prompts.tokens[:, 0]
    for method in ("ig", "exact"):
        whole = latent_effects(random_run, random_probe, random_data, method=method, steps=2)
        for run, prompts in ((small, random_data.prompts), (random_run, other)):
            again = LabelledPrompts(prompts, random_data.intended, random_data.spurious)
            found = latent_effects(run, random_probe, again, method=method, steps=2)
            for site, values in whole.values.items():
                assert torch.allclose(found.values[site], values, atol=1e-9)


def test_the_error_term_stays(random_run, random_data):
    """Zeroing a feature that is never on changes nothing, zeroing all leaves b_dec and the error: x - f W_dec."""
    site = Site("resid_post", 1)
    dictionary = random_run.dictionaries[site]
    every = [random_run.node(site, index) for index in range(20)]
    x = read(random_run.model, random_data.prompts.tokens, [site])[str(site)]
    expected = random_run.pool(x - dictionary.encode(x) @ dictionary.W_dec, random_data.prompts.keep)
    assert torch.allclose(random_run(random_data.prompts, without=every), expected, atol=1e-10)
    assert torch.equal(random_run(random_data.prompts), random_run(random_data.prompts, without=[]))


def test_deleting_tokens_moves_what_follows():
    found = delete_tokens(data(biased=True), [2, 3], fill=9)
    assert found.prompts.tokens[:2].tolist() == [[0, 9, 9, 9], [1, 9, 9, 9]]
    assert found.prompts.keep.sum(-1).unique().tolist() == [1]
    assert torch.equal(found.intended, data(biased=True).intended)
    with pytest.raises(InvalidOption, match="only the deleted tokens"):
        delete_tokens(data(biased=True), [0, 1, 2, 3])


def test_accuracies_by_hand():
    intended = torch.tensor([True, True, True, False, False])
    spurious = torch.tensor([True, True, False, True, False])
    found = accuracies(torch.tensor([True, False, True, True, False]), intended, spurious)
    assert (found.intended, found.spurious, found.worst) == (0.6, 0.6, 0.0)
    assert found.groups == {(True, True): 0.5, (True, False): 1.0, (False, True): 0.0, (False, False): 1.0}
    assert sum(found.counts.values()) == 5
    assert "| mine | 3 | 60.0% | 60.0% | 0.0% |" in table({"mine": found}, features={"mine": 3})


def test_bad_input():
    model = toy.model()
    with pytest.raises(InvalidOption, match="at or before"):
        PooledRun(model, "resid_pre0", dictionaries=[identity("attn_out0")])
    with pytest.raises(InvalidOption, match="one dictionary for each site"):
        PooledRun(model, "resid_post0", dictionaries=[identity("attn_out0"), identity("attn_out0")])
    with pytest.raises(InvalidOption, match="width 4"):
        PooledRun(model, "resid_post0", dictionaries=[identity("attn_out0", width=5)])
    small = tiny.model("gpt2")
    transcoder = create("transcoder", d_in=32, n_features=8, site="mlp_out0", dtype=torch.float64)
    with pytest.raises(InvalidOption, match="transcoder"):
        PooledRun(small, "resid_post0", dictionaries=[transcoder])
    run = PooledRun(model, "resid_post0", dictionaries=[identity("attn_out0")])
    prompts = data(biased=True)
    for name in ("a0.f4", "a0.err", "m0.f0", "a0.f1@2", "a1.f0"):
        with pytest.raises(InvalidOption, match=r"expected a feature of this run's dictionaries.*a0\.f3"):
            run(prompts.prompts, without=nodes(name))
    probe = fit_probe(run, prompts)
    for options in ({"method": "sobol"}, {"steps": 0}, {"label": "both"}):
        with pytest.raises(InvalidOption):
            latent_effects(run, probe, prompts, **options)
    with pytest.raises(InvalidOption, match="with dictionaries"):
        latent_effects(PooledRun(model, "resid_post0"), probe, prompts)
    with pytest.raises(InvalidOption, match="boolean intended label"):
        LabelledPrompts(prompts.prompts, torch.ones(2).bool(), prompts.spurious)
