"""Effects of features against runs that patch them, finite differences, and what must add up."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from circuits.features import agreement_toy as toy
from circuits.features.feature_run import FeatureRun, decoder_rows, error_pull_back, feature_gradients, gates
from circuits.features.node_effects import node_effects
from graphs.nodes import Node
from patching import toy as hand
from patching.activation import SiteRun
from patching.component_run import ComponentRun
from patching.errors import InvalidOption
from patching.sites import Site, Start, forward
from tests import tiny
from tests.circuits.features import random_dictionaries

NEAR = {"rtol": 1e-9, "atol": 1e-10}
FAMILIES = ("gpt2", "gpt_neox")  # sequential and parallel blocks


def made(family="gpt2", architecture="relu", *, task=None, only=None, **options):
    model = tiny.model(family)
    dictionaries = random_dictionaries.everywhere(model, architecture, only=only)
    return FeatureRun(model, task or tiny.task(n=3, prefix=1), dictionaries, **options)


def components(run, **options):
    return ComponentRun(
        run.model, run.task, components=("features",), dictionaries=list(run.dictionaries.values()), **options
    )


def flat(run, effects, *, prompts=True):
    """All effects in the order of a ComponentRun's units."""
    return torch.cat([(effects.prompts if prompts else effects.values)[site] for site in run.sites], dim=-1)


# --- dictionaries in the model ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_inserting_dictionaries_with_their_errors_changes_neither_logits_nor_gradients(family):
    """And a detached error term, the control, changes the gradients by as much as they are."""
    run = made(family)
    part = run.parts[0]

    def logits_and_gradient(splice):
        embedded = part.embedded.clone().requires_grad_(True)

        def visit(kind, layer, value, _narrow):
            dictionary = run.dictionaries.get(Site(kind, layer))
            return value if dictionary is None else splice(dictionary, value)

        final = forward(run.model, part.contexts, Start(0, 0, 0, embedded), visit, answer=part.answer, trim=False)
        logits = run.model.readout.logits(final)
        return logits, torch.autograd.grad(part.measure(final).sum(), embedded)[0]

    plain = logits_and_gradient(lambda _, x: x)
    spliced = logits_and_gradient(lambda one, x: one.reconstruct(x) + one.error(x))
    control = logits_and_gradient(lambda one, x: one.reconstruct(x) + one.error(x).detach())
    torch.testing.assert_close(spliced[0], plain[0], **NEAR)
    torch.testing.assert_close(spliced[1], plain[1], **NEAR)
    torch.testing.assert_close(control[0], plain[0], **NEAR)
    assert (control[1] - plain[1]).abs().max() > 0.1 * plain[1].abs().max()


@pytest.mark.parametrize("architecture", random_dictionaries.OPTIONS)
def test_gradients_through_each_architecture_are_those_of_autograd(architecture):
    """Decoder and encoder are used as matrices; autograd goes through the dictionaries themselves."""
    options = {"rescale": True} if architecture == "topk" else {}
    one = random_dictionaries.make(architecture, "mlp_out0", width=12, **options)
    generator = torch.Generator().manual_seed(5)
    x, gradient = torch.randn(2, 4, 12, dtype=torch.float64, generator=generator)
    x.requires_grad_(True)
    features = one.encode(x)
    assert (features != 0).any()
    leaf = features.detach().requires_grad_(True)
    (expected,) = torch.autograd.grad(one.decode(leaf), leaf, gradient)
    torch.testing.assert_close(feature_gradients(one, gradient), expected)
    units = torch.tensor([0, 3, 7])
    torch.testing.assert_close(gradient @ decoder_rows(one, units).T, expected[:, units])
    slopes, columns = gates(one, x), one.W_enc.detach()
    for unit in units.tolist():
        (row,) = torch.autograd.grad(features[:, unit].sum(), x, retain_graph=True)
        torch.testing.assert_close(slopes[:, unit, None] * columns[:, unit], row)
    (back,) = torch.autograd.grad(one.error(x), x, gradient)
    torch.testing.assert_close(error_pull_back(one, slopes, gradient), back)


