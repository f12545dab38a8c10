"""Killed with SIGKILL at random moments, again and again: no finished shard is lost, and the end is the same.

The moments are drawn from a seed. The long form is marked slow; a short one runs always.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from experiments import executors
from tests.experiments.executors import small_runs
from tests.experiments.executors.killed_driver import KILLED
from tests.experiments.executors.test_workers import alive, children, wait_for

ROOT = Path(__file__).resolve().parents[3]
DRIVER = (sys.executable, "-m", "tests.experiments.executors.killed_driver")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same runs, which nobody kills."""
    root = tmp_path_factory.mktemp("undisturbed")
    outcomes = executors.run("process", small_runs.stages(root, KILLED))
    assert {outcome.state for outcome in outcomes} == {"finished"}
    return root


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that forks one which works, for every line that it gets."""
    with subprocess.Popen(
        [*DRIVER, str(tmp_path)], cwd=ROOT, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def begun(driver: subprocess.Popen[str]) -> int:
    assert driver.stdin is not None
    assert driver.stdout is not None
    driver.stdin.write("\n")
    driver.stdin.flush()
    return int(driver.stdout.readline())


def ended(driver: subprocess.Popen[str]) -> int:
    assert driver.stdout is not None
    return int(driver.stdout.readline())


def nothing_lost(before: dict[str, str], root: Path) -> dict[str, str]:
    """The finished shards, among them all that were finished before, unchanged."""
    now = small_runs.shards(root)
    assert before.items() <= now.items()
    return now


def same(root: Path, undisturbed: Path) -> None:
    for name in KILLED:
        assert small_runs.left(root / name) == small_runs.left(undisturbed / name), name
    assert not list(root.rglob(".wiretrace-*")), "leftovers of killed processes"


@pytest.mark.parametrize("kills", [5, pytest.param(45, marks=pytest.mark.slow)])
def test_a_process_killed_at_random_moments(
    kills: int, driver: subprocess.Popen[str], undisturbed: Path, tmp_path: Path
) -> None:
    """It lives for up to three seconds each time: while it plans, computes shards, searches, gathers or writes."""
    generator = random.Random(9)
    held: dict[str, str] = {}
    done = 0
    while done < kills:
        child = begun(driver)
        time.sleep(generator.uniform(0.0, 3.0))
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        killed = ended(driver) == signal.SIGKILL
        held = nothing_lost(held, tmp_path)
        done += killed
        if not killed or done % 9 == 6:
            held = restarted(tmp_path)
    begun(driver)
    assert ended(driver) == 0
    nothing_lost(held, tmp_path)
    same(tmp_path, undisturbed)


def restarted(root: Path) -> dict[str, str]:
    """Take away what gathers, and some shards, so that there is something to kill again."""
    for name in KILLED:
        for path in (root / name).glob("*"):
            if path.is_file():
                path.unlink()
    for path in list(small_runs.shards(root))[::2]:
        (root / path).unlink()
    return small_runs.shards(root)


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_workers_and_their_group_killed_at_random_moments(kills: int, undisturbed: Path, tmp_path: Path) -> None:
    """Single workers are replaced; when the process that started them is killed, they end with it."""
    generator = random.Random(4)
    held: dict[str, str] = {}
    for number in range(kills):
        process = subprocess.Popen(
            [*DRIVER, str(tmp_path), "workers"], cwd=ROOT, env=ENVIRONMENT, start_new_session=True
        )
        wait_for(lambda process=process: len(children(process.pid)) == 2 or process.poll() is not None)
        time.sleep(generator.uniform(0.0, 12.0))
        found = children(process.pid)
        if found and number % 2:
            os.kill(generator.choice(found), signal.SIGKILL)
            time.sleep(generator.uniform(0.0, 6.0))
            found = children(process.pid)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        wait_for(lambda found=found: not any(map(alive, found)), 20.0)
        held = nothing_lost(held, tmp_path)
    subprocess.run([*DRIVER, str(tmp_path), "workers"], cwd=ROOT, env=ENVIRONMENT, check=True)
    nothing_lost(held, tmp_path)
    same(tmp_path, undisturbed)
