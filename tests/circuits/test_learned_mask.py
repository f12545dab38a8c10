"""Learned masks: the distribution, the loop and subnetwork probing, against closed forms and plain truths."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from circuits import learned_mask, subnetwork_probing
from circuits.learned_mask import HARD_CONCRETE, HardConcrete, Step, Training, circuit_of, minimise, no_longer_falls
from graphs.circuit import Circuit
from patching import exact, toy
from patching.errors import InvalidOption, NotFinite
from patching.lens import LensModel
from patching.masked import MaskedRun
from patching.metrics import Metric
from patching.model_sources import zoo_names
from tests import tiny

TRAINED = pytest.mark.skipif("zoo:ioi" not in zoo_names(), reason="zoo:ioi is not there yet")
PLAIN = ["input->a0.h1<v>", "input->logits", "a0.h1->logits"]
"""On the toy's second prompt, "0 1" against "0 3": the answer's logit comes from head 1, what that attends to, and
what the embeddings say of the wrong answer 3."""


def plain_run(**options: object) -> MaskedRun:
    return MaskedRun(toy.model(), toy.task().subset(slice(1, 2)), **options)  # type: ignore[arg-type]


def trained_run(*, n: int = 4, **options: object) -> MaskedRun:
    from circuits import tasks

    model = LensModel.load("zoo:ioi")
    return MaskedRun(model, tasks.ioi.make(model, n=n, seed=0), **options)  # type: ignore[arg-type]


def damage_of(run: MaskedRun, circuit: Circuit) -> float:
    edges = run.edges()
    return float(edges.damage(edges(edges.mask_of(circuit))))


def better_than_random(run: MaskedRun, circuit: Circuit, *, others: int = 20) -> None:
    """Less damage than every one of some random circuits of as many edges."""
    edges, generator = run.edges(), torch.Generator().manual_seed(1)
    masks = edges.zeros().repeat(others, 1)
    for mask in masks:
        mask[torch.randperm(edges.n_units, generator=generator)[: circuit.n_edges]] = 1.0
    assert damage_of(run, circuit) < float(edges.damage(edges(masks)).min())


# --- the hard concrete distribution ---------------------------------------------------------------------------------


@pytest.mark.parametrize("log_alpha", [-3.0, -0.5, 0.0, 1.6, 4.0])
def test_open_probability_is_the_share_of_samples_above_zero(log_alpha: float) -> None:
    count = 200_000
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    samples = HARD_CONCRETE.sample(torch.full((count,), log_alpha, dtype=torch.float64), uniform)
    expected = float(HARD_CONCRETE.open(torch.tensor(log_alpha, dtype=torch.float64)))
    spread = math.sqrt(expected * (1 - expected) / count)
    assert float((samples > 0).double().mean()) == pytest.approx(expected, abs=5 * spread)
    above = float(torch.sigmoid(torch.tensor(log_alpha, dtype=torch.float64)))  # what probabilities are said to be
    spread = math.sqrt(above * (1 - above) / count)
    assert float((samples > 0.5).double().mean()) == pytest.approx(above, abs=5 * spread)


@pytest.mark.parametrize("log_alpha", [-1.0, 0.7])
def test_gradient_of_a_sample_integrates_to_the_gradient_of_its_mean(log_alpha: float) -> None:
    """Mean of d sample / d log_alpha over u, against a central difference of the mean sample, by the midpoint rule."""
    uniform = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000

    def mean(at: Tensor) -> Tensor:
        return HARD_CONCRETE.sample(at.expand(len(uniform)), uniform).mean()

    at = torch.tensor(log_alpha, dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(mean(at), at)[0]
    step = 1e-3
    low, high = (float(mean(at.detach() + shift)) for shift in (-step, step))
    assert float(slope) == pytest.approx((high - low) / (2 * step), abs=1e-6)


def test_samples_reach_both_ends_and_stay_within() -> None:
    uniform = torch.tensor([0.0, 1e-12, 0.5, 1 - 1e-12], dtype=torch.float64)
    samples = HARD_CONCRETE.sample(torch.zeros(4, dtype=torch.float64), uniform)
    assert samples[[0, 1, 3]].tolist() == [0.0, 0.0, 1.0]
    assert float(samples[2]) == pytest.approx(0.5)


def test_start_is_the_inverse_of_middle() -> None:
    for coin in (HARD_CONCRETE, HardConcrete(0.5, -0.2, 1.3)):
        for value in (0.1, 0.5, 0.9):
            assert float(coin.middle(torch.tensor(coin.start(value), dtype=torch.float64))) == pytest.approx(value)


# --- the loop -------------------------------------------------------------------------------------------------------


def parabola(point: Tensor, *, noise: float = 0.0) -> object:
    def step(_number: int, generator: torch.Generator) -> Step:
        shift = noise * torch.randn((), generator=generator, dtype=torch.float64)
        loss = ((point - 3 - shift) ** 2).sum()
        return Step(loss, float(loss.detach()))

    return step


def leaf(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64, requires_grad=True)


def test_it_is_adam() -> None:
    """The same path as torch's own optimiser with `backward`."""
    ours, theirs = leaf(0.0), leaf(0.0)
    training = minimise(parabola(ours), [ours], steps=30, lr=0.2, seed=0)  # type: ignore[arg-type]
    adam, losses = torch.optim.Adam([theirs], lr=0.2), []
    for _ in range(30):
        adam.zero_grad()
        loss = ((theirs - 3) ** 2).sum()
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    assert torch.equal(ours, theirs)
    assert training == Training(tuple(losses), tuple(losses), "steps")


