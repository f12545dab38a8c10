"""Dictionaries written and read again, and what is left when writing fails."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from circuits.features.dictionary import Dictionary, create
from circuits.features.formats import circuit_tracer, sae_lens
from circuits.features.formats.hook_names import hook_of, site_of
from circuits.features.formats.legacy import modern
from graphs.errors import WriteFailed
from patching.errors import InvalidOption, InvalidWeights
from tests.circuits.features.test_dictionary import CASES, rows, trained

METADATA = {"model_name": "zoo:ioi", "training": {"steps": 100, "seed": 0, "l0": 3.5}, "prepend_bos": False}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_saved_dictionary_comes_back(name, dtype, tmp_path):
    metadata = {**METADATA, "hook_name": "blocks.1.mlp.hook_in"} if "transcoder" in name else METADATA
    dictionary = trained(name, dtype=dtype, site="mlp_out1", metadata=metadata)
    dictionary.save(tmp_path / "saved")
    again = Dictionary.load(tmp_path / "saved")
    assert type(again) is type(dictionary)
    assert again.state_dict().keys() == dictionary.state_dict().keys()
    assert all(torch.equal(value, dictionary.state_dict()[key]) for key, value in again.state_dict().items())
    described = (
        "d_in",
        "d_out",
        "n_features",
        "site",
        "subtract_b_dec",
        "metadata",
        "dtype",
        "k",
        "rescale",
        "prefixes",
    )
    for attribute in (*described, "rectify"):
        assert getattr(again, attribute, None) == getattr(dictionary, attribute, None), attribute
    assert torch.equal(again.reconstruct(rows()), dictionary.reconstruct(rows()))


def test_the_same_dictionary_gives_the_same_bytes(tmp_path):
    trained("gated", site="mlp_out1", metadata=METADATA).save(tmp_path / "first")
    Dictionary.load(tmp_path / "first").save(tmp_path / "second")
    for name in (sae_lens.CONFIG_NAME, sae_lens.WEIGHTS_NAME):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_the_site_is_a_hook_for_others(tmp_path):
    create("relu", d_in=4, n_features=8, site="resid_post3").save(tmp_path / "sae")
    config = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    assert config["metadata"]["hook_name"] == "blocks.3.hook_resid_post"
    create("transcoder", d_in=4, n_features=8, site="mlp_out3").save(tmp_path / "transcoder")
    config = json.loads((tmp_path / "transcoder" / "cfg.json").read_text())
    assert config["metadata"]["hook_name_out"] == "blocks.3.hook_mlp_out"
    create("relu", d_in=4, n_features=8, site="z3").save(tmp_path / "heads")
    assert json.loads((tmp_path / "heads" / "cfg.json").read_text())["reshape_activations"] == "hook_z"


@pytest.mark.parametrize("kind", ["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post", "z", "neurons", "q"])
def test_sites_and_hooks(kind):
    hook = hook_of(f"{kind}12")
    assert hook is not None
    assert hook.startswith("blocks.12.")
    assert site_of(hook) == f"{kind}12"


def test_other_hooks_are_no_sites():
    assert hook_of("pattern3") is None
    assert [site_of(hook) for hook in ("blocks.3.ln2.hook_normalized", "blocks.x.hook_mlp_out", "", None, 3)] == [
        None
    ] * 5


def test_a_file_within_the_folder_will_do(tmp_path):
    trained("relu").save(tmp_path / "sae")
    for name in (sae_lens.CONFIG_NAME, sae_lens.WEIGHTS_NAME):
        assert Dictionary.load(tmp_path / "sae" / name).n_features == 10


def test_folders_within_folders_are_made(tmp_path):
    trained("relu").save(tmp_path / "a" / "b")
    assert Dictionary.load(str(tmp_path / "a" / "b")).architecture == "relu"


# ------------------------------------------------------------------------------------------- writing is all or nothing


def fails(name):
    """`os.replace` that refuses one of the two files."""
    replace = os.replace

    def failing(source, target):
        if os.fspath(target).endswith(name):
            raise OSError(28, "No space left on device")
        replace(source, target)

    return failing


@pytest.mark.parametrize("kind", ["disk", sae_lens.CONFIG_NAME, sae_lens.WEIGHTS_NAME])
def test_a_failed_write_leaves_no_new_folder(kind, tmp_path, monkeypatch):
    if kind == "disk":
        monkeypatch.setattr(os, "fsync", fails_always)
    else:
        monkeypatch.setattr(os, "replace", fails(kind))
    with pytest.raises(WriteFailed, match="no space is left"):
        trained("relu").save(tmp_path / "sae")
    monkeypatch.undo()
    if kind == sae_lens.WEIGHTS_NAME:  # the description got there: half a dictionary, and said so
        with pytest.raises(InvalidWeights, match=r"sae_weights.safetensors cannot be read"):
            Dictionary.load(tmp_path / "sae")
    else:
        assert not (tmp_path / "sae").exists()


def fails_always(*_):
    raise OSError(28, "No space left on device")


def fails_for_weights(descriptor):
    """`os.fsync` of a disk with room for the description alone."""
    if os.fstat(descriptor).st_size > 1000:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("kind", ["disk", "disk, weights alone", sae_lens.CONFIG_NAME])
def test_a_failed_write_leaves_the_old_dictionary(kind, tmp_path, monkeypatch):
    old = trained("relu", seed=1)
    old.save(tmp_path / "sae")
    if kind.startswith("disk"):
        monkeypatch.setattr(os, "fsync", fails_always if kind == "disk" else fails_for_weights)
    else:
        monkeypatch.setattr(os, "replace", fails(kind))
    with pytest.raises(WriteFailed):
        trained("relu", seed=2).save(tmp_path / "sae")
    monkeypatch.undo()
    assert torch.equal(Dictionary.load(tmp_path / "sae").W_enc, old.W_enc)
    assert sorted(path.name for path in (tmp_path / "sae").iterdir()) == ["cfg.json", "sae_weights.safetensors"]


def test_halves_of_two_dictionaries_are_noticed(tmp_path, monkeypatch):
    """A crash between the two files: same shapes, so that nothing but the mark could tell."""
    trained("relu", seed=1).save(tmp_path / "sae")
    monkeypatch.setattr(os, "replace", fails(sae_lens.WEIGHTS_NAME))
    with pytest.raises(WriteFailed):
        trained("relu", seed=2).save(tmp_path / "sae")
    monkeypatch.undo()
    with pytest.raises(InvalidWeights, match="of two, as when saving was interrupted"):
        Dictionary.load(tmp_path / "sae")


def test_a_new_dictionary_replaces_an_old_one(tmp_path):
    trained("relu").save(tmp_path / "sae")
    (tmp_path / "sae" / "notes.txt").write_text("kept")
    trained("gated").save(tmp_path / "sae")
    assert Dictionary.load(tmp_path / "sae").architecture == "gated"
    assert (tmp_path / "sae" / "notes.txt").read_text() == "kept"


def test_where_a_file_stands_no_folder_can(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(WriteFailed, match="choose another folder"):
        trained("relu").save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_written(value, tmp_path):
    dictionary = trained("relu")
    with torch.no_grad():
        dictionary.b_dec[0] = value
    with pytest.raises(InvalidWeights, match="b_dec of the dictionary to save"):
        dictionary.save(tmp_path / "sae")
    assert not (tmp_path / "sae").exists()


@pytest.mark.parametrize("value", [object(), float("nan"), {1, 2}, torch.zeros(2)])
def test_metadata_that_json_cannot_hold(value, tmp_path):
    with pytest.raises(InvalidOption, match="expected metadata that JSON can hold"):
        trained("relu", metadata={"what": value}).save(tmp_path / "sae")
    assert not (tmp_path / "sae").exists()


# ------------------------------------------------------------------------------------------------- circuit-tracer


@pytest.mark.parametrize("options", [{}, {"threshold": 0.3}, {"k": 3, "rectify": False}])
@pytest.mark.parametrize("architecture", ["transcoder", "skip_transcoder"])
def test_a_transcoder_comes_back_from_one_file(architecture, options, tmp_path):
    made = trained(architecture, d_out=6, **options)
    circuit_tracer.save(made, tmp_path / "layer_7.safetensors")
    again = Dictionary.load(tmp_path / "layer_7.safetensors")
    assert (again.architecture, again.site, again.metadata["hook_name"]) == (
        architecture,
        "mlp_out7",
        "blocks.7.hook_resid_mid",
    )
    assert torch.equal(again.reconstruct(rows()), made.reconstruct(rows()))


def test_what_circuit_tracer_cannot_hold(tmp_path):
    path = tmp_path / "layer_0.safetensors"
    for made, message in (
        (trained("relu"), "expected a transcoder"),
        (trained("transcoder topk", d_out=6), "expected rectify=False"),
        (trained("transcoder"), "as wide an output as input"),
    ):
        with pytest.raises(InvalidOption, match=message):
            circuit_tracer.save(made, path)
    for layers, message in (
        ({}, "every layer from 0 on"),
        ({1: trained("transcoder", d_out=6)}, "every layer from 0 on"),
        (
            {
                0: trained("transcoder", d_out=6, metadata={"hook_name": "blocks.0.mlp.hook_in"}),
                1: trained("transcoder", d_out=6, metadata={"hook_name": "blocks.1.hook_resid_mid"}),
            },
            "read the same hook in every layer",
        ),
    ):
        with pytest.raises(InvalidOption, match=message):
            circuit_tracer.save_layers(layers, tmp_path, model_name="toy")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_one_layer_is_a_dictionary(tmp_path):
    circuit_tracer.save_layers({0: trained("transcoder", d_out=6)}, tmp_path / "one", model_name="toy")
    assert Dictionary.load(tmp_path / "one").metadata["model_name"] == "toy"
    circuit_tracer.save(trained("transcoder", d_out=6), tmp_path / "one" / "layer_1.safetensors")
    with pytest.raises(InvalidWeights, match="transcoders of 2 layers"):
        Dictionary.load(tmp_path / "one")
    with pytest.raises(InvalidWeights, match="there are none"):
        circuit_tracer.load_layers(tmp_path)


# ---------------------------------------------------------------------------------------- old configurations, by hand


def test_configurations_of_version_6_stay_as_they_are():
    config = {"architecture": "standard", "metadata": {"sae_lens_version": "6.1.0"}, "hook_point": "not read"}
    assert modern(config, "cfg.json") == config
    assert modern({**config, "metadata": {}, "sae_lens_version": "10.0.0"}, "cfg.json")["metadata"] == {}


@pytest.mark.parametrize("version", [None, "3.11.2", "5.9.0", "development"])
def test_configurations_before_version_6(version):
    config = {"hook_point": "blocks.1.attn.hook_z", "normalize_activations": True, "sae_lens_version": version}
    new = modern(config, "cfg.json")
    assert new["architecture"] == "standard"
    assert new["apply_b_dec_to_input"] is True
    assert new["reshape_activations"] == "hook_z"
    assert new["normalize_activations"] == "expected_average_only_in"
    assert new["metadata"]["hook_name"] == "blocks.1.attn.hook_z"


@pytest.mark.parametrize(
    "config", [{"activation_fn_str": "tanh-relu"}, {"activation_fn": "topk"}, {"activation_fn": "gelu"}]
)
def test_other_activations_are_refused_by_name(config):
    with pytest.raises(InvalidWeights, match=f"cfg.json has '{next(iter(config.values()))}'"):
        modern(config, "cfg.json")


def test_a_checkpoint_without_rescaling(tmp_path):
    """The state of BatchTopK training: one threshold, on plain pre-activations."""
    made = trained("batchtopk", dtype=torch.float32)
    config = {"architecture": "batchtopk", "d_in": 6, "d_sae": 10, "dtype": "float32", "k": 2.5}
    config |= {"rescale_acts_by_decoder_norm": False, "metadata": {"sae_lens_version": "6.54.0"}}
    tensors = {key: value for key, value in made.state_dict().items() if key != "threshold"}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    save_file({**tensors, "topk_threshold": torch.tensor(0.3)}, tmp_path / "sae_weights.safetensors")
    again = Dictionary.load(tmp_path)
    z = made.pre_activations(rows())
    assert torch.equal(again.encode(rows()), torch.where(z > torch.tensor(0.3), z, 0.0))
    save_file(tensors, tmp_path / "sae_weights.safetensors")
    with pytest.raises(InvalidWeights, match="expected one topk_threshold"):
        Dictionary.load(tmp_path)


def test_the_weights_file_says_its_mark(tmp_path):
    trained("relu").save(tmp_path / "sae")
    assert set(load_file(tmp_path / "sae" / "sae_weights.safetensors")) == {"W_enc", "b_enc", "W_dec", "b_dec"}
