"""`wiretrace run` on sweeps, and what looks at their runs: dry runs, listing, reports, comparison, going on."""

from __future__ import annotations

import json
import re
import shutil
from functools import cache
from pathlib import Path

import pytest

from experiments import dry_run, estimate
from experiments.config import Config, PatchConfig
from experiments.config_file import KNOWN_CIRCUIT, build, override, read
from experiments.estimate import Cost, Shape, cost
from experiments.model_files import known_zoo
from experiments.store import Store
from experiments.sweep import expand
from graphs.components import Architecture

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "experiments" / "configs").glob("*.toml"))
SWEEP = """
schema = "wiretrace-config/1"
task = "ioi"
model = {model!r}
prompts = 4
held_out = 4

[sweep]
seeds = 2

[sweep.method.atp]
n = [5, 40]

[sweep.method.acdc]
tau = 0.3
"""


@pytest.fixture
def sweep(tiny_model, tmp_path) -> Path:
    path = tmp_path / "sweep.toml"
    path.write_text(SWEEP.format(model=str(tiny_model)))
    return path


def test_a_sweep_from_dry_run_to_report(sweep, tmp_path, wiretrace):
    store = tmp_path / "store"
    look = wiretrace("run", sweep, "--out", store, "--dry-run")
    assert look.exit_code == 0, look.stderr
    assert "6 runs: 0 finished, 6 to do." in look.stdout
    assert "Measured now" in look.stdout
    assert "options.tau=0.3" in re.sub(r"\s+", "", look.stdout)
    assert not store.exists()

    made = wiretrace("run", sweep, "--out", store)
    assert made.exit_code == 0, made.stderr
    names = [run.name for run in expand(read(sweep), root=store)]
    assert sorted(path.name for path in store.iterdir() if path.is_dir()) == sorted(names)
    assert "[6 of 6] method=acdc, options.tau=0.3, seed=1: finished in" in made.stderr
    assert re.findall(r"^ioi\S+", made.stdout, flags=re.MULTILINE) == names
    assert "Report: wiretrace report" in made.stdout
    assert (store / names[0] / "env.json").is_file()

    results = {name: (store / name / "circuit.json").read_bytes() for name in names}
    again = wiretrace("run", sweep, "--out", store)
    assert again.stderr.count("finished before") == 6
    assert {name: (store / name / "circuit.json").read_bytes() for name in names} == results
    assert "6 runs: 6 finished, 0 to do." in wiretrace("run", sweep, "--out", store, "--dry-run").stdout

    listed = wiretrace("runs", store, "--where", "method=atp", "--sort", "edges", "--columns", "run,n,edges")
    assert listed.stdout.splitlines()[0].split() == ["run", "n", "edges"]
    assert "4 of 6 runs" in listed.stdout
    edges = [row["edges"] for row in json.loads(wiretrace("runs", store, "--json", "--sort", "edges").stdout)]
    assert edges == sorted(edges, reverse=True)

    command = re.search(r"Report: wiretrace (.*)", made.stdout)
    assert command
    page = tmp_path / "page.html"
    words = [*command[1].split()[:-1], str(page)]
    assert wiretrace(*words).exit_code == 0
    text = page.read_text()
    assert all(name in text for name in names)
    assert text.count("<svg") == 1
    assert "Stability" in text
    assert "<script" not in text
    assert not re.search(r'(?:src|href)="https?:', text)

    compared = wiretrace("compare", *(store / name for name in names[:3]))
    assert "settings that differ" in compared.stdout
    assert "shared edges" in compared.stdout
    two = wiretrace("compare", store / names[0], store / names[4])
    assert re.search(r"^method +atp +acdc$", two.stdout, flags=re.MULTILINE)
    assert "jaccard" in two.stdout


