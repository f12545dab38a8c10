"""ACDC: walk back from the logits and drop every edge whose loss the metric does not feel.

1. Receivers in reverse topological order; at each, senders latest first (or another of `candidates.ORDERS`). The
   order is part of the result.
2. Drop the edge if ``damage(without it) - damage(now) < tau``, strictly; then "now" is without it.
3. A receiver whose node no longer feeds anything loses its incoming edges unevaluated.

What is decided on can be edges, the q, k and v edges between two nodes together, or nodes; at every position or at each
(`candidates`). The circuit is, decision for decision, that of the plain sequential loop, however candidates are
batched. They are evaluated in chains along the expected decisions: "without the first", "without the first two", …;
decisions are read up to the first surprise, so only values that the sequential loop would compute are used, and
expectations matter for speed alone. They come from the gradient at the current mask (taken once for all ports that are
read together), from what the unread rest of a chain measured, and from how edges of the same sender fared of late.
Rounding differs between batched and unbatched arithmetic, so any decision closer to tau than a guard band is taken
again on the canonical, unbatched run; so is every 256th, which measures the rounding and widens the band where needed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from circuits.candidates import ORDERS, Agenda, Candidate, Receiver
from circuits.decision import Decision, Footing
from graphs.circuit import Circuit
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


Watch = Callable[[Decision], None]


def search(
    run: MaskedRun,
    *,
    tau: float,
    absolute: bool = False,
    order: str = "paper",
    merged: bool = False,
    seed: int = 0,
    decided: Sequence[Decision] = (),
    watch: Watch | None = None,
    progress: Progress = silent,
) -> Circuit:
    """Find the circuit of a task.

    With damage = KL(clean ‖ run), or clean metric - metric, averaged over prompts, an edge is dropped iff removing it
    (on top of all removed before) raises the damage by less than ``tau``.

    A run by `MaskedRun.nodes` decides on whole nodes: the circuit is then all edges between kept nodes. A run by
    `MaskedRun.positions` decides on every position by itself; there, what no answer position can see is dropped
    unevaluated, as is what stands before the first difference between clean and replaced prompts.

    Cost: one evaluation per edge of a live receiver, each recomputing only what the edge can reach and the logits
    can see. GPT-2 small has 32,491 edges.

    Args:
        run: over edges or nodes, perhaps by position.
        tau: threshold, in the metric's unit (nats for KL); larger gives smaller circuits.
        absolute: compare the absolute rise with tau. An edge whose removal improves the metric by more than tau then
            stays.
        order: a key of `candidates.ORDERS`: ``paper``, ``increasing``, ``eap`` or ``shuffle``.
        merged: decide on the q, k and v edges between two nodes together (a key/value group is a node of its own).
        seed: of the order ``shuffle``.
        decided: decisions of an interrupted search with the same settings, to continue from. With their footings, the
            result is that of the uninterrupted search to the last bit, at the price of evaluating the last few again.
        watch: called with every decision, in order (to log, or to resume later).
        progress: called with the number of candidates decided and to decide.

    Returns:
        The kept edges; the score of each is its rise of the damage when it was decided on, as an effect (negative
        helps); decisions on more than one edge have their effects in ``provenance["kept"]`` instead.
        ``provenance`` also records order, threshold, guard band, the largest rounding difference seen, and quantiles
        of the rises; a tau that kept or dropped everything is named in ``provenance["note"]``.

    Raises:
        InvalidOption: tau is negative, infinite or not a number; an option does not exist or does not go with the run.

    Source: arXiv 2304.14997, algorithm 1. Ours is exact for its stated order (the paper's code follows dictionary
    order within a layer) and splits q, k and v unless ``merged``. ``absolute`` is their ``--abs-value-threshold``,
    ``increasing`` their induction run's order. That the order matters: arXiv 2605.12671.

    Example:
        >>> from patching import toy
        >>> run = MaskedRun(toy.model(), toy.task())
        >>> circuit = search(run, tau=0.1)
        >>> circuit.n_edges < run.n_units
        True
    """
    _check_tau(run, tau)
    agenda = Agenda(run, order=order, merged=merged, seed=seed)
    walk = _Walk(agenda, tau, absolute, watch=watch, progress=progress)
    walk.replay(decided)
    walk.go()
    return walk.circuit()


def sweep(
    run: MaskedRun,
    *,
    taus: Sequence[float],
    absolute: bool = False,
    order: str = "paper",
    merged: bool = False,
    seed: int = 0,
    progress: Progress = silent,
) -> list[Circuit]:
    """The circuits of several thresholds, each the one that `search` finds.

    Searches share every decision up to the first on which their thresholds disagree; after that they speak of other
    models, and nothing that one measured can stand for another. So the saving is large for thresholds that are close.

    Args:
        run: as for `search`.
        taus: thresholds; the circuits come in their order.
        absolute: compare absolute rises.
        order: as for `search`.
        merged: decide on q, k and v together.
        seed: of the order ``shuffle``.
        progress: called with the number of candidates decided and to decide, over all thresholds.

    Raises:
        InvalidOption: as for `search`, or there is no threshold.

    Example:
        >>> from patching import toy
        >>> run = MaskedRun(toy.model(), toy.task())
        >>> [circuit.n_edges for circuit in sweep(run, taus=[0.0, 0.1, 9.0])]
        [9, 3, 0]
    """
    if not len(taus):
        raise InvalidOption("expected at least one tau; got none.")
    for tau in taus:
        _check_tau(run, tau)
    agenda = Agenda(run, order=order, merged=merged, seed=seed)
    total = agenda.n_candidates * len(taus)
    walks: dict[float, _Walk] = {}
    for number, tau in enumerate(sorted(set(taus))):
        before = number * agenda.n_candidates
        walk = _Walk(agenda, tau, absolute, progress=lambda done, _total, before=before: progress(before + done, total))
        walk.replay(max((other.shared(tau) for other in walks.values()), key=len, default=[]))
        walk.go()
        walks[tau] = walk
    progress(total, total)
    return [walks[tau].circuit() for tau in taus]


def _check_tau(run: MaskedRun, tau: object) -> None:
    if isinstance(tau, bool) or not isinstance(tau, int | float) or not math.isfinite(tau) or tau < 0:
        raise InvalidOption(
            f"expected tau to be a number of 0 or more, in the unit of {run.metric.name}; got {tau!r}. "
            "0.01 to 0.1 are usual."
        )


class _Walk:
    """The state of one search."""

    def __init__(
        self,
        agenda: Agenda,
        tau: float,
        absolute: bool,
        *,
        watch: Watch | None = None,
        progress: Progress = silent,
    ) -> None:
        run = self.run = agenda.run
        self.agenda, self.tau, self.absolute = agenda, tau, absolute
        self.watch, self.progress = watch, progress
        self.mask = run.ones().flatten()
        self.cursor: Cursor = run.cursor()
        self.accepted = self.mask.clone()  # the mask at the last evaluated removal
        self.current = self._damage(self.cursor.metric)
        self._canonical_now: tuple[Tensor, float] | None = None  # a mask and its damage on the canonical run
        self.log: list[Decision] = []
        self.total = agenda.n_candidates
        self.deltas: dict[int, float] = {}  # of what stays, by its first mask entry
        self.longest = self._longest_chain()
        self.chain, self.stretch = self.longest, float(self.longest)
        self.stage: list[Candidate] = []
        self.where: list[int | list[int]] = []  # their mask entries, as an index
        self.footing: Footing | None = None  # until the stage's first decision takes it along
        self.undecided: deque[int] = deque()  # candidates of the stage at hand, in order
        self.dead: set[int] = set()  # those whose port feeds nothing any more
        self.estimates: list[float] = []  # what the delta of each should be, to first order
        self.measured: set[int] = set()  # those of which the estimate was measured at nearly the present mask
        self.habit = [0.0] * len(run.graph.sources)  # how often edges of each source stayed of late
        self.misses = [0.0, 0.0]  # how often estimates and habits were wrong of late
        self.evaluated = 0
        self.rounding = 0.0
        self.guard = self._band()
        self.first_order: Tensor | None = None  # over nodes: effects at the start
        self.known: Sequence[Decision] = ()  # made before, some of them evaluated again

    def _damage(self, values: Tensor) -> float:
        return float(self.run.damage(values))

    def _rise(self, delta: float) -> float:
        """What is compared with tau."""
        return abs(delta) if self.absolute else delta

    def _canonical(self, mask: Tensor) -> float:
        return self._damage(self.run(mask.reshape(self.run.mask_shape)))

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
        self.known = decided
        begun = [place for place, decision in enumerate(decided) if decision.footing is not None]
        for candidate, decision in zip(self.agenda, decided[: begun[-1]] if begun else decided, strict=False):
            if candidate.name != decision.name:
                raise InvalidOption(
                    f"expected decision {len(self.log)} to be about {candidate.name}; got {decision.name}. "
                    "These decisions are of another model or order: start again."
                )
            if not decision.kept:
                self.mask[list(candidate.entries)] = 0.0
                if decision.delta is not None:
                    self.accepted = self.mask.clone()
            elif decision.delta is not None:
                self.deltas[candidate.entries[0]] = decision.delta
            self.log.append(decision)
        footing = decided[begun[-1]].footing if begun else None
        if footing is None:
            self.cursor = self.run.cursor(self.mask.reshape(self.run.mask_shape))
            self.current = self._canonical(self.accepted)
            return
        if len(footing.habit) != len(self.habit):
            raise InvalidOption(
                f"expected decisions of a model with {len(self.habit)} nodes that write; got {len(footing.habit)}. "
                "These decisions are of another model: start again."
            )
        self.stretch, self.evaluated, self.rounding = footing.stretch, footing.evaluated, footing.rounding
        self.misses, self.habit = list(footing.misses), list(footing.habit)
        self.guard = self._band()

    def _stand(self) -> Footing:
        """Begin a stage from its mask alone, as a search that goes on from here would."""
        self.cursor = self.run.cursor(self.mask.reshape(self.run.mask_shape))
        self.accepted, self.current, self._canonical_now = self.mask.clone(), self._damage(self.cursor.metric), None
        self.chain = max(2, min(self.longest, round(self.stretch)))
        return Footing(self.stretch, self.evaluated, self.rounding, tuple(self.misses), tuple(self.habit))

    def shared(self, tau: float) -> list[Decision]:
        """The decisions of this finished search that one with another threshold surely makes too."""
        count = 0
        for decision in self.log:
            if decision.delta is not None:
                rise = self._rise(decision.delta)
                if (rise < tau) == decision.kept or abs(rise - tau) <= self.guard:
                    break
            count += 1
        return [replace(decision, footing=None) for decision in self.log[:count]]

    def go(self) -> None:
        """Decide on everything that is not decided yet."""
        passed = 0
        for number, receivers in enumerate(self.agenda.stages()):
            size = sum(len(receiver.candidates) for receiver in receivers)
            if passed + size > len(self.log):
                self._decide_stage(number, receivers, done=max(0, len(self.log) - passed))
            passed += size

    def _decide_stage(self, number: int, receivers: list[Receiver], *, done: int) -> None:
        """Decide on all edges into the ports that are read together, or all nodes that write together.

        None of these feeds another, so which of them are alive is known at the start.
        """
        alive = self.agenda.alive(self.mask, receivers)
        self.stage = [candidate for receiver in receivers for candidate in receiver.candidates]
        self.where = [each.entries[0] if len(each.entries) == 1 else list(each.entries) for each in self.stage]
        lives = [life for receiver, life in zip(receivers, alive, strict=True) for _ in receiver.candidates]
        self.undecided = deque(range(done, len(self.stage)))
        self.dead = {place for place, life in enumerate(lives) if not life}
        self.measured.clear()
        self.footing = None if done else self._stand()
        if not self.dead.issuperset(self.undecided):
            self.estimates = self._estimates(number)
        while self.undecided:
            self._decide()

    def _estimates(self, number: int) -> list[float]:
        """What removing each candidate of the stage should add to the damage: gradients at the current mask.

        Over nodes, those at the first mask: one more gradient a stage would cost as much as it saves.
        """
        if self.run.level == "edge":
            slopes = self.cursor.slopes(len(self.run.planner.stages) - 1 - number)
        else:
            if self.first_order is None:
                self.first_order = self.run.gradient(self.run.ones())
            slopes = self.first_order
        sign = 1.0 if self.run.metric.higher_is_better else -1.0
        flat = (sign * slopes).flatten().tolist()
        return [sum(flat[entry] for entry in candidate.entries) for candidate in self.stage]

    def _expects(self, place: int) -> tuple[bool, bool]:
        """Whether a candidate should stay by its estimate, and by habit."""
        return self._rise(self.estimates[place]) >= self.tau, self.habit[self.stage[place].source] > 0.5

    def _decide(self) -> None:
        """Evaluate a chain along the expected decisions and read it up to the first surprise.

        Sample i removes candidate i on top of those before it that are expected to go, so it is the sequential
        algorithm's next step as long as those expectations were right.
        """
        chain, masks, expected = self._chain()
        damages = self.run.damage(self.cursor.look(masks)).tolist() if chain else []
        before = self.current
        removed, decided = None, 0
        for sample, place in enumerate(chain):
            self._bury()
            delta = self._delta(damages[sample], masks[sample].flatten())
            kept = not self._rise(delta) < self.tau
            if len(self.log) < len(self.known):  # on another machine it may differ by rounding
                known = self.known[len(self.log)]
                kept, delta = known.kept, delta if known.delta is None else known.delta
            decided += 1
            if kept:
                self.deltas[self.stage[place].entries[0]] = delta
            else:
                self.current, self.accepted = damages[sample], masks[sample].flatten()
                removed = sample
            self._judge_predictors(place, kept)
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
        """The next candidates to evaluate, the mask of each, and whether each is expected to stay."""
        longest = min(self.chain, self.run.samples_that_fit)
        by_habit = self.misses[0] > self.misses[1]
        chain: list[int] = []
        expected: list[bool] = []
        masks: list[Tensor] = []
        mask = self.mask.clone()
        for place in self.undecided:
            where = self.where[place]
            if place in self.dead:
                mask[where] = 0.0
                continue
            if len(chain) == longest:
                break
            estimated, habitual = self._expects(place)
            stays = habitual if by_habit and place not in self.measured else estimated
            masks.append(mask.clone())
            masks[-1][where] = 0.0
            if not stays:
                mask[where] = 0.0
            chain.append(place)
            expected.append(stays)
            doubtful = self.tau / DOUBT < self._rise(self.estimates[place]) < self.tau * DOUBT
            if doubtful and place not in self.measured and len(chain) > 1:
                break  # whatever comes of it, nothing after it is wasted
        whole = torch.stack(masks) if masks else mask[None]
        return chain, whole.reshape(-1, *self.run.mask_shape), expected

    def _judge_predictors(self, place: int, kept: bool) -> None:
        for predictor, guess in enumerate(self._expects(place)):
            self.misses[predictor] += MISS_RATE * ((guess != kept) - self.misses[predictor])
        source = self.stage[place].source
        self.habit[source] += HABIT_RATE * (kept - self.habit[source])

    def _learn(self, chain: list[int], expected: list[bool], damages: list[float], before: float) -> None:
        """Better estimates for what a chain looked at: after a surprise, these are off by one interaction only."""
        for place, stays, damage in zip(chain, expected, damages, strict=True):
            self.estimates[place] = damage - before
            self.measured.add(place)
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
        """Drop the dead candidates that come next."""
        while self.undecided and self.undecided[0] in self.dead:
            self._report(kept=False, delta=None)

    def _report(self, *, kept: bool, delta: float | None) -> None:
        place = self.undecided.popleft()
        if not kept:
            self.mask[self.where[place]] = 0.0
        decision = Decision(self.stage[place].name, kept, delta, self.footing)
        self.footing = None
        if len(self.log) < len(self.known) and self.known[len(self.log)].name != decision.name:
            raise InvalidOption(
                f"expected decision {len(self.log)} to be about {decision.name}; got {self.known[len(self.log)].name}. "
                "These decisions are of another model or order: start again."
            )
        self.log.append(decision)
        if self.watch is not None and len(self.log) > len(self.known):
            self.watch(decision)
        self.progress(len(self.log), self.total)

    # --- what is left ------------------------------------------------------------------------------------------------

    def circuit(self) -> Circuit:
        """The kept edges and how they were found."""
        agenda = self.agenda
        options = {"tau": self.tau, "absolute": self.absolute, "order": agenda.order, "merged": agenda.merged}
        if agenda.order == "shuffle":
            options["seed"] = agenda.seed
        provenance = self.run.provenance("acdc", options)
        provenance["level"] = f"{self.run.level}{' by position' if self.run.per_position else ''}"
        provenance["order"] = ORDERS[agenda.order]
        provenance["guard"] = {"band": self.guard, "largest_rounding": self.rounding}
        provenance |= self._rises()
        sign = -1.0 if self.run.metric.higher_is_better else 1.0
        found = agenda.edges(self.mask)
        scores = {}
        if self.run.level == "edge" and not agenda.merged:
            scores = {edge: sign * self.deltas[entry] for edge, entry in found}
        else:
            kept = (decision for decision in self.log if decision.kept and decision.delta is not None)
            provenance["kept"] = {decision.name: sign * (decision.delta or 0.0) for decision in kept}
        return Circuit(self.run.graph.architecture, tuple(edge for edge, _ in found), scores, provenance)

    def _rises(self) -> dict[str, Any]:
        """How the rises were distributed, and what to do about a tau beyond all of them."""
        rises = [self._rise(decision.delta) for decision in self.log if decision.delta is not None]
        if not rises:
            return {}
        marks = torch.tensor([0.5, 0.9, 0.99, 1.0], dtype=torch.float64)
        half, most, nearly, top = torch.quantile(torch.tensor(rises, dtype=torch.float64), marks).tolist()
        named = {"median": half, "90%": most, "99%": nearly, "largest": top}
        shown = {name: float(f"{value:.4g}") for name, value in named.items()}
        found: dict[str, Any] = {"rises": {"evaluated": len(rises), **shown}}
        kept = sum(decision.kept for decision in self.log)
        if kept in (0, len(self.log)):
            what = "nothing" if kept == 0 else "everything"
            low, high = sorted((max(0.0, most), max(0.0, top)))
            found["note"] = (
                f"tau {self.tau:g} keeps {what}. Of the rises met 10 % were above {low:.3g} and none above {high:.3g}: "
                + (f"try tau from {low / 2:.3g} to {high:.3g}." if high > 0 else "nothing here matters to the metric.")
            )
        return found
