"""Every option of ACDC against the plain loop, decision for decision, on random models."""

from __future__ import annotations

import random

import pytest
import torch

from circuits import acdc
from circuits.acdc import Decision
from circuits.candidates import ORDERS, Agenda
from graphs.nodes import Edge
from patching import atp, compiled, toy
from patching.ablations import ABLATIONS
from patching.errors import InvalidOption
from patching.lens import LensModel
from patching.masked import MaskedRun
from patching.metrics import METRICS
from tests import tiny
from tests.acdc_reference import Step, sequential_in_order

SHAPES = (
    {"n_layers": 2, "n_heads": 2, "attn_only": True},
    {"n_layers": 1, "n_heads": 3, "attn_only": False, "d_mlp": 12},
    {"n_layers": 2, "n_heads": 2, "attn_only": False, "d_mlp": 12},
    {"n_layers": 2, "n_heads": 2, "attn_only": False, "d_mlp": 12, "normalization_type": None, "act_fn": "relu"},
    {"n_layers": 2, "n_heads": 2, "n_key_value_heads": 1, "attn_only": False, "d_mlp": 12, "gated_mlp": True,
     "normalization_type": "RMS", "positional_embedding_type": "rotary", "act_fn": "silu"},
)  # fmt: skip


def random_run(seed: int) -> tuple[MaskedRun, dict[str, object], float]:
    """A small random model, a view of it, options and a threshold near the effects that it has."""
    chance = random.Random(seed)
    dtype = chance.choice((torch.float64, torch.float64, torch.float32))
    bridge = tiny.native(seed=seed, dtype=dtype, d_model=8, d_head=4, n_ctx=8, **chance.choice(SHAPES))
    model = LensModel.wrap(bridge, check=False)
    task = tiny.task(n=chance.choice((2, 3)), length=4, prefix=chance.choice((0, 1)), seed=seed)
    metric = chance.choice(list(METRICS))
    ablation = chance.choice([name for name in ABLATIONS if name != "resample"])
    run = MaskedRun(model, task, metric=metric, ablation=ablation, memory=chance.choice((1, 1 << 27)))
    options: dict[str, object] = {"absolute": chance.random() < 0.3}
    if chance.random() < 0.25:
        run = run.nodes()
        options["order"] = chance.choice([order for order in ORDERS if order != "eap"])
    else:
        options["merged"] = chance.random() < 0.3
        fit = [order for order in ORDERS if order != "eap" or metric != "kl"]
        options["order"] = chance.choice(fit)
    options["seed"] = seed
    run = run.positions() if chance.random() < 0.4 else run
    gap = float((run.clean_metric - run.corrupt_metric).abs().mean())
    return run, options, chance.choice((0.0, 0.001, 0.01, 0.03, 0.1, 0.3)) * max(gap, 1e-3)


def decisions_of(run: MaskedRun, tau: float, **options: object) -> list[Decision]:
    decisions: list[Decision] = []
    acdc.search(run, tau=tau, watch=decisions.append, **options)  # type: ignore[arg-type]
    return decisions


def same_decisions(run: MaskedRun, decisions: list[Decision], steps: list[Step]) -> None:
    close = 1e-9 if run.model.dtype == torch.float64 else 1e-3
    for decision, step in zip(decisions, steps, strict=True):
        assert decision.kept == step.kept, decision.name
        assert (decision.delta is None) == (step.delta is None), decision.name
        assert decision.delta is None or decision.delta == pytest.approx(step.delta, abs=close)


def compare(seed: int) -> int:
    run, options, tau = random_run(seed)
    decisions = decisions_of(run, tau, **options)
    names = [decision.name for decision in decisions]
    agenda = Agenda(run, order=str(options["order"]), merged=bool(options.get("merged")), seed=seed)
    assert names == [candidate.name for candidate in agenda]
    assert len(set(names)) == len(names) == agenda.n_candidates
    _mask, steps = sequential_in_order(run, names, tau=tau, absolute=bool(options["absolute"]))
    same_decisions(run, decisions, steps)
    return sum(step.kept for step in steps)


