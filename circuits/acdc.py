"""ACDC: walk back from the logits and drop every edge whose loss the metric does not feel.

1. Receivers in reverse topological order; at each, senders latest first. The order is part of the result.
2. Drop the edge if ``damage(without it) - damage(now) < tau``, strictly; then "now" is without it.
3. A receiver whose node no longer feeds anything loses its incoming edges unevaluated.

The circuit is, edge for edge, that of the plain sequential loop, however candidates are batched. Candidates are
evaluated in chains along the expected decisions: "without the first", "without the first two", …; decisions are read
up to the first surprise, so only values that the sequential loop would compute are used, and expectations matter for
speed alone. They come from the gradient at the current mask (taken once for all ports that are read together), from
what the unread rest of a chain measured, and from how edges of the same sender fared of late. Rounding differs between
batched and unbatched arithmetic, so any decision closer to tau than a guard band is taken again on the canonical,
unbatched run; so is every 256th, which measures the rounding and widens the band where needed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graphs.circuit import Circuit
from graphs.nodes import Edge, Port
from patching.errors import InvalidOption
from patching.masked import Cursor, MaskedRun
from patching.progress import Progress, silent

LONGEST_CHAIN = 32
CHAIN_WORK = 4e8
"""A chain saves Python per look and wastes samples after a surprise; on a CPU the best length was found near the root
of this over tokens × d_model²."""
AUDIT_EVERY = 256
BAND = 24
"""Machine epsilons of the metric within which a decision is taken again; 8 were the most ever seen to matter."""
DOUBT = 2.0
"""Estimates within this factor of tau are not trusted to continue a chain."""
HABIT_RATE, MISS_RATE, STRETCH_RATE = 0.4, 0.1, 0.25


@dataclass(frozen=True)
class Decision:
    """One step of a search.

    Attributes:
        edge: the edge that was decided on.
        kept: whether it stays.
        delta: rise of the damage without it; None where its receiver was dead and nothing was evaluated.
    """

    edge: Edge
    kept: bool
    delta: float | None


Watch = Callable[[Decision], None]


def search(
    run: MaskedRun,
    *,
    tau: float,
    absolute: bool = False,
    decided: Sequence[Decision] = (),
    watch: Watch | None = None,
    progress: Progress = silent,
) -> Circuit:
    """Find the circuit of a task.

    With damage = KL(clean ‖ run), or clean metric - metric, averaged over prompts, an edge is dropped iff removing it
    (on top of all removed before) raises the damage by less than ``tau``.

    Cost: one evaluation per edge of a live receiver, each recomputing only what the edge can reach and the logits
    can see. GPT-2 small has 32,491 edges.

    Args:
        run: over edges.
        tau: threshold, in the metric's unit (nats for KL); larger gives smaller circuits.
        absolute: compare the absolute rise with tau. An edge whose removal improves the metric by more than tau then
            stays.
        decided: decisions of an interrupted search with the same settings, to continue from.
        watch: called with every decision, in order (to log, or to resume later).
        progress: called with the number of edges decided and to decide.

    Returns:
        The kept edges; the score of each is its rise of the damage when it was decided on, as an effect (negative
        helps). ``provenance`` records order, threshold, guard band and the largest rounding difference seen.

    Raises:
        InvalidOption: tau is negative, infinite or not a number.

    Source: arXiv 2304.14997, algorithm 1. Ours is exact for its stated order (the paper's code follows dictionary
    order within a layer) and splits q, k and v. ``absolute`` is their ``--abs-value-threshold``.

    Example:
        >>> from patching import toy
        >>> run = MaskedRun(toy.model(), toy.task())
        >>> circuit = search(run, tau=0.1)
        >>> circuit.n_edges < run.n_units
        True
    """
    if not isinstance(tau, int | float) or not math.isfinite(tau) or tau < 0:
        raise InvalidOption(
            f"expected tau to be a number of 0 or more, in the unit of {run.metric.name}; got {tau!r}. "
            "0.01 to 0.1 are usual."
        )
    if run.level != "edge" or run.per_position:
        raise InvalidOption("expected a run over edges; use run.edges().")
    walk = _Walk(run, tau, absolute, watch, progress)
    walk.replay(decided)
    for stage in reversed(range(len(run.planner.stages))):
        walk.stage(stage)
    return walk.circuit()


class _Walk:
    """The state of one search."""

    def __init__(self, run: MaskedRun, tau: float, absolute: bool, watch: Watch | None, progress: Progress) -> None:
        self.run, self.tau, self.absolute = run, tau, absolute
        self.watch, self.progress = watch, progress
        self.mask = run.ones()
        self.cursor: Cursor = run.cursor()
        self.accepted = self.mask.clone()  # the mask at the last evaluated removal
        self.current = self._damage(self.cursor.metric)
        self._canonical_now: tuple[Tensor, float] | None = None  # a mask and its damage on the canonical run
        self.deltas: dict[int, float] = {}
        self.decided = 0
        self.longest = self._longest_chain()
        self.chain, self.stretch = self.longest, float(self.longest)
        self.source_of: list[int] = run.edge_sources.tolist()
        self.undecided: deque[int] = deque()  # edges into the ports at hand, in order
        self.dead: set[int] = set()  # those whose port feeds nothing any more
        self.estimates: list[float] = []  # what the delta of each edge should be, to first order
        self.measured: set[int] = set()  # edges of which the estimate was measured at nearly the present mask
        self.habit = [0.0] * len(run.graph.sources)  # how often edges of each source stayed of late
        self.misses = [0.0, 0.0]  # how often estimates and habits were wrong of late
        self.evaluated = 0
        self.rounding = 0.0
        self.guard = self._band()

    def _damage(self, values: Tensor) -> float:
        return float(self.run.damage(values))

    def _rise(self, delta: float) -> float:
        """What is compared with tau."""
        return abs(delta) if self.absolute else delta

    def _canonical(self, mask: Tensor) -> float:
        return self._damage(self.run(mask))

    def _longest_chain(self) -> int:
        if self.run.model.device.type != "cpu":
            return LONGEST_CHAIN
        work = self.run.task.clean.numel() * self.run.model.d_model**2
        return max(2, min(LONGEST_CHAIN, round((CHAIN_WORK / work) ** 0.5)))

    def _band(self) -> float:
        """How close to tau a decision is taken again: many times the rounding seen, and never below a floor."""
        scale = max(1.0, float(self.run.clean_metric.abs().max()))
        return max(16 * self.rounding, BAND * torch.finfo(self.run.model.dtype).eps * scale)

    def replay(self, decided: Sequence[Decision]) -> None:
        """Take over decisions already made."""
        if not decided:
            return
        order = [edge for target in reversed(range(len(self.run.graph.targets))) for edge in self._incoming(target)]
        for number, decision in zip(order, decided, strict=False):
            if self.run.units[number] != decision.edge:
                raise InvalidOption(
                    f"expected decision {self.decided} to be about {self.run.units[number]}; got {decision.edge}. "
                    "These decisions are of another model or order: start again."
                )
            if not decision.kept:
                self.mask[number] = 0.0
                if decision.delta is not None:
                    self.accepted = self.mask.clone()
            elif decision.delta is not None:
                self.deltas[number] = decision.delta
            self.decided += 1
        self.cursor = self.run.cursor(self.mask)
        self.current = self._canonical(self.accepted)

    def _incoming(self, target: int) -> list[int]:
        """Edges into a port, latest sender first."""
        first = sum(self.run.graph.n_visible[:target])
        return list(reversed(range(first, first + self.run.graph.n_visible[target])))

    def _alive(self, port: Port) -> bool:
        """Whether the node that reads here still feeds anything."""
        graph, node = self.run.graph, port.node
        if node.kind == "logits":
            return True
        writers = graph.query_heads(node) if node.kind == "kv" else (node,)
        columns = {graph.source_index[writer] for writer in writers}
        sources = self.run.edge_sources
        return any(bool(self.mask[sources == column].any()) for column in columns)

    def stage(self, number: int) -> None:
        """Decide on all edges into the ports that are read together.

        None of these ports feeds another, so which of them are alive is known at the start.
        """
        targets = self.run.planner.stages[number].targets
        edges = {target: self._incoming(target) for target in reversed(range(targets.start, targets.stop))}
        done = self.decided - (self.run.n_units - sum(self.run.graph.n_visible[: targets.stop]))
        self.undecided = deque([edge for some in edges.values() for edge in some][max(0, done) :])
        dead = [target for target in edges if not self._alive(self.run.graph.targets[target])]
        self.dead = {edge for target in dead for edge in edges[target]}
        self.measured.clear()
        if not self.dead.issuperset(self.undecided):
            sign = 1.0 if self.run.metric.higher_is_better else -1.0
            self.estimates = (sign * self.cursor.slopes(number)).tolist()
        while self.undecided:
            self._decide()

    def _expects(self, edge: int) -> tuple[bool, bool]:
        """Whether an edge should stay by its estimate, and by habit."""
        return self._rise(self.estimates[edge]) >= self.tau, self.habit[self.source_of[edge]] > 0.5

    def _decide(self) -> None:
        """Evaluate a chain along the expected decisions and read it up to the first surprise.

        Sample i removes edge i on top of the edges before it that are expected to go, so it is the sequential
        algorithm's next step as long as those expectations were right.
        """
        chain, masks, expected = self._chain()
        damages = self.run.damage(self.cursor.look(masks)).tolist() if chain else []
        before = self.current
        removed, decided = None, 0
        for sample, edge in enumerate(chain):
            self._bury()
            delta = self._delta(damages[sample], masks[sample])
            kept = not self._rise(delta) < self.tau
            decided += 1
            if kept:
                self.deltas[edge] = delta
            else:
                self.current, self.accepted = damages[sample], masks[sample]
                removed = sample
            self._judge_predictors(edge, kept)
            self._report(kept=kept, delta=delta)
            if kept != expected[sample]:
                break
        self._bury()
        if removed is not None:
            self.cursor.move(removed)
        self._learn(chain, expected, damages, before)
        stretch = 2 * decided if decided == len(chain) else decided  # a chain without a surprise could have been longer
        self.stretch += STRETCH_RATE * (stretch - self.stretch)
        self.chain = max(2, min(self.longest, round(self.stretch)))

    def _chain(self) -> tuple[list[int], Tensor, list[bool]]:
        """The next edges to evaluate, the mask of each, and whether each is expected to stay."""
        longest = min(self.chain, self.run.samples_that_fit)
        by_habit = self.misses[0] > self.misses[1]
        chain: list[int] = []
        expected: list[bool] = []
        masks: list[Tensor] = []
        mask = self.mask.clone()
        for edge in self.undecided:
            if edge in self.dead:
                mask[edge] = 0.0
                continue
            if len(chain) == longest:
                break
            estimated, habitual = self._expects(edge)
            stays = habitual if by_habit and edge not in self.measured else estimated
            masks.append(mask.clone())
            masks[-1][edge] = 0.0
            if not stays:
                mask[edge] = 0.0
            chain.append(edge)
            expected.append(stays)
            doubtful = self.tau / DOUBT < self._rise(self.estimates[edge]) < self.tau * DOUBT
            if doubtful and edge not in self.measured and len(chain) > 1:
                break  # whatever comes of it, nothing after it is wasted
        return chain, torch.stack(masks) if masks else mask[None], expected

    def _judge_predictors(self, edge: int, kept: bool) -> None:
        for predictor, guess in enumerate(self._expects(edge)):
            self.misses[predictor] += MISS_RATE * ((guess != kept) - self.misses[predictor])
        source = self.source_of[edge]
        self.habit[source] += HABIT_RATE * (kept - self.habit[source])

    def _learn(self, chain: list[int], expected: list[bool], damages: list[float], before: float) -> None:
        """Better estimates for the edges of a chain: after a surprise, these are off by one interaction only."""
        for edge, stays, damage in zip(chain, expected, damages, strict=True):
            self.estimates[edge] = damage - before
            self.measured.add(edge)
            if not stays:
                before = damage

    def _delta(self, damage: float, mask: Tensor) -> float:
        """Rise of the damage; near the threshold, that of the canonical run."""
        delta = damage - self.current
        self.evaluated += 1
        distance = min(abs(delta - self.tau), abs(-delta - self.tau)) if self.absolute else abs(delta - self.tau)
        audit = self.evaluated % AUDIT_EVERY == 0
        if distance > self.guard and not audit:
            return delta
        if self._canonical_now is None or not torch.equal(self._canonical_now[0], self.accepted):
            self._canonical_now = (self.accepted, self._canonical(self.accepted))
        now, then = self._canonical_now[1], self._canonical(mask)
        self.rounding = max(self.rounding, abs(then - damage), abs(now - self.current))
        self.guard = self._band()
        return then - now

    def _bury(self) -> None:
        """Drop the edges into dead ports that come next."""
        while self.undecided and self.undecided[0] in self.dead:
            self._report(kept=False, delta=None)

    def _report(self, *, kept: bool, delta: float | None) -> None:
        edge = self.undecided.popleft()
        if not kept:
            self.mask[edge] = 0.0
        self.decided += 1
        if self.watch is not None:
            self.watch(Decision(self.run.graph.edge_at(edge), kept, delta))
        self.progress(self.decided, self.run.n_units)

    def circuit(self) -> Circuit:
        """What is left."""
        kept = self.mask.nonzero().flatten().tolist()
        options = {
            "tau": self.tau,
            "absolute": self.absolute,
            "order": "receivers last to first, senders latest first",
        }
        provenance = self.run.provenance("acdc", options)
        provenance["guard"] = {"band": self.guard, "largest_rounding": self.rounding}
        edges = [self.run.graph.edge_at(number) for number in kept]
        sign = -1.0 if self.run.metric.higher_is_better else 1.0
        scores = {edge: sign * self.deltas[number] for number, edge in zip(kept, edges, strict=True)}
        return Circuit(self.run.graph.architecture, tuple(edges), scores, provenance)