# --- exact -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["relu", "topk", "gated"])
@pytest.mark.parametrize("ablation", ["corrupt", "zero", "mean-positional"])
def test_exact_effects_are_those_of_runs_under_masks(architecture, ablation):
    only = ["resid_pre0", "attn_out0", "mlp_out1", "resid_post0", "resid_post1"]
    run = made("gpt2", architecture, only=only, ablation=ablation, task=tiny.task(n=2, prefix=2))
    other = components(run, ablation=ablation)
    summed = node_effects(run, method="exact", aggregation="sum", keep_prompts=True)
    masks = 1 - torch.eye(other.n_units, dtype=torch.float64)
    torch.testing.assert_close(flat(run, summed), (other(masks) - other.clean_metric).T, **NEAR)


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_effects_at_positions_are_those_of_runs_under_masks(family):
    run = made(family, only=["attn_out1", "mlp_out0", "resid_post0"], task=tiny.task(n=2, length=4))
    effects = node_effects(run, method="exact", keep_prompts=True)
    other = components(run).positions()
    count = math.prod(other.mask_shape)
    masks = (1 - torch.eye(count, dtype=torch.float64)).reshape(count, *other.mask_shape)
    expected = (other(masks) - other.clean_metric).T.reshape(2, *other.mask_shape)
    torch.testing.assert_close(flat(run, effects), expected, **NEAR)


def test_exact_effects_of_some_nodes_are_those_of_all():
    run = made(only=["mlp_out0", "resid_post0"])
    every = node_effects(run, method="exact")
    strongest = sorted(every.nodes(0), key=lambda node: -abs(every[node]))[:3]
    few = node_effects(run, method="exact", only=strongest)
    assert set(few.nodes(0)) == set(strongest)
    for node in strongest:
        assert few[node] == pytest.approx(every[node], rel=1e-12)


# --- first order -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma2"])
def test_attribution_patching_is_the_derivative_of_the_metric(family):
    """Against central differences of the masks of single units, and the engine's own slopes."""
    run = made(family)
    effects = node_effects(run, method="atp", keep_prompts=True, aggregation="sum")
    other = components(run)
    found = flat(run, effects)
    torch.testing.assert_close(found, -other.slopes(), **NEAR)
    units = found.abs().sum(0).argsort(descending=True)[:6]
    step = 1e-5
    shifts = step * torch.eye(other.n_units, dtype=torch.float64)[units]
    differences = (other(1 - shifts) - other(1 + shifts)) / (2 * step)
    torch.testing.assert_close(found[:, units], differences.T, rtol=1e-4, atol=1e-6)


def test_all_methods_agree_where_everything_downstream_is_affine():
    """The toy by hand has no norm, no MLP and fixed patterns."""
    model, task = hand.model(), hand.task()
    dictionaries = random_dictionaries.everywhere(model, features=10)
    run = FeatureRun(model, task, dictionaries)
    found = [flat(run, node_effects(run, method=method, keep_prompts=True)) for method in ("atp", "ig", "exact")]
    assert found[0].abs().max() > 0.1
    torch.testing.assert_close(found[1], found[0], **NEAR)
    torch.testing.assert_close(found[2].to(found[0]), found[0], **NEAR)
    swapped = FeatureRun(model, task.swapped(), dictionaries)
    torch.testing.assert_close(flat(swapped, node_effects(swapped, keep_prompts=True)), -found[0], **NEAR)


