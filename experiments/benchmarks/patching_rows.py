"""Rows of the activation-patching core: sweeps against TransformerLens's own loop, AtP* against its floor."""

from __future__ import annotations

import contextlib
import io
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from experiments.benchmarks.measure import Row, at_most, peak_bytes
from experiments.benchmarks.rows import forward_backward, random_task
from patching import LensModel, Site, SiteRun, Task, atp_star, sweep

PLAIN: dict[str, Any] = {"qk_fix": False, "grad_drop": False}


def rows(model: LensModel, *, bars: tuple[float, float], sample: int | None, repeats: int) -> Iterator[Row]:
    """All rows on one model; ``sample`` measures the sweep by position on that many random places."""
    yield _heads(model, bar=bars[0], repeats=repeats if sample is None else 1)
    yield _positions(model, bar=bars[1], sample=sample)
    yield from _attribution(model, repeats=repeats)
    if sample is not None:  # on small models resident memory does not show
        yield _memory(model)


def _metric(task: Task) -> Callable[[Tensor], Tensor]:
    rows = torch.arange(len(task))

    def difference(logits: Tensor) -> Tensor:
        seen = logits[rows, task.positions]
        return (seen.gather(-1, task.answers) - seen.gather(-1, task.wrong_answers)).mean()

    return difference


def _against(name: str, ours: Callable[[], Tensor], theirs: Callable[[], Tensor], *, bar: float, repeats: int) -> Row:
    best = [float("inf")] * 2
    wall = [float("inf")] * 2
    found: list[Tensor] = [torch.empty(0)] * 2
    for _ in range(repeats):
        for side, function in enumerate((ours, theirs)):
            start, clock = time.process_time(), time.perf_counter()
            with contextlib.redirect_stderr(io.StringIO()):  # their progress bar
                found[side] = function()
            best[side] = min(best[side], time.process_time() - start)
            wall[side] = min(wall[side], time.perf_counter() - clock)
    ratio = best[1] / best[0]
    worst = float((found[0].double() - found[1].double()).abs().max())
    return Row(
        name, best[0] * 1e3, best[1] * 1e3, "ms CPU", ratio, f"≥ {bar:g}×", ratio >= bar and worst < 1e-3,
        wall[1] / wall[0], f"largest difference {worst:.1e}",
    )  # fmt: skip


def _heads(model: LensModel, *, bar: float, repeats: int) -> Row:
    """Every head at all positions, from prompts to effects."""
    from transformer_lens.patching import get_act_patch_attn_head_out_all_pos

    task = random_task(model)

    def ours() -> Tensor:
        run = SiteRun(model, task, direction="denoising")
        return sweep(run, "z").mean + run.base_metric.mean()

    def theirs() -> Tensor:
        _, cache = model.bridge.run_with_cache(task.clean)
        with torch.no_grad():
            return get_act_patch_attn_head_out_all_pos(model.bridge, task.corrupt, cache, _metric(task))

    name = f"patch every head: TransformerLens's loop over ours ({model.name})"
    return _against(name, ours, theirs, bar=bar, repeats=repeats)


def _positions(model: LensModel, *, bar: float, sample: int | None) -> Row:
    """Every head at every position, or a random sample of these."""
    import pandas as pd
    from transformer_lens.patching import generic_activation_patch, layer_pos_head_vector_patch_setter

    task = random_task(model)
    shape, length = model.architecture, task.clean.shape[1]
    places = torch.cartesian_prod(*(torch.arange(n) for n in (shape.n_layers, length, shape.n_heads)))
    if sample is not None:
        chosen = torch.randperm(len(places), generator=torch.Generator().manual_seed(0))[:sample]
        places = places[chosen.sort().values]

    def ours() -> Tensor:
        run = SiteRun(model, task, direction="denoising")
        return run([(Site("z", layer, head, pos),) for layer, pos, head in places.tolist()]).mean(1)

    def theirs() -> Tensor:
        _, cache = model.bridge.run_with_cache(task.clean)
        index = pd.DataFrame(places.numpy(), columns=["layer", "pos", "head"])
        with torch.no_grad():
            return generic_activation_patch(
                model.bridge, task.corrupt, cache, _metric(task), layer_pos_head_vector_patch_setter, "z",
                index_df=index,
            ).flatten()  # type: ignore[union-attr]  # fmt: skip

    what = "every head and position" if sample is None else f"{sample} random heads and positions"
    name = f"patch {what}: TransformerLens's loop over ours ({model.name})"
    return _against(name, ours, theirs, bar=bar, repeats=1)


def _attribution(model: LensModel, *, repeats: int) -> Iterator[Row]:
    task = random_task(model)

    def floor() -> None:
        model.logits(task.corrupt)
        forward_backward(model, task)

    yield at_most(
        f"AtP of every head over one forward plus one forward-and-backward ({model.name})",
        lambda: atp_star.scores(SiteRun(model, task), "z", **PLAIN), floor, bar=1.5, repeats=repeats,
        note="from prompts to scores",
    )  # fmt: skip
    run = SiteRun(model, task)

    def cost(function: Callable[[], Any]) -> float:
        return _median_seconds(function, repeats=repeats)

    def queries(**options: Any) -> Callable[[], Any]:
        return lambda: atp_star.scores_of(run, ("q", "k"), positions=True, **(PLAIN | options))

    once = cost(lambda: model.logits(task.clean))
    plain, fixed = cost(queries()), cost(queries(qk_fix=True))
    ratio = (fixed - plain) / once
    yield Row(
        f"the QK fix of all queries and keys by position, beyond AtP, in forwards ({model.name})",
        (fixed - plain) * 1e3, once * 1e3, "ms CPU", ratio, "≤ 2×", ratio <= 2, None, "closed form for keys",
    )  # fmt: skip
    backward = cost(lambda: forward_backward(model, task)) - once
    dropped = cost(lambda: atp_star.scores(run, "z", qk_fix=False)) - cost(lambda: atp_star.scores(run, "z", **PLAIN))
    layers = len(model.blocks)
    ratio = dropped / (layers * backward)
    yield Row(
        f"GradDrop beyond AtP, over {layers} backward passes ({model.name})",
        dropped * 1e3, layers * backward * 1e3, "ms CPU", ratio, "≤ 1.3×", ratio <= 1.3, None,
        "layers after the dropped one keep their gradients",
    )  # fmt: skip


def _median_seconds(function: Callable[[], Any], *, repeats: int) -> float:
    function()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return statistics.median(times)


def _memory(model: LensModel) -> Row:
    task = random_task(model)
    floor = peak_bytes(lambda: forward_backward(model, task))
    ours = peak_bytes(lambda: atp_star.scores(SiteRun(model, task), "z", **PLAIN))
    ratio = ours / floor
    return Row(
        f"AtP's extra peak memory over forward-and-backward's ({model.name})", ours / 2**20, floor / 2**20, "MiB",
        ratio, "≤ 1.5×", ratio <= 1.5, None, "both runs kept whole",
    )  # fmt: skip
