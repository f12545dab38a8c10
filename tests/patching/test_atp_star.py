"""AtP* against finite differences, naive recomputation, and gradients of a model with a constant layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from patching import atp, atp_star
from patching.activation import SiteRun, sweep
from patching.errors import InvalidOption
from patching.lens import LensModel, native_bridge
from patching.masked import MaskedRun
from patching.sites import KINDS, Start, forward
from patching.task import Task
from patching.toy import _weight
from tests import tiny
from tests.oracle import EVERY_LOGIT
from tests.patching.test_activation import POST_NORM, kinds_of
from tests.patching.test_exact import without_norm

SAME = 1e-10
PLAIN: dict[str, Any] = {"qk_fix": False, "grad_drop": False}
SOME = ["gpt2", "gpt_neox", "mistral", "gemma2", "qwen3", "attention_only"]


def run_of(family: str, **options: object) -> SiteRun:
    return SiteRun(tiny.model(family), tiny.task(n=3, prefix=1), metric=EVERY_LOGIT, **options)  # type: ignore[arg-type]


# --- attribution patching -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", SOME)
def test_plain_scores_are_the_derivative_of_exact_patching(family: str) -> None:
    run, step = run_of(family), 1e-5
    kinds = kinds_of(run.model)
    estimates = atp_star.scores_of(run, kinds, positions=[1, 4, 6], **PLAIN)
    if "neurons" in kinds:
        estimates["neurons"] = atp_star.scores(run, "neurons", parts=True, positions=[1, 4, 6], **PLAIN)
    for part in run.parts:
        part.source = {
            kind: [old + step * (new - old) for old, new in zip(part.base[kind], part.source[kind], strict=True)]
            for kind in part.source
        }
    for kind in kinds:
        parts = None if kind != "neurons" else True
        positions = [1, 4, 6] if kind != "neurons" else [6]
        slope = sweep(run, kind, parts=parts, positions=positions).values / step
        found = estimates[kind].values if kind != "neurons" else estimates[kind].values[..., 2:]
        assert float(slope.abs().max()) > 1e-3
        torch.testing.assert_close(found, slope, rtol=0, atol=2e-4 * float(slope.abs().max()))


def test_heads_and_mlps_are_the_nodes_of_atp(family: str) -> None:
    if family in POST_NORM:
        pytest.skip("a node is a head's share of the normed write there, a site is z itself")
    model, task = tiny.model(family), tiny.task(n=3, prefix=1)
    nodes = atp.scores(MaskedRun(model, task).nodes())
    kinds = ["z", "mlp_out"] if model.architecture.has_mlp else ["z"]
    sites = atp_star.scores_of(SiteRun(model, task), kinds, **PLAIN)
    for layer in range(2):
        for head in range(model.architecture.n_heads):
            assert sites["z"][f"L{layer}", f"H{head}"] == pytest.approx(nodes[f"a{layer}.h{head}"], abs=SAME)
        if model.architecture.has_mlp:
            assert sites["mlp_out"][f"L{layer}",] == pytest.approx(nodes[f"m{layer}"], abs=SAME)


def test_in_a_linear_model_estimates_are_exact() -> None:
    run = SiteRun(without_norm(uniform=True, layers=3), tiny.task(n=3))
    for kind in ("z", "v", "attn_out", "resid_pre"):
        exact = sweep(run, kind, positions=True)
        torch.testing.assert_close(
            atp_star.scores(run, kind, positions=True, **PLAIN).values, exact.values, rtol=0, atol=SAME
        )


def test_positions_add_up_and_so_do_heads() -> None:
    run = run_of("llama")
    by_position = atp_star.scores(run, "z", positions=True, **PLAIN)
    whole = atp_star.scores(run, "z", **PLAIN)
    layer = atp_star.scores(run, "z", parts=False, **PLAIN)
    torch.testing.assert_close(by_position.values.sum(-1), whole.values, rtol=0, atol=SAME)
    torch.testing.assert_close(whole.values.sum(-1), layer.values, rtol=0, atol=SAME)


# --- the QK fix -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["q", "k"])
def test_with_one_layer_and_no_norm_the_fix_is_exact(kind: str) -> None:
    model = without_norm(layers=1)
    with torch.no_grad():
        for letter in "qk":
            model.blocks[0].attention.weights[letter].mul_(6.0)  # attention so sharp that the gradient sees little
    run = SiteRun(model, tiny.task(n=4))
    exact = sweep(run, kind, positions=True).values
    fixed = atp_star.scores(run, kind, positions=True, grad_drop=False).values
    plain = atp_star.scores(run, kind, positions=True, **PLAIN).values
    torch.testing.assert_close(fixed, exact, rtol=0, atol=1e-9)
    assert float((plain - exact).abs().max()) > 0.5 * float(exact.abs().max())
    joint = sweep(run, kind).values
    torch.testing.assert_close(
        atp_star.scores(run, kind, grad_drop=False).values, joint, rtol=0, atol=1e-9
    )  # all positions at once
    if kind == "k":
        assert float((exact.sum(-1) - joint).abs().max()) > 1e-3  # which is not the sum over keys


def pattern_gradients(run: SiteRun) -> list[Tensor]:
    """The gradient of the metric at every layer's pattern, untrimmed, by autograd."""
    part = run.parts[0]
    seen: list[Tensor] = []

    def keep(kind: str, _layer: int, value: Tensor, _narrow: bool) -> Tensor:
        if kind == "pattern":
            seen.append(value)
        return value

    start = Start(0, 0, 0, part.embedded.clone().requires_grad_(True))
    with torch.enable_grad():
        final = forward(part.model, part.contexts, start, keep, answer=part.answer, trim=False)
        return list(torch.autograd.grad(part.measure(final).sum(), seen))


