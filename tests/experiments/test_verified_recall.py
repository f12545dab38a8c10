"""The comparison of rankings: sites in the order of a sweep, and what each estimate costs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from experiments import verified_recall
from experiments.verified_recall import estimates, sites
from patching import verification
from patching.activation import SiteRun, sweep
from tests import tiny


@pytest.mark.parametrize(("kind", "positions"), [("z", True), ("k", True), ("attn_out", True), ("q", False)])
def test_sites_are_the_entries_of_a_sweep(kind: str, positions: bool) -> None:
    run = SiteRun(tiny.model("llama"), tiny.task(n=3))
    effects = sweep(run, kind, positions=positions)
    values = run([(site,) for site in sites(effects, kind)]) - run.base_metric[None]
    torch.testing.assert_close(values.T, effects.values.flatten(1), rtol=0, atol=1e-10)


def test_every_method_is_compared_and_the_truth_costs_one_run_each() -> None:
    run = SiteRun(tiny.model("gpt2"), tiny.task(n=3))
    found, true, _ = estimates(run, "q", positions=True)
    costs = {estimate.name: estimate.cost for estimate in found}
    assert costs["AtP"] == 3.0
    assert costs["AtP*"] == 3.0 + 2.0 + 1.0  # one of the two layers has a layer before it
    assert {"RelP", "AtP + QK fix", "AtP + GradDrop", "iterative", "subsampling"} <= costs.keys()
    importance = true.importance.flatten()
    oracle = verification.Estimate("oracle", importance)
    aggregates = {r.name: r.aggregate for r in verification.compare([oracle, *found], importance).recalls}
    assert aggregates.pop("oracle") == 1.0
    assert min(aggregates.values()) > 1.0


def test_the_script_prints_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = tmp_path / "recall.svg"
    monkeypatch.setattr(sys, "argv", ["verified_recall", "--kind", "q", "--n", "4", "--out", str(figure)])
    verified_recall.main()
    printed = capsys.readouterr().out
    assert "AtP + QK" in printed
    assert "After checking the top 10 of" in printed
    assert figure.stat().st_size > 1000
    assert "iterative" in figure.with_suffix(".csv").read_text(encoding="utf-8")
