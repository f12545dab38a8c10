"""What a run directory is called: task, model, method, and a digest of the settings that decide the result."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Final

LONGEST_PART: Final = 40
DIGITS: Final = 8


def folder_name(settings: Mapping[str, Any]) -> str:
    """The name of the folder of a run: `<task>-<model>-<method>-<hash>`.

    Every part is made of letters, digits, `.`, `_` and `-` alone, so that no name leads out of the store, and has at
    most 40 of them. The same settings have the same name on every machine; the device, which does not change what is
    asked, is left out.

    Args:
        settings: As `experiments.config_file.settings_of` gives them.

    Example:
        >>> settings = {"schema": "wiretrace-config/1", "task": "ioi", "model": "zoo:ioi", "method": "atp", "seed": 0}
        >>> folder_name(settings)
        'ioi-zoo-ioi-atp-a45cb9b8'
        >>> folder_name(settings | {"model": "/data/models/../My Model"})
        'ioi-My-Model-atp-9fcf8e24'
    """
    parts = (str(settings.get("task", "")), _model(str(settings.get("model", ""))), *_method(settings))
    return "-".join([*(_safe(part) for part in parts), digest(settings)[:DIGITS]])


def digest(settings: Mapping[str, Any]) -> str:
    """SHA-256 of settings, whatever order they stand in and whatever device they name."""
    deciding = {name: value for name, value in settings.items() if name != "device"}
    text = json.dumps(deciding, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _model(name: str) -> str:
    """A model's name without the folders or the organisation before it."""
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1]


def _method(settings: Mapping[str, Any]) -> tuple[str, ...]:
    kind = str(settings.get("schema", "")).rpartition("/")[0]
    if kind == "wiretrace-patch-config":
        return ("patch", str(settings.get("kind", "")), str(settings.get("method", "")))
    if kind == "wiretrace-attribute":
        return ("coar", str(settings.get("ablation", "")))
    if kind == "wiretrace-known-circuit":
        return ("known-circuit",)
    return (str(settings.get("method", "")),)


def _safe(part: str) -> str:
    """A part of a name, of harmless characters."""
    kept = re.sub(r"[^A-Za-z0-9._]+", "-", part).strip("-.")
    return kept[:LONGEST_PART].strip("-.") or "x"
