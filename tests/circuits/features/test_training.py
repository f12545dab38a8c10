"""The recipe of training, its records, its refusals; resuming stands in test_training_resume."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from circuits.features import create, toys
from circuits.features.losses import Weighting
from circuits.features.sweep import sweep
from circuits.features.training import Recipe, train
from circuits.features.training_state import State
from circuits.features.upkeep import fit_threshold, fold_scales, remove_parallel, resample
from patching.errors import InvalidOption, NotFinite

TOY = toys.superposition(8, 16, 0.05)
OPTIONS = {
    "relu": {}, "tied": {}, "gated": {}, "jumprelu": {}, "topk": {"k": 2}, "batchtopk": {"k": 1.5},
    "matryoshka": {"k": 1.5}, "transcoder": {}, "skip_transcoder": {},
}  # fmt: skip


def new(architecture: str = "relu", **options):
    return create(architecture, d_in=8, n_features=16, **(OPTIONS[architecture] | options))


def sparsity_of(architecture: str) -> float | None:
    return None if "k" in OPTIONS[architecture] else 0.2


def batches_for(architecture: str, batch: int = 64):
    if "transcoder" in architecture:
        return [(TOY.sample(batch, seed=i), 2 * TOY.sample(batch, seed=i).roll(1, 1)) for i in range(8)]
    return TOY.batches(batch)


@pytest.mark.parametrize("architecture", OPTIONS)
def test_every_architecture_learns(architecture):
    dictionary = new(architecture)
    before = copy.deepcopy(dictionary.state_dict())
    training = train(
        dictionary, batches_for(architecture), steps=60, lr=1e-2, sparsity=sparsity_of(architecture),
        recipe=Recipe(record_every=1),
    )  # fmt: skip
    first, last = training.history[0], training.last
    assert last.squared_error < 0.8 * first.squared_error
    assert last.explained_variance > first.explained_variance
    assert all(torch.equal(value, before[name]) for name, value in dictionary.state_dict().items()), "it was changed"
    assert [record.step for record in training.history] == list(range(1, 61))
    assert not any(weight.requires_grad for weight in training.dictionary.parameters())
    assert training.dictionary.architecture == architecture


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka", "jumprelu", "gated", "tied"])
def test_decoder_rows_are_held_at_length_1(architecture):
    training = train(
        new(architecture),
        TOY.batches(64),
        steps=20,
        lr=1e-2,
        sparsity=sparsity_of(architecture),
        recipe=Recipe(scale=1.0),
    )
    assert torch.allclose(training.dictionary.W_dec.norm(dim=-1), torch.ones(16), atol=1e-5)


def test_relu_rows_are_free_unless_asked():
    for unit, held in ((None, False), (True, True)):
        recipe = Recipe(scale=1.0, unit_norm=unit)
        trained = train(new(), TOY.batches(64), steps=20, lr=1e-2, sparsity=0.2, recipe=recipe).dictionary
        assert torch.allclose(trained.W_dec.norm(dim=-1), torch.ones(16), atol=1e-5) == held


def test_what_is_parallel_to_a_row_is_taken_off_its_gradient():
    dictionary = new("topk")
    with torch.no_grad():
        dictionary.W_dec *= torch.linspace(0.5, 2, 16)[:, None]
    gradient = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    dictionary.W_dec.grad = gradient.clone()
    remove_parallel(dictionary)
    left = dictionary.W_dec.grad
    assert float((left * dictionary.W_dec.detach()).sum(-1).abs().max()) < 1e-5
    removed = gradient - left
    across = dictionary.W_dec.detach() / dictionary.W_dec.detach().norm(dim=-1, keepdim=True)
    assert torch.allclose(removed, (removed * across).sum(-1, keepdim=True) * across, atol=1e-6), "only that is taken"


@pytest.mark.parametrize("architecture", OPTIONS)
def test_the_scale_is_folded_back(architecture):
    """folded(x) · scale = unfolded(scale · x), for the weights as training had them."""
    dictionary = new(architecture)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in dictionary.parameters():
            if weight.requires_grad:
                weight += 0.1 * torch.randn(weight.shape, generator=generator).abs()
        if "threshold" in dict(dictionary.named_buffers()):
            dictionary.get_buffer("threshold").fill_(0.2)
    scales = (3.0, 5.0) if dictionary.is_transcoder else (3.0, 3.0)
    folded = fold_scales(dictionary, scales)
    x = torch.randn(50, 8, generator=generator)
    expected = dictionary.reconstruct(scales[0] * x) / scales[1]
    assert torch.allclose(folded.reconstruct(x), expected, rtol=1e-4, atol=1e-5)
    if architecture != "tied":
        assert torch.allclose(folded.encode(x), dictionary.encode(scales[0] * x), rtol=1e-4, atol=1e-5)


def test_training_does_not_depend_on_the_units_of_its_inputs():
    """With the automatic scale: the dictionary of 100 x reconstructs 100 times as much."""
    data = [TOY.sample(64, seed=i) for i in range(10)]
    big = [128 * x for x in data]  # a power of two, so that rounding is the same
    one = train(new(), data, steps=30, lr=1e-2, sparsity=0.5)
    other = train(new(), big, steps=30, lr=1e-2, sparsity=0.5)
    assert [r.loss for r in one.history] == [r.loss for r in other.history]
    x = TOY.sample(100, seed=50)
    assert torch.allclose(128 * one.dictionary.reconstruct(x), other.dictionary.reconstruct(128 * x), rtol=1e-5)
    assert one.scales[0] == pytest.approx(math.sqrt(8) / float(data[0].norm(dim=-1).mean()), rel=1e-6)


def test_the_course_of_the_coefficient_and_the_learning_rate(monkeypatch):
    """Penalty: lambda rises over the first share of the steps. lr: falls over the last, never quite to 0."""
    from circuits.features import training as module

    seen, rates = [], []
    real = module.LOSSES["relu"]

    def spied(dictionary, x, y, weighting):
        seen.append(weighting.sparsity)
        return real(dictionary, x, y, weighting)

    monkeypatch.setitem(module.LOSSES, "relu", spied)
    step = torch.optim.Adam.step
    monkeypatch.setattr(
        torch.optim.Adam, "step", lambda self, *a: (rates.append(self.param_groups[0]["lr"]), step(self))[1]
    )
    train(new(), TOY.batches(8), steps=20, lr=0.1, sparsity=2.0, recipe=Recipe(warmup=0.25, decay=0.2))
    assert seen == pytest.approx([0.4, 0.8, 1.2, 1.6] + [2.0] * 16)
    assert rates == pytest.approx([0.1] * 17 + [0.075, 0.05, 0.025])


def test_records_are_measured_as_they_say():
    data = [TOY.sample(64, seed=i) for i in range(3)]
    start = new("topk")
    training = train(start, data, steps=1, lr=1e-2, recipe=Recipe(scale=1.0))
    (record,) = training.history
    x = data[0]
    error = (x - start.reconstruct(x)).detach()
    assert record.squared_error == pytest.approx(float(error.square().sum(-1).mean()), rel=1e-5)
    assert record.l0 == pytest.approx(float((start.encode(x) != 0).double().sum(-1).mean()))
    assert record.explained_variance == pytest.approx(
        1 - float(error.square().sum() / (x - x.mean(0)).square().sum()), rel=1e-4
    )
    assert record.dead == 0.0


def test_progress_and_records_are_reported():
    steps, records = [], []
    training = train(
        new(), TOY.batches(8), steps=10, sparsity=0.1, progress=lambda *args: steps.append(args),
        on_record=records.append, recipe=Recipe(record_every=4),
    )  # fmt: skip
    assert steps == [(i, 10) for i in range(1, 11)]
    assert [record.step for record in records] == [1, 4, 8, 10]
    assert tuple(records) == training.history
    assert training.tokens == 80
    assert training.asked["recipe"]["record_every"] == 4


def test_the_same_arguments_give_the_same_weights():
    one, other = (train(new("gated"), TOY.batches(32), steps=25, sparsity=0.3, lr=1e-2) for _ in range(2))
    assert all(
        torch.equal(a, b) for a, b in zip(one.dictionary.parameters(), other.dictionary.parameters(), strict=True)
    )
    assert one.history == other.history


# --- dead features ---------------------------------------------------------------------------------------------------


def killed(architecture: str, count: int = 6):
    """A dictionary of which some features cannot fire."""
    dictionary = new(architecture)
    with torch.no_grad():
        dictionary.b_enc[:count] = -100.0
    return dictionary


@pytest.mark.parametrize(("auxiliary", "moves"), [(1 / 32, True), (0.0, False)])
def test_the_auxiliary_loss_alone_reaches_dead_features(auxiliary, moves):
    """Encoders too weak to be among the k largest of 64: nothing else gives them a gradient."""
    dictionary = create("topk", d_in=8, n_features=64, k=2)
    with torch.no_grad():
        dictionary.W_enc[:, :6] *= 0.01
    recipe = Recipe(scale=1.0, dead_after=128, weighting=Weighting(auxiliary=auxiliary, k_auxiliary=64))
    trained = train(dictionary, TOY.batches(64), steps=30, lr=1e-4, recipe=recipe).dictionary
    moved = (trained.W_enc != dictionary.W_enc.detach()).any(0)
    assert float(moved[6:].double().mean()) > 0.8
    assert moved[:6].tolist() == [moves] * 6


@pytest.mark.parametrize("architecture", ["relu", "jumprelu", "batchtopk"])
def test_resampling_revives_what_cannot_revive_itself(architecture):
    for every, expected in ((None, 6), (20, 0)):
        recipe = Recipe(scale=1.0, dead_after=640, resample_every=every)
        trained = train(
            killed(architecture), TOY.batches(64), steps=100, lr=3e-3, sparsity=sparsity_of(architecture), recipe=recipe
        ).dictionary
        dead = (trained.encode(TOY.sample(3000, seed=9)) == 0).all(0)[:6]
        if expected:
            assert int(dead.sum()) == expected
        else:
            assert int(dead.sum()) <= 1


def test_resampling_changes_dead_features_alone_and_forgets_their_moments():
    state = State.start(killed("relu"), 1e-2)
    x = TOY.sample(64, seed=1)
    for _ in range(3):
        state.optimizer.zero_grad()
        (state.dictionary.reconstruct(x) - x).square().sum().backward()
        state.optimizer.step()
    before = copy.deepcopy(state.dictionary.state_dict())
    dead = torch.tensor([0, 3])
    error = (x - state.dictionary.reconstruct(x)).detach()
    with torch.no_grad():
        resample(state, dead, x, error, torch.Generator().manual_seed(0))
    dictionary = state.dictionary
    others = torch.tensor([i for i in range(16) if i not in (0, 3)])
    assert torch.equal(dictionary.W_enc[:, others], before["W_enc"][:, others])
    assert torch.equal(dictionary.W_dec[others], before["W_dec"][others])
    assert dictionary.b_enc[dead].tolist() == [0.0, 0.0]
    assert state.silent[dead].tolist() == [0, 0]
    moments = state.optimizer.state[dictionary.W_enc]
    assert not moments["exp_avg"][:, dead].any()
    assert moments["exp_avg"][:, others].any()
    directions = error / error.norm(dim=-1, keepdim=True)
    for feature in dead.tolist():
        row = dictionary.W_dec[feature].detach()
        assert float((directions @ (row / row.norm())).max()) == pytest.approx(1.0, abs=1e-5), "an input's error"
        reading = dictionary.W_enc[:, feature].detach()
        living = dictionary.W_enc.detach()[:, others].norm(dim=0)
        alive_mean = float(torch.cat((living,)).mean())
        assert float(reading.norm()) == pytest.approx(0.2 * alive_mean, rel=1e-4)


def test_nothing_to_resample_from_is_no_error():
    state = State.start(new(), 1e-2)
    before = copy.deepcopy(state.dictionary.state_dict())
    x = torch.zeros(4, 8)
    resample(state, torch.tensor([1]), x, x, torch.Generator())
    assert torch.equal(state.dictionary.W_dec, before["W_dec"])


# --- the threshold of batchtopk --------------------------------------------------------------------------------------


def test_the_threshold_gives_the_sparsity_of_training():
    training = train(new("batchtopk"), TOY.batches(256), steps=300, lr=1e-2)
    x = TOY.sample(4000, seed=60)
    assert float(training.dictionary.get_buffer("threshold").min()) > 0
    used = float((training.dictionary.encode(x) != 0).double().sum(-1).mean())
    assert used == pytest.approx(1.5, abs=0.15)
    exact = fit_threshold(training.dictionary, x)
    assert int((exact.encode(x) != 0).sum()) == 6000
    half = fit_threshold(training.dictionary, x, l0=0.5)
    assert int((half.encode(x) != 0).sum()) == 2000


def test_thresholds_that_cannot_be_fitted_are_refused():
    with pytest.raises(InvalidOption, match="batchtopk"):
        fit_threshold(new("relu"), TOY.sample(10))
    with pytest.raises(InvalidOption, match="l0"):
        fit_threshold(new("batchtopk"), TOY.sample(10), l0=0.0)


# --- sources of batches ----------------------------------------------------------------------------------------------


def test_a_list_is_begun_again_and_an_iterator_is_not():
    data = [TOY.sample(16, seed=i) for i in range(4)]
    again = train(new(), data, steps=10, sparsity=0.1)
    whole = train(new(), iter([data[i % 4] for i in range(10)]), steps=10, sparsity=0.1)
    assert again.history == whole.history
    with pytest.raises(InvalidOption, match="as many batches as steps"):
        train(new(), iter(data), steps=5, sparsity=0.1)
    assert train(new(), iter(data), steps=4, sparsity=0.1).last.step == 4


def test_float64_stays_float64_and_inputs_are_converted():
    dictionary = create("relu", d_in=8, n_features=16, dtype=torch.float64)
    assert train(dictionary, TOY.batches(8), steps=2, sparsity=0.1).dictionary.dtype == torch.float64
    halves = [TOY.sample(8, seed=i).bfloat16() for i in range(2)]
    assert train(new(), halves, steps=2, sparsity=0.1).dictionary.dtype == torch.float32


# --- bad input -------------------------------------------------------------------------------------------------------


def test_divergence_stops_with_the_step_and_a_remedy():
    with pytest.raises(NotFinite, match=r"finite loss.*at step \d+.*Lower lr"):
        train(new(), [1e18 * TOY.sample(8)], steps=50, lr=1e12, sparsity=1.0, recipe=Recipe(scale=1.0))


def test_activations_that_are_not_finite_are_named():
    good = TOY.sample(8)
    bad = good.clone()
    bad[3, 2] = math.nan
    with pytest.raises(NotFinite, match=r"batch of step 3 holds NaN"):
        train(new(), [good, good, bad], steps=5, sparsity=0.1)
    with pytest.raises(NotFinite, match="first batch"):
        train(new(), [bad], steps=5, sparsity=0.1)
    with pytest.raises(NotFinite, match="first batch"):
        train(new(), [torch.zeros(4, 8)], steps=5, sparsity=0.1)


@pytest.mark.parametrize(
    ("architecture", "data", "options", "said"),
    [
        ("relu", [torch.ones(4, 7)], {}, r"d_in = 8.*\[4, 7\]"),
        ("relu", [torch.ones(8)], {}, "d_in = 8"),
        ("relu", [torch.ones(0, 8)], {}, "at least one row"),
        ("relu", [], {}, "at least one batch"),
        ("transcoder", [torch.ones(4, 8)], {}, "pairs"),
        ("transcoder", [(torch.ones(4, 8), torch.ones(3, 8))], {}, "d_out = 8"),
        ("relu", [torch.ones(4, 8)], {"steps": 0}, "steps"),
        ("relu", [torch.ones(4, 8)], {"steps": True}, "steps"),
        ("relu", [torch.ones(4, 8)], {"lr": 0.0}, "lr"),
        ("relu", [torch.ones(4, 8)], {"lr": math.nan}, "lr"),
        ("relu", [torch.ones(4, 8)], {"sparsity": None}, "sparsity"),
        ("relu", [torch.ones(4, 8)], {"sparsity": -1.0}, "sparsity"),
        ("topk", [torch.ones(4, 8)], {"sparsity": 0.1}, "its k"),
        ("relu", [torch.ones(4, 8)], {"checkpoint": "no/such/folder/file"}, "folder"),
    ],
)
def test_bad_input_is_refused(architecture, data, options, said):
    arguments = {"steps": 2, "sparsity": sparsity_of(architecture)} | options
    with pytest.raises(InvalidOption, match=said):
        train(new(architecture), data, **arguments)


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(InvalidOption, match="identity"):
        train(create("identity", d_in=8, n_features=8), TOY.batches(4), steps=1, sparsity=0.1)
    with pytest.raises(InvalidOption, match="float32"):
        train(create("relu", d_in=8, n_features=8, dtype=torch.bfloat16), TOY.batches(4), steps=1, sparsity=0.1)
    empty = new()
    with torch.no_grad():
        empty.W_enc.zero_()
    with pytest.raises(InvalidOption, match="W_enc"):
        train(empty, TOY.batches(4), steps=1, sparsity=0.1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"warmup": 1.5}, "warmup"), ({"decay": -0.1}, "decay"), ({"scale": "mean"}, "scale"), ({"scale": 0}, "scale"),
        ({"dead_after": 0}, "dead_after"), ({"resample_every": True}, "resample_every"),
        ({"weighting": Weighting(penalty="l0")}, "penalty"), ({"weighting": Weighting(bandwidth=0.0)}, "bandwidth"),
    ],
)  # fmt: skip
def test_bad_recipes_are_refused(options, said):
    with pytest.raises(InvalidOption, match=said):
        Recipe(**options)


# --- sweep -----------------------------------------------------------------------------------------------------------


def test_a_sweep_trades_features_for_variance():
    done = []
    found = sweep(
        "relu", TOY.batches(64), values=[0.01, 0.3, 3.0], held_out=TOY.sample(1000, seed=5), n_features=16, steps=150,
        lr=1e-2, progress=lambda *args: done.append(args),
    )  # fmt: skip
    assert found.name == "sparsity"
    assert [row.l0 for row in found.rows] == sorted((row.l0 for row in found.rows), reverse=True)
    assert [row.explained_variance for row in found.rows] == sorted(
        (row.explained_variance for row in found.rows), reverse=True
    )
    assert done[0] == (1, 450)
    assert done[-1] == (450, 450)
    frame = found.to_frame()
    assert list(frame.columns) == ["sparsity", "l0", "explained_variance", "dead"]
    row = found.rows[1]
    alone = train(create("relu", d_in=8, n_features=16), TOY.batches(64), steps=150, lr=1e-2, sparsity=0.3)
    assert torch.equal(row.training.dictionary.W_dec, alone.dictionary.W_dec), "each as if trained by itself"


def test_a_sweep_over_k_and_over_pairs():
    x, y = TOY.sample(200, seed=5), TOY.sample(200, seed=5)[:, :6]
    found = sweep("topk", TOY.batches(32), values=[1, 3], held_out=x, n_features=16, steps=20)
    assert found.name == "k"
    assert [row.l0 <= row.value for row in found.rows] == [True, True]
    data = [(x, y)]
    pairs = sweep("transcoder", data, values=[0.1], held_out=(x, y), n_features=16, steps=20, site="mlp_out0")
    assert pairs.rows[0].training.dictionary.d_out == 6


def test_sweeps_that_cannot_be_are_refused():
    x = TOY.sample(10)
    with pytest.raises(InvalidOption, match="value"):
        sweep("relu", [x], values=[], held_out=x, n_features=4, steps=1)
    with pytest.raises(InvalidOption, match="again"):
        sweep("relu", iter([x]), values=[0.1], held_out=x, n_features=4, steps=1)
