"""The rows: what is timed against what."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuits import acdc, top_edges
from experiments.benchmarks.measure import Row, at_most, peak_bytes
from patching import LensModel, MaskedRun, Task, atp
from patching.engine import Evaluation

EXAMPLES, LENGTH = 8, 16


def random_gpt2(*, layers: int, heads: int, width: int, vocabulary: int) -> LensModel:
    """A random model of GPT-2's architecture, with weights large enough that attention is not uniform."""
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=layers, n_head=heads, n_embd=width, vocab_size=vocabulary, n_positions=64,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "wte" not in name:
                parameter.mul_(3.0)
    return LensModel.wrap(model, name=f"{layers} layers × {heads} heads × d={width}")


def medium() -> LensModel:
    """4 layers, 8 heads, d=256."""
    return random_gpt2(layers=4, heads=8, width=256, vocabulary=1000)


def gpt2_small() -> LensModel:
    """GPT-2 small's shape, with its vocabulary."""
    return random_gpt2(layers=12, heads=12, width=768, vocabulary=50257)


def random_task(model: LensModel) -> Task:
    """Random prompts."""
    generator = torch.Generator().manual_seed(0)
    clean, corrupt = torch.randint(0, model.d_vocab, (2, EXAMPLES, LENGTH), generator=generator)
    answers = torch.randint(0, model.d_vocab, (2, EXAMPLES, 1), generator=generator)
    return Task("random", clean, corrupt, answers[0], answers[1], torch.full((EXAMPLES,), LENGTH - 1))


