"""Every estimator against NumPy's and scikit-learn's own, on masks that are all held at once."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from circuits.coar import normal_equations as solved
from circuits.coar.choice import bytes_needed, choose
from circuits.coar.estimators import fit, fit_prefixes
from circuits.coar.fitted import Fit
from circuits.coar.masks import MaskDesign
from circuits.coar.moments import Moments
from circuits.coar.requests import ESTIMATORS, Request, samples_of
from patching.errors import InvalidOption

LAYOUTS = pytest.mark.parametrize(("prompts", "pooled"), [(None, False), (3, False), (3, True)])
EXAMPLES = 3


def design_of(**changes: object) -> MaskDesign:
    return MaskDesign(**{"n_units": 8, "samples": 600, "keep": 0.8, "seed": 3, **changes})  # type: ignore[arg-type]


def outputs_of(design: MaskDesign, *, seed: int = 0, noise: float = 0.5, offset: float = 2.0) -> Tensor:
    """Additive in the masks, with an interaction and noise on top; ``[sample, example]``."""
    generator = torch.Generator().manual_seed(seed)
    masks = per_prompt(design)
    weights = torch.randn(EXAMPLES, design.n_units, generator=generator, dtype=torch.float64)
    outputs = (masks * weights).sum(-1) + offset * torch.arange(1, EXAMPLES + 1)
    outputs = outputs + masks[..., 0] * masks[..., 1]
    return outputs + noise * torch.randn(outputs.shape, generator=generator, dtype=torch.float64)


def per_prompt(design: MaskDesign) -> Tensor:
    """Masks as numbers, ``[sample, example, unit]`` whatever the design."""
    masks = design.rows().double()
    return masks if design.prompts is not None else masks[:, None].expand(-1, EXAMPLES, -1)


def problems(design: MaskDesign, outputs: Tensor, *, pooled: bool) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """For every fit the features (units, then intercepts), the targets and the number of intercepts."""
    masks = per_prompt(design)
    if not pooled:
        ones = torch.ones(len(masks), 1, dtype=torch.float64)
        return [(torch.cat([masks[:, i], ones], 1).numpy(), outputs[:, i].numpy(), 1) for i in range(EXAMPLES)]
    indicators = torch.eye(EXAMPLES, dtype=torch.float64).expand(len(masks), -1, -1)
    features = torch.cat([masks, indicators], 2).flatten(0, 1)
    return [(features.numpy(), outputs.flatten().numpy(), EXAMPLES)]


def oracle(design: MaskDesign, outputs: Tensor, *, pooled: bool, ridge: float = 0.0) -> tuple[Tensor, Tensor]:
    """Weights and intercepts of `numpy.linalg.lstsq`; a ridge is so many more rows."""
    weights, intercepts = [], []
    for features, targets, constants in problems(design, outputs, pooled=pooled):
        n_units = features.shape[1] - constants
        extra = np.sqrt(ridge) * np.eye(n_units, features.shape[1])
        solution = np.linalg.lstsq(np.vstack([features, extra]), np.append(targets, np.zeros(n_units)), rcond=None)[0]
        weights.append(solution[:n_units])
        intercepts.extend(solution[n_units:])
    found = torch.from_numpy(np.array(weights))
    return found.expand(EXAMPLES, -1) if pooled else found, torch.tensor(np.array(intercepts))


def close(found: Fit, weights: Tensor, intercepts: Tensor, *, within: float = 1e-9) -> None:
    torch.testing.assert_close(found.weights, weights, rtol=0, atol=within)
    torch.testing.assert_close(found.intercept, intercepts, rtol=0, atol=within)


# --- the normal equations -----------------------------------------------------------------------------------------


@LAYOUTS
@pytest.mark.parametrize("estimator", ["auto", "normal_equations", "conjugate_gradients"])
def test_least_squares_is_that_of_numpy(prompts: int | None, pooled: bool, estimator: str) -> None:
    design = design_of(prompts=prompts)
    outputs = outputs_of(design)
    found = fit(design, outputs, estimator=estimator, pooled=pooled, tolerance=1e-12)
    close(found, *oracle(design, outputs, pooled=pooled))


@settings(max_examples=40)
@given(
    n_units=st.integers(1, 12),
    extra=st.integers(0, 300),
    keep=st.floats(0.3, 0.7),
    seed=st.integers(0, 1000),
    prompts=st.sampled_from([None, EXAMPLES]),
)
def test_streamed_equals_batch(n_units: int, extra: int, keep: float, seed: int, prompts: int | None) -> None:
    """P4.2 over sizes, blocks that are cut short included."""
    design = design_of(n_units=n_units, samples=n_units + 20 + extra, keep=keep, seed=seed, prompts=prompts)
    outputs = outputs_of(design) if n_units > 1 else per_prompt(design)[..., 0] * 3 + 1
    features = [one for one, _, _ in problems(design, outputs, pooled=False)]
    if min(np.linalg.matrix_rank(one) for one in features) <= n_units:
        with pytest.raises(solved.Undetermined, match=r"full rank|every unit"):
            fit(design, outputs, estimator="normal_equations")
        return
    found = fit(design, outputs, estimator="normal_equations")
    close(found, *oracle(design, outputs, pooled=False), within=1e-8)
    covariances = [np.atleast_2d(np.cov(one[:, :n_units].T)) for one in features]
    assert found.details["condition_number"] == pytest.approx(max(map(np.linalg.cond, covariances)), rel=1e-6)


def test_the_seam_of_a_large_offset() -> None:
    """Outputs of 1e8 with a spread of 1 keep eight digits of their weights: sums are of differences."""
    design = design_of()
    outputs = outputs_of(design)
    shifted = fit(design, outputs + 1e8, estimator="normal_equations")
    torch.testing.assert_close(shifted.weights, oracle(design, outputs, pooled=False)[0], rtol=0, atol=1e-7)


@LAYOUTS
def test_standard_errors_are_those_of_the_textbook(prompts: int | None, pooled: bool) -> None:
    """``sigma^2 (X^T X)^-1`` with the intercepts among the columns of X."""
    design = design_of(prompts=prompts)
    outputs = outputs_of(design)
    found = fit(design, outputs, estimator="normal_equations", pooled=pooled)
    expected, shares = [], []
    for features, targets, _ in problems(design, outputs, pooled=pooled):
        solution, (residual,), _, _ = np.linalg.lstsq(features, targets, rcond=None)
        variance = residual / (len(targets) - len(solution))
        expected.append(np.sqrt(variance * np.diag(np.linalg.inv(features.T @ features)))[:8])
        if not pooled:
            shares.append(1 - residual / np.square(targets - targets.mean()).sum())
    assert found.standard_error is not None
    np.testing.assert_allclose(found.standard_error[: len(expected)].numpy(), expected, rtol=1e-9)
    if not pooled:
        assert found.details["r_squared"] == pytest.approx(shares, rel=1e-9)


def test_standard_errors_cover_the_truth() -> None:
    """Over 60 designs and independent noise, errors divided by their standard errors have mean square 1."""
    ratios = []
    for seed in range(60):
        design = design_of(seed=seed, samples=100)
        generator = torch.Generator().manual_seed(seed)
        weights = torch.randn(8, generator=generator, dtype=torch.float64)
        outputs = (design.rows().double() @ weights + torch.randn(100, generator=generator, dtype=torch.float64))[
            :, None
        ]
        for estimator in ("normal_equations", "difference_of_means"):
            found = fit(design, outputs, estimator=estimator)
            assert found.standard_error is not None
            ratios.append(((found.weights - weights) / found.standard_error).square().mean())
    means = torch.stack(ratios).view(60, 2).mean(0)
    assert ((means - 1).abs() < 5 * (2 / (60 * 8)) ** 0.5).all()


def test_counts_are_exact_and_outputs_are_summed_in_order() -> None:
    design = design_of()
    sums = samples_of(design, outputs_of(design), pooled=False, rows=None).moments()
    masks = design.rows().long()
    sums.settle()
    assert sums.gram is not None
    assert torch.equal(sums.gram[0].long(), masks.T @ masks)
    assert torch.equal(sums.mask_sum[0, 0].long(), masks.sum(0))
    assert sums.rows == 600


def test_counts_survive_the_end_of_float32() -> None:
    """As after 2**24 samples that kept every unit; float32 would lose an odd count from there."""
    masks = torch.tensor([[1, 1, 0]]).bool()
    sums = Moments.zero(torch.zeros(1, 1, 1), 3, gram=True)
    sums.add(masks[None, None], torch.zeros(1, 1, 1, 1).double())
    assert sums._counts is not None
    sums._counts.fill_(2**24)
    sums._counted = 2**24
    sums.add(masks[None, None], torch.zeros(1, 1, 1, 1).double())
    sums.settle()
    assert sums.gram is not None
    assert (sums.gram[0] - 2**24).tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]


def test_features_that_are_products_of_masks() -> None:
    """Any features of 0 and 1 fit: here an interaction, recovered exactly."""
    masks = design_of(n_units=3).rows()
    features = torch.cat([masks, masks[:, :1] & masks[:, 1:2]], 1)
    outputs = features.double() @ torch.tensor([[1.0], [2.0], [3.0], [-0.5]]).double() + 7
    found = solved.least_squares(Moments.of(features, outputs).system())
    assert found.weights[0, :, 0].tolist() == pytest.approx([1, 2, 3, -0.5])
    assert float(found.intercepts) == pytest.approx(7)


def test_condition_numbers_of_many_units_come_from_power_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    design = design_of(n_units=60, samples=400)
    exact = fit(design, outputs_of(design)).details["condition_number"]
    monkeypatch.setattr(solved, "EXACT_SPECTRUM", 10)
    estimated = fit(design, outputs_of(design)).details["condition_number"]
    assert estimated != exact
    assert estimated == pytest.approx(exact, rel=0.05)


# --- penalties ----------------------------------------------------------------------------------------------------


@LAYOUTS
@pytest.mark.parametrize("estimator", ["ridge", "conjugate_gradients"])
@pytest.mark.parametrize("samples", [6, 50, 600])
def test_ridge_is_least_squares_with_more_rows(prompts: int | None, pooled: bool, estimator: str, samples: int) -> None:
    design = design_of(prompts=prompts, samples=samples)
    outputs = outputs_of(design)
    found = fit(design, outputs, estimator=estimator, pooled=pooled, ridge=4.0, tolerance=1e-12)
    close(found, *oracle(design, outputs, pooled=pooled, ridge=4.0))
    assert found.details["ridge"] == 4.0


def test_ridge_and_lasso_are_those_of_scikit_learn() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    design = design_of(n_units=20, samples=300)
    outputs = outputs_of(design)
    masks = design.rows().double().numpy()
    exact = {"tol": 1e-12, "max_iter": 100_000}
    cases = [
        ({"estimator": "normal_equations"}, linear.LinearRegression()),
        ({"estimator": "ridge", "ridge": 3.0}, linear.Ridge(alpha=3.0)),
        ({"estimator": "lasso", "lasso": 0.05}, linear.Lasso(alpha=0.05, **exact)),
        ({"estimator": "elastic_net", "lasso": 0.05}, linear.ElasticNet(alpha=0.1, l1_ratio=0.5, **exact)),
        (
            {"estimator": "elastic_net", "lasso": 0.05, "ridge": 6.0},  # 6 / 300 = 0.02
            linear.ElasticNet(alpha=0.07, l1_ratio=0.05 / 0.07, **exact),
        ),
    ]
    for options, model in cases:
        found = fit(design, outputs, **options)
        for example in range(EXAMPLES):
            model.fit(masks, outputs[:, example].numpy())
            np.testing.assert_allclose(
                found.weights[example].numpy(), model.coef_, atol=2e-4 if "lasso" in options else 1e-9
            )
            assert float(found.intercept[example]) == pytest.approx(model.intercept_, abs=1e-3)
        if "lasso" in options:
            assert found.details["nonzero"] == (found.weights != 0).sum(1).tolist()
            assert min(found.details["nonzero"]) < 20


@pytest.mark.parametrize(("prompts", "pooled"), [(3, False), (3, True)])
def test_lasso_of_masks_by_prompt(prompts: int, pooled: bool) -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    design = design_of(prompts=prompts)
    outputs = outputs_of(design)
    found = fit(design, outputs, estimator="lasso", lasso=0.05, pooled=pooled)
    for number, (features, targets, constants) in enumerate(problems(design, outputs, pooled=pooled)):
        rows = features[:, -constants:]
        means = rows @ np.linalg.lstsq(rows, np.column_stack([features[:, :8], targets]), rcond=None)[0]
        model = linear.Lasso(alpha=0.05, tol=1e-12, max_iter=100_000, fit_intercept=False)
        model.fit(features[:, :8] - means[:, :8], targets - means[:, 8])
        np.testing.assert_allclose(found.weights[number].numpy(), model.coef_, atol=2e-4)


@pytest.mark.parametrize("samples", [22, 23, 24, 26, 30])
def test_the_ridge_of_least_generalised_cross_validation(samples: int) -> None:
    """GCV by its definition, from the hat matrix, at every strength of the grid."""
    design = design_of(n_units=20, samples=samples)
    outputs = outputs_of(design, noise=2.0)
    found = fit(design, outputs, estimator="ridge")
    masks = design.rows().double()
    centred = masks - masks.mean(0)
    system = samples_of(design, outputs, pooled=False, rows=None).moments().system()
    scores = {}
    for strength in solved.strengths(system):
        inverse = torch.linalg.inv(centred.T @ centred + strength * torch.eye(20, dtype=torch.float64))
        hat = centred @ inverse @ centred.T + 1 / samples
        left = outputs - hat @ outputs
        share = left.square().sum(0) / (outputs - outputs.mean(0)).square().sum(0)
        scores[strength] = float((share / (1 - hat.trace() / samples) ** 2).mean())
    assert found.details["ridge"] == min(scores, key=lambda strength: scores[strength])
    assert found.details["ridge_chosen_by"] == "generalised cross-validation"
    assert "by generalised cross-validation" in found.reason


@pytest.mark.parametrize("estimator", ["lasso", "elastic_net"])
def test_the_lasso_of_least_error_on_samples_held_out(estimator: str) -> None:
    """A truth of three weights among thirty is found, and predicted better than without a penalty."""
    pytest.importorskip("sklearn")
    design = design_of(n_units=30, samples=100)
    weights = torch.zeros(30, dtype=torch.float64)
    weights[[2, 11, 29]] = torch.tensor([1.0, -2.0, 1.5]).double()
    generator = torch.Generator().manual_seed(0)
    outputs = (design.rows().double() @ weights + torch.randn(100, generator=generator, dtype=torch.float64))[:, None]
    found = fit(design, outputs, estimator=estimator)
    plain = fit(design, outputs, estimator="normal_equations")
    assert (found.weights[0] - weights).norm() < 0.8 * (plain.weights[0] - weights).norm()
    assert found.details["nonzero"][0] < 30
    assert found.details["lasso_chosen_by"] == "the error on 20 samples held out, for every prompt"


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    design = design_of()
    with pytest.raises(InvalidOption, match=r"pip install -e '.\[regression\]'"):
        fit(design, outputs_of(design), estimator="lasso", lasso=0.1)
    assert fit(design, outputs_of(design)).estimator == "normal_equations"


# --- the choice ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_units", "samples", "memory", "expected", "because"),
    [
        (144, 217, 1 << 30, "normal_equations", "217 samples are 1.5 times the 144 units"),
        (144, 216, 1 << 30, "ridge", "fewer than the 1.5 times"),
        (144, 10, 1 << 30, "ridge", "fewer than the 1.5 times"),
        (5000, 20_000, 1 << 30, "normal_equations", "4.0 times the 5,000 units"),
        (5001, 20_000, 1 << 30, "conjugate_gradients", "made again from their seeds"),
        (3000, 20_000, 100 << 20, "conjugate_gradients", "more than 100 MiB"),
        (36_864, 20_000, 1 << 30, "conjugate_gradients", "0.5 times the 36,864 units"),
        (36_864, 20_000, 1 << 20, "difference_of_means", "not even the vectors"),
    ],
)
def test_auto_chooses_by_samples_units_and_memory(
    n_units: int, samples: int, memory: int, expected: str, because: str
) -> None:
    design = design_of(n_units=n_units, samples=samples)
    outputs = torch.zeros(samples, 1, dtype=torch.float64)
    name, reason = choose(Request(samples_of(design, outputs, pooled=False, rows=None)), memory=memory)
    assert name == expected
    assert because in reason


def test_auto_takes_a_ridge_where_a_unit_never_varied() -> None:
    design = design_of(samples=60, keep=0.99)
    outputs = outputs_of(design)
    still = design.rows().all(0).nonzero().flatten().tolist()
    assert still
    found = fit(design, outputs)
    assert found.estimator == "ridge"
    assert "least squares is not determined: expected every unit to be ablated" in found.reason
    assert found.details["never_varied"] == still
    assert not found.weights[:, still].any()


@pytest.mark.parametrize("estimator", [*ESTIMATORS, "auto"])
@LAYOUTS
def test_every_estimator_says_what_it_did(estimator: str, prompts: int | None, pooled: bool) -> None:
    design = design_of(prompts=prompts, samples=100)
    found = fit(design, outputs_of(design), estimator=estimator, pooled=pooled)
    assert found.estimator == ("normal_equations" if estimator == "auto" else estimator)
    assert found.reason.endswith(".")
    assert json.loads(json.dumps(found.details, allow_nan=False)) == found.details
    assert found.details["samples"] == 100
    assert found.details["design"] == design.digest()
    assert found.weights.shape == (EXAMPLES, 8)
    assert found.weights.dtype == torch.float64
    assert found.intercept.shape == (EXAMPLES,)


# --- samples, memory, progress ------------------------------------------------------------------------------------


@LAYOUTS
def test_rows_are_a_fit_of_those_samples_alone(prompts: int | None, pooled: bool) -> None:
    design = design_of(prompts=prompts)
    outputs = outputs_of(design)
    spoilt = outputs.clone()
    chosen = torch.arange(600)[torch.randperm(600, generator=torch.Generator().manual_seed(0))[:200]]
    unused = torch.ones(600, dtype=torch.bool)
    unused[chosen] = False
    spoilt[unused] = torch.nan  # what is not used is not looked at
    found = fit(design, spoilt, rows=chosen, pooled=pooled)
    again = fit(design, spoilt, rows=~unused, pooled=pooled)
    assert torch.equal(found.weights, again.weights)
    expected = []
    for features, targets, constants in problems(design, outputs, pooled=pooled):
        keep = (~unused).repeat_interleave(constants).numpy()
        expected.append(np.linalg.lstsq(features[keep], targets[keep], rcond=None)[0][:8])
    np.testing.assert_allclose(found.weights[: len(expected)].numpy(), expected, atol=1e-9)


@LAYOUTS
@pytest.mark.parametrize("estimator", ["auto", "ridge", "difference_of_means"])
def test_prefixes_in_one_pass_equal_fits_bit_for_bit(prompts: int | None, pooled: bool, estimator: str) -> None:
    design = design_of(prompts=prompts)
    outputs = outputs_of(design)
    sizes = [30, 5, 256, 256, 300, 511, 512, 600]
    found = fit_prefixes(design, outputs, sizes=sizes, estimator=estimator, pooled=pooled)
    assert list(found) == sorted(set(sizes))
    for size, one in found.items():
        alone = fit(design, outputs, rows=range(size), estimator=estimator, pooled=pooled)
        assert torch.equal(one.weights, alone.weights)
        assert torch.equal(one.intercept, alone.intercept)
        assert (one.estimator, one.reason, one.details) == (alone.estimator, alone.reason, alone.details)


def test_prefixes_share_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    design = design_of()
    outputs = outputs_of(design)
    made: list[int] = []
    block = MaskDesign.block
    monkeypatch.setattr(MaskDesign, "block", lambda design, number: (made.append(number), block(design, number))[1])
    fit_prefixes(design, outputs, sizes=[50, 100, 200, 400, 600])
    assert made == [0, 1, 2]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_memory_changes_no_bit(estimator: str) -> None:
    """Masks that are kept between passes, or made again in each."""
    design = design_of(prompts=EXAMPLES)
    outputs = outputs_of(design)
    least = bytes_needed(estimator, Request(samples_of(design, outputs, pooled=False, rows=None)))
    roomy = fit(design, outputs, estimator=estimator, memory=1 << 30)
    tight = fit(design, outputs, estimator=estimator, memory=least)
    assert torch.equal(roomy.weights, tight.weights)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_too_little_memory_says_how_much_is_needed(estimator: str) -> None:
    design = design_of()
    with pytest.raises(InvalidOption, match=rf"expected at least memory=.* bytes .* for {estimator}"):
        fit(design, outputs_of(design), estimator=estimator, memory=100)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_progress_is_told(estimator: str) -> None:
    steps: list[tuple[int, int]] = []
    design = design_of()
    fit(design, outputs_of(design), estimator=estimator, progress=lambda done, total: steps.append((done, total)))
    assert steps
    assert all(0 < done <= total for done, total in steps)


@pytest.mark.parametrize("estimator", ["normal_equations", "conjugate_gradients"])
def test_outputs_of_float32_and_of_other_strides(estimator: str) -> None:
    design = design_of()
    outputs = outputs_of(design).float()
    plain = fit(design, outputs, estimator=estimator)
    strided = fit(design, outputs.T.contiguous().T, estimator=estimator)
    assert torch.equal(plain.weights, fit(design, outputs.double(), estimator=estimator).weights)
    torch.testing.assert_close(strided.weights, plain.weights, rtol=0, atol=1e-12)
    assert not outputs.requires_grad
    fit(design, outputs.requires_grad_(), estimator=estimator)


# --- predictions --------------------------------------------------------------------------------------------------


@LAYOUTS
def test_predictions(prompts: int | None, pooled: bool) -> None:
    design = design_of(prompts=prompts)
    found = fit(design, outputs_of(design), pooled=pooled)
    masks = per_prompt(design)
    by_hand = (masks * found.weights).sum(-1) + found.intercept
    torch.testing.assert_close(found.predict(design.rows()), by_hand)
    torch.testing.assert_close(found.predict(design), by_hand)
    torch.testing.assert_close(found.predict(masks), by_hand)


@pytest.mark.parametrize("shape", [(8,), (4, 9), (4, 2, 8), (1, 4, 3, 8)])
def test_predictions_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    design = design_of()
    with pytest.raises(InvalidOption, match=r"expected masks \[sample, 8\] or \[sample, 3, 8\]"):
        fit(design, outputs_of(design)).predict(torch.ones(shape))
