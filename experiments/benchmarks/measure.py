"""How a row is measured: medians of CPU and wall time, ours and the floor in turn, and peak memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Row:
    """One line of the table: a ratio, and the bar that it is held to."""

    name: str
    ours: float
    floor: float
    unit: str
    ratio: float
    bar: str
    met: bool
    wall_ratio: float | None = None
    note: str = ""


def medians(ours: Callable[[], Any], floor: Callable[[], Any], *, repeats: int) -> tuple[list[float], list[float]]:
    """Median (CPU, wall) milliseconds of two functions called in turn, after one call each to warm up."""
    ours()
    floor()
    times: tuple[list[tuple[float, float]], ...] = ([], [])
    for _ in range(repeats):
        for function, kept in zip((ours, floor), times, strict=True):
            wall, cpu = time.perf_counter(), time.process_time()
            function()
            kept.append(((time.process_time() - cpu) * 1e3, (time.perf_counter() - wall) * 1e3))
    return tuple([statistics.median(column) for column in zip(*kept, strict=True)] for kept in times)  # type: ignore[return-value]


def at_most(
    name: str, ours: Callable[[], Any], floor: Callable[[], Any], *, bar: float, repeats: int, note: str
) -> Row:
    """A row whose cost may be at most ``bar`` times the floor's."""
    mine, theirs = medians(ours, floor, repeats=repeats)
    ratio = mine[0] / theirs[0]
    return Row(name, mine[0], theirs[0], "ms CPU", ratio, f"≤ {bar:g}×", ratio <= bar, mine[1] / theirs[1], note)


def peak_bytes(function: Callable[[], Any]) -> int:
    """Highest resident memory while a function runs, above that before it. Linux only."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # or memory freed before, but kept by the process, would hide growth
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _status("VmRSS")
    kept = function()
    peak = _status("VmHWM") - before
    del kept
    return peak


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in /proc/self/status")


def table(document: dict[str, Any]) -> str:
    """The results as a Markdown table, as the README shows it."""
    where = document["machine"]
    lines = [
        f"Measured on {where['cpu']} ({where['cores']} cores, {where['threads']} thread used), "
        f"Python {where['python']}, torch {where['torch']}.",
        "",
        "| what | ratio | bar | ours | against |",
        "|---|---|---|---|---|",
    ]
    for row in document["rows"]:
        mark = "" if row["met"] else " (missed)"
        figures = (f"{row[side]:,.1f} {row['unit']}" for side in ("ours", "floor"))
        lines.append(f"| {row['name']} | **{row['ratio']:.2f}×** | {row['bar']}{mark} | {' | '.join(figures)} |")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
