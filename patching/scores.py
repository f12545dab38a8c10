"""What a method says of every unit: one number with its sign, and how it was made."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from graphs.atomic import write_text
from graphs.components import Architecture, ComponentGraph
from graphs.errors import UnknownEdge, UnknownNode
from graphs.nodes import INPUT, Edge, Node, head, mlp, neuron
from patching.agreement import agreement
from patching.errors import InvalidOption

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = "wiretrace-scores/1"


@dataclass(frozen=True)
class Scores:
    """Effects of ablating each unit.

    The sign, once and for all: effect = metric(unit ablated) - metric(clean). For a metric that is high when the
    model behaves, negative means the unit helps. Importance is the absolute effect.

    Attributes:
        architecture: of the model.
        level: ``edge``, ``node`` or ``neuron`` (the neurons of all MLPs, layer by layer).
        values: effect of every unit, in the metric's unit, averaged over prompts.
        standard_error: of that average over prompts (None for a single prompt).
        provenance: method, options, model, task, ablation, metric, versions.
    """

    architecture: Architecture
    level: str
    values: Float[Tensor, " unit"]
    standard_error: Float[Tensor, " unit"] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def over_prompts(
        cls,
        architecture: Architecture,
        level: str,
        effects: Float[Tensor, "example unit"],
        provenance: Mapping[str, Any],
    ) -> Scores:
        """Mean and standard error of effects per prompt."""
        effects = effects.double().cpu()
        error = effects.std(0) / math.sqrt(len(effects)) if len(effects) > 1 else None
        return cls(architecture, level, effects.mean(0), error, provenance)

    @cached_property
    def graph(self) -> ComponentGraph:
        """The nodes and edges of the model."""
        return ComponentGraph(self.architecture)

    @property
    def units(self) -> tuple[Edge, ...] | tuple[Node, ...]:
        """What each value belongs to."""
        if self.level == "neuron":
            return neurons(self.architecture, len(self.values))
        return self.graph.edges if self.level == "edge" else self.graph.sources

    @property
    def importance(self) -> Float[Tensor, " unit"]:
        """Absolute effects."""
        return self.values.abs()

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, unit: str | Edge | Node) -> float:
        """The effect of one unit, by itself or by its name.

        Raises:
            UnknownEdge, UnknownNode: with what exists instead.
        """
        return float(self.values[self.index(unit)])

    def index(self, unit: str | Edge | Node) -> int:
        """Where a unit stands."""
        if self.level == "edge":
            edge = Edge.parse(unit) if isinstance(unit, str) else unit
            if not isinstance(edge, Edge):
                raise UnknownEdge(f"these are scores of edges, such as m0->logits; got {unit}")
            return self.graph.number(edge)
        node = Node.parse(unit) if isinstance(unit, str) else unit
        if self.level == "neuron":
            return self._index_of_neuron(node)
        if not isinstance(node, Node) or node not in self.graph.source_index:
            raise UnknownNode(f"expected a node that writes, such as a0.h1, m0 or input; got {unit}")
        return self.graph.source_index[node]

    def _index_of_neuron(self, node: object) -> int:
        try:
            return self._neuron_index[node]  # type: ignore[index]
        except (KeyError, TypeError):
            first, last = self.units[0], self.units[-1]
            raise UnknownNode(f"these are scores of the neurons {first} to {last}; got {node}") from None

    @cached_property
    def _neuron_index(self) -> dict[Node, int]:
        return {node: i for i, node in enumerate(self.units) if isinstance(node, Node)}

    def ranking(self, *, signed: bool = False) -> list[int]:
        """Unit numbers from most to least important; ties go to the lower number.

        ``signed`` ranks by how much the unit helps (most negative effect first) instead of by absolute effect.
        """
        keys = self.values if signed else -self.importance
        return torch.argsort(keys, stable=True).tolist()

    def top(self, n: int, *, signed: bool = False) -> tuple[Edge, ...] | tuple[Node, ...]:
        """The n most important units.

        Raises:
            InvalidOption: n is not between 0 and the number of units.
        """
        if not 0 <= n <= len(self):
            raise InvalidOption(f"expected n from 0 to {len(self):,}, the number of {self.level}s; got {n}.")
        return tuple(self.units[i] for i in self.ranking(signed=signed)[:n])  # type: ignore[return-value]

    def compare(self, true: Scores, *, k: int = 10) -> dict[str, float]:
        """How well these scores predict others; see `agreement`."""
        if len(true) != len(self) or true.level != self.level:
            raise InvalidOption(
                f"expected scores of the same units; got {len(self):,} {self.level}s and {len(true):,} {true.level}s."
            )
        return agreement(self.values, true.values, self.importance, true.importance, k=k)

    def to_frame(self) -> pd.DataFrame:
        """One row per unit, most important first."""
        import pandas as pd

        order = self.ranking()
        rows: dict[str, Any] = {
            self.level: [str(self.units[i]) for i in order],
            "effect": self.values[order].numpy(),
        }
        if self.standard_error is not None:
            rows["standard_error"] = self.standard_error[order].numpy()
        return pd.DataFrame(rows)

    def save(self, path: str | Path) -> None:
        """Write as JSON, atomically."""
        document = {
            "schema": SCHEMA,
            "architecture": self.architecture.to_dict(),
            "level": self.level,
            "values": self.values.tolist(),
            "standard_error": None if self.standard_error is None else self.standard_error.tolist(),
            "provenance": dict(self.provenance),
        }
        write_text(Path(path), json.dumps(document, allow_nan=False, indent=1))

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """Read what `save` wrote.

        Raises:
            InvalidOption: the file is not of this kind or does not hold together.
        """
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
            if document["schema"] != SCHEMA:
                raise ValueError(f"its schema is {document['schema']!r}")
            architecture = Architecture.from_dict(document["architecture"])
            error = document["standard_error"]
            scores = cls(
                architecture,
                document["level"],
                torch.tensor(document["values"], dtype=torch.float64),
                None if error is None else torch.tensor(error, dtype=torch.float64),
                document["provenance"],
            )
            numbers = [scores.values] if error is None else [scores.values, scores.standard_error]
            if not all(bool(torch.isfinite(column).all()) for column in numbers if column is not None):
                raise ValueError("it holds values that are not finite")
            if scores.level not in ("edge", "node", "neuron") or len(scores.values) != len(scores.units):
                raise ValueError("values and units do not match")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error_:
            raise InvalidOption(
                f"expected a file of schema {SCHEMA}; {path} cannot be read as one: {error_}"
            ) from error_
        return scores

    def __repr__(self) -> str:
        best = ", ".join(f"{unit} {self[unit]:+.3f}" for unit in self.top(min(3, len(self))))
        return f"Scores({self.provenance.get('method', '?')}, {len(self):,} {self.level}s; {best}, …)"

    def _repr_html_(self) -> str:
        """The strongest units; of nodes also a heat map, layers upwards."""
        strongest = self.to_frame().head(20).to_html(index=False)
        return self._heat_map() + strongest if self.level == "node" else strongest

    def _heat_map(self) -> str:
        """A table with a row for each layer, blue where a node helps and vermillion where it hurts."""
        largest = float(self.importance.max()) or 1.0
        shape = self.architecture
        columns = [*range(shape.n_heads), *(["mlp"] if shape.has_mlp else [])]

        def cell(node: Node) -> str:
            value = float(self.values[self.index(node)])
            colour = "0,114,178" if value < 0 else "213,94,0"
            style = f"background:rgba({colour},{abs(value) / largest:.3f});text-align:center;padding:2px 5px"
            return f'<td title="{node}" style="{style}">{value:.2g}</td>'

        rows = []
        for layer in reversed(range(shape.n_layers)):
            nodes = [*(head(layer, index) for index in range(shape.n_heads)), *([mlp(layer)] if shape.has_mlp else [])]
            rows.append(f"<tr><th>layer {layer}</th>{''.join(map(cell, nodes))}</tr>")
        names = "".join(f"<th>{'MLP' if column == 'mlp' else f'h{column}'}</th>" for column in columns)
        return f"<table><tr><th></th>{names}</tr>{''.join(rows)}<tr><th>input</th>{cell(INPUT)}</tr></table>"


def neurons(architecture: Architecture, count: int) -> tuple[Node, ...]:
    """The names of ``count`` neurons, shared equally by the layers of a model.

    Raises:
        InvalidOption: the layers cannot share them equally.
    """
    if not architecture.has_mlp or count % architecture.n_layers:
        raise InvalidOption(f"expected as many neurons in each of {architecture.n_layers} MLPs; got {count} in all.")
    width = count // architecture.n_layers
    return tuple(neuron(layer, index) for layer in range(architecture.n_layers) for index in range(width))
