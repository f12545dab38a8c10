"""Random ablations as a design: a few numbers from which any process makes any row of the masks again.

Masks are seeds, not files. Rows come in fixed blocks, and block b of a design is drawn from its own generator::

    key       = SHA-256 of "wiretrace-masks/1 {kind} units={n} keep={float.hex} seed={s} prompts={p}"
    generator = PCG64(SeedSequence(key, spawn_key=(b,)))

so that rows 5,000 to 5,010 cost one block and not 5,000 rows, and so that two designs which differ in anything but
their number of samples share nothing. NumPy's bit generators are used, through their raw 64-bit words alone, because
NumPy promises that those words never change between versions and machines, because they take a seed of any length
(torch's CPU generator keeps 32 bits of its seed, so that two blocks can coincide), and because they are several times
faster than drawing one float for every entry. NumPy makes no such promise of its distributions, which are not used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from patching.errors import InvalidOption

VERSION = "wiretrace-masks/1"
"""Names the rule by which seeds become masks; a change of the rule is a change of this name."""

KINDS = ("bernoulli", "subset")

BLOCK_ROWS = 256
"""Rows of a block, unless they are so wide that fewer fill it."""

BLOCK_ENTRIES = 1 << 21
"""Entries of a block: few enough that a block of float64 (16 MiB) stays near the processor."""


@dataclass(frozen=True)
class MaskDesign:
    """Which units are kept in each of many samples; mask 1 = kept.

    ``bernoulli``: every unit of every sample is kept with probability ``keep``, independently. ``subset``: exactly
    ``round((1 - keep) * n_units)`` units are ablated in every sample, each such set as likely as another. The number
    of units kept is then constant, so that with an intercept the masks have rank ``n_units`` of ``n_units + 1``:
    weights are identified up to a shift common to all units. Prefer ``bernoulli``.

    A design of more samples begins with the rows of the same design with fewer.

    Attributes:
        n_units: units, at least 1 (2 for ``subset``).
        samples: rows, at least 1.
        keep: probability that a unit is kept, strictly between 0 and 1. The paper's alpha is ``1 - keep``, and it is
            part of what is estimated: with interactions C the weight of unit i is ``w_i + keep * sum_j C_ij``, where
            C_ij is what i and j add when both are kept.
        seed: any integer from 0.
        kind: ``bernoulli`` or ``subset``.
        prompts: None for one mask for all prompts; a number for a mask of its own for each of so many prompts.

    Raises:
        InvalidOption: with what was expected.

    Source: Shah, Ilyas and Madry, arXiv 2404.11534, whose text draws subsets and whose code draws Bernoulli masks.

    Example:
        >>> design = MaskDesign(n_units=6, samples=1000, keep=0.75, seed=0)
        >>> design.rows(998, 1000).int().tolist()
        [[0, 1, 0, 1, 1, 1], [1, 1, 1, 0, 1, 1]]
        >>> bool((design.rows(0, 1000)[998:] == design.rows(998, 1000)).all())
        True
    """

    n_units: int
    samples: int
    keep: float
    seed: int
    kind: str = "bernoulli"
    prompts: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidOption(f"expected a kind of masks among {', '.join(KINDS)}; got {self.kind!r}.")
        for name, least in (("n_units", 1), ("samples", 1), ("seed", 0), ("prompts", 1)):
            value = getattr(self, name)
            if name == "prompts" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InvalidOption(f"expected {name} to be an integer of {least} or more; got {value!r}.")
        self._check_keep()

    def _check_keep(self) -> None:
        if isinstance(self.keep, bool) or not isinstance(self.keep, int | float) or not 0 < self.keep < 1:
            raise InvalidOption(
                f"expected keep strictly between 0 and 1 (alpha = 1 - keep too); got {self.keep!r}. With all units "
                "kept or all ablated every sample is the same run, and no weight is determined; try keep=0.9."
            )
        if self.kind == "subset" and not 0 < self.n_ablated < self.n_units:
            raise InvalidOption(
                f"expected subsets that ablate from 1 to n_units - 1 units; keep={self.keep} of {self.n_units} units "
                f"ablates {self.n_ablated}. Change keep, or use kind='bernoulli'."
            )

    # --- what a design is ---------------------------------------------------------------------------------------------

    @property
    def n_ablated(self) -> int:
        """Units ablated in each sample of a ``subset`` design (on average, in a ``bernoulli`` one), rounded."""
        return round((1 - self.keep) * self.n_units)

    @property
    def kept_share(self) -> float:
        """The probability that a unit is kept: ``keep``, or for subsets the whole number of units next to it."""
        return self.keep if self.kind == "bernoulli" else 1 - self.n_ablated / self.n_units

    @property
    def row_shape(self) -> tuple[int, ...]:
        """``(unit,)``, or ``(example, unit)`` with a mask of its own for each prompt."""
        return (self.n_units,) if self.prompts is None else (self.prompts, self.n_units)

    @property
    def bytes_per_row(self) -> int:
        """Bytes of one row of `rows` (one for each entry)."""
        return self.n_units * (self.prompts or 1)

    @property
    def block_rows(self) -> int:
        """Rows made together. Ranges that start and stop at multiples of it waste none; shards should."""
        return max(1, min(BLOCK_ROWS, BLOCK_ENTRIES // self.bytes_per_row))

    def to_dict(self) -> dict[str, Any]:
        """The fields, and the rule's version, for JSON."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> MaskDesign:
        """What `to_dict` wrote.

        Raises:
            InvalidOption: another version's masks, or fields that make no design.
        """
        fields = dict(document)
        version = fields.pop("version", None)
        if version != VERSION:
            raise InvalidOption(f"expected masks made by {VERSION}; got {version!r}, which this version cannot remake.")
        try:
            return cls(**fields)
        except TypeError as error:
            raise InvalidOption(f"expected the fields of a MaskDesign; {error}.") from error

    def digest(self) -> str:
        """Sixteen hexadecimal digits that name the design: equal exactly when all rows are."""
        return hashlib.sha256(f"{self._name} samples={self.samples}".encode()).hexdigest()[:16]

    @cached_property
    def _name(self) -> str:
        """Everything but the number of samples, so that more samples begin with the same rows."""
        keep = float(self.keep).hex()
        return f"{VERSION} {self.kind} units={self.n_units} keep={keep} seed={self.seed} prompts={self.prompts}"

    # --- other designs ------------------------------------------------------------------------------------------------

    def with_seed(self, seed: int) -> MaskDesign:
        """The same with other rows, independent of these: held-out masks."""
        return replace(self, seed=seed)

    def with_keep(self, keep: float) -> MaskDesign:
        """The same with another probability; the rows are independent of these, although the seed is the same."""
        return replace(self, keep=keep)

    def with_samples(self, samples: int) -> MaskDesign:
        """The same with more or fewer samples; the shorter is the beginning of the longer."""
        return replace(self, samples=samples)

    # --- rows ---------------------------------------------------------------------------------------------------------

    def rows(self, start: int = 0, stop: int | None = None) -> Bool[Tensor, "*row unit"]:
        """Masks of the samples from ``start`` to before ``stop`` (to the last), whoever asks and however it is cut.

        Args:
            start: first sample.
            stop: one more than the last; None for all that follow.

        Returns:
            ``[row, unit]``, or ``[row, example, unit]`` with ``prompts``; True = kept.

        Raises:
            InvalidOption: the range is not within the samples.
        """
        stop = self.samples if stop is None else stop
        if not 0 <= start <= stop <= self.samples:
            raise InvalidOption(f"expected 0 <= start <= stop <= {self.samples:,} samples; got {start=} and {stop=}.")
        found = torch.empty((stop - start, *self.row_shape), dtype=torch.bool)
        size = self.block_rows
        for number in range(start // size, -(-stop // size) if stop > start else 0):
            first, last = max(start, number * size), min(stop, (number + 1) * size)
            found[first - start : last - start] = self.block(number)[first - number * size : last - number * size]
        return found

    def block(self, number: int) -> Bool[Tensor, "*row unit"]:
        """All `block_rows` masks of one block, as from a design without end."""
        key = int.from_bytes(hashlib.sha256(self._name.encode()).digest(), "little")
        bits = np.random.PCG64(np.random.SeedSequence(key, spawn_key=(number,)))
        draw = _bernoulli if self.kind == "bernoulli" else _subsets
        masks = draw(self, bits, self.block_rows * (self.prompts or 1))
        return torch.from_numpy(masks).view(self.block_rows, *self.row_shape)

    def blocks(
        self, rows: Int[Tensor, " row"] | None = None
    ) -> Iterator[tuple[Int[Tensor, " row"], Bool[Tensor, "*row unit"]]]:
        """The samples in order, block by block, with their numbers; only ``rows`` (ascending), if given.

        Blocks begin at multiples of `block_rows` whatever is asked for, so that sums over them do not depend on how the
        samples were cut. At most one block is held.
        """
        size = self.block_rows
        chosen = torch.arange(self.samples) if rows is None else rows
        numbers, counts = torch.unique_consecutive(chosen // size, return_counts=True)
        for number, part in zip(numbers.tolist(), chosen.split(counts.tolist()), strict=True):
            masks = self.block(number)
            within = part - number * size
            yield part, masks[: len(part)] if bool((within == torch.arange(len(part))).all()) else masks[within]


def _words(bits: np.random.PCG64, count: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Raw words, low byte first on every machine."""
    return np.asarray(bits.random_raw(count)).astype("<u8", copy=False)


def _bernoulli(design: MaskDesign, bits: np.random.PCG64, rows: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Entries that are True with probability ``keep``, from one random byte each.

    With ``256 * keep = whole + rest``, a byte below ``whole`` is kept, a byte above it is not, and the one in 256 that
    equals it is kept with probability ``rest``, by 53 more bits. So the probability is ``keep`` to 2**-61.
    """
    count = rows * design.n_units
    whole, rest = divmod(256 * float(design.keep), 1)
    lanes = _words(bits, -(-count // 8)).view(np.uint8)[:count]
    kept = lanes < int(whole)
    ties = np.flatnonzero(lanes == int(whole))
    kept[ties] = (_words(bits, len(ties)) >> np.uint64(11)) * 2.0**-53 < rest
    return kept


def _subsets(design: MaskDesign, bits: np.random.PCG64, rows: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Rows in which the units with the ``n_ablated`` smallest of random 64-bit keys are False; a few rows at a time."""
    kept = np.ones((rows, design.n_units), dtype=np.bool_)
    step = max(1, BLOCK_ENTRIES // 8 // design.n_units)
    for start in range(0, rows, step):
        part = kept[start : start + step]
        keys = _words(bits, part.size).reshape(part.shape)
        smallest = np.argpartition(keys, design.n_ablated - 1, axis=1)[:, : design.n_ablated]
        np.put_along_axis(part, smallest, False, axis=1)
    return kept
