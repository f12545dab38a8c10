"""The settings of a run: checked before any work, written so that the same run can be made again.

A config names everything that decides the result (the folder it goes to does not). It is a flat TOML file with
a table for the method's own options:

    schema = "wiretrace-config/1"
    task = "ioi"
    model = "zoo:ioi"
    method = "acdc"
    ablation = "corrupt"
    prompts = 32
    held_out = 100
    seed = 0

    [options]
    tau = 0.05
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final

from circuits import tasks
from circuits.methods import METHODS, Method
from experiments import task_files
from experiments.errors import BadConfig, UnknownName
from experiments.model_files import describe, known_zoo, zoo
from experiments.nearest import did_you_mean, require_known
from graphs.circuit import visible
from patching import compiled

if TYPE_CHECKING:
    from experiments.attribute import AttributeConfig

SCHEMA: Final = "wiretrace-config/1"
PATCH_SCHEMA: Final = "wiretrace-patch-config/1"
ATTRIBUTE_SCHEMA: Final = "wiretrace-attribute/1"

Value = bool | int | float | str

ABLATIONS: Final[Mapping[str, str]] = {
    "corrupt": "the value on the paired corrupt prompt",
    "zero": "nothing at all",
    "mean": "the mean over all tokens of all corrupt prompts",
    "mean-positional": "the mean over the corrupt prompts at each position",
    "mean-clean": "the mean over all tokens of all clean prompts",
    "resample": "the value on another clean prompt of the same length",
    "gaussian-noise": "the value on the clean prompt with noise on the tokens that differ (causal tracing)",
}
"""What an ablated edge carries in place of its own value: the names of `patching.ablations`, in words."""

METRICS: Final[Mapping[str, str]] = {
    "logit_difference": "logit of the right answer minus logit of the wrong one",
    "margin": "logit of the right answer minus the highest of all other tokens'",
    "log_probability": "log of the probability of the right answer",
    "probability": "probability of the right answer",
    "probability_difference": "probability of the right answer minus that of the wrong one",
    "loss": "minus the log of the probability of the right answer",
    "kl": "Kullback-Leibler divergence from the whole model's prediction, in nats",
}
"""What a run is judged by: the names of `patching.metrics`, in words."""

KINDS: Final[Mapping[str, str]] = {
    "resid_pre": "the residual stream that enters a layer",
    "q": "a head's queries",
    "k": "a group's keys",
    "v": "a group's values",
    "pattern": "a head's attention probabilities",
    "z": "a head's mixture of values, before the output matrix",
    "attn_out": "what the attention layer adds",
    "resid_mid": "the residual stream between attention and MLP",
    "neurons": "the MLP's hidden activations",
    "mlp_out": "what the MLP adds",
    "resid_post": "the residual stream that leaves a layer",
}
"""What can be patched: the names of `patching.sites`, in words."""

PATCHING: Final[Mapping[str, str]] = {
    "exact": "every place is patched, and the model run on from there",
    "atp": "attribution patching: effects to first order, from one backward pass; misses saturated attention",
    "atp_star": "AtP*: the same with the QK fix and GradDrop; with GradDrop, effects are absolute",
    "relp": "attribution patching with the backward pass of layer-wise relevance propagation",
    "ig_inputs": "attribution patching with the mean gradient while the inputs go from base to source (5 steps)",
    "ig_activations": "the same while one layer's activations go from base to source (5 steps)",
    "conductance": "gradients times each place's own steps along the path of the inputs (10 steps); adds up over a cut",
}
"""How effects of patches are found, in words."""

DIRECTIONS: Final[Mapping[str, str]] = {
    "noising": "the clean run, with ablated values patched in",
    "denoising": "the ablated run, with clean values patched in",
}
"""Which run is patched: the names of `patching.activation`, in words."""

GENERAL: Final = "zoo:small"
"""The default model of every task that it was made for: one model with many circuits, as language models are."""

DEFAULTS: Final[Mapping[str, Value]] = {"tau": 0.05}
"""Method options that the command line gives when the user does not."""

DEFAULT_N: Final = 300
SELECTIONS: Final = ("top", "greedy")
MOST_PROMPTS: Final = 1_000_000
MOST_LAYERS: Final = 10_000
_DEVICE: Final = re.compile(r"cpu|mps|cuda(:[0-9]{1,3})?")
_NUMBERS: Final = ("n", "prompts", "held_out", "seed", "window")
_FLAGS: Final = ("positions", "signed", "curve", "qk_fix", "grad_drop")


@dataclass(frozen=True)
class Config:
    """What to run.

    Args:
        task: A name of `circuits.tasks`, or a file of the user's own pairs (`circuits.tasks.from_file`).
        model: A model that ships (`zoo:ioi`), a folder in Hugging Face format, or a hub name.
        method: A name of `circuits.methods`.
        options: The method's own options.
        level: What is decided on or scored: `edge`, `node` or `neuron`; None for the first that the method can.
        positions: Each position by itself, for methods that can.
        n: How many edges (or nodes, or neurons) to take from scores; None for methods that give a circuit, and for
            300, or all where there are fewer.
        selection: How edges are taken: `top`, or `greedy` from the logits on.
        signed: Take those that help most instead of those of largest absolute effect.
        ablation: What an ablated edge carries: a name, or a file of trained constants (`.safetensors`).
        metric: What the run is judged by; None for the task's own.
        prompts: How many training-split prompts to search on; fewer where a file holds fewer.
        held_out: How many held-out prompts to evaluate on; likewise.
        seed: Of the prompts, and of the random circuits and resamples of the evaluation.
        device: Where to run; None for the first GPU if there is one, else the CPU.
        curve: For methods that score: judge circuits of other sizes too, from 0.1 to 100 % of the units (CPR, CMD).

    Raises:
        UnknownName, UnknownTask: A name is not known; the nearest are offered.
        BadConfig: A number is out of range, or an option does not belong to the method.
    """

    task: str
    model: str
    method: str = "acdc"
    options: Mapping[str, Value] = field(default_factory=dict)
    level: str | None = None
    positions: bool = False
    n: int | None = None
    selection: str = "top"
    signed: bool = False
    ablation: str = "corrupt"
    metric: str | None = None
    prompts: int = 32
    held_out: int = 100
    seed: int = 0
    device: str | None = None
    curve: bool = False

    def __post_init__(self) -> None:
        tasks.load(self.task)
        method = METHODS[require_known("a method", self.method, METHODS)]
        if not is_constants(self.ablation):
            require_known("an ablation", self.ablation, ABLATIONS)
        if self.metric is not None:
            require_known("a metric", self.metric, METRICS)
        check_model(self.model)
        _check_numbers(self)
        check_device(self.device)
        object.__setattr__(self, "level", self.level or method.levels[0])
        _check_units(method, level=self.level, positions=self.positions)
        object.__setattr__(self, "options", _checked_options(method, self.options))
        _check_selection(method, self)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain data; those that were left open are absent."""
        known = {name: value for name, value in asdict(self).items() if value is not None}
        if not self.curve:  # runs from before there was such a setting are still the same run
            del known["curve"]
        return known | {"options": dict(self.options)}

    @staticmethod
    def from_dict(settings: Mapping[str, Any]) -> Config:
        """The inverse of `to_dict`.

        Raises:
            BadConfig: A setting is unknown, missing or of the wrong type.
        """
        _check_settings(settings, Config)
        return Config(**settings)


