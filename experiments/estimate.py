"""What a run will cost, before it is begun: prompts through the model, forwards and backwards, and the time of that.

Counts follow from what each method's documentation says of its cost. One forward is one prompt through the whole model
once; a run that begins in the middle of the model counts as a whole one, so counts of searches are upper bounds. Times
are those of earlier runs of the same settings in the store, or forwards times what one forward takes here, now.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from circuits.methods import METHODS
from experiments.config import Config, PatchConfig
from experiments.model_files import digests
from experiments.store.rows import Row
from graphs.components import Architecture, ComponentGraph
from graphs.errors import WiretraceError

if TYPE_CHECKING:
    from experiments.config_file import AnyConfig

EVALUATION_MASKS: Final = 33
"""Masks that judge a circuit: it, its complement, ten random ones and ten of random paths; it and the ten random ones
once more by their divergence (`circuits.evaluate`)."""

CURVE_MASKS: Final = 2 * 10 * 4
"""Masks of the curve over sizes: two rankings, ten sizes, the scores and three random rankings (`circuits.curves`)."""

RUN: Final = 2
"""Forwards that making a run takes: the clean and the corrupt prompts."""

TRIAL_PROMPTS: Final = 8

HUB: Final[Mapping[str, Architecture]] = {
    "gpt2": Architecture(12, 12),
    "gpt2-medium": Architecture(24, 16),
    "gpt2-large": Architecture(36, 20),
    "gpt2-xl": Architecture(48, 25),
}
"""Shapes of some models that need not be here for their edges to be counted."""


@dataclass(frozen=True)
class Shape:
    """What of a model decides costs.

    Attributes:
        layers, heads: of the model.
        edge, node, neuron: how many there are of each unit; neurons are None if nobody knows.
        length: tokens of a prompt; None if nobody knows.
    """

    layers: int
    heads: int
    edge: int
    node: int
    neuron: int | None = None
    length: int | None = None

    @staticmethod
    def of(architecture: Architecture, *, neuron: int | None = None, length: int | None = None) -> Shape:
        """The shape of an architecture."""
        graph = ComponentGraph(architecture)
        heads = architecture.n_layers * architecture.n_heads
        return Shape(architecture.n_layers, heads, graph.n_edges, len(graph.sources), neuron, length)


@dataclass(frozen=True)
class Cost:
    """What a run takes.

    Attributes:
        forwards: Prompts that go forward through the model.
        backwards: And backward.
        at_most: Whether some of them stop early or begin late, so that it is less.
    """

    forwards: int
    backwards: int = 0
    at_most: bool = False

    def __add__(self, other: Cost) -> Cost:
        at_most = self.at_most or other.at_most
        return Cost(self.forwards + other.forwards, self.backwards + other.backwards, at_most)

    def times(self, prompts: int) -> Cost:
        """The cost of as many prompts."""
        return Cost(self.forwards * prompts, self.backwards * prompts, self.at_most)


@dataclass(frozen=True)
class Speed:
    """How fast a model is on this machine.

    Attributes:
        load: Seconds to load it.
        forward: Seconds for one prompt forward, in a batch of some.
        backward: Seconds for the gradient of one, beyond its forward.
        prompts: How many were timed together.
        shape: Of the model.
    """

    load: float
    forward: float
    backward: float
    prompts: int
    shape: Shape

    def seconds(self, cost: Cost) -> float:
        """How long a run of this cost takes."""
        return self.load + self.forward * cost.forwards + self.backward * cost.backwards


@dataclass(frozen=True)
class Estimate:
    """What is expected of a run.

    Attributes:
        cost: Forwards and backwards; None where the model's shape is not known here.
        seconds: How long; None where nothing is known.
        source: Where the time is from: `earlier runs`, `measured`, or why there is none.
    """

    cost: Cost | None
    seconds: float | None
    source: str


def cost(config: AnyConfig, shape: Shape) -> Cost:
    """What a run takes of a model.

    Args:
        config: The settings.
        shape: Of its model.

    Example:
        >>> tiny = Shape.of(Architecture(1, 2))
        >>> cost(Config("ioi", "zoo:ioi", "atp", prompts=10, held_out=5), tiny)
        Cost(forwards=195, backwards=10, at_most=False)
    """
    if isinstance(config, Config):
        judged = EVALUATION_MASKS + RUN + (CURVE_MASKS if config.curve else 0)
        return search_cost(config, shape) + Cost(judged).times(config.held_out)
    if isinstance(config, PatchConfig):
        return _patching(config, shape).times(config.prompts) + Cost(RUN).times(config.prompts)
    n_units = _components(config.families, shape)
    samples = config.samples or min(20_000, max(1_000, 10 * n_units))
    alone = n_units if n_units <= 2_000 else 0
    return Cost(RUN + samples + 3 * config.held_out + alone + 2, 2, at_most=True).times(config.prompts)


def search_cost(config: Config, shape: Shape) -> Cost:
    """What the method alone takes, and making its run, without judging the circuit."""
    return (_search(config, shape) + Cost(RUN)).times(config.prompts)


def estimate(config: AnyConfig, *, earlier: Sequence[Row] = (), speed: Speed | None = None, why: str = "") -> Estimate:
    """What to expect of a run.

    Args:
        config: The settings.
        earlier: Rows of the store; finished runs of the same settings, but for the seed, tell the time.
        speed: Of the model here; None if it was not measured.
        why: Why not.
    """
    shape = speed.shape if speed else known_shape(config.model)
    found = None if shape is None else cost(config, shape)
    times = [row.get("seconds") for row in earlier if row["state"] == "finished" and _alike(row, config)]
    known = [float(each) for each in times if isinstance(each, int | float)]
    if known:
        return Estimate(found, median(known), "earlier runs")
    if speed is None or found is None:
        return Estimate(found, None, why or "not known")
    return Estimate(found, speed.seconds(found), "measured")


def known_shape(model: str) -> Shape | None:
    """The shape of a model that need not be here."""
    architecture = HUB.get(model.rpartition("/")[2])
    return None if architecture is None else Shape.of(architecture)


def measure(config: AnyConfig) -> Speed:
    """Load the model of a config and time a forward and a gradient of a few of its prompts.

    Raises:
        WiretraceError: The model is not on this machine (nothing is downloaded), or the task does not suit it.
    """
    from circuits import tasks
    from experiments.discover import SEARCH_SPLIT, load_model
    from experiments.errors import BadConfig
    from patching.masked import MaskedRun

    if not digests(config.model):
        raise BadConfig(f"expected {config.model} on this machine; it is not here.")
    load_model(config)  # the first time brings the libraries in, once for however many runs
    start = time.perf_counter()
    model = load_model(config)
    prompts = min(TRIAL_PROMPTS, config.prompts)
    task = tasks.load(config.task).make(model, n=prompts, seed=config.seed, split=SEARCH_SPLIT)
    loaded = time.perf_counter()
    run = MaskedRun(model, task)
    made = time.perf_counter()
    run.edges().gradient(run.edges().ones())
    ended = time.perf_counter()
    forward = (made - loaded) / RUN / prompts
    neuron = run.neurons().n_units if model.architecture.has_mlp else None
    shape = Shape.of(model.architecture, neuron=neuron, length=int(task.clean.shape[-1]))
    return Speed(loaded - start, forward, max(0.0, (ended - made) / prompts - forward), prompts, shape)


def try_to_measure(config: AnyConfig) -> tuple[Speed | None, str]:
    """The speed, or why it cannot be measured."""
    try:
        return measure(config), ""
    except WiretraceError as error:
        return None, str(error)


# ---------------------------------------------------------------------------------------------------- the methods


def _search(config: Config, shape: Shape) -> Cost:
    """Forwards and backwards of a method on one prompt, beyond those of making the run."""
    units = {"edge": shape.edge, "node": shape.node, "neuron": shape.neuron or shape.node}[config.level or "edge"]
    if config.positions and shape.length:
        units *= shape.length
    return _METHODS[config.method](Options(config.options, config.method), units, shape)


class Options:
    """The options of a method, those that were not given as its function has them."""

    def __init__(self, given: Mapping[str, Any], method: str) -> None:
        self._given, self._method = given, method

    def __call__(self, name: str) -> Any:
        """The value of an option."""
        if name in self._given:
            return self._given[name]
        import inspect

        return inspect.signature(METHODS[self._method].function()).parameters[name].default


def _points(options: Options) -> int:
    """How many points an integral has: the rule says it in the method's own words."""
    return int(options("steps")) + (0 if options("rule") in ("left", "right", "midpoint") else 1)


