"""Masks over components against the edge engine, against patched sites, and against the model's own gradients."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from graphs.nodes import INPUT, Node, head, mlp, neuron
from patching import toy
from patching.ablations import Ablation
from patching.activation import SiteRun
from patching.blocks import forward
from patching.component_run import ComponentRun
from patching.engine import Writes
from patching.errors import InvalidMask, InvalidOption
from patching.exact import scores as exact_scores
from patching.masked import MaskedRun
from patching.sites import Site
from tests import tiny

ABLATIONS = ("corrupt", "zero", "mean", "mean-positional", "resample", "gaussian-noise")


@dataclass
class Linear:
    """A dictionary without an exact reconstruction: random directions, ReLU, a bias."""

    site: str
    n_features: int = 11
    d_in: int = 32

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(7)
        self.inward = torch.randn(self.d_in, self.n_features, generator=generator, dtype=torch.float64) / 5
        self.outward = torch.randn(self.n_features, self.d_in, generator=generator, dtype=torch.float64) / 5
        self.bias = torch.randn(self.d_in, generator=generator, dtype=torch.float64)

    def encode(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.inward)

    def decode(self, features: Tensor) -> Tensor:
        return features @ self.outward + self.bias


def random_masks(run: ComponentRun, count: int = 6, keep: float = 0.7) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    masks = (torch.rand(count, *run.mask_shape, generator=generator) < keep).double()
    masks[0], masks[1] = 1.0, 0.0
    masks[2] = torch.rand(run.mask_shape, generator=generator)
    return masks


# --- against the edge engine ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_nodes_are_what_the_edge_engine_makes_of_them(family: str) -> None:
    nodes = MaskedRun(tiny.model(family), tiny.task(n=3, prefix=1)).nodes()
    run = ComponentRun.of(nodes)
    assert run.units == nodes.units
    masks = random_masks(run)
    torch.testing.assert_close(run(masks), nodes(masks), rtol=0, atol=1e-11)
    torch.testing.assert_close(run.clean_metric, nodes.clean_metric, rtol=0, atol=1e-12)
    torch.testing.assert_close(run.slopes().mean(0), nodes.gradient(nodes.ones()), rtol=0, atol=1e-11)


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_every_ablation(family: str, ablation: str) -> None:
    nodes = MaskedRun(tiny.model(family), tiny.task(n=4, prefix=1), ablation=ablation, metric="kl").nodes()
    run = ComponentRun.of(nodes)
    masks = random_masks(run)
    torch.testing.assert_close(run(masks), nodes(masks), rtol=0, atol=1e-11)


def test_constants_given_by_an_ablation() -> None:
    model, task = tiny.model("gpt2"), tiny.task(n=3)
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    given = Writes(drawn(1, 1, 32), [drawn(4, 1, 1, 8) for _ in range(2)], [drawn(1, 1, 32) for _ in range(2)])
    ablation = Ablation("given", lambda task: task.clean, constants=given)
    nodes = MaskedRun(model, task, ablation=ablation).nodes()
    run = ComponentRun.of(nodes)
    masks = random_masks(run)
    torch.testing.assert_close(run(masks), nodes(masks), rtol=0, atol=1e-11)
    with pytest.raises(InvalidOption, match="no constants for neurons"):
        ComponentRun(model, task, components=("neurons",), ablation=ablation)


# --- against patched sites ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gemma2"])
def test_neurons_are_patched_together(family: str) -> None:
    model, task = tiny.model(family), tiny.task(n=3, prefix=2)
    run = ComponentRun(model, task, components=("neurons",))
    sites = SiteRun(model, task)
    chosen = [neuron(0, 3), neuron(0, 7), neuron(1, 0), neuron(1, 11)]
    patch = tuple(Site("neurons", node.layer or 0, node.index) for node in chosen)
    torch.testing.assert_close(run(run.mask_without(chosen)), sites([patch])[0], rtol=0, atol=1e-11)
    masked = MaskedRun(model, task).neurons()
    mask = run.mask_without(chosen)
    assert bool((masked(mask) == run(mask)).all())


@pytest.mark.parametrize("site", ["resid_pre0", "attn_out0", "mlp_out1", "resid_post0"])
def test_all_features_and_the_error_are_the_site(site: str) -> None:
    model, task = tiny.model("gpt2"), tiny.task(n=3, prefix=1)
    run = ComponentRun(model, task, components=("features",), dictionaries=[Linear(site)])
    parsed = Site.parse(site)
    patched = SiteRun(model, task)([(parsed,)])[0]
    torch.testing.assert_close(run(run.zeros()), patched, rtol=0, atol=1e-11)
    assert bool((run(run.ones()) == run.clean_metric).all())
    assert not torch.allclose(run(run.mask_without(run.units[-1:])), run.clean_metric)


def test_one_feature_is_its_direction_taken_away() -> None:
    """Zero ablation of a feature subtracts its activation times its direction: done to the stream by hand."""
    model, task = tiny.model("gpt2"), tiny.task(n=3)
    dictionary = Linear("resid_post1")
    run = ComponentRun(model, task, components=("features",), dictionaries=[dictionary], ablation="zero")
    final = forward(model.blocks, model.embed(task.clean), model.contexts(7), parallel=False).final
    at_answer = final[torch.arange(3), task.positions]
    without = at_answer - dictionary.encode(at_answer)[:, 4:5] * dictionary.outward[4]
    expected = run.parts[0].measure(without)
    torch.testing.assert_close(run(run.mask_without([run.units[4]])), expected, rtol=0, atol=1e-11)


def test_one_component_alone_is_the_exact_effect() -> None:
    nodes = MaskedRun(tiny.model("llama"), tiny.task(n=3)).nodes()
    run = ComponentRun.of(nodes)
    alone = 1 - torch.eye(run.n_units, dtype=torch.float64)
    effects = (run(alone) - run.clean_metric).mean(-1)
    torch.testing.assert_close(effects, exact_scores(nodes).values, rtol=0, atol=1e-11)


# --- masks ----------------------------------------------------------------------------------------------------------


def test_masks_of_their_own_for_each_prompt() -> None:
    run = ComponentRun(tiny.model("gpt2"), tiny.task(n=4), components=("heads", "neurons"), memory=1)
    assert len(run.parts) == 4
    masks = random_masks(run.per_prompt())
    together = run.per_prompt()(masks)
    for row in range(4):
        torch.testing.assert_close(together[:, row], run(masks[:, row])[:, row], rtol=0, atol=1e-11)


def test_masks_by_position() -> None:
    model, task = tiny.model("gpt2"), tiny.task(n=3, prefix=2)
    run = ComponentRun(model, task, components=("heads", "mlps")).positions()
    masks = random_masks(run)
    nodes = MaskedRun(model, task).nodes().positions()
    whole = torch.ones(len(masks), *nodes.mask_shape, dtype=torch.float64)
    whole[..., 1:] = masks
    torch.testing.assert_close(run(masks), nodes(whole), rtol=0, atol=1e-11)
    per_prompt = run.per_prompt()
    each = masks[:, None].expand(-1, 3, -1, -1)
    torch.testing.assert_close(per_prompt(each), run(masks), rtol=0, atol=1e-11)


def test_values_do_not_depend_on_the_byte_budget() -> None:
    model, task = tiny.model("gpt2"), tiny.task(n=4)
    wide = ComponentRun(model, task, components=("heads", "neurons"), ablation="mean")
    narrow = ComponentRun(model, task, components=("heads", "neurons"), ablation="mean", memory=1)
    assert len(wide.parts) == 1
    assert len(narrow.parts) == 4
    masks = random_masks(wide)
    torch.testing.assert_close(narrow(masks), wide(masks), rtol=0, atol=1e-11)


def test_some_components_alone() -> None:
    model, task = tiny.model("gpt2"), tiny.task(n=3)
    nodes = [mlp(1), head(0, 2), "a1.h3", INPUT]
    run = ComponentRun(model, task, components=nodes)
    assert [str(unit) for unit in run.units] == ["input", "a0.h2", "a1.h3", "m1"]
    every = ComponentRun(model, task, components=("input", "heads", "mlps"))
    mask = torch.tensor([0.0, 1.0, 0.25, 0.0], dtype=torch.float64)
    whole = every.ones()
    whole[[every.index(unit) for unit in run.units]] = mask
    torch.testing.assert_close(run(mask), every(whole), rtol=0, atol=1e-11)
    assert every.index("m1") == every.n_units - 1


def test_slopes_are_finite_differences() -> None:
    run = ComponentRun(
        tiny.model("llama"),
        tiny.task(n=2),
        components=("heads", "neurons", "features"),
        dictionaries=[Linear("mlp_out0")],
    )
    mask = torch.full((run.n_units,), 0.6, dtype=torch.float64)
    slopes = run.slopes(mask)
    for unit in (0, 5, 20, run.n_units - 60, run.n_units - 1):
        step = torch.zeros_like(mask)
        step[unit] = 1e-5
        difference = (run(mask + step) - run(mask - step)) / 2e-5
        torch.testing.assert_close(slopes[:, unit], difference, rtol=1e-5, atol=1e-8)


def test_progress_counts_masks() -> None:
    run = ComponentRun(toy.model(), toy.task(), memory=1)
    seen: list[tuple[int, int]] = []
    run(torch.zeros(5, run.n_units), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (5, 5)
    assert sorted(seen) == seen


# --- what cannot be run ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("components", "message"),
    [
        ((), "got none"),
        (("hats",), "expected a node"),
        (("a7.h0",), r"it has no a7\.h0"),
        (("m0", "m0"), "come twice"),
        (("features",), "has no features"),
        (("m0.f3",), "Give the dictionaries"),
    ],
)
def test_components_that_are_not_there(components: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ComponentRun(tiny.model("gpt2"), tiny.task(), components=components)


def test_dictionaries_that_do_not_fit() -> None:
    model, task = tiny.model("gpt2"), tiny.task()
    for site, message in (
        ("resid_mid0", "expected a dictionary at attn_out"),
        ("resid_pre1", "resid_post of the layer before"),
        ("mlp_out9", "a layer from 0 to 1"),
        ("nowhere", "expected a site as KIND and LAYER"),
    ):
        with pytest.raises(InvalidOption, match=message):
            ComponentRun(model, task, components=("features",), dictionaries=[Linear(site)])
    transcoder = Linear("mlp_out0")
    transcoder.is_transcoder = True  # type: ignore[attr-defined]
    with pytest.raises(InvalidOption, match="read where they write"):
        ComponentRun(model, task, components=("features",), dictionaries=[transcoder])
    with pytest.raises(InvalidOption, match="two of mlp_out0"):
        ComponentRun(model, task, components=("features",), dictionaries=[Linear("mlp_out0"), Linear("mlp_out0")])
    with pytest.raises(InvalidOption, match="reads 9"):
        ComponentRun(model, task, components=("features",), dictionaries=[Linear("mlp_out0", d_in=9)])


def test_masks_that_cannot_be_used() -> None:
    run = ComponentRun(toy.model(), toy.task())
    with pytest.raises(InvalidMask, match=r"\[\*sample, unit\] ending in \[2\]"):
        run(torch.ones(4))
    with pytest.raises(InvalidMask, match="finite"):
        run(torch.tensor([1.0, torch.nan]))
    with pytest.raises(InvalidMask, match="slopes"):
        run(run.ones().requires_grad_())
    with pytest.raises(InvalidOption, match=r"run\.nodes"):
        ComponentRun.of(MaskedRun(toy.model(), toy.task()))
    with pytest.raises(InvalidOption, match="a component of this run"):
        run.index("m7")


def test_a_node_parses_where_a_name_is_given() -> None:
    run = ComponentRun(toy.model(), toy.task(), components=["a0.h1"])
    assert run.units == (Node.parse("a0.h1"),)
