"""Pairs of clean and corrupt prompts of a program, drawn from all that it has. Nothing here needs torch."""

from __future__ import annotations

import functools
import random
import zlib
from collections.abc import Sequence
from typing import Final

from patching.compiled.language import Program, Prompt
from patching.errors import InvalidOption

SPLITS: Final = ("train", "held-out")
SMALLEST_SPLIT: Final = 50
"""Programs with fewer prompts than this are not split: both splits are all prompts."""

Pair = tuple[Prompt, Prompt]


def is_held_out(prompt: Prompt) -> bool:
    """Whether a prompt belongs to the held-out split: about one in five.

    Example:
        >>> is_held_out(("a", "b")) == is_held_out(("a", "b"))
        True
    """
    return zlib.crc32(" ".join(prompt).encode()) % 5 == 0


def draw(program: Program, *, n: int, seed: int, split: str = "train", length: int | None = None) -> list[Pair]:
    """Draw clean and corrupt prompts, with repetition.

    The corrupt prompt is any other of the same length and split with another answer, or the partner that the program
    names. Prompts whose answer is not unique (a tie of a mean) are left out.

    Args:
        program: whose prompts.
        n: how many pairs.
        seed: of the draw.
        split: `train` or `held-out` (a clean and a corrupt prompt are of one split, so that none is in both).
        length: of all prompts, without `BOS`; any of the program's lengths by default.

    Raises:
        InvalidOption: an option is out of its range.
    """
    if n < 1:
        raise InvalidOption(f"expected n, the number of prompts, to be at least 1; got {n}.")
    if split not in SPLITS:
        raise InvalidOption(f"expected split to be one of {', '.join(SPLITS)}; got {split!r}.")
    if length is not None and length not in program.lengths:
        raise InvalidOption(f"expected a length out of {program.lengths} for {program.name}; got {length}.")
    rng = random.Random(seed)
    lengths = program.lengths if length is None else (length,)
    if program.pairs:
        return [rng.choice(program.pairs) for _ in range(n)]
    partners = _partners(program, split, lengths)
    if not partners:
        raise InvalidOption(f"expected prompts of {program.name} with different answers; {lengths=} has none.")
    pairs: list[Pair] = []
    for _ in range(n):
        clean, others = rng.choice(partners)
        pairs.append((clean, rng.choice(others)))
    return pairs


@functools.lru_cache(maxsize=128)
def _partners(program: Program, split: str, lengths: tuple[int, ...]) -> list[tuple[Prompt, Sequence[Prompt]]]:
    """Every clean prompt of a split with the corrupt ones that it can have."""
    pool = [prompt for length in lengths for prompt in program.prompts(length)]
    if len(pool) >= SMALLEST_SPLIT:
        pool = [prompt for prompt in pool if is_held_out(prompt) == (split == "held-out")]
    answers = {prompt: answer for prompt in pool if (answer := program.answer(prompt)) is not None}
    found: list[tuple[Prompt, Sequence[Prompt]]] = []
    differing: dict[tuple[int, str], list[Prompt]] = {}
    for prompt, answer in answers.items():
        kind = len(prompt), answer
        if kind not in differing:
            differing[kind] = [other for other, said in answers.items() if len(other) == kind[0] and said != answer]
        if differing[kind]:
            found.append((prompt, differing[kind]))
    return found
