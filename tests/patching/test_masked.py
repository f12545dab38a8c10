"""`MaskedRun` against the model's own code, against finite differences, and against itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graphs.circuit import Circuit
from graphs.components import Architecture
from graphs.nodes import Edge
from patching import toy
from patching.ablations import Ablation
from patching.activation import SiteRun
from patching.engine import Writes
from patching.errors import InvalidMask, InvalidOption, InvalidTask, NotFinite
from patching.lens import LensModel
from patching.masked import MaskedRun
from patching.metrics import Metric
from patching.task import Task
from tests import tiny
from tests.leftovers import traces
from tests.oracle import EVERY_LOGIT, Oracle, at_answer, projected, tolerance

SAME = 1e-12  # the engine against the engine


def run_of(family: str, *, prefix: int = 2, **options: object) -> MaskedRun:
    return MaskedRun(tiny.model(family), tiny.task(prefix=prefix), metric=EVERY_LOGIT, **options)  # type: ignore[arg-type]


def random_mask(run: MaskedRun, *, seed: int, density: float | None) -> Tensor:
    """0 or 1 with a density; or anything from 0 to 1, among them many ones and zeros."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(run.mask_shape, generator=generator, dtype=torch.float64)
    return (2 * uniform - 0.5).clamp(0, 1) if density is None else (uniform < density).double()


