"""Edits of a model: components switched off for good, through the engine or in the model's own weights.

    edit = Edit.of(run, choice.units)        # what is ablated, and what stands in its place
    edit.run(model, task)                    # the engine, with those components alone under the mask
    with edit.applied(model): ...            # the model's own weights, and back again

An edit is data: it can be saved, merged with another (`|`), and predicted from an attribution before it is made.

Source: arXiv 2404.11534 (COAR-Edit), which zeroes weights of deep copies. Constants other than 0, undoing in place and
merging are ours.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.coar import in_place
from circuits.coar.in_place import Undo
from circuits.coar.ranking import HasWeights
from graphs.atomic import read_text, write_bytes, write_text
from graphs.errors import BadFile, BadName
from graphs.nodes import Node
from patching import ablations
from patching.component_run import ComponentRun, Dictionary
from patching.errors import InvalidOption
from patching.lens import LensModel
from patching.masked import DEFAULT_BYTES
from patching.metrics import Metric
from patching.task import Task

SCHEMA = "wiretrace-edit/1"
LARGEST_CONSTANTS = 2_000_000_000
"""Readers refuse constants of more bytes than this."""


@dataclass(frozen=True, eq=False)
class Edit:
    """Components that no longer write what they compute.

    Attributes:
        units: the ablated components, in the order of the model.
        constants: what they write instead, where it is not 0: per head a vector in head space, per MLP (and error
            term) one of the residual stream, per neuron or feature a number. The same at every position.
        provenance: how the edit came about, as plain data.

    Example:
        >>> from patching import toy
        >>> model, task = toy.model(), toy.task()
        >>> edit = Edit((Node.parse("a0.h1"),))
        >>> through_the_engine = edit.run(model, task)
        >>> with edit.applied(model):
        ...     in_place = model.logits(task.clean)[0, -1]  # the model's own forward: head 0 alone writes
        >>> [round(number, 6) for number in in_place.tolist()]
        [0.0, 1.0, 1.0, 0.0]
        >>> through_the_engine(through_the_engine.zeros())[0].item()
        1.0
    """

    units: tuple[Node, ...]
    constants: Mapping[Node, Tensor] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        odd = [unit for unit in self.units if not isinstance(unit, Node)]
        if odd:
            raise InvalidOption(f"expected units as Nodes; got {odd[0]!r} (Node.parse reads a name).")
        unknown = [str(unit) for unit in self.constants if unit not in self.units]
        if unknown:
            raise InvalidOption(f"expected constants of ablated units alone; got one of {', '.join(unknown[:5])}.")
        bad = [str(unit) for unit, value in self.constants.items() if not bool(torch.isfinite(value).all())]
        if bad:
            raise InvalidOption(f"expected finite constants; those of {', '.join(bad[:5])} are not.")
        units = tuple(sorted(set(self.units), key=_place))
        held = {unit: self.constants[unit].detach().cpu().clone() for unit in units if unit in self.constants}
        object.__setattr__(self, "units", units)
        object.__setattr__(self, "constants", MappingProxyType(held))

    @classmethod
    def of(cls, run: ComponentRun, units: Sequence[str | Node], *, provenance: Mapping[str, Any] | None = None) -> Edit:
        """The edit that replaces components by what a run replaces them by.

        Args:
            run: whose ablation gives one value for all prompts and positions: ``zero``, ``mean`` or ``mean-clean``.
            units: the components to ablate.
            provenance: how they were chosen; the run's own is kept beside it.

        Raises:
            InvalidOption: an ablation whose values depend on the prompt or position, or components the run lacks.
        """
        nodes = tuple(Node.parse(unit) if isinstance(unit, str) else unit for unit in units)
        held = {unit: replacement(run, unit) for unit in nodes}
        constants = {unit: value for unit, value in held.items() if bool(value.any())}
        return cls(nodes, constants, run.provenance("coar_edit", {}) | dict(provenance or {}))

    def __len__(self) -> int:
        return len(self.units)

    def __eq__(self, other: object) -> bool:
        """Same units and, bit for bit, same constants; provenance does not count."""
        if not isinstance(other, Edit):
            return NotImplemented
        return self.units == other.units and all(_agree(self, other, unit) for unit in self.units)

    def __hash__(self) -> int:
        return hash(self.units)

    def __or__(self, other: Edit) -> Edit:
        """Both edits at once.

        Raises:
            InvalidOption: they replace a component by different values.
        """
        contradictory = [str(unit) for unit in self.units if unit in other.units and not _agree(self, other, unit)]
        if contradictory:
            raise InvalidOption(
                f"expected edits that agree where they meet; they replace {', '.join(contradictory[:5])} by different "
                "values. Take these units out of one of them."
            )
        provenance = {"method": "merged edits", "of": [dict(self.provenance), dict(other.provenance)]}
        return Edit(self.units + other.units, {**self.constants, **other.constants}, provenance)

    def __repr__(self) -> str:
        shown = ", ".join(map(str, self.units[:5])) + (", …" if len(self) > 5 else "")
        return f"Edit({len(self):,} {'to constants' if self.constants else 'to zero'}: {shown})"

    # --- through the engine ----------------------------------------------------------------------------------------

    def mask(self, run: ComponentRun) -> Float[Tensor, "*axes unit"]:
        """The mask under which a run is this edit.

        Raises:
            InvalidOption: the run lacks components, or replaces some by other values.
        """
        for unit in self.units:
            there = replacement(run, unit)
            wanted = self.constants.get(unit, torch.zeros_like(there)).to(there)
            if there.shape != wanted.shape or not torch.equal(there, wanted):
                raise InvalidOption(
                    f"expected a run that replaces {unit} by what the edit does; its ablation is {run.ablation.name} "
                    "over its own prompts. edit.run(model, task) makes one that fits."
                )
        return run.mask_without(self.units)

    def run(
        self,
        model: LensModel,
        task: Task,
        *,
        dictionaries: Sequence[Dictionary] = (),
        metric: str | Metric | None = None,
        memory: int = DEFAULT_BYTES,
    ) -> ComponentRun:
        """A run over the edited components whose replacements are the edit's: ``run(run.zeros())`` is the edited model.

        Args:
            model: the model.
            task: any prompts.
            dictionaries: of edited features.
            metric: as of `ComponentRun`.
            memory: likewise.

        Raises:
            InvalidOption: the model lacks components, constants have the wrong shape, or the edit is empty.
        """
        if not self.units:
            raise InvalidOption("expected an edit of at least one unit; this one is empty, so the model is as it was.")
        named = dataclasses.replace(ablations.zero, name="edit" if self.constants else "zero")
        options: dict[str, Any] = {"dictionaries": dictionaries, "metric": metric, "memory": memory}
        run = ComponentRun(model, task, components=self.units, ablation=named, **options)
        for unit, constant in self.constants.items():
            number, which, place = _slot(run, unit)
            for part in run.parts:
                values = list(part.replacements[number])
                changed = values[which].clone()
                _put(changed, place, constant, unit)
                values[which] = changed
                part.replacements[number] = tuple(values)
        return run

    def predicted(self, attribution: HasWeights) -> Float[Tensor, " example"]:
        """What an attribution says the edit changes on each prompt: minus the sum of the units' weights.

        Raises:
            InvalidOption: some units were not attributed.
        """
        index = {unit: column for column, unit in enumerate(attribution.units)}
        missing = [str(unit) for unit in self.units if unit not in index]
        if missing:
            raise InvalidOption(f"expected an attribution of all edited units; it has no {', '.join(missing[:5])}.")
        return -attribution.weights[:, [index[unit] for unit in self.units]].double().sum(-1)

    # --- in the weights --------------------------------------------------------------------------------------------

    def apply(self, model: LensModel) -> Undo:
        """Write the edit into the model's own weights (see `in_place`); call the result to take it back.

        The model's own forward, and whatever is made from the model afterwards, is then the edited one. Runs that were
        made before keep parts of the unedited model: make them again.

        Raises:
            InvalidOption: the weights cannot hold the edit (input and features, a norm after the weights, no bias for
                a constant, weights shared with another place), or an edit in force contradicts it. Nothing changed.
        """
        return in_place.apply(self, model)

    @contextlib.contextmanager
    def applied(self, model: LensModel) -> Iterator[LensModel]:
        """The model with the edit in its weights, for as long as the block lasts, however it ends."""
        undo = self.apply(model)
        try:
            yield model
        finally:
            undo()

    # --- files -----------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write as JSON; constants go to a safetensors file beside it, which the JSON names by its digest.

        A reader never sees half an edit: the JSON takes its place last, in one step.

        Raises:
            WriteFailed: the system refuses; the old edit is then still whole.
        """
        from safetensors.torch import save

        path = Path(path)
        beside = None
        if self.constants:
            data = save({str(unit): value.contiguous() for unit, value in self.constants.items()})
            digest = hashlib.sha256(data).hexdigest()
            beside = {"file": f"{path.stem}.{digest[:16]}.safetensors", "sha256": digest}
            write_bytes(path.parent / beside["file"], data)
        document = {
            "schema": SCHEMA,
            "units": [str(unit) for unit in self.units],
            "constants": beside,
            "provenance": dict(self.provenance),
        }
        old = _constants_file(path)
        write_text(path, json.dumps(document, allow_nan=False, indent=1))
        if old is not None and (beside is None or old.name != beside["file"]):
            old.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> Edit:
        """Read what `save` wrote.

        Raises:
            BadFile: it is no edit, or not whole.
        """
        path = Path(path)
        text = read_text(path)
        try:
            document = json.loads(text)
            if document["schema"] != SCHEMA:
                raise ValueError(f"its schema is {document['schema']!r}")
            units = tuple(Node.parse(name) for name in document["units"])
            if len(set(units)) < len(units):
                raise ValueError("it holds a unit twice")
            constants = {} if document["constants"] is None else _read_constants(path, document["constants"])
            return cls(units, constants, dict(document["provenance"]))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, BadName) as error:
            raise BadFile(f"expected an edit of schema {SCHEMA}; {path} cannot be read as one: {error}") from error


