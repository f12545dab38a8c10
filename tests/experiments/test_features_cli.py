"""`wiretrace features`: every command on a tiny model, what it writes, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from circuits.features import Dictionary, create, shipped
from circuits.features.activations import Prompts, collect
from circuits.features.shift_selection import read as read_selection
from circuits.tasks import ioi
from experiments.features_cli import app
from graphs.circuit import Circuit
from patching import LensModel

FAST = ("--steps", 12, "--width", 40, "--batch", 128, "--prompts", 16)


@pytest.fixture(scope="module")
def features():
    """`features("show", folder)` gives exit code and output; errors that nobody raised on purpose are raised."""

    def run(*words, keys=None):
        result = CliRunner().invoke(app, [str(word) for word in words], input=keys)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture(scope="module")
def trained(features, tiny_model, tmp_path_factory):
    """Dictionaries at the MLP and the last residual of the tiny model: untrained but for a few steps."""
    folder = tmp_path_factory.mktemp("dictionaries")
    for site, name in (("mlp_out0", "m0"), ("resid_post1", "r1")):
        words = ("train", "ioi", "--model", tiny_model, "--site", site, "--k", 4, *FAST, "--out", folder / name, "-q")
        result = features(*words)
        assert result.exit_code == 0, result.stderr
        assert result.stdout.strip() == str(folder / name)
    return folder


@pytest.fixture(scope="module")
def circuit_run(features, tiny_model, trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "circuit"
    words = ("-d", trained / "m0", "-d", trained / "r1", "--node-threshold", 0, "--edge-threshold", 0.0005)
    result = features(
        "circuit", "ioi", "--model", tiny_model, *words, "--prompts", 4, "--steps", 2, "--curve", "--out", out
    )
    assert result.exit_code == 0, result.stderr
    return out, result


def refused(result):
    assert result.exit_code == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    said = result.stderr.splitlines()[-1]
    assert said.startswith("Error: ")
    return said


def test_training_leaves_a_dictionary_with_its_course(trained, tiny_model):
    dictionary = Dictionary.load(trained / "m0")
    assert (dictionary.architecture, dictionary.n_features, dictionary.site) == ("topk", 40, "mlp_out0")
    assert dictionary.metadata["task"] == "ioi"
    assert dictionary.metadata["model_name"] == str(tiny_model)
    course = json.loads((trained / "m0" / "training.json").read_text())
    assert course["asked"]["steps"] == 12
    assert course["history"][-1]["step"] == 12
    assert course["history"][0]["squared_error"] > course["history"][-1]["squared_error"]
    assert not (trained / "m0" / "checkpoint.safetensors").exists()


def test_training_is_the_librarys(features, tiny_model, tmp_path):
    """The folder holds the weights of `training.train` with the same arguments."""
    from circuits.features.activation_buffer import ActivationBuffer
    from circuits.features.training import train

    words = ("train", "ioi", "--model", tiny_model, "--site", "resid_post0", "--architecture", "relu")
    result = features(*words, "--sparsity", 0.3, *FAST, "--seed", 5, "--out", tmp_path / "r0")
    assert result.exit_code == 0, result.stderr
    assert "explained variance" in result.stdout
    assert f"wiretrace features show {tmp_path / 'r0'}" in result.stdout
    model = LensModel.load(tiny_model)
    task = ioi.make(model, n=16, seed=5, split="train")
    buffer = ActivationBuffer(model, Prompts.from_task(task), "resid_post0", batch=128, seed=5)
    dictionary = create("relu", d_in=32, n_features=40, seed=5, site="resid_post0")
    expected = train(dictionary, buffer, steps=12, lr=1e-3, sparsity=0.3).dictionary
    made = Dictionary.load(tmp_path / "r0")
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert torch.equal(getattr(made, name), getattr(expected, name)), name


def test_an_interrupted_training_goes_on_to_the_same_weights(features, tiny_model, tmp_path, monkeypatch):
    from circuits.features import training

    words = ("train", "ioi", "--model", tiny_model, "--site", "mlp_out1", "--k", 4, *FAST, "-q")
    features(*words, "--out", tmp_path / "whole")
    real = training.train

    def stopped(at):
        def train(*args, progress, **options):
            def stop(done, total):
                progress(done, total)
                if done == at:
                    raise KeyboardInterrupt

            return real(*args, progress=stop, recipe=training.Recipe(checkpoint_every=5), **options)

        return train

    monkeypatch.setattr(training, "train", stopped(7))
    result = features(*words, "--out", tmp_path / "cut")
    assert result.exit_code == 130
    assert "Interrupted after 7 of 12 steps. Go on with the same command and --resume." in result.stderr
    assert (tmp_path / "cut" / "checkpoint.safetensors").is_file()
    assert "go on with --resume" in refused(features(*words, "--out", tmp_path / "cut"))

    def going_on(*args, **options):
        return real(*args, recipe=training.Recipe(checkpoint_every=5), **options)

    monkeypatch.setattr(training, "train", going_on)
    assert features(*words, "--out", tmp_path / "cut", "--resume").exit_code == 0
    one, other = (Dictionary.load(tmp_path / name) for name in ("whole", "cut"))
    assert torch.equal(one.W_dec, other.W_dec)
    monkeypatch.setattr(training, "train", stopped(3))
    result = features(*words, "--out", tmp_path / "early")
    assert result.exit_code == 130
    assert "before the first checkpoint; nothing is left" in result.stderr
    assert not (tmp_path / "early").exists()


def test_a_sweep_makes_a_folder_for_each_value(features, tiny_model, tmp_path):
    words = ("train", "ioi", "--model", tiny_model, "--site", "mlp_out0", *FAST, "--out", tmp_path)
    result = features(*words, "--sweep", "2,6")
    assert result.exit_code == 0, result.stderr
    assert [Dictionary.load(tmp_path / name).k for name in ("k2", "k6")] == [2, 6]
    assert "loss recovered" in result.stdout
    assert "k2" in result.stdout
    assert "not empty" in refused(features(*words, "--sweep", "2,9"))
    assert not (tmp_path / "k9").exists()
    assert features(*words, "--sweep", "2,9", "--overwrite", "-q").exit_code == 0


def test_transcoders_and_text(features, tiny_model, tmp_path):
    lines = tmp_path / "prompts.txt"
    lines.write_text("When Mary and John went to the store\n\nThen, Lisa and Paul\n", encoding="utf-8")
    words = ("train", "--text", lines, "--model", tiny_model, "--site", "mlp_out1", "--architecture", "transcoder")
    result = features(*words, "--sparsity", 0.1, "--steps", 3, "--width", 16, "--out", tmp_path / "t", "-q")
    assert result.exit_code == 0, result.stderr
    made = Dictionary.load(tmp_path / "t")
    assert made.is_transcoder
    assert "task" not in made.metadata
    assert "expected prompts" in refused(features("show", tmp_path / "t", "--no-open"))
    result = features("metrics", tmp_path / "t", "--text", lines)
    assert "transcoder, 16 features at mlp_out1, 13 tokens" in result.stdout


def test_show_writes_a_page_and_a_summary(features, trained, tmp_path, monkeypatch):
    monkeypatch.setattr("webbrowser.open", lambda address: pytest.fail("nobody asked for a browser"))
    result = features("show", trained / "m0", "--prompts", 8, "--no-open")
    assert result.exit_code == 0, result.stderr
    assert (trained / "m0" / "features.html").read_text().startswith("<!DOCTYPE html>")
    assert "topk, 40 features at mlp_out0" in result.stdout
    assert "4.0 features at a token, on average" in result.stdout
    labels = tmp_path / "labels.json"
    labels.write_text('{"labels": {"3": "my label"}}')
    page = tmp_path / "page.html"
    result = features("show", trained / "m0", "--prompts", 8, "--labels", labels, "--out", page, "-q", "--no-open")
    assert result.stdout.strip() == str(page)
    assert "my label" in page.read_text()
    (trained / "m0" / "features.html").unlink()


def test_show_opens_the_page(features, trained, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    features("show", trained / "m0", "--prompts", 4, "--out", tmp_path / "page.html", "-q")
    assert opened == [(tmp_path / "page.html").resolve().as_uri()]


def test_show_describes_one_feature(features, trained):
    model = LensModel.load(Dictionary.load(trained / "m0").metadata["model_name"])
    task = ioi.make(model, n=8, seed=0, split="train")
    activations = Dictionary.load(trained / "m0").encode(collect(model, task, ["mlp_out0"])["mlp_out0"]).detach()
    index = int(activations.max(0).values.argmax())
    result = features("show", trained / "m0", "-f", index, "-f", f"m0.f{index}", "--prompts", 8)
    assert result.stdout.count(f"m0.f{index}") == 2
    assert (
        f"({int((activations[:, index] > 0).sum())}), largest activation {float(activations.max()):.3g}"
        in result.stdout
    )
    assert not (trained / "m0" / "features.html").exists()
    assert "expected a feature from 0 to 39" in refused(features("show", trained / "m0", "-f", "40", "--prompts", 8))


def test_metrics_are_the_librarys(features, trained, tmp_path):
    out = tmp_path / "metrics.json"
    result = features("metrics", trained / "r1", "--prompts", 8, "--out", out)
    assert result.exit_code == 0, result.stderr
    found = json.loads(out.read_text())
    model = LensModel.load(Dictionary.load(trained / "r1").metadata["model_name"])
    held_out = ioi.make(model, n=8, seed=0, split="held-out")
    x = collect(model, held_out, ["resid_post1"])["resid_post1"].double()
    wrong = x - Dictionary.load(trained / "r1").reconstruct(x.float()).detach().double()
    explained = 1 - float(wrong.square().sum() / (x - x.mean(0)).square().sum())
    assert found["explained_variance"] == pytest.approx(explained, abs=1e-4)
    assert found["relative_error"] == pytest.approx(float(wrong.square().sum() / x.square().sum()), rel=1e-3)
    assert found["l0"] == 4.0
    assert "loss recovered" in result.stdout


def test_a_circuit_run_holds_all_its_files(circuit_run, trained):
    out, result = circuit_run
    names = {path.name for path in out.iterdir()}
    assert {
        "circuit.json",
        "circuit.graphml",
        "circuit.svg",
        "circuit.html",
        "report.json",
        "report.md",
        "env.json",
        "faithfulness.svg",
    } <= names
    assert "vector-Jacobian products at 2 points" in result.stderr
    circuit = Circuit.load(out / "circuit.json")
    kinds = {node.kind for node in circuit.node_scores}
    assert {"mlp_feature", "resid_feature"} <= kinds <= {"mlp_feature", "resid_feature", "mlp_error", "resid_error"}
    assert circuit.provenance["dictionary_files"][str(trained / "m0")]["sae_weights.safetensors"]
    strongest = max(circuit.node_scores, key=lambda node: abs(circuit.node_scores[node]))
    assert f"{strongest}" in result.stdout
    assert "faithfulness" in result.stdout
    assert f"Run: {out}" in result.stdout


def test_a_finished_circuit_is_not_searched_again(features, circuit_run, trained, tiny_model, monkeypatch):
    out, _ = circuit_run
    monkeypatch.setattr("circuits.features.feature_circuits.search", lambda *a, **k: pytest.fail("searched again"))
    words = ("circuit", "ioi", "--model", tiny_model, "-d", trained / "m0", "-d", trained / "r1", "--prompts", 4)
    words += ("--node-threshold", 0, "--edge-threshold", 0.0005, "--out", out)
    result = features(*words, "--steps", 2, "--curve")
    assert result.exit_code == 0, result.stderr
    assert "holds this run already" in result.stderr
    assert "steps is 2 there, 3 here" in refused(features(*words, "--steps", 3, "--curve"))


def test_picking_by_hand_writes_what_shift_reads(features, circuit_run, tmp_path):
    out, _ = circuit_run
    file = tmp_path / "picked.tsv"
    result = features("pick", out, "--out", file, "--prompts", 8, "--n", 14, keys="2 4-5\n4\nn\nn\nb\nnonsense\ns\n")
    assert result.exit_code == 0, result.stderr
    selection = read_selection(file)
    scores = {
        node: score for node, score in Circuit.load(out / "circuit.json").node_scores.items() if not node.is_error
    }
    ranked = sorted(scores, key=lambda node: (-abs(scores[node]), str(node)))[:14]
    assert list(selection.listed) == ranked
    assert list(selection.marked) == [ranked[1], ranked[4]]
    assert "expected a number from 1 to 14" in result.stdout
    assert "That was the last page" in result.stdout
    assert f"2 of 14 features are marked: {file}" in result.stdout
    assert "«" in file.read_text(encoding="utf-8")


def test_picking_goes_on_with_a_file_and_can_be_given_up(features, tmp_path):
    file = tmp_path / "list.tsv"
    file.write_text(
        "# a remark\nremove\tfeature\teffect\nx\tm0.f7\t-0.5\n\tr0.f12\t0.25\n\tr0.f3\t0.1\n", encoding="utf-8"
    )
    before = file.read_text(encoding="utf-8")
    result = features("pick", file, keys="1 2\nq\n")
    assert "No mark was changed." in result.stdout
    assert file.read_text(encoding="utf-8") == before
    result = features("pick", file, "--mark", "2-3", "--mark", "m0.f7", "-q")
    assert result.stdout.strip() == str(file)
    assert [str(node) for node in read_selection(file).marked] == ["r0.f12", "r0.f3"]
    assert file.read_text(encoding="utf-8").startswith("# a remark\n")
    assert "expected a number from 1 to 3" in refused(features("pick", file, "--mark", "9"))
    assert "expected a number from 1 to 3" in refused(features("pick", file, "--mark", "3-2"))


def test_steering_shows_both_texts(features, trained):
    prompt = "When Mary and John went to the store, John gave a drink to"
    words = ("steer", trained / "r1", "--prompt", prompt, "--n", 3)
    result = features(
        *words, "--clamp", "3=50", "--ablate", "4", "--ablate", "r1.err", "--scale", "5=2", "--add", "r1.f6=1"
    )
    assert result.exit_code == 0, result.stderr
    assert "without  " in result.stdout
    assert "with     " in result.stdout
    nothing = features(*words, "--scale", "3=1")
    without, along = (
        next(line for line in nothing.stdout.splitlines() if line.startswith(word)) for word in ("without", "with  ")
    )
    assert without.split(maxsplit=1)[1:] == along.split(maxsplit=1)[1:]
    quiet = features(*words, "--ablate", "all", "--positions", "5:", "-q")
    assert quiet.exit_code == 0
    assert "without" not in quiet.stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train", "ioi"], "expected --site"),
        (["train", "--site", "mlp_out0", "--out", "x"], "expected a task, such as ioi, or --text"),
        (["train", "oii", "--site", "mlp_out0", "--out", "x"], "Did you mean ioi?"),
        (["train", "ioi", "--site", "mlp_out0", "--out", "x", "--overwrite", "--resume"], "not both"),
        (["train", "ioi", "--site", "mlp_out0", "--out", "x", "--sweep", "4,4"], "expected --sweep with different"),
        (["train", "ioi", "--site", "mlp_out0", "--out", "x", "--sweep", "1.5"], "expected whole numbers to sweep"),
        (["train", "ioi", "--site", "mlp_out0", "--out", "x", "--architecture", "relu"], "expected --sparsity"),
        (["train", "ioi", "--site", "mlp_out0", "--out", "x", "--prompts", "0"], "expected prompts to be from 1"),
        (["show", "nowhere"], "nowhere"),
        (["metrics", "zoo:nothing/mlp_out0"], "zoo:nothing"),
        (["circuit", "ioi", "-d", "nowhere"], "nowhere"),
        (["pick", "nowhere.tsv"], "nowhere.tsv"),
        (["pick", "."], "as `wiretrace features circuit` makes it"),
        (["steer", "nowhere", "--prompt", "a"], "expected an edit"),
        (["steer", "nowhere", "--prompt", "a", "--add", "12"], "expected --add FEATURE=NUMBER"),
        (["steer", "nowhere", "--prompt", "a", "--ablate", "12=3"], "expected --ablate FEATURE"),
        (["steer", "nowhere", "--prompt", "a", "--add", "a0.h1=3"], "expected a feature or an error term"),
        (["steer", "nowhere", "--prompt", "a", "--add", "1=2", "--positions", "x"], "expected --positions such as"),
        (["steer", "nowhere", "--prompt", "a", "--add", "1=2"], "nowhere"),
    ],
)
def test_nothing_is_done_before_a_refusal(features, monkeypatch, tmp_path, words, sentence):
    monkeypatch.chdir(tmp_path)
    assert sentence in refused(features(*words))
    assert list(tmp_path.iterdir()) == []


def test_a_dictionary_of_another_width_is_refused(features, tiny_model, tmp_path):
    create("relu", d_in=8, n_features=4, site="mlp_out0").save(tmp_path / "narrow")
    words = ("show", tmp_path / "narrow", "--task", "ioi", "--model", tiny_model, "--no-open")
    assert "expected a dictionary of width 32" in refused(features(*words))
    create("relu", d_in=32, n_features=4, site="mlp_out9").save(tmp_path / "deep")
    words = ("metrics", tmp_path / "deep", "--task", "ioi", "--model", tiny_model)
    assert "expected a layer from 0 to 1" in refused(features(*words))


def test_dictionaries_that_ship_are_opened_by_name(features, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "zoo:ioi" not in shipped.models():
        pytest.skip("no dictionaries ship with this copy")
    result = features("show", "zoo:ioi/mlp_out1", "--prompts", 8, "--no-open", "-q")
    assert result.stdout.strip() == "features-ioi-mlp_out1.html"
    assert (tmp_path / "features-ioi-mlp_out1.html").is_file()
    assert "zoo:ioi/mlp_out1" in refused(features("show", "zoo:ioi", "--no-open"))
    assert "expected a site out of" in refused(features("show", "zoo:ioi/nowhere", "--no-open"))


def test_help_texts_need_no_torch():
    code = (
        "import sys; from typer.testing import CliRunner; from experiments.features_cli import app\n"
        "for name in ('train', 'show', 'metrics', 'circuit', 'pick', 'steer'):\n"
        "    result = CliRunner().invoke(app, [name, '--help']); assert result.exit_code == 0, name\n"
        "    assert 'Usage' in result.stdout\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
