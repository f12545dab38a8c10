"""Print the table of measurements and write it as JSON: ``python -m experiments.benchmarks [--quick] [--out FILE]``."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="leave out the rows at GPT-2 small's shape")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.json", help="where to write JSON")
    parser.add_argument(
        "--peer-env", type=Path, help="also compare with auto-circuit, in the environment that auto_circuit_peer made"
    )
    options = parser.parse_args()

    import torch

    torch.set_num_threads(1)
    from experiments.benchmarks.measure import Row, machine, table
    from experiments.benchmarks.rows import all_rows

    rows: list[Row] = []

    def report(row: Row) -> None:
        rows.append(row)
        mark = "met" if row.met else "MISSED"
        wall = "" if row.wall_ratio is None else f", wall {row.wall_ratio:.2f}×"
        print(
            f"{row.ratio:6.2f}× (bar {row.bar}, {mark}{wall})  {row.name}: "
            f"{row.ours:,.1f} against {row.floor:,.1f} {row.unit}; {row.note}",
            flush=True,
        )

    where = machine()
    print(", ".join(f"{name} {value}" for name, value in where.items()), flush=True)
    all_rows(report, quick=options.quick)
    if options.peer_env is not None:
        from experiments.benchmarks.auto_circuit_peer import BARS, measure

        rows += measure(options.peer_env, shares=list(BARS), repeats=3)
    from graphs.atomic import write_text

    document = {"machine": where, "rows": [asdict(row) for row in rows]}
    write_text(options.out, json.dumps(document, indent=1, allow_nan=False) + "\n")
    print("", table(document), sep="\n")


if __name__ == "__main__":
    main()
