"""The files of a model: what ships, where a name leads, and digests that tell one checkpoint from another.

Dictionaries of features have digests too. Nothing here loads weights or torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import patching
from circuits import features
from graphs.errors import BadFile
from patching import agreement_toy, compiled

ZOO: Final = Path(patching.__file__).parent / "zoo"
COMPILER: Final = Path(compiled.__file__).parent
DICTIONARIES: Final = Path(features.__file__).parent / "zoo"

FAMILIES: Final[Mapping[str, str]] = {
    "gpt2": "GPT-2",
    "gpt_neo": "GPT-Neo",
    "gpt_neox": "GPT-NeoX, Pythia",
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3 (text)",
}
"""Families that the tests load and check, by Hugging Face's `model_type`."""

_LARGEST_HEADER: Final = 100_000_000
_SETTINGS: Final = ("cfg.json", "config.json", "config.yaml")
_PATTERNS: Final = ("config.json", "*.safetensors", "tokenizer*.json", "vocab.json", "merges.txt")


@dataclass(frozen=True)
class Shipped:
    """A model that ships.

    Attributes:
        name: As given to `--model`.
        parameters: How many weights; None if the file cannot be read.
        size: Bytes of the weights.
        shape: Layers, heads and width, in words.
        tasks: What it was trained for.
        accuracy: Share of held-out prompts that it gets right, by task and split; what was not recorded is absent.
        truth: The compiled program whose circuit is known to be its own, or None.
        interchange_accuracy: How often it agrees with that program under interchange interventions, or None.
        text_loss: Nats per token on held-out text, or None.
        made_by: The command that makes it again, or None.
        licence: Of weights and data, or None.
    """

    name: str
    parameters: int | None
    size: int
    shape: str
    tasks: tuple[str, ...] = ()
    accuracy: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    truth: str | None = None
    interchange_accuracy: float | None = None
    text_loss: float | None = None
    made_by: str | None = None
    licence: str | None = None

    def lowest(self, task: str) -> tuple[str, float] | None:
        """The held-out split of a task that it is worst at, and its accuracy there."""
        splits = self.accuracy.get(task, {})
        return min(splits.items(), key=lambda item: item[1]) if splits else None


def zoo() -> tuple[str, ...]:
    """The models that ship as files, as `zoo:NAME`."""
    if not ZOO.is_dir():
        return ()
    folders = (path for path in sorted(ZOO.iterdir()) if not path.name.startswith("."))  # one being written has a dot
    return tuple(f"zoo:{path.name}" for path in folders if (path / "config.json").is_file())


def known_zoo() -> tuple[str, ...]:
    """Everything that `zoo:NAME` can mean: models that ship, those compiled from programs, and the one made by hand."""
    return (*zoo(), *compiled.zoo_names(), *compiled.layer_norm_names(), agreement_toy.NAME)


def describe(name: str) -> Shipped:
    """What is known about a model that ships, from its files alone."""
    folder = ZOO / name.removeprefix("zoo:")
    weights = sorted(folder.glob("*.safetensors"))
    counts = [_parameters(path) for path in weights]
    record = _json(folder / "training.json")
    tasks = _tasks(record)
    loss = record.get("text_loss")
    return Shipped(
        name=name,
        parameters=None if None in counts else sum(count for count in counts if count),
        size=sum(path.stat().st_size for path in weights),
        shape=_shape(_json(folder / "config.json")),
        tasks=tasks,
        accuracy={task: splits for task in tasks if (splits := _accuracy(record, task))},
        truth=_text(record.get("truth")),
        interchange_accuracy=_number(record.get("interchange_accuracy")),
        text_loss=_number(loss.get("held_out")) if isinstance(loss, dict) else None,
        made_by=_text(record.get("made_by")) or _script(folder.name),
        licence=_text(record.get("licence")) or _card_licence(folder / "README.md"),
    )


def digests(name: str) -> dict[str, str]:
    """SHA-256 of every file that decides what a model computes; empty if the files are not on this machine."""
    folder = _folder(name)
    if folder is None:
        return {}
    patterns = ("*.py",) if folder == COMPILER else _PATTERNS  # a compiled model's weights follow from the program
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    return {path.name: digest(path) for path in paths}


