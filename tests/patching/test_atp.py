"""Attribution patching against the engine's gradient, TransformerLens's own, and exact effects where they agree."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graphs.nodes import neuron
from patching import ablations, atp, atp_star, exact, toy
from patching.ablations import Ablation
from patching.activation import SiteRun
from patching.blocks import forward
from patching.errors import InvalidOption
from patching.lens import LensModel
from patching.masked import MaskedRun
from patching.metrics import Metric
from patching.task import Task
from tests import tiny
from tests.oracle import EVERY_LOGIT
from tests.patching.test_exact import without_norm

SAME = 1e-10


def run_of(family: str, *, prefix: int = 2, **options: object) -> MaskedRun:
    return MaskedRun(tiny.model(family), tiny.task(prefix=prefix), metric=EVERY_LOGIT, **options)  # type: ignore[arg-type]


# --- identities -----------------------------------------------------------------------------------------------------


def test_scores_are_minus_the_mask_gradient(family: str) -> None:
    for run in (run_of(family), run_of(family).nodes()):
        expected = -run.gradient(run.ones())
        torch.testing.assert_close(atp.scores(run).values, expected, rtol=0, atol=SAME)


@pytest.mark.parametrize("ablation", ["zero", "mean", "mean-positional", "resample"])
@pytest.mark.parametrize("name", ["gpt2", "gemma2", "gpt_neox", "llama"])
def test_scores_are_minus_the_mask_gradient_for_any_ablation(name: str, ablation: str) -> None:
    run = MaskedRun(tiny.model(name), tiny.task(n=4), metric=EVERY_LOGIT, ablation=ablation)
    for view in (run, run.nodes()):
        torch.testing.assert_close(atp.scores(view).values, -view.gradient(view.ones()), rtol=0, atol=SAME)


@pytest.mark.parametrize(
    "metric", ["logit_difference", "log_probability", "probability", "probability_difference", "loss"]
)
def test_scores_are_minus_the_mask_gradient_for_any_metric(metric: str) -> None:
    run = MaskedRun(tiny.model("qwen2"), tiny.task(), metric=metric)
    torch.testing.assert_close(atp.scores(run).values, -run.gradient(run.ones()), rtol=0, atol=SAME)


def test_a_node_is_the_sum_of_its_edges(family: str) -> None:
    """P2.6 of attribution patching: exactly, prompt by prompt and so on average."""
    run = run_of(family)
    edges, nodes = atp.scores(run), atp.scores(run.nodes())
    total = torch.zeros_like(nodes.values).index_add(0, run.edge_sources, edges.values)
    torch.testing.assert_close(total, nodes.values, rtol=0, atol=SAME)
    assert float(nodes.importance.min()) > 0


def test_scores_are_the_finite_difference_of_small_ablations() -> None:
    run = run_of("gemma3")
    step = 1e-5
    masks = 1 - step * torch.eye(run.n_units, dtype=torch.float64)
    measured = (run(masks) - run(2 - masks)).mean(-1) / (2 * step)
    torch.testing.assert_close(atp.scores(run).values, measured, rtol=1e-5, atol=1e-6)


def test_small_changes_are_predicted_exactly(family: str) -> None:
    """Replacements that hardly differ: what is measured is the first-order estimate."""
    run = run_of(family)
    step = 1e-4
    mask = 1 - step * (torch.rand(run.n_units, generator=torch.Generator().manual_seed(0), dtype=torch.float64) < 0.3)
    predicted = float((atp.scores(run).values * (1 - mask)).sum())
    measured = float((run(mask) - run(2 - mask)).mean()) / 2
    assert measured == pytest.approx(predicted, rel=1e-4, abs=1e-8)


# --- neurons --------------------------------------------------------------------------------------------------------


NEURON_FAMILIES = ["gpt2", "llama", "gemma2", "gpt_neox"]


@pytest.mark.parametrize("ablation", ["corrupt", "mean", "zero"])
@pytest.mark.parametrize("name", NEURON_FAMILIES)
def test_neurons_are_those_of_sites(name: str, ablation: str) -> None:
    """The same estimate from a run that visits the neurons."""
    run = MaskedRun(tiny.model(name), tiny.task(n=3, prefix=2), metric=EVERY_LOGIT, ablation=ablation)
    sites = SiteRun(run.model, run.task, metric=EVERY_LOGIT, ablation=ablation)
    theirs = atp_star.scores(sites, "neurons", parts=True, qk_fix=False, grad_drop=False)
    found = atp.scores(run.neurons())
    torch.testing.assert_close(found.values, theirs.mean.flatten(), rtol=0, atol=SAME)
    assert found.units[1] == neuron(0, 1)


@pytest.mark.parametrize("ablation", ["corrupt", "mean", "mean-positional", "resample"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
def test_neurons_of_a_layer_add_up_to_its_node(name: str, ablation: str) -> None:
    run = MaskedRun(tiny.model(name), tiny.task(n=4), metric=EVERY_LOGIT, ablation=ablation)
    nodes, neurons = atp.scores(run.nodes()), atp.scores(run.neurons())
    for layer, total in enumerate(neurons.values.reshape(2, -1).sum(1).tolist()):
        assert total == pytest.approx(nodes[f"m{layer}"], abs=SAME)


def test_zero_ablation_of_a_node_takes_its_output_bias_too() -> None:
    """So the neurons add up to the node's effect plus the bias times the gradient, which is by how they differ."""
    model = tiny.model("gpt2")
    run = MaskedRun(model, tiny.task(n=2), metric=EVERY_LOGIT, ablation="zero")
    nodes, neurons = atp.scores(run.nodes()), atp.scores(run.neurons())
    (batch,) = run.batches
    for layer, total in enumerate(neurons.values.reshape(2, -1).sum(1).tolist()):
        embedded = model.embed(run.task.clean).requires_grad_(True)
        trace = forward(model.blocks, embedded, model.contexts(tiny.LENGTH), parallel=False)
        final = trace.final[torch.arange(2), run.task.positions]
        (gradient,) = torch.autograd.grad(batch.measure(final).sum(), trace.mlps[layer])
        mlp = model.blocks[layer].mlp
        assert mlp is not None
        assert mlp.b_out is not None
        bias = float((gradient * mlp.b_out).sum() / 2)
        assert abs(bias) > 1e-3
        assert total == pytest.approx(nodes[f"m{layer}"] + bias, abs=SAME)