def test_every_option_on_random_models() -> None:
    kept = [compare(seed) for seed in range(24)]
    assert sum(1 for count in kept if count) > 12  # not only empty circuits


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
def test_every_option_on_hundreds_of_random_models(block: int) -> None:
    for seed in range(1000 + 40 * block, 1040 + 40 * block):
        compare(seed)


@pytest.mark.parametrize("name", sorted(compiled.PROGRAMS))
def test_compiled_models_that_ship(name: str) -> None:
    """Their effects are exact and many of them equal, so that ties are common."""
    run = MaskedRun(compiled.model(name), compiled.task(name, n=4, seed=0), metric="kl")
    decisions = decisions_of(run, 0.01)
    _mask, steps = sequential_in_order(run, [decision.name for decision in decisions], tau=0.01)
    same_decisions(run, decisions, steps)


# --- orders, by hand ------------------------------------------------------------------------------------------------


def names(run: MaskedRun, order: str, *, merged: bool = False, seed: int = 0) -> list[str]:
    return [candidate.name for candidate in Agenda(run, order=order, merged=merged, seed=seed)]


def toy_run(**options: object) -> MaskedRun:
    return MaskedRun(toy.model(), toy.task(), **options)  # type: ignore[arg-type]


def test_orders_of_the_toy() -> None:
    run = toy_run()
    paper = [
        "a0.h1->logits", "a0.h0->logits", "input->logits", "input->a0.h1<v>", "input->a0.h0<v>",
        "input->a0.h1<k>", "input->a0.h0<k>", "input->a0.h1<q>", "input->a0.h0<q>",
    ]  # fmt: skip
    assert names(run, "paper") == paper
    assert names(run, "increasing") == [
        "a0.h0->logits", "a0.h1->logits", "input->logits", "input->a0.h0<v>", "input->a0.h1<v>",
        "input->a0.h0<k>", "input->a0.h1<k>", "input->a0.h0<q>", "input->a0.h1<q>",
    ]  # fmt: skip
    assert names(run, "paper", merged=True) == [*paper[:3], "input->a0.h1", "input->a0.h0"]
    assert names(run.nodes(), "paper") == ["a0.h1", "a0.h0", "input"]
    assert names(run.nodes().positions(), "increasing") == [
        "a0.h0@1", "a0.h0@0", "a0.h1@1", "a0.h1@0", "input@1", "input@0",
    ]  # fmt: skip
    assert names(run.positions(), "paper")[:7] == [
        "a0.h1->logits@1", "a0.h0->logits@1", "input->logits@1", "a0.h1->logits@0", "a0.h0->logits@0",
        "input->logits@0", "input->a0.h1<v>@1",
    ]  # fmt: skip


def test_within_a_layer_the_mlp_comes_first() -> None:
    run = MaskedRun(tiny.model("gpt2"), tiny.task())
    assert names(run, "increasing")[:10] == [
        *("m1->logits", "a1.h0->logits", "a1.h1->logits", "a1.h2->logits", "a1.h3->logits", "m0->logits"),
        *("a0.h0->logits", "a0.h1->logits", "a0.h2->logits", "a0.h3->logits"),
    ]


def test_groups_of_keys_and_values_are_readers_of_their_own() -> None:
    run = MaskedRun(tiny.model("llama"), tiny.task())
    readers = [name.split("->")[1] for name in names(run, "paper", merged=True) if name.startswith("input->a1")]
    assert readers == ["a1.kv1", "a1.kv0", "a1.h3<q>", "a1.h2<q>", "a1.h1<q>", "a1.h0<q>"]


def test_order_by_scores_takes_the_least_important_sender_first() -> None:
    run = MaskedRun(tiny.model("gpt2"), tiny.task(prefix=1))
    scores = atp.scores(run)
    for reader in ("logits", "m1", "a1.h2<q>"):
        edges = [Edge.parse(name) for name in names(run, "eap") if name.split("->")[1] == reader]
        importance = [abs(scores[edge]) for edge in edges]
        assert importance == sorted(importance)
        assert len(importance) == run.graph.n_visible[run.graph.target_index[edges[0].reads]]


