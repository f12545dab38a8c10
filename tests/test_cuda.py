"""On a GPU the same numbers as on the CPU, in double precision; skipped where there is none."""

from __future__ import annotations

import pytest
import torch

from circuits import acdc
from patching import LensModel, MaskedRun, SiteRun, atp, atp_star, exact, path, sweep
from patching.sites import KINDS
from tests import tiny

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
FAMILIES = ["gpt2", "llama", "gemma2"]


def both(family: str) -> list[LensModel]:
    return [LensModel.wrap(tiny.hugging_face(family).to(device), name=family) for device in ("cpu", "cuda")]


@pytest.mark.parametrize("ablation", ["corrupt", "mean-positional", "gaussian-noise"])
@pytest.mark.parametrize("family", FAMILIES)
def test_masks_scores_and_searches(family: str, ablation: str) -> None:
    cpu, gpu = (MaskedRun(model, tiny.task(n=3, prefix=1), ablation=ablation) for model in both(family))
    masks = torch.rand(4, cpu.n_units, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(gpu(masks).cpu(), cpu(masks), rtol=0, atol=1e-9)
    torch.testing.assert_close(gpu.gradient(masks[0]).cpu(), cpu.gradient(masks[0]), rtol=0, atol=1e-9)
    for method in (atp, exact):
        torch.testing.assert_close(method.scores(gpu.nodes()).values, method.scores(cpu.nodes()).values)
    circuits = [acdc.search(run, tau=0.02) for run in (cpu, gpu)]
    assert circuits[0].edges == circuits[1].edges


@pytest.mark.parametrize("family", FAMILIES)
def test_patches_and_attributions(family: str) -> None:
    cpu, gpu = (SiteRun(model, tiny.task(n=3, prefix=1)) for model in both(family))
    for kind in KINDS:
        for function in (sweep, atp_star.scores):
            results = [function(run, kind, positions=True).values for run in (cpu, gpu)]
            torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-9)
    results = [path.sweep_senders(run, "logits").values for run in (cpu, gpu)]
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-9)
