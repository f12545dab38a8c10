"""How much is computed at once, and what happens where memory runs short: chunks are halved, and the work goes on.

Sizes come from a byte budget, the argument ``memory=`` of every run. It is a constant by default, and not a share of
what happens to be free: the shape of a batch decides how sums are rounded, and results with the same settings must be
the same bytes on every machine and in every process. Whoever wants larger chunks gives a larger budget, for example
``memory=free_memory(model.device) // 2``.

A budget is an estimate, and other programs use memory too. So every loop of the engine asks `Chunks` to do a chunk.
If that runs out of memory, what it had is let go, the chunk is done in halves, and so are those after it; this is
said once, as a `LessMemory` warning. When a chunk of one does not fit, `OutOfMemory` says what can be done.
"""

from __future__ import annotations

import functools
import gc
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, runtime_checkable

import torch

from patching.errors import InvalidOption, OutOfMemory

Value = TypeVar("Value")
Options = ParamSpec("Options")

SIGNS = (
    "out of memory",  # CUDA, MPS
    "can't allocate memory",  # the CPU's allocator
    "not enough memory",  # the same on Windows
    "could not create a memory object",  # oneDNN
    "ALLOC_FAILED",  # cuBLAS, cuDNN
    "std::bad_alloc",
)
"""What torch says when memory runs out, in errors that have no type of their own."""

ADVICE = {
    "masks": "Make the run with a smaller memory=, so that its prompts go in smaller batches, or use",
    "patches": "Make the run with a smaller memory=, so that its prompts go in smaller batches, or use",
    "prompts": "Use",
}


class LessMemory(UserWarning):
    """Memory ran short, and work goes on in smaller chunks."""


class Chunks:
    """The chunks of one kind of work, whose size is halved where memory is short.

    Args:
        what: what a chunk consists of, as a plural: masks, patches, prompts.
        device: where the work is done, for messages.

    Attributes:
        limit: how many fitted at most when memory ran short; None as long as it did not.
    """

    def __init__(self, what: str, device: torch.device | str = "cpu") -> None:
        self.what, self.device = what, torch.device(device)
        self.limit: int | None = None
        self._said = False

    def within(self, size: int) -> int:
        """A size, but no more than what is known to fit."""
        return size if self.limit is None else min(size, self.limit)

    def fit(self, size: int, work: Callable[[int], Value]) -> Value:
        """``work(size)``, or ``work`` of the largest of its halves that fits.

        Args:
            size: how many there would be at once.
            work: does the work with a size; called again, from the start, with half of it when memory runs out.

        Raises:
            OutOfMemory: a chunk of one does not fit.
        """
        return self._fitted(size, work)[1]

    def over(self, count: int, size: int, work: Callable[[slice], Value]) -> Iterator[tuple[slice, Value]]:
        """Chunk after chunk, which of ``count`` things it holds and what ``work`` makes of them.

        Args:
            count: how many things there are.
            size: how many to do at once.
            work: does a slice of them.

        Raises:
            OutOfMemory: a chunk of one does not fit.
        """
        low = 0
        while low < count:
            start = low

            def done(step: int, start: int = start) -> Value:
                return work(slice(start, start + step))

            step, value = self._fitted(min(size, count - low), done)
            low += step
            yield slice(start, low), value

    def _fitted(self, size: int, work: Callable[[int], Value]) -> tuple[int, Value]:
        asked, now = size, max(1, self.within(size))
        while True:
            value, refusal = attempt(functools.partial(work, now))
            if refusal is None:
                break
            if now == 1:
                raise OutOfMemory(self._too_much(refusal))
            now //= 2
            self.limit = now
        self._say(asked, now)
        return now, value  # type: ignore[return-value]

    def _say(self, asked: int, now: int) -> None:
        if self.limit is None or self._said:
            return
        self._said = True
        warnings.warn(
            f"memory ran short with {asked:,} {self.what} at a time; going on with {now:,}. Results are the same but "
            "for rounding. A smaller memory= avoids the attempt.",
            LessMemory,
            stacklevel=_outside(),
        )

    def _too_much(self, refusal: str) -> str:
        free = free_memory(self.device)
        left = "" if free is None else f", which has {free >> 20:,} MiB free"
        return (
            f"expected one of the {self.what} at a time to fit into the memory of {self.device}{left}; it does not "
            f"({refusal}). {ADVICE.get(self.what, 'Use')} fewer or shorter prompts, another device or a smaller dtype."
        )