def without_receivers(run: MaskedRun, mask: Tensor, *, seed: int) -> Tensor:
    """A third of the receivers lose all that they read."""
    generator = torch.Generator().manual_seed(seed)
    visible = run.graph.n_visible
    mask = mask.clone()
    for target in torch.randperm(len(visible), generator=generator)[: len(visible) // 3].tolist():
        start = sum(visible[:target])
        mask[..., start : start + visible[target]] = 0
    return mask


DENSITIES = (0.2, 0.35, 0.5, 0.7, None)


def some_masks(run: MaskedRun, *, seed: int, densities: tuple[float | None, ...] = (0.6, None)) -> list[Tensor]:
    """Whole and with receivers cut off, hard and soft."""
    masks = []
    for density in densities:
        mask = random_mask(run, seed=seed, density=density)
        masks += [mask, without_receivers(run, mask, seed=seed)]
    return masks


# --- against the model's own code -----------------------------------------------------------------------------------


def test_all_ones_is_the_model(family: str) -> None:
    run = run_of(family)
    own = projected(at_answer(run.task, run.model.logits(run.task.clean)))
    torch.testing.assert_close(run(run.ones()), own, rtol=0, atol=tolerance(family))
    torch.testing.assert_close(run.nodes()(run.nodes().ones()), own, rtol=0, atol=tolerance(family))


def test_all_zeros_is_the_model_on_the_corrupt_prompts(family: str) -> None:
    run = run_of(family)
    own = projected(at_answer(run.task, run.model.logits(run.task.corrupt)))
    torch.testing.assert_close(run(run.zeros()), own, rtol=0, atol=tolerance(family))
    torch.testing.assert_close(run.corrupt_metric, own, rtol=0, atol=tolerance(family))


def check_against_oracle(run: MaskedRun, masks: list[Tensor], family: str) -> None:
    oracle = Oracle(run.model)
    replacement = oracle.sources(run.task.corrupt)
    differing = 0
    for mask in masks:
        expected = oracle.measure(run.task, mask.unbind(-1), replacement=replacement)
        torch.testing.assert_close(run(mask), expected, rtol=0, atol=tolerance(family))
        differing += bool((expected - run.corrupt_metric).abs().max() > 0.01)
    assert differing >= 3, "nearly all masks cut everything off"


def test_random_masks_are_what_the_oracle_computes(family: str) -> None:
    run = run_of(family)
    check_against_oracle(run, some_masks(run, seed=1, densities=DENSITIES), family)


@pytest.mark.slow
def test_many_random_masks_are_what_the_oracle_computes(family: str) -> None:
    for prefix in (0, 1, 5):
        run = run_of(family, prefix=prefix)
        check_against_oracle(
            run, [mask for seed in range(12) for mask in some_masks(run, seed=seed, densities=DENSITIES)], family
        )


def test_masks_by_position_are_what_the_oracle_computes(family: str) -> None:
    run = run_of(family, prefix=1).positions()
    masks = some_masks(run, seed=2, densities=(0.35, 0.7, None))
    check_against_oracle(run, masks, family)


def test_one_position_of_one_node_is_what_the_oracle_computes() -> None:
    run = run_of("llama").nodes().positions()
    oracle = Oracle(run.model)
    replacement = oracle.sources(run.task.corrupt)
    for node, position in ((0, 2), (3, 4), (run.n_units - 1, 5)):
        mask = run.ones()
        mask[position, node] = 0
        edges = mask[:, run.edge_sources]
        expected = oracle.measure(run.task, edges.unbind(-1), replacement=replacement)
        torch.testing.assert_close(run(mask), expected, rtol=0, atol=tolerance("llama"))


def test_ablating_a_cut_is_running_the_corrupt_prompts(family: str) -> None:
    """Everything behind a cut then reads corrupt values only (P1.2 of activation patching)."""
    run = run_of(family)
    graph, first = run.graph, torch.tensor(run.graph.n_visible).cumsum(0)
    stages = sorted(set(graph.n_visible))
    for seen in stages:  # sources that are all computed before those that follow read
        mask = run.ones()
        for target, visible in enumerate(graph.n_visible):
            if visible >= seen:
                start = int(first[target]) - visible
                mask[start : start + seen] = 0
        torch.testing.assert_close(run(mask), run.corrupt_metric, rtol=0, atol=1e-9)


def test_sources_sum_to_the_residual(family: str) -> None:
    """Engine, oracle and model agree on what every node writes, and that it is all there is."""
    model, task = tiny.model(family), tiny.task(prefix=0)
    written = Oracle(model).sources(task.clean)
    seen: list[Tensor] = []
    handle = model.bridge.ln_final.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    model.logits(task.clean)
    handle.remove()
    total = torch.stack([written[node] for node in model.graph.sources]).sum(0) + model.bias_prefix[-1]
    torch.testing.assert_close(total, seen[0], rtol=0, atol=tolerance(family))

    batch = MaskedRun(model, task).batches[0]
    assert batch.start == 0
    for node in model.graph.sources:
        if node.kind == "input":
            own = batch.clean.embedded
        elif node.kind == "mlp":
            own = batch.clean.mlps[node.layer]
        else:
            own = model.blocks[node.layer].attention.write(batch.clean.heads[node.layer])[node.index]
        torch.testing.assert_close(own, written[node], rtol=0, atol=tolerance(family))


def test_the_common_prefix_is_cut_off_without_a_trace(family: str) -> None:
    """Prompts that differ only in their last tokens give the same numbers with and without their prefix."""
    task = tiny.task(prefix=4)
    cut = MaskedRun(tiny.model(family), task, metric=EVERY_LOGIT)
    assert cut.batches[0].start == 4
    mask = random_mask(cut, seed=4, density=0.6)
    check_against_oracle(cut, [mask, 1 - mask, random_mask(cut, seed=5, density=None)], family)


# --- views ----------------------------------------------------------------------------------------------------------


def test_a_node_mask_is_one_value_for_all_its_edges(family: str) -> None:
    run = run_of(family)
    nodes = run.nodes()
    assert nodes.n_units == len(run.graph.sources)
    assert nodes.edges().mask_shape == run.mask_shape
    for density in (0.3, 0.8, None):
        mask = random_mask(nodes, seed=3, density=density)
        edges = mask[[run.graph.source_index[edge.source] for edge in run.units]]
        torch.testing.assert_close(nodes(mask), run(edges), rtol=0, atol=SAME)


def test_a_mask_that_is_the_same_everywhere_needs_no_positions(family: str) -> None:
    for run in (run_of(family), run_of(family).nodes()):
        mask = random_mask(run, seed=6, density=None)
        by_position = run.positions()
        torch.testing.assert_close(by_position(mask.expand(by_position.mask_shape)), run(mask), rtol=0, atol=SAME)


def test_views_leave_the_run_as_it_was() -> None:
    run = MaskedRun(toy.model(), toy.task())
    view = run.nodes().positions()
    assert (view.level, view.per_position, view.mask_shape) == ("node", True, (2, 3))
    assert (run.level, run.per_position, run.mask_shape) == ("edge", False, (9,))


def test_units_are_those_of_the_graph() -> None:
    run = run_of("llama")
    assert run.units == run.graph.edges
    assert run.nodes().units == run.graph.sources
    assert [run.graph.sources[number] for number in run.edge_sources] == [edge.source for edge in run.units]


# --- gradients ------------------------------------------------------------------------------------------------------


def test_gradient_is_the_finite_difference(family: str) -> None:
    """In random directions, at soft masks and at both ends."""
    generator = torch.Generator().manual_seed(8)
    edges = run_of(family)
    for run, ends in ((edges, (edges.ones(), edges.zeros())), (edges.nodes(), ()), (edges.positions(), ())):
        for mask in (random_mask(run, seed=8, density=None), *ends):
            direction = torch.randn(mask.shape, generator=generator, dtype=torch.float64)
            step = 1e-5 * direction
            measured = (run(mask + step) - run(mask - step)).mean() / 2e-5
            assert float((run.gradient(mask) * direction).sum()) == pytest.approx(float(measured), rel=1e-5, abs=1e-6)


def test_gradient_of_every_single_unit_is_its_finite_difference() -> None:
    run = run_of("gemma2").nodes()
    mask = random_mask(run, seed=9, density=0.6)
    step = 1e-5 * torch.eye(run.n_units, dtype=torch.float64)
    measured = (run(mask + step) - run(mask - step)).mean(-1) / 2e-5
    torch.testing.assert_close(run.gradient(mask), measured, rtol=1e-5, atol=1e-7)


def test_gradients_of_views_add_up(family: str) -> None:
    """An edge's is the sum over positions; a node's is the sum over its edges."""
    run = run_of(family)
    nodes, by_position = run.nodes(), run.positions()
    mask = random_mask(nodes, seed=10, density=None)
    edges = mask[run.edge_sources]
    whole = run.gradient(edges)
    positions = by_position.gradient(edges.expand(by_position.mask_shape))
    torch.testing.assert_close(positions.sum(0), whole, rtol=0, atol=1e-10)
    summed = torch.zeros_like(mask).index_add(0, run.edge_sources, whole)
    torch.testing.assert_close(nodes.gradient(mask), summed, rtol=0, atol=1e-10)


def test_a_mask_that_requires_gradients_gives_the_same_values(family: str) -> None:
    run = run_of(family)
    masks = torch.stack(some_masks(run, seed=11))
    values = run(masks.clone().requires_grad_(True))
    assert values.requires_grad
    torch.testing.assert_close(values.detach(), run(masks), rtol=0, atol=SAME)


def test_gradients_of_several_masks_are_those_of_each() -> None:
    run = run_of("qwen3")
    masks = torch.stack([random_mask(run, seed=seed, density=None) for seed in range(3)])
    together = run.gradient(masks)
    for mask, gradient in zip(masks, together, strict=True):
        torch.testing.assert_close(run.gradient(mask), gradient, rtol=0, atol=SAME)


# --- nothing depends on how the work is divided ---------------------------------------------------------------------


def test_chunks_change_nothing(family: str) -> None:
    """One prompt and one mask at a time, against all at once."""
    task = tiny.task(n=2, prefix=2)
    whole, chunked = (MaskedRun(tiny.model(family), task, metric=EVERY_LOGIT, memory=memory) for memory in (1 << 27, 1))
    assert (len(whole.batches), len(chunked.batches)) == (1, 2)
    assert whole.samples_that_fit > 1
    assert chunked.samples_that_fit == 1
    for view in (MaskedRun.edges, MaskedRun.nodes, MaskedRun.positions):
        masks = torch.stack(some_masks(view(whole), seed=12))
        torch.testing.assert_close(view(chunked)(masks), view(whole)(masks), rtol=0, atol=SAME)
    mask = random_mask(whole, seed=13, density=None)
    torch.testing.assert_close(chunked.gradient(mask), whole.gradient(mask), rtol=0, atol=SAME)


@pytest.mark.parametrize("ablation", ["zero", "mean", "mean-positional", "mean-clean", "resample"])
def test_chunks_change_nothing_for_any_ablation(ablation: str) -> None:
    task = tiny.task(n=4)
    for family in ("gpt2", "gemma2"):
        whole, chunked = (
            MaskedRun(tiny.model(family), task, metric=EVERY_LOGIT, ablation=ablation, memory=memory)
            for memory in (1 << 27, 1)
        )
        masks = torch.stack(some_masks(whole, seed=14))
        torch.testing.assert_close(chunked(masks), whole(masks), rtol=0, atol=SAME)


def test_batch_mates_change_nothing(family: str) -> None:
    """A prompt alone, and among prompts with a shorter common prefix and other lengths."""
    run = run_of(family)
    masks = torch.stack(some_masks(run, seed=15))
    together = run(masks)
    for row in range(len(run.task)):
        alone = MaskedRun(run.model, run.task.subset(slice(row, row + 1)), metric=EVERY_LOGIT)
        torch.testing.assert_close(alone(masks)[:, 0], together[:, row], rtol=0, atol=SAME)


def test_padding_changes_nothing(family: str) -> None:
    """Tokens after a prompt's last one are never seen."""
    run = run_of(family)
    task = run.task
    generator = torch.Generator().manual_seed(16)
    junk = torch.randint(0, tiny.VOCAB, (2, len(task), 3), generator=generator)
    longer = Task(
        "padded", torch.cat((task.clean, junk[0]), 1), torch.cat((task.corrupt, junk[1]), 1),
        task.answers, task.wrong_answers, task.positions,
    )  # fmt: skip
    padded = MaskedRun(run.model, longer, metric=EVERY_LOGIT)
    masks = torch.stack(some_masks(run, seed=17))
    torch.testing.assert_close(padded(masks), run(masks), rtol=0, atol=1e-11)


def test_samples_are_independent_and_keep_their_axes(family: str) -> None:
    run = run_of(family)
    masks = torch.stack(some_masks(run, seed=18))
    values = run(masks)
    assert values.shape == (4, 3)
    for mask, value in zip(masks, values, strict=True):
        torch.testing.assert_close(run(mask), value, rtol=0, atol=SAME)
    assert torch.equal(run(masks.reshape(2, 2, -1)), values.reshape(2, 2, 3))
    assert run(masks[:0]).shape == (0, 3)


def test_values_do_not_depend_on_what_ran_before(family: str) -> None:
    run, fresh = run_of(family), run_of(family)
    masks = some_masks(run, seed=19)
    first = [run(mask) for mask in masks]
    run.gradient(masks[-1])
    again = [run(mask) for mask in reversed(masks)]
    assert all(torch.equal(a, b) for a, b in zip(first, reversed(again), strict=True))
    assert torch.equal(fresh(masks[-1]), first[-1])


def test_the_ends_are_exact(family: str) -> None:
    """Bit for bit: a mask of ones computes nothing new (P1.1: the identity patch)."""
    run = run_of(family)
    assert torch.equal(run(run.ones()), run.clean_metric)
    assert torch.equal(run(run.zeros()), run.corrupt_metric)


def test_identical_prompts_cannot_be_told_apart(family: str) -> None:
    task = tiny.task()
    run = MaskedRun(
        tiny.model(family), Task("same", task.clean, task.clean, task.answers, task.wrong_answers, task.positions)
    )
    for mask in some_masks(run, seed=20):
        torch.testing.assert_close(run(mask), run.clean_metric, rtol=0, atol=1e-9)


def test_float32_is_close_to_float64(family: str) -> None:
    single = MaskedRun(tiny.model(family, dtype=torch.float32), tiny.task(prefix=2), metric=EVERY_LOGIT)
    double = run_of(family)
    masks = torch.stack(some_masks(double, seed=21))
    assert single.ones().dtype == torch.float32
    assert single(single.ones()).dtype == torch.float64  # the metric's own precision
    torch.testing.assert_close(single(masks.float()), double(masks.float().double()), rtol=1e-3, atol=2e-2)


# --- nothing is left behind -----------------------------------------------------------------------------------------


def test_nothing_is_left_on_the_model(family: str) -> None:
    model = tiny.model(family)
    before = traces(model)
    run = MaskedRun(model, tiny.task(), metric="kl")
    run(torch.stack(some_masks(run, seed=22)))
    run.positions()(run.positions().zeros())
    run.gradient(run.ones())
    cursor = run.cursor()
    cursor.look(run.zeros()[None])
    cursor.move(0)
    for ablation in ("mean", "zero"):
        MaskedRun(model, tiny.task(), ablation=ablation).corrupt_metric  # noqa: B018
    assert traces(model) == before


def test_nothing_is_left_when_something_fails() -> None:
    model = tiny.model("gpt2")
    before = traces(model)
    with pytest.raises(NotFinite):
        MaskedRun(model, tiny.task(), metric=Metric("bad", True, lambda p: p.logits[..., 0] * torch.nan))
    with pytest.raises(RuntimeError, match=r"stop here"):
        MaskedRun(model, tiny.task(), metric=Metric("worse", True, _stop))
    assert traces(model) == before


def _stop(_prediction: object) -> Tensor:
    raise RuntimeError("stop here")


def test_arguments_are_not_changed() -> None:
    run = run_of("llama")
    mask = random_mask(run, seed=23, density=None)
    copy = mask.clone()
    run(mask)
    run.gradient(mask)
    cursor = run.cursor(mask)
    cursor.look(mask[None])
    cursor.move(0)
    assert torch.equal(mask, copy)
    assert not mask.requires_grad


# --- the rest of the surface ----------------------------------------------------------------------------------------


def test_mask_of_a_circuit_keeps_its_edges() -> None:
    run = MaskedRun(toy.model(), toy.task())
    circuit = Circuit(run.graph.architecture, (Edge.parse("a0.h1->logits"), Edge.parse("input->a0.h1<v>")))
    mask = run.nodes().mask_of(circuit)  # over edges, whatever the view
    assert {str(edge) for edge, kept in zip(run.units, mask.tolist(), strict=True) if kept} == set(
        map(str, circuit.edges)
    )


def test_damage_is_what_the_circuit_lost() -> None:
    difference, divergence = (MaskedRun(toy.model(), toy.task(), metric=name) for name in ("logit_difference", "kl"))
    mask = difference.zeros()
    expected = (difference.clean_metric - difference.corrupt_metric).mean()
    assert float(difference.damage(difference(mask))) == pytest.approx(float(expected))
    assert float(divergence.damage(divergence(mask))) == pytest.approx(float(divergence(mask).mean()))
    assert float(divergence.damage(divergence(divergence.ones()))) == pytest.approx(0.0, abs=1e-12)


def test_damage_keeps_the_sample_axis() -> None:
    run = run_of("gpt2")
    values = run(torch.stack([run.ones(), run.zeros()]))
    assert run.damage(values).tolist() == [pytest.approx(0.0), pytest.approx(float(run.damage(run.corrupt_metric)))]


def test_provenance_says_how_it_came_about() -> None:
    run = MaskedRun(toy.model(), toy.task(), ablation="mean", metric="loss")
    found = run.provenance("acdc", {"tau": 0.1})
    expected = {"method": "acdc", "options": {"tau": 0.1}, "model": "toy", "task": "toy", "prompts": 4,
                "ablation": "mean", "metric": "loss", "dtype": "float64"}  # fmt: skip
    assert found.items() >= expected.items()


def test_repr_says_what_runs() -> None:
    text = repr(MaskedRun(toy.model(), toy.task()).nodes())
    for part in ("toy", "4 prompts", "3 nodes", "corrupt", "logit_difference"):
        assert part in text


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.fixture
def run() -> MaskedRun:
    return MaskedRun(toy.model(), toy.task())


@pytest.mark.parametrize("shape", [(8,), (10,), (9, 1), (3, 8)])
def test_a_mask_of_another_shape_is_refused(run: MaskedRun, shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidMask, match=r"ending in \[9\], one entry per edge; got"):
        run(torch.ones(shape, dtype=torch.float64))


def test_a_mask_without_positions_is_refused_by_a_run_with_them(run: MaskedRun) -> None:
    with pytest.raises(InvalidMask, match=r"\[\*sample, pos, unit\] ending in \[2, 9\].*got \[9\]"):
        run.positions()(run.ones())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_mask_that_is_not_finite_is_refused(run: MaskedRun, value: float) -> None:
    mask = run.ones()
    mask[3] = value
    for ask in (run, run.gradient, run.cursor, lambda masks: run.cursor().look(masks[None])):
        with pytest.raises(InvalidMask, match=r"finite"):
            ask(mask)


def test_a_circuit_of_another_architecture_is_refused(run: MaskedRun) -> None:
    circuit = Circuit(Architecture(n_layers=2, n_heads=2), (Edge.parse("input->logits"),))
    with pytest.raises(InvalidMask, match=r"2 layers.*Load the model"):
        run.mask_of(circuit)


def test_a_metric_that_is_nan_under_a_mask_is_refused(run: MaskedRun) -> None:
    clean = run.clean_metric

    def undefined_off_clean(prediction: object) -> Tensor:
        value = EVERY_LOGIT.function(prediction)  # type: ignore[arg-type]
        return torch.where(value == first[0], value, torch.nan) if first else _remember(first, value)

    first: list[Tensor] = []
    picky = MaskedRun(toy.model(), toy.task(), metric=Metric("picky", True, undefined_off_clean))
    with pytest.raises(NotFinite, match=r"finite picky; it is NaN or infinite on prompts \[.*use float32"):
        picky(picky.zeros())
    assert torch.equal(run.clean_metric, clean)


def _remember(store: list[Tensor], value: Tensor) -> Tensor:
    store.append(value)
    return value


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InvalidOption, match=r"mean-positional.*'medium'"):
        MaskedRun(toy.model(), toy.task(), ablation="medium")
    with pytest.raises(InvalidOption, match=r"logit_difference.*'accuracy'"):
        MaskedRun(toy.model(), toy.task(), metric="accuracy")


