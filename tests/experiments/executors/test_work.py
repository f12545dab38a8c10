"""Pieces of work: how runs are cut, that pieces are done once, and that their results do not depend on who did them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from experiments import exact_shards, work
from experiments.config_file import build
from experiments.discover import discover, identify
from experiments.errors import BadConfig, BadRun, FolderBusy, FolderTaken
from experiments.run_directory import claimed, key_of, shared, status
from experiments.work import Unit
from patching import exact
from patching.scores import Scores
from tests.experiments.executors import small_runs
from tests.experiments.executors.small_runs import ACDC, COAR, EXACT, PATCH


def test_a_run_is_cut_by_its_settings_alone(tmp_path: Path) -> None:
    counts = {
        name: [len(stage) for stage in work.units(given, tmp_path / name)] for name, given in small_runs.ALL.items()
    }
    assert counts == {"acdc": [1], "exact": [13, 1], "eap": [1], "coar": [3, 1], "patch": [1]}
    assert [len(stage) for stage in work.units({**COAR, "samples": 256}, tmp_path)] == [1]
    assert [len(stage) for stage in work.units({**EXACT, "level": "node"}, tmp_path)] == [1]
    rest = {name: value for name, value in COAR.items() if name != "samples"}
    assert [len(stage) for stage in work.units(rest, tmp_path)] == [4, 1]  # 1,000 samples of 27 components
    assert [len(stage) for stage in work.units({**rest, "stop": 0.1}, tmp_path)] == [1]
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_loaded_once_to_count_the_units_of_many_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    prepared = work._prepared
    monkeypatch.setattr(work, "_counts", {})
    monkeypatch.setattr(work, "_prepared", lambda *args: loaded.append("x") or prepared(*args))
    same = [{"seed": 0}, {"seed": 1}, {"ablation": "zero"}, {"metric": "loss"}, {"n": 7}]
    assert {len(work.units({**EXACT, **each}, tmp_path)[0]) for each in same} == {13}
    assert len(loaded) == 1
    assert len(work.units({**EXACT, "level": "node"}, tmp_path)[0]) == 1
    assert len(loaded) == 2


@pytest.mark.parametrize("gone", ["report.json", "status.json"])
def test_a_run_whose_results_are_gone_is_not_finished(gone: str, in_process: Path, tmp_path: Path) -> None:
    folder = tmp_path / "eap"
    shutil.copytree(in_process / "eap", folder)
    unit = work.units(small_runs.EAP, folder)[0][0]
    assert work.is_finished(unit)
    (folder / gone).unlink()
    assert not work.is_finished(unit)
    with pytest.raises((BadRun, FolderTaken)):  # it says so, and does not pass for done
        work.perform(unit)


def test_the_size_of_a_shard_is_one_number() -> None:
    from circuits.coar.sampling import SHARD_ROWS

    assert work.ABLATIONS == SHARD_ROWS


def test_planning_an_attribution_loads_no_torch() -> None:
    code = f"import sys\nfrom experiments import work\nwork.units({COAR!r}, 'x')\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=True)


def test_a_piece_is_plain_data(tmp_path: Path) -> None:
    for stage in work.units(COAR, tmp_path):
        for unit in stage:
            assert Unit.from_dict(json.loads(json.dumps(unit.to_dict()))) == unit


def test_pieces_in_any_order_and_more_than_once_are_the_same_run(in_process: Path, tmp_path: Path) -> None:
    for name in ("exact", "coar"):
        first, last = work.units(small_runs.ALL[name], tmp_path / name)
        assert [work.perform(unit) for unit in [*reversed(first), first[0]]] == [True] * len(first) + [False]
        assert status(tmp_path / name).state == "running"  # type: ignore[union-attr]
        assert [work.perform(unit) for unit in (*last, *last, first[0])] == [True, False, False]
        assert small_runs.left(tmp_path / name) == small_runs.left(in_process / name)


def test_what_gathers_computes_what_is_missing(in_process: Path, tmp_path: Path) -> None:
    first, last = work.units(EXACT, tmp_path / "exact")
    work.perform(first[2])
    assert work.perform(last[0])
    assert small_runs.left(tmp_path / "exact") == small_runs.left(in_process / "exact")


def test_a_run_of_the_command_line_is_the_same(in_process: Path, tmp_path: Path) -> None:
    discover(build(EXACT), out=tmp_path / "exact")  # type: ignore[arg-type]
    assert small_runs.left(tmp_path / "exact") == small_runs.left(in_process / "exact")


def test_an_exact_sweep_in_shards_is_the_sweep(in_process: Path) -> None:
    found = Scores.load(in_process / "exact" / "scores.json")
    ready = work._ready(build(EXACT), EXACT, 1)
    assert isinstance(ready, work._Exact)
    whole = exact.scores(ready.run)
    assert len(found) == 802
    torch.testing.assert_close(found.values, whole.values, rtol=0, atol=1e-5)
    assert found.standard_error is not None
    torch.testing.assert_close(found.standard_error, whole.standard_error, rtol=0, atol=1e-5)
    assert found.provenance["options"] == {"only": None}


@pytest.mark.parametrize("damage", ["truncated", "flipped", "other run", "wrong shape", "gone"])
def test_a_damaged_shard_is_computed_again(damage: str, in_process: Path, tmp_path: Path) -> None:
    folder = tmp_path / "exact"
    first, _ = work.units(EXACT, folder)
    work.perform(first[1])
    path = folder / "shards" / "shard-000001.safetensors"
    good = path.read_bytes()
    values = exact_shards.load(folder / "shards", 1, n_units=802, key=_key())
    assert values is not None
    if damage == "gone":
        path.unlink()
    elif damage == "other run":
        exact_shards._save(folder / "shards", 1, values, key="another")
    elif damage == "wrong shape":
        exact_shards._save(folder / "shards", 1, values[:, 1:].contiguous(), key=_key())
    else:
        path.write_bytes(good[:-9] if damage == "truncated" else good[:-9] + bytes([good[-9] ^ 1]) + good[-8:])
    assert work.perform(first[1])
    assert path.read_bytes() == good


def _key() -> str:
    return key_of(identify(build(EXACT)))  # type: ignore[arg-type]


def test_a_folder_of_another_run_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    work.perform(work.units(EXACT, tmp_path / "x")[0][0])
    before = small_runs.left(tmp_path / "x")
    for other in ({**EXACT, "seed": 1}, COAR):
        with pytest.raises(FolderTaken, match="another run"):
            work.perform(work.units(other, tmp_path / "x")[0][0])
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "thesis.tex").write_text("mine")
    with pytest.raises(FolderTaken, match="not of a run"):
        work.perform(work.units(EXACT, tmp_path / "y")[0][0])
    assert small_runs.left(tmp_path / "x") == before


def test_shards_and_whoever_has_the_folder_alone_keep_apart(tmp_path: Path) -> None:
    first, last = work.units(COAR, tmp_path / "x")
    identity = work.identity(build(COAR))
    with shared(tmp_path / "x", identity) as unfinished:
        assert unfinished
        assert work.perform(first[0])  # beside another that computes a shard
        with pytest.raises(FolderBusy, match="another process is writing"):
            work.perform(last[0])
    with claimed(tmp_path / "x", identity, overwrite=False, resume=True), pytest.raises(FolderBusy):
        work.perform(first[1])
    assert work.perform(first[1])


def test_shards_of_a_hub_model_are_the_same_run_s_before_and_after_it_is_in_the_cache(uncached: None) -> None:
    ready = work._ready(build(EXACT), EXACT, 1)
    assert ready.identity["model_files"]
    assert isinstance(ready, work._Exact)
    assert ready.key == _key()
    assert work._ready(build(EXACT), EXACT, 1) is ready


def test_a_shard_that_is_not_there_is_refused(tmp_path: Path) -> None:
    unit = work.units(COAR, tmp_path / "x")[0][0]
    with pytest.raises(BadConfig, match="shard from 0 to 2; got 7"):
        work.perform(Unit(unit.settings, unit.folder, 7))


def test_renewing_empties_a_run_and_nothing_else(in_process: Path, tmp_path: Path) -> None:
    folder = tmp_path / "exact"
    shutil.copytree(in_process / "exact", folder)
    (folder / "notes.txt").write_text("mine")
    work.renew({**EXACT, "seed": 3}, folder)
    assert {path.name for path in folder.iterdir()} == {"status.json", "notes.txt"}
    first = work.units({**EXACT, "seed": 3}, folder)[0][0]
    assert work.perform(first)


def test_threads_are_set_for_the_piece_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(work, "_perform_whole", lambda *_: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    work.perform(work.units(ACDC, tmp_path / "x", threads=2)[0][0])
    work.perform(work.units(ACDC, tmp_path / "x")[0][0])
    assert seen == [2, 1]
    assert torch.get_num_threads() == before


def test_results_do_not_depend_on_the_threads_of_the_caller(in_process: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for stage in work.units(PATCH, tmp_path / "patch"):
            assert all(work.perform(unit) for unit in stage)
    finally:
        torch.set_num_threads(before)
    assert small_runs.left(tmp_path / "patch") == small_runs.left(in_process / "patch")


@pytest.mark.parametrize("threads", [0, -1, True, 1.5])
def test_no_threads_are_refused(threads: object, tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="threads to be a whole number of 1 or more"):
        work.units(ACDC, tmp_path, threads=threads)  # type: ignore[arg-type]


def test_settings_that_make_no_run_are_refused(tmp_path: Path) -> None:
    for wrong in ({}, {"schema": "wiretrace-config/1"}, {**ACDC, "tau": 1}):
        with pytest.raises(BadConfig):
            work.units(wrong, tmp_path)
