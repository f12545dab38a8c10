"""The script for SLURM: valid bash, and on a cluster that is only pretended it makes the same runs."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import executors, work
from experiments.errors import BadConfig
from experiments.executors.slurm import piece, script
from experiments.work import Unit
from tests.experiments.executors import small_runs

ROOT = Path(__file__).resolve().parents[3]
SBATCH = """#!/usr/bin/env bash
# Does what sbatch promises: runs every task of the array, also if some fail, once the jobs it depends on have ended.
set -euo pipefail
echo "$@" >>"$PRETENDED/submitted"
dependency="" array=""
while [[ "$1" == --* ]]; do
  case "$1" in
    --array=0-*) array=${1#--array=0-} ;;
    --dependency=*) dependency=${1#*:} kind=${1#--dependency=} kind=${kind%%:*} ;;
    --chdir=*) cd "${1#--chdir=}" ;;
  esac
  shift
done
job=$(($(cat "$PRETENDED/jobs" 2>/dev/null || echo 100) + 1))
echo "$job" >"$PRETENDED/jobs"
for before in ${dependency//:/ }; do
  [[ -e "$PRETENDED/$kind-$before" ]] || { echo "there is no $kind of job $before" >&2; exit 1; }
done
touch "$PRETENDED/afterany-$job" "$PRETENDED/afterok-$job"
for ((task = array; task >= 0; task--)); do
  SLURM_ARRAY_TASK_ID=$task bash "$@" >>"$PRETENDED/log" 2>&1 || rm -f "$PRETENDED/afterok-$job"
done
echo "$job;cluster"
"""
PIECES = """
import json, sys
from pathlib import Path
from experiments import work
from experiments.executors.slurm import piece
stages = [[work.Unit.from_dict(unit) for unit in stage] for stage in json.loads(Path(sys.argv[1]).read_text())]
work.perform(piece(stages, int(sys.argv[sys.argv.index("--unit") + 1])))
"""


def submit(path: Path, pretended: Path) -> subprocess.CompletedProcess[str]:
    """Run a script where `sbatch` only pretends."""
    pretended.mkdir(exist_ok=True)
    fake = pretended / "sbatch"
    fake.write_text(SBATCH)
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    env = os.environ | {
        "PATH": f"{pretended}:{os.environ['PATH']}",
        "PRETENDED": str(pretended),
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(["bash", str(path)], env=env, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_array_makes_the_same_runs(tmp_path: Path) -> None:
    stages = small_runs.stages(tmp_path / "runs", {"coar": {**small_runs.COAR, "samples": 300}})
    executors.run("process", small_runs.stages(tmp_path / "true", {"coar": {**small_runs.COAR, "samples": 300}}))
    plain = tmp_path / "the pieces.json"
    plain.write_text(json.dumps([[unit.to_dict() for unit in stage] for stage in stages]))
    job = tmp_path / "job.sh"
    job.write_text(script(stages, [sys.executable, "-c", PIECES, str(plain)]))
    done = submit(job, tmp_path / "pretended")
    assert done.returncode == 0, done.stderr + (tmp_path / "pretended" / "log").read_text()
    assert done.stdout.splitlines() == [
        "submitted 2 pieces from 0 on: job 101", "submitted 1 pieces from 2 on: job 102",
    ]  # fmt: skip
    first, second = (tmp_path / "pretended" / "submitted").read_text().splitlines()
    assert "--parsable --array=0-1 " in first
    assert "--dependency" not in first
    assert "--array=0-0 " in second
    assert "--dependency=afterany:101 " in second
    assert small_runs.left(tmp_path / "runs" / "coar") == small_runs.left(tmp_path / "true" / "coar")


def test_a_stage_too_large_for_one_array_is_several(tmp_path: Path) -> None:
    stages = [[Unit({}, f"/nowhere/{number}") for number in range(7)], [Unit({}, "/nowhere/all")]]
    log = tmp_path / "seen"
    job = tmp_path / "job.sh"
    job.write_text(script(stages, ["bash", "-c", f'echo "$@" >>{log}', "x"], most=3))
    done = submit(job, tmp_path / "pretended")
    assert done.returncode == 0, done.stderr
    assert "submitted 7 pieces from 0 on: job 101, 102, 103" in done.stdout
    seen = [line.split() for line in log.read_text().splitlines()]
    assert [name for name, _ in seen] == ["--unit"] * 8
    assert sorted(int(number) for _, number in seen) == list(range(8))
    assert seen[-1][1] == "7"
    assert "afterany:101:102:103 " in (tmp_path / "pretended" / "submitted").read_text()


def test_a_run_that_fails_does_not_hold_up_what_gathers_another(tmp_path: Path) -> None:
    stages = [[Unit({}, "/nowhere/a", 0), Unit({}, "/nowhere/b", 0)], [Unit({}, "/nowhere/a"), Unit({}, "/nowhere/b")]]
    log = tmp_path / "seen"
    job = tmp_path / "job.sh"
    job.write_text(script(stages, ["bash", "-c", f'echo "$2" >>{log}; [[ "$2" != 0 ]]', "x"]))  # piece 0 fails
    done = submit(job, tmp_path / "pretended")
    assert done.returncode == 0, done.stderr
    seen = log.read_text().split()
    assert (sorted(seen[:2]), sorted(seen[2:])) == (["0", "1"], ["2", "3"])


def test_the_script_is_bash_whatever_the_words_hold(tmp_path: Path) -> None:
    words = ["wiretrace", "run", "it's $HOME `x` {braces}.toml", "--set", 'options.order="paper"', "--out", "my runs"]
    text = script([[Unit({}, "runs/a")]], words, job="ioi-sweep_2")
    path = tmp_path / "job.sh"
    path.write_text(text)
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert "#SBATCH --job-name=ioi-sweep_2" in text
    assert "# 1 run in 1 piece of work" in text
    assert text.endswith("stage 0 1\n")
    shown = subprocess.run(
        ["bash", "-c", 'exec() { printf "%s\\n" "$@"; exit; }; . "$1" 5', "x", str(path)],
        env=os.environ | {"SLURM_ARRAY_TASK_ID": "2"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stdout.splitlines()[:-2] == words


def test_pieces_are_counted_through_all_stages(tmp_path: Path) -> None:
    stages = work.units(small_runs.COAR, tmp_path)
    assert [piece(stages, number).shard for number in range(4)] == [0, 1, 2, None]
    for number in (-1, 4):
        with pytest.raises(BadConfig, match="piece from 0 to 3"):
            piece(stages, number)


def test_nothing_and_strange_names_are_refused() -> None:
    with pytest.raises(BadConfig, match="at least one piece"):
        script([[]], ["x"])
    with pytest.raises(BadConfig, match="letters, digits"):
        script([[Unit({}, "a")]], ["x"], job="a b; rm")