def test_a_failed_run_does_not_stop_the_others(sweep, tmp_path, wiretrace):
    store = tmp_path / "store"
    words = ("--set", "sweep.seeds=1", "--set", "n=100000")
    made = wiretrace("run", sweep, "--out", store, *words, "--set", "sweep.method.atp.n=[5, 100000]")
    assert made.exit_code == 1
    assert "1 of 3 runs failed:" in made.stderr
    assert "expected n to be at most 110" in made.stderr
    assert "go on with: wiretrace run" in made.stderr
    assert [row["method"] for row in Store(store).rows()] == ["acdc", "atp"]
    assert "missing" in made.stdout

    page = tmp_path / "page.md"
    report = wiretrace("report", sweep, "--root", store, "--set", "sweep.seeds=2", "--out", page)
    assert report.exit_code == 0, report.stderr
    assert "4 of 6 runs are not finished" in page.read_text()
    assert "was never begun" in page.read_text()


def test_overwriting_removes_nothing_before_everything_is_checked(sweep, tmp_path, wiretrace):
    store = tmp_path / "store"
    words = ("run", sweep, "--out", store, "--set", "method=atp", "--set", "seed=0")
    assert wiretrace(*words).exit_code == 0
    first, second = [run.folder for run in expand(override(read(sweep), ["method=atp", "seed=0"]), root=store)]
    results = (first / "report.json").read_bytes()

    def refused(sentence, *more):
        made = wiretrace(*words, "--overwrite", *more)
        assert (made.exit_code, sentence in made.stderr) == (1, True), made.stderr
        assert (first / "report.json").read_bytes() == results

    refused("Did you mean workers", "--executor", "worker")
    refused("expected one worker in this process", "--workers", 2)
    refused("expected retries to be", "--retries", -1)
    refused("the executor ray for an address", "--ray-address", "here:1")
    refused("a GPU of its own", "--executor", "workers", "--set", "device=cuda:1")
    shutil.rmtree(second)
    second.mkdir()
    (second / "thesis.tex").write_text("mine")
    refused("files that are not of a run")
    (second / "thesis.tex").unlink()
    made = wiretrace(*words, "--overwrite")
    assert (made.exit_code, "finished before" in made.stderr) == (0, False), made.stderr


def test_a_variant_that_cannot_be_cut_fails_alone(tiny_model, tmp_path, wiretrace):
    path = tmp_path / "exact.toml"
    path.write_text(
        'schema = "wiretrace-config/1"\ntask = "ioi"\nmethod = "exact"\nlevel = "node"\nprompts = 4\nheld_out = 4\n'
        f"[sweep.grid]\nmodel = [{str(tmp_path / 'nowhere')!r}, {str(tiny_model)!r}]\n"
    )
    made = wiretrace("run", path, "--out", tmp_path / "store")
    assert made.exit_code == 1
    assert "1 of 2 runs failed:" in made.stderr
    assert "nowhere" in made.stderr
    assert [row["state"] for row in Store(tmp_path / "store").rows()] == ["finished"]


def test_no_model_is_loaded_to_see_that_a_run_is_finished(tiny_model, tmp_path, wiretrace, monkeypatch):
    path = tmp_path / "exact.toml"
    path.write_text(
        'schema = "wiretrace-config/1"\ntask = "ioi"\nmethod = "exact"\nlevel = "node"\nprompts = 4\nheld_out = 4\n'
        f"model = {str(tiny_model)!r}\n[sweep]\nseeds = 1\n"
    )
    assert wiretrace("run", path, "--out", tmp_path / "store").exit_code == 0
    monkeypatch.setattr("experiments.work._prepared", None)
    monkeypatch.setattr("experiments.work._counts", {})
    again = wiretrace("run", path, "--out", tmp_path / "store")
    assert (again.exit_code, again.stderr.count("finished before")) == (0, 1), again.stderr