# --- integrated gradients --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_effects_at_every_site_add_up_to_patching_it_and_at_a_residual_cut_to_everything(family):
    run = made(family)
    effects = node_effects(run, steps=200)
    patched = SiteRun(run.model, run.task)
    for site in run.sites:
        whole = float((patched([(site,)])[0] - patched.base_metric).mean())
        assert effects.total(site) == pytest.approx(whole, abs=2e-4)
        if site.kind in ("resid_pre", "resid_post"):
            assert whole == pytest.approx(float((run.patched_metric - run.clean_metric).mean()), abs=1e-9)


@pytest.mark.parametrize("ablation", ["zero", "mean-positional", "mean"])
def test_effects_of_pooled_values_add_up_to_ablating_the_site(ablation):
    """Features and error terms that are zero or means are no run, but the path to them is as straight."""
    run = made(architecture="topk", ablation=ablation, only=["attn_out0", "resid_post0", "mlp_out1"])
    effects = node_effects(run, steps=200)
    other = components(run, ablation=ablation)
    masks = torch.ones(len(run.sites), other.n_units, dtype=torch.float64)
    for row, group in enumerate(other.groups):
        masks[row, group.start : group.start + group.size] = 0
    whole = (other(masks) - other.clean_metric).mean(-1)
    assert [effects.total(site) for site in run.sites] == pytest.approx(whole.tolist(), abs=1e-3)
    assert whole.abs().min() > 0.01


def test_midpoints_converge_quadratically_and_the_left_rule_linearly():
    run = made(only=["resid_post0"])
    whole = float((run.patched_metric - run.clean_metric).mean())
    (site,) = run.sites

    def gap(rule, steps):
        return abs(node_effects(run, rule=rule, steps=steps).total(site) - whole)

    assert gap("midpoint", 80) < gap("midpoint", 20) / 8
    assert gap("left", 20) / 6 < gap("left", 80) < gap("left", 20) / 3
    assert gap("midpoint", 20) < gap("left", 20) / 10


def test_the_path_does_not_depend_on_the_dictionary():
    """The effect of a site is the same for any dictionary, and so is the gradient."""
    kinds = ("relu", "topk", "gated", "identity")
    runs = [made(architecture=kind, only=["attn_out1", "resid_post0"]) for kind in kinds]
    found = [node_effects(run, steps=5) for run in runs]
    for other in found[1:]:
        for site in runs[0].sites:
            assert other.total(site) == pytest.approx(found[0].total(site), rel=1e-10)
            torch.testing.assert_close(other.gradients[site], found[0].gradients[site], rtol=0, atol=0)


def test_left_rule_with_one_step_is_attribution_patching():
    run = made()
    one = node_effects(run, rule="left", steps=1, keep_prompts=True)
    torch.testing.assert_close(flat(run, one), flat(run, node_effects(run, method="atp", keep_prompts=True)), **NEAR)


# --- invariances -----------------------------------------------------------------------------------------------------


def test_permuting_features_permutes_their_effects():
    run = made(only=["mlp_out0"])
    (dictionary,) = run.dictionaries.values()
    order = torch.randperm(dictionary.n_features, generator=torch.Generator().manual_seed(1))
    other = copy.deepcopy(dictionary)
    with torch.no_grad():
        other.W_enc.copy_(dictionary.W_enc[:, order])
        other.b_enc.copy_(dictionary.b_enc[order])
        other.W_dec.copy_(dictionary.W_dec[order])
    permuted = FeatureRun(run.model, run.task, [other])
    found = node_effects(run).values[run.sites[0]]
    expected = torch.cat((found[:, :-1][:, order], found[:, -1:]), dim=1)
    torch.testing.assert_close(node_effects(permuted).values[run.sites[0]], expected, **NEAR)


