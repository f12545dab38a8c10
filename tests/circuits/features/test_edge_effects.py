"""Effects of edges against finite differences of runs in which everything between is held, and what must add up."""

from __future__ import annotations

import itertools

import pytest
import torch

from circuits.features import agreement_toy as toy
from circuits.features import edge_graph
from circuits.features.edge_effects import edge_effects
from circuits.features.edge_graph import Graph
from circuits.features.feature_run import FeatureRun
from circuits.features.node_effects import node_effects
from graphs.nodes import LOGITS, Node
from patching.errors import InvalidOption
from patching.sites import Site, Start, forward
from tests import tiny
from tests.circuits.features import random_dictionaries

FAMILIES = ("gpt2", "gpt_neox")  # sequential and parallel blocks


def made(family="gpt2", architecture="relu", *, n=2, length=4, only=None, features=12, **options):
    model = tiny.model(family)
    dictionaries = random_dictionaries.everywhere(model, architecture, only=only, features=features)
    return FeatureRun(model, tiny.task(n=n, length=length), dictionaries, **options)


def every_node(run, effects):
    """All features and error terms, whether they have effects or not."""
    for site in run.sites:
        shape = effects.values[site].shape
        for *position, unit in itertools.product(*map(range, shape)):
            yield run.node(site, unit, *position)


# --- against runs ----------------------------------------------------------------------------------------------------


def held(run, part, moved, step):
    """What the model computes at every site if one site is shifted and all others stay at their clean values."""
    found = {}

    def visit(kind, layer, value, _narrow):
        site = Site(kind, layer)
        if site not in run.dictionaries:
            return value
        found[site] = value
        return part.base[site] + step if site == moved else part.base[site]

    start = Start(0, 0, 0, part.embedded)
    final = forward(run.model, part.contexts, start, visit, answer=part.answer, trim=False)
    return found, part.measure(final)


def read_out(run, effects, site, value):
    """Every node's share of the metric, to first order: its value at a site times its gradient [example, pos, unit]."""
    dictionary, gradient = run.dictionaries[site], effects.gradients[site]
    features = dictionary.encode(value)
    rest = (gradient * (value - dictionary.decode(features))).sum(-1, keepdim=True)
    slopes = torch.autograd.functional.vjp(dictionary.decode, features, gradient)[1]
    return torch.cat((slopes * features, rest), dim=-1)


@pytest.mark.parametrize(
    ("family", "only"),
    [
        ("gpt2", None),
        ("gpt_neox", None),
        ("gpt2", ["resid_pre0", "resid_post0", "resid_post1"]),
        ("gpt2", ["mlp_out0", "attn_out1", "mlp_out1"]),
        ("gemma2", ["attn_out0", "resid_post0", "mlp_out1", "resid_post1"]),
        ("attention_only", None),
        ("llama", ["attn_out0", "mlp_out0", "resid_post1"]),
    ],
)
def test_edges_are_finite_differences_with_everything_between_held(family, only):
    """For nodes of every site: shift one node's direction, hold all other sites, read every later site's nodes."""
    run = made(family, only=only)
    effects = node_effects(run, method="atp", keep_prompts=True)
    nodes = list(every_node(run, effects))
    edges = edge_effects(run, effects, nodes=nodes, method="clean")
    (part,) = run.parts
    generator = torch.Generator().manual_seed(3)
    step, seen = 1e-6, 0
    for source in run.sites:
        features, rest = part.change(source)
        rows = run.dictionaries[source].W_dec
        place = {node: number for number, node in enumerate(edges.nodes[source])}
        for _ in range(3):
            position = int(torch.randint(0, run.length, (), generator=generator))
            strength = features[:, position].abs().sum(0)
            unit = int(strength.argmax()) if _ else features.shape[-1]  # the error term, then a feature
            change = torch.zeros_like(part.base[source])
            error = unit == features.shape[-1]
            change[:, position] = rest[:, position] if error else features[:, position, unit, None] * rows[unit]
            ends = [held(run, part, source, sign * step * change) for sign in (1, -1)]
            column = place[run.node(source, unit, position)]
            whole = (ends[0][1] - ends[1][1]) / (2 * step)
            if (source, None) in edges.values:
                found = edges.values[source, None][0, column]
                torch.testing.assert_close(found, whole.mean(), rtol=1e-4, atol=1e-7)
            else:
                assert whole.abs().max() < 1e-7
            for target in run.sites[run.sites.index(source) + 1 :]:
                shares = [read_out(run, effects, target, values[target]) for values, _ in ends]
                expected = ((shares[0] - shares[1]) / (2 * step)).mean(0).flatten()
                if (source, target) not in edges.values:
                    assert expected.abs().max() < 1e-7
                    continue
                seen += int((expected.abs() > 1e-4).sum())
                torch.testing.assert_close(edges.values[source, target][:, column], expected, rtol=1e-3, atol=1e-6)
    assert seen > 50


