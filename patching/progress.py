"""How long work reports on itself: a callable, so that the library neither prints nor draws."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with how many steps are done and how many there are in all."""


def silent(done: int, total: int) -> None:
    """Report nothing."""
