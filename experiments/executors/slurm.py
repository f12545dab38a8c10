"""Pieces of work as jobs of SLURM: a script that submits an array for every stage, each after the one before.

    wiretrace run sweep.toml --out runs --slurm job.sh     # writes the script
    bash job.sh                                            # submits it: one task per piece, then what gathers them

SLURM does what an executor does elsewhere: it starts processes, one piece each, and holds back a stage until the one
before has ended. What gathers a run computes the shards that are missing, so a run that fails holds up no other. A
piece is idempotent, so submitting the script again does what is missing.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Final

from experiments.errors import BadConfig
from experiments.work import Unit

MOST: Final = 1_000
"""Tasks of one array; clusters allow 1,001 unless they were told otherwise."""


def piece(stages: Sequence[Sequence[Unit]], number: int) -> Unit:
    """The piece of a number, counted through all stages.

    Raises:
        BadConfig: There is none.
    """
    units = [unit for stage in stages for unit in stage]
    if not 0 <= number < len(units):
        raise BadConfig(f"expected a piece from 0 to {len(units) - 1:,}; got {number:,}. Write the script anew.")
    return units[number]


def script(
    stages: Sequence[Sequence[Unit]], command: Sequence[str], *, job: str = "wiretrace", most: int = MOST
) -> str:
    """A script for bash that submits itself as arrays of SLURM jobs.

    Args:
        stages: As `experiments.work.units` and `together` give them.
        command: The words that do piece K when ``--unit K`` is added to them.
        job: The name that the queue shows.
        most: Tasks of one array.

    Raises:
        BadConfig: There is nothing to do, or the name of the job is no plain word.

    Example:
        >>> stages = [[Unit({}, "runs/a", 0), Unit({}, "runs/a", 1)], [Unit({}, "runs/a")]]
        >>> print(script(stages, ["wiretrace", "run", "a.toml"]), end="")
        #!/usr/bin/env bash
        ...
        stage 0 2
        stage 2 1
    """
    if not job.replace("-", "").replace("_", "").isalnum():
        raise BadConfig(f"expected a name of letters, digits, - and _ for the job; got {job!r}.")
    sizes = [len(stage) for stage in stages if stage]
    if not sizes:
        raise BadConfig("expected at least one piece of work; there is none.")
    runs = len({unit.folder for stage in stages for unit in stage})
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    submitted = "\n".join(f"stage {start} {size}" for start, size in zip(starts, sizes, strict=True))
    return _TEXT.format(
        runs=f"{runs:,} run{'s' * (runs != 1)}",
        pieces=f"{sum(sizes):,} piece{'s' * (sum(sizes) != 1)}",
        job=job,
        command=shlex.join(command),
        most=most,
        submitted=submitted,
    )


_TEXT: Final = """\
#!/usr/bin/env bash
# {runs} in {pieces} of work, for SLURM. Submit them with: bash THIS_FILE
# Submitting again does what is missing: pieces that are done are left as they are.
#
# What a task gets. Change it to suit the cluster; add --partition, --account, or --gres=gpu:1 for a GPU.
#SBATCH --job-name={job}
#SBATCH --cpus-per-task=1
#SBATCH --mem=8G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --output={job}-%A_%a.log
set -euo pipefail

# Load here whatever the tasks need, such as: source .venv/bin/activate

if [[ -n "${{SLURM_ARRAY_TASK_ID:-}}" ]]; then
  # In a task: its piece is the first of its array, which is this script's argument, and so many more.
  exec {command} --unit "$(($1 + SLURM_ARRAY_TASK_ID))"
fi

before=""

# stage FIRST COUNT: submit pieces FIRST and following, to begin when all stages before have ended, well or not.
stage() {{
  local first=$1 left=$2 jobs="" size
  while ((left > 0)); do
    size=$((left < {most} ? left : {most}))
    local options=(--parsable "--array=0-$((size - 1))" "--chdir=$PWD")
    if [[ -n "$before" ]]; then
      options+=("--dependency=afterany:$before")
    fi
    jobs+=":$(sbatch "${{options[@]}}" "${{BASH_SOURCE[0]}}" "$first" | cut -d ';' -f 1)"
    first=$((first + size))
    left=$((left - size))
  done
  before=${{jobs#:}}
  echo "submitted $2 pieces from $1 on: job ${{before//:/, }}"
}}

{submitted}
"""
