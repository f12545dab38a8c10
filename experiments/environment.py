"""What a run depends on outside its settings: versions, devices, the state of the source, who owns which import name.

`wiretrace env` shows it and a run's `env.json` records it. The four packages have short names, so another
distribution, or a folder in the current directory, can stand in their way; `ownership` finds that out. Nothing here
imports anything of the project, so that it can still tell when an import of it goes wrong.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.table import Table

DISTRIBUTION: Final = "wiretrace"
PACKAGES: Final = ("graphs", "patching", "circuits", "experiments")
ROOT: Final = Path(__file__).resolve().parents[1]
"""The folder that the packages of this very program stand in."""

LIBRARIES: Final = (
    "torch",
    "transformer-lens",
    "transformers",
    "tokenizers",
    "safetensors",
    "huggingface-hub",
    "numpy",
    "networkx",
    "matplotlib",
    "einops",
    "jaxtyping",
    "typer",
    "rich",
    "tqdm",
)


@dataclass(frozen=True)
class Ownership:
    """Where an import name leads.

    Attributes:
        name: `graphs`, `patching`, `circuits` or `experiments`.
        location: The folder that Python finds, or None.
        owner: The distribution that it belongs to, in words.
        advice: What to do; None if all is well.
    """

    name: str
    location: Path | None
    owner: str
    advice: str | None


def versions() -> dict[str, str]:
    """Versions of Wiretrace, Python and every library that a result depends on, without importing them."""
    found = {DISTRIBUTION: version(), "python": platform.python_version()}
    return found | {name: _version(name) or "not installed" for name in LIBRARIES}


def version() -> str:
    """The version of Wiretrace: of the installed distribution, or what the source tree says."""
    known = _version(DISTRIBUTION)
    if known is None:
        try:
            text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        except OSError:
            return "unknown"
        found = re.search(r'^version = "([^"]+)"', text, flags=re.MULTILINE)
        known = found[1] if found else "unknown"
    return known


def devices() -> list[str]:
    """The devices of this machine and what torch can do with them, without importing torch."""
    cpus = f"CPU: {platform.machine()}, {usable_cpus()} cores usable"
    build = _torch_cuda()
    usable = (
        "torch has no CUDA: install a CUDA build of torch to use it" if build is None else f"torch has CUDA {build}"
    )
    apple = ["GPU: Apple (--device mps)"] if (sys.platform, platform.machine()) == ("darwin", "arm64") else []
    return [cpus, *(f"GPU: {gpu} ({usable})" for gpu in _gpus()), *apple]


def usable_cpus() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ownership() -> list[Ownership]:
    """For each import name of the project, where it leads, which distribution owns it and what to do."""
    owners = importlib.metadata.packages_distributions()
    return [_owned(name, sorted(set(owners.get(name, ())))) for name in PACKAGES]


def source_state() -> dict[str, Any] | None:
    """Commit of the source tree that this program runs from, and a digest of what differs from it.

    Returns:
        `commit`, `changed` (a SHA-256 of the differences, or None), or None if this is no git work tree.
    """
    if not (ROOT / ".git").exists():
        return None
    commit = _git("rev-parse", "HEAD")
    changes = _git("diff", "HEAD", "--", *PACKAGES, "pyproject.toml")
    untracked = _git("ls-files", "--others", "--exclude-standard", "--", *PACKAGES)
    if commit is None or changes is None or untracked is None:
        return None
    digest = hashlib.sha256()
    digest.update(changes)
    for name in sorted(untracked.decode("utf-8", "surrogateescape").splitlines()):
        path = ROOT / name
        digest.update(name.encode("utf-8", "surrogateescape"))
        digest.update(path.read_bytes() if path.is_file() else b"")
    changed = digest.hexdigest() if changes or untracked else None
    return {"commit": commit.decode().strip(), "changed": changed}


def tables(found: Sequence[Ownership]) -> list[Table]:
    """Versions with devices, and who owns each import name, for the terminal."""
    from rich import box
    from rich.table import Table

    facts = Table(box=box.SIMPLE, pad_edge=False, show_header=False)
    for name, number in versions().items():
        facts.add_row(name, number)
    for line in devices():
        facts.add_row(*line.split(": ", 1))
    owners = Table(box=box.SIMPLE, pad_edge=False)
    for title in ("import name", "belongs to", "found in"):
        owners.add_column(title, overflow="fold")
    for each in found:
        owners.add_row(each.name, each.owner, str(each.location or "nowhere"))
    return [facts, owners]


def verdict(found: Sequence[Ownership]) -> str:
    """What to do about names that something else stands in the way of."""
    wrong = [f"{each.name}: {each.advice}." for each in found if each.advice]
    return "\n".join(wrong) or f"All is well: {', '.join(PACKAGES)} are those of {DISTRIBUTION}."


def record(*, device: str, threads: int, seed: int, model_files: dict[str, str]) -> dict[str, Any]:
    """What `env.json` holds.

    Args:
        device: Where the model was.
        threads: How many threads torch used.
        seed: The run's.
        model_files: SHA-256 of each file of the model.
    """
    return {
        "schema": "wiretrace-env/1",
        "versions": versions(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device,
        "cores": usable_cpus(),
        "threads": threads,
        "seeds": {"prompts": seed, "random_circuits": seed, "resamples": seed},
        "model_files": model_files,
        "source": source_state(),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _owned(name: str, claims: list[str]) -> Ownership:
    location = _location(name)
    others = [claim for claim in claims if claim != DISTRIBUTION]
    ours = location == ROOT / name
    if ours:
        return Ownership(name, location, _owner_of_ours(claims), _warning(others))
    if location is None:
        return Ownership(name, None, "nobody", f"Install it again: pip install --force-reinstall {DISTRIBUTION}")
    blamed = [claim for claim in others if _holds(claim, location)]
    if blamed:
        advice = f"pip uninstall {' '.join(blamed)}, or install {DISTRIBUTION} into an environment of its own"
        return Ownership(name, location, ", ".join(blamed), f"It hides ours: {advice}")
    advice = "It hides ours: rename that folder, run from another folder, or take it off PYTHONPATH"
    return Ownership(name, location, "no distribution", advice)


def _owner_of_ours(claims: list[str]) -> str:
    if _is_editable():
        return f"{DISTRIBUTION} (editable)"
    return DISTRIBUTION if DISTRIBUTION in claims else "this source tree (not installed)"


def _warning(others: Iterable[str]) -> str | None:
    """Two distributions with one import name: they may have written over each other's files."""
    names = " ".join(others)
    if not names:
        return None
    return (
        f"{names} installs the same name: pip uninstall {names}, then "
        f"pip install --force-reinstall --no-deps {DISTRIBUTION}; or keep the two in environments of their own"
    )


