"""The files of a model: what ships, where a name leads, and digests that tell one checkpoint from another.

Nothing here loads weights or torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import patching
from graphs.errors import BadFile
from patching import compiled

ZOO: Final = Path(patching.__file__).parent / "zoo"
COMPILER: Final = Path(compiled.__file__).parent

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
_PATTERNS: Final = ("config.json", "*.safetensors", "tokenizer*.json", "vocab.json", "merges.txt")


@dataclass(frozen=True)
class Shipped:
    """A model that ships.

    Attributes:
        name: As given to `--model`.
        parameters: How many weights; None if the file cannot be read.
        size: Bytes of the weights.
        shape: Layers, heads and width, in words.
        accuracy: Share of held-out prompts that it gets right, by task split; empty if it was not recorded.
    """

    name: str
    parameters: int | None
    size: int
    shape: str
    accuracy: Mapping[str, float]


def zoo() -> tuple[str, ...]:
    """The models that ship as files, as `zoo:NAME`."""
    if not ZOO.is_dir():
        return ()
    return tuple(f"zoo:{path.name}" for path in sorted(ZOO.iterdir()) if (path / "config.json").is_file())


def known_zoo() -> tuple[str, ...]:
    """Everything that `zoo:NAME` can mean: models that ship, and those compiled from programs."""
    return (*zoo(), *compiled.zoo_names())


def describe(name: str) -> Shipped:
    """What is known about a model that ships, from its files alone."""
    folder = ZOO / name.removeprefix("zoo:")
    weights = sorted(folder.glob("*.safetensors"))
    counts = [_parameters(path) for path in weights]
    return Shipped(
        name=name,
        parameters=None if None in counts else sum(count for count in counts if count),
        size=sum(path.stat().st_size for path in weights),
        shape=_shape(_json(folder / "config.json")),
        accuracy=_accuracy(_json(folder / "training.json")),
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
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, "config.json")
    except (HFValidationError, OSError):
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def digest(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        BadFile: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadFile(f"expected to read {path}; {error.strerror or error}.") from error


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
    return f"{layers} layers, {heads} heads, width {width}"


def _accuracy(training: Mapping[str, Any]) -> dict[str, float]:
    """Accuracy per held-out split from the record that the training script leaves."""
    found: dict[str, float] = {}
    by_task = training.get("accuracy")
    splits = by_task.get(str(training.get("task"))) if isinstance(by_task, dict) else None
    for split, row in splits.items() if isinstance(splits, dict) else ():
        accuracy = row.get("accuracy") if isinstance(row, dict) else None
        if split != "train" and isinstance(accuracy, int | float):
            found[split] = float(accuracy)
    return found
