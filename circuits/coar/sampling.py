"""Random ablations of a model, in shards that any worker can take, lose and redo.

A `Sampling` says which masks are drawn and how the runs are cut; `shard` is a plain function of a run, a sampling and a
number, and `merge` puts shards together. Masks come from seeds, and every run of a shard is computed in the same pieces
wherever it runs, so that any partition of the shards among workers merges to the same bits as one process that does
them all (with one version of torch and one number of threads).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.coar.masks import MaskDesign
from graphs.atomic import write_bytes
from patching.component_run import ComponentRun
from patching.errors import InvalidOption, NotFinite
from patching.progress import Progress, silent
from patching.tensor_bytes import to_bytes

SCHEMA = "wiretrace-coar-shard/1"
SHARD_ROWS = 256
_NAME = re.compile(r"shard-([0-9]{6})\.safetensors")


@dataclass(frozen=True)
class Sampling:
    """What is drawn of which run, and how it is cut.

    Attributes:
        design: of the masks.
        subject: what is ablated, as plain data: `subject_of` a run.
        shard_rows: masks of one shard; a piece of work that is lost or kept as a whole.
        piece_rows: masks that are run at once. Floating-point sums depend on it, so it is part of what is sampled.

    Example:
        >>> from patching import toy
        >>> run = ComponentRun(toy.model(), toy.task())
        >>> sampling = Sampling.of(run, MaskDesign(n_units=2, samples=600, keep=0.5, seed=0))
        >>> sampling.n_shards, sampling.span(2)
        (3, (512, 600))
    """

    design: MaskDesign
    subject: Mapping[str, Any] = field(default_factory=dict)
    shard_rows: int = SHARD_ROWS
    piece_rows: int = SHARD_ROWS

    def __post_init__(self) -> None:
        for name in ("shard_rows", "piece_rows"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidOption(f"expected {name} to be an integer of 1 or more; got {value!r}.")

    @classmethod
    def of(cls, run: ComponentRun, design: MaskDesign, *, shard_rows: int = SHARD_ROWS) -> Sampling:
        """The sampling of a run, in pieces that fit its byte budget."""
        return cls(design, subject_of(run), shard_rows, max(1, min(shard_rows, run.samples_that_fit)))

    @property
    def n_shards(self) -> int:
        """How many shards there are."""
        return math.ceil(self.design.samples / self.shard_rows)

    def span(self, index: int) -> tuple[int, int]:
        """First sample of a shard, and one more than its last.

        Raises:
            InvalidOption: there is no such shard.
        """
        if not 0 <= index < self.n_shards:
            raise InvalidOption(f"expected a shard from 0 to {self.n_shards - 1}; got {index}.")
        return index * self.shard_rows, min(self.design.samples, (index + 1) * self.shard_rows)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "schema": SCHEMA,
            "design": self.design.to_dict(),
            "subject": dict(self.subject),
            "shard_rows": self.shard_rows,
            "piece_rows": self.piece_rows,
        }

    def digest(self) -> str:
        """Sixteen hexadecimal digits: equal exactly when everything is, the number of samples left aside.

        More samples begin with the same ones, so shards of fewer can be kept (all but an unfinished last one).
        """
        document = self.to_dict()
        document["design"] = self.design.with_samples(1).to_dict()
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Shard:
    """The metric of every prompt under some of the masks.

    Attributes:
        index: which shard of its sampling.
        start: its first sample.
        outputs: ``[row, example]``, float64.
        digest: of its sampling.
    """

    index: int
    start: int
    outputs: Float[Tensor, "row example"]
    digest: str

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``shard-NNNNNN.safetensors``, whole or not at all."""
        told = {"schema": SCHEMA, "index": str(self.index), "start": str(self.start), "digest": self.digest}
        data = to_bytes({"outputs": self.outputs.contiguous()}, {**told, "sha256": _checksum(self.outputs)})
        path = Path(folder) / f"shard-{self.index:06d}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, data)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Shard:
        """Read what `save` wrote.

        Raises:
            InvalidOption: the file is truncated, damaged or something else; computing the shard again is the remedy.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                told, outputs = file.metadata() or {}, file.get_tensor("outputs")
            if told.get("schema") != SCHEMA:
                raise ValueError(f"its schema is {told.get('schema')!r}")
            if outputs.dtype != torch.float64 or outputs.ndim != 2 or _checksum(outputs) != told["sha256"]:
                raise ValueError("its outputs are not what was written")
            return cls(int(told["index"]), int(told["start"]), outputs, told["digest"])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise InvalidOption(
                f"expected a shard of schema {SCHEMA}; {Path(path).name} cannot be read as one: {error}. Remove it and "
                "it is computed again."
            ) from error


def subject_of(run: ComponentRun) -> dict[str, Any]:
    """What a run ablates, as plain data with fingerprints: equal exactly for runs that give the same outputs."""
    told = run.provenance("coar", {})
    for name in ("method", "options", "direction", "sign"):
        del told[name]
    task = run.task
    tokens = [task.clean, task.corrupt, task.answers, task.wrong_answers, task.positions]
    told["prompts_sha256"] = hashlib.sha256(b"".join(_raw(one) for one in tokens)).hexdigest()[:16]
    told["components_sha256"] = hashlib.sha256(" ".join(map(str, run.units)).encode()).hexdigest()[:16]
    told["weights_sha256"] = fingerprint(run)
    return told


def fingerprint(run: ComponentRun) -> str:
    """Of the model's weights: a model that was edited or trained on gives other outputs under the same name."""
    digest = hashlib.sha256()
    for block in run.model.blocks:
        weights = [*block.attention.weights.values(), block.attention.out]
        if block.mlp is not None:
            weights += [block.mlp.w_in, block.mlp.w_out]
        for weight in weights:
            digest.update(_raw(weight.detach()))
    digest.update(_raw(run.model.readout.unembed.detach()))
    return digest.hexdigest()[:16]