def _read_constants(path: Path, beside: Mapping[str, Any]) -> dict[Node, Tensor]:
    from safetensors.torch import load

    name = beside["file"]
    if Path(name).name != name:
        raise ValueError(f"its constants stand elsewhere ({name!r})")
    file = path.parent / name
    if not file.is_file() or file.stat().st_size > LARGEST_CONSTANTS:
        raise ValueError(f"its constants, {name}, are not there (or are larger than 2 GB); copy both files together")
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != beside["sha256"]:
        raise ValueError(f"its constants, {name}, are not those it was saved with; copy or save both again")
    return {Node.parse(key): value for key, value in load(data).items()}


def _constants_file(path: Path) -> Path | None:
    """The constants of the edit that stands at a path already, if there is one."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        name = document["constants"]["file"] if document["schema"] == SCHEMA else ""
    except (OSError, ValueError, KeyError, TypeError):
        return None
    ours = name.endswith(".safetensors") and Path(name).name == name and name.startswith(f"{path.stem}.")
    return path.parent / name if ours else None


def replacement(run: ComponentRun, unit: Node) -> Tensor:
    """What a run writes for a component that is replaced, where that is one value for all prompts and positions.

    Raises:
        InvalidOption: it depends on the prompt or the position, or the run has no such component.
    """
    number, which, place = _slot(run, unit)
    values = run.parts[0].replacements[number][which]
    if run.ablation.is_run or values.shape[-2] != 1 or values.shape[-3] != 1:
        raise InvalidOption(
            "expected an ablation that replaces a component by one value for all prompts and positions (zero, mean, "
            f"mean-clean); got {run.ablation.name}. Make the run with ablation='zero' or 'mean'."
        )
    return values[place].detach().cpu().clone()


def _slot(run: ComponentRun, unit: Node) -> tuple[int, int, tuple[Any, ...]]:
    """Where a run keeps a component's replacement: the group, which of its tensors, and the index into that."""
    place = run.index(unit)
    number = next(i for i, group in enumerate(run.groups) if group.start <= place < group.start + len(group.units))
    group = run.groups[number]
    own = place - group.start
    member = own if group.members is None else int(group.members[own])
    if group.family == "heads":
        return number, 0, (member, 0, 0)
    if group.family in ("input", "mlps"):
        return number, 0, (0, 0)
    if group.dictionary is not None and member == group.size - 1:
        return number, 1, (0, 0)  # the error term
    return number, 0, (0, 0, member)


def _put(values: Tensor, place: tuple[Any, ...], constant: Tensor, unit: Node) -> None:
    if values[place].shape != constant.shape:
        raise InvalidOption(
            f"expected a constant of shape {list(values[place].shape)} for {unit}; got {list(constant.shape)}. Is the "
            "edit of another model?"
        )
    values[place] = constant.to(values)


def _agree(one: Edit, other: Edit, unit: Node) -> bool:
    """Whether two edits replace a component by the same value."""
    first, second = one.constants.get(unit), other.constants.get(unit)
    if first is None or second is None:
        return not any(value is not None and bool(value.any()) for value in (first, second))
    return first.shape == second.shape and torch.equal(first, second.to(first))


def _place(unit: Node) -> tuple[int, str, int, str]:
    """Order of units: by layer, kind and number; the name settles what these leave open."""
    return (-1 if unit.layer is None else unit.layer, unit.kind, -1 if unit.index is None else unit.index, str(unit))