def test_shuffles_differ_by_seed_and_keep_layers_together() -> None:
    run = MaskedRun(tiny.model("gpt2"), tiny.task())
    first, again, other = (names(run, "shuffle", seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert sorted(first) == sorted(other) == sorted(names(run, "paper"))

    def stage(name: str) -> float:
        reader = Edge.parse(name).target
        return 9 if reader.layer is None else reader.layer + 0.5 * (reader.kind == "mlp")

    assert [stage(name) for name in first] == sorted(map(stage, first), reverse=True)


def test_another_order_can_give_another_circuit() -> None:
    run = MaskedRun(tiny.model("gpt2"), tiny.task(prefix=1))
    found = {order: frozenset(acdc.search(run, tau=0.03, order=order).edges) for order in ORDERS}
    assert len(set(found.values())) > 1


# --- what the variants give -----------------------------------------------------------------------------------------


def test_nodes_of_the_toy() -> None:
    """On "0 1" against "0 3" head 0 does not matter: what is left are the edges between head 1, input and logits."""
    run = MaskedRun(toy.model(), toy.task().subset(slice(1, 2))).nodes()
    circuit = acdc.search(run, tau=0.1)
    assert set(map(str, circuit.edges)) == {
        *("a0.h1->logits", "input->logits", "input->a0.h1<q>", "input->a0.h1<k>", "input->a0.h1<v>")
    }
    assert circuit.provenance["kept"] == {"a0.h1": pytest.approx(-1.5), "input": pytest.approx(-2.5)}
    edges = run.edges()
    kept = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    assert torch.allclose(edges(edges.mask_of(circuit)), run(kept))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "attention_only"])
@pytest.mark.parametrize("by_position", [False, True])
def test_a_circuit_of_nodes_does_what_its_mask_does(family: str, by_position: bool) -> None:
    run = MaskedRun(tiny.model(family), tiny.task(n=3, prefix=1)).nodes()
    run = run.positions() if by_position else run
    decisions: list[Decision] = []
    circuit = acdc.search(run, tau=0.05, watch=decisions.append)
    mask = run.ones()
    units = [str(unit) for unit in run.units]
    for decision in decisions:
        if not decision.kept:
            name, _, place = decision.name.partition("@")
            mask[(int(place), units.index(name)) if place else units.index(name)] = 0
    edges = run.edges()
    assert circuit.n_edges > 0
    assert torch.allclose(edges(edges.mask_of(circuit)), run(mask), atol=1e-9)


def test_positions_of_the_toy() -> None:
    """Only the second token differs, so only what is read there can stay, and of keys and values nothing earlier."""
    run = MaskedRun(toy.model(), toy.task().subset(slice(1, 2))).positions()
    circuit = acdc.search(run, tau=0.1)
    assert set(map(str, circuit.edges)) == {"a0.h1->logits@1", "input->logits@1", "input->a0.h1<v>@1"}
    assert circuit.scores[Edge.parse("a0.h1->logits@1")] == pytest.approx(-1.5)
    assert torch.allclose(run(run.mask_of(circuit)), run.clean_metric)
    assert circuit.provenance["level"] == "edge by position"


def test_merged_edges_stand_for_all_their_ports() -> None:
    run = MaskedRun(tiny.model("gpt2"), tiny.task(prefix=1))
    circuit = acdc.search(run, tau=0.03, merged=True)
    kept = {str(edge) for edge in circuit.edges}
    into_heads = {name for name in circuit.provenance["kept"] if ".h" in name.split("->")[1]}
    assert into_heads
    assert kept == {f"{name}<{letter}>" for name in into_heads for letter in "qkv"} | (
        set(circuit.provenance["kept"]) - into_heads
    )
    assert not circuit.scores


