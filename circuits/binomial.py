"""The binomial distribution: tails, and the exact interval of a chance."""

from __future__ import annotations

import math
from collections.abc import Callable

_EXACT = 1000  # up to so many trials, the binomial coefficient fits a float


def binomial(successes: int, trials: int, chance: float) -> float:
    """The probability of a number of successes.

    Example:
        >>> round(binomial(2, 4, 0.5), 12)
        0.375
    """
    if chance in (0.0, 1.0):
        return float(successes == round(trials * chance))
    if trials <= _EXACT:
        return math.comb(trials, successes) * chance**successes * (1 - chance) ** (trials - successes)
    log = math.lgamma(trials + 1) - math.lgamma(successes + 1) - math.lgamma(trials - successes + 1)
    return math.exp(log + successes * math.log(chance) + (trials - successes) * math.log1p(-chance))


def at_most(successes: int, trials: int, chance: float) -> float:
    """The probability of so many successes or fewer.

    Example:
        >>> round(at_most(1, 4, 0.5), 12)
        0.3125
    """
    if successes >= trials:
        return 1.0
    return min(1.0, math.fsum(binomial(number, trials, chance) for number in range(successes + 1)))


def at_least(successes: int, trials: int, chance: float) -> float:
    """The probability of so many successes or more.

    Example:
        >>> round(at_least(3, 4, 0.5), 12)
        0.3125
    """
    if successes <= 0:
        return 1.0
    return min(1.0, math.fsum(binomial(number, trials, chance) for number in range(successes, trials + 1)))


def clopper_pearson(successes: int, trials: int, *, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a binomial chance, which holds it at least as often as ``level`` says.

    Its ends are the chances at which so many successes or more, or so many or fewer, are as rare as
    ``(1 - level) / 2``; found by bisection.

    Example:
        >>> [round(end, 4) for end in clopper_pearson(8, 10)]
        [0.4439, 0.9748]
    """
    tail = (1 - level) / 2
    low = _solve(lambda chance: at_least(successes, trials, chance) >= tail) if successes else 0.0
    high = _solve(lambda chance: at_most(successes, trials, chance) < tail) if successes < trials else 1.0
    return low, high


def _solve(reached: Callable[[float], bool]) -> float:
    """The smallest chance at which something holds that goes on to hold above it."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high