def test_it_stops_when_the_mean_loss_no_longer_falls() -> None:
    point = leaf(0.0)
    training = minimise(parabola(point, noise=0.5), [point], steps=2000, lr=0.1, seed=0)  # type: ignore[arg-type]
    done = len(training.losses)
    assert training.stopped == "no improvement"
    assert 2 * learned_mask.PATIENCE <= done < 2000
    assert float(point.detach()) == pytest.approx(3, abs=0.3)
    assert no_longer_falls(training.losses)
    assert not any(no_longer_falls(training.losses[:shorter]) for shorter in range(done))


def test_steps_that_are_not_settled_do_not_count_for_stopping() -> None:
    flat = leaf(0.0)

    def step(number: int, _generator: torch.Generator) -> Step:
        return Step(0.0 * flat.sum() + 1.0, 1.0, number >= 50)

    assert len(minimise(step, [flat], steps=500, lr=0.1, seed=0).losses) == 50 + 2 * learned_mask.PATIENCE


def test_multipliers_ascend() -> None:
    """min over x max over m of x² + m (1 - x): the saddle is x = 1, m = 2."""
    point, multiplier = leaf(0.0), leaf(0.0)

    def step(_number: int, _generator: torch.Generator) -> Step:
        return Step((point**2 + multiplier * (1 - point)).sum(), 0.0, False)

    minimise(step, [point], steps=1200, lr=0.1, seed=0, multipliers=[multiplier], multiplier_lr=0.05)
    assert (point.item(), multiplier.item()) == pytest.approx((1.0, 2.0), abs=0.05)


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_divergence_names_the_step(bad: str) -> None:
    point = leaf(0.0)

    def step(number: int, _generator: torch.Generator) -> Step:
        broken = point * math.nan if bad == "loss" else torch.sqrt(point * 0.0)
        return Step((broken if number == 7 else point).sum(), 0.0)

    with pytest.raises(NotFinite, match=rf"finite {bad} .*step 7 "):
        minimise(step, [point], steps=20, lr=0.1, seed=0)


def test_a_metric_that_becomes_nan_names_the_step() -> None:
    fragile = Metric("log of the difference", True, lambda p: p.logit_difference().log())
    with pytest.raises(NotFinite, match=r"step \d+ of the search: expected a finite log of the difference"):
        subnetwork_probing.learn(plain_run(metric=fragile), regularisation=50.0, steps=60, lr=0.5)


# --- subnetwork probing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["logit_difference", "kl"])
def test_it_finds_the_plain_circuit(metric: str) -> None:
    run = plain_run(metric=metric)
    price = 4.0 if metric == "logit_difference" else 0.3
    mask = subnetwork_probing.learn(run, steps=80, regularisation=price)
    assert [str(edge) for edge in mask.circuit.edges] == PLAIN
    assert damage_of(run, mask.circuit) == pytest.approx(0, abs=1e-9)
    assert mask.probability.shape == (9,)
    assert sum(mask.losses[-20:]) < sum(mask.losses[:20])


def test_prices_decide_what_stays() -> None:
    """Each plain edge but the query's and key's is worth 1 or more of the metric; the mean over nine divides."""
    run = plain_run()
    assert subnetwork_probing.learn(run, regularisation=200.0, steps=60).circuit.n_edges == 0
    assert subnetwork_probing.learn(run, regularisation=0.0, steps=30).circuit.n_edges >= 3


def test_over_nodes_the_circuit_behaves_as_the_rounded_mask() -> None:
    """Of models with key/value groups too."""
    for family in ("gpt2", "llama"):
        run = MaskedRun(tiny.model(family), tiny.task(n=2, prefix=1)).nodes()
        mask = subnetwork_probing.learn(run, regularisation=3.0, steps=25, lr=0.4)
        rounded = (mask.probability > 0.5).to(run.ones().dtype)
        assert 0 < rounded.sum() < run.n_units
        edges = run.edges()
        assert torch.allclose(run(rounded), edges(edges.mask_of(mask.circuit)), atol=1e-12)