@pytest.mark.parametrize("level", ["merged", "nodes", "positions"])
def test_any_search_goes_on_from_any_decision(level: str) -> None:
    run = MaskedRun(tiny.model("gpt2"), tiny.task(prefix=1))
    run = {"merged": run, "nodes": run.nodes(), "positions": run.positions()}[level]
    options = {"tau": 0.03, "order": "shuffle", "seed": 3, "merged": level == "merged"}
    decisions: list[Decision] = []
    circuit = acdc.search(run, watch=decisions.append, **options)  # type: ignore[arg-type]
    for done in (0, 1, len(decisions) // 3, len(decisions) - 1, len(decisions)):
        resumed = acdc.search(run, decided=decisions[:done], **options)  # type: ignore[arg-type]
        assert resumed.edges == circuit.edges
    with pytest.raises(InvalidOption, match="of another model or order"):
        acdc.search(run, decided=decisions[:9], **(options | {"seed": 4}))  # type: ignore[arg-type]


# --- several thresholds ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "metric"), [("gpt2", "logit_difference"), ("llama", "kl")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_sweep_finds_what_each_search_finds(family: str, metric: str, dtype: torch.dtype) -> None:
    run = MaskedRun(tiny.model(family, dtype=dtype), tiny.task(prefix=1), metric=metric)
    taus = [0.1, 0.003, 0.03, 0.0, 0.1]
    found = acdc.sweep(run, taus=taus, order="increasing")
    for tau, circuit in zip(taus, found, strict=True):
        assert circuit.edges == acdc.search(run, tau=tau, order="increasing").edges
        assert circuit.provenance["options"]["tau"] == tau


def test_a_sweep_takes_over_decisions() -> None:
    """Thresholds between the same two rises share everything."""
    run = MaskedRun(tiny.model("gpt2"), tiny.task(prefix=1))
    calls = 0
    looked = type(run.cursor()).look

    def counted(self: object, masks: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return looked(self, masks)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(run.cursor()), "look", counted)
        acdc.search(run, tau=0.03)
        alone, calls = calls, 0
        acdc.sweep(run, taus=[0.03, 0.03 + 1e-9])
    assert calls < alone + 3


def test_sweep_progress_and_bad_input() -> None:
    seen: list[tuple[int, int]] = []
    acdc.sweep(toy_run(), taus=[0.1, 0.2], progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (18, 18)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    with pytest.raises(InvalidOption, match="at least one tau"):
        acdc.sweep(toy_run(), taus=[])
    with pytest.raises(InvalidOption, match="tau to be a number of 0 or more"):
        acdc.sweep(toy_run(), taus=[0.1, -1.0])


# --- gradients by position ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox", "attention_only"])
def test_slopes_by_position_are_the_gradient_of_the_masked_run(family: str) -> None:
    run = MaskedRun(tiny.model(family), tiny.task(n=3, prefix=1)).positions()
    mask = (torch.rand(run.mask_shape, generator=torch.Generator().manual_seed(1)) < 0.7).double()
    cursor = run.cursor(mask)
    found = sum(cursor.slopes(stage) for stage in range(len(run.planner.stages)))
    assert isinstance(found, torch.Tensor)
    assert torch.allclose(found, run.gradient(mask) * (mask != 0), atol=1e-9)
    whole = run.everywhere()
    everywhere = sum(whole.cursor().slopes(stage) for stage in range(len(run.planner.stages)))
    at_each = sum(run.cursor().slopes(stage) for stage in range(len(run.planner.stages)))
    assert isinstance(at_each, torch.Tensor)
    assert torch.allclose(at_each.sum(0), everywhere, atol=1e-9)  # type: ignore[arg-type]


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tau", "what"), [(1e6, "nothing"), (0.0, "everything")])
def test_a_tau_beyond_all_rises_says_so(tau: float, what: str) -> None:
    run = MaskedRun(toy.model(), toy.task().subset(slice(1, 2)))
    note = acdc.search(run, tau=tau).provenance["note"]
    assert f"keeps {what}" in note
    assert "try tau from" in note
    assert "note" not in acdc.search(run, tau=0.1).provenance


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "random"}, "order out of paper, increasing, eap, shuffle; got 'random'"),
        ({"order": "eap", "level": "node"}, r"run over edges for merged=True and order='eap'"),
        ({"merged": True, "level": "node"}, r"run over edges for merged=True and order='eap'"),
        ({"order": "eap", "metric": "kl"}, "gradient at the clean run"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, str], message: str) -> None:
    run = toy_run(metric=options.pop("metric", None))
    run = run.nodes() if options.pop("level", "") == "node" else run
    with pytest.raises(InvalidOption, match=message):
        acdc.search(run, tau=0.1, **options)  # type: ignore[arg-type]
