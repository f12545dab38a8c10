"""Activation patching against TransformerLens's hooks, the masked run, and what must hold for any model."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from graphs.nodes import head
from patching import toy
from patching.ablations import gaussian_noise
from patching.activation import Patch, SiteRun, sweep
from patching.errors import InvalidOption, InvalidTask
from patching.lens import LensModel, native_bridge
from patching.masked import MaskedRun
from patching.sites import KINDS, Site, count_parts
from patching.task import Task
from patching.toy import _weight
from tests import tiny
from tests.oracle import EVERY_LOGIT, logit_difference, tolerance
from tests.patching.test_exact import without_norm

SAME = 1e-10
PARALLEL = {"gpt_neox"}
POST_NORM = {"gemma2", "gemma3"}


def kinds_of(model: LensModel) -> list[str]:
    shape = model.architecture
    return [
        name
        for name, kind in KINDS.items()
        if not (kind.needs_mlp and not shape.has_mlp) and not (kind.sequential and shape.parallel)
    ]


def run_of(family: str, **options: object) -> SiteRun:
    return SiteRun(tiny.model(family), tiny.task(n=3, prefix=1), **options)  # type: ignore[arg-type]


# --- against TransformerLens ----------------------------------------------------------------------------------------

# resid_mid is missing: a bridge's hook there sits on the norm's input, so that patching it misses the skip connection.
HOOKS = {
    "resid_pre": "hook_resid_pre", "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out", "mlp_out": "hook_mlp_out", "q": "attn.hook_q", "k": "attn.hook_k",
    "v": "attn.hook_v", "pattern": "attn.hook_pattern", "z": "attn.hook_z", "neurons": "mlp.hook_post",
}  # fmt: skip


def hooked(model: LensModel, task: Task, patch: Patch) -> Tensor:
    """The metric with the corrupt run's values put in by TransformerLens's own hooks."""
    names = {site: f"blocks.{site.layer}.{HOOKS[site.kind]}" for site in patch}
    _, cache = model.bridge.run_with_cache(task.corrupt)

    def put(site: Site) -> Any:
        def hook(value: Tensor, hook: Any) -> Tensor:
            value, source = value.clone(), cache[names[site]]
            positions = slice(None) if site.position is None else slice(site.position, site.position + 1)
            if site.kind == "pattern":
                index: Any = (slice(None), slice(None) if site.part is None else site.part, positions)
            elif site.kind in ("q", "k", "v", "z"):
                index = (slice(None), positions, slice(None) if site.part is None else site.part)
            else:
                index = (slice(None), positions, slice(None) if site.part is None else site.part)
            value[index] = source[index]
            return value

        return hook

    with torch.no_grad():
        logits = model.bridge.run_with_hooks(task.clean, fwd_hooks=[(names[site], put(site)) for site in patch])
    return logit_difference(task, logits)


@torch.no_grad()
def edits_patterns(model: LensModel, task: Task) -> bool:
    """Whether a bridge goes on with a pattern that a hook changed; some versions discard it for some families."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hooks = [("blocks.0.attn.hook_pattern", lambda value, hook: 0 * value)]
        return not torch.equal(model.bridge.run_with_hooks(task.clean, fwd_hooks=hooks), model.logits(task.clean))


@pytest.mark.parametrize("family", ["gpt2", "attention_only", "gpt_neo"])
def test_patches_are_those_of_transformer_lens(family: str) -> None:
    model, task = tiny.model(family), tiny.task(n=3, prefix=1)
    run = SiteRun(model, task)
    kinds = set(kinds_of(model)) & set(HOOKS)
    if not edits_patterns(model, task):
        assert family != "gpt2"
        kinds.remove("pattern")
    for kind in kinds:
        parts = count_parts(KINDS[kind], model)
        for site in (
            Site(kind, 0),
            Site(kind, 1, position=4),
            Site(kind, 1),
            *([Site(kind, 0, parts - 1, 3), Site(kind, 1, 1)] if KINDS[kind].parts else []),
        ):
            expected = hooked(model, task, (site,))
            torch.testing.assert_close(
                run([(site,)])[0], expected, rtol=0, atol=tolerance(family), msg=lambda m, s=site: f"{s}: {m}"
            )
    pair = (Site("z", 0, 1, 2), Site("resid_pre", 1, position=5), Site("q", 1, 2))
    torch.testing.assert_close(run([pair])[0], hooked(model, task, pair), rtol=0, atol=tolerance(family))