def shard(run: ComponentRun, sampling: Sampling, index: int) -> Shard:
    """Run the masks of one shard.

    Cost: one forward per mask and prompt (see `ComponentRun`).

    Raises:
        InvalidOption: no such shard, or the sampling is of another run.
        NotFinite: the metric is NaN or infinite; says for which masks and prompts.
    """
    start, stop = sampling.span(index)
    if sampling.design.n_units != run.n_units or sampling.subject != subject_of(run):
        raise InvalidOption(
            f"expected the run that the sampling is of ({_said(sampling.subject)}); got {_said(subject_of(run))}. "
            "Make the sampling with Sampling.of(run, design)."
        )
    return _computed(run, sampling, index, start, stop)


def _computed(run: ComponentRun, sampling: Sampling, index: int, start: int, stop: int) -> Shard:
    own = run if sampling.design.prompts is None else run.per_prompt()
    pieces = []
    for low in range(start, stop, sampling.piece_rows):
        high = min(stop, low + sampling.piece_rows)
        masks = sampling.design.rows(low, high).to(own.ones().dtype)
        try:
            pieces.append(own(masks).cpu())
        except NotFinite as error:
            raise NotFinite(f"In the random ablations {low} to {high - 1}: {error}") from error
    return Shard(index, start, torch.cat(pieces), sampling.digest())


