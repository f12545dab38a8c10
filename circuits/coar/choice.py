"""Which estimator fits a number of samples, of units and of bytes."""

from __future__ import annotations

from circuits.coar.normal_equations import Undetermined
from circuits.coar.requests import Request
from patching.errors import InvalidOption

DEFAULT_BYTES = 1 << 30
"""Bytes that a fit may use beside its outputs, unless told."""

MOST_UNITS = 5000
"""Beyond so many units, ``auto`` does not factorise: it would take minutes."""

ENOUGH = 1.5
"""Samples for each unit from which plain least squares is as good as a ridge."""


def choose(request: Request, *, memory: int) -> tuple[str, str]:
    """The estimator that ``auto`` takes, and why in a sentence."""
    samples, n_units = len(request.samples.rows), request.samples.design.n_units
    times = f"{request.determined:,.0f}" if request.determined >= 10 else f"{request.determined:.1f}"
    counted = f"{samples:,} samples are {times} times the {n_units:,} units"
    enough = request.determined >= ENOUGH
    small = n_units <= MOST_UNITS
    if small and enough and request.ridge is None and bytes_needed("normal_equations", request) <= memory:
        return "normal_equations", f"Least squares by normal equations: {counted}."
    if small and bytes_needed("ridge", request) <= memory:
        few = counted if request.ridge is None else "a ridge was given"
        limit = f", fewer than the {ENOUGH} times that plain least squares needs" if request.ridge is None else ""
        return "ridge", f"Ridge regression: {few}{limit}."
    large = f"products of {n_units:,} units would take too long or more than {_mib(memory)}"
    if bytes_needed("conjugate_gradients", request) <= memory:
        return "conjugate_gradients", f"Conjugate gradients on masks made again from their seeds: {large}; {counted}."
    return (
        "difference_of_means",
        f"Difference of means: not even the vectors of conjugate gradients for {n_units:,} units fit into "
        f"{_mib(memory)}; every other unit's effect is noise to it.",
    )


def instead(request: Request, error: Undetermined, memory: int) -> tuple[str, str]:
    """What ``auto`` takes when least squares turned out not to be determined."""
    name = "ridge" if request.samples.design.n_units <= MOST_UNITS else "conjugate_gradients"
    check_memory(name, request, memory)
    return name, f"A ridge, since least squares is not determined: {error}"


def named(request: Request, estimator: str, memory: int) -> tuple[str, str]:
    """The estimator that was asked for, or that ``auto`` takes."""
    return choose(request, memory=memory) if estimator == "auto" else (estimator, f"{estimator}, as asked.")


def bytes_needed(name: str, request: Request) -> int:
    """Bytes that an estimator takes beside the outputs and a block of masks; see `circuits.coar.estimators`."""
    fits, _, columns = request.samples.layout
    n_units = request.samples.design.n_units
    vectors, products = fits * n_units * columns, fits * n_units**2
    if name == "conjugate_gradients":
        return (48 if request.ridge is not None or request.determined >= ENOUGH else 192) * vectors
    if name == "difference_of_means":
        return 40 * vectors
    return {"normal_equations": 36, "ridge": 42}.get(name, 100) * products + 40 * vectors


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"


def check_memory(name: str, request: Request, memory: int) -> None:
    """Refuse an estimator that does not fit.

    Raises:
        InvalidOption: with what it needs.
    """
    needed = bytes_needed(name, request)
    if needed > memory:
        raise InvalidOption(
            f"expected at least memory={needed:,} bytes ({_mib(needed)}) for {name} on "
            f"{request.samples.design.n_units:,} units; got {memory:,}. Raise memory, or take estimator='auto'."
        )