def _learned(dense: int, units: int) -> Cost:
    """Dense steps, then one partial run for each edge that is kept: all of them at most."""
    return Cost(dense, dense) + Cost(units, at_most=True)


_METHODS: Final[Mapping[str, Callable[[Options, int, Shape], Cost]]] = {
    "acdc": lambda options, units, shape: Cost(units, at_most=True),
    "subnetwork_probing": lambda options, units, shape: _learned(options("steps"), units),
    "edge_pruning": lambda options, units, shape: _learned(
        options("steps"), math.ceil((1 - options("sparsity")) * units)
    ),
    "ugs": lambda options, units, shape: _learned(options("steps") * options("samples"), units),
    "information_bottleneck": lambda options, units, shape: _learned(options("steps"), units),
    "hisp": lambda options, units, shape: Cost(0, 1),
    "atp": lambda options, units, shape: Cost(0, 1),
    "eap_ig_inputs": lambda options, units, shape: Cost(_points(options), _points(options)),
    "eap_ig_activations": lambda options, units, shape: Cost(
        math.ceil((shape.layers + 0.5) * _points(options)), math.ceil((shape.layers + 0.5) * _points(options))
    ),
    "clean_corrupted": lambda options, units, shape: Cost(2, 2),
    "ceap": lambda options, units, shape: Cost(_points(options), _points(options)),
    "eap_gp": lambda options, units, shape: Cost(2 * options("steps"), 2 * options("steps")),
    "relp": lambda options, units, shape: Cost(0, 1),
    "exact": lambda options, units, shape: Cost(units, at_most=True),
    "coar": lambda options, units, shape: Cost(
        (options("samples") or min(20_000, max(1_000, 10 * units))), at_most=True
    ),
    "information_flow": lambda options, units, shape: Cost(1),
    "magnitude": lambda options, units, shape: Cost(0),
    "random": lambda options, units, shape: Cost(0),
}
"""Forwards and backwards for one prompt, beyond those of making the run, by options, units and shape."""


