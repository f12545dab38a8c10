"""IBCircuit: its information against torch's own divergence, its noise against the mixture it stands for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from circuits import information_bottleneck as ib
from patching import toy
from patching.blocks import forward
from patching.errors import InvalidOption
from patching.masked import MaskedRun
from patching.metrics import Metric
from tests import tiny
from tests.circuits.test_learned_mask import TRAINED, better_than_random, trained_run


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run_of(family: str, *, n: int = 3, **options: object) -> MaskedRun:
    return MaskedRun(tiny.model(family), tiny.task(n=n, prefix=1), **options).nodes()  # type: ignore[arg-type]


@pytest.mark.parametrize("weight", [0.01, 0.4, 0.97])
def test_information_is_the_mean_divergence_of_torch(weight: float) -> None:
    """Over any values whose own mean and deviation are taken."""
    values = torch.randn(500, generator=generator(), dtype=torch.float64) ** 3
    mean, deviation = values.mean(), values.std(correction=0)
    prior = Normal(mean, deviation)
    each = kl_divergence(Normal(weight * values + (1 - weight) * mean, (1 - weight) * deviation), prior)
    parameter = torch.logit(torch.tensor([weight], dtype=torch.float64))
    assert float(ib.information(parameter)) == pytest.approx(float(each.mean()), rel=1e-9)


def test_information_rises_from_nothing_without_bound() -> None:
    values = ib.information(torch.linspace(-50, 50, 101, dtype=torch.float64))
    assert float(values[0]) == pytest.approx(0, abs=1e-12)
    assert (values.diff() > -1e-30).all()
    assert float(values[-1]) == pytest.approx(50)  # -log(1 - w) is p for large p, and w² - w is 0


@pytest.mark.parametrize("family", ["gpt2", "attention_only", "gemma2"])
def test_moments_are_those_of_the_clean_tokens(family: str) -> None:
    """Padding does not count; each head, MLP and the input has moments of its own."""
    run = run_of(family)
    noisy, model, task = ib.NoisyRun(run), run.model, run.task
    contexts = model.contexts(task.clean.shape[1])
    trace = forward(model.blocks, model.embed(task.clean), contexts, parallel=model.architecture.parallel)
    real = torch.stack([torch.arange(task.clean.shape[1]) <= last for last in task.positions])
    assert not real.all()
    for clean, mean, deviation in (
        (trace.embedded, noisy.mean.embedded, noisy.deviation.embedded),
        (trace.heads[1][2], noisy.mean.heads[1][2], noisy.deviation.heads[1][2]),
        *zip(trace.mlps, noisy.mean.mlps, noisy.deviation.mlps, strict=True),
    ):
        tokens = clean[real]
        assert torch.allclose(mean.flatten(), tokens.mean(0), atol=1e-10)
        assert torch.allclose(deviation.flatten(), tokens.std(0, correction=0), atol=1e-10)


def test_a_draw_is_the_mixture_at_the_logits() -> None:
    """Attention-only, and heads at weight 1: the logits read w a + (1 - w) (μ + σ ε) of the input, here by hand."""
    run = MaskedRun(toy.model(), toy.task()).nodes()
    noisy = ib.NoisyRun(run)
    weights = torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64)
    found = noisy.draw(generator())(weights)
    chance, task = generator(), run.task
    noise = [torch.randn(shape, generator=chance, dtype=torch.float64) for shape in ((4, 2, 4), (2, 4, 2, 1))]
    embedded = torch.eye(4, dtype=torch.float64)[task.clean]
    mean, deviation = embedded.mean((0, 1)), embedded.std((0, 1), correction=0)
    z = 0.3 * embedded + 0.7 * (mean + deviation * noise[0])
    clean = [2 * embedded[..., 0], 3 * embedded[..., 1]]
    clean = [value.cumsum(1) / torch.tensor([1.0, 2.0]) for value in clean]
    logit = z[:, 1, 2] - z[:, 1, 3]
    for head, (scale, coordinate, weight) in enumerate(((2.0, 0, 0.6), (3.0, 1, 0.9))):
        written = scale * z[..., coordinate].mean(1)  # at the last position, of what it attends to
        moments = clean[head].mean(), clean[head].std(correction=0)
        logit = logit + weight * written + (1 - weight) * (moments[0] + moments[1] * noise[1][head, :, 1, 0])
    assert found.tolist() == pytest.approx(logit.tolist(), abs=1e-12)


def test_at_weight_one_it_is_the_clean_run_and_noise_is_centred() -> None:
    run = run_of("gpt2")
    noisy = ib.NoisyRun(run)
    chance = generator()
    assert torch.allclose(noisy.draw(chance)(run.ones()), run.clean_metric, atol=1e-12)
    writes = torch.stack([noisy.draw(chance).batches[0].replacement.mlps[0] for _ in range(400)])
    assert torch.allclose(writes.mean((0, 1, 2)), noisy.mean.mlps[0].flatten(), atol=5 * 1.5 / 90)
    assert torch.allclose(writes.std((0, 1, 2)), noisy.deviation.mlps[0].flatten(), rtol=0.05)


def test_noise_does_not_depend_on_batches() -> None:
    weights = torch.full((run_of("gpt2").n_units,), 0.5, dtype=torch.float64)
    whole, single = (ib.NoisyRun(run_of("gpt2", memory=memory)) for memory in (1 << 27, 1))
    assert len(single.run.batches) == 3
    assert torch.allclose(whole.draw(generator())(weights), single.draw(generator())(weights), atol=1e-10)


def test_gradient_against_finite_differences() -> None:
    run = run_of("llama")
    noisy = ib.NoisyRun(run)

    def value(at: Tensor) -> Tensor:
        return noisy.draw(generator(5))(at).mean()

    weights = torch.rand(run.n_units, generator=generator(), dtype=torch.float64)
    leaf = weights.clone().requires_grad_(True)
    slope = torch.autograd.grad(value(leaf), leaf)[0]
    for unit in (0, 2, run.n_units - 1):
        shift = 1e-6 * torch.eye(run.n_units, dtype=torch.float64)[unit]
        assert float(slope[unit]) == pytest.approx(
            float(value(weights + shift) - value(weights - shift)) / 2e-6, abs=1e-6
        )


def test_a_useless_node_loses_its_information() -> None:
    """On the toy's first two prompts, "0 1" twice, head 0 writes as much as always: only its own noise disturbs."""
    run = MaskedRun(toy.model(), toy.task(), metric="kl").nodes()
    cheap, dear = (ib.learn(run, beta=beta, steps=30, lr=0.2).probability for beta in (0.01, 5.0))
    assert (dear < cheap).all()
    assert ib.learn(run, beta=100.0, steps=40).circuit.n_edges == 0