@dataclass(frozen=True)
class PatchConfig:
    """What to patch.

    Args:
        task: A name of `circuits.tasks`, or a file of the user's own pairs (`circuits.tasks.from_file`).
        model: A model that ships (`zoo:ioi`), a folder in Hugging Face format, or a hub name.
        kind: What is patched; a name of `KINDS`.
        method: A name of `PATCHING`.
        direction: `noising` or `denoising`.
        ablation: What patches carry when noising; what the base run is when denoising.
        metric: What the run is judged by; None for the task's own.
        positions: Each position by itself; heads and groups of a layer are then patched together.
        window: How many layers are patched together; only `exact` takes more than one.
        to: Path patching: readers, separated by commas, that alone get each head's ablated value, directly or by way
            of MLPs; None for everything that reads it.
        qk_fix: For `atp_star`: whether queries and keys go through the softmax.
        grad_drop: For `atp_star`: whether effects are averaged over gradients without one layer's.
        prompts: How many training-split prompts.
        seed: Of the prompts.
        device: Where to run; None for the first GPU if there is one, else the CPU.

    Raises:
        UnknownName, UnknownTask: A name is not known; the nearest are offered.
        BadConfig: A number is out of range, or an option does not belong to the method.
    """

    task: str
    model: str
    kind: str = "z"
    method: str = "exact"
    direction: str = "noising"
    ablation: str = "corrupt"
    metric: str | None = None
    positions: bool = False
    window: int = 1
    to: str | None = None
    qk_fix: bool = True
    grad_drop: bool = True
    prompts: int = 32
    seed: int = 0
    device: str | None = None

    def __post_init__(self) -> None:
        tasks.load(self.task)
        require_known("a kind of site", self.kind, KINDS)
        require_known("a method", self.method, PATCHING)
        require_known("a direction", self.direction, DIRECTIONS)
        require_known("an ablation", self.ablation, ABLATIONS)
        if self.metric is not None:
            require_known("a metric", self.metric, METRICS)
        check_model(self.model)
        check_range("prompts", self.prompts, least=1, most=MOST_PROMPTS)
        check_range("window", self.window, least=1, most=MOST_LAYERS)
        check_range("seed", self.seed, least=0, most=2**63 - 1)
        check_device(self.device)
        if self.to is not None and (self.method, self.kind, self.positions, self.window) != ("exact", "z", False, 1):
            raise BadConfig(
                "expected path patching (--to) of whole heads by the method exact; got another kind, method, window or "
                "single positions. Leave these at their defaults."
            )
        if self.window > 1 and self.method != "exact":
            raise BadConfig(
                f"expected a window of 1: {self.method} estimates single patches; got {self.window}. Use the method "
                "exact for windows."
            )
        if self.method != "atp_star" and not (self.qk_fix and self.grad_drop):
            what = "QK fix" if self.grad_drop else "GradDrop" if self.qk_fix else "QK fix or GradDrop"
            raise BadConfig(f"expected the method atp_star to leave out its {what}; {self.method} has none.")

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain data; those that were left open are absent."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @staticmethod
    def from_dict(settings: Mapping[str, Any]) -> PatchConfig:
        """The inverse of `to_dict`.

        Raises:
            BadConfig: A setting is unknown, missing or of the wrong type.
        """
        _check_settings(settings, PatchConfig)
        return PatchConfig(**settings)


