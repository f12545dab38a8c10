"""What cannot be fitted is refused in words, or fitted as far as it can be, and said."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from circuits.coar.estimators import fit, fit_prefixes
from circuits.coar.masks import MaskDesign
from circuits.coar.normal_equations import Undetermined
from circuits.coar.requests import ESTIMATORS
from patching.errors import InvalidOption, NotFinite

UNITS, SAMPLES, EXAMPLES = 6, 40, 4


def design_of(**changes: object) -> MaskDesign:
    return MaskDesign(**{"n_units": UNITS, "samples": SAMPLES, "keep": 0.7, "seed": 0, **changes})  # type: ignore[arg-type]


def outputs_of(samples: int = SAMPLES, examples: int = EXAMPLES) -> Tensor:
    return torch.randn(samples, examples, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


# --- too few samples ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"estimator": "normal_equations"}, {"estimator": "conjugate_gradients", "ridge": 0.0}], ids=str
)
def test_fewer_samples_than_units_with_least_squares(options: dict[str, object]) -> None:
    design, outputs = design_of(), outputs_of()
    with pytest.raises(Undetermined, match=r"at least 7 samples .* 6 units .* got 6\..*estimator='ridge'"):
        fit(design, outputs, rows=range(6), **options)  # type: ignore[arg-type]
    assert fit(design, outputs, rows=range(6)).estimator == "ridge"


def test_exactly_enough_samples_interpolate() -> None:
    design, outputs = design_of(seed=5), outputs_of()  # whose samples 1 to 7 have full rank
    found = fit(design, outputs, rows=range(1, 8), estimator="normal_equations")
    torch.testing.assert_close(found.predict(design.rows(1, 8)), outputs[1:8], rtol=0, atol=1e-9)
    assert found.standard_error is None


def test_pooled_prompts_count_their_samples_together() -> None:
    design, outputs = design_of(prompts=EXAMPLES), outputs_of()
    assert fit(design, outputs, rows=range(4), pooled=True).estimator == "normal_equations"
    with pytest.raises(Undetermined, match=r"at least 3 samples"):
        fit(design, outputs, rows=range(2), pooled=True, estimator="normal_equations")


def test_subsets_need_one_sample_less() -> None:
    design = design_of(kind="subset", samples=6, seed=2)  # of rank 5, beside the intercept
    outputs = outputs_of(6)
    found = fit(design, outputs, estimator="normal_equations")
    torch.testing.assert_close(found.predict(design), outputs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("estimator", ["normal_equations", "conjugate_gradients"])
def test_units_that_never_varied_are_named(estimator: str) -> None:
    design = design_of(keep=0.97)
    still = design.rows().all(0).nonzero().flatten().tolist()
    assert still
    named = ", ".join(map(str, still))
    options = {"ridge": 0.0} if estimator == "conjugate_gradients" else {}
    with pytest.raises(Undetermined, match=rf"units {named} \({len(still)} in all\) are not, in these 40 samples"):
        fit(design, outputs_of(), estimator=estimator, **options)


def test_conjugate_gradients_take_a_ridge_where_a_unit_never_varied() -> None:
    design = design_of(keep=0.97)
    still = design.rows().all(0).nonzero().flatten().tolist()
    found = fit(design, outputs_of(), estimator="conjugate_gradients")
    assert found.details["ridge"] > 0
    assert found.details["never_varied"] == still
    assert float(found.weights[:, still].abs().max()) < 1e-12
    assert f"Units {', '.join(map(str, still))} never varied in these samples" in found.reason


def test_units_ablated_always_together_are_collinear() -> None:
    """Two units with the same mask in every chosen sample."""
    design = design_of(n_units=2, samples=400)
    masks = design.rows()
    alike = (masks[:, 0] == masks[:, 1]).nonzero().flatten()
    with pytest.raises(Undetermined, match=r"full rank; .* samples of 2 units have condition number"):
        fit(design, outputs_of(400), rows=alike, estimator="normal_equations")
    found = fit(design, outputs_of(400), rows=alike)
    assert found.estimator == "ridge"
    torch.testing.assert_close(found.weights[:, 0], found.weights[:, 1])


def test_a_single_sample() -> None:
    design, outputs = design_of(samples=1), outputs_of(1)
    for estimator, ridge in (("ridge", 1.0), ("conjugate_gradients", 1.0), ("difference_of_means", None)):
        found = fit(design, outputs, estimator=estimator, ridge=ridge)
        assert not found.weights.any()
        torch.testing.assert_close(found.intercept, outputs[0])
    assert not fit(design, outputs).weights.any()


@pytest.mark.parametrize("estimator", ["lasso", "elastic_net", "conjugate_gradients"])
def test_too_few_samples_to_hold_some_out(estimator: str) -> None:
    with pytest.raises(InvalidOption, match=r"at least 10 samples to choose a penalty .* got 5"):
        fit(design_of(), outputs_of(), rows=range(5), estimator=estimator)


# --- outputs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", [*ESTIMATORS, "auto"])
def test_constant_outputs_have_weights_of_0_and_are_named(estimator: str) -> None:
    design = design_of()
    outputs = 5 * design.rows().double() @ outputs_of(UNITS) + outputs_of()
    outputs[:, [1, 3]] = torch.tensor([0.1, 1e6]).double()  # 0.1 has no exact sum
    found = fit(design, outputs, estimator=estimator)
    assert not found.weights[[1, 3]].any()
    assert found.weights[[0, 2]].any(1).all()
    assert torch.equal(found.intercept[[1, 3]], torch.tensor([0.1, 1e6]).double())
    assert found.details["constant_examples"] == [1, 3]
    assert "Outputs of prompts 1, 3 are constant: their weights are 0, and correlations" in found.reason
    if found.details["r_squared"] is not None:
        assert [share is None for share in found.details["r_squared"]] == [False, True, False, True]


@pytest.mark.parametrize("estimator", [*ESTIMATORS, "auto"])
def test_all_outputs_constant(estimator: str) -> None:
    found = fit(design_of(), torch.full((SAMPLES, 2), 0.3), estimator=estimator)
    assert not found.weights.any()
    assert torch.isfinite(found.intercept).all()
    assert found.standard_error is None or not found.standard_error.any()


def test_outputs_that_are_not_finite_are_named() -> None:
    outputs = outputs_of()
    outputs[5, 0], outputs[7, 2], outputs[9, 2] = float("nan"), float("inf"), -float("inf")
    with pytest.raises(NotFinite, match=r"3 are NaN or infinite: prompts 0, 2 at samples 5, 7, 9\. Leave .*rows="):
        fit(design_of(), outputs)
    good = torch.ones(SAMPLES, dtype=torch.bool)
    good[[5, 7, 9]] = False
    assert fit(design_of(), outputs, rows=good).details["samples"] == SAMPLES - 3


def test_long_lists_are_cut() -> None:
    outputs = outputs_of()
    outputs[:20] = float("nan")
    with pytest.raises(NotFinite, match=r"80 are .* prompts 0, 1, 2, 3 at samples 0, 1, 2, 3, 4, 5, 6, 7 and 12 more"):
        fit(design_of(), outputs)


@pytest.mark.parametrize("shape", [(SAMPLES,), (SAMPLES + 1, 2), (2, SAMPLES), (SAMPLES, 0), (SAMPLES, 2, 1)])
def test_outputs_of_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidOption, match=rf"outputs \[40 samples, examples\].*got {re.escape(str(list(shape)))}"):
        fit(design_of(), torch.zeros(shape))


def test_other_prompts_than_masks() -> None:
    with pytest.raises(InvalidOption, match=r"outputs of the 3 prompts .* got 4"):
        fit(design_of(prompts=3), outputs_of())


def test_shared_masks_are_not_pooled() -> None:
    with pytest.raises(InvalidOption, match=r"masks of its own for each prompt .* mean over prompts of the weights"):
        fit(design_of(), outputs_of(), pooled=True)


# --- options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"estimator": "ols"}, "among auto, normal_equations, .*; got 'ols'"),
        ({"estimator": "normal_equations", "ridge": 1.0}, "ridge with estimator auto or ridge or .* normal_equations"),
        ({"estimator": "lasso", "ridge": 1.0}, "ridge with estimator"),
        ({"estimator": "ridge", "lasso": 1.0}, "lasso with estimator lasso or elastic_net only"),
        ({"lasso": 1.0}, "lasso with estimator lasso or elastic_net only; got it with auto"),
        ({"estimator": "ridge", "ridge": 0.0}, "more than 0 and finite; got 0.0. Without: normal_equations"),
        ({"estimator": "ridge", "ridge": -1.0}, "more than 0"),
        ({"ridge": float("nan")}, "more than 0"),
        ({"estimator": "conjugate_gradients", "ridge": -1.0}, "0 or more"),
        ({"estimator": "elastic_net", "ridge": float("inf")}, "0 or more and finite"),
        ({"estimator": "lasso", "lasso": 0.0}, "lasso to be more than 0"),
        ({"tolerance": 0.0}, "a tolerance between 0 and 1"),
    ],
    ids=str,
)
def test_options_that_have_no_meaning(options: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidOption, match=says):
        fit(design_of(), outputs_of(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "numbers of samples from 0 to 39"),
        ([0, 40], "from 0 to 40"),
        ([-1], "from -1 to -1"),
        ([0.5, 1.0], "numbers of samples"),
        ([1, 2, 1], "1 of the 3 rows repeat"),
        (torch.ones(39, dtype=torch.bool), "40 truth values"),
        (torch.zeros(40, dtype=torch.bool), "one that is true"),
    ],
    ids=str,
)
def test_rows_that_are_not_samples(rows: object, says: str) -> None:
    with pytest.raises(InvalidOption, match=says):
        fit(design_of(), outputs_of(), rows=rows)  # type: ignore[arg-type]


@pytest.mark.parametrize("sizes", [[], [0, 10], [41]])
def test_sizes_that_are_not_within_the_samples(sizes: list[int]) -> None:
    with pytest.raises(InvalidOption, match="sizes from 1 to 40 samples"):
        fit_prefixes(design_of(), outputs_of(), sizes=sizes)


def test_a_prefix_that_is_too_short_for_least_squares() -> None:
    with pytest.raises(Undetermined, match="at least 7 samples"):
        fit_prefixes(design_of(), outputs_of(), sizes=[3, 40], estimator="normal_equations")
    assert fit_prefixes(design_of(), outputs_of(), sizes=[3, 40])[3].estimator == "ridge"
