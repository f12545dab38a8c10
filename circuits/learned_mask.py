"""Learned masks: what the methods share that find a circuit by gradient descent on a mask.

1. Every unit has a real parameter. A step draws a mask from the parameters, runs it, and takes the damage plus a
   price for keeping units.
2. Adam moves the parameters until the smoothed loss no longer falls, or the steps are used up.
3. Parameters become keep probabilities, and a threshold on these gives the circuit.

The mask is the engine's own: entries between 0 and 1 mix current and replaced values. Draws come from a generator of
the search's seed, in double precision, so a search repeats bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from graphs.circuit import Circuit
from graphs.components import ComponentGraph
from graphs.nodes import Edge
from patching import exact
from patching.errors import InvalidMask, InvalidOption, NotFinite
from patching.masked import MaskedRun
from patching.progress import Progress, silent
from patching.scores import Scores

PATIENCE = 40
"""A search stops when the mean loss of this many steps is no lower than that of as many before."""
THRESHOLD = 0.5
"""Units of a higher keep probability are kept."""


@dataclass(frozen=True)
class HardConcrete:
    """A random number in [0, 1] that is 0 or 1 with some probability, and yet has a gradient.

    ``s = sigmoid((log u - log(1 - u) + log_alpha) / beta)`` with u uniform, stretched to ``[gamma, zeta]`` and
    clamped to [0, 1].

    Attributes:
        beta: temperature; smaller is closer to a coin.
        gamma: lower end of the stretched interval, below 0.
        zeta: its upper end, above 1.

    Source: arXiv 1712.01312, equations 10 to 12, with its constants.

    Example:
        >>> coin = HardConcrete()
        >>> [round(float(coin.open(torch.tensor(value))), 3) for value in (-2.0, 0.0, 2.0)]
        [0.401, 0.832, 0.973]
    """

    beta: float = 2 / 3
    gamma: float = -0.1
    zeta: float = 1.1

    def sample(
        self, log_alpha: Float[Tensor, "*sample unit"], uniform: Float[Tensor, "*sample unit"]
    ) -> Float[Tensor, "*sample unit"]:
        """The value that goes with a uniform number."""
        tiny = torch.finfo(uniform.dtype).tiny
        noise = torch.log(uniform.clamp(min=tiny)) - torch.log1p(-uniform)
        return self._clamped(torch.sigmoid((noise + log_alpha) / self.beta))

    def open(self, log_alpha: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The probability that a value is not 0: ``sigmoid(log_alpha - beta log(-gamma / zeta))``."""
        return torch.sigmoid(log_alpha - self.beta * math.log(-self.gamma / self.zeta))

    def middle(self, log_alpha: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The value without noise, ``sigmoid(log_alpha)`` stretched and clamped; 1/2 where log_alpha is 0."""
        return self._clamped(torch.sigmoid(log_alpha))

    def start(self, middle: float) -> float:
        """The log_alpha whose `middle` is a given number between 0 and 1."""
        share = (middle - self.gamma) / (self.zeta - self.gamma)
        return math.log(share / (1 - share))

    def _clamped(self, share: Tensor) -> Tensor:
        return (share * (self.zeta - self.gamma) + self.gamma).clamp(0, 1)


HARD_CONCRETE = HardConcrete()


@dataclass(frozen=True)
class Step:
    """What one step of a search says of itself.

    Attributes:
        loss: what is minimised.
        damage: the part of it that the drawn masks did to the task.
        settled: whether this step counts for stopping; a search whose target still moves says no.
    """

    loss: Float[Tensor, ""]
    damage: float
    settled: bool = True


@dataclass(frozen=True)
class Training:
    """How a search went.

    Attributes:
        losses: of every step done.
        damages: the damage of every step's masks.
        stopped: ``steps`` or ``no improvement``.
    """

    losses: tuple[float, ...]
    damages: tuple[float, ...]
    stopped: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a provenance."""
        return {
            "steps": len(self.losses),
            "stopped": self.stopped,
            "patience": PATIENCE,
            "losses": list(self.losses),
            "damages": list(self.damages),
        }


@dataclass(frozen=True)
class LearnedMask:
    """What a search learned, of every unit: not only of those that it keeps.

    Attributes:
        circuit: of the units kept. Its edges have no scores, since a probability is no effect; its provenance has the
            options, the seed and, under ``training``, the loss of every step.
        level: ``edge`` or ``node``.
        probability: that a unit is kept, in the order of the run's units.
        training: how the search went.
    """

    circuit: Circuit
    level: str
    probability: Float[Tensor, " unit"]
    training: Training

    @property
    def losses(self) -> tuple[float, ...]:
        """The loss of every step."""
        return self.training.losses

    def scores(self) -> Scores:
        """The probabilities as scores: positive importances and no effects, good for ranking alone."""
        sign = {"sign": "importance: the learned keep probability, not an effect"}
        provenance = dict(self.circuit.provenance) | sign
        return Scores(self.circuit.architecture, self.level, self.probability, None, provenance)


def with_effects(run: MaskedRun, learned: LearnedMask) -> Circuit:
    """The circuit of a learned mask, with the exact effect of ablating each of its edges alone as scores.

    Cost: one partial run per kept edge.
    """
    circuit = learned.circuit
    measured = exact.scores(run.edges(), only=circuit.edges)
    return replace(circuit, scores={edge: measured[edge] for edge in circuit.edges})


def minimise(
    step: Callable[[int, torch.Generator], Step],
    parameters: Sequence[Tensor],
    *,
    steps: int,
    lr: float,
    seed: int,
    multipliers: Sequence[Tensor] = (),
    multiplier_lr: float = 0.0,
    progress: Progress = silent,
) -> Training:
    """Adam on the loss of a step, until it no longer falls; parameters are changed in place.

    Args:
        step: from its number, counted from 0, and a generator to its loss.
        parameters: descend.
        steps: at most.
        lr: Adam's learning rate.
        seed: of the generator.
        multipliers: ascend (Lagrange multipliers).
        multiplier_lr: their learning rate.
        progress: called with the number of steps done and to do.

    Raises:
        InvalidOption: fewer than one step, a learning rate that is not above 0, a seed that is none, or a loss
            without a gradient.
        NotFinite: the loss or its gradient became NaN or infinite; the message names the step.
    """
    check_whole(steps, name="steps", least=1)
    check_number(lr, name="lr", above=0.0)
    check_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    groups: list[dict[str, Any]] = [{"params": list(parameters)}]
    if multipliers:
        groups.append({"params": list(multipliers), "lr": multiplier_lr, "maximize": True})
    adam = torch.optim.Adam(groups, lr=lr)
    moved = [*parameters, *multipliers]
    losses: list[float] = []
    damages: list[float] = []
    settled: list[float] = []
    for number in range(steps):
        taken = _take(step, number, generator, moved)
        adam.step()
        losses.append(float(taken.loss.detach()))
        damages.append(taken.damage)
        settled = [*settled, losses[-1]] if taken.settled else []
        if no_longer_falls(settled):
            progress(steps, steps)
            return Training(tuple(losses), tuple(damages), "no improvement")
        progress(number + 1, steps)
    return Training(tuple(losses), tuple(damages), "steps")


def _take(
    step: Callable[[int, torch.Generator], Step], number: int, generator: torch.Generator, moved: Sequence[Tensor]
) -> Step:
    """One step's loss, its gradient left on the parameters."""
    try:
        with torch.enable_grad():
            taken = step(number, generator)
            finite = bool(torch.isfinite(taken.loss.detach()))
            gradients = torch.autograd.grad(taken.loss, moved) if finite else ()
    except (NotFinite, InvalidMask) as error:
        raise NotFinite(f"step {number} of the search: {error}") from error
    if not finite or not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
        what = "gradient" if finite else "loss"
        raise NotFinite(
            f"expected a finite {what} at every step; step {number} of the search has NaN or infinity. "
            "Lower lr, or check the prompts and the metric."
        )
    for parameter, gradient in zip(moved, gradients, strict=True):
        parameter.grad = gradient
    return taken


def no_longer_falls(losses: Sequence[float]) -> bool:
    """Whether the mean of the last `PATIENCE` losses is no lower than the mean of as many before."""
    if len(losses) < 2 * PATIENCE:
        return False
    before, last = losses[-2 * PATIENCE : -PATIENCE], losses[-PATIENCE:]
    return math.fsum(last) >= math.fsum(before)


def damage(run: MaskedRun, mask: Float[Tensor, "*sample unit"]) -> Float[Tensor, ""]:
    """The damage of masks, averaged over prompts and masks, with its gradient.

    The gradient is taken at once, mask by mask, so that no more than one run is held in memory; what is returned has
    that value and, by way of a product that is linear in the masks, that gradient.

    Raises:
        InvalidOption: the metric has no gradient.
    """
    values, slopes = run.value_and_gradient(mask)
    sign = run.metric.damage(torch.ones(()), torch.zeros(()))
    count = values[..., 0].numel()
    linear = (mask * (sign * slopes.to(mask)).detach()).sum() / count
    return run.damage(values).mean().to(mask) + linear - linear.detach()


def parameters(run: MaskedRun, value: float) -> Float[Tensor, " unit"]:
    """One parameter per unit, all at the same value."""
    return torch.full((run.n_units,), value, dtype=torch.float64, requires_grad=True)


def uniform(run: MaskedRun, generator: torch.Generator, *lead: int) -> Float[Tensor, "*lead unit"]:
    """Uniform random numbers, one per unit."""
    return torch.rand(*lead, run.n_units, generator=generator, dtype=torch.float64)


def circuit_of(run: MaskedRun, kept: Bool[Tensor, " unit"]) -> tuple[Edge, ...]:
    """The kept edges; at node level all edges between kept nodes, and from these to the logits.

    The metric is the same as under the mask over nodes: what a dropped node reads does not matter. A key/value group
    counts as kept if one of its heads is.
    """
    graph = run.graph
    if run.level == "edge":
        return tuple(graph.edge_at(number) for number in kept.nonzero().flatten().tolist())
    nodes = {node for node, keep in zip(graph.sources, kept.tolist(), strict=True) if keep}
    return tuple(edge for edge in graph.edges if edge.source in nodes and _reads_for(graph, edge, nodes))


def _reads_for(graph: ComponentGraph, edge: Edge, nodes: set[Any]) -> bool:
    target = edge.target
    if target.kind == "logits":
        return True
    return not nodes.isdisjoint(graph.query_heads(target) if target.kind == "kv" else (target,))


def learned(
    run: MaskedRun,
    probability: Float[Tensor, " unit"],
    kept: Bool[Tensor, " unit"],
    training: Training,
    *,
    method: str,
    options: dict[str, Any],
    selection: dict[str, Any],
) -> LearnedMask:
    """Put a search's results together."""
    provenance = run.provenance(method, options)
    provenance["training"] = training.to_dict()
    provenance["selection"] = {"level": run.level, "units_kept": int(kept.sum()), **selection}
    circuit = Circuit(run.graph.architecture, circuit_of(run, kept), None, provenance)
    return LearnedMask(circuit, run.level, probability.detach().clone(), training)


def check_run(run: MaskedRun, *levels: str) -> None:
    """Refuse runs over units that a method does not learn.

    Raises:
        InvalidOption: the run is over others, or by position.
    """
    if run.level not in levels or run.per_position:
        wanted = " or ".join(f"{level}s" for level in levels)
        by = " by position" if run.per_position else ""
        views = " or ".join(f"run.{level}s()" for level in levels)
        hint = (
            f"Make one with MaskedRun(run.model, run.task) and take {views}." if run.per_position else f"Use {views}."
        )
        raise InvalidOption(f"expected a run over {wanted} at all positions; got one over {run.level}s{by}. {hint}")


def check_whole(value: object, *, name: str, least: int) -> None:
    """Refuse what is no whole number from ``least`` on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidOption(f"expected {name} to be a whole number of at least {least}; got {value!r}.")


def check_number(value: object, *, name: str, least: float = -math.inf, above: float = -math.inf) -> None:
    """Refuse what is no finite number, below ``least`` or not above ``above``."""
    ok = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    if not ok or value < least or value <= above:  # type: ignore[operator]
        bound = f"above {above:g}" if above > -math.inf else f"of at least {least:g}" if least > -math.inf else ""
        raise InvalidOption(f"expected {name} to be a finite number {bound}; got {value!r}.".replace(" ;", ";"))


def check_seed(seed: object) -> None:
    """Refuse what is no seed."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InvalidOption(f"expected seed to be a whole number from 0 to 2^63 - 1; got {seed!r}.")