def default_model(task: str) -> str:
    """The model that is used when none is named: one that ships and was made for the task.

    That is `zoo:small`, else the specialist of the task's name, else any other.

    Raises:
        BadConfig: None ships for this task, or it is a file of the user's own.

    Example:
        >>> default_model("ioi"), default_model("reverse")
        ('zoo:small', 'zoo:reverse')
    """
    tasks.load(task)
    if task_files.is_own(task):
        raise BadConfig(
            f"expected a model for the pairs in {visible(task)}: give --model with one that ships (`wiretrace "
            "models`), a folder in Hugging Face format or a hub name, such as --model gpt2."
        )
    shipped = zoo()
    if GENERAL in shipped and task in describe(GENERAL).tasks:
        return GENERAL
    if f"zoo:{task}" in shipped or compiled.is_compiled(f"zoo:{task}"):
        return f"zoo:{task}"
    able = [name for name in shipped if (found := describe(name)).truth is None and task in found.tasks]
    if not able:
        raise BadConfig(
            f"expected a model: none ships for the task {task}. Give --model with a folder in Hugging Face "
            "format or a hub name, such as --model gpt2."
        )
    return able[0]


def is_default(config: Config | PatchConfig) -> bool:
    """Whether the model of a config is the one that is used when none is named."""
    try:
        return config.model == default_model(config.task)
    except BadConfig:
        return False


def is_constants(ablation: str) -> bool:
    """Whether an ablation is a file of trained constants.

    Example:
        >>> is_constants("optimal.safetensors"), is_constants("mean")
        (True, False)
    """
    return ablation.endswith(".safetensors")


def require_shipped(model: str) -> None:
    """Check that a `zoo:` name is one that ships; other names are looked up when the model is loaded.

    Raises:
        UnknownName: It is not; the nearest are offered.
    """
    if model.startswith("zoo:") and model not in zoo() and not compiled.is_compiled(model):
        raise UnknownName(
            f"expected a model that ships, which `wiretrace models` lists; got {model!r}."
            f"{did_you_mean(model, known_zoo())}"
        )