# --- against the masked run -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", [False, True])
def test_heads_are_the_nodes_of_the_masked_run(family: str, positions: bool) -> None:
    if family in POST_NORM:
        pytest.skip("a node is a head's share of the normed write there, a site is z itself")
    model, task = tiny.model(family), tiny.task(n=3, prefix=1)
    effects = sweep(SiteRun(model, task), "z", positions=positions)
    run = MaskedRun(model, task).nodes()
    run = run.positions() if positions else run
    for layer in range(2):
        for number in range(model.architecture.n_heads):
            column = run.graph.source_index[head(layer, number)]
            for position in (2, 5, 6) if positions else (0,):
                mask = run.ones()
                mask[(position, column) if positions else column] = 0.0
                entry = (layer, number, position) if positions else (layer, number)
                expected = run(mask) - run.clean_metric
                torch.testing.assert_close(effects.values[:, *entry], expected, rtol=0, atol=SAME)


def test_queries_keys_and_values_are_ports_with_every_edge_off(family: str) -> None:
    model, task = tiny.model(family), tiny.task(n=3, prefix=1)
    masked = MaskedRun(model, task)
    run = SiteRun(model, task)
    ports = [edge.reads for edge in masked.units]  # type: ignore[union-attr]
    for letter in "qkv":
        effects = sweep(run, letter)
        for port in {port for port in ports if port.letter == letter}:
            mask = torch.tensor([float(other != port) for other in ports], dtype=torch.float64)
            expected = masked(mask) - masked.clean_metric
            own = effects.values[:, port.node.layer, port.node.index]
            torch.testing.assert_close(own, expected, rtol=0, atol=SAME)


# --- what must hold -------------------------------------------------------------------------------------------------


def test_a_patch_with_the_same_values_changes_nothing_to_the_last_bit(family: str) -> None:
    model, task = tiny.model(family), tiny.task(n=3, prefix=3)
    same = Task("same", task.clean, task.clean, task.answers, task.wrong_answers, task.positions)
    for run, position in ((SiteRun(model, same), None), (SiteRun(model, task), 2)):
        patches = [(Site(kind, layer, position=position),) for kind in kinds_of(model) for layer in range(2)]
        assert bool((run(patches) == run.base_metric).all())


def test_a_whole_cut_gives_the_source_run(family: str) -> None:
    run = run_of(family, metric=EVERY_LOGIT)
    for layer in range(2):
        cuts: list[Patch] = [(Site("resid_pre", layer),), (Site("resid_post", layer),)]
        if "resid_mid" in kinds_of(run.model):
            cuts.append((Site("resid_mid", layer),))
        cuts.append(tuple(Site("resid_pre", layer, position=p) for p in range(run.length)))
        for values in run(cuts):
            torch.testing.assert_close(values, run.source_metric, rtol=0, atol=SAME)


def test_denoising_is_noising_of_the_swapped_task(family: str) -> None:
    model, task = tiny.model(family), tiny.task(n=3)
    one = sweep(SiteRun(model, task, direction="denoising"), "z")
    other = sweep(SiteRun(model, task.swapped()), "z")
    assert bool((one.values == other.values).all())
    assert bool((one.base_metric == other.base_metric).all())