def masked_run(model: LensModel, *, repeats: int) -> Row:
    """A random edge mask, nothing to reuse, over the model's own forward."""
    task = random_task(model)
    run = MaskedRun(model, task)
    mask = (torch.rand(run.n_units, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    return at_most(
        f"masked run, half of the edges at random, over the model's own forward ({model.name})",
        lambda: run(mask), lambda: model.logits(task.clean), bar=2, repeats=repeats, note="every node recomputed",
    )  # fmt: skip


def circuit_run(model: LensModel, *, repeats: int) -> Iterator[Row]:
    """Circuits of EAP's strongest edges, over the model's own forward."""
    task = random_task(model)
    run = MaskedRun(model, task)
    scores = atp.scores(run)
    for share in (0.001, 0.01, 0.1, 1.0):
        circuit = top_edges(scores, n=max(1, int(share * run.n_units)), prune=False)
        mask = run.mask_of(circuit)
        bar = {0.01: 1.0}.get(share, 2.0)
        yield at_most(
            f"evaluate a circuit of {share:.1%} of the edges, over the model's own forward ({model.name})",
            lambda mask=mask: run(mask), lambda: model.logits(task.clean), bar=bar, repeats=repeats,
            note="EAP's strongest edges",
        )  # fmt: skip


def _forward(model: LensModel, task: Task) -> Tensor:
    return model.bridge(task.clean)


def forward_backward(model: LensModel, task: Task) -> None:
    """A forward of the model's own code and a backward to every parameter."""
    parameters = list(model.bridge.original_model.parameters())
    rows = torch.arange(len(task))
    logits = _forward(model, task)[rows, task.positions]
    loss = (logits.gather(-1, task.answers) - logits.gather(-1, task.wrong_answers)).sum()
    torch.autograd.grad(loss, parameters, allow_unused=True)


def eap(model: LensModel, *, repeats: int, memory: bool) -> Iterator[Row]:
    """EAP over all edges, from prompts to scores, over one forward plus one forward and backward of the model."""
    task = random_task(model)

    def floor() -> None:
        model.logits(task.corrupt)
        forward_backward(model, task)

    def ours() -> Any:
        return atp.scores(MaskedRun(model, task))

    yield at_most(
        f"EAP over one forward plus one forward-and-backward ({model.name})", ours, floor, bar=2, repeats=repeats,
        note="from prompts to all edge scores; peers measured elsewhere: 8× to 12×",
    )  # fmt: skip
    if not memory:
        return
    floor_bytes, our_bytes = peak_bytes(lambda: forward_backward(model, task)), peak_bytes(ours)
    ratio = our_bytes / floor_bytes
    yield Row(
        f"EAP's extra peak memory over forward-and-backward's ({model.name})", our_bytes / 2**20, floor_bytes / 2**20,
        "MiB", ratio, "≤ 1.5×", ratio <= 1.5, None, "peers measured elsewhere: 2.4× and 3.4×",
    )  # fmt: skip


class WholeModel:
    """The masked run without reuse: every node is computed for every mask."""

    def __init__(self, run: MaskedRun) -> None:
        self.run = run
        everything = np.ones((len(run.graph.targets), len(run.graph.sources)), dtype=bool)
        self.plan = run.planner.plan(everything, everything)
        self.evaluations = 0

    @torch.no_grad()
    def damage(self, mask: Tensor) -> float:
        """Damage under one mask."""
        self.evaluations += 1
        masks = self.run.expand(mask[None])
        values = [Evaluation(batch.ablated, masks, self.plan).run() for batch in self.run.batches]
        return float(self.run.damage(torch.cat(values, dim=-1))[0])


def sequential_acdc(run: MaskedRun, tau: float) -> tuple[Tensor, int]:
    """ACDC as written down: one whole run per edge of a live receiver. Returns the mask and the number of runs."""
    whole, graph = WholeModel(run), run.graph
    mask = run.ones()
    current = whole.damage(mask)
    first = np.concatenate([[0], np.cumsum(graph.n_visible)])
    for target in reversed(range(len(graph.targets))):
        node = graph.targets[target].node
        writers = graph.query_heads(node) if node.kind == "kv" else (node,)
        alive = node.kind == "logits" or any(
            bool(mask[run.edge_sources == graph.source_index[writer]].any()) for writer in writers
        )
        for edge in reversed(range(first[target], first[target + 1])):
            trial = mask.clone()
            trial[edge] = 0.0
            if not alive:
                mask = trial
                continue
            damage = whole.damage(trial)
            if damage - current < tau:
                mask, current = trial, damage
    return mask, whole.evaluations


def acdc_rows(model: LensModel, task: Task, *, bars: dict[float, float], metric: str, repeats: int) -> Iterator[Row]:
    """ACDC against the sequential loop, at the tau that keeps about each share of the edges; the best of some runs."""
    run = MaskedRun(model, task, metric=metric)
    for share, bar in bars.items():
        tau = tau_that_keeps(run, share)
        best = [[math.inf, math.inf], [math.inf, math.inf]]  # least CPU and wall seconds of ours, of the sequential one
        results: list[Any] = [None, None]
        for _ in range(repeats):
            for side, function in enumerate((acdc.search, sequential_acdc)):
                start, wall = time.process_time(), time.perf_counter()
                results[side] = function(run, tau=tau)
                best[side][0] = min(best[side][0], time.process_time() - start)
                best[side][1] = min(best[side][1], time.perf_counter() - wall)
        circuit, (mask, evaluations) = results
        same = torch.equal(run.mask_of(circuit), mask)
        ratio = best[1][0] / best[0][0]
        yield Row(
            f"ACDC, {circuit.n_edges / run.n_units:.1%} of {run.n_units:,} edges kept: sequential whole runs over ours "
            f"({model.name})",
            best[0][0] * 1e3, best[1][0] * 1e3, "ms CPU", ratio, f"≥ {bar:g}×", ratio >= bar and same,
            best[1][1] / best[0][1],
            f"tau {tau:.3g} {metric}; {evaluations:,} runs; circuits {'identical' if same else 'DIFFER'}",
        )  # fmt: skip


def tau_that_keeps(run: MaskedRun, share: float) -> float:
    """A tau that keeps about a share of the edges, by bisection on the logarithm."""
    low, high = 1e-6, 3.0
    tau = 0.0
    for _ in range(9):
        tau = (low * high) ** 0.5
        kept = acdc.search(run, tau=tau).n_edges / run.n_units
        if abs(kept - share) < 0.15 * share:
            break
        low, high = (tau, high) if kept > share else (low, tau)
    return tau


def _of_medium(middle: LensModel, repeats: int) -> Iterator[Row]:
    from experiments.benchmarks import memory_rows, score_rows

    yield masked_run(middle, repeats=repeats)
    yield from circuit_run(middle, repeats=repeats)
    yield from eap(middle, repeats=repeats, memory=False)  # too small for resident memory to show
    yield score_rows.eap_ig(middle, bar=2.0, repeats=repeats)
    yield from memory_rows.rows(middle, budget=64 << 20, bar=1.5)


def _of_gpt2_small(repeats: int) -> Iterator[Row]:
    from experiments.benchmarks import score_rows

    large = gpt2_small()
    yield masked_run(large, repeats=repeats)
    yield from circuit_run(large, repeats=repeats)
    yield from eap(large, repeats=repeats, memory=True)
    yield score_rows.eap_ig(large, bar=2.0, repeats=3)


def _of_tools() -> Iterator[Row]:
    from experiments.benchmarks import executor_rows, graph_rows

    yield from graph_rows.rows()
    yield from executor_rows.rows()


def all_rows(report: Callable[[Row], None], *, quick: bool) -> None:
    """Measure everything; ``quick`` leaves out GPT-2 small's shape."""
    repeats = 5
    middle = medium()
    for row in _of_medium(middle, repeats):
        report(row)
    if not quick:
        for row in _of_gpt2_small(repeats):
            report(row)
    bars = {0.02: 10.0, 0.1: 5.0, 0.3: 3.0}
    for row in acdc_rows(middle, random_task(middle), bars=bars, metric="logit_difference", repeats=2):
        report(row)
    from experiments.benchmarks import patching_rows

    for row in patching_rows.rows(middle, bars=(3.0, 6.0), sample=None, repeats=repeats):
        report(row)
    if not quick:
        for row in patching_rows.rows(gpt2_small(), bars=(2.0, 4.0), sample=96, repeats=3):
            report(row)
    from experiments.benchmarks import coar_rows

    for row in coar_rows.rows(middle, None if quick else gpt2_small()):
        report(row)
    from experiments.benchmarks import feature_rows

    for row in feature_rows.rows(None if quick else gpt2_small()):
        report(row)
    for row in _of_tools():
        report(row)
    from circuits.tasks import ioi

    shipped = LensModel.load("zoo:ioi", device="cpu")
    for row in acdc_rows(shipped, ioi.make(shipped, n=16, seed=0), bars=bars, metric="logit_difference", repeats=5):
        report(row)