def test_behind_a_norm_neurons_do_not_add_up_to_the_node() -> None:
    run = run_of("gemma2")
    nodes, neurons = atp.scores(run.nodes()), atp.scores(run.neurons())
    assert abs(float(neurons.values.reshape(2, -1)[0].sum()) - nodes["m0"]) > 1e-3


def test_small_changes_of_neurons_are_predicted() -> None:
    """What exact patching measures when the corrupt prompt's neurons hardly differ: noise a millionth of the usual."""
    noise = ablations.gaussian_noise(scale=1e-5)
    run = MaskedRun(tiny.model("llama"), tiny.task(n=2), metric=EVERY_LOGIT, ablation=noise).neurons()
    chosen = run.units[::7]
    found, true = atp.scores(run), exact.scores(run, only=chosen)
    for unit in chosen:
        assert found[unit] == pytest.approx(true[unit], rel=1e-3, abs=1e-9)


def test_neurons_in_small_batches() -> None:
    for ablation in ("corrupt", "mean", "zero"):
        whole, small = (
            atp.scores(run_of("gemma2", memory=memory, ablation=ablation).neurons()) for memory in (1 << 27, 1)
        )
        torch.testing.assert_close(small.values, whole.values, rtol=0, atol=SAME)


def test_learned_constants_say_nothing_of_neurons() -> None:
    zero = MaskedRun(tiny.model("gpt2"), tiny.task(), ablation="zero").batches[0].replacement
    learned = Ablation("learned", lambda task: task.corrupt, constants=zero)
    run = MaskedRun(tiny.model("gpt2"), tiny.task(), ablation=learned)
    assert float(atp.scores(run.nodes()).importance.max()) > 0
    with pytest.raises(InvalidOption, match="says what a neuron carries; learned has constants for whole nodes alone"):
        atp.scores(run.neurons())


# --- linear models --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [toy.model(), without_norm(uniform=True, layers=3)], ids=["toy", "three layers"])
def test_first_order_is_exact_in_a_linear_model(model: LensModel) -> None:
    """P2.1, for every edge and every node."""
    task = toy.task() if model.name == "toy" else tiny.task()
    for run in (MaskedRun(model, task), MaskedRun(model, task).nodes()):
        torch.testing.assert_close(atp.scores(run).values, exact.scores(run).values, rtol=0, atol=SAME)


@pytest.mark.parametrize("model", [toy.model(), without_norm(uniform=True, layers=3)], ids=["toy", "three layers"])
def test_edges_across_any_cut_add_up_to_the_whole_effect(model: LensModel) -> None:
    """P2.7: metric(corrupt) - metric(clean); the sum over all edges is something else."""
    task = toy.task() if model.name == "toy" else tiny.task()
    run = MaskedRun(model, task)
    scores, total = atp.scores(run), float((run.corrupt_metric - run.clean_metric).mean())
    for size in range(1, len(run.graph.sources) + 1):
        before = set(run.graph.sources[:size])
        across = [edge for edge in run.units if edge.source in before and edge.target not in before]
        assert sum(scores[edge] for edge in across) == pytest.approx(total, abs=1e-9), f"after {size} nodes"
    assert float(scores.values.sum()) != pytest.approx(total, abs=1e-3)


def test_first_order_is_not_exact_in_general() -> None:
    run = run_of("gpt2").nodes()
    assert float((atp.scores(run).values - exact.scores(run).values).abs().max()) > 0.1


# --- TransformerLens's own ------------------------------------------------------------------------------------------


def own_model() -> LensModel:
    """Not shared: TransformerLens leaves tensors behind on what it analyses."""
    return LensModel.wrap(tiny.hugging_face("gpt2"), name="gpt2")