def _task(**changes: Tensor) -> Task:
    parts = {name: getattr(toy.task(), name) for name in ("clean", "corrupt", "answers", "wrong_answers", "positions")}
    return Task("bad", **(parts | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("part", ["clean", "corrupt", "answers", "wrong_answers"])
def test_tokens_out_of_the_vocabulary_are_refused(part: str) -> None:
    tokens = getattr(toy.task(), part).clone()
    tokens[1, 0] = 4
    with pytest.raises(InvalidTask, match=r"below 4, the vocabulary of toy; got 4.*tokenizer"):
        MaskedRun(toy.model(), _task(**{part: tokens}))


def test_prompts_longer_than_the_context_are_refused() -> None:
    long = torch.zeros(4, 5, dtype=torch.long)
    with pytest.raises(InvalidTask, match=r"at most 4 tokens, the context of toy; got 5"):
        MaskedRun(toy.model(), _task(clean=long, corrupt=long))


def test_a_wrong_answer_of_none_is_allowed_where_the_metric_needs_none() -> None:
    task = _task(wrong_answers=torch.full((4, 1), -1))
    assert bool(torch.isfinite(MaskedRun(toy.model(), task, metric="log_probability").clean_metric).all())


def test_a_model_of_half_precision_runs() -> None:
    model: LensModel = tiny.model("gpt2", dtype=torch.bfloat16)
    run = MaskedRun(model, tiny.task(), metric=EVERY_LOGIT)
    own = projected(at_answer(run.task, model.logits(run.task.clean)))
    torch.testing.assert_close(run(run.ones()), own, rtol=0, atol=0.05 * float(own.abs().max()))
    assert bool(torch.isfinite(run.gradient(run.ones())).all())


# --- views and constants for other modules --------------------------------------------------------------------------


def test_views_come_and_go() -> None:
    run = MaskedRun(tiny.model("gpt2"), tiny.task())
    assert run.positions().everywhere().mask_shape == run.mask_shape
    neurons = run.neurons()
    width = run.model.blocks[0].mlp.w_in.shape[0]  # type: ignore[union-attr]
    assert neurons.n_units == 2 * width == len(neurons.units)
    assert [str(neurons.units[i]) for i in (0, width - 1, width)] == ["m0.n0", f"m0.n{width - 1}", "m1.n0"]
    assert bool((neurons(neurons.ones()) == run.clean_metric).all())
    with pytest.raises(InvalidOption, match="attention only, so no neurons"):
        MaskedRun(tiny.model("attention_only"), tiny.task()).neurons()


def test_the_mask_of_edges_at_positions() -> None:
    run = MaskedRun(tiny.model("gpt2"), tiny.task())
    names = ["m0->m1@2", "m0->m1@5", "input->logits"]
    circuit = Circuit(run.graph.architecture, [Edge.parse(name) for name in names])
    mask = run.positions().mask_of(circuit)
    number = {name: run.graph.number(Edge.parse(name)) for name in ("m0->m1", "input->logits")}
    assert mask[:, number["m0->m1"]].nonzero().flatten().tolist() == [2, 5]
    assert bool((mask[:, number["input->logits"]] == 1).all())
    assert int(mask.sum()) == 2 + len(mask)
    with pytest.raises(InvalidMask, match=r"edges at every position; 2 of the circuit's are at one .* run\.positions"):
        run.mask_of(circuit)
    late = Circuit(run.graph.architecture, [Edge.parse("m0->m1@99")])
    with pytest.raises(InvalidMask, match="positions below 7, the length of these prompts; the circuit has 99"):
        run.positions().mask_of(late)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "attention_only"])
