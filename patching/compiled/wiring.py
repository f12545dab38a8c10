"""Where each variable of a program is computed, and which edges of the model carry what the output depends on.

The circuit is read off the program, not off a run: an edge `u -> v<port>` is in it if a variable that u writes is read
at that port for a variable of v on which the output depends. Every variable has dimensions of the residual stream to
itself and one writer, so every other edge carries nothing that its target reads.

Of these edges, some carry the same value on every prompt (positions, whether a position is the first). Exchanging
prompts cannot show them: the circuit under the corrupt ablation is without them, that under zero ablation has them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from graphs.circuit import Circuit
from graphs.components import Architecture
from graphs.nodes import INPUT, LOGITS, Edge, Node, Port, head, mlp
from patching.compiled.language import INPUTS, POSITIONS, Count, InvalidProgram, Map, Program, Select, Variable, reads

MOST_LAYERS = 12
MOST_HEADS = 12


@dataclass(frozen=True)
class Wiring:
    """A program laid out on a transformer.

    Attributes:
        program: what is laid out.
        writers: the node that writes each variable.
    """

    program: Program
    writers: Mapping[str, Node]

    @cached_property
    def architecture(self) -> Architecture:
        """The smallest model that has all nodes."""
        nodes = [node for node in self.writers.values() if node.layer is not None]
        layers = max((node.layer or 0 for node in nodes), default=0) + 1
        heads = max((node.index or 0 for node in nodes if node.kind == "head"), default=0) + 1
        return Architecture(layers, heads, has_mlp=any(node.kind == "mlp" for node in nodes))

    def circuit(self, *, constants: bool = False) -> Circuit:
        """The edges through which variables flow that the output depends on.

        Args:
            constants: with those that carry the same value on every prompt; needed under zero ablation.
        """
        edges = {Edge(source, *port) for source, port, flowing in self._flows() if constants or flowing.varies}
        return self._record(edges, constants=constants, length=None)

    def circuit_at(self, length: int, *, constants: bool = False) -> Circuit:
        """The same by position, for prompts of one length (without `BOS`) whose answer follows the last token.

        A head whose selector depends on positions alone reads values just where it looks; any other may look at every
        position up to its own, so all of them are in.

        Raises:
            InvalidProgram: prompts of this program are not of that length.
        """
        if length not in self.program.lengths:
            raise InvalidProgram(
                f"expected a length out of {self.program.lengths} for {self.program.name}; got {length}."
            )
        needed: dict[str, set[int]] = {name: {length} for name in self.program.output}
        edges = {Edge(self.writers[name], LOGITS, None, length) for name in self._varying(needed, constants, length)}
        for variable in reversed(list(self.program.analysis.values())):
            for at in sorted(needed.get(variable.name, ())):
                for port, name, place in self._reads_at(variable, at):
                    needed.setdefault(name, set()).add(place)
                    if constants or (self.program.analysis[name].varies and place > 0):
                        edges.add(Edge(self.writers[name], port.node, port.letter, place))
        return self._record(edges, constants=constants, length=length)

    def _varying(self, names: Iterable[str], constants: bool, length: int) -> list[str]:
        return [name for name in names if constants or (self.program.analysis[name].varies and length > 0)]

    def _record(self, edges: Iterable[Edge], *, constants: bool, length: int | None) -> Circuit:
        provenance = {
            "method": "compiled from the program",
            "model": f"zoo:{self.program.name}",
            "task": self.program.name,
            "constants": constants,
        }
        if length is not None:
            provenance["length"] = length
        return Circuit(self.architecture, edges, provenance=provenance)

    def needed(self) -> set[str]:
        """The variables that the output depends on."""
        found, left = set[str](), list(self.program.output)
        while left:
            name = left.pop()
            if name not in found:
                found.add(name)
                left.extend(read for _, read in self._ports(self.program.analysis[name]))
        return found

    def _flows(self) -> Iterable[tuple[Node, Port, Variable]]:
        """Every needed variable at every port that reads it for a needed variable, with its writer."""
        known, needed = self.program.analysis, self.needed()
        uses = [(Port(LOGITS), name) for name in self.program.output]
        uses += [use for name in needed for use in self._ports(known[name])]
        for port, name in uses:
            yield self.writers[name], port, known[name]

    def _ports(self, variable: Variable) -> list[tuple[Port, str]]:
        """Where the operation of a variable reads which others."""
        if variable.operation is None:
            return []
        node = self.writers[variable.name]
        return [(Port(node, letter), name) for letter, names in reads(variable.operation).items() for name in names]

    def _reads_at(self, variable: Variable, at: int) -> list[tuple[Port, str, int]]:
        """The same with positions, for the value at one position; what a `Count` reads is zero but at the first."""
        if variable.operation is None or isinstance(variable.operation, Map):
            return [(port, name, at) for port, name in self._ports(variable)]
        select = variable.operation.select
        looked = [0] if isinstance(variable.operation, Count) else self._looked_at(select, at)
        found: list[tuple[Port, str, int]] = []
        for port, name in self._ports(variable):
            if port.letter == "q":
                found.append((port, name, at))
            elif port.letter == "k":
                found += [(port, name, place) for place in range(at + 1)]
            else:
                found += [(port, name, place) for place in looked]
        return found

    def _looked_at(self, select: Select, at: int) -> list[int]:
        fixed = select.key == POSITIONS and select.query in (None, POSITIONS)
        if not fixed:
            return list(range(at + 1))
        query = None if select.query is None else at
        return [place for place in range(1, at + 1) if select.predicate(query, place)] or [0]


def lay_out(program: Program, *, layers: int = MOST_LAYERS, heads: int = MOST_HEADS) -> Wiring:
    """Give each variable of a program a node: the first layer at which all that it reads is there.

    Args:
        program: to lay out.
        layers: the most that it may take.
        heads: the most in a layer.

    Raises:
        InvalidProgram: it makes no sense, or takes more layers or heads than allowed.
    """
    writers: dict[str, Node] = dict.fromkeys(INPUTS, INPUT)
    used = [0] * (layers + 1)
    for name, variable in program.analysis.items():
        operation = variable.operation
        if operation is None:
            continue
        sources = [writers[read] for names in reads(operation).values() for read in names]
        is_map = isinstance(operation, Map)
        layer = max((_first_layer(source, for_mlp=is_map) for source in sources), default=0)
        if layer >= layers:
            raise InvalidProgram(
                f"expected {program.name} to fit into {layers} layers; {name} would stand in layer {layer}, counted "
                "from 0. Allow more, or make the program shallower."
            )
        if is_map:
            writers[name] = mlp(layer)
            continue
        writers[name] = head(layer, used[layer])
        used[layer] += 1
        if used[layer] > heads:
            raise InvalidProgram(
                f"expected {program.name} to need at most {heads} heads in a layer; layer {layer} needs "
                f"{used[layer]}. Allow more, or drop variables."
            )
    return Wiring(program, writers)


def _first_layer(source: Node, *, for_mlp: bool) -> int:
    """The first layer at which a head, or an MLP, can read what a node writes."""
    if source.layer is None:
        return 0
    return source.layer if for_mlp and source.kind == "head" else source.layer + 1
