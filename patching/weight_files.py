"""Which files a model folder is read from, weights and others, and that none of them is outside it.

A folder that somebody else packed can name files of yours: an index of shards may say `../../secret.safetensors`, and a
link may lead anywhere. Nothing is opened before it is known to be in the folder. The cache of the Hugging Face hub is
the one exception: there every file of a snapshot is a link to `blobs` of the same model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import Any, Final

from graphs.atomic import read_text
from graphs.errors import BadFile
from patching.errors import InvalidWeights

INDEX: Final = ".safetensors.index.json"
WEIGHTS: Final = ".safetensors"
READ: Final = (WEIGHTS, ".json", ".txt", ".model", ".jinja")
"""How the files end that are read in loading a model: weights, settings, and what tokenizers are made of."""


def require_inside(folder: Path) -> None:
    """Check that what is read from a folder is within it, and that all weights that its index names are safetensors.

    Raises:
        InvalidWeights: A file is elsewhere, by its name or by a link, or is missing; weights are of a kind that could
            run code; or the index cannot be read.

    Example:
        >>> require_inside(Path("empty"))
    """
    root = folder.resolve()
    homes = [root]
    if root.parent.name == "snapshots":
        homes.append(root.parent.parent / "blobs")
    for path in sorted((*folder.glob("*"), *folder.glob("additional_chat_templates/*"))):
        if path.suffix in READ:
            _require(path, homes, said_by=str(folder))
    named = _json(folder / "config.json").get("transformers_weights")
    indices = {path.name for path in folder.glob(f"*{INDEX}")}
    if isinstance(named, str):
        _require_relative(named, said_by=str(folder / "config.json"))
        _require(folder / named, homes, said_by=str(folder / "config.json"))
        indices |= {named} if named.endswith(INDEX) else set()
    for index in sorted(indices):
        for name in _shards(folder / index):
            _require_relative(name, said_by=str(folder / index))
            if not name.endswith(WEIGHTS):
                raise InvalidWeights(
                    f"expected {folder / index} to name {WEIGHTS} files; it names {name!r}. Other kinds can run code "
                    "and are refused: save the model again with `save_pretrained(folder)`."
                )
            path = folder / name
            _require(path, homes, said_by=str(folder / index))
            if not path.is_file():
                raise InvalidWeights(
                    f"expected the shard {name!r}, which {folder / index} names; it is not there. Copy the whole "
                    "folder."
                )


def _shards(index: Path) -> Iterator[str]:
    """The files that an index names."""
    places = _json(index, required=True).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) and name for name in places.values()):
        raise InvalidWeights(
            f"expected weight_map in {index} to give a file for each weight; it does not. Save the model again with "
            "`save_pretrained(folder)`."
        )
    yield from sorted(set(places.values()))


def _require_relative(name: str, *, said_by: str) -> None:
    """Refuse names that lead up or away, in the manner of any system."""
    path = PureWindowsPath(name)  # splits at / and at \
    if path.is_absolute() or path.drive or path.root or ".." in path.parts or not name.isprintable():
        raise InvalidWeights(
            f"expected {said_by} to name files of its own folder; it names {name!a}, which leads outside and is "
            "refused. Do not trust this folder; fetch the model from where it comes from."
        )


def _require(path: Path, homes: list[Path], *, said_by: str) -> None:
    """Refuse a path that a link takes elsewhere."""
    try:
        target = path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise InvalidWeights(f"expected {said_by} to name files of its own folder; {path.name!a}: {error}.") from error
    if not any(target.is_relative_to(home) for home in homes):
        raise InvalidWeights(
            f"expected the files of a model within {said_by}; {path.name!a} is a link to {str(target)!a}, outside of "
            "it, and is refused. If that is meant, give the folder where the files are, or copy them in."
        )


def _json(path: Path, *, required: bool = False) -> dict[str, Any]:
    """The object in a JSON file; an empty one if there is none and none is required."""
    try:
        document = json.loads(read_text(path))
    except (BadFile, ValueError, RecursionError) as error:
        if required:
            raise InvalidWeights(f"expected {path} to be JSON; it cannot be read: {error}.") from error
        return {}
    return document if isinstance(document, dict) else {}
