"""`wiretrace env`: versions, devices, and names that something else stands in the way of."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from experiments import environment

ROOT = Path(__file__).resolve().parents[2]


def env(*, path: list[Path], cwd: Path) -> str:
    """The output of `wiretrace env` in a fresh process, with these folders first on the path."""
    program = "import sys; from experiments.cli import app; app(['env'], prog_name='wiretrace')"
    settings = os.environ | {"PYTHONPATH": os.pathsep.join(str(folder) for folder in (*path, ROOT)), "COLUMNS": "200"}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=cwd, env=settings, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    return " ".join(result.stdout.split())


def distribution(folder: Path, name: str, *, package: str, whole: bool = True) -> None:
    """A distribution that installs a package, as pip leaves it."""
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text("")
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "top_level.txt").write_text(f"{package}\n")
    if not whole:
        (folder / package / "__init__.py").unlink()
        (folder / package).rmdir()


def test_versions_are_those_installed(wiretrace):
    shown = wiretrace("env").stdout
    for name in ("torch", "transformer-lens", "networkx", "typer"):
        assert f"{name}" in shown
        assert version(name) in shown
    assert "CPU" in shown
    assert "cores usable" in shown
    assert environment.version() in shown


def test_all_is_well_here():
    for each in environment.ownership():
        assert each.location == ROOT / each.name
        assert each.advice is None
        assert "wiretrace" in each.owner or "source tree" in each.owner
    assert environment.verdict(environment.ownership()).startswith("All is well")


def test_a_distribution_in_the_way_is_named(tmp_path):
    distribution(tmp_path / "site", "other-graphs", package="graphs")
    shown = env(path=[tmp_path / "site"], cwd=tmp_path)
    assert "other-graphs" in shown
    assert "graphs: It hides ours: pip uninstall other-graphs" in shown
    assert shown.count("hides ours") == 1


def test_a_folder_in_the_way_is_named(tmp_path):
    (tmp_path / "site" / "circuits").mkdir(parents=True)
    (tmp_path / "site" / "circuits" / "__init__.py").write_text("")
    shown = env(path=[tmp_path / "site"], cwd=tmp_path)
    assert "no distribution" in shown
    assert "rename that folder" in shown
    assert shown.count("hides ours") == 1


def test_a_second_owner_of_a_name_is_a_warning(tmp_path):
    distribution(tmp_path / "site", "other-patching", package="patching", whole=False)
    shown = env(path=[tmp_path / "site"], cwd=tmp_path)
    assert "other-patching installs the same name" in shown
    assert "--force-reinstall" in shown


def test_other_commands_point_to_env_when_an_import_is_shadowed(tmp_path):
    (tmp_path / "graphs").mkdir()
    (tmp_path / "graphs" / "__init__.py").write_text("")
    program = "from experiments.cli import app; app(['tasks'], prog_name='wiretrace')"
    settings = os.environ | {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=settings, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 1
    assert "`wiretrace env` says what" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_source_state_names_a_commit_or_nothing():
    state = environment.source_state()
    assert state is None or (len(state["commit"]) == 40 and set(state) == {"commit", "changed"})


def test_a_gpu_without_a_cuda_build_is_said(monkeypatch):
    monkeypatch.setattr(environment, "_gpus", lambda: ["Some GPU, 8192 MiB"])
    monkeypatch.setattr(environment, "_torch_cuda", lambda: None)
    assert any("Some GPU" in line and "install a CUDA build" in line for line in environment.devices())
    monkeypatch.setattr(environment, "_torch_cuda", lambda: "12.6")
    assert any("torch has CUDA 12.6" in line for line in environment.devices())