def test_no_corrupt_prompts_are_needed() -> None:
    """Whatever the task calls corrupt, and whatever the run's ablation, the mask is the same."""
    task = toy.task()
    other = type(task)("toy", task.clean, task.clean, task.answers, task.wrong_answers, task.positions)
    found = [
        ib.learn(MaskedRun(toy.model(), which, ablation=ablation, metric="kl").nodes(), steps=10).probability
        for which, ablation in ((task, "corrupt"), (other, "corrupt"), (task, "zero"))
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_the_same_seed_the_same_numbers() -> None:
    first, again, other = (ib.learn(run_of("gpt2"), steps=6, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.probability, again.probability)
    assert (first.training, first.circuit) == (again.training, again.circuit)
    assert first.losses != other.losses


@TRAINED
def test_on_a_trained_model_it_beats_random_circuits() -> None:
    run = trained_run(metric="kl")
    mask = ib.learn(run.nodes(), beta=3.0, steps=40, lr=0.3)
    assert 0.02 < mask.circuit.n_edges / run.n_units < 0.8
    better_than_random(run, mask.circuit)


@pytest.mark.parametrize(("name", "value"), [("beta", -1.0), ("steps", 0), ("lr", 0), ("seed", 1.5)])
def test_options_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(InvalidOption, match=rf"expected {name} to be .*; got "):
        ib.search(MaskedRun(toy.model(), toy.task()).nodes(), **{name: value})  # type: ignore[arg-type]


def test_other_runs_and_metrics_are_refused() -> None:
    run = MaskedRun(toy.model(), toy.task())
    for view in (run, run.nodes().positions()):
        with pytest.raises(InvalidOption, match=r"expected a run over nodes at all positions; got one over"):
            ib.search(view)
    right = Metric("accuracy", True, lambda p: (p.logits.argmax(-1) == p.answers[:, 0]).double())
    with pytest.raises(InvalidOption, match=r"expected a metric with a gradient; accuracy has none"):
        ib.search(MaskedRun(toy.model(), toy.task(), metric=right).nodes())