def attempt(work: Callable[[], Value]) -> tuple[Value | None, str | None]:
    """What work returns; or None and what was said when memory ran out, with all that the work held let go."""
    try:
        return work(), None
    except (MemoryError, RuntimeError, OutOfMemory) as error:
        if not is_out_of_memory(error):
            raise
        refusal = (str(error).strip() or type(error).__name__).splitlines()[0]
    gc.collect()  # the error, its traceback and the tensors in it are gone by now, but for cycles
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    return None, refusal


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shapes do not match"))
        (True, False)
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError | OutOfMemory):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


@runtime_checkable
class Prompted(Protocol):
    """A run whose prompts go in batches."""

    @property
    def prompt_chunks(self) -> Chunks:
        """How large these may be."""
        ...

    @property
    def largest_batch(self) -> int:
        """How many prompts the largest has."""
        ...

    def in_batches_of(self, size: int) -> Any:
        """The same run with batches of at most so many prompts."""
        ...


Run = TypeVar("Run", bound=Prompted)


def with_fewer_prompts(
    function: Callable[Concatenate[Run, Options], Value],
) -> Callable[Concatenate[Run, Options], Value]:
    """Let a function of a run, which goes through its batches, work on smaller ones where memory is short.

    For what takes gradients, which holds a whole forward of a batch. The function starts again then; it must not
    change anything but what it returns.
    """

    @functools.wraps(function)
    def halving(run: Run, /, *args: Options.args, **options: Options.kwargs) -> Value:
        def work(size: int) -> Value:
            return function(run if size >= run.largest_batch else run.in_batches_of(size), *args, **options)

        return run.prompt_chunks.fit(run.largest_batch, work)

    return halving


def check_memory(memory: object) -> None:
    """Refuse a budget that is no number of bytes.

    Raises:
        InvalidOption: it is not an integer of 1 or more.
    """
    if isinstance(memory, bool) or not isinstance(memory, int) or memory < 1:
        raise InvalidOption(f"expected memory to be a number of bytes, an integer of 1 or more; got {memory!r}.")


def free_memory(device: torch.device | str = "cpu") -> int | None:
    """Bytes that are free on a device; None where that is not known.

    On a CPU what the system could give, within the limits of the process and its control groups (Linux alone).

    Example:
        >>> free = free_memory("cpu")
        >>> free is None or free > 0
        True
    """
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    known = [each for each in (_available(), _in_process(), *_in_groups()) if each is not None]
    return max(0, min(known)) if known else None


def _available() -> int | None:
    """What the system could give without swapping."""
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return None


def _in_process() -> int | None:
    """What is left of the address space that the process may use."""
    try:
        import resource
    except ImportError:
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    used = [int(line.split()[1]) << 10 for line in _lines("/proc/self/status") if line.startswith("VmSize:")]
    return None if limit == resource.RLIM_INFINITY or not used else limit - used[0]


def _in_groups(root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """What is left of the limits of the control groups that the process is in: version 2, then version 1."""
    own = [line.split(":", 2) for line in _lines("/proc/self/cgroup") if line.count(":") >= 2]
    kinds = [(root, path, "memory.max", "memory.current") for _number, names, path in own if not names]
    kinds += [
        (root / "memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes")
        for _number, names, path in own
        if "memory" in names.split(",")
    ]
    for base, path, limit, usage in kinds:
        folder = base / path.lstrip("/")
        for group in (folder, *folder.parents):
            sizes = [_number(group / name) for name in (limit, usage)]
            if sizes[0] is not None and sizes[1] is not None:
                yield sizes[0] - sizes[1]
            if group == base:
                break


def _number(path: Path) -> int | None:
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdigit() else None


def _lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def _outside() -> int:
    """How many frames up the first one stands that is not of this package, for a warning that points to it."""
    frame, depth = sys._getframe(1), 0
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("patching", "jaxtyping"):
        frame, depth = frame.f_back, depth + 1
    return depth
