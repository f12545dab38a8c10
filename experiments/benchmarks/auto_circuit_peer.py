"""ACDC here against auto-circuit's, on the same weights, prompts and thresholds.

    python -m experiments.benchmarks.auto_circuit_peer --make-env FOLDER --out FILE   # makes the environment first
    python -m experiments.benchmarks.auto_circuit_peer --env FOLDER --out FILE        # uses it again

auto-circuit needs an older TransformerLens than this project and so an environment of its own, which is made outside
the project and only when asked for. The model is that of the benchmark's own ACDC rows (4 layers, 8 heads, d=256;
1,519 edges; random) with logits ten times as large, about as spread as a trained model's: with the plain ones, the
thresholds that keep a tenth or more of the edges are near float32's rounding of KL, and neither program's decisions
would mean anything.

What is compared: one search at one tau, from prompts to circuit, in processes of their own with one thread and the same
allocator settings. Making and loading models is left out on both sides, the clean and the corrupt run are in. Both drop
an edge iff KL(clean ‖ run) at the last position rises by less than tau, noising clean prompts with what their corrupt
partners carry. The order within a layer differs (theirs is that of a Python set, fixed here by the hash seed) and with
it, slightly, the circuit: counts and overlap are reported. Before anything is compared, clean logits and the KL of some
single edges have to agree.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor

from circuits import acdc
from experiments.benchmarks import rows
from experiments.benchmarks.measure import Row, machine
from graphs.atomic import write_text
from graphs.errors import WiretraceError
from patching import LensModel, MaskedRun, Task

BARS = {0.02: 100.0, 0.1: 30.0, 0.3: 12.0}
"""Share of the edges kept to how many times faster this project has to be."""
STAGES = (
    ("torch==2.13.0",),
    (
        "auto-circuit==1.0.1", "transformer-lens==2.16.1", "transformers<5", "datasets<4", "pyarrow<20",
        "numpy==1.26.4", "attrs",
    ),
)  # fmt: skip
"""What pip installs; torch first, or the other packages choose another one."""
ROOT = Path(__file__).resolve().parents[2]
SIDE = Path(__file__).with_name("auto_circuit_side.py")
SETTINGS = {
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1",
}  # fmt: skip
ALLOCATORS: dict[str, dict[str, str]] = {
    "default": {},
    "keeping": {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)},
}
"""How glibc is set on both sides: as it comes, or to keep large blocks for reuse, which halves the peer's CPU time."""
SHAPE = {"n_layers": 4, "n_heads": 8, "d_model": 256, "d_head": 32, "d_mlp": 1024, "n_ctx": 64, "d_vocab": 1000}
PROBES = 8


class PeerFailed(WiretraceError):
    """The peer's environment is missing or does not work, or what it computes is not comparable."""


def make_environment(folder: Path) -> None:
    """Make a virtual environment with auto-circuit: about 2 GB and some minutes.

    Raises:
        PeerFailed: The folder is in the project or holds something else, or pip fails.
    """
    folder = folder.resolve()
    if folder == ROOT or ROOT in folder.parents:
        raise PeerFailed(f"expected a folder outside the project ({ROOT}); got {folder}. Take a cache folder.")
    if folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").exists():
        raise PeerFailed(f"expected a new or empty folder, or an environment made before; {folder} holds other files.")
    venv.create(folder, with_pip=True)
    for packages in STAGES:
        _checked([_interpreter(folder), "-m", "pip", "install", "-q", *packages], what="pip", settings={})


def python_of(folder: Path) -> Path:
    """The Python of an environment that has auto-circuit.

    Raises:
        PeerFailed: There is none; says how to make one.
    """
    python = _interpreter(folder)
    if not python.exists():
        raise PeerFailed(
            f"expected a virtual environment with auto-circuit in {folder}; there is none. Make one with: "
            f"python -m experiments.benchmarks.auto_circuit_peer --make-env {folder} --out FILE"
        )
    return python