def test_the_fix_is_what_recomputing_every_pattern_gives(family: str) -> None:
    """One query or key at a time, in O(T³), with the real score function of every family."""
    run = run_of(family)
    part, shape = run.parts[0], run.model.architecture
    gradients = pattern_gradients(run)
    found = {kind: atp_star.scores(run, kind, positions=True, grad_drop=False).values for kind in "qk"}
    repeats = shape.n_heads // shape.n_kv_heads
    for layer, block in enumerate(run.model.blocks):
        attention, context = block.attention, part.contexts[layer]
        q, k = part.base["q"][layer], part.base["k"][layer]

        def pattern(q: Tensor, k: Tensor, attention: Any = attention, context: Any = context) -> Tensor:
            keys = attention.place("k", k, context.rope).repeat_interleave(repeats, dim=0)
            return attention.pattern(attention.place("q", q, context.rope), keys, context.bias)

        before = pattern(q, k)
        for position in range(run.length):
            for kind in "qk":
                patched = {"q": q.clone(), "k": k.clone()}
                patched[kind][..., position, :] = part.source[kind][layer][..., position, :]
                effect = ((pattern(patched["q"], patched["k"]) - before) * gradients[layer]).sum((-1, -2))
                effect = effect if kind == "q" else effect.unflatten(0, (-1, repeats)).sum(1)
                torch.testing.assert_close(found[kind][:, layer, :, position], effect.T, rtol=0, atol=1e-9)


