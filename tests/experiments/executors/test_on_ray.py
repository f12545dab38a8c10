"""A real cluster of Ray with three nodes on this machine: the same results, though workers and a node are killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments import executors, tracking
from experiments.errors import BadConfig
from experiments.executors import on_ray
from experiments.executors.schedule import Outcome
from experiments.work import Unit
from tests.experiments.executors import small_runs
from tests.experiments.executors.small_runs import ACDC, COAR, EAP, EXACT

pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for workers in /proc")

ROOT = Path(__file__).resolve().parents[3]
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Three nodes of one core; all their processes are gone afterwards, whatever happens."""
    import ray
    from ray.cluster_utils import Cluster

    with on_ray._handlers_kept(), warnings.catch_warnings(), pytest.MonkeyPatch.context() as environment:
        warnings.simplefilter("ignore")
        environment.setenv("PYTHONPATH", str(ROOT))  # of the workers
        made = Cluster(initialize_head=True, head_node_args=dict(NODE))
        try:
            for _ in range(2):
                made.add_node(**NODE, wait=False)
            made.wait_for_nodes(timeout=300)
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


def workers_at_work() -> list[int]:
    """Processes of Ray that do a piece at this moment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::_perform"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_a_killed_worker_and_a_lost_node_change_nothing(cluster: Any, in_process: Path, tmp_path: Path) -> None:
    """After the first answers a worker is killed, then a node with all that it does."""
    killed: list[int] = []
    removed: list[Any] = []
    heard: list[str] = []

    def strike(outcome: Outcome) -> None:
        busy = workers_at_work()
        if not killed and busy:
            killed.append(busy[-1])
            os.kill(killed[0], signal.SIGKILL)
        elif killed and not removed:
            removed.append(next(node for node in cluster.list_all_nodes() if not node.is_head()))
            cluster.remove_node(removed[0], allow_graceful=False)

    runs = {"exact": EXACT, "coar": COAR, "acdc": ACDC, "eap": EAP}
    stages = small_runs.stages(tmp_path, runs)
    stages[0].append(Unit({**ACDC, "model": str(tmp_path / "nowhere")}, str(tmp_path / "wrong")))
    wrong = len(stages[0]) - 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of Ray's own processes
        outcomes = executors.run("ray", stages, address=cluster.address, retries=4, told=strike, say=heard.append)
    assert killed
    assert removed
    failed = outcomes.pop(wrong)
    assert (failed.state, failed.attempts) == ("failed", 1)
    assert "nowhere" in str(failed.error)
    assert [outcome.error for outcome in outcomes] == [None] * 20
    assert max(outcome.attempts for outcome in outcomes) >= 2
    assert any("Ray said" in line and "Attempt 2 of 5" in line for line in heard)
    for name in runs:
        assert small_runs.left(tmp_path / name) == small_runs.left(in_process / name), name


def test_addresses_that_do_not_answer() -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        port = mute.getsockname()[1]
        with pytest.raises(BadConfig, match=f"Ray cluster at 127.0.0.1:{port}; nothing answers within 3 seconds"):
            on_ray.check_address(f"127.0.0.1:{port}", limit=3)
        mute.listen()
        with pytest.raises(BadConfig, match=r"does not answer as one \(no answer within 3 seconds\). Is it right"):
            on_ray.check_address(f"127.0.0.1:{port}", limit=3)


@pytest.mark.parametrize("address", ["nonsense", "host:", "host:0", "host:99999", ":6379", "ray://host"])
def test_addresses_that_are_none(address: str, tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=r"HOST:PORT, ray://HOST:PORT or auto; got"):
        executors.run("ray", [[Unit(dict(EAP), str(tmp_path / "x"))]], address=address)


def test_without_ray_the_extra_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from experiments import executors\nfrom experiments.work import Unit\n"
        f"executors.run('ray', [[Unit({EAP!r}, {str(tmp_path / 'x')!r})]])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].endswith(
        "expected Ray for the executor ray; it is not installed. Try: pip install -e '.[ray]' (or choose the "
        "executor workers, which needs nothing)."
    )


def test_nobody_loads_ray_but_its_executor() -> None:
    code = "import sys\nfrom experiments import cli, executors\nfrom experiments.executors import on_ray, workers\n"
    code += "assert 'ray' not in sys.modules and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_node_that_does_not_share_the_folder_says_so(tmp_path: Path) -> None:
    answer = on_ray._perform(Unit(dict(EAP), "x").to_dict(), str(tmp_path / "elsewhere"), "")
    assert "Nodes must share the file system" in str(answer["error"])
    assert not answer["again"]


def test_pieces_are_tracked_as_whoever_gives_them_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that was there before has an environment of its own."""
    seen: list[tuple[str, ...]] = []
    monkeypatch.setattr(on_ray.work, "perform", lambda unit: bool(seen.append(tracking.asked())))
    monkeypatch.setenv(tracking.VARIABLE, "of the node")
    for trackers in ("", "tensorboard,mlflow"):
        assert on_ray._perform(Unit(dict(EAP), "x").to_dict(), str(tmp_path), trackers)["error"] is None
    assert seen == [("of the node",), ("tensorboard", "mlflow")]
