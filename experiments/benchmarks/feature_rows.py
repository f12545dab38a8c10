"""Rows of dictionary features: training, edges of feature circuits, spliced forwards, the activation buffer."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuits import features, tasks
from circuits.features.activation_buffer import ActivationBuffer
from circuits.features.activations import Prompts
from circuits.features.edge_effects import edge_effects, grouped
from circuits.features.edge_graph import Cotangents, Graph, Moves
from circuits.features.node_effects import node_effects
from experiments.benchmarks.measure import Row, at_most, peak_bytes
from experiments.benchmarks.rows import random_task
from patching import LensModel
from patching.blocks import forward
from patching.component_run import ComponentRun

WIDTH, FEATURES, BATCH, STEPS = 768, 16_384, 4_096, 4
PEER = "WIRETRACE_SAE_LENS_PYTHON"
"""Environment variable with the Python of an environment that has sae-lens 6.54; without it, no comparison is made."""

TRAINED: dict[str, dict[str, Any]] = {"relu": {}, "topk": {"k": 32}}
SPARSITY = {"relu": 0.1, "topk": None}


def rows(large: LensModel | None) -> Iterator[Row]:
    """All rows; those at GPT-2 small's width if its model is given."""
    yield edges()
    yield from buffer()
    if large is not None:
        yield spliced(large)
        for architecture in TRAINED:
            yield training(architecture)
            if PEER in os.environ:
                yield against_sae_lens(architecture)


def products() -> None:
    """The five matrix products of a training step: encode, decode, and the gradients of both and of the features."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, WIDTH, generator=generator)
    inward = torch.randn(WIDTH, FEATURES, generator=generator)
    outward = torch.randn(FEATURES, WIDTH, generator=generator)
    for _ in range(STEPS):
        activations = x @ inward
        gradient = activations @ outward
        torch.matmul(activations.T, gradient)
        pulled = gradient @ outward.T
        torch.matmul(x.T, pulled)


def train(architecture: str) -> None:
    """A few steps of training at that size, on one batch over and over."""
    x = torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(0))
    dictionary = features.create(architecture, d_in=WIDTH, n_features=FEATURES, seed=0, **TRAINED[architecture])
    features.train(dictionary, [x] * STEPS, steps=STEPS, sparsity=SPARSITY[architecture])


def training(architecture: str) -> Row:
    """Steps of training over the matrix products that none can do without (dense ones)."""
    return at_most(
        f"training a {architecture} dictionary, d={WIDTH}, {FEATURES:,} features, batch {BATCH:,}: {STEPS} steps over "
        "their dense matrix products",
        lambda: train(architecture),
        products,
        bar=1.5,
        repeats=1,
        note="set-up, scaling of inputs and folding included",
    )


def against_sae_lens(architecture: str) -> Row:
    """Steps of training over sae-lens's own trainer, in the environment that the variable `PEER` names."""
    side = Path(__file__).with_name("sae_lens_side.py")
    command = [os.environ[PEER], str(side), architecture, str(STEPS)]
    told = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    theirs = 1e3 * json.loads(told.stdout.splitlines()[-1])["cpu_seconds_per_step"]
    start = time.process_time()
    train(architecture)
    mine = 1e3 * (time.process_time() - start) / STEPS
    return Row(
        f"training a {architecture} dictionary, d={WIDTH}, {FEATURES:,} features, batch {BATCH:,}: a step over one of "
        "sae-lens 6.54's trainer",
        mine, theirs, "ms CPU", mine / theirs, "≤ 1×", mine <= theirs,
        note=f"{STEPS} steps each; ours with set-up, scaling and folding",
    )  # fmt: skip


