"""Losses against formulas written out, pseudo-gradients against numbers by hand, look-ups against dense products."""

from __future__ import annotations

import math

import pytest
import torch

from circuits.features import create, selected
from circuits.features.losses import LOSSES, Weighting, auxiliary, jump, pre_activations, step
from patching.errors import InvalidOption

D, F, B = 5, 9, 7
DTYPE = torch.float64


def number(value: torch.Tensor | float) -> float:
    """A tensor's one value."""
    return float(value.detach()) if isinstance(value, torch.Tensor) else float(value)


def activations(seed: int = 3, width: int = D) -> torch.Tensor:
    return torch.randn(B, width, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)


def made(architecture: str, *, seed: int = 0, n_features: int = F, **options):
    """A dictionary whose every weight is random, so that no term vanishes."""
    dictionary = create(architecture, d_in=D, n_features=n_features, seed=seed, dtype=DTYPE, **options)
    generator = torch.Generator().manual_seed(seed + 10)
    with torch.no_grad():
        for name, weight in dictionary.named_parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator, dtype=DTYPE))
            if name == "threshold":
                weight.abs_()
    return dictionary


def gradients(dictionary, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    names, weights = zip(*[(n, w) for n, w in dictionary.named_parameters() if w.requires_grad], strict=True)
    found = torch.autograd.grad(loss, weights, allow_unused=True, retain_graph=True)
    return {name: value for name, value in zip(names, found, strict=True) if value is not None}


def test_relu_is_squared_error_plus_weighted_l1():
    dictionary, x = made("relu"), activations()
    terms = LOSSES["relu"](dictionary, x, x, Weighting(sparsity=0.7))
    features, x_hat = dictionary.encode(x).detach(), dictionary.reconstruct(x).detach()
    squared = sum(number(((x[row] - x_hat[row]) ** 2).sum()) for row in range(B)) / B
    norms = [number(dictionary.W_dec[i].detach().norm()) for i in range(F)]
    penalty = 0.7 * sum(number(features[row, i]) * norms[i] for row in range(B) for i in range(F)) / B
    assert number(terms.squared_error) == pytest.approx(squared, rel=1e-12)
    assert number(terms.penalty) == pytest.approx(penalty, rel=1e-12)
    assert number(terms.loss.detach()) == pytest.approx(squared + penalty, rel=1e-12)
    assert terms.l0 == number((features != 0).sum()) / B
    assert torch.equal(terms.fired, (features != 0).any(0))


@pytest.mark.parametrize("architecture", ["relu", "tied", "topk", "batchtopk", "matryoshka"])
def test_gradients_are_finite_differences(architecture):
    """Where the loss is smooth, as it is around random weights. (Gated has a frozen term: see below.)"""
    options = {} if architecture in ("relu", "tied") else {"k": 3}
    dictionary, x = made(architecture, **options), activations()
    weighting = Weighting(sparsity=0.3 if not options else 0.0)

    def loss() -> torch.Tensor:
        return LOSSES[architecture](dictionary, x, x, weighting).loss

    found = gradients(dictionary, loss())
    generator = torch.Generator().manual_seed(5)
    for name, weight in dictionary.named_parameters():
        if not weight.requires_grad:
            continue
        direction = torch.randn(weight.shape, generator=generator, dtype=DTYPE)
        kept = weight.detach().clone()
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight.copy_(kept + sign * 1e-6 * direction)
            values.append(number(loss().detach()))
        with torch.no_grad():
            weight.copy_(kept)
        slope = (values[0] - values[1]) / 2e-6
        assert number((found[name] * direction).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-7), name


def test_gated_term_by_term():
    dictionary, x = made("gated"), activations()
    weights = dict(dictionary.named_parameters())
    terms = LOSSES["gated"](dictionary, x, x, Weighting(sparsity=0.4))
    shared = (x - weights["b_dec"]) @ weights["W_enc"]
    opened = (shared + weights["b_gate"]).relu()
    x_hat = dictionary.reconstruct(x)
    squared = (x - x_hat).square().sum(-1).mean()
    penalty = 0.4 * (opened * weights["W_dec"].norm(dim=-1)).sum(-1).mean()
    frozen = (x - opened @ weights["W_dec"].detach() - weights["b_dec"].detach()).square().sum(-1).mean()
    assert number(terms.loss.detach()) == pytest.approx(number((squared + penalty + frozen).detach()), rel=1e-12)
    ours, plain = gradients(dictionary, terms.loss), gradients(dictionary, squared + penalty + frozen)
    for name in weights:
        assert torch.allclose(ours[name], plain[name], rtol=1e-9, atol=1e-12), name
    thawed = (x - opened @ weights["W_dec"] - weights["b_dec"]).square().sum(-1).mean()
    assert not torch.allclose(ours["W_dec"], gradients(dictionary, squared + penalty + thawed)["W_dec"])


def test_topk_keeps_k_and_batchtopk_k_on_average():
    x = activations()
    kept = LOSSES["topk"](made("topk", k=2), x, x, Weighting())
    assert torch.allclose(kept.features, made("topk", k=2).encode(x), rtol=1e-12)
    assert (kept.features != 0).sum(-1).tolist() == [2] * B
    dictionary = made("batchtopk", k=1.6)
    terms = LOSSES["batchtopk"](dictionary, x, x, Weighting())
    count = int(1.6 * B)
    assert int((terms.features != 0).sum()) == count
    z = dictionary.pre_activations(x)
    weakest = number(z.flatten().topk(count).values.min())
    assert number(terms.weakest) == number(terms.features[terms.features > 0].min()) == pytest.approx(weakest)


def test_matryoshka_adds_the_error_of_every_shorter_prefix():
    dictionary, x = made("matryoshka", k=4, prefixes=(2, 5, 9)), activations()
    terms = LOSSES["matryoshka"](dictionary, x, x, Weighting())
    features = terms.features
    expected = [
        (x - features[:, :m] @ dictionary.W_dec[:m] - dictionary.b_dec).square().sum(-1).mean() for m in (2, 5, 9)
    ]
    assert number(terms.loss.detach()) == pytest.approx(number(sum(expected)), rel=1e-12)
    assert number(terms.squared_error) == pytest.approx(number(expected[-1]), rel=1e-12)


def test_auxiliary_loss_uses_dead_features_alone_and_leaves_the_error_alone():
    dictionary, x = made("topk", k=2), activations()
    dead = torch.zeros(F, dtype=torch.bool)
    assert number(auxiliary(dictionary, x, x, Weighting(dead=dead))) == 0.0
    dead[[1, 4, 6]] = True
    error = (x - dictionary.reconstruct(x)).detach().requires_grad_()
    value = auxiliary(dictionary, x, error, Weighting(dead=dead, auxiliary=0.25, k_auxiliary=2))
    total = 0.0
    z = dictionary.pre_activations(x)
    for row in range(B):
        best = sorted((1, 4, 6), key=lambda i: -number(z[row, i]))[:2]
        e_hat = sum(max(number(z[row, i]), 0.0) * dictionary.W_dec[i] for i in best)
        total += 0.25 * number((error[row] - e_hat).square().sum()) / B
    assert number(value) == pytest.approx(total, rel=1e-12)
    found = gradients(dictionary, value)
    assert "b_dec" in found  # through the encoder, which reads x - b_dec
    assert not found["W_dec"][~dead].any()
    assert found["W_dec"][dead].any()
    assert torch.autograd.grad(auxiliary(dictionary, x, error, Weighting(dead=dead)), error, allow_unused=True) == (
        None,
    )


def test_jumprelu_pseudo_gradients_by_hand():
    """theta 0.5, eps 0.2: far below, inside below, inside above, at the window's edge, and above."""
    values = [0.1, 0.45, 0.55, 0.6, 0.9]
    inside = [0, 1, 1, 0, 0]  # |z - theta| < 0.1, and not at 0.1 itself
    for value, near in zip(values, inside, strict=True):
        z, theta = torch.tensor([[value]], dtype=DTYPE, requires_grad=True), torch.tensor([0.5], dtype=DTYPE)
        if value == 0.6:
            z = torch.tensor([[0.5 + 0.125]], dtype=DTYPE, requires_grad=True)  # exact in binary, with eps 0.25
        eps = 0.25 if value == 0.6 else 0.2
        theta.requires_grad_()
        on = number(z.detach()) > 0.5
        features = jump(z, theta, eps)
        assert number(features.detach()) == (number(z.detach()) if on else 0.0)
        to_z, to_theta = torch.autograd.grad(3 * features.sum(), (z, theta))
        assert number(to_z) == (3.0 if on else 0.0)
        assert number(to_theta) == pytest.approx(-3 * 0.5 / eps * near)
        count = step(z, theta, eps, False)
        assert number(count.detach()) == number(on)
        to_z, to_theta = torch.autograd.grad(2 * count.sum(), (z, theta), allow_unused=True)
        assert to_z is None
        assert number(to_theta) == pytest.approx(-2 / eps * near)
        to_z, to_theta = torch.autograd.grad(2 * step(z, theta, eps, True).sum(), (z, theta))
        assert number(to_z) == pytest.approx(2 / eps * near)
        assert number(to_theta) == pytest.approx(-2 / eps * near)


def test_jumprelu_at_the_threshold_is_off():
    theta = torch.tensor([0.5, 0.5])
    assert jump(torch.tensor([[0.5, 0.75]]), theta, 0.1).tolist() == [[0.0, 0.75]]
    assert step(torch.tensor([[0.5, 0.75]]), theta, 0.1, False).tolist() == [[0.0, 1.0]]


def test_jumprelu_penalties_by_formula():
    dictionary, x = made("jumprelu", threshold=0.2), activations()
    features = dictionary.encode(x)
    l0 = number((features != 0).sum(-1).double().mean())
    norms = dictionary.W_dec.norm(dim=-1)
    expected = {
        "step": 0.3 * l0,
        "tanh": 0.3 * number(torch.tanh(4 * features * norms).sum(-1).mean()),
        "target": 0.3 * (l0 / 2 - 1) ** 2,
    }
    for penalty, value in expected.items():
        weighting = Weighting(sparsity=0.3, penalty=penalty, target_l0=2.0, steepness=4.0)
        terms = LOSSES["jumprelu"](dictionary, x, x, weighting)
        assert number(terms.penalty) == pytest.approx(value, rel=1e-12), penalty
        assert torch.allclose(terms.features, features)
    with pytest.raises(InvalidOption, match="target_l0"):
        LOSSES["jumprelu"](dictionary, x, x, Weighting(penalty="target"))


def test_a_positive_penalty_pushes_thresholds_up():
    """The pseudo-gradient of the count is negative in theta, so descent raises it."""
    dictionary, x = made("jumprelu", threshold=0.2), activations()
    z = pre_activations(dictionary, x)
    theta = dictionary.get_parameter("threshold")
    (found,) = torch.autograd.grad(step(z, theta, 0.5, False).sum(), theta)
    assert bool((found <= 0).all())
    assert bool((found < 0).any())


@pytest.mark.parametrize("options", [{}, {"k": 2}, {"k": 2, "rectify": False}, {"threshold": 0.1}])
def test_transcoders_reconstruct_the_target(options):
    dictionary, x, y = made("transcoder", d_out=4, **options), activations(), activations(8, 4)
    weighting = Weighting(sparsity=0.0 if "k" in options else 0.2)
    terms = LOSSES["transcoder"](dictionary, x, y, weighting)
    expected = (y - dictionary.reconstruct(x)).square().sum(-1).mean()
    assert number(terms.squared_error) == pytest.approx(number(expected), rel=1e-12)
    skip = made("skip_transcoder", d_out=4, **options)
    terms = LOSSES["skip_transcoder"](skip, x, y, weighting)
    assert number(terms.squared_error) == pytest.approx(
        number((y - skip.reconstruct(x)).square().sum(-1).mean()), rel=1e-12
    )
    assert gradients(skip, terms.loss)["W_skip"].any()


def test_a_transcoder_that_is_the_mlp_has_no_error():
    """W_enc = W_in and W_dec = W_out of a ReLU MLP."""
    dictionary, x = made("transcoder", d_out=4), activations()
    y = torch.relu(x @ dictionary.W_enc + dictionary.b_enc) @ dictionary.W_dec + dictionary.b_dec
    assert number(LOSSES["transcoder"](dictionary, x, y.detach(), Weighting()).squared_error) == pytest.approx(
        0, abs=1e-28
    )


@pytest.mark.parametrize("subtract", [True, False])
def test_training_and_use_have_the_same_pre_activations(subtract):
    dictionary, x = made("relu", subtract_b_dec=subtract), activations()
    assert torch.allclose(pre_activations(dictionary, x), dictionary.pre_activations(x), rtol=1e-12)


# --- the look-up path ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka"])
def test_looking_entries_up_equals_products_with_zeros(architecture, monkeypatch):
    """Loss, every gradient, what fired and how many were on."""
    results = []
    for pays in (True, False):
        monkeypatch.setattr(selected, "pays", lambda *_args, pays=pays: pays)
        dictionary, x = made(architecture, k=3), activations()
        dead = torch.zeros(F, dtype=torch.bool)
        dead[2] = True
        terms = LOSSES[architecture](dictionary, x, x, Weighting(dead=dead))
        results.append((terms, gradients(dictionary, terms.loss)))
    (one, of_one), (other, of_other) = results
    assert one.features.ndim == 1
    assert other.features.ndim == 2
    assert torch.allclose(one.loss, other.loss, rtol=1e-12)
    assert torch.equal(one.fired, other.fired)
    assert one.l0 == other.l0
    assert one.weakest == other.weakest
    assert of_one.keys() == of_other.keys() >= {"W_enc", "W_dec", "b_enc", "b_dec"}
    for name, value in of_one.items():
        assert torch.allclose(value, of_other[name], rtol=1e-10, atol=1e-12), name


def test_rescaled_topk_trains_what_it_uses():
    dictionary, x = made("topk", k=2, rescale=True), activations()
    terms = LOSSES["topk"](dictionary, x, x, Weighting())
    expected = (x - dictionary.reconstruct(x)).square().sum(-1).mean()
    assert number(terms.loss.detach()) == pytest.approx(number(expected), rel=1e-12)


@pytest.mark.parametrize("shape", ["random", "sparse", "hostile"])
def test_largest_finds_the_largest(shape):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(200_000, generator=generator)
    if shape == "sparse":
        values = values.clamp(min=2)
        values = values + 1e-6 * torch.rand(values.shape, generator=generator)
    if shape == "hostile":  # all large values where the sample looks
        values[::61] += 100
    count = 3000
    found = selected.largest(values, count)
    assert len(found) == count == len(set(found.tolist()))
    assert torch.equal(values[found].sort().values, values.sort().values[-count:])


def test_selected_entries_as_a_matrix():
    z = torch.tensor([[3.0, -1.0, 2.0], [0.5, 4.0, -2.0]])
    kept = selected.encode(z, torch.eye(3), torch.zeros(3), selected.top_of_batch(3))
    assert kept.rows.tolist() == [0, 0, 1]
    assert kept.dense().tolist() == [[3.0, 0.0, 2.0], [0.0, 4.0, 0.0]]
    weights = torch.arange(6.0).reshape(3, 2)
    assert torch.equal(kept.decode(weights), kept.dense() @ weights)


def test_a_row_may_keep_nothing():
    z = torch.tensor([[3.0, 2.0], [0.1, 0.2]])
    kept = selected.encode(z, torch.eye(2), torch.zeros(2), selected.top_of_batch(2))
    assert kept.offsets.tolist() == [0, 2]
    assert kept.dense().tolist() == [[3.0, 2.0], [0.0, 0.0]]
    assert kept.decode(torch.eye(2)).tolist() == [[3.0, 2.0], [0.0, 0.0]]


def test_weights_of_the_loss_default_to_the_papers():
    assert Weighting().auxiliary == 1 / 32
    assert math.isclose(Weighting().steepness, 4.0)