def test_a_run_without_its_report_is_not_finished(sweep, tmp_path, wiretrace):
    words = ("run", sweep, "--out", tmp_path, "--set", "method=atp", "--set", "n=5", "--set", "seed=0")
    assert wiretrace(*words).exit_code == 0
    (run,) = expand(override(read(sweep), ["method=atp", "n=5", "seed=0"]), root=tmp_path)
    (run.folder / "report.json").unlink()
    assert dry_run.state_of(run) == ("in the way: damaged", True)
    again = wiretrace(*words)
    assert again.exit_code == 1
    assert "report.json" in again.stderr
    assert "finished before" not in again.stderr
    assert wiretrace(*words, "--overwrite").exit_code == 0
    assert dry_run.state_of(run) == ("finished", False)


def test_a_dry_run_says_when_the_model_s_files_have_changed(sweep, tiny_model, tmp_path, wiretrace):
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    sweep.write_text(SWEEP.format(model=str(model)))
    changes = ("method=atp", "n=5", "seed=0")
    words = ("run", sweep, "--out", tmp_path / "store", *(word for each in changes for word in ("--set", each)))
    assert wiretrace(*words).exit_code == 0
    (run,) = expand(override(read(sweep), changes), root=tmp_path / "store")
    assert dry_run.state_of(run) == ("finished", False)
    (model / "config.json").write_text((model / "config.json").read_text() + "\n")
    assert dry_run.state_of(run) == ("in the way: another run", True)


def test_circuits_of_other_models_are_compared_by_their_runs(sweep, tmp_path, wiretrace):
    for model in ("zoo:ioi", None):
        words = ("--set", "method=atp", "--set", "n=5", "--set", "seed=0", "--out", tmp_path / "store")
        made = wiretrace("run", sweep, *words, *(() if model is None else ("--set", f"model={model}")))
        assert made.exit_code == 0, made.stderr
    folders = sorted((tmp_path / "store").glob("ioi-*"))
    found = wiretrace("compare", *folders)
    assert found.exit_code == 0, found.stderr
    assert "settings that differ" in found.stdout
    assert "circuits can be compared if their models have one shape" in found.stdout
    bare = [folder / "circuit.json" for folder in folders]
    assert wiretrace("compare", *bare).exit_code == 1


def test_ctrl_c_says_how_to_go_on(sweep, tmp_path, wiretrace, monkeypatch):
    from experiments import work

    perform, done = work.perform, []

    def stopping(unit, **options):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(unit)
        return perform(unit, **options)

    monkeypatch.setattr(work, "perform", stopping)
    store = tmp_path / "store"
    made = wiretrace("run", sweep, "--out", store, "--set", "sweep.seeds=1")
    assert made.exit_code == 130
    assert f"Go on with: wiretrace run {sweep} --set sweep.seeds=1 --out {store}" in made.stderr
    monkeypatch.undo()
    assert wiretrace("run", sweep, "--out", store, "--set", "sweep.seeds=1").stderr.count("finished before") == 2