def sample(
    run: ComponentRun,
    sampling: Sampling,
    *,
    folder: str | os.PathLike[str] | None = None,
    only: Sequence[int] | None = None,
    progress: Progress = silent,
) -> tuple[Shard, ...]:
    """Compute shards, or read those that a folder holds already.

    Args:
        run: the model and task.
        sampling: what to draw.
        folder: where shards are kept as they are finished. Whatever of it is whole is not computed again; truncated
            and damaged files are.
        only: numbers of the shards to see to; all by default.
        progress: called with the samples done and to do.

    Raises:
        InvalidOption: the folder holds shards of another sampling.

    Example:
        >>> from patching import toy
        >>> run = ComponentRun(toy.model(), toy.task())
        >>> sampling = Sampling.of(run, MaskDesign(n_units=2, samples=6, keep=0.5, seed=0), shard_rows=4)
        >>> [tuple(shard.outputs.shape) for shard in sample(run, sampling)]
        [(4, 4), (2, 4)]
    """
    numbers = range(sampling.n_shards) if only is None else only
    total = sum(stop - start for start, stop in map(sampling.span, numbers))
    mine = subject_of(run)
    if sampling.design.n_units != run.n_units or sampling.subject != mine:
        raise InvalidOption(f"expected the run that the sampling is of ({_said(sampling.subject)}); got {_said(mine)}.")
    if folder is not None:
        check_folder(folder, sampling)
    done, found = 0, []
    for index in numbers:
        start, stop = sampling.span(index)
        known = None if folder is None else kept_shard(folder, sampling, index)
        if known is None:
            known = _computed(run, sampling, index, start, stop)
            if folder is not None:
                known.save(folder)
        found.append(known)
        done += stop - start
        progress(done, total)
    return tuple(found)


def kept_shard(folder: str | os.PathLike[str], sampling: Sampling, index: int) -> Shard | None:
    """A shard that a folder holds, whole and of this sampling; None if it is to be computed.

    Raises:
        InvalidOption: it is of another sampling.
    """
    path = Path(folder) / f"shard-{index:06d}.safetensors"
    start, stop = sampling.span(index)
    try:
        found = Shard.load(path)
    except InvalidOption:
        return None
    if found.digest != sampling.digest():
        raise InvalidOption(
            f"expected shards of sampling {sampling.digest()}; {path} is of {found.digest}, another model, task, "
            "ablation, keep, seed or cut. Use another folder, or remove these files."
        )
    whole = found.index == index and found.start == start and len(found.outputs) == stop - start
    return found if whole else None


def check_folder(folder: str | os.PathLike[str], sampling: Sampling) -> None:
    """Refuse a folder whose shards are of another sampling, before anything is computed.

    Raises:
        InvalidOption: they are; or ``folder`` is a file.
    """
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise InvalidOption(f"expected a folder for shards; {path} is a file.")
    held = sorted(found.name for found in path.glob("shard-*.safetensors")) if path.exists() else []
    numbers = [int(match[1]) for name in held if (match := _NAME.fullmatch(name))]
    for index in numbers:
        if index < sampling.n_shards:
            kept_shard(folder, sampling, index)


def merge(shards: Iterable[Shard], sampling: Sampling) -> Float[Tensor, "sample example"]:
    """The outputs of all samples, from shards in any order.

    Raises:
        InvalidOption: a shard is missing, of another sampling, of a wrong size, or comes twice with other values.
    """
    found: dict[int, Shard] = {}
    for one in shards:
        if one.digest != sampling.digest():
            raise InvalidOption(
                f"expected shards of sampling {sampling.digest()}; shard {one.index} is of {one.digest}: another "
                "model, task, ablation, keep, seed or cut. Merge shards of one sampling."
            )
        other = found.setdefault(one.index, one)
        if not torch.equal(other.outputs, one.outputs):
            raise InvalidOption(f"expected shard {one.index} once; it comes twice with different outputs.")
    missing = [index for index in range(sampling.n_shards) if index not in found]
    if missing:
        raise InvalidOption(
            f"expected shards 0 to {sampling.n_shards - 1}; {len(missing)} are missing ({_list(missing)}). Compute "
            "them with sample(run, sampling, only=[…])."
        )
    for index in range(sampling.n_shards):
        start, stop = sampling.span(index)
        if found[index].start != start or len(found[index].outputs) != stop - start:
            raise InvalidOption(f"expected shard {index} to hold samples {start} to {stop - 1}; it holds others.")
    return torch.cat([found[index].outputs for index in range(sampling.n_shards)])


def _raw(tensor: Tensor) -> bytes:
    shown = str((tuple(tensor.shape), tensor.dtype)).encode()
    return shown + tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _checksum(tensor: Tensor) -> str:
    return hashlib.sha256(_raw(tensor)).hexdigest()


def _said(subject: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={subject[name]}" for name in subject if name not in ("torch", "direction"))


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (", …" if len(numbers) > 8 else "")
