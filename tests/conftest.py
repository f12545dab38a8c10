"""What every test runs under: no network, an empty cache, one thread, the repository on the path.

Nothing heavy is imported here: tests of `graphs` need no torch, and jaxtyping must be able to check `patching` as it
is first imported.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import jaxtyping
import pytest
from hypothesis import settings

from tests import shapes

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
os.environ["HF_HOME"] = str(Path(tempfile.gettempdir()) / "wiretrace-tests-empty-cache")
for threads in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(threads, "1")


LONG = (
    "tests/test_readme.py",
    "tests/test_docs_site.py",
    "tests/experiments/executors",
    "tests/circuits/test_acdc_variants.py",
    "tests/test_notebooks.py",
    "tests/test_docs.py",
)
"""Tests that take long come first, so that no process is left with one of them when the others are done."""

settings.register_profile("wiretrace", deadline=None, derandomize=True, database=None)
settings.load_profile("wiretrace")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for a `family` runs on a tiny model of every one."""
    if "family" in metafunc.fixturenames and not any(
        "family" in str(mark.args[0]) for mark in metafunc.definition.iter_markers("parametrize")
    ):
        from tests import tiny

        metafunc.parametrize("family", tiny.FAMILIES)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--all-shapes`."""
    parser.addoption("--all-shapes", action="store_true", help="check annotated shapes in every test, not one in eight")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones first, else in the order of the files."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Check shapes in this test, or not."""
    every = item.config.getoption("--all-shapes")
    jaxtyping.config.update("jaxtyping_disable", not (every or shapes.are_checked(item.nodeid)))


def pytest_collection_finish() -> None:
    """One thread, so that numbers do not depend on the machine and tests can run side by side."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