@pytest.mark.parametrize("method", ["ig", "atp", "exact"])
def test_many_prompts_at_once_are_each_by_itself_whatever_the_memory(method):
    task = tiny.task(n=4, length=4)
    only = ["attn_out0", "resid_post1"] if method != "exact" else ["attn_out1"]
    whole = made(task=task, only=only)
    together = flat(whole, node_effects(whole, method=method, keep_prompts=True))
    alone = [made(task=task.subset(slice(row, row + 1)), only=only) for row in range(4)]
    rows = [flat(run, node_effects(run, method=method, keep_prompts=True)) for run in alone]
    torch.testing.assert_close(together, torch.cat(rows), **NEAR)
    tight = made(task=task, only=only, memory=1)
    assert len(tight.parts) == 4
    again = node_effects(tight, method=method, keep_prompts=True)
    torch.testing.assert_close(flat(tight, again), together, **NEAR)
    torch.testing.assert_close(flat(tight, again, prompts=False).float(), together.mean(0).float())


def test_means_and_largest_are_those_of_the_prompts():
    run = made()
    effects = node_effects(run, keep_prompts=True)
    for site in run.sites:
        torch.testing.assert_close(effects.values[site], effects.prompts[site].mean(0))
        torch.testing.assert_close(effects.largest[site], effects.prompts[site].abs().amax(0))
    summed = node_effects(run, aggregation="sum")
    for site in run.sites:
        torch.testing.assert_close(summed.values[site], effects.values[site].sum(0), **NEAR)
    assert set(effects.nodes(0.05)) <= set(effects.nodes(0.05, threshold_on="example"))
    assert set(effects.nodes(0.05)) != set(effects.nodes(0.05, threshold_on="example"))


def test_a_threshold_for_some_nodes_keeps_as_many():
    effects = node_effects(made(), steps=2)
    for count in (0, 1, 17):
        assert len(effects.nodes(effects.threshold_for(count))) == count
    assert effects.threshold_for(10**9) == 0
    with pytest.raises(InvalidOption, match="number of nodes"):
        effects.threshold_for(-1)


@pytest.mark.parametrize("method", ["ig", "atp", "exact"])
def test_equal_prompts_have_no_effects(method):
    task = tiny.task(n=2, prefix=tiny.LENGTH)
    run = made(task=task, only=["resid_post0", "mlp_out1"])
    assert node_effects(run, method=method).strongest < 1e-12


# --- the toy by hand -------------------------------------------------------------------------------------------------


def test_error_term_takes_over_what_a_dictionary_loses():
    """Without the direction that moves, both its features' effects are the error term's."""
    task = toy.task()
    whole = node_effects(FeatureRun(toy.model(), task, toy.dictionaries()), steps=20)
    lost = FeatureRun(toy.model(), task, toy.dictionaries(without={"attn_out0": ("moved",)}))
    effects = node_effects(lost, steps=20)
    known = toy.nodes()
    assert effects[toy.moved_error()] == pytest.approx(-6, abs=1e-9)
    assert effects[toy.moved_error()] == pytest.approx(whole[known["moved"]] + whole[known["not moved"]])
    assert effects[known["moved"]] == effects[known["not moved"]] == 0
    assert whole[toy.moved_error()] == pytest.approx(0, abs=1e-9)
    assert effects[known["sing"]] == pytest.approx(whole[known["sing"]])


def test_identity_dictionary_is_the_neurons_and_leaves_no_error():
    run = made(architecture="identity")
    effects = node_effects(run, method="atp")
    for site in run.sites:
        change = run.parts[0].source[site] - run.parts[0].base[site]
        expected = (effects.gradients[site] * change).mean(0)
        torch.testing.assert_close(effects.values[site][:, :-1], expected)
        assert not effects.values[site][:, -1].any()


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"method": "eap"}, "expected a method out of ig, atp, exact"),
        ({"rule": "simpson"}, "expected a rule"),
        ({"steps": 0}, "at least one step"),
        ({"aggregation": "mean"}, "expected an aggregation out of none, sum"),
        ({"only": [Node.parse("m0.f1@0")]}, "exact effects alone"),
    ],
)
def test_options_out_of_range_are_refused(options, sentence):
    run = FeatureRun(toy.model(), toy.task(), toy.dictionaries())
    with pytest.raises(InvalidOption, match=sentence):
        node_effects(run, **options)


