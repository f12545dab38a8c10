"""What a search decides, one step at a time, and what it needs to go on from there in the same bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from patching.errors import InvalidOption


@dataclass(frozen=True)
class Decision:
    """One step of a search.

    Attributes:
        name: what was decided on, as `candidates.Candidate.name`: an edge's name, or a node's; ``@7`` at one position.
        kept: whether it stays.
        delta: rise of the damage without it; None where its receiver was dead and nothing was evaluated.
        footing: on the first decision of what is read together, all else that the search stood on there; a search
            that goes on begins again at the last of these, so that it ends in the same bits.
    """

    name: str
    kept: bool
    delta: float | None
    footing: Footing | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Footing:
    """What the arithmetic of a search depends on beside its decisions so far.

    Attributes:
        stretch: how long chains went of late without a surprise.
        evaluated: how many removals were evaluated.
        rounding: the largest difference seen between batched and canonical arithmetic.
        misses: how often estimates and habits were wrong of late.
        habit: how often edges of each source stayed of late.
    """

    stretch: float
    evaluated: int
    rounding: float
    misses: tuple[float, ...]
    habit: tuple[float, ...]

    def to_list(self) -> list[float]:
        """As plain numbers, exact in JSON."""
        return [self.stretch, self.evaluated, self.rounding, *self.misses, *self.habit]

    @staticmethod
    def from_list(numbers: Sequence[float]) -> Footing:
        """The inverse of `to_list`.

        Raises:
            InvalidOption: there are too few numbers.

        Example:
            >>> Footing.from_list([2.0, 7, 0.0, 0.1, 0.2, 0.5]).habit
            (0.5,)
        """
        if len(numbers) < 5:
            raise InvalidOption(f"expected at least 5 numbers of a footing; got {len(numbers)}.")
        stretch, evaluated, rounding, *rest = numbers
        return Footing(stretch, int(evaluated), rounding, tuple(rest[:2]), tuple(rest[2:]))
