"""What is shipped: the wheel's files and metadata, and the pinned versions."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("graphs", "patching", "circuits", "experiments")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md")
PIN = re.compile(r"^(?P<name>[a-z0-9-]+)==(?P<version>[0-9][0-9a-z.]*)$")


def tracked(package: str, pattern: str) -> list[Path]:
    return [path for path in sorted((ROOT / package).rglob(pattern)) if "__pycache__" not in path.parts]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel, built by the back end itself: no environment to download, no network."""
    folder = tmp_path_factory.mktemp("wheel")
    (path,) = WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def metadata(wheel) -> Message:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return Parser().parsestr(wheel.read(name).decode())


def requirements(lines: list[str]) -> list[Requirement]:
    return [Requirement(line) for line in lines]


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [PIN.match(line) for line in lines if line and not line.startswith("#")]
    assert all(found), "constraints.txt: every line is name==version, lower case, without a local suffix"
    return {match["name"]: Version(match["version"]) for match in found if match}


def test_wheel_holds_the_packages_and_nothing_else(wheel):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {*PACKAGES, f"wiretrace-{PROJECT['version']}.dist-info"}


@pytest.mark.parametrize("package", PACKAGES)
def test_wheel_holds_every_module(wheel, package):
    expected = {path.relative_to(ROOT).as_posix() for path in tracked(package, "*.py")}
    assert expected
    assert expected <= set(wheel.namelist())


def test_wheel_holds_the_zoo(wheel):
    zoo = [path.relative_to(ROOT).as_posix() for path in tracked("patching/zoo", "*") if path.is_file()]
    models = {Path(name).parent.as_posix() for name in zoo if name.endswith(".safetensors")}
    assert "patching/zoo/ioi" in models
    assert set(zoo) <= set(wheel.namelist())
    dictionaries = [
        path.relative_to(ROOT).as_posix() for path in tracked("circuits/features/zoo", "*") if path.is_file()
    ]
    assert sum(name.endswith(".safetensors") for name in dictionaries) == 10
    assert set(dictionaries) <= set(wheel.namelist())
    for model in models:
        assert {f"{model}/{part}" for part in MODEL_FILES} <= set(wheel.namelist())


def test_wheel_is_small(wheel):
    size = sum(entry.compress_size for entry in wheel.infolist())
    assert size < 40e6, f"{size / 1e6:.1f} MB: package indexes and users have limits"


def test_wheel_holds_no_pickle(wheel):
    dangerous = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")
    assert [name for name in wheel.namelist() if name.endswith(dangerous)] == []


def test_metadata_says_what_the_project_says(wheel, metadata):
    assert metadata["Name"] == "wiretrace"
    assert metadata["Version"] == PROJECT["version"]
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    (scripts,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    assert "wiretrace = experiments.cli:app" in wheel.read(scripts).decode()


def test_one_version_everywhere():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {PROJECT['version']}\n" in citation
    try:
        installed = importlib.metadata.version("wiretrace")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("wiretrace is on the path without being installed")
    assert installed == PROJECT["version"]


IMPORTED_AS = {"griffelib": "griffe", "mlflow-skinny": "mlflow", "scikit-learn": "sklearn"}


def test_declared_dependencies_are_the_imported_ones():
    imported = set()
    for path in [path for package in PACKAGES for path in tracked(package, "*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.split(".")[0])
    imported -= {*PACKAGES, *sys.stdlib_module_names}
    extras = PROJECT["optional-dependencies"]
    lines = [line for name, extra in extras.items() if name != "dev" for line in extra]
    optional = {IMPORTED_AS.get(one.name, one.name) for one in requirements(lines)}
    declared = {requirement.name for requirement in requirements(PROJECT["dependencies"])}
    assert sorted(imported - optional - declared) == [], "imported but not declared"
    assert sorted(declared - imported) == [], "declared but not imported"


def test_every_requirement_is_pinned_and_fits_its_pin():
    pinned = pins()
    extras = [line for extra in PROJECT["optional-dependencies"].values() for line in extra]
    for requirement in requirements([*PROJECT["dependencies"], *extras]):
        version = pinned[canonicalize_name(requirement.name)]
        assert version in requirement.specifier, f"{requirement} but constraints.txt says {version}"


def test_pins_are_sorted_and_pull_no_cuda():
    names = list(pins())
    assert names == sorted(names)
    assert [name for name in names if name.startswith(("nvidia", "cuda", "triton"))] == []
    assert str(pins()["torch"]) == "2.13.0"
    assert str(pins()["transformer-lens"]) == "4.3.0"
