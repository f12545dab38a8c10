"""Small runs of every kind that executors know, and what they leave, times apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments import work

_BASE = {"task": "ioi", "model": "zoo:ioi", "prompts": 4, "held_out": 6, "device": "cpu"}
_SEARCH = {"schema": "wiretrace-config/1", **_BASE}
ACDC = {**_SEARCH, "method": "acdc", "options": {"tau": 0.05}}
EXACT = {**_SEARCH, "method": "exact", "n": 50}
EAP = {**_SEARCH, "method": "atp", "n": 50}
COAR = {"schema": "wiretrace-attribute/1", **_BASE, "samples": 700}
PATCH = {"schema": "wiretrace-patch-config/1", **{k: v for k, v in _BASE.items() if k != "held_out"}}
ALL: Mapping[str, Mapping[str, Any]] = {"acdc": ACDC, "exact": EXACT, "eap": EAP, "coar": COAR, "patch": PATCH}

PLACES = ("status.json", "env.json", "log.jsonl")
"""Files that say when and where alone."""


def stages(root: Path, names: Mapping[str, Mapping[str, Any]] = ALL) -> list[list[work.Unit]]:
    return work.together(work.units(settings, root / name) for name, settings in names.items())


def left(folder: Path) -> dict[str, str]:
    """Every file of a run and the digest of its content, times and the folder's name left out."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name not in PLACES:
            found[name] = hashlib.sha256(_without_times(name, path.read_bytes(), folder)).hexdigest()
    return found


def shards(root: Path) -> dict[str, str]:
    """The finished shards of all runs below a folder, by digest."""
    paths = sorted(root.rglob("shard-*.safetensors"))
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _without_times(name: str, data: bytes, folder: Path) -> bytes:
    if name not in work.TIMED:
        return data
    text = data.decode().replace(str(folder), "FOLDER")
    if name == "report.md":
        return "\n".join(line for line in text.splitlines() if "Time" not in line and " took " not in line).encode()
    if name == "decisions.jsonl":
        rows = [json.loads(line) for line in text.splitlines()]
        kept = [{key: row[key] for key in row if key not in ("seconds", "check")} for row in rows]
        return json.dumps(kept).encode()
    document = json.loads(text)
    document.pop("seconds", None)
    document.get("search", {}).pop("resumed_after", None)
    return json.dumps(document).encode()
