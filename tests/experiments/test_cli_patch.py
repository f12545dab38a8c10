"""`wiretrace patch`: what it writes, what it says, what it refuses."""

from __future__ import annotations

import csv
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from experiments import listings
from experiments.config import (
    ABLATIONS,
    DIRECTIONS,
    KINDS,
    METRICS,
    PATCHING,
    PatchConfig,
    load,
    patch_command,
    to_toml,
)
from experiments.errors import BadConfig
from patching.effects import Effects

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "effects.json",
    "effects.csv",
    "heatmap.svg",
    "report.md",
    "config.toml",
    "env.json",
    "log.jsonl",
    "status.json",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on zoo:ioi; read it, do not change it."""
    from experiments.patch import patch

    folder = tmp_path_factory.mktemp("runs") / "z"
    patch(PatchConfig("ioi", "zoo:ioi", prompts=8), out=folder)
    return folder


@pytest.fixture
def patch(wiretrace: Callable[..., Result], tiny_model: Path) -> Callable[..., Result]:
    """`wiretrace patch ioi` on the tiny model with few prompts; more words override."""

    def run(out: Path, *words: object) -> Result:
        return wiretrace("patch", "ioi", "--model", tiny_model, "--prompts", 4, "--out", out, *words)

    return run


def refused(result: Result) -> str:
    """The sentence of a command that ended with exit code 1."""
    assert result.exit_code == 1, result.stdout + result.stderr
    assert result.stdout == ""
    said = result.stderr.splitlines()
    assert said[-1].startswith("Error: ")
    assert "Traceback" not in result.stderr
    return said[-1]


# ----------------------------------------------------------------------------------------------------- a real run


def test_a_run_on_the_model_that_ships(wiretrace, tmp_path, monkeypatch):
    from circuits import tasks
    from patching.activation import SiteRun, sweep
    from patching.lens import LensModel

    monkeypatch.chdir(tmp_path)
    result = wiretrace("patch", "ioi", "--model", "zoo:ioi", "--n", 8)
    assert result.exit_code == 0, result.stderr
    out = tmp_path / "runs" / "ioi-patch-z"
    assert {path.name for path in out.iterdir()} == FILES
    model = LensModel.load("zoo:ioi")
    expected = sweep(SiteRun(model, tasks.ioi.make(model, n=8, seed=0, split="train")), "z")
    found = Effects.load(out / "effects.json")
    assert (found.axes, found.labels) == (("layer", "head"), expected.labels)
    assert torch.equal(found.values, expected.values)
    name, effect = expected.top(1)[0]
    line = next(line for line in result.stdout.splitlines() if line.strip().startswith(name))
    assert f"{effect:+.3f}".replace("-", "−") in line
    assert result.stdout.splitlines()[-1] == f"Figure: {Path('runs/ioi-patch-z/heatmap.svg')}"
    assert "\r" not in result.stderr, "a bar has no place in a pipe"


def test_the_table_is_right(finished):
    effects = Effects.load(finished / "effects.json")
    with (finished / "effects.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["layer", "head", "effect", "standard error", "importance", "detected"]
    assert len(rows) == effects.mean.numel() == 24
    for row in rows:
        assert float(row["effect"]) == effects[row["layer"], row["head"]]


def test_the_page_says_what_was_done(finished):
    page = (finished / "report.md").read_text(encoding="utf-8")
    effects = Effects.load(finished / "effects.json")
    table = [line for line in page.splitlines() if re.match(r"\| L\d H\d \|", line)]
    assert len(table) == 10
    for (name, mean), line in zip(effects.top(10), table, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        layer, head = (int(word[1:]) for word in name.split())
        assert cells[:2] == [name, f"{mean:+.3f}".replace("-", "−")]
        assert cells[2] == f"{float(effects.standard_error[layer, head]):.3f}"
        assert cells[4] == f"{float(effects.normalised[layer, head]):.0%}".replace("-", "−")
        assert cells[5] == ("yes" if effects.detected[layer, head] else "")
    assert any(line.endswith("| yes |") for line in table)
    for word in ("noising: the clean run", "metric(patched) − metric(base)", "Negative: losing the clean value"):
        assert word in page
    assert f"{float(effects.base_metric.mean()):.3f} unpatched (clean)" in page


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--direction", "denoising"), "Positive: the clean value there restores the behaviour."),
        (("--direction", "denoising", "--metric", "loss"), "Negative: the clean value there restores"),
        (("--metric", "loss"), "Positive: losing the clean value there hurts"),
        (("--method", "atp_star"), "Absolute by construction (GradDrop)"),
        (("--method", "atp_star", "--no-grad-drop"), "Negative: losing the clean value there hurts"),
    ],
)
def test_the_sign_is_said_in_words(patch, tmp_path, words, sentence):
    result = patch(tmp_path / "run", *words)
    assert result.exit_code == 0, result.stderr
    page = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert sentence in page
    assert sentence in " ".join(result.stdout.split())


def test_the_sign_is_what_the_words_say(finished, wiretrace, tmp_path):
    """The strongest head of a model that does the task: its loss hurts, its return helps."""
    result = wiretrace(
        "patch", "ioi", "--model", "zoo:ioi", "--n", 8, "--direction", "denoising", "--out", tmp_path / "back"
    )
    assert result.exit_code == 0, result.stderr
    there, back = Effects.load(finished / "effects.json"), Effects.load(tmp_path / "back" / "effects.json")
    name = tuple(there.top(1)[0][0].split())
    assert there[name] < 0 < back[name]
    assert torch.equal(there.base_metric, back.source_metric)


def test_every_command_on_the_page_is_one(finished, wiretrace):
    page = (finished / "report.md").read_text(encoding="utf-8")
    commands = re.search(r"```sh\n(.*?)```", page, flags=re.S)
    assert commands
    for line in commands[1].splitlines():
        name, *words = shlex.split(line)
        assert name == "wiretrace"
        shown = wiretrace(words[0], "--help").stdout
        assert {word for word in words[1:] if word.startswith("--")} <= set(re.findall(r"--[a-z-]+", shown))
    program = re.search(r"```python\n(.*?)```", page, flags=re.S)
    assert program
    names: dict = {}
    exec(program[1], names)
    assert len(names["frame"]) == 24


def test_provenance_and_environment(finished):
    provenance = Effects.load(finished / "effects.json").provenance
    assert (provenance["seed"], provenance["split"], provenance["prompts"]) == (0, "train", 8)
    assert set(provenance["model_files"]) >= {"config.json", "model.safetensors"}
    assert json.loads((finished / "env.json").read_text())["versions"]["torch"].startswith("2.")


def test_the_figure_names_what_it_shows(finished):
    figure = (finished / "heatmap.svg").read_text(encoding="utf-8")
    for word in ("z · zoo:ioi · ioi · noising", "L2", "H7", "logit_difference"):
        assert word in figure


@pytest.mark.parametrize(
    ("words", "axes"),
    [
        (("--kind", "resid_pre"), ("layer",)),
        (("--kind", "resid_pre", "--positions"), ("layer", "position")),
        (("--kind", "q", "--positions"), ("layer", "position")),
        (("--kind", "k", "--window", 2), ("layer",)),
        (("--kind", "neurons"), ("layer",)),
        (("--kind", "neurons", "--method", "atp"), ("layer",)),
        (("--kind", "v", "--method", "atp_star", "--no-qk-fix", "--direction", "denoising"), ("layer", "group")),
        (("--kind", "mlp_out", "--positions", "--method", "atp", "--ablation", "zero"), ("layer", "position")),
        (("--kind", "pattern", "--ablation", "mean-clean", "--prompts", 1), ("layer", "head")),
    ],
)
def test_every_way_of_patching_ends_in_a_picture(patch, tmp_path, words, axes):
    result = patch(tmp_path / "run", *words)
    assert result.exit_code == 0, result.stderr
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES
    effects = Effects.load(tmp_path / "run" / "effects.json")
    assert effects.axes == axes
    assert effects.provenance["options"]["kind"] == words[1]
    assert (effects.singles is not None) == ("--window" in words)


def test_options_reach_the_method(patch, tmp_path):
    estimates = {}
    for name, words in {"atp": ("--method", "atp"), "star": ("--method", "atp_star"),
                        "fix": ("--method", "atp_star", "--no-grad-drop"),
                        "neither": ("--method", "atp_star", "--no-grad-drop", "--no-qk-fix")}.items():  # fmt: skip
        assert patch(tmp_path / name, "--kind", "q", *words).exit_code == 0
        estimates[name] = Effects.load(tmp_path / name / "effects.json")
    assert torch.equal(estimates["atp"].values, estimates["neither"].values)
    assert not torch.equal(estimates["atp"].values, estimates["fix"].values)
    assert [estimates[name].signed for name in ("atp", "star", "fix")] == [True, False, True]


def test_means_have_no_metric_of_their_own(patch, tmp_path):
    assert patch(tmp_path / "run", "--ablation", "mean-clean").exit_code == 0
    page = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert "where patches come from" not in page
    assert "| share of the gap |" not in page
    assert "does not do this task" not in page


# --------------------------------------------------------------------------------------------------- doing it again


def test_a_config_file_makes_its_run_again(finished, wiretrace, tmp_path):
    result = wiretrace("run", finished / "config.toml", "--out", tmp_path / "again", "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{tmp_path / 'again'}\n", "")
    for name in ("effects.json", "effects.csv", "heatmap.svg", "config.toml"):
        assert (tmp_path / "again" / name).read_bytes() == (finished / name).read_bytes(), name


def test_a_finished_run_is_shown_and_not_made_again(finished, wiretrace, monkeypatch):
    monkeypatch.setattr("experiments.patch.prepare", lambda *a, **k: pytest.fail("loaded the model"))
    shown = wiretrace("show", finished)
    again = wiretrace("patch", "ioi", "--model", "zoo:ioi", "--n", 8, "--out", finished)
    assert shown.exit_code == again.exit_code == 0
    assert "already, finished" in again.stderr
    assert shown.stdout == again.stdout
    assert "L2 H5" in shown.stdout


def test_another_run_is_not_overwritten_unless_asked(patch, discover, wiretrace, tmp_path):
    out = tmp_path / "run"
    assert patch(out).exit_code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    said = refused(patch(out, "--kind", "q"))
    assert "kind is z there, q here" in said
    assert "command is patch there, not set here" in refused(discover(out))
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "notes.txt").write_text("mine")
    assert patch(out, "--kind", "q", "--overwrite").exit_code == 0
    assert Effects.load(out / "effects.json").provenance["options"]["kind"] == "q"
    assert discover(out, "--overwrite").exit_code == 0
    names = {path.name for path in out.iterdir()}
    assert "notes.txt" in names
    assert not {"effects.json", "effects.csv", "heatmap.svg"} & names
    assert "another run" in refused(patch(out))


@pytest.mark.parametrize("flags", [(), ("--overwrite",)])
def test_a_folder_of_something_else_is_never_touched(patch, tmp_path, flags):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    assert "left alone" in refused(patch(out, *flags))
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [("thesis.tex", "mine")]


def test_a_killed_run_is_begun_anew(patch, tmp_path):
    out = tmp_path / "run"
    assert patch(out).exit_code == 0
    there = json.loads((out / "status.json").read_text())
    (out / "status.json").write_text(json.dumps(there | {"state": "running"}))
    (out / "effects.json").unlink()
    result = patch(out)
    assert result.exit_code == 0, result.stderr
    assert {path.name for path in out.iterdir()} == FILES


def test_a_first_run_of_a_hub_model_that_was_killed_is_begun_anew(patch, uncached, tmp_path, monkeypatch):
    def killed(*_args: object) -> None:
        raise SystemExit(9)

    with monkeypatch.context() as context:
        context.setattr("experiments.patch._effects", killed)
        assert patch(tmp_path / "run").exit_code == 9
    assert json.loads((tmp_path / "run" / "env.json").read_text())["model_files"]
    result = patch(tmp_path / "run")
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize("exists", [False, True])
def test_ctrl_c_leaves_nothing(patch, tmp_path, monkeypatch, exists):
    def stop(*_args: object) -> None:
        raise KeyboardInterrupt

    if exists:
        (tmp_path / "a").mkdir()
    monkeypatch.setattr("experiments.patch._effects", stop)
    result = patch(tmp_path / "a" / "run")
    assert result.exit_code == 130
    assert "Nothing is left" in result.stderr
    assert list(tmp_path.iterdir()) == ([tmp_path / "a"] if exists else [])


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["oii"], "Did you mean ioi?"),
        (["ioi", "--kind", "resid_pst"], "Did you mean resid_post"),
        (["ioi", "--kind", "Z"], "Did you mean z?"),
        (["ioi", "--method", "atp_sta"], "Did you mean atp_star"),
        (["ioi", "--direction", "denoise"], "Did you mean denoising"),
        (["ioi", "--ablation", "gaussian"], "Did you mean gaussian-noise"),
        (["ioi", "--metric", "logit_diff"], "Did you mean logit_difference?"),
        (["ioi", "--model", "zoo:nothing"], "expected a model that ships"),
        (["ioi", "--n", "0"], "expected prompts to be from 1"),
        (["ioi", "--window", "0"], "expected window to be from 1"),
        (["ioi", "--seed", "-1"], "expected seed to be from 0"),
        (["ioi", "--device", "gpu"], "expected a device such as cpu"),
        (["ioi", "--method", "atp", "--window", "2"], "Use the method exact for windows"),
        (["ioi", "--no-qk-fix"], "to leave out its QK fix; exact has none"),
        (["ioi", "--method", "atp", "--no-grad-drop"], "to leave out its GradDrop; atp has none"),
    ],
)
def test_nothing_is_done_before_a_refusal(wiretrace, monkeypatch, tmp_path, words, sentence):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("experiments.patch.prepare", lambda *a, **k: pytest.fail("work was begun"))
    assert sentence in refused(wiretrace("patch", *words))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--window", 3], "expected a window of 1 to 2 layers, as many as the model has; got 3"),
        (["--method", "atp", "--metric", "kl"], "kl is at its minimum on the clean run"),
        (["--method", "atp_star", "--metric", "kl"], "kl is at its minimum on the clean run"),
        (["--direction", "denoising", "--ablation", "zero"], "an ablation that is a run of its own"),
    ],
)
def test_what_the_library_refuses_is_said_and_leaves_nothing(patch, tmp_path, words, sentence):
    assert sentence in refused(patch(tmp_path / "run", *words))
    assert list(tmp_path.iterdir()) == []


def test_grad_drop_on_one_layer_is_refused_in_a_sentence(wiretrace, tmp_path, monkeypatch):
    """On the toy model, which has a single layer and no MLP."""
    from patching import toy
    from patching.activation import SiteRun

    monkeypatch.setattr("experiments.patch.prepare", lambda *a, **k: (SiteRun(toy.model(), toy.task()), 0.0))
    words = ("patch", "ioi", "--model", "zoo:ioi", "--method", "atp_star", "--out", tmp_path / "run")
    assert "two layers or more for GradDrop" in refused(wiretrace(*words))
    assert list(tmp_path.iterdir()) == []
    assert wiretrace(*words, "--no-grad-drop").exit_code == 0


def test_unreadable_effects_are_said_in_a_sentence(patch, wiretrace, tmp_path):
    assert patch(tmp_path / "run").exit_code == 0
    (tmp_path / "run" / "effects.json").write_text("{}")
    assert "expected a file of schema wiretrace-effects/1" in refused(wiretrace("show", tmp_path / "run"))
    (tmp_path / "run" / "effects.json").unlink()
    assert "Make the run again with --overwrite." in refused(patch(tmp_path / "run"))
    assert patch(tmp_path / "run", "--overwrite").exit_code == 0


# ------------------------------------------------------------------------------------------------------------ names


def test_the_names_are_the_library_s(wiretrace):
    from patching import activation, sites

    assert list(KINDS) == list(sites.KINDS)
    assert list(DIRECTIONS) == list(activation.DIRECTIONS)
    shown = wiretrace("patch", "--help").stdout
    told = set(re.findall(r"[a-z][a-z_-]*", shown))
    assert set(KINDS) | set(DIRECTIONS) | set(PATCHING) | set(METRICS) | set(ABLATIONS) <= told
    listed = wiretrace("methods").stdout
    assert all(name in listed for _, known in listings.CHOICES.values() for name in known)


@limits(max_examples=40, deadline=None)
@given(
    method=st.sampled_from(sorted(PATCHING)),
    kind=st.sampled_from(sorted(KINDS)),
    direction=st.sampled_from(sorted(DIRECTIONS)),
    model=st.sampled_from(["zoo:ioi", "gpt2", "a folder/of mine"]),
    metric=st.none() | st.sampled_from(sorted(METRICS)),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    numbers=st.tuples(st.integers(1, 9), st.integers(1, 999), st.integers(0, 2**40)),
)
def test_a_file_and_a_command_line_mean_their_config(
    method, kind, direction, model, metric, flags, numbers, tmp_path_factory
):
    from typer.testing import CliRunner

    from experiments import cli

    positions, qk_fix, grad_drop = flags if method == "atp_star" else (flags[0], True, True)
    config = PatchConfig(
        "ioi", model, kind, method, direction, metric=metric, positions=positions, qk_fix=qk_fix, grad_drop=grad_drop,
        window=numbers[0] if method == "exact" else 1, prompts=numbers[1], seed=numbers[2],
    )  # fmt: skip
    path = tmp_path_factory.getbasetemp() / "patch.toml"
    path.write_text(to_toml(config, comments=("a comment",)), encoding="utf-8")
    assert load(path) == config
    seen = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(cli, "_patch", lambda config, **options: seen.append((config, options["out"])))
        result = CliRunner().invoke(cli.app, shlex.split(patch_command(config, out="a folder/run"))[1:])
    assert result.exit_code == 0, result.stderr
    assert seen == [(config, Path("a folder/run"))]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("knid = 'z'", "Did you mean kind?"),
        ("positions = 1", "the setting positions to be true or false; got 1"),
        ("window = true", "the setting window to be a whole number; got True"),
        ("tau = 0.1", "got 'tau'"),
        ("window = 2\nmethod = 'atp'", "for windows"),
    ],
)
def test_a_bad_config_file_is_refused(tmp_path, line, sentence):
    path = tmp_path / "config.toml"
    path.write_text(f'schema = "wiretrace-patch-config/1"\ntask = "ioi"\nmodel = "x"\n{line}\n')
    with pytest.raises(BadConfig) as caught:
        load(path)
    assert sentence in str(caught.value)


def test_help_and_refusals_load_no_torch(finished):
    """Looked up in a fresh process; the clock would prove less."""
    commands = [["--help"], ["patch", "--help"], ["methods"], ["patch", "io"], ["patch", "ioi", "--kind", "zz"],
                ["patch", "ioi", "--model", "zoo:ioi", "--kind", "q", "--out", str(finished)]]  # fmt: skip
    program = (
        "import json, sys\n"
        "from experiments.cli import app\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    try:\n"
        "        app(words, prog_name='wiretrace')\n"
        "    except SystemExit:\n"
        "        pass\n"
        "    if {'torch', 'pandas', 'matplotlib'} & set(sys.modules):\n"
        "        sys.exit(f'{words} loads something heavy')\n"
        "print('nothing heavy')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, json.dumps(commands)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.stdout.endswith("nothing heavy\n"), result.stderr


# ------------------------------------------------------------------------------------ other methods, path patching


@pytest.mark.parametrize("method", ["relp", "ig_inputs", "ig_activations", "conductance"])
def test_gradient_methods_are_those_of_the_library(patch, tmp_path, method, tiny_model):
    from circuits import tasks
    from patching import gradients
    from patching.activation import SiteRun
    from patching.lens import LensModel

    assert patch(tmp_path / "run", "--kind", "mlp_out", "--method", method).exit_code == 0
    made = Effects.load(tmp_path / "run" / "effects.json")
    assert made.provenance["method"] == method
    model = LensModel.load(tiny_model, device="cpu")
    task = tasks.load("ioi").make(model, n=4, seed=0, split="train")
    function = {"ig_inputs": gradients.inputs, "ig_activations": gradients.activations}.get(method)
    expected = (function or getattr(gradients, method))(SiteRun(model, task), "mlp_out")
    torch.testing.assert_close(made.values, expected.values)


def test_path_patching_is_that_of_the_library(patch, tmp_path, tiny_model):
    from circuits import tasks
    from patching import path
    from patching.activation import SiteRun
    from patching.lens import LensModel

    result = patch(tmp_path / "run", "--to", "logits")
    assert result.exit_code == 0, result.stderr
    assert "into logits alone" in re.sub(r"\s+", " ", result.stdout)
    made = Effects.load(tmp_path / "run" / "effects.json")
    model = LensModel.load(tiny_model, device="cpu")
    task = tasks.load("ioi").make(model, n=4, seed=0, split="train")
    torch.testing.assert_close(made.values, path.sweep_senders(SiteRun(model, task), ["logits"]).values)


def test_path_patching_takes_whole_heads(patch, tmp_path):
    said = refused(patch(tmp_path / "run", "--to", "logits", "--kind", "mlp_out"))
    assert "path patching (--to) of whole heads" in said
    assert "no node a9.h9" in refused(patch(tmp_path / "run", "--to", "a9.h9<q>"))