@given(
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([0.1, 1.0, 10.0, 100.0]),
    change=st.sampled_from([0.0, 0.1, 10.0, 250.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=150)
def test_keys_in_closed_form_are_keys_one_by_one(seed: int, scale: float, change: float, dtype: torch.dtype) -> None:
    """Also where attention is saturated, in single precision."""
    generator = torch.Generator().manual_seed(seed)
    length = 6
    scores, difference, gradient = torch.randn(3, 2, length, length, generator=generator, dtype=torch.float64)
    visible = torch.ones(length, length).tril().bool()
    scores, difference, gradient = (x.to(dtype).double() for x in (scores * scale, difference * change, gradient))
    before = scores.masked_fill(~visible, -torch.inf)
    after = (scores + difference).to(dtype).double().masked_fill(~visible, -torch.inf)
    naive = torch.zeros(2, length, dtype=torch.float64)
    for key in range(length):
        patched = before.clone()
        patched[..., key] = after[..., key]
        naive[:, key] = ((patched.softmax(-1) - before.softmax(-1)) * gradient).sum((-1, -2))
    found = atp_star.key_effects(before.to(dtype), after.to(dtype), gradient.to(dtype))
    assert bool(torch.isfinite(found).all())
    torch.testing.assert_close(found.double(), naive, rtol=0, atol=1e-10 if dtype == torch.float64 else 2e-5)


def test_small_changes_need_no_fix() -> None:
    run = run_of("gpt2")
    for part in run.parts:
        for kind in "qk":
            part.source[kind] = [
                old + 1e-6 * (new - old) for old, new in zip(part.base[kind], part.source[kind], strict=True)
            ]
    for kind in "qk":
        fixed, plain = (
            atp_star.scores(run, kind, qk_fix=fix, grad_drop=False, positions=True).values for fix in (True, False)
        )
        torch.testing.assert_close(fixed, plain, rtol=0, atol=1e-4 * float(plain.abs().max()))


def test_the_fix_moves_estimates_towards_the_truth() -> None:
    """On a trained model: the correlation of queries and keys with exact effects rises."""
    from circuits.tasks import ioi

    model = LensModel.load("zoo:ioi", device="cpu")
    run = SiteRun(model, ioi.make(model, n=16, seed=0), direction="denoising")
    for kind in "qk":
        exact = sweep(run, kind)
        fixed, plain = (
            atp_star.scores(run, kind, qk_fix=fix, grad_drop=False).compare(exact)["pearson"] for fix in (True, False)
        )
        assert fixed > plain


# --- GradDrop -------------------------------------------------------------------------------------------------------


def dropped_by_hand(run: SiteRun, kind: str, drop: set[tuple[str, int]]) -> Tensor:
    """AtP by position, [example, layer, (part,) position], of a model some of whose writes are constant."""
    part = run.parts[0]
    seen: list[Tensor] = []

    def visit(name: str, layer: int, value: Tensor, _narrow: bool) -> Tensor:
        if name == kind:
            seen.append(value)
        return value.detach() if (name, layer) in drop else value

    start = Start(0, 0, 0, part.embedded.clone().requires_grad_(True))
    with torch.enable_grad():
        final = forward(part.model, part.contexts, start, visit, answer=part.answer, trim=False)
        gradients = torch.autograd.grad(part.measure(final).sum(), seen, allow_unused=True)
    rows = []
    for layer, gradient in enumerate(gradients):
        change = part.source[kind][layer] - part.base[kind][layer]
        product = torch.zeros_like(change) if gradient is None else change * gradient
        product = product.permute(0, 2, 1) if kind == "neurons" else product.sum(-1)
        rows.append(product.transpose(0, 1) if KINDS[kind].parts in ("head", "group") else product)
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("unit", ["block", "sublayer"])
def test_grad_drop_is_the_mean_over_models_with_a_constant_write(family: str, unit: str) -> None:
    run = run_of(family)
    has_mlp = run.model.architecture.has_mlp
    drops = [{("attn_out", layer), ("mlp_out", layer)} for layer in range(2)]
    if unit == "sublayer" and has_mlp:
        drops = [{(kind, layer)} for layer in range(2) for kind in ("attn_out", "mlp_out")]
    kinds = kinds_of(run.model)
    for positions in (False, True):
        options: dict[str, Any] = {"positions": positions, "qk_fix": False, "unit": unit}
        found = atp_star.scores_of(run, kinds, **options)
        if has_mlp:
            found["neurons"] = atp_star.scores(run, "neurons", parts=True, **options)
        for kind in kinds:
            terms = [dropped_by_hand(run, kind, drop) for drop in drops]
            expected = sum((term if positions else term.sum(-1)).abs() for term in terms)
            expected = expected / (len(drops) - KINDS[kind].inside)
            torch.testing.assert_close(
                found[kind].values, expected, rtol=0, atol=SAME, msg=lambda m, k=kind: f"{k} {m}"
            )
            assert not found[kind].signed


def test_the_last_layer_keeps_its_attribution() -> None:
    """With blocks dropped, and every later path gone already: what acts directly keeps exactly |AtP|."""
    run = run_of("gpt_neox")
    plain = atp_star.scores(run, "mlp_out", **PLAIN).values
    dropped = atp_star.scores(run, "mlp_out", qk_fix=False).values
    torch.testing.assert_close(dropped[:, 1], plain[:, 1].abs(), rtol=0, atol=SAME)
    assert float((dropped[:, 0] - plain[:, 0].abs()).abs().max()) > 1e-6


def cancelling() -> tuple[LensModel, Task]:
    """Three layers of one head: the first writes along e2, the second takes exactly that back, the third is dead."""
    bridge = native_bridge(
        d_model=4, d_head=1, n_layers=3, n_ctx=4, n_heads=1, d_vocab=4, attn_only=True, act_fn="relu",
        normalization_type=None, dtype=torch.float64,
    )  # fmt: skip
    parts = bridge.original_model
    with torch.no_grad():
        for parameter in parts.parameters():
            parameter.zero_()
        parts.tok_embed.weight.copy_(torch.eye(4))
        parts.head.weight.copy_(torch.eye(4))
        first, second = (layer.attn for layer in parts.layers[:2])
        _weight(first.v)[0, 0] = 1.0
        _weight(first.o)[2, 0] = 1.0
        _weight(second.v)[0, 2] = -1.0
        _weight(second.o)[2, 0] = 1.0
    one = torch.ones(1, 1, dtype=torch.long)
    task = Task("cancelling", 0 * one, one, 2 * one, 3 * one, torch.zeros(1, dtype=torch.long))
    return LensModel.wrap(bridge, name="cancelling"), task


def test_grad_drop_sees_through_a_cancellation() -> None:
    model, task = cancelling()
    run = SiteRun(model, task)
    assert atp_star.scores(run, "z", **PLAIN)["L0", "H0"] == 0.0
    assert sweep(run, "z")["L0", "H0"] == 0.0
    assert atp_star.scores(run, "z", qk_fix=False)["L0", "H0"] == pytest.approx(0.5)  # 1/2 (0 + 1 + 0)
    assert atp_star.scores(run, "resid_pre", qk_fix=False).values[0, 0] > 0


# --- both, and what is recorded -------------------------------------------------------------------------------------


def test_batches_do_not_matter() -> None:
    whole, small = run_of("gemma2"), run_of("gemma2", memory=1)
    assert (len(whole.parts), len(small.parts)) == (1, 3)
    for kind in ("q", "k", "z", "neurons"):
        one, other = (atp_star.scores(run, kind, positions=True) for run in (whole, small))
        torch.testing.assert_close(one.values, other.values, rtol=0, atol=SAME)


def test_what_was_done_is_recorded() -> None:
    effects = atp_star.scores(run_of("gpt2"), "q", unit="sublayer")
    assert effects.provenance["method"] == "atp_star"
    assert effects.provenance["options"] == {"kind": "q", "qk_fix": True, "grad_drop": True, "unit": "sublayer"}
    assert atp_star.scores(run_of("gpt2"), "q", **PLAIN).provenance["method"] == "atp"


def test_the_two_orders_of_averaging_are_named() -> None:
    effects = atp_star.scores(run_of("gpt2"), "z", **PLAIN)
    torch.testing.assert_close(effects.importance, effects.values.abs().mean(0))
    torch.testing.assert_close(effects.absolute_mean, effects.values.mean(0).abs())
    assert bool((effects.importance >= effects.absolute_mean - 1e-15).all())


def test_nothing_is_left_on_the_model() -> None:
    run = run_of("gpt2")
    atp_star.scores(run, "q")
    assert all(p.grad is None for p in run.model.bridge.original_model.parameters())
    assert not any(block.requires_grad for part in run.parts for block in (part.embedded,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "heads"}, "kind of site out of resid_pre"),
        ({"kind": "z", "unit": "layer"}, "unit out of block, sublayer"),
        ({"kind": "z", "positions": []}, "at least one position"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        atp_star.scores(run_of("gpt2"), **options)


def test_kl_at_the_clean_run_is_refused() -> None:
    model, task = tiny.model("gpt2"), tiny.task(n=2)
    with pytest.raises(InvalidOption, match="at its minimum on the clean run"):
        atp_star.scores(SiteRun(model, task, metric="kl"), "z")
    effects = atp_star.scores(SiteRun(model, task, metric="kl", direction="denoising"), "z")
    assert float(effects.importance.max()) > 0


def test_one_layer_leaves_nothing_to_drop() -> None:
    with pytest.raises(InvalidOption, match="two layers or more for GradDrop"):
        atp_star.scores(SiteRun(without_norm(layers=1), tiny.task()), "z")