def edges() -> Row:
    """Edges of a feature circuit over one backward for each edge, at the clean run, on the dictionaries that ship."""
    model = LensModel.load("zoo:ioi", device="cpu")
    dictionaries = [features.load("zoo:ioi", site) for site in features.shipped.shipped("zoo:ioi")]
    run = features.FeatureRun(model, tasks.ioi.make(model, n=32, seed=0, split="train"), dictionaries)
    effects = node_effects(run, aggregation="sum")
    nodes = effects.nodes(0.1)
    edge_effects(run, effects, nodes=nodes, method="clean")
    start = time.process_time()
    found = edge_effects(run, effects, nodes=nodes, method="clean")
    mine = (time.process_time() - start) / found.n_pairs
    theirs = one_by_one(run, effects, nodes, found, most=300)
    return Row(
        f"edges of a feature circuit ({found.n_pairs:,} pairs of {len(nodes)} nodes, zoo:ioi) over a backward for each",
        1e6 * mine, 1e6 * theirs, "µs CPU per edge", mine / theirs, "≤ 0.1×", mine <= 0.1 * theirs,
        note="all 32 prompts; the backwards share one graph, and are timed on 300 edges, checked to be equal",
    )  # fmt: skip


def one_by_one(run: features.FeatureRun, effects: object, nodes: object, found: object, *, most: int) -> float:
    """Seconds per edge of one backward each, for some edges, which must come out the same."""
    groups = grouped(run, effects, nodes)  # type: ignore[arg-type]
    (part,) = run.parts
    graph = Graph.of(part, [(0.0, 1.0)])
    pairs = [pair for pair in found.values if pair[1] is not None]  # type: ignore[attr-defined]
    done, spent = 0, 0.0
    for number in range(most):
        source, target = pairs[number % len(pairs)]
        units = groups[target].units
        row, column = number % len(units), number % len(groups[source].nodes)
        cotangents = Cotangents(part, graph, target, effects.gradients[target])  # type: ignore[attr-defined]
        stacked = cotangents(units[row : row + 1], None)[0]
        moves = Moves.of(part, source, groups[source], summed=True)
        start = time.process_time()
        (pulled,) = torch.autograd.grad(graph.computed[target], graph.leaves[source], stacked, retain_graph=True)
        value = moves.summed(pulled.sum(0)[None]).mean(1)[0, column]
        spent += time.process_time() - start
        true = found.values[source, target][row, column]  # type: ignore[attr-defined]
        if not bool(torch.isclose(value.double(), true, rtol=1e-3, atol=1e-5)):
            raise RuntimeError(f"an edge came out as {float(value)} one by one and as {float(true)} together")
        done += 1
    return spent / done


def spliced(model: LensModel) -> Row:
    """Masked features of one dictionary of 16,384 over bare forwards of the blocks."""
    task = random_task(model)
    dictionary = features.create("relu", d_in=model.d_model, n_features=FEATURES, seed=0, site="mlp_out6")
    run = ComponentRun(model, task, components=("features",), dictionaries=[dictionary])
    masks = (torch.rand(4, run.n_units, generator=torch.Generator().manual_seed(0)) < 0.9).to(run.ones().dtype)
    contexts, tokens = model.contexts(task.clean.shape[1]), task.clean.repeat(4, 1)

    @torch.no_grad()
    def plain() -> Tensor:
        return forward(model.blocks, model.embed(tokens), contexts, parallel=False).final

    return at_most(
        f"a forward with {FEATURES:,} features of layer 6 masked over bare forwards of all blocks ({model.name})",
        lambda: run(masks), plain, bar=1.5, repeats=3, note="runs start at the layer of the dictionary",
    )  # fmt: skip


def buffer() -> Iterator[Row]:
    """Resident memory of the activation buffer over its budget."""
    model = LensModel.load("zoo:ioi", device="cpu")
    prompts = Prompts.from_task(tasks.ioi.make(model, n=12_000, seed=0, split="train"))
    budget = 16 << 20

    def work() -> int:
        stream = ActivationBuffer(model, prompts, "resid_post2", batch=512, seed=0, budget=budget, memory=budget)
        return sum(len(batch) for _, batch in zip(range(300), stream, strict=False))

    work()
    peak = peak_bytes(work)
    yield Row(
        f"peak memory of the activation buffer, with a budget of {budget >> 20} MiB (zoo:ioi, 12,000 prompts)",
        peak / 2**20, budget / 2**20, "MiB", peak / budget, "none", True,
        note="of the process: the buffer's file as far as it is mapped, a forward with a budget of the same size, "
        "batches; a test holds the buffer itself to its budget",
    )  # fmt: skip