def parse_option(method: str, text: str) -> tuple[str, Value]:
    """Read `name=value` as an option of a method, in the option's type.

    Raises:
        BadConfig: It is not of that form, or the value is not of the type.

    Example:
        >>> parse_option("acdc", "absolute=true")
        ('absolute', True)
    """
    name, equals, value = text.partition("=")
    kinds = METHODS[require_known("a method", method, METHODS)].options
    if not equals:
        raise BadConfig(f"expected an option as NAME=VALUE, such as absolute=true; got {text!r}.")
    kind = kinds.get(name.strip(), str)
    try:
        return name.strip(), _TRUTH[value.strip().lower()] if kind is bool else kind(value.strip())
    except (KeyError, ValueError):
        noun = {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, "text")
        raise BadConfig(f"expected {name.strip()} to be {noun}; got {value!r}.") from None


_TRUTH: Final = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def to_toml(config: Config | PatchConfig, *, comments: tuple[str, ...] = ()) -> str:
    """A config as the text of a TOML file.

    Args:
        config: The settings.
        comments: Lines to put at the top.
    """
    settings = config.to_dict()
    options = settings.pop("options", {})
    schema = SCHEMA if isinstance(config, Config) else PATCH_SCHEMA
    lines = [f"# {line}" for line in comments]
    lines += [f"{name} = {toml_value(value)}" for name, value in ({"schema": schema} | settings).items()]
    if options:
        lines += ["", "[options]", *(f"{name} = {toml_value(value)}" for name, value in options.items())]
    return "\n".join([*lines, ""])


def load(path: str | os.PathLike[str]) -> Config | PatchConfig | AttributeConfig:
    """The config in a TOML file, of a search, of patching or of attribution, as its schema says.

    Raises:
        BadFile: There is no such file, or it is not text.
        BadConfig: It is not TOML, not a config, or one of many runs; the message says why.
    """
    from experiments.config_file import build, read

    return build(read(path))


def command_line(config: Config, *, out: str | os.PathLike[str], flags: tuple[str, ...] = ()) -> str:
    """The shell command that makes this run, with the settings that differ from the defaults.

    Example:
        >>> command_line(Config("ioi", "gpt2", options={"tau": 0.1}), out="runs/ioi", flags=("--resume",))
        'wiretrace discover ioi --model gpt2 --tau 0.1 --out runs/ioi --resume'
    """
    plain = Config(config.task, config.model, config.method)
    words = ["wiretrace", "discover", config.task]
    if not is_default(config):
        words += ["--model", config.model]
    if config.method != Config.method:
        words += ["--method", config.method]
    for name, value in config.options.items():
        if plain.options.get(name) != value:
            shown = value if isinstance(value, str) else toml_value(value)
            words += ["--tau", repr(value)] if name == "tau" else ["--option", f"{name}={shown}"]
    words += [f"--{name}" for name in ("positions", "signed", "curve") if getattr(config, name)]
    for name in ("level", "n", "selection", "ablation", "metric", "prompts", "held_out", "seed", "device"):
        value = getattr(config, name)
        if value != getattr(plain, name):
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join([*words, "--out", os.fspath(out), *flags])


def patch_command(config: PatchConfig, *, out: str | os.PathLike[str]) -> str:
    """The shell command that patches so, with the settings that differ from the defaults.

    Example:
        >>> patch_command(PatchConfig("ioi", "gpt2", positions=True, qk_fix=False, method="atp_star"), out="runs/p")
        'wiretrace patch ioi --model gpt2 --method atp_star --positions --no-qk-fix --out runs/p'
    """
    words = ["wiretrace", "patch", config.task]
    for each in fields(PatchConfig):
        value = getattr(config, each.name)
        option = f"--{each.name.replace('_', '-')}"
        if each.name == "task" or value == each.default or (each.name == "model" and is_default(config)):
            continue
        if isinstance(value, bool):
            words.append(option if value else option.replace("--", "--no-", 1))
        else:
            words += [option, str(value)]
    return shlex.join([*words, "--out", os.fspath(out)])