def _interpreter(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def random_weights(shape: dict[str, int]) -> dict[str, Tensor]:
    """Weights of the benchmark's random model, with logits ten times as large."""
    model = _hugging_face(shape)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "wte" not in name:
                parameter.mul_(3.0)
        model.transformer.ln_f.weight.mul_(10.0)
    return {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("lm_head")}


def _hugging_face(shape: dict[str, int]) -> Any:
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=shape["n_layers"], n_head=shape["n_heads"], n_embd=shape["d_model"], n_inner=shape["d_mlp"],
        vocab_size=shape["d_vocab"], n_positions=shape["n_ctx"], bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).eval()


def export(folder: Path, *, shape: dict[str, int], weights: dict[str, Tensor]) -> None:
    """Write what both sides read: weights, prompts, and which edges to probe."""
    from safetensors.torch import save_file

    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "weights.safetensors")
    (folder / "request.json").write_text(json.dumps({"model": shape, "probes": []}), encoding="utf-8")
    model = load(folder)
    task = rows.random_task(model)
    edges = model.graph.edges
    probes = [str(edges[number]) for number in range(0, len(edges), max(1, len(edges) // PROBES))]
    (folder / "request.json").write_text(json.dumps({"model": shape, "probes": probes}), encoding="utf-8")
    save_file({"clean": task.clean.contiguous(), "corrupt": task.corrupt.contiguous()}, folder / "prompts.safetensors")


def load(folder: Path) -> LensModel:
    """The exported weights as a model of this project."""
    from safetensors.torch import load_file

    shape = json.loads((folder / "request.json").read_text(encoding="utf-8"))["model"]
    model = _hugging_face(shape)
    wrong = model.load_state_dict(load_file(folder / "weights.safetensors"), strict=False)
    if wrong.unexpected_keys or [name for name in wrong.missing_keys if not name.startswith("lm_head")]:
        raise PeerFailed(f"expected the weights of a GPT-2 in {folder}; got others: {wrong}")
    return LensModel.wrap(model, name="4 layers × 8 heads × d=256, logits × 10")


def prompts(folder: Path, model: LensModel) -> Task:
    """The exported prompts as a task of this project."""
    from safetensors.torch import load_file

    stored = load_file(folder / "prompts.safetensors")
    task = rows.random_task(model)
    count, length = stored["clean"].shape
    return Task(
        "random", stored["clean"], stored["corrupt"], task.answers, task.wrong_answers,
        torch.full((count,), length - 1), metric="kl",
    )  # fmt: skip


def ours(folder: Path, *, tau: float, repeats: int) -> dict[str, Any]:
    """This project's side, in the form that the peer's half prints: median times, the circuit, and the probes."""
    model = load(folder)
    task = prompts(folder, model)
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    walls, cpus, kept = [], [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        circuit = acdc.search(MaskedRun(model, task), tau=tau)
        cpus.append(time.process_time() - cpu)
        walls.append(time.perf_counter() - wall)
        kept = sorted(map(str, circuit.edges))
    run = MaskedRun(model, task)
    masks = run.ones().expand(len(request["probes"]), -1).clone()
    for row, name in enumerate(request["probes"]):
        masks[row, [str(edge) for edge in run.graph.edges].index(name)] = 0.0
    return {
        "cpu": statistics.median(cpus),
        "wall": statistics.median(walls),
        "kept": kept,
        "edges": run.n_units,
        "single": dict(zip(request["probes"], run(masks).mean(-1).tolist(), strict=True)),
        "logits": model.logits(task.clean)[:, -1].tolist(),
        "torch": torch.__version__,
    }


def compare(
    mine: dict[str, Any], theirs: dict[str, Any], *, tau: float, bar: float, name: str, allocator: str = "default"
) -> Row:
    """The row of one tau.

    Raises:
        PeerFailed: The two sides do not compute the same thing.
    """
    gap = float((torch.tensor(mine["logits"]) - torch.tensor(theirs["logits"])).abs().max())  # NaN stays NaN
    off = [
        f"{edge}: {value:.6g} and {theirs['single'][edge]:.6g}"
        for edge, value in mine["single"].items()
        if not math.isclose(value, theirs["single"][edge], rel_tol=1e-3, abs_tol=2e-6)
    ]
    if not gap <= 1e-4 or off or mine["edges"] != theirs["edges"]:
        raise PeerFailed(
            f"expected the same quantities on both sides; clean logits differ by {gap:.2g} (at most 1e-4), edges are "
            f"{mine['edges']} and {theirs['edges']}, KL of single edges differs at {off or 'none'}."
        )
    both, either = set(mine["kept"]) & set(theirs["kept"]), set(mine["kept"]) | set(theirs["kept"])
    ratio = theirs["cpu"] / mine["cpu"]
    counts = len(mine["kept"]), len(theirs["kept"])
    return Row(
        f"ACDC, {counts[0] / mine['edges']:.1%} of {mine['edges']:,} edges kept: auto-circuit over ours ({name})",
        mine["cpu"] * 1e3, theirs["cpu"] * 1e3, "ms CPU", ratio, f"≥ {bar:g}×", ratio >= bar,
        theirs["wall"] / mine["wall"],
        f"auto-circuit 1.0.1, tau {tau:.3g} kl; kept {counts[0]} and theirs {counts[1]} (its order is a Python set's), "
        f"Jaccard {len(both) / max(1, len(either)):.2f}; clean logits within {gap:.0e}; {allocator} allocator",
    )  # fmt: skip


def _checked(command: Sequence[object], *, what: str, settings: dict[str, str]) -> str:
    """Standard output of a process.

    Raises:
        PeerFailed: It fails; with the end of what it said.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    result = subprocess.run(
        [str(word) for word in command], env=inherited | settings, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise PeerFailed(f"{what} failed with code {result.returncode}: …{result.stderr.strip()[-1500:]}")
    return result.stdout


def _last_line(output: str) -> dict[str, Any]:
    return json.loads(output.strip().splitlines()[-1])


def measure(environment: Path, *, shares: Sequence[float], repeats: int, allocator: str = "default") -> list[Row]:
    """One row per share; the peer runs once at each, this project ``repeats`` times (median)."""
    python = python_of(environment)
    settings = SETTINGS | ALLOCATORS[allocator]
    measured: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="wiretrace-peer-") as name:
        folder = Path(name)
        export(folder, shape=SHAPE, weights=random_weights(SHAPE))
        model = load(folder)
        run = MaskedRun(model, prompts(folder, model))
        for share in shares:
            tau = rows.tau_that_keeps(run, share)
            command = [sys.executable, "-m", "experiments.benchmarks.auto_circuit_peer"]
            half = [*command, "--ours", folder, "--tau", repr(tau), "--repeats", repeats]
            mine = _last_line(_checked(half, what="this project's side", settings=settings))
            theirs = _checked([python, "-P", "-s", SIDE, folder, repr(tau)], what="auto-circuit", settings=settings)
            row = compare(mine, _last_line(theirs), tau=tau, bar=BARS[share], name=model.name, allocator=allocator)
            measured.append(row)
            print(f"{row.ratio:.1f}× (bar {row.bar}, wall {row.wall_ratio:.1f}×)  {row.name}; {row.note}", flush=True)
    return measured


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.auto_circuit_peer", description=__doc__)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--make-env", type=Path, help="make an environment with auto-circuit here, then use it")
    where.add_argument("--env", type=Path, help="an environment made before")
    where.add_argument("--ours", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--tau", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=3, help="searches of this project per tau; the median counts")
    parser.add_argument(
        "--allocator", choices=list(ALLOCATORS), default="default", help="how glibc is set, on both sides"
    )
    parser.add_argument("--shares", type=float, nargs="+", default=list(BARS), choices=list(BARS), help="of edges kept")
    parser.add_argument("--out", type=Path, help="where to write the rows as JSON")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.repeats < 1:
        parser.error(f"expected --repeats of 1 or more; got {options.repeats}")
    if options.ours is not None:
        print(json.dumps(ours(options.ours, tau=options.tau, repeats=options.repeats)))
        return
    if options.out is None:
        parser.error("expected --out FILE, where to write the rows")
    try:
        if options.make_env is not None:
            make_environment(options.make_env)
        measured = measure(
            options.make_env or options.env, shares=options.shares, repeats=options.repeats, allocator=options.allocator
        )
    except PeerFailed as error:
        sys.exit(str(error))
    document = {"machine": machine(), "rows": [asdict(row) for row in measured]}
    write_text(options.out, json.dumps(document, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