def _patching(config: PatchConfig, shape: Shape) -> Cost:
    """The same of patching; for estimates those of one pass over all layers."""
    layers, length = shape.layers, shape.length or 1
    by_part = config.kind in ("q", "k", "v", "pattern", "z") and not config.positions and config.window == 1
    places = shape.heads if by_part else layers
    if config.to is not None:
        return Cost(2 * shape.heads, at_most=True)
    if config.method == "exact":
        return Cost(places * (length if config.positions else 1), at_most=True)
    if config.method == "atp_star" and config.grad_drop:
        return Cost(1, 1 + math.ceil(layers / 2))
    steps = {"ig_inputs": 5, "ig_activations": math.ceil(5 * (layers + 1) / 2), "conductance": 10}
    passes = steps.get(config.method, 1)
    return Cost(passes, passes)


def _components(families: Sequence[str], shape: Shape) -> int:
    """How many components an attribution has."""
    sizes = {"heads": shape.heads, "mlps": shape.layers, "neurons": shape.neuron or 0, "input": 1, "features": 0}
    return sum(sizes.get(name, 1) for name in families)


def _alike(row: Row, config: AnyConfig) -> bool:
    """Whether a row is of a run of these settings, but for the seed; what is not set here must not be set there."""
    asked = config.to_dict()
    unset = {each.name for each in fields(config)} - set(asked) - {"device"}
    options = asked.pop("options", {})
    asked |= {f"options.{name}": value for name, value in options.items()}
    unset |= {name for name in row if name.startswith("options.") and name not in asked}
    same = all(row.get(name) == value for name, value in asked.items() if name not in ("seed", "device"))
    return same and all(row.get(name) is None for name in unset)
