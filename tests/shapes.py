"""Checking of the shapes that annotations give: of whose functions, and in which tests.

A check of every call makes a test two to three times as slow. So by default one test in eight, by its name, runs with
checks: every function that several tests call is checked by some. `--all-shapes` checks in all of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

from beartype import beartype


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """What jaxtyping checks a function with; functions within functions are made anew in every call, and go without."""
    return function if "<locals>" in function.__qualname__ else beartype(function)


def are_checked(test: str) -> bool:
    """Whether shapes are checked in the test of that id without `--all-shapes`.

    Example:
        >>> sum(are_checked(f"tests/test_it.py::test_{number}") for number in range(1000))
        126
    """
    return zlib.crc32(test.encode()) % 8 == 0