def test_a_single_config_keeps_its_ways(tiny_model, tmp_path, wiretrace, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "one.toml"
    path.write_text(
        f'schema = "wiretrace-config/1"\ntask = "ioi"\nmodel = "{tiny_model}"\nmethod = "atp"\nn = 5\nprompts = 4\n'
        "held_out = 4\n"
    )
    named = wiretrace("run", path, "--set", "n=7", "-q")
    assert named.exit_code == 0, named.stderr
    assert re.fullmatch(r"runs/ioi-tiny-atp-[0-9a-f]{8}\n", named.stdout)
    assert "n = 7" in (tmp_path / named.stdout.strip() / "config.toml").read_text()
    given = wiretrace("run", path, "--out", "here", "-q")
    assert given.stdout == "here\n"
    assert "holds another run" in wiretrace("run", path, "--out", "here", "--set", "seed=4").stderr
    assert wiretrace("run", path, "--out", "here", "--set", "seed=4", "--overwrite").exit_code == 0
    report = wiretrace("report", path, "--set", "n=7", "--out", "page.md")
    assert report.exit_code == 0, report.stderr
    assert named.stdout.strip().removeprefix("runs/") in (tmp_path / "page.md").read_text()
    pieces = wiretrace("run", path, "--out", "elsewhere", "--retries", 1)
    assert "[1 of 1]" in pieces.stderr  # done as a piece of work, which is what can be tried again
    assert "the executor ray for an address" in wiretrace("run", path, "--out", "x", "--ray-address", "a:1").stderr
    page = wiretrace("run", path, "--dry-run", "--set", "n=7").stdout
    assert "1 runs: 1 finished" in page or "1 run: 1 finished" in page


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--set", "seeds=3"), "Did you mean seed?"),
        (("--set", "sweep.seeds=0"), "a number of seeds from 1"),
        (("--executor", "rya"), "Did you mean ray?"),
        (("--workers", 0, "--executor", "workers"), "expected workers to be a whole number of 1 or more"),
        (("--overwrite", "--resume"), "not both"),
        (("--dry-run", "--unit", 3), "expected one of --dry-run, --slurm and --unit"),
        (("--unit", 99), "99"),
        (("--dry-run", "--overwrite"), "no --overwrite with --dry-run"),
        (("--slurm", "job.sh", "--overwrite"), "no --overwrite with --slurm"),
        (("--unit", 0, "--overwrite"), "no --overwrite with --unit"),
        (("--unit", 0, "--retries", 3), "or --retries with --unit"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(sweep, tmp_path, wiretrace, words, sentence):
    result = wiretrace("run", sweep, "--out", tmp_path / "store", *words)
    assert result.exit_code == 1
    assert sentence in result.stderr
    assert not (tmp_path / "store").exists()


def test_a_script_for_an_array_of_jobs(sweep, tmp_path, wiretrace, monkeypatch):
    script = tmp_path / "job.sh"
    made = wiretrace("run", sweep, "--out", tmp_path / "store", "--set", "seed=3", "--slurm", script)
    assert made.exit_code == 0, made.stderr
    assert "3 pieces of work" in made.stdout
    assert f"wiretrace run {sweep} --set seed=3 --out {tmp_path / 'store'}" in script.read_text()
    assert not (tmp_path / "store").exists()
    assert "--track" not in script.read_text()
    monkeypatch.setenv("WIRETRACE_TRACK", "mlflow,tensorboard")  # as --track does
    assert wiretrace("run", sweep, "--out", tmp_path / "store", "--set", "seed=3", "--slurm", script).exit_code == 0
    monkeypatch.delenv("WIRETRACE_TRACK")
    assert "--track mlflow --track tensorboard --unit" in script.read_text()
    assert "Piece 0: done." in wiretrace("run", sweep, "--out", tmp_path / "store", "--unit", 0).stdout
    assert len(Store(tmp_path / "store").rows()) == 1


def test_a_script_for_a_single_run_names_the_folder_of_the_run(tmp_path, wiretrace, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "one.toml"
    config.write_text(
        'schema = "wiretrace-config/1"\ntask = "and_gate"\nmodel = "zoo:and_gate"\nprompts = 4\nheld_out = 4\n'
    )
    assert wiretrace("run", config, "--slurm", "job.sh").exit_code == 0
    (folder,) = re.findall(r"--out (\S+?runs/and_gate\S+)", (tmp_path / "job.sh").read_text())
    assert "Piece 0: done." in wiretrace("run", config, "--out", folder, "--unit", 0).stdout
    assert [row["state"] for row in Store(tmp_path / "runs").rows()] == ["finished"]
    assert (tmp_path / "runs" / folder.rsplit("/", 1)[1] / "report.json").exists()


# ------------------------------------------------------------------------------------------------------ the configs


@pytest.fixture(scope="module", autouse=True)
def each_model_is_timed_once():
    measure = cache(lambda model: estimate.try_to_measure(timed[model]))
    timed = {}

    def once(config):
        timed.setdefault(config.model, config)
        return measure(config.model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dry_run, "try_to_measure", once)
        yield


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_parses_and_dry_runs(path, tmp_path, wiretrace):
    look = wiretrace("run", path, "--dry-run", "--out", tmp_path / "store")
    assert look.exit_code == 0, look.stderr
    assert "Nothing was written." in look.stdout
    assert list(tmp_path.iterdir()) == []
    settings = read(path)
    if settings["schema"] == KNOWN_CIRCUIT:
        return
    runs = expand(settings)
    assert len(runs) >= 5
    assert f"{len(runs):,} runs: 0 finished" in look.stdout
    for run in runs:
        model = str(build(run.settings).model)
        assert model in known_zoo() or model == "gpt2"
        assert (model == "gpt2") == path.stem.startswith("gpt2_")


def test_every_comparison_has_its_gpt2():
    stems = {path.stem for path in CONFIGS if read(path)["schema"] != KNOWN_CIRCUIT}
    assert {stem.removeprefix("gpt2_") for stem in stems if stem.startswith("gpt2_")} == {
        stem for stem in stems if not stem.startswith("gpt2_")
    }


# ------------------------------------------------------------------------------------------------------ what it costs


def test_every_method_has_its_cost():
    from circuits.methods import METHODS

    shape = Shape.of(Architecture(2, 4), neuron=64)
    assert set(estimate._METHODS) == set(METHODS)
    for name in METHODS:
        found = cost(Config("ioi", "zoo:ioi", name), shape)
        assert found.forwards > 0


def test_masks_of_a_run_are_as_many_as_estimated(tiny_model, tmp_path, monkeypatch):
    """Counted where every masked run passes; the two forwards of making a run, which do not, come on top."""
    from experiments.discover import discover
    from patching.masked import MaskedRun

    call, counted = MaskedRun.__call__, []

    def counting(run, masks, **options):
        if len(run.task) in (4, 6):  # the check of a model at loading has two
            counted.append((1 if masks.ndim == 1 else len(masks)) * len(run.task))
        return call(run, masks, **options)

    monkeypatch.setattr(MaskedRun, "__call__", counting)
    config = Config("ioi", str(tiny_model), "atp", prompts=4, held_out=6, curve=True)
    discover(config, out=tmp_path / "run")
    whole = cost(config, Shape.of(Architecture(2, 4)))
    assert sum(counted) == whole.forwards - 2 * (4 + 6)


def test_patching_counts_places():
    shape = Shape.of(Architecture(3, 8))
    assert cost(PatchConfig("ioi", "m", "z", prompts=1), shape) == Cost(2 + 24, 0, at_most=True)
    assert cost(PatchConfig("ioi", "m", "mlp_out", prompts=10), shape) == Cost(20 + 30, 0, at_most=True)
    assert cost(PatchConfig("ioi", "m", "z", "atp", prompts=10), shape) == Cost(30, 10)


def test_earlier_runs_tell_the_time(tmp_path):
    config = Config("ioi", "nowhere", "atp", seed=3)
    row = {"state": "finished", "seconds": 4.0, **config.to_dict(), "seed": 0}
    rows = [row, {**row, "seconds": 6.0}, {**row, "seconds": 99.0, "prompts": 33}, {**row, "state": "failed"}]
    rows += [{**row, "seconds": 99.0, "n": 7}, {**row, "seconds": 99.0, "curve": True}]
    rows += [{**row, "seconds": 99.0, "options.steps": 9}, {**row, "seconds": 99.0, "metric": "loss"}]
    rows += [{name: value for name, value in row.items() if name != "seconds"}]  # the clock went back meanwhile
    found = estimate.estimate(config, earlier=rows)
    assert (found.seconds, found.source, found.cost) == (5.0, "earlier runs", None)
    assert estimate.estimate(config, why="it is gone").source == "it is gone"