def test_all_edges_between_kept_nodes_by_hand() -> None:
    """The toy without head 0: what head 1 reads, and what it and the input say to the logits."""
    edges = circuit_of(plain_run().nodes(), torch.tensor([True, False, True]))
    assert list(map(str, edges)) == [
        "input->a0.h1<q>", "input->a0.h1<k>", "input->a0.h1<v>", "input->logits", "a0.h1->logits",
    ]  # fmt: skip


@pytest.mark.parametrize("level", ["edge", "node"])
def test_the_same_seed_the_same_numbers(level: str) -> None:
    def learn(seed: int, memory: int = 1 << 27) -> learned_mask.LearnedMask:
        run = MaskedRun(tiny.model("gpt2"), tiny.task(n=3, prefix=1), memory=memory)
        view = run.nodes() if level == "node" else run
        return subnetwork_probing.learn(view, steps=8, seed=seed)

    first, again, other, chunked = learn(3), learn(3), learn(4), learn(3, memory=1)
    assert torch.equal(first.probability, again.probability)
    assert first.training == again.training
    assert first.circuit == again.circuit
    assert not torch.equal(first.probability, other.probability)
    assert torch.allclose(first.probability, chunked.probability, atol=1e-9)


def test_scores_of_the_circuit_are_exact_effects() -> None:
    run = plain_run(metric="kl")
    circuit, measured = subnetwork_probing.search(run, steps=80, regularisation=0.3), exact.scores(run)
    assert circuit.n_edges == 3
    assert circuit.scores == pytest.approx({edge: measured[edge] for edge in circuit.edges}, abs=1e-12)


def test_scores_of_the_mask_rank_by_probability() -> None:
    mask = subnetwork_probing.learn(plain_run(), steps=60)
    scores = mask.scores()
    assert "not an effect" in scores.provenance["sign"]
    assert scores.ranking() == torch.argsort(-mask.probability, stable=True).tolist()
    assert sorted(map(str, scores.top(3))) == sorted(PLAIN)


def test_provenance_holds_the_loss_curve_and_survives_a_file() -> None:
    mask = subnetwork_probing.learn(plain_run(), steps=5, seed=9)
    found = json.loads(mask.circuit.to_json())["provenance"]
    assert (found["method"], found["options"]["seed"], found["selection"]["threshold"]) == (
        "subnetwork_probing",
        9,
        0.5,
    )
    assert found["training"]["losses"] == list(mask.losses)
    assert (found["training"]["steps"], found["training"]["stopped"]) == (5, "steps")
    assert Circuit.from_json(mask.circuit.to_json()) == mask.circuit


def test_progress_counts_steps() -> None:
    seen: list[tuple[int, int]] = []
    subnetwork_probing.search(plain_run(), steps=6, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 6) for done in range(1, 7)]


@TRAINED
@pytest.mark.parametrize("level", ["edge", "node"])
def test_on_a_trained_model_it_beats_random_circuits(level: str) -> None:
    run = trained_run(metric="kl")
    view = run.nodes() if level == "node" else run
    mask = subnetwork_probing.learn(view, regularisation=8.0, steps=40, lr=0.4)
    assert 0.02 < mask.circuit.n_edges / mask.circuit.n_possible < 0.6
    better_than_random(run, mask.circuit)


@TRAINED
@pytest.mark.slow
def test_with_its_own_steps_most_of_a_trained_model_goes() -> None:
    run = trained_run(n=16, metric="kl")
    mask = subnetwork_probing.learn(run)
    everything_off = float(run.damage(run(run.zeros())))
    assert mask.circuit.n_edges < 0.3 * run.n_units
    assert damage_of(run, mask.circuit) < 0.02 * everything_off


# --- bad input ------------------------------------------------------------------------------------------------------

WRONG = {
    "steps": [0, -1, 2.5, True, None],
    "lr": [0, -0.1, math.nan, math.inf, "0.1"],
    "seed": [-1, 0.5, None, True, 2**63],
    "regularisation": [-1.0, math.nan, "1"],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in WRONG.items() for v in values])
def test_options_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(InvalidOption, match=rf"expected {name} to be .*; got "):
        subnetwork_probing.search(plain_run(), **{name: value})  # type: ignore[arg-type]


def test_runs_by_position_or_over_neurons_are_refused() -> None:
    run = MaskedRun(tiny.model("gpt2"), tiny.task(n=2))
    for view in (run.positions(), run.nodes().positions(), run.neurons()):
        with pytest.raises(InvalidOption, match=r"expected a run over edges or nodes at all positions; got one over"):
            subnetwork_probing.search(view)


def test_a_metric_without_a_gradient_is_refused() -> None:
    right = Metric("accuracy", True, lambda p: (p.logits.argmax(-1) == p.answers[:, 0]).double())
    with pytest.raises(InvalidOption, match=r"expected a metric with a gradient; accuracy has none"):
        subnetwork_probing.search(plain_run(metric=right))