def _location(name: str) -> Path | None:
    """The folder that an import of this name would load."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return Path(spec.origin).resolve() if spec.origin else None


def _holds(distribution: str, location: Path) -> bool:
    """Whether a distribution's files stand where an import name leads."""
    try:
        base = importlib.metadata.distribution(distribution).locate_file("")
    except importlib.metadata.PackageNotFoundError:
        return False
    return location.is_relative_to(Path(str(base)).resolve())


def _is_editable() -> bool:
    try:
        text = importlib.metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
        return bool(json.loads(text or "{}").get("dir_info", {}).get("editable"))
    except (importlib.metadata.PackageNotFoundError, ValueError, AttributeError):
        return False


def _gpus() -> list[str]:
    """Names and memory of NVIDIA GPUs, as their driver tells."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        shown = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in shown.splitlines() if line.strip()]


def _torch_cuda() -> str | None:
    """The CUDA version that torch is built for, read from its files; None for a build without."""
    try:
        path = importlib.metadata.distribution("torch").locate_file("torch/version.py")
        text = Path(str(path)).read_text(encoding="utf-8")
    except (importlib.metadata.PackageNotFoundError, OSError):
        return None
    found = re.search(r"^cuda\b[^=\n]*= *'([^']+)'", text, flags=re.MULTILINE)
    return found[1] if found else None


def _git(*words: str) -> bytes | None:
    """What git says about the source tree; None if it cannot be asked."""
    program = shutil.which("git")
    if program is None:
        return None
    command = [program, "-C", str(ROOT), "--no-optional-locks", *words]
    try:
        return subprocess.run(command, capture_output=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
