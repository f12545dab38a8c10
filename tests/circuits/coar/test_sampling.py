"""Shards of random ablations: any partition, any process, any interruption gives the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.coar import MaskDesign, Sampling, Shard, attribute, merge, sample, shard
from patching import toy
from patching.component_run import ComponentRun
from patching.errors import InvalidOption, NotFinite
from patching.metrics import Metric
from tests import tiny

FAMILIES = ("heads", "neurons")
RUN = ComponentRun(tiny.model("gpt2", dtype=torch.float32), tiny.task(n=3), components=FAMILIES)
DESIGN = MaskDesign(RUN.n_units, 50, 0.8, 3)
SAMPLING = Sampling.of(RUN, DESIGN, shard_rows=8)
WHOLE = merge(sample(RUN, SAMPLING), SAMPLING)


def test_a_shard_is_the_runs_own_outputs() -> None:
    direct = torch.cat([RUN(DESIGN.rows(low, min(50, low + 8)).float()) for low in range(0, 50, 8)])
    assert torch.equal(WHOLE, direct)
    assert torch.equal(shard(RUN, SAMPLING, 2).outputs, WHOLE[16:24])
    assert SAMPLING.n_shards == 7
    assert SAMPLING.span(6) == (48, 50)


@settings(max_examples=8, deadline=None)
@given(st.permutations(range(7)), st.integers(1, 6))
def test_any_partition_merges_to_one_run(order: list[int], cut: int) -> None:
    workers = (order[:cut], order[cut:])
    found = [one for worker in workers for one in sample(RUN, SAMPLING, only=worker)]
    assert torch.equal(merge(found, SAMPLING), WHOLE)


def test_pieces_smaller_than_shards_for_a_small_budget() -> None:
    small = ComponentRun(RUN.model, RUN.task, components=FAMILIES, memory=RUN._bytes(3) * 3)
    sampling = Sampling.of(small, DESIGN, shard_rows=8)
    assert 1 <= sampling.piece_rows < 8
    assert sampling.digest() != SAMPLING.digest()
    torch.testing.assert_close(merge(sample(small, sampling), sampling), WHOLE, rtol=1e-4, atol=1e-4)


def test_a_folder_keeps_what_is_done(tmp_path: Path) -> None:
    calls: list[int] = []
    sample(RUN, SAMPLING, folder=tmp_path, only=[0, 2])
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert sorted(before) == ["shard-000000.safetensors", "shard-000002.safetensors"]
    found = sample(RUN, SAMPLING, folder=tmp_path, progress=lambda done, _total: calls.append(done))
    assert torch.equal(merge(found, SAMPLING), WHOLE)
    assert calls[-1] == 50
    assert all((tmp_path / name).stat().st_mtime_ns == stamp for name, stamp in before.items())


@pytest.mark.parametrize("damage", ["truncated", "emptied", "flipped"])
def test_damaged_files_are_computed_again(tmp_path: Path, damage: str) -> None:
    sample(RUN, SAMPLING, folder=tmp_path)
    victim = tmp_path / "shard-000003.safetensors"
    data = bytearray(victim.read_bytes())
    data[-5] ^= 0xFF
    victim.write_bytes({"truncated": bytes(data[: len(data) // 2]), "emptied": b"", "flipped": bytes(data)}[damage])
    with pytest.raises(InvalidOption, match="computed again"):
        Shard.load(victim)
    assert torch.equal(merge(sample(RUN, SAMPLING, folder=tmp_path), SAMPLING), WHOLE)
    assert Shard.load(victim).index == 3


def test_shards_of_another_sampling_are_refused(tmp_path: Path) -> None:
    sample(RUN, SAMPLING, folder=tmp_path)
    for other in (
        Sampling.of(RUN, DESIGN.with_seed(4), shard_rows=8),
        Sampling.of(RUN, DESIGN.with_keep(0.7), shard_rows=8),
        Sampling.of(RUN, DESIGN, shard_rows=16),
    ):
        with pytest.raises(InvalidOption, match="is of"):
            sample(RUN, other, folder=tmp_path)
        with pytest.raises(InvalidOption, match="is of"):
            merge(sample(RUN, SAMPLING), other)


def test_more_samples_go_on_from_fewer(tmp_path: Path) -> None:
    sample(RUN, SAMPLING, folder=tmp_path)
    more = Sampling.of(RUN, DESIGN.with_samples(70), shard_rows=8)
    stamp = (tmp_path / "shard-000005.safetensors").stat().st_mtime_ns
    outputs = merge(sample(RUN, more, folder=tmp_path), more)
    assert torch.equal(outputs[:48], WHOLE[:48])
    assert outputs.shape[0] == 70
    assert (tmp_path / "shard-000005.safetensors").stat().st_mtime_ns == stamp


def test_what_cannot_be_merged() -> None:
    shards = sample(RUN, SAMPLING)
    with pytest.raises(InvalidOption, match=r"1 are missing \(4\)"):
        merge([one for one in shards if one.index != 4], SAMPLING)
    twin = Shard(0, 0, shards[0].outputs + 1, shards[0].digest)
    with pytest.raises(InvalidOption, match="twice with different"):
        merge([*shards, twin], SAMPLING)
    assert torch.equal(merge([*shards, shards[0]], SAMPLING), WHOLE)
    short = [Shard(6, 48, shards[6].outputs[:1], shards[6].digest), *shards[:6]]
    with pytest.raises(InvalidOption, match="shard 6 to hold samples 48 to 49"):
        merge(short, SAMPLING)


def test_a_sampling_of_another_run_is_refused() -> None:
    other = ComponentRun(tiny.model("gpt2", seed=1, dtype=torch.float32), tiny.task(n=3), components=FAMILIES)
    for wrong in (other, ComponentRun(RUN.model, RUN.task)):
        with pytest.raises(InvalidOption, match="the run that the sampling is of"):
            shard(wrong, SAMPLING, 0)
        with pytest.raises(InvalidOption, match="the run that the sampling is of"):
            sample(wrong, SAMPLING)
    with pytest.raises(InvalidOption, match="a shard from 0 to 6"):
        shard(RUN, SAMPLING, 7)
    with pytest.raises(InvalidOption, match="shard_rows"):
        Sampling(DESIGN, shard_rows=0)


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(InvalidOption, match="is a file"):
        sample(RUN, SAMPLING, folder=tmp_path / "x")


def test_an_output_that_is_not_finite_names_prompts_and_masks() -> None:
    def broken(prediction: object) -> torch.Tensor:
        value = prediction.logit_difference()  # type: ignore[attr-defined]
        if value.ndim > 1:
            value = value.clone()
            value[..., 2] = torch.nan
        return value

    run = ComponentRun(RUN.model, RUN.task, metric=Metric("broken", True, broken))
    with pytest.raises(NotFinite, match=r"random ablations 0 to 9: .*prompts \[2\]"):
        attribute(run, samples=10)


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from circuits.coar import MaskDesign, Sampling, sample
from patching import toy
from patching.component_run import ComponentRun
run = ComponentRun(toy.model(), toy.task())
sampling = Sampling.of(run, MaskDesign(2, 20_000, 0.5, 0), shard_rows=40)
sample(run, sampling, folder=sys.argv[1], progress=lambda done, total: print(done, flush=True))
"""


def test_a_killed_process_loses_no_finished_shard(tmp_path: Path) -> None:
    """kill -9 in the middle of 500 shards; what was finished stays, and the whole is as if nothing had happened."""
    threads = torch.get_num_threads()
    env = os.environ | {"PYTHONPATH": os.getcwd()}
    with subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)], stdout=subprocess.PIPE, env=env) as child:
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
    held = sorted(tmp_path.glob("shard-*.safetensors"))
    assert 0 < len(held) < 500
    stamps = {path: path.stat().st_mtime_ns for path in held}
    torch.set_num_threads(1)
    try:
        run = ComponentRun(toy.model(), toy.task())
        sampling = Sampling.of(run, MaskDesign(2, 20_000, 0.5, 0), shard_rows=40)
        resumed = merge(sample(run, sampling, folder=tmp_path), sampling)
        assert torch.equal(resumed, merge(sample(run, sampling), sampling))
    finally:
        torch.set_num_threads(threads)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