def toml_value(value: Value) -> str:
    """A TOML value; strings are JSON strings but for DEL, which TOML wants escaped too."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def check_model(name: str) -> None:
    """A name that can be one of a model.

    Raises:
        BadConfig: It cannot.
    """
    if not name or not name.isprintable():
        raise BadConfig(f"expected the name of a model, such as zoo:ioi or gpt2; got {name!r}.")


def _check_numbers(config: Config) -> None:
    for name, least, most in (
        ("prompts", 1, MOST_PROMPTS),
        ("held_out", 1, MOST_PROMPTS),
        ("seed", 0, 2**63 - 1),
    ):
        check_range(name, getattr(config, name), least=least, most=most)


def check_range(name: str, value: int, *, least: int, most: int) -> None:
    """A number in its range.

    Raises:
        BadConfig: It is not.
    """
    if not least <= value <= most:
        raise BadConfig(f"expected {name.replace('_', '-')} to be from {least} to {most:,}; got {value:,}.")


def check_device(name: str | None) -> None:
    """A name that can be one of a device, whether it is there or not.

    Raises:
        BadConfig: It cannot.
    """
    if name is not None and not _DEVICE.fullmatch(name):
        raise BadConfig(f"expected a device such as cpu, cuda, cuda:1 or mps; got {name!r}.")


def _check_units(method: Method, *, level: str | None, positions: bool) -> None:
    if level not in method.levels:
        raise BadConfig(f"expected a level out of {', '.join(method.levels)} for {method.name}; got {level!r}.")
    if positions and not method.by_position:
        able = ", ".join(other.name for other in METHODS.values() if other.by_position)
        raise BadConfig(f"expected no --positions: {method.name} takes all positions together; {able} can.")


def _checked_options(method: Method, options: Mapping[str, Value]) -> dict[str, Value]:
    """The given options with defaults, in the order of the method's table."""
    for name, value in options.items():
        if name not in method.options:
            takes = f"it takes {', '.join(method.options)}" if method.options else "it takes none"
            hint = did_you_mean(name, method.options)
            raise BadConfig(f"expected an option of {method.name}: {takes}; got {name}.{hint}")
        kind = method.options[name]
        if kind is float and type(value) is int:
            continue
        if type(value) is not kind:
            raise BadConfig(f"expected {name} to be of type {kind.__name__}; got {value!r}.")
        if isinstance(value, float) and not math.isfinite(value):
            raise BadConfig(f"expected {name} to be a finite number; got {value}.")
    given = {name: DEFAULTS[name] for name in method.options if name in DEFAULTS} | dict(options)
    tau = given.get("tau", 0.0)
    if isinstance(tau, int | float) and tau < 0:
        raise BadConfig(
            f"expected tau to be 0 or more, in the unit of the metric; got {tau}. 0.01 to 0.1 are usual; "
            "larger gives smaller circuits."
        )
    return {
        name: float(given[name]) if kind is float else given[name]
        for name, kind in method.options.items()
        if name in given
    }


def _check_selection(method: Method, config: Config) -> None:
    """What is said about taking edges from scores."""
    require_known("a selection", config.selection, SELECTIONS)
    if method.gives == "scores":
        if config.n is not None and config.n < 1:
            raise BadConfig(f"expected n, the number of {config.level}s to take, to be at least 1; got {config.n}.")
        if config.level != "edge" and config.selection != "top":
            raise BadConfig(
                f"expected the selection top for {config.level}s; got {config.selection}, which grows edges."
            )
        return
    if config.curve:
        raise BadConfig(
            f"expected no curve: {method.name} gives one circuit, not scores to cut at other sizes. Vary "
            f"{next(iter(method.options), 'the seed')} instead."
        )
    for name, default in (("n", None), ("selection", "top"), ("signed", False)):
        if getattr(config, name) != default:
            raise BadConfig(
                f"expected no {name}: {method.name} decides by itself which {config.level}s stay; got "
                f"{name} = {getattr(config, name)}. "
                f"{'Set tau instead.' if 'tau' in method.options else 'Leave it out.'}"
            )


def _check_settings(settings: Mapping[str, Any], kind: type[Config] | type[PatchConfig]) -> None:
    """Names and types of settings out of a file."""
    names = [each.name for each in fields(kind)]
    for name in settings:
        if name not in names:
            hint = did_you_mean(name, names)
            raise BadConfig(f"expected settings out of {', '.join(names)}; got {name!r}.{hint}")
    missing = [name for name in ("task", "model") if name not in settings]
    if missing:
        raise BadConfig(f"expected a config to name {' and '.join(missing)}; it does not.")
    for name, value in settings.items():
        _check_type(name, value)


def _check_type(name: str, value: object) -> None:
    kind: type = Mapping if name == "options" else int if name in _NUMBERS else bool if name in _FLAGS else str
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        noun = {int: "a whole number", str: "text", bool: "true or false"}.get(kind, "a table")
        raise BadConfig(f"expected the setting {name} to be {noun}; got {value!r}.")
