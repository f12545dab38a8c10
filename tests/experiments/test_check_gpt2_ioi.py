"""The GPT-2 check, on a tiny GPT-2, with the reference made by TransformerLens's own loops."""

from __future__ import annotations

import json

import pytest
import torch
from rich.console import Console

from experiments import check_gpt2_ioi
from experiments.check_gpt2_ioi import HEADS, REFERENCE, STREAMS
from patching.activation import SiteRun
from patching.lens import LensModel
from tests import tiny
from tests.oracle import logit_difference


@pytest.fixture(scope="module")
def run() -> SiteRun:
    return SiteRun(tiny.model("gpt2"), tiny.task(n=4), direction="denoising")


def test_conventions_are_those_of_transformer_lens(run: SiteRun, capsys: pytest.CaptureFixture[str]) -> None:
    from transformer_lens.patching import get_act_patch_attn_head_all_pos_every, get_act_patch_block_every

    task, bridge = run.task, run.model.bridge
    clean, corrupt = (
        float(logit_difference(task, run.model.logits(tokens)).mean()) for tokens in (task.clean, task.corrupt)
    )

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return (logit_difference(task, logits).mean() - corrupt) / (clean - corrupt)

    _, cache = bridge.run_with_cache(task.clean)
    with torch.no_grad():
        heads = get_act_patch_attn_head_all_pos_every(bridge, task.corrupt, cache, metric)
        blocks = get_act_patch_block_every(bridge, task.corrupt, cache, metric)
    capsys.readouterr()
    reference = {"exact": dict(zip(HEADS, [array.tolist() for array in heads], strict=True))}
    reference["exact"] |= dict(zip(STREAMS, [array.tolist() for array in blocks], strict=True))
    rows = check_gpt2_ioi.compare(check_gpt2_ioi.effects(run), reference)
    assert {row.kind for row in rows} == {*HEADS, *STREAMS}
    for row in rows:
        assert row.largest_difference < 1e-5, row
        assert row.pearson == pytest.approx(1.0, abs=1e-6)
    reference["exact"]["q"][1][2] += 0.01
    changed = check_gpt2_ioi.compare(check_gpt2_ioi.effects(run, ("exact",)), reference)
    assert [row.kind for row in changed if not row.holds] == ["q"]


def test_the_reference_is_whole() -> None:
    reference = json.loads(REFERENCE.read_text(encoding="utf-8"))
    for method in ("exact", "atp"):
        for kind in HEADS:
            assert torch.tensor(reference[method][kind]).shape == (12, 12)
        for kind in STREAMS:
            assert torch.tensor(reference[method][kind]).shape == (12, 15)
    assert reference["exact"]["q"][5][5] == pytest.approx(0.344, abs=1e-3)
    assert reference["atp"]["q"][5][5] == pytest.approx(0.041, abs=1e-3)
    assert torch.tensor(reference["per_prompt_logit_diff"]).mean() == pytest.approx(3.552, abs=1e-3)
    assert "MIT" in reference["source"]


def test_another_model_is_told_apart(run: SiteRun) -> None:
    reference = json.loads(REFERENCE.read_text(encoding="utf-8"))
    with pytest.raises(ValueError, match=r"expected \[12, 12\] values of z"):
        check_gpt2_ioi.compare(check_gpt2_ioi.effects(run, ("exact",)), reference)


def test_the_report_names_the_query_that_the_fix_mends() -> None:
    from circuits.tasks import ioi

    model = LensModel.load("zoo:ioi", device="cpu")
    console = Console(record=True, width=100, file=open("/dev/null", "w", encoding="utf-8"))  # noqa: SIM115
    with console.file:
        shipped = SiteRun(model, ioi.make(model, n=8, seed=0), direction="denoising")
        row = check_gpt2_ioi.Agreement("exact", "z", 0.1, 0.5)
        assert check_gpt2_ioi.report(shipped, [row], console) == 1
    text = console.export_text()
    assert "DIFFERS" in text
    assert "Query of head" in text
