"""What every component adds to every prompt's output: the result of a component attribution."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from graphs.atomic import write_bytes
from graphs.components import Architecture, ComponentGraph
from graphs.nodes import Node
from patching.errors import InvalidOption
from patching.scores import Scores
from patching.tensor_bytes import to_bytes

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = "wiretrace-attribution/1"


@dataclass(frozen=True)
class Attribution:
    """A linear model of each prompt's output in which components are kept: ``output ≈ intercept + weights · mask``.

    Mask 1 keeps a component, so a weight above 0 says that keeping it raises the output, and ablating the set A changes
    the output by about ``-sum of the weights of A``. Effects in the project's sign are the weights' negatives.

    Attributes:
        architecture: of the model.
        units: the components.
        weights: ``[example, unit]``, float64, in the metric's unit; one row if the mean prompt was attributed.
        intercept: ``[example]``: the predicted output with everything ablated.
        keep: probability with which components were kept; part of what the weights mean (see `MaskDesign`).
        standard_error: of the weights, ``[example, unit]``, where the estimator has one: that of noise of equal
            variance. What a linear model misses is no such noise, and with strong interactions at a high ``keep`` the
            true errors are larger; `circuits.coar.standard_errors` has robust ones.
        provenance: model, task, ablation, metric, masks, estimator and why it was chosen.

    Example:
        >>> from patching import ComponentRun, toy
        >>> from circuits import coar
        >>> found = coar.attribute(ComponentRun(toy.model(), toy.task()), samples=64, keep=0.5, seed=0)
        >>> [str(unit) for unit in found.units], tuple(found.weights.shape)
        (['a0.h0', 'a0.h1'], (4, 2))
    """

    architecture: Architecture
    units: tuple[Node, ...]
    weights: Float[Tensor, "example unit"]
    intercept: Float[Tensor, " example"]
    keep: float
    standard_error: Float[Tensor, "example unit"] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.weights.shape != (len(self.intercept), len(self.units)):
            raise InvalidOption(
                f"expected weights [example, unit] of shape [{len(self.intercept)}, {len(self.units)}]; got "
                f"{list(self.weights.shape)}."
            )
        if not bool(torch.isfinite(self.weights).all()) or not bool(torch.isfinite(self.intercept).all()):
            raise InvalidOption("expected finite weights; got NaN or infinity.")

    def mean(self) -> Float[Tensor, " unit"]:
        """Weights averaged over prompts."""
        return self.weights.mean(0)

    def mean_standard_error(self) -> Float[Tensor, " unit"] | None:
        """Standard error of `mean`: how it varies with the prompts; for one row, the estimator's own."""
        if len(self.weights) > 1:
            return self.weights.std(0) / math.sqrt(len(self.weights))
        return None if self.standard_error is None else self.standard_error[0]

    def predict(self, masks: Float[Tensor, "*sample unit"]) -> Float[Tensor, "*sample example"]:
        """The outputs that masks should give."""
        return masks.double() @ self.weights.T + self.intercept

    def change(self, units: Sequence[Node | str]) -> Float[Tensor, " example"]:
        """Predicted change of the output when some components are ablated: minus the sum of their weights."""
        return -self.weights[:, [self.index(unit) for unit in units]].sum(-1)

    def index(self, unit: Node | str) -> int:
        """Where a component stands.

        Raises:
            InvalidOption: it was not attributed.
        """
        node = Node.parse(unit) if isinstance(unit, str) else unit
        if node not in self._index:
            raise InvalidOption(f"expected a component out of {self.units[0]} to {self.units[-1]}; got {node}.")
        return self._index[node]

    @cached_property
    def _index(self) -> dict[Node, int]:
        return {unit: place for place, unit in enumerate(self.units)}

    def __getitem__(self, unit: Node | str) -> float:
        """The mean weight of a component."""
        return float(self.weights[:, self.index(unit)].mean())

    def ranking(self) -> list[int]:
        """Places from the largest mean weight (helps most) to the lowest; ties go to the earlier component."""
        return torch.argsort(-self.mean(), stable=True).tolist()

    def scores(self) -> Scores:
        """Effects of all writers or all neurons, in the project's sign: minus the weights.

        Raises:
            InvalidOption: other components were attributed; `to_frame` and `to_networkx` take any.
        """
        graph = ComponentGraph(self.architecture)
        level = "node" if self.units == graph.sources else "neuron"
        neurons = all(unit.kind == "neuron" for unit in self.units)
        if level == "neuron" and not neurons:
            raise InvalidOption(
                f"expected weights of every writer (input, heads, MLPs) or of every neuron to make scores of; got "
                f"{len(self.units):,} components from {self.units[0]} to {self.units[-1]}. Use to_frame()."
            )
        return Scores.over_prompts(self.architecture, level, -self.weights, self.provenance)

    def to_frame(self) -> pd.DataFrame:
        """One row per component, from the one that helps most to the one that hurts most."""
        import pandas as pd

        order = self.ranking()
        rows: dict[str, Any] = {
            "component": [str(self.units[i]) for i in order],
            "weight": self.mean()[order].numpy(),
            "effect": -self.mean()[order].numpy(),
        }
        error = self.mean_standard_error()
        if error is not None:
            rows["standard_error"] = error[order].numpy()
        return pd.DataFrame(rows)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file whose header holds everything else, whole or not at all."""
        header = {
            "schema": SCHEMA,
            "architecture": json.dumps(self.architecture.to_dict()),
            "units": " ".join(map(str, self.units)),
            "keep": repr(float(self.keep)),
            "provenance": json.dumps(dict(self.provenance), allow_nan=False),
        }
        tensors = {"weights": self.weights.contiguous(), "intercept": self.intercept.contiguous()}
        if self.standard_error is not None:
            tensors["standard_error"] = self.standard_error.contiguous()
        write_bytes(path, to_bytes(tensors, header))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Attribution:
        """Read what `save` wrote.

        Raises:
            InvalidOption: the file is not of this kind or does not hold together.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if header.get("schema") != SCHEMA:
                raise ValueError(f"its schema is {header.get('schema')!r}")
            return cls(
                Architecture.from_dict(json.loads(header["architecture"])),
                tuple(Node.parse(name) for name in header["units"].split()),
                tensors["weights"],
                tensors["intercept"],
                float(header["keep"]),
                tensors.get("standard_error"),
                json.loads(header["provenance"]),
            )
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise InvalidOption(
                f"expected a file of schema {SCHEMA}; {Path(path).name} cannot be read as one: {error}"
            ) from error

    def __repr__(self) -> str:
        order = self.ranking()
        ends = [*order[:2], *order[2:][-2:]]
        shown = ", ".join(f"{self.units[i]} {float(self.mean()[i]):+.3f}" for i in ends)
        return f"Attribution({len(self.units):,} components, {len(self.weights)} prompts, keep={self.keep:g}; {shown})"

    def _repr_html_(self) -> str:
        """The components that help and hurt most."""
        frame = self.to_frame()
        return frame.to_html(index=False) if len(frame) <= 20 else frame.iloc[[*range(10), *range(-10, 0)]].to_html()