def row_metric(task: Task, row: int):
    """The logit difference of one prompt, from its logits alone."""
    position, right, wrong = task.positions[row], task.answers[row], task.wrong_answers[row]
    return lambda logits: logits[0, position, right].mean() - logits[0, position, wrong].mean()


def transformer_lens_scores(model: LensModel, task: Task, granularity: str) -> dict[str, float]:
    """Its scores, summed over positions and averaged over prompts, under our names."""
    from transformer_lens.tools.analysis import attribution_patching as theirs

    config = theirs.EdgeAttributionConfig(granularity=granularity)  # type: ignore[arg-type]
    total: dict[str, float] = {}
    for row in range(len(task)):
        length = int(task.positions[row]) + 1
        tokens = (task.clean[row : row + 1, :length], task.corrupt[row : row + 1, :length])
        found = theirs.attribution_patch(model.bridge, *tokens, row_metric(task, row), config)
        values = found.node_scores if granularity == "node" else found.edge_scores
        for unit, score in values.items():
            name = our_name(unit) if granularity == "node" else "->".join(map(our_name, unit))
            total[name] = total.get(name, 0.0) + score / len(task)
    return total


def our_name(node) -> str:
    readers = {"q_input": "<q>", "k_input": "<k>", "v_input": "<v>"}
    if node.kind == "embed":
        return "input"
    if node.kind == "logits":
        return "logits"
    if node.kind in ("mlp_out", "mlp_in"):
        return f"m{node.layer}"
    return f"a{node.layer}.h{node.head}{readers.get(node.kind, '')}"


@pytest.mark.parametrize("granularity", ["node", "edge"])
def test_scores_are_those_of_transformer_lens(granularity: str) -> None:
    """It patches clean values into the corrupt run: our task swapped."""
    model, task = own_model(), tiny.task()
    try:
        theirs = transformer_lens_scores(model, task, granularity)
    except NotImplementedError:
        pytest.skip(f"this version of TransformerLens has no attribution of {granularity}s")
    run = MaskedRun(tiny.model("gpt2"), task.swapped())
    ours = atp.scores(run if granularity == "edge" else run.nodes())
    assert set(theirs) == set(map(str, ours.units))
    for unit in ours.units:
        assert ours[unit] == pytest.approx(theirs[str(unit)], abs=1e-9), unit


# --- the rest -------------------------------------------------------------------------------------------------------


def test_standard_errors_are_over_prompts() -> None:
    run = run_of("llama")
    each = torch.stack(
        [
            atp.scores(MaskedRun(run.model, run.task.subset(slice(row, row + 1)), metric=EVERY_LOGIT)).values
            for row in range(len(run.task))
        ]
    )
    scores = atp.scores(run)
    torch.testing.assert_close(scores.values, each.mean(0), rtol=0, atol=SAME)
    torch.testing.assert_close(scores.standard_error, each.std(0) / len(each) ** 0.5, rtol=0, atol=SAME)


def test_batches_change_nothing(family: str) -> None:
    for view in (MaskedRun.edges, MaskedRun.nodes):
        whole, one_by_one = (atp.scores(view(run_of(family, memory=memory))) for memory in (1 << 27, 1))
        torch.testing.assert_close(one_by_one.values, whole.values, rtol=0, atol=SAME)


def test_direction_and_sign() -> None:
    """An edge that helps has a negative effect: ablating it costs metric."""
    scores = atp.scores(MaskedRun(toy.model(), toy.task().subset(slice(1, 2))))  # "0 1" to "0 3"
    assert scores["a0.h1->logits"] == pytest.approx(-1.5)
    assert scores.top(1, signed=True)[0].source.kind in ("input", "head")


def test_progress_counts_batches() -> None:
    seen: list[tuple[int, int]] = []
    atp.scores(MaskedRun(toy.model(), toy.task(), memory=1), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_kl_is_refused() -> None:
    """Its gradient at the clean run is zero (P2.8), so all scores would be."""
    with pytest.raises(
        InvalidOption, match=r"gradient at the clean run is not zero; kl is at its minimum.*logit_difference"
    ):
        atp.scores(MaskedRun(toy.model(), toy.task(), metric="kl"))


def test_positions_are_refused() -> None:
    with pytest.raises(InvalidOption, match=r"scores by position"):
        atp.scores(MaskedRun(toy.model(), toy.task()).positions())


def test_half_precision_gives_scores_close_to_double() -> None:
    half = atp.scores(MaskedRun(tiny.model("llama", dtype=torch.bfloat16), tiny.task())).values
    double = atp.scores(MaskedRun(tiny.model("llama"), tiny.task())).values
    assert bool(torch.isfinite(half).all())
    assert float((half - double).abs().max()) < 0.2 * float(double.abs().max())


def test_a_metric_without_gradient_is_not_silently_zero() -> None:
    def constant(prediction: object) -> Tensor:
        return prediction.residual[..., 0].detach() * 0 + 1.0  # type: ignore[attr-defined]

    with pytest.raises(RuntimeError):
        atp.scores(MaskedRun(toy.model(), toy.task(), metric=Metric("constant", True, constant)))