def test_gradients_flow_to_constants(family: str) -> None:
    """Against finite differences of a run whose ablation has these constants."""
    model, generator = tiny.model(family), torch.Generator().manual_seed(0)
    heads, width, _ = model.blocks[0].attention.out.shape

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) / 8

    constants = Writes(
        drawn(1, 1, model.d_model),
        [drawn(heads, 1, 1, width) for _ in model.blocks],
        [drawn(1, 1, model.d_model) for block in model.blocks if block.mlp is not None],
    )
    leaves = constants.map(lambda value: value.clone().requires_grad_(True))
    run = MaskedRun(model, tiny.task(), ablation="zero")
    sparse = (torch.rand(run.mask_shape, generator=generator, dtype=torch.float64) < 0.2).double()
    before = run(sparse), run.corrupt_metric  # what the run remembers must not show in its view
    expected = MaskedRun(model, tiny.task(), ablation=Ablation("given", lambda task: task.corrupt, constants=constants))
    found = run.with_constants(constants)
    assert torch.allclose(found(sparse), expected(sparse))
    assert torch.allclose(found.corrupt_metric, expected.corrupt_metric)
    assert not torch.allclose(found.corrupt_metric, before[1])
    mask = torch.rand(run.mask_shape, generator=generator, dtype=torch.float64).requires_grad_(True)
    run.with_constants(leaves)(mask).mean().backward()

    def measured(step: float) -> float:
        moved = constants.map(torch.clone)
        moved.heads[1][0, 0, 0, 1] += step
        ablation = Ablation("moved", lambda task: task.corrupt, constants=moved)
        return float(MaskedRun(model, tiny.task(), ablation=ablation)(mask.detach()).mean())

    slope = (measured(1e-5) - measured(-1e-5)) / 2e-5
    assert leaves.heads[1].grad is not None
    assert float(leaves.heads[1].grad[0, 0, 0, 1]) == pytest.approx(slope, abs=1e-8)


def test_only_constants_can_be_trained() -> None:
    run = MaskedRun(tiny.model("gpt2"), tiny.task())
    with pytest.raises(InvalidOption, match="run whose replacements are constants"):
        run.with_constants(run.batches[0].replacement)
    ablation = Ablation("mine", lambda task: task.corrupt, constants=run.batches[0].replacement)
    with pytest.raises(InvalidOption, match="has constants for whole nodes alone"):
        SiteRun(tiny.model("gpt2"), tiny.task(), ablation=ablation)