def test_attribution_patching_of_a_metric_without_gradient_is_refused():
    run = FeatureRun(toy.model(), toy.task(), toy.dictionaries(), metric="kl")
    with pytest.raises(InvalidOption, match="gradient at the clean run"):
        node_effects(run, method="atp")
    assert node_effects(run).strongest > 0.1


@pytest.mark.parametrize("threshold", [-0.1, math.nan])
def test_thresholds_that_are_no_absolute_effects_are_refused(threshold):
    effects = node_effects(FeatureRun(toy.model(), toy.task(), toy.dictionaries()), method="atp")
    with pytest.raises(InvalidOption, match="threshold of 0 or more"):
        effects.nodes(threshold)
    with pytest.raises(InvalidOption, match="threshold_on out of mean, example"):
        effects.nodes(0.1, threshold_on="median")


@pytest.mark.parametrize("name", ["m3.f1@0", "m0.f16@0", "a0.h0", "m0.f1@5", "m0.f1"])
def test_nodes_that_are_not_there_are_refused(name):
    effects = node_effects(FeatureRun(toy.model(), toy.task(), toy.dictionaries()), method="atp")
    with pytest.raises(InvalidOption, match="expected"):
        effects[name]


def test_dictionaries_that_do_not_fit_are_refused():
    model, task = toy.model(), toy.task()

    def one(site, width=8, architecture="relu", **options):
        return random_dictionaries.make(architecture, site, width=width, **options)

    cases = [
        ([], "at least one dictionary"),
        ([one("mlp_out0", width=9)], "width 8"),
        ([one("resid_mid0")], "attn_out, mlp_out or resid_post"),
        ([one("resid_post1")], "layer from 0 to 0"),
        ([one("mlp_out0"), one("mlp_out0")], "one dictionary for each site"),
    ]
    for dictionaries, sentence in cases:
        with pytest.raises(InvalidOption, match=sentence):
            FeatureRun(model, task, dictionaries)
    broken = one("mlp_out0")
    with torch.no_grad():
        broken.W_dec[0, 0] = math.nan
    with pytest.raises(InvalidOption, match="W_dec of the dictionary of mlp_out0"):
        FeatureRun(model, task, [broken])
    with pytest.raises(InvalidOption, match="MLP"):
        FeatureRun(tiny.model("attention_only"), tiny.task(), [one("mlp_out0", width=32)])


def test_transcoders_are_refused_by_name():
    from circuits.features.dictionary import create

    one = create("transcoder", d_in=8, n_features=16, site="mlp_out0", dtype=torch.float64)
    with pytest.raises(InvalidOption, match="transcoder"):
        FeatureRun(toy.model(), toy.task(), [one])


def test_a_dictionary_without_active_features_leaves_everything_to_the_error_term():
    model, task = tiny.model("gpt2"), tiny.task(n=2)
    one = random_dictionaries.make("relu", "resid_post0", width=model.d_model)
    with torch.no_grad():
        one.b_enc.fill_(-1e6)
    effects = node_effects(FeatureRun(model, task, [one]), method="exact", aggregation="sum")
    assert [str(node) for node in effects.nodes(0)] == ["r0.err"]


def test_own_dictionaries_are_left_as_they_are():
    model = tiny.model("gpt2", dtype=torch.float32)
    one = random_dictionaries.make("relu", "resid_post0", width=model.d_model)
    before = {name: weight.clone() for name, weight in one.named_parameters()}
    effects = node_effects(FeatureRun(model, tiny.task(n=2), [one]), method="atp")
    assert effects.gradients[Site("resid_post", 0)].dtype == torch.float32
    for name, weight in one.named_parameters():
        assert weight.dtype == torch.float64
        assert weight.requires_grad
        assert weight.grad is None
        assert torch.equal(weight, before[name])