# --- what adds up ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("aggregation", ["none", "sum"])
def test_direct_edges_into_a_residual_stream_add_up_to_its_change(family, aggregation):
    """``Σ_u E(u -> all of resid_l) = Σ_d g_d Δd``, for attention, MLP and the stream before: nothing twice."""
    run = made(family)
    effects = node_effects(run, method="atp", aggregation=aggregation)
    edges = edge_effects(run, effects, nodes=list(every_node(run, effects)), method="clean")
    for layer in (0, 1):
        site = Site("resid_post", layer)
        before = Site("resid_post", layer - 1) if layer else Site("resid_pre", 0)
        sources = {source for source, target in edges.values if target == site}
        assert sources == {before, Site("attn_out", layer), Site("mlp_out", layer)}
        total = float(edges.into(site).sum())
        assert total == pytest.approx(effects.total(site), rel=1e-9)
        assert abs(total) > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_all_paths_together_are_the_derivative_with_nothing_held(family):
    """``naive = direct + through MLP + through attention + through both``; the last not in parallel blocks."""
    names = ["resid_pre0", "attn_out0", "mlp_out0", "resid_post0"]
    found = {}
    for only in (names, [names[0], names[3]]):
        run = made(family, "identity", n=1, only=only)
        effects = node_effects(run, method="atp")
        nodes = [node for node in every_node(run, effects) if not node.is_error]
        edges = edge_effects(run, effects, nodes=nodes, method="clean")
        change, gradient = (
            {str(site): values.flatten() for site, values in each.items()}
            for each in ({site: run.parts[0].step(site) for site in run.sites}, effects.gradients)
        )
        for (source, target), values in edges.values.items():
            if target is not None:  # what is left of an edge without the gradient and the change is the Jacobian
                key = (str(target), str(source), len(only))
                found[key] = values / gradient[str(target)][:, None] / change[str(source)]
    first, attention, mlp, last = names
    total = found[last, first, 4] + found[last, mlp, 4] @ found[mlp, first, 4]
    total = total + found[last, attention, 4] @ found[attention, first, 4]
    assert ((mlp, attention, 4) in found) == (family == "gpt2")
    if family == "gpt2":
        total = total + found[last, mlp, 4] @ found[mlp, attention, 4] @ found[attention, first, 4]
    naive = found[last, first, 2]
    torch.testing.assert_close(total, naive, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(found[last, first, 4], torch.eye(len(naive), dtype=torch.float64), rtol=1e-9, atol=1e-9)
    assert (naive - found[last, first, 4]).abs().max() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("architecture", ["relu", "identity"])
def test_averaged_edges_into_every_node_add_up_to_its_effect(family, architecture):
    """And edges into the logits to the whole effect of the other prompts."""
    run, steps = made(family, architecture), 100 if architecture == "identity" else 300
    effects = node_effects(run, steps=steps)
    edges = edge_effects(run, effects, nodes=list(every_node(run, effects)), method="ig", steps=steps)
    for site in run.sites[1:]:
        expected = torch.tensor([effects[node] for node in edges.nodes[site]], dtype=torch.float64)
        assert expected.abs().max() > 1e-2
        torch.testing.assert_close(edges.into(site), expected, rtol=0, atol=0.02 * float(expected.abs().max()))
        gap = float((edges.into(site) - expected).abs().mean())
        assert gap < 2e-3 * float(expected.abs().max())
    whole = float((run.patched_metric - run.clean_metric).mean())
    assert float(edges.into(None)) == pytest.approx(whole, abs=1e-4)


def test_what_an_encoder_jumps_no_edge_carries():
    """A feature that enters the top k jumps from 0; no derivative sees that, so edges into it leave something over."""
    run = made(architecture="topk")
    effects = node_effects(run, steps=200)
    edges = edge_effects(run, effects, nodes=list(every_node(run, effects)), steps=200)
    over = []
    for site in run.sites[1:]:
        expected = torch.tensor([effects[node] for node in edges.nodes[site]], dtype=torch.float64)
        over.append(float((edges.into(site) - expected).abs().max() / expected.abs().max()))
    assert max(over) > 0.05


def test_edges_into_the_logits_are_the_effects_of_the_last_residual_stream():
    run = made()
    effects = node_effects(run, steps=7)
    for method in ("ig", "clean"):
        edges = edge_effects(run, effects, nodes=list(every_node(run, effects)), method=method, steps=7)
        last = run.sites[-1]
        assert {source for source, target in edges.values if target is None} == {last}
        expected = [effects[node] for node in edges.nodes[last]]
        torch.testing.assert_close(edges.values[last, None][0], torch.tensor(expected, dtype=torch.float64))


def test_summed_edges_are_sums_of_edges_between_positions():
    run = made()
    apart = node_effects(run)
    whole = node_effects(run, aggregation="sum")
    between = edge_effects(run, apart, nodes=list(every_node(run, apart)), steps=3)
    summed = edge_effects(run, whole, nodes=list(every_node(run, whole)), steps=3)
    for (source, target), effects in summed.values.items():
        expected = torch.zeros_like(effects)
        rows = [0] if target is None else [run.place(node)[1] for node in between.nodes[target]]
        columns = [run.place(node)[1] for node in between.nodes[source]]
        index = (torch.tensor(rows)[:, None], torch.tensor(columns)[None])
        expected.index_put_(index, between.values[source, target], accumulate=True)
        torch.testing.assert_close(effects, expected, rtol=1e-8, atol=1e-10)


def test_no_edge_goes_back_in_position_and_only_attention_goes_on():
    run = made()
    effects = node_effects(run)
    edges = edge_effects(run, effects, nodes=list(every_node(run, effects)), steps=2).edges(0)
    across = set()
    for edge in edges:
        if edge.target != LOGITS:
            assert edge.source.position <= edge.target.position
            if edge.source.position < edge.target.position:
                across.add(edge.target.site)
    assert across == {"attn"}


# --- how it is computed ----------------------------------------------------------------------------------------------


def test_sharing_a_product_among_positions_changes_nothing(monkeypatch):
    run = made()
    effects = node_effects(run)
    nodes = [node for node in every_node(run, effects) if (node.index or 0) % 2 == 0]
    shared = edge_effects(run, effects, nodes=nodes, steps=2)
    monkeypatch.setattr(edge_graph.EdgeWork, "_stays", lambda *_: False)
    apart = edge_effects(run, effects, nodes=nodes, steps=2)
    for pair, values in shared.values.items():
        torch.testing.assert_close(apart.values[pair], values, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(apart.largest[pair], shared.largest[pair], rtol=1e-10, atol=1e-12)


def test_memory_and_other_prompts_change_nothing():
    """A batch of prompts is each by itself: no edge crosses prompts."""
    run, tight = made(n=3), made(n=3, memory=1)
    assert len(tight.parts) == 3
    found = []
    for one in (run, tight):
        effects = node_effects(one)
        found.append(edge_effects(one, effects, nodes=effects.nodes(0.05), steps=3))
    for pair, values in found[0].values.items():
        torch.testing.assert_close(found[1].values[pair], values, rtol=1e-9, atol=1e-11)
    alone = []
    for row in range(3):
        one = FeatureRun(run.model, run.task.subset(slice(row, row + 1)), list(run.dictionaries.values()))
        effects = node_effects(one)
        nodes = [node for group in found[0].nodes.values() for node in group]
        alone.append(edge_effects(one, effects, nodes=nodes, steps=3))
    for pair, values in found[0].values.items():
        rows = torch.stack([one.values[pair] for one in alone])
        torch.testing.assert_close(values, rows.mean(0), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(found[0].largest[pair], rows.abs().amax(0), rtol=1e-9, atol=1e-11)


def test_edges_of_some_nodes_are_those_of_all():
    run = made()
    effects = node_effects(run)
    every = edge_effects(run, effects, nodes=list(every_node(run, effects)), steps=2).edges(0)
    nodes = effects.nodes(0.1)
    assert 5 < len(nodes) < 200
    few = edge_effects(run, effects, nodes=nodes, steps=2).edges(0)
    expected = {e: v for e, v in every.items() if e.source in nodes and (e.target in nodes or e.target == LOGITS)}
    assert set(few) == set(expected)
    assert max(abs(few[edge] - expected[edge]) for edge in few) < 1e-10


def test_thresholds_on_any_prompt_keep_what_those_on_the_mean_keep_and_more():
    run = made(n=3)
    effects = node_effects(run)
    edges = edge_effects(run, effects, nodes=effects.nodes(0.02), steps=2)
    mean, example = (edges.edges(0.02, threshold_on=order) for order in ("mean", "example"))
    assert set(mean) < set(example)
    assert all(abs(effect) > 0.02 for effect in mean.values())
    assert any(abs(effect) <= 0.02 for effect in example.values())


def test_metrics_with_the_clean_run_in_them_work():
    run = made(metric="kl")
    effects = node_effects(run, steps=4)
    edges = edge_effects(run, effects, nodes=effects.nodes(0.01), steps=4)
    last = run.sites[-1]
    found = torch.tensor([effects[node] for node in edges.nodes[last]], dtype=torch.float64)
    torch.testing.assert_close(edges.into(None), found.sum(0, keepdim=True))


# --- the toy by hand -------------------------------------------------------------------------------------------------

FIVE = {
    "input.f0@1->a0.f5@4": -3.0, "input.f1@1->a0.f5@4": -3.0, "a0.f5@4->m0.f6@4": -4.0, "a0.f13@4->m0.f6@4": -4.0,
    "m0.f6@4->r0.f6@4": -6.0,
}  # fmt: skip
BACK = {"input.f0@1->a0.f13@4": 3.0, "input.f1@1->a0.f13@4": 3.0, "m0.f6@4->r0.f6@4": 6.0}
AVERAGED = {
    **{f"input.f{number}@1->a0.f{sign}@4": 1.5 for number in (0, 1) for sign in (5, 13)},
    **{f"a0.f{sign}@4->m0.f6@4": 3.0 for sign in (5, 13)},
    "m0.f6@4->r0.f6@4": 6.0,
}


@pytest.mark.parametrize(
    ("clean", "method", "expected"),
    [
        ("plural", "clean", FIVE),
        ("singular", "clean", BACK),
        ("plural", "ig", {edge: -effect for edge, effect in AVERAGED.items()}),
        ("singular", "ig", AVERAGED),
    ],
)
def test_edges_of_the_toy_are_those_done_by_hand(clean, method, expected):
    """At the clean run, latents that are off there have no incoming edges; averaged, none is lost."""
    run = FeatureRun(toy.model(), toy.task(clean=clean), toy.dictionaries())
    effects = node_effects(run, steps=200)
    found = edge_effects(run, effects, nodes=effects.nodes(0.1), method=method, steps=200).edges(1e-6)
    inner = {str(edge): effect for edge, effect in found.items() if edge.target != LOGITS}
    assert set(inner) == set(expected)
    assert inner == pytest.approx(expected, abs=1e-6)
    assert found.keys() - {edge for edge in found if str(edge) in inner} == {
        edge for edge in toy.truth().edges if edge.target == LOGITS
    }


def test_wiring_follows_the_sites_that_are_there():
    run = FeatureRun(toy.model(), toy.task(), toy.dictionaries())
    names = {
        str(target): tuple(map(str, sources))
        for target, sources in Graph.of(run.parts[0], [(0.0, 1.0)]).wiring().items()
    }
    assert names == {
        "resid_pre0": (),
        "attn_out0": ("resid_pre0",),
        "mlp_out0": ("resid_pre0", "attn_out0"),
        "resid_post0": ("resid_pre0", "attn_out0", "mlp_out0"),
        "None": ("resid_post0",),
    }
    few = FeatureRun(toy.model(), toy.task(), toy.dictionaries()[1:3])
    wiring = Graph.of(few.parts[0], [(0.0, 1.0)]).wiring()
    assert wiring[None] == few.sites


def test_parallel_attention_does_not_reach_the_mlp():
    wiring = Graph.of(made("gpt_neox").parts[0], [(0.0, 1.0)]).wiring()
    assert Site("attn_out", 1) not in wiring[Site("mlp_out", 1)]
    assert Site("attn_out", 1) in Graph.of(made("gpt2").parts[0], [(0.0, 1.0)]).wiring()[Site("mlp_out", 1)]


# --- what is refused -------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused():
    run = FeatureRun(toy.model(), toy.task(), toy.dictionaries())
    other = FeatureRun(toy.model(), toy.task(), toy.dictionaries())
    effects = node_effects(run, method="atp")
    nodes = [Node.parse("m0.f6@4")]
    cases = [
        ({"method": "jvp"}, "expected a method out of ig, clean"),
        ({"steps": 0}, "at least one step"),
        ({"nodes": [Node.parse("m0.f6")]}, "a position"),
        ({"nodes": [Node.parse("m4.f6@4")]}, "one of resid_pre0"),
    ]
    for options, sentence in cases:
        with pytest.raises(InvalidOption, match=sentence):
            edge_effects(run, effects, **({"nodes": nodes} | options))
    with pytest.raises(InvalidOption, match="same run"):
        edge_effects(other, effects, nodes=nodes)
    exact = node_effects(run, method="exact")
    with pytest.raises(InvalidOption, match="effects with gradients"):
        edge_effects(run, exact, nodes=nodes)


def test_too_many_edges_are_refused_before_they_are_computed():
    run = made()
    effects = node_effects(run, method="atp")
    nodes = list(every_node(run, effects))
    with pytest.raises(InvalidOption, match=r"at most 1,000 edges; 364 nodes make 32,500.* products"):
        edge_effects(run, effects, nodes=nodes, most_edges=1_000)


def test_no_nodes_make_no_edges():
    run = FeatureRun(toy.model(), toy.task(), toy.dictionaries())
    effects = node_effects(run, method="atp")
    assert edge_effects(run, effects, nodes=[]).edges(0) == {}
