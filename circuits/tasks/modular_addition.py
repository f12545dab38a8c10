"""Addition modulo a prime: "17 + 44 =" -> " 8", since 61 - 53 = 8.

The answer is (a + b) mod 53. All pairs of operands are 2,809 prompts, so a model can learn them by heart; one that
answers pairs it has never seen, in neither order, must add.

Corruptions. `b` draws another second operand, `a` another first one; the rest of the prompt stays, the answer becomes
another, and the wrong answer is what is right after the corrupt prompt.

Splits. A pair is held out when the CRC-32 of "a b" (the smaller first) is divisible by four: about one in four,
in whatever order it is written. `zoo:modular_addition` has seen no held-out pair.

Source: the task of Power et al. 2022, arXiv 2201.02177, and Nanda et al. 2023, arXiv 2301.05217 (p = 113), with a
smaller prime.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from circuits.tasks.single_tokens import require_one_token
from circuits.tasks.text import HasTokenizer, Prompt, Split, chosen_split, generators, known, to_task

if TYPE_CHECKING:
    from patching.task import Task

PRIME = 53
"""The modulus."""

TEMPLATES: Mapping[str, str] = {"plus": "{a} + {b} ="}
"""The one way to ask."""

WORDS: tuple[str, ...] = tuple(map(str, range(PRIME)))
"""Every number; each must be one token."""

SPLITS: Mapping[str, Split] = {
    "train": Split(False, tuple(TEMPLATES)),
    "held-out": Split(True, tuple(TEMPLATES)),
}
"""What each split draws from: whether its pairs are the held-out ones, and its templates."""

CORRUPTIONS: Mapping[str, str] = {
    "b": "another second operand",
    "a": "another first operand",
}
"""What each corruption changes."""


def is_held_out_pair(a: int, b: int) -> bool:
    """Tell whether two operands form a held-out pair; the order does not matter.

    Example:
        >>> is_held_out_pair(3, 50) == is_held_out_pair(50, 3)
        True
    """
    return zlib.crc32(f"{min(a, b)} {max(a, b)}".encode()) % 4 == 0


@functools.cache
def pairs(*, held_out: bool) -> tuple[tuple[int, int], ...]:
    """All ordered pairs of operands that are held out, or all the others."""
    return tuple((a, b) for a in range(PRIME) for b in range(PRIME) if is_held_out_pair(a, b) == held_out)


def generate(
    n: int, *, seed: int, split: str = "held-out", corruption: str = "b", template: str | None = None
) -> list[Prompt]:
    """Draw prompts as text; needs no model and no tokenizer.

    Args:
        n: How many, drawn independently of one another.
        seed: Seed of the draw; another corruption leaves the clean prompts as they are.
        split: A key of `SPLITS`.
        corruption: A key of `CORRUPTIONS`. The operand that replaces another is any number.
        template: A key of `TEMPLATES`; there is one.

    Returns:
        `n` prompts.

    Raises:
        UnknownChoice: An option has an unknown value; the message lists the known ones.

    Example:
        >>> prompt = generate(1, seed=0)[0]
        >>> a, b = int(prompt.clean.split()[0]), int(prompt.clean.split()[2])
        >>> prompt.answers == (f" {(a + b) % 53}",)
        True
    """
    chosen = chosen_split(n, split=split, template=template, splits=SPLITS, templates=TEMPLATES)
    known("corruption", corruption, CORRUPTIONS)
    drawn, others = pairs(held_out=chosen.held_out), generators(seed)
    prompts = []
    for _ in range(n):
        a, b = others[0].choice(drawn)
        shift = others[1].randrange(1, PRIME)
        a_corrupt, b_corrupt = (a, (b + shift) % PRIME) if corruption == "b" else ((a + shift) % PRIME, b)
        name = others[0].choice(chosen.templates)
        prompts.append(
            Prompt(
                clean=TEMPLATES[name].format(a=a, b=b),
                corrupt=TEMPLATES[name].format(a=a_corrupt, b=b_corrupt),
                answers=(f" {(a + b) % PRIME}",),
                wrong_answers=(f" {(a_corrupt + b_corrupt) % PRIME}",),
                template=name,
            )
        )
    return prompts


def make(
    model: HasTokenizer,
    *,
    n: int = 64,
    seed: int = 0,
    split: str = "held-out",
    corruption: str = "b",
    template: str | None = None,
) -> Task:
    """Build the task for a model: the logit difference between the sum and the sum of the corrupt prompt.

    Args:
        model: Anything with a `tokenizer`, such as `zoo:modular_addition`.
        n: How many prompts.
        seed: Seed of the draw.
        split: `"train"` or `"held-out"`.
        corruption: `"b"` (another second operand) or `"a"` (another first one).
        template: A key of `TEMPLATES`.

    Returns:
        A `Task` of `n` prompts of equal length.

    Raises:
        UnknownChoice: An option has an unknown value.
        NotOneToken: Some numbers are not one token of this tokenizer; the message names them.

    Source:
        Nanda et al. 2023, arXiv 2301.05217, with p = 53 and words for tokens.

    Example:
        >>> model = LensModel.load("zoo:modular_addition")  # doctest: +SKIP
        >>> task = make(model, n=64, seed=0)  # doctest: +SKIP
    """
    prompts = generate(n, seed=seed, split=split, corruption=corruption, template=template)
    require_one_token(
        model.tokenizer, WORDS, remedy="Take a model whose tokenizer has these numbers, such as zoo:modular_addition."
    )
    return to_task(model, prompts, name="modular_addition")
