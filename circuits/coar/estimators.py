"""The weights of a component model from random ablations: one function, six estimators, and a choice among them.

===================  ===========================================  ==================================================
estimator            minimises                                    memory, beside the outputs
===================  ===========================================  ==================================================
normal_equations     squared errors                               36 bytes * units**2 (for each prompt, if masks are
                                                                  its own)
ridge                the same + ridge * |weights|^2               42 bytes * units**2
lasso, elastic_net   squared errors / (2 samples) + penalties     100 bytes * units**2
conjugate_gradients  squared errors (+ ridge * |weights|^2)       48 bytes * units * prompts; 192 if it chooses
                                                                  the ridge
difference_of_means  nothing: each unit by itself                 40 bytes * units * prompts
===================  ===========================================  ==================================================

All stream over the samples, whose masks are made again from their seeds; none needs memory that grows with samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.coar import conjugate_gradients as iterated
from circuits.coar import normal_equations as solved
from circuits.coar.choice import DEFAULT_BYTES, ENOUGH, bytes_needed, check_memory, choose, instead, named
from circuits.coar.difference_of_means import difference_of_means
from circuits.coar.fitted import Fit
from circuits.coar.masks import MaskDesign
from circuits.coar.moments import Samples, Solution, System
from circuits.coar.normal_equations import Undetermined
from circuits.coar.requests import Request, check_penalties, listed, samples_of
from circuits.coar.sparse_regression import require_scikit_learn, sparse
from patching.errors import InvalidOption
from patching.progress import Progress, silent

HELD_OUT = 5
"""One sample in so many is held out where a penalty is chosen by its error."""


def check(estimator: str, *, samples: int, n_units: int) -> None:
    """Refuse before anything is run what `fit` could only refuse afterwards.

    Raises:
        InvalidOption: no such estimator, scikit-learn is needed and missing, or least squares of too few samples.
    """
    if estimator != "auto" and estimator not in ESTIMATORS:
        raise InvalidOption(f"expected an estimator out of auto, {', '.join(ESTIMATORS)}; got {estimator!r}.")
    if estimator in ("lasso", "elastic_net"):
        require_scikit_learn()
    if estimator == "normal_equations" and samples <= n_units:
        raise InvalidOption(
            f"expected more samples than the {n_units:,} units for plain least squares; got {samples:,}. Take more, or "
            "estimator='ridge'."
        )


def fit(
    design: MaskDesign,
    outputs: Float[Tensor, "sample example"],
    *,
    estimator: str = "auto",
    ridge: float | None = None,
    lasso: float | None = None,
    pooled: bool = False,
    rows: Sequence[int] | Int[Tensor, " row"] | Bool[Tensor, " sample"] | None = None,
    tolerance: float = iterated.TOLERANCE,
    memory: int = DEFAULT_BYTES,
    progress: Progress = silent,
) -> Fit:
    """Fit ``output = intercept + weights . mask`` for every prompt.

    ``auto`` takes ``normal_equations`` with at least 1.5 samples for each unit, ``ridge`` with fewer, both up to 5,000
    units and while their products fit into ``memory``; else ``conjugate_gradients``; and ``difference_of_means`` where
    even that does not fit. `Fit.reason` says which and why. Units that a Bernoulli design happened never to vary make
    least squares undetermined; ``auto`` then takes a ridge, which gives them 0.

    Results are the same bit for bit however the outputs were made and gathered: sums run over the design's own blocks,
    in order. ``memory`` decides what ``auto`` takes and changes nothing else.

    Cost: one pass over the masks (``O(samples * units**2)`` for those that need products, and ``O(units**3)`` to
    solve); for conjugate gradients one pass of ``O(samples * units * prompts)`` for each iteration.

    Args:
        design: of the masks.
        outputs: ``[sample, example]``, the metric of every prompt under every mask.
        estimator: ``auto``, ``normal_equations``, ``ridge``, ``lasso``, ``elastic_net``, ``conjugate_gradients`` or
            ``difference_of_means``.
        ridge: weight of ``|weights|^2`` beside the sum of squared errors (as scikit-learn's `Ridge`). None: for
            ``ridge`` chosen by generalised cross-validation; for conjugate gradients 0 with at least 1.5 samples for
            each unit, else chosen on one sample in five held out; for the elastic net as much as of the lasso.
        lasso: weight of ``|weights|_1`` beside ``squared errors / (2 samples)`` (as scikit-learn's `Lasso`); None:
            chosen for every prompt on one sample in five held out.
        pooled: with masks of its own for each prompt, fit one vector of weights for all prompts (and an intercept for
            each); else each prompt is fitted from its own masks. The mean prompt under shared masks is the mean of the
            weights.
        rows: numbers of the samples to use, without repetition, or a truth value for each; None for all.
        tolerance: relative residual at which conjugate gradients stop.
        memory: bytes that the fit may use beside the outputs.
        progress: called with samples (or iterations) done and in all.

    Returns:
        The model.

    Raises:
        InvalidOption: shapes, names or numbers that do not fit; too few samples for least squares (`Undetermined`).
        NotFinite: an output is NaN or infinite; says which.

    Source: Shah, Ilyas and Madry, arXiv 2404.11534, who fit by stochastic gradients without a penalty; ours solves the
        same least squares exactly.

    Example:
        >>> import torch
        >>> design = MaskDesign(n_units=3, samples=64, keep=0.75, seed=0)
        >>> outputs = design.rows().double() @ torch.tensor([[2.0], [0.0], [-1.0]]).double() + 0.5
        >>> found = fit(design, outputs)
        >>> found.estimator, [round(weight, 6) + 0.0 for weight in found.weights[0].tolist()]
        ('normal_equations', [2.0, 0.0, -1.0])
        >>> found.reason
        'Least squares by normal equations: 64 samples are 21 times the 3 units.'
    """
    samples = samples_of(design, outputs, pooled=pooled, rows=rows)
    check_penalties(estimator, ridge, lasso, tolerance)
    request = Request(samples, ridge, lasso, tolerance, progress=progress)
    request = replace(request, spare=memory - bytes_needed("conjugate_gradients", request))
    if estimator != "auto":
        check_memory(estimator, request, memory)
        return _result(request, estimator, f"{estimator}, as asked.", ESTIMATORS[estimator](request))
    name, reason = choose(request, memory=memory)
    try:
        return _result(request, name, reason, ESTIMATORS[name](request))
    except Undetermined as error:
        name, reason = instead(request, error, memory)
        return _result(request, name, reason, ESTIMATORS[name](request))


def fit_prefixes(
    design: MaskDesign,
    outputs: Float[Tensor, "sample example"],
    *,
    sizes: Sequence[int],
    estimator: str = "auto",
    ridge: float | None = None,
    pooled: bool = False,
    memory: int = DEFAULT_BYTES,
    progress: Progress = silent,
) -> dict[int, Fit]:
    """`fit` of the first so many samples, for several sizes: what more samples would buy.

    Equal, bit for bit, to ``fit(..., rows=range(size))``. Sizes that are fitted by normal equations or ridge share one
    pass over the samples; the others are fitted one by one.

    Args:
        design: of the masks.
        outputs: ``[sample, example]``.
        sizes: numbers of samples, at least 1 each.
        estimator: as of `fit`; ``auto`` chooses for every size.
        ridge: as of `fit`.
        pooled: as of `fit`.
        memory: as of `fit`.
        progress: called with samples done and in all.

    Returns:
        The fits by size, rising.

    Raises:
        InvalidOption: as of `fit`, and sizes that are not within the samples.
    """
    wanted = sorted(set(sizes))
    if not wanted or wanted[0] < 1 or wanted[-1] > design.samples:
        raise InvalidOption(f"expected sizes from 1 to {design.samples:,} samples; got {list(sizes)}.")
    check_penalties(estimator, ridge, None, iterated.TOLERANCE)
    whole = samples_of(design, outputs, pooled=pooled, rows=range(wanted[-1]))
    requests = {size: Request(whole.take(whole.rows[:size]), ridge) for size in wanted}
    names = {size: named(request, estimator, memory) for size, request in requests.items()}
    together = [size for size in wanted if names[size][0] in ("normal_equations", "ridge")]
    found: dict[int, Fit] = {}
    for size, sums in zip(together, whole.growing_moments(together, progress=progress), strict=True):
        request, (name, reason) = requests[size], names[size]
        check_memory(name, request, memory)
        try:
            found[size] = _result(request, name, reason, _solve(request, name, sums.system()))
        except Undetermined:
            if estimator != "auto":
                raise
    alone = {"estimator": estimator, "ridge": ridge, "pooled": pooled, "memory": memory}
    found |= {size: fit(design, outputs, rows=range(size), **alone) for size in wanted if size not in found}
    return {size: found[size] for size in wanted}


# --- the estimators ---------------------------------------------------------------------------------------------------


def _normal_equations(request: Request) -> Solution:
    system = request.samples.moments(progress=request.progress).system()
    return solved.least_squares(system, fixed_size=request.fixed_size)


def _ridge(request: Request) -> Solution:
    return _solve(request, "ridge", request.samples.moments(progress=request.progress).system())


def _solve(request: Request, name: str, system: System) -> Solution:
    """Normal equations or ridge of sums that are there."""
    if name == "normal_equations":
        return solved.least_squares(system, fixed_size=request.fixed_size)
    if request.ridge is not None:
        return solved.ridge(system, strength=request.ridge)
    strength, how = solved.cross_validated(system)
    return _with_choice(solved.ridge(system, strength=strength), how)


def _lasso(request: Request) -> Solution:
    return _sparse(request, ridge=0.0)


def _elastic_net(request: Request) -> Solution:
    return _sparse(request, ridge=request.ridge)


def _sparse(request: Request, *, ridge: float | None) -> Solution:
    if request.lasso is not None:
        system = request.samples.moments(progress=request.progress).system()
        return sparse(system, lasso=request.lasso, ridge=ridge, chooser=None)
    train, judged = (part.moments(progress=request.progress) for part in _split(request))
    return sparse(train.merged(judged).system(), lasso=None, ridge=ridge, chooser=(train, judged))


def _conjugate_gradients(request: Request) -> Solution:
    system = request.samples.moments(gram=False).system()
    strength, how = request.ridge, ""
    if strength is None and request.determined >= ENOUGH and not system.still():
        strength = 0.0
    if strength == 0:
        solved.check_determined(system, fixed_size=request.fixed_size)
    if strength is None:
        strength, how = iterated.held_out(*_split(request), spare=request.spare, progress=request.progress)
    found = iterated.conjugate_gradients(
        request.samples,
        system,
        strength=strength,
        tolerance=request.tolerance,
        spare=request.spare,
        progress=request.progress,
    )
    return _with_choice(found, how) if how else found


def _difference_of_means(request: Request) -> Solution:
    sums = request.samples.moments(gram=False, squares=True, progress=request.progress)
    return difference_of_means(sums, design=request.samples.design)


ESTIMATORS: dict[str, Callable[[Request], Solution]] = {
    "normal_equations": _normal_equations,
    "ridge": _ridge,
    "lasso": _lasso,
    "elastic_net": _elastic_net,
    "conjugate_gradients": _conjugate_gradients,
    "difference_of_means": _difference_of_means,
}
"""Every estimator by name."""


def _split(request: Request) -> tuple[Samples, Samples]:
    """To fit on and to judge penalties by."""
    if len(request.samples.rows) < 2 * HELD_OUT:
        raise InvalidOption(
            f"expected at least {2 * HELD_OUT} samples to choose a penalty on some of them held out; got "
            f"{len(request.samples.rows)}. Give the penalty, or take more samples."
        )
    return request.samples.split(every=HELD_OUT)


def _with_choice(solution: Solution, how: str) -> Solution:
    solution.details["ridge_chosen_by"] = how
    remark = f"Strength {solution.details['ridge']:.3g} by {how}."
    return replace(solution, remark=f"{remark} {solution.remark}".strip())


def _result(request: Request, name: str, reason: str, found: Solution) -> Fit:
    """The solution by prompt, with what is worth knowing of it."""
    samples = request.samples
    rows = samples.outputs[samples.rows]
    constant = (rows == rows[:1]).all(0).nonzero().flatten().tolist()
    notes = [reason, found.remark]
    if request.fixed_size:
        shift = "the penalty decides" if name in ("lasso", "elastic_net") else "these sum to 0"
        notes.append(
            f"All masks ablate equally many units, so that weights are identified up to a shift common to all: {shift}."
        )
    if constant:
        notes.append(
            f"Outputs of prompts {listed(constant)} are constant: their weights are 0, and correlations with them are "
            "undefined."
        )
    still = found.details["never_varied"]
    if still:
        notes.append(f"Units {listed(still)} never varied in these samples: nothing is known of their weights.")
    intercepts = found.intercepts[0, 0] if samples.design.prompts is None else found.intercepts.flatten()
    error = found.standard_error
    return Fit(
        weights=samples.per_example(found.weights),
        intercept=intercepts.clone(),
        estimator=name,
        reason=" ".join(note for note in notes if note),
        standard_error=None if error is None else samples.per_example(error),
        details={
            "samples": len(samples.rows),
            "units": samples.design.n_units,
            "design": samples.design.digest(),
            "pooled": samples.pooled,
            "identified": "up to a common shift" if request.fixed_size else "fully",
            "constant_examples": constant,
            **found.details,
        },
    )
