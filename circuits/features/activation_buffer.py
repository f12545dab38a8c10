"""A stream of activations that is shuffled across prompts, comes out the same each time, and keeps to a budget.

Prompts are put in a random order and cut into sections whose activations fit the budget. One section at a time is
run through the model and stored, in memory or in one memory-mapped safetensors file, and its tokens are served in a
random order, another one in every epoch. Where everything fits into one section the model runs once for all epochs.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import torch
from jaxtyping import Int
from torch import Tensor

from circuits.features.activations import Prompts, as_prompts, collect, parse_site, prompts_that_fit, width
from graphs.atomic import replacing
from graphs.errors import WriteFailed
from patching.errors import InvalidOption
from patching.lens import LensModel
from patching.masked import DEFAULT_BYTES
from patching.sites import Site
from patching.task import Task

HEADER = 1024
"""Bytes kept for the header of a file."""
_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
Batch = Tensor | tuple[Tensor, Tensor]


class ActivationBuffer:
    """Batches of activations at a site, for `training.train`.

    Iterating gives the first epoch; `from_step` gives the endless stream, from any step on, which is what training
    uses. Both are the same each time, for the same arguments.

    Args:
        model: the model.
        prompts: a task (its clean prompts), token ids (every position) or `Prompts`.
        site: where, e.g. ``mlp_out1``.
        target: a second site, for transcoders: batches are then pairs (site, target), e.g. ``mlp_in1``, ``mlp_out1``.
        batch: tokens in a batch at most. A section is cut into batches of nearly equal size.
        seed: of the order of prompts and tokens.
        budget: bytes that stored activations may take, in memory or on the disk.
        folder: where the file goes; None keeps activations in memory. A file that a process of the same arguments
            left there is used again.
        memory: bytes that forwards may use.

    Attributes:
        n_tokens: tokens in an epoch.
        sections: the prompts of each section.

    Raises:
        InvalidOption: a site that the model does not have, a budget too small for a single prompt.
        WriteFailed: the file cannot be written.

    Cost: one forward of every prompt for each epoch, or once if one section holds everything.

    Example:
        >>> from patching import toy
        >>> buffer = ActivationBuffer(toy.model(), toy.task(), "resid_post0", batch=4)
        >>> [tuple(rows.shape) for rows in buffer]
        [(4, 4), (4, 4)]
    """

    def __init__(
        self,
        model: LensModel,
        prompts: Prompts | Task | Int[Tensor, "example pos"],
        site: str | Site,
        *,
        target: str | Site | None = None,
        batch: int = 1024,
        seed: int = 0,
        budget: int = 2**28,
        folder: str | Path | None = None,
        memory: int = DEFAULT_BYTES,
    ) -> None:
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise InvalidOption(f"expected batch to be a whole number of 1 or more; got {batch!r}.")
        self.model, self.prompts, self.batch, self.seed, self.memory = model, as_prompts(prompts), batch, seed, memory
        self.budget = budget
        self.sites = [str(parse_site(each, model)) for each in ((site,) if target is None else (site, target))]
        self.widths = [width(model, each) for each in self.sites]
        self.n_tokens = self.prompts.n_tokens
        self.sections = self._cut()
        tokens = [int(self.prompts.keep[rows].sum()) for rows in self.sections]
        self._tokens = tokens
        self._batches = [-(-count // batch) for count in tokens]
        self._held: tuple[int, list[Tensor]] | None = None
        self.path: Path | None = None
        if folder is not None:
            try:
                Path(folder).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise WriteFailed(f"cannot make the folder {folder}: {error.strerror}. Choose another.") from error
            self.path = Path(folder) / f"activations-{self.fingerprint()[:16]}.safetensors"

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.widths[0]

    @property
    def d_out(self) -> int:
        """Width of the targets: that of the activations, or of the second site."""
        return self.widths[-1]

    @property
    def token_bytes(self) -> int:
        """Bytes that a token takes."""
        return sum(self.widths) * self.model.dtype.itemsize

    def _cut(self) -> list[Tensor]:
        """Prompts in random order, as many to a section as fit."""
        room = (self.budget - HEADER) // self.token_bytes
        counts = self.prompts.keep.sum(1)
        largest = int(counts.max())
        if largest > room:
            raise InvalidOption(
                f"expected a budget of at least {largest * self.token_bytes + HEADER:,} bytes, what the longest prompt "
                f"takes ({largest} tokens of {self.token_bytes} bytes); got {self.budget:,}."
            )
        generator = torch.Generator().manual_seed(_seed(self.seed, "prompts"))
        order = torch.randperm(len(self.prompts), generator=generator)
        sections, start, held = [], 0, 0
        for place, count in enumerate(counts[order].tolist()):
            if held + count > room:
                sections.append(order[start:place])
                start, held = place, 0
            held += count
        sections.append(order[start:])
        return [rows for rows in sections if bool(self.prompts.keep[rows].any())]

    def __len__(self) -> int:
        """Batches in an epoch."""
        return sum(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        stream = self.from_step(0)
        for _ in range(len(self)):
            yield next(stream)

    def from_step(self, step: int) -> Iterator[Batch]:
        """The batches of ``step`` and later, without end; an epoch is ``len(self)`` steps."""
        epoch, place = divmod(step, len(self))
        while True:
            for section, batches in enumerate(self._batches):
                if place >= batches:
                    place -= batches
                    continue
                yield from self._serve(epoch, section, place)
                place = 0
            epoch += 1

    def _serve(self, epoch: int, section: int, first: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(_seed(self.seed, f"epoch {epoch} section {section}"))
        order = torch.randperm(self._tokens[section], generator=generator)
        for rows in torch.tensor_split(order, self._batches[section])[first:]:
            batch = [rows_of[rows] for rows_of in self._stored(section)]
            yield batch[0] if len(batch) == 1 else (batch[0], batch[1])

    def _stored(self, section: int) -> list[Tensor]:
        """The activations of a section: those at hand, or those of the file, or else new ones."""
        if self._held is None or self._held[0] != section:
            self._held = None  # first, so that the old ones are gone before the new ones come
            self._held = (section, self._in_memory(section) if self.path is None else self._on_disk(section))
        return self._held[1]

    def _in_memory(self, section: int) -> list[Tensor]:
        stored = [torch.empty(self._tokens[section], each, dtype=self.model.dtype) for each in self.widths]
        for first, parts in self._run(section):
            for rows, part in zip(stored, parts, strict=True):
                rows[first : first + len(part)] = part
        return stored

    def _on_disk(self, section: int) -> list[Tensor]:
        from safetensors import SafetensorError, safe_open

        assert self.path is not None
        header = self._header(section)
        whole = HEADER + self._tokens[section] * self.token_bytes
        try:
            with self.path.open("rb") as file:
                known = file.read(HEADER) == header and self.path.stat().st_size == whole
        except OSError:
            known = False
        if not known:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)  # both at once would be over the budget
            with replacing(self.path) as file:
                self._write(file, section, header)
        try:
            with safe_open(self.path, framework="pt") as opened:
                return [opened.get_tensor(name) for name in ("input", "target")[: len(self.sites)]]
        except (SafetensorError, OSError) as error:
            raise WriteFailed(f"cannot read {self.path} back: {error}. Is the disk full?") from error

    def _write(self, file: BinaryIO, section: int, header: bytes) -> None:
        file.write(header)
        starts = self._starts(section)
        for first, parts in self._run(section):
            for start, part in zip(starts, parts, strict=True):
                file.seek(HEADER + start + first * part.shape[1] * part.itemsize)
                file.write(part.contiguous().view(torch.uint8).numpy().tobytes())

    def _starts(self, section: int) -> list[int]:
        sizes = [self._tokens[section] * each * self.model.dtype.itemsize for each in self.widths]
        return [sum(sizes[:place]) for place in range(len(sizes))]

    def _header(self, section: int) -> bytes:
        """Where the tensors stand, as the safetensors format has it, filled up with spaces."""
        count = self._tokens[section]
        names = ("input", "target")
        entries: dict[str, object] = {
            "__metadata__": {"fingerprint": self.fingerprint(), "section": str(section), "sites": " ".join(self.sites)}
        }
        for name, start, each in zip(names, self._starts(section), self.widths, strict=False):
            stop = start + count * each * self.model.dtype.itemsize
            entries[name] = {"dtype": _DTYPES[self.model.dtype], "shape": [count, each], "data_offsets": [start, stop]}
        text = json.dumps(entries).encode()
        return struct.pack("<Q", HEADER - 8) + text.ljust(HEADER - 8)

    def _run(self, section: int) -> Iterator[tuple[int, list[Tensor]]]:
        """Activations of a section a few prompts at a time, with the place of the first."""
        rows = self.sections[section]
        size = prompts_that_fit(self.model, self.prompts.tokens.shape[1], self.memory)
        first = 0
        for start in range(0, len(rows), size):
            chosen = rows[start : start + size]
            if not bool(self.prompts.keep[chosen].any()):
                continue
            found = collect(self.model, self.prompts.subset(chosen), self.sites, memory=self.memory)
            parts = [found[site] for site in self.sites]
            yield first, parts
            first += len(parts[0])

    def fingerprint(self) -> str:
        """A hash of all that decides what is stored: prompts, sites, order, and the model by what it computes."""
        if not hasattr(self, "_fingerprint"):
            digest = hashlib.sha256()
            plain = [self.model.name, str(self.model.dtype), self.sites, self.seed, self.budget]
            digest.update(json.dumps(plain).encode())
            digest.update(self.prompts.tokens.long().numpy().tobytes())
            digest.update(self.prompts.keep.numpy().tobytes())
            first = int(self.prompts.keep.any(1).nonzero()[0])
            probe = collect(self.model, self.prompts.subset(slice(first, first + 1)), self.sites)
            for site in self.sites:
                digest.update(probe[site].contiguous().view(torch.uint8).numpy().tobytes())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def clear(self) -> None:
        """Let go of what is stored, and delete the file."""
        self._held = None
        if self.path is not None:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)

    def __repr__(self) -> str:
        where = "memory" if self.path is None else str(self.path)
        return (
            f"ActivationBuffer({self.model.name}, {' -> '.join(self.sites)}, {self.n_tokens:,} tokens in "
            f"{len(self.sections)} sections, batch={self.batch}, in {where})"
        )


class ShuffledRows:
    """Batches of activations that are at hand, in an order of their own in every epoch.

    What `ActivationBuffer` is to a model and prompts, this is to tensors (from `activations.collect`, for example).

    Args:
        rows: activations [token, d_in].
        target: for transcoders, [token, d_out].
        batch: tokens in a batch; what is left over at the end of an epoch is left out of it.
        seed: of the orders.

    Raises:
        InvalidOption: fewer tokens than a batch, or another number of targets.

    Example:
        >>> batches = ShuffledRows(torch.arange(6.0)[:, None], batch=3)
        >>> sorted(torch.cat(list(batches)).flatten().tolist())
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    """

    def __init__(self, rows: Tensor, target: Tensor | None = None, *, batch: int, seed: int = 0) -> None:
        if isinstance(batch, bool) or not isinstance(batch, int) or not 1 <= batch <= len(rows):
            raise InvalidOption(f"expected a batch of 1 to {len(rows)} tokens, as many as there are; got {batch!r}.")
        if target is not None and len(target) != len(rows):
            raise InvalidOption(f"expected a target for each of {len(rows)} tokens; got {len(target)}.")
        self.rows, self.target, self.batch, self.seed = rows, target, batch, seed

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.rows) // self.batch

    def __iter__(self) -> Iterator[Batch]:
        return islice(self.from_step(0), len(self))

    def from_step(self, step: int) -> Iterator[Batch]:
        """The batches of ``step`` and later, without end."""
        epoch, place = divmod(step, len(self))
        while True:
            generator = torch.Generator().manual_seed(_seed(self.seed, f"rows {epoch}"))
            order = torch.randperm(len(self.rows), generator=generator)
            for number in range(place, len(self)):
                chosen = order[number * self.batch : (number + 1) * self.batch]
                yield self.rows[chosen] if self.target is None else (self.rows[chosen], self.target[chosen])
            epoch, place = epoch + 1, 0


def _seed(seed: int, purpose: str) -> int:
    """A seed of its own for each purpose."""
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:7], "little")
