"""The training script on a plan that takes a second; and the dictionaries that it made and that ship."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from circuits.features import shipped
from circuits.features.activations import Prompts, collect
from circuits.features.dictionary import Dictionary
from circuits.features.metrics import report
from circuits.tasks import ioi
from experiments import train_dictionaries
from experiments.train_dictionaries import MODEL, SITES, OutputExists, Plan, fit, gather, judge, k_of, make
from graphs.errors import WriteFailed
from patching.errors import InvalidOption, InvalidWeights
from patching.lens import LensModel
from patching.model_sources import ZOO

TINY = Plan(prompts=30, held_out=10, steps=6, batch=64)


@pytest.fixture(scope="module")
def model() -> LensModel:
    return LensModel.load(MODEL, device="cpu")


@pytest.fixture(scope="module")
def held_out(model) -> dict[str, torch.Tensor]:
    about = shipped.card(MODEL, SITES[0])["held_out"]
    task = ioi.make(model, n=about["prompts"], seed=about["seed"], split=about["split"])
    return collect(model, Prompts.from_task(task), SITES)


def test_every_site_has_a_dictionary():
    assert shipped.models() == (MODEL,)
    assert shipped.shipped(MODEL) == SITES
    assert len(SITES) == 10


@pytest.mark.parametrize("site", SITES)
def test_the_files_are_those_of_their_card(site):
    card, folder = shipped.card(MODEL, site), shipped.ZOO / "ioi" / site
    assert card["weights_sha256"] == hashlib.sha256((folder / shipped.WEIGHTS).read_bytes()).hexdigest()
    model_file = ZOO / "ioi" / "model.safetensors"
    assert card["model_weights_sha256"] == hashlib.sha256(model_file.read_bytes()).hexdigest()
    dictionary = shipped.load(MODEL, site)
    assert (dictionary.site, dictionary.d_in, dictionary.n_features) == (site, 64, card["plan"]["n_features"])
    assert card["site"] == site
    assert card["plan"] == json.loads(json.dumps(vars(Plan()))), "made by the plan that stands in the script"
    assert getattr(dictionary, "k") == card["k"] == k_of(site)  # noqa: B009


@pytest.mark.parametrize("site", SITES)
def test_held_out_numbers_are_what_the_card_says(site, held_out):
    said = shipped.card(MODEL, site)["held_out"]
    judged = report(shipped.load(MODEL, site), held_out[site])
    assert judged.tokens == said["tokens"]
    assert judged.explained_variance == pytest.approx(said["explained_variance"], abs=2e-4)
    assert judged.l0 == pytest.approx(said["l0"], abs=2e-2)
    assert judged.dead == pytest.approx(said["dead"], abs=0.02)
    assert said["explained_variance"] > 0.9
    assert said["kl_recovered_mean"] > 0.9


def test_recovered_shares_are_what_the_card_says(model):
    said = shipped.card(MODEL, "resid_post1")["held_out"]
    again = judge(model, shipped.load(MODEL, "resid_post1"), prompts=said["prompts"], seed=said["seed"])
    for name in ("kl", "kl_recovered_mean", "kl_recovered_zero", "loss_recovered_mean"):
        assert again[name] == pytest.approx(said[name], rel=1e-2), name


def test_all_of_them_are_small():
    files = [path for path in shipped.ZOO.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 3e6
    assert {path.suffix for path in files} <= {".safetensors", ".json"}


def test_a_piece_of_the_training_comes_out_as_it_went(model):
    """The first steps again, from the plan of the card: the same weights twice, on the way to what ships."""
    card = shipped.card(MODEL, "mlp_out1")
    plan = replace(Plan(**card["plan"]), steps=40, prompts=200)
    results = []
    for _ in range(2):
        activations = gather(model, ("mlp_out1",), plan)["mlp_out1"]
        results.append(fit("mlp_out1", activations, plan))
    (first, about), (again, _) = results
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert about["last_batch"]["explained_variance"] > 0.7
    assert about["tokens_trained_on"] == 40 * plan.batch


def test_the_script_writes_dictionaries_with_cards(tmp_path):
    (card,) = make(tmp_path / "ioi", sites=("attn_out2",), plan=TINY)
    folder = tmp_path / "ioi" / "attn_out2"
    assert json.loads((folder / "card.json").read_text()) == card
    assert Dictionary.load(folder).site == "attn_out2"
    assert card["training"]["tokens_trained_on"] == 6 * 64
    assert card["held_out"]["prompts"] == 10
    with pytest.raises(OutputExists, match="attn_out2 are there"):
        make(tmp_path / "ioi", sites=("attn_out2",), plan=TINY)
    (again,) = make(tmp_path / "ioi", sites=("attn_out2",), plan=TINY, force=True)
    assert again["weights_sha256"] == card["weights_sha256"], "the same bytes"
    assert again["held_out"] == card["held_out"]


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteFailed, match="folder"):
        make(tmp_path / "file" / "ioi", plan=TINY)


def test_the_command_refuses_in_a_sentence(tmp_path):
    runner = CliRunner()
    found = runner.invoke(train_dictionaries.app, ["--out", str(tmp_path), "--site", "z0"])
    assert found.exit_code == 2
    assert "resid_pre0" in found.output
    (tmp_path / "resid_pre0").mkdir()
    found = runner.invoke(train_dictionaries.app, ["--out", str(tmp_path)])
    assert found.exit_code == 2
    assert "error: expected no dictionaries" in found.output


def test_what_does_not_ship_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InvalidOption, match="zoo:ioi"):
        shipped.load("zoo:nothing", "mlp_out0")
    with pytest.raises(InvalidOption, match="resid_pre0"):
        shipped.load(MODEL, "mlp_out9")
    shutil.copytree(shipped.ZOO / "ioi" / "mlp_out0", tmp_path / "ioi" / "mlp_out0")
    monkeypatch.setattr(shipped, "ZOO", tmp_path)
    weights = tmp_path / "ioi" / "mlp_out0" / shipped.WEIGHTS
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(InvalidWeights, match="another file"):
        shipped.load(MODEL, "mlp_out0")