def _folder(name: str) -> Path | None:
    """The folder of a model: of those that ship, a local one, or the hub's cache."""
    if compiled.is_compiled(name):
        return COMPILER
    if name.startswith("zoo:"):
        return ZOO / name.removeprefix("zoo:")
    try:
        path = Path(name).expanduser()
        if path.is_dir():
            return path
    except (OSError, RuntimeError):  # too long a name, or a home that nobody has
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, "config.json")
    except (HFValidationError, OSError):
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def dictionary_digests(name: str) -> dict[str, str]:
    """SHA-256 of every file that decides what a dictionary computes, weights and settings; empty if there are none.

    Args:
        name: a folder or file, or one that ships (`zoo:ioi/mlp_out1`).
    """
    path = DICTIONARIES / name.removeprefix("zoo:") if name.startswith("zoo:") else Path(name)
    if not path.exists():
        return {}
    whole = path.is_dir() or path.name in _SETTINGS
    folder = path if path.is_dir() else path.parent
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.pt")] if whole else [path]
    paths = sorted((*weights, *(folder / each for each in _SETTINGS)))
    return {each.name: digest(each) for each in paths if each.is_file()}


def digest(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        BadFile: It cannot be read.
    """
    try:
        found = path.stat()
        return _digest(path, found.st_size, found.st_mtime_ns, found.st_ino)
    except OSError as error:
        raise BadFile(f"expected to read {path}; {error.strerror or error}.") from error


@lru_cache(maxsize=1_000)
def _digest(path: Path, _size: int, _time: int, _place: int) -> str:
    """Read once for every state of the file: many runs ask for the digests of one model."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parameters(path: Path) -> int | None:
    """How many numbers a safetensors file holds, from its header."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, _LARGEST_HEADER)))
        return sum(math.prod(entry["shape"]) for key, entry in header.items() if key != "__metadata__")
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _first(settings: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((settings[name] for name in names if name in settings), "?")


def _shape(config: Mapping[str, Any]) -> str:
    layers = _first(config, ("num_hidden_layers", "n_layer", "num_layers"))
    heads = _first(config, ("num_attention_heads", "n_head", "num_heads"))
    width = _first(config, ("hidden_size", "n_embd"))
    return sizes(layers, heads, width)


def sizes(layers: Any, heads: Any, width: Any) -> str:
    """The shape of a model in words.

    Example:
        >>> sizes(1, 4, 64)
        '1 layer, 4 heads, width 64'
    """
    return f"{layers} layer{'' if layers == 1 else 's'}, {heads} head{'' if heads == 1 else 's'}, width {width}"


def _tasks(record: Mapping[str, Any]) -> tuple[str, ...]:
    several = record.get("tasks")
    names = several if isinstance(several, list) else [record.get("task")]
    return tuple(name for name in names if isinstance(name, str))


def _accuracy(record: Mapping[str, Any], task: str) -> dict[str, float]:
    """Accuracy per held-out split of a task, from the record that a training script leaves.

    A split whose name begins with `train-` is a part of the training split.
    """
    by_task = record.get("accuracy")
    splits = by_task.get(task) if isinstance(by_task, dict) else None
    rows = splits.items() if isinstance(splits, dict) else ()
    found = {split: _number(row.get("accuracy")) for split, row in rows if isinstance(row, dict)}
    return {
        split: accuracy
        for split, accuracy in found.items()
        if accuracy is not None and split != "train" and not split.startswith("train-")
    }


def _number(value: Any) -> float | None:
    """A finite number out of a file."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


def _text(value: Any) -> str | None:
    """One line of text out of a file."""
    return value if isinstance(value, str) and value and value.isprintable() else None


def _script(name: str) -> str | None:
    """The command of a model whose record does not say it: its script is named after it."""
    there = (Path(__file__).parent / f"train_{name}.py").is_file()
    return f"python -m experiments.train_{name} --seed 0" if there else None


def _card_licence(card: Path) -> str | None:
    """The licence in the head of a model card."""
    try:
        head = card.read_text(encoding="utf-8")[:2_000]
    except (OSError, ValueError):
        return None
    found = re.match(r"---\n(?:.*\n)*?license: *(\S+)\n", head)
    return _text(found[1].upper()) if found else None