def test_in_a_linear_model_noising_is_denoising_and_effects_add() -> None:
    model, task = without_norm(uniform=True, layers=3), tiny.task(n=3)
    noising = sweep(SiteRun(model, task), "z", positions=True)
    denoising = sweep(SiteRun(model, task, direction="denoising"), "z", positions=True)
    torch.testing.assert_close(noising.values, -denoising.values, rtol=0, atol=SAME)
    together = sweep(SiteRun(model, task), "z", parts=False).values
    torch.testing.assert_close(noising.values.sum((2, 3)), together, rtol=0, atol=SAME)
    assert noising.values.abs().max() > 1e-3


def test_a_probability_never_falls_below_nothing() -> None:
    run = run_of("gpt2", metric="probability", direction="denoising")
    for kind in ("z", "mlp_out", "resid_pre"):
        effects = sweep(run, kind)
        floor = run.base_metric.reshape(-1, *[1] * len(effects.axes))
        assert bool((effects.values >= -floor - 1e-12).all())


def test_normalised_is_one_for_a_full_restoration() -> None:
    run = run_of("llama", direction="denoising")
    effects = sweep(run, "resid_post")
    torch.testing.assert_close(effects.normalised, torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-9)


def test_kl_is_measured_from_the_clean_run_in_both_directions() -> None:
    noising, denoising = (run_of("gpt2", metric="kl", direction=d) for d in ("noising", "denoising"))
    torch.testing.assert_close(noising.base_metric, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(denoising.base_metric, noising.source_metric, rtol=0, atol=SAME)
    torch.testing.assert_close(denoising.source_metric, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)
    assert bool((denoising.base_metric > 0).all())
    restored = sweep(denoising, "resid_post").values[:, -1]  # a full restoration takes back all of D(clean ‖ corrupt)
    torch.testing.assert_close(restored, -denoising.base_metric, rtol=0, atol=SAME)


@given(
    family=st.sampled_from(["gpt2", "gpt_neox", "mistral", "gemma2", "qwen3"]),
    sites=st.lists(
        st.tuples(st.sampled_from(sorted(KINDS)), st.integers(0, 1), st.booleans(), st.sampled_from([None, 0, 3, 6])),
        min_size=1,
        max_size=4,
        unique=True,
    ),
)
@settings(max_examples=60)
def test_patches_do_not_depend_on_company_or_memory(
    family: str, sites: list[tuple[str, int, bool, int | None]]
) -> None:
    run, small = run_of(family), run_of(family, memory=1)
    patch = tuple(
        Site(kind, layer, 1 if part and KINDS[kind].parts else None, position)
        for kind, layer, part, position in sites
        if kind in kinds_of(run.model)
    )
    alone = run([patch])[0]
    others: list[Patch] = [(Site("z", 1, 0),), patch, (Site("resid_pre", 0, position=4),), (Site("q", 1, 2, 6),)]
    torch.testing.assert_close(run(others)[1], alone, rtol=0, atol=SAME)
    torch.testing.assert_close(small(others)[1], alone, rtol=0, atol=SAME)
    assert len(small.parts) == 3


def test_subsets_are_patched_together() -> None:
    run = run_of("gpt2")
    units: list[Patch] = [
        (Site("z", 0, 1),),
        (Site("z", 1, 3), Site("mlp_out", 0)),
        (Site("resid_pre", 1, position=5),),
    ]
    subsets = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    found = run.jointly(units)(subsets)
    expected = run([units[0] + units[2], (), units[0] + units[1] + units[2]]) - run.base_metric
    torch.testing.assert_close(found, expected)
    assert bool((found[1] == 0).all())
    assert bool((found[2] != 0).all())


@pytest.mark.parametrize("gate", ["and", "or"])
def test_gates_by_direction(gate: str) -> None:
    """Noising finds each input of AND and neither of OR; denoising the other way round."""
    bridge = native_bridge(
        d_model=4, d_head=1, n_layers=1, n_ctx=4, n_heads=2, d_vocab=4, attn_only=False, act_fn="relu", d_mlp=1,
        normalization_type=None, dtype=torch.float64,
    )  # fmt: skip
    parts = bridge.original_model
    with torch.no_grad():
        for parameter in parts.parameters():
            parameter.zero_()
        parts.tok_embed.weight.copy_(torch.eye(4))
        parts.head.weight.copy_(torch.eye(4))
        attention, inner = parts.layers[0].attn, parts.layers[0].mlp.original_component
        for number in (0, 1):  # a and b: both heads copy e0 to e2, and for OR to e3
            _weight(attention.v)[number, 0] = 1.0
            _weight(attention.o)[2, number] = 1.0
            _weight(attention.o)[3, number] = float(gate == "or")
        _weight(inner.fc_in)[0, 2] = 1.0
        getattr(inner.fc_in, "original_component", inner.fc_in).bias.fill_(-1.0)
        _weight(inner.fc_out)[3, 0] = (
            1.0 if gate == "and" else -1.0
        )  # and: relu(a + b - 1); or: a + b - relu(a + b - 1)
    one = torch.ones(1, 1, dtype=torch.long)
    task = Task(gate, 0 * one, one, 3 * one, one, torch.zeros(1, dtype=torch.long))
    model = LensModel.wrap(bridge, name=gate)
    noising, denoising = (sweep(SiteRun(model, task, direction=d), "z").values[0, 0] for d in ("noising", "denoising"))
    assert noising.tolist() == ([-1.0, -1.0] if gate == "and" else [0.0, 0.0])
    assert denoising.tolist() == ([0.0, 0.0] if gate == "and" else [1.0, 1.0])


# --- sweeps ---------------------------------------------------------------------------------------------------------


def test_windows_patch_jointly_and_sum_singles() -> None:
    model, task = without_norm(uniform=True, layers=3), tiny.task(n=3)
    run = SiteRun(model, task)
    joint = sweep(run, "attn_out", window=2)
    single = sweep(run, "attn_out").values
    assert joint.singles is not None
    for layer, span in enumerate(([0], [0, 1], [1, 2])):
        patch = tuple(Site("attn_out", each) for each in span)
        torch.testing.assert_close(joint.values[:, layer], run([patch])[0] - run.base_metric, rtol=0, atol=SAME)
        torch.testing.assert_close(joint.singles[:, layer], single[:, span].sum(1), rtol=0, atol=SAME)
    assert float((joint.values - joint.singles).abs().max()) > 1e-4  # the second layer reads the first


def test_axes_and_labels() -> None:
    run = run_of("llama")
    effects = sweep(run, "k", positions=[6, 2])
    assert effects.axes == ("layer", "group", "position")
    assert effects.labels == (("L0", "L1"), ("G0", "G1"), ("6", "2"))
    assert effects["L1", "G0", "2"] == pytest.approx(
        float((run([(Site("k", 1, 0, 2),)])[0] - run.base_metric).mean()), abs=SAME
    )
    assert sweep(run, "neurons").axes == ("layer",)
    assert sweep(run, "neurons", parts=True).mean.shape == (2, 48)


def test_progress_counts_every_patch() -> None:
    seen: list[tuple[int, int]] = []
    sweep(run_of("gpt2", memory=1), "z", positions=True, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (3 * 2 * 4 * 7,) * 2
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


# --- corruptions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ablation", ["zero", "mean", "mean-positional", "resample"])
def test_other_ablations_are_those_of_the_masked_run(ablation: str) -> None:
    model, task = tiny.model("gpt2"), tiny.task(n=4)
    effects = sweep(SiteRun(model, task, ablation=ablation), "z")
    run = MaskedRun(model, task, ablation=ablation).nodes()
    mask = run.ones()
    mask[run.graph.source_index[head(1, 2)]] = 0.0
    torch.testing.assert_close(effects.values[:, 1, 2], run(mask) - run.clean_metric, rtol=0, atol=SAME)


def test_gaussian_noise_is_what_it_says() -> None:
    model, task = tiny.model("gpt2"), tiny.task(n=40, prefix=3)
    run = SiteRun(model, task, ablation="gaussian-noise")
    noise = torch.cat([part.source["resid_pre"][0] - part.base["resid_pre"][0] for part in run.parts])
    chosen = task.clean != task.corrupt
    assert bool((noise[~chosen] == 0).all())
    real = torch.arange(task.clean.shape[1]) <= task.positions[:, None]
    deviation = model.token_embeddings(task.clean[real]).std()
    assert float(noise[chosen].std() / deviation) == pytest.approx(3.0, rel=0.03)
    again = SiteRun(model, task, ablation="gaussian-noise", memory=1)
    assert bool((again.source_metric - run.source_metric).abs().max() < SAME)  # whatever the batches
    assert bool((SiteRun(model, task, ablation=gaussian_noise(seed=1)).source_metric != run.source_metric).any())
    masked = MaskedRun(model, task, ablation="gaussian-noise")
    torch.testing.assert_close(masked.corrupt_metric.double(), run.source_metric, rtol=0, atol=SAME)


def test_gaussian_noise_needs_tokens() -> None:
    model, task = tiny.model("gpt2"), tiny.task(n=2)
    same = Task("same", task.clean, task.clean, task.answers, task.wrong_answers, task.positions)
    with pytest.raises(InvalidTask, match=r"tokens to put noise on in every prompt; rows \[0, 1\]"):
        SiteRun(model, same, ablation="gaussian-noise")
    with pytest.raises(InvalidTask, match=r"prompts' shape \[2, 7\]; got \[1, 7\]"):
        SiteRun(model, same, ablation=gaussian_noise(where=torch.ones(1, 7, dtype=torch.bool)))


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "kind", "options", "message"),
    [
        ("gpt2", "resid", {}, "kind of site out of resid_pre"),
        ("attention_only", "mlp_out", {}, "it has no MLP"),
        ("attention_only", "neurons", {}, "it has no MLP"),
        ("gpt_neox", "resid_mid", {}, "its blocks are parallel"),
        ("gpt2", "z", {"window": 3}, "window of 1 to 2 layers"),
        ("gpt2", "z", {"window": 0}, "window of 1 to 2 layers"),
        ("gpt2", "z", {"positions": []}, "at least one position"),
        ("gpt2", "z", {"positions": [7]}, "position from 0 to 6"),
        ("gpt2", "z", {"positions": [-1]}, "position from 0 to 6"),
        ("gpt2", "mlp_out", {"parts": True}, "parts=False"),
    ],
)
def test_bad_sweeps(family: str, kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        sweep(run_of(family), kind, **options)


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (Site("z", 2), "layer from 0 to 1"),
        (Site("z", 0, 4), "a head from 0 to 3"),
        (Site("v", 0, 2), "a group from 0 to 1"),
        (Site("mlp_out", 0, 0), "mlp_out has none"),
    ],
)
def test_sites_that_do_not_exist(site: Site, message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        run_of("llama")([(site,)])


def test_bad_runs() -> None:
    with pytest.raises(InvalidOption, match="direction out of noising, denoising"):
        run_of("gpt2", direction="forwards")
    with pytest.raises(InvalidOption, match=r"got mean, which replaces"):
        run_of("gpt2", direction="denoising", ablation="mean")
    task = toy.task()
    one = sweep(SiteRun(toy.model(), task.subset(slice(0, 1))), "z")
    with pytest.raises(InvalidOption, match="at least two prompts"):
        one.standard_error  # noqa: B018


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_replacing_the_last_residual_is_one_whole_effect(ablation: str) -> None:
    effects = sweep(run_of("gpt2", ablation=ablation), "resid_post")
    assert float(effects.normalised[-1]) == pytest.approx(1.0)
