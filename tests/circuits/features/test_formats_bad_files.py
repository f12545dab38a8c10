"""Files that are damaged, hostile or of something else: one clear error each, and nothing loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from circuits.features.dictionary import Dictionary, create
from circuits.features.formats import circuit_tracer
from patching.errors import InvalidOption, InvalidWeights
from tests.circuits.features.test_formats_golden import CLASSES, GOLDEN, checkpoint

SIGN = "executed"


@pytest.fixture
def folder(tmp_path):
    """A good folder of sae-lens, to be spoiled."""
    return Path(shutil.copytree(GOLDEN / "sae_lens" / "jumprelu", tmp_path / "sae"))


def change(folder, **values):
    config = json.loads((folder / "cfg.json").read_text())
    config |= values
    (folder / "cfg.json").write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def change_tensors(folder, **values):
    tensors = load_file(folder / "sae_weights.safetensors") | values
    kept = {key: value for key, value in tensors.items() if value is not ...}
    save_file(kept, folder / "sae_weights.safetensors")


def refused(path, message):
    with pytest.raises(InvalidWeights, match=message) as caught:
        Dictionary.load(path)
    assert str(path) in str(caught.value), "an error names the file"


# --------------------------------------------------------------------------------------------- folders of sae-lens


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architecture": "temporal"}, "expected an architecture out of standard.* has 'temporal'"),
        ({"architecture": "matching_pursuit"}, "has 'matching_pursuit'"),
        ({"architecture": ...}, "expected an architecture.* has None"),
        ({"architecture": ["jumprelu"]}, "expected an architecture"),
        ({"architecture": "standard"}, "also has threshold"),
        ({"architecture": "gated"}, "lacks b_gate, b_mag, r_mag"),
        ({"architecture": "topk"}, "expected k in .* whole number"),
        ({"architecture": "topk", "k": 11}, "from 1 to n_features = 10; got 11"),
        ({"architecture": "transcoder"}, "expected d_out in "),
        (
            {"architecture": "jumprelu_transcoder", "d_out": 6, "apply_b_dec_to_input": True},
            "belongs to what it writes",
        ),
        ({"normalize_activations": "layer_norm"}, "has 'layer_norm', which this library does not run"),
        ({"normalize_activations": "constant_norm_rescale"}, "has 'constant_norm_rescale'"),
        ({"normalize_activations": "covariance_whitening"}, "has 'covariance_whitening'"),
        ({"normalize_activations": "expected_average_only_in"}, "Give input_scale="),
        ({"reshape_activations": "hook_q"}, "expected reshape_activations none or hook_z"),
        ({"d_in": 7}, r"expected W_dec of shape \(10, 7\)|expected W_enc of shape \(7, 10\)|expected b_dec"),
        ({"d_sae": 9}, "expected .* of shape"),
        ({"d_in": ...}, "expected d_in in "),
        ({"d_in": "6"}, "expected d_in in .* whole number"),
        ({"d_sae": -1}, "expected d_sae in "),
        ({"dtype": "float8_e4m3fn"}, "expected dtype out of float64"),
        ({"dtype": "int32"}, "expected dtype out of"),
    ],
)
def test_configurations_that_cannot_be_run(values, message, folder):
    change(folder, **values)
    refused(folder, message)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"W_dec": ...}, "lacks W_dec"),
        ({"threshold": ...}, "lacks threshold"),
        ({"W_other": torch.zeros(2)}, "also has W_other"),
        ({"W_enc": torch.zeros(10, 6)}, r"expected W_enc of shape \(6, 10\).*has \(10, 6\)"),
        ({"threshold": torch.tensor(1.0)}, r"expected threshold of shape \(10,\)"),
        ({"b_dec": torch.tensor([float("nan")] * 6)}, "expected finite weights; b_dec"),
        ({"W_enc": torch.full((6, 10), float("inf"))}, "expected finite weights; W_enc"),
        ({"scaling_factor": torch.full((10,), 2.0)}, "expected no scaling_factor other than 1"),
        ({"finetuning_scaling_factor": torch.ones(10)}, "also has finetuning_scaling_factor"),
    ],
)
def test_tensors_that_do_not_fit(values, message, folder):
    change_tensors(folder, **values)
    refused(folder, message)


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors"])
@pytest.mark.parametrize("kept", [0, 1, 50, -1])
def test_files_cut_short(name, kept, folder):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:kept].rstrip() if kept >= 0 else data[:-3])
    refused(folder, "missing or cut short")


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors"])
def test_half_a_folder(name, folder):
    (folder / name).unlink()
    refused(folder, f"{name} cannot be read.*missing or cut short")


def test_a_description_that_is_no_object(folder):
    (folder / "cfg.json").write_text("[1, 2]")
    refused(folder, "expected a JSON object in .*got list")
    (folder / "cfg.json").write_text("[" * 100_000)
    refused(folder, "cannot be read")
    (folder / "cfg.json").write_bytes(b"\xff\xfe\x00")
    refused(folder, "cannot be read")


@pytest.mark.parametrize("metadata", [[], "text", {"wiretrace": 3}, {"training_architecture_details": []}, None])
def test_odd_metadata_is_no_reason_to_fail(metadata, folder):
    version = {"sae_lens_version": "6.54.0"}
    change(folder, metadata={**metadata, **version} if isinstance(metadata, dict) else metadata, **version)
    assert Dictionary.load(folder).architecture == "jumprelu"


def test_a_tied_dictionary_must_be_tied(tmp_path):
    create("tied", d_in=6, n_features=10).save(tmp_path / "sae")
    header = {
        "wiretrace-mark": json.loads((tmp_path / "sae" / "cfg.json").read_text())["metadata"]["wiretrace"]["mark"]
    }
    tensors = load_file(tmp_path / "sae" / "sae_weights.safetensors")
    save_file({**tensors, "W_enc": tensors["W_enc"] * 2}, tmp_path / "sae" / "sae_weights.safetensors", metadata=header)
    refused(tmp_path / "sae", "W_enc to be the transpose of W_dec")


@pytest.mark.parametrize("scale", [{"scaling_factor": -1}, {"scaling_factor": "2"}, {"scaling_factor": None}, {}])
def test_scales_that_are_none(scale, tmp_path):
    folder = Path(shutil.copytree(GOLDEN / "sae_lens" / "scaled", tmp_path / "sae"))
    (folder / "activation_scaler.json").write_text(json.dumps(scale))
    refused(folder, "scal")


def test_a_scale_where_none_is_needed(folder):
    with pytest.raises(InvalidOption, match="is of plain activations"):
        Dictionary.load(folder, input_scale=2.0)
    with pytest.raises(InvalidOption, match="expected no input_scale"):
        Dictionary.load(GOLDEN / "circuit_tracer" / "layer_0.safetensors", input_scale=2.0)


@settings(max_examples=60)
@given(data=st.data())
def test_a_flipped_byte_is_noticed_or_harmless(data, tmp_path_factory):
    """Whatever byte changes: either one clear error, or a dictionary of finite weights."""
    folder = Path(shutil.copytree(GOLDEN / "sae_lens" / "jumprelu", tmp_path_factory.mktemp("flip") / "sae"))
    file = folder / data.draw(st.sampled_from(["cfg.json", "sae_weights.safetensors"]))
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(bytes(content))
    try:
        dictionary = Dictionary.load(folder)
    except InvalidWeights:
        return
    assert all(bool(torch.isfinite(value).all()) for value in dictionary.state_dict().values())


# ----------------------------------------------------------------------------------------------------- elsewhere


def test_what_is_no_dictionary(tmp_path):
    refused(tmp_path / "nowhere", "is not there; check the path")
    refused(tmp_path, "is a folder with nothing")
    for name in "abcdefg":
        (tmp_path / name).write_text("")
    refused(tmp_path, "is a folder with a, b, c, d, e, …")
    refused(tmp_path / "a", "is another kind of file")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"W_dec": ...}, "expected the matrices W_enc and W_dec.*has no W_dec"),
        ({"W_enc": torch.zeros(10)}, "expected the matrices"),
        ({"W_enc": torch.zeros(11, 6)}, "expected .* of shape"),
        ({"b_enc": ...}, "lacks b_enc"),
        ({"k": torch.tensor([1, 2])}, "expected one whole number k"),
        ({"k": torch.tensor(12)}, "from 1 to n_features = 10; got 12"),
        ({"k": torch.tensor(2), "activation_function.threshold": torch.zeros(10)}, "not both"),
        ({"b_dec": torch.full((6,), float("nan"))}, "expected finite weights; b_dec"),
        ({"W_enc": torch.zeros(10, 6, dtype=torch.int64)}, "expected weights of float64"),
        ({"W_skip": torch.zeros(3, 3)}, r"expected W_skip of shape \(6, 6\)"),
        ({"log_thresholds": torch.zeros(10)}, "also has log_thresholds"),
    ],
)
def test_transcoders_that_do_not_fit(values, message, tmp_path):
    path = tmp_path / "layer_0.safetensors"
    tensors = load_file(GOLDEN / "circuit_tracer" / "layer_0.safetensors") | values
    save_file({key: value for key, value in tensors.items() if value is not ...}, path)
    refused(path, message)


def test_a_transcoder_cut_short_or_missing(tmp_path):
    path = tmp_path / "layer_0.safetensors"
    path.write_bytes((GOLDEN / "circuit_tracer" / "layer_0.safetensors").read_bytes()[:-8])
    refused(path, "missing or cut short")
    refused(tmp_path / "layer_5.safetensors", "missing or cut short")


def test_a_description_of_transcoders_is_read_line_by_line(tmp_path):
    path = Path(shutil.copy(GOLDEN / "circuit_tracer" / "layer_0.safetensors", tmp_path))
    text = (
        'model_name: "a/b"  # quoted\nfeature_input_hook: ln2.hook_normalized\nnested:\n  model_name: no\nlist: [1]\n'
    )
    (tmp_path / "config.yaml").write_text(text)
    metadata = circuit_tracer.load(path).metadata
    assert metadata == {"model_name": "a/b", "hook_name": "blocks.0.ln2.hook_normalized"}
    (tmp_path / "config.yaml").write_bytes(b"\xff\x00 not text")
    assert circuit_tracer.load(path).metadata["hook_name"] == "blocks.0.hook_resid_mid"


# ------------------------------------------------------------------------------------------------- pickled states


class Bomb:
    """What a hostile pickle does when it is opened."""

    def __reduce__(self):
        return Path.touch, (Path(SIGN),)


@pytest.mark.parametrize("content", [Bomb(), {"encoder.weight": Bomb()}])
def test_a_pickle_runs_no_code(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "ae.pt")
    refused(tmp_path / "ae.pt", "could run code and is refused")
    assert not Path(SIGN).exists()
    torch.load(tmp_path / "ae.pt", weights_only=False)  # the bomb was live
    assert Path(SIGN).exists()


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"encoder.weight": 3.0}, torch.zeros(3), {}])
def test_a_pickle_of_something_else(content, tmp_path):
    torch.save(content, tmp_path / "ae.pt")
    refused(tmp_path / "ae.pt", "something else|fit more than one class")


@pytest.mark.parametrize("kept", [0, 1, 100, -10])
def test_a_pickle_cut_short(kept, tmp_path):
    folder = checkpoint(tmp_path / "sae", "AutoEncoder")
    data = (folder / "ae.pt").read_bytes()
    (folder / "ae.pt").write_bytes(data[:kept])
    refused(folder / "ae.pt", "cut short|damaged")


@settings(max_examples=40)
@given(data=st.data())
def test_a_flipped_byte_of_a_pickle(data, tmp_path_factory):
    folder = checkpoint(tmp_path_factory.mktemp("flip") / "sae", "GatedAutoEncoder")
    content = bytearray((folder / "ae.pt").read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (folder / "ae.pt").write_bytes(bytes(content))
    try:
        dictionary = Dictionary.load(folder)
    except InvalidWeights:
        return
    assert all(bool(torch.isfinite(value).all()) for value in dictionary.state_dict().values())


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("AutoEncoder", {"encoder.weight": ...}, "expected a matrix of encoder weights"),
        ("AutoEncoder", {"encoder.weight": torch.zeros(3)}, "expected a matrix of encoder weights"),
        ("AutoEncoder", {"bias": ...}, "lacks b_dec"),
        ("AutoEncoder", {"bias": torch.zeros(7)}, r"expected b_dec of shape \(6,\)"),
        ("AutoEncoder", {"encoder.bias": torch.full((10,), float("nan"))}, "expected finite weights; b_enc"),
        ("AutoEncoder", {"other": torch.zeros(1)}, "also has other"),
        ("AutoEncoderTopK", {"k": ...}, "expected k in "),
        ("AutoEncoderTopK", {"k": torch.tensor(float("nan"))}, "expected one whole number k"),
        ("AutoEncoderTopK", {"k": torch.tensor(2.5)}, "expected one whole number k"),
        ("AutoEncoderTopK", {"k": torch.tensor(11)}, "from 1 to n_features = 10; got 11"),
        ("MatryoshkaBatchTopKSAE", {"group_sizes": torch.tensor([2, 3])}, "prefixes that rise to n_features = 10"),
        ("BatchTopKSAE", {"threshold": torch.zeros(3)}, "expected threshold"),
    ],
)
def test_states_that_do_not_fit(kind, values, message, tmp_path):
    folder = checkpoint(tmp_path / "sae", kind, layer=0)
    state = torch.load(folder / "ae.pt", weights_only=True) | values
    torch.save({key: value for key, value in state.items() if value is not ...}, folder / "ae.pt")
    refused(folder, message)


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_may_lack_its_trainer(kind, tmp_path):
    folder = checkpoint(tmp_path / "sae", kind, layer=0)
    (folder / "config.json").write_text(json.dumps({"trainer": "text"}))
    if kind in ("AutoEncoderTopK", "BatchTopKSAE"):
        refused(folder, "fit more than one class")
    else:
        assert type(Dictionary.load(folder)) is CLASSES[kind]


def test_an_unknown_class(tmp_path):
    folder = checkpoint(tmp_path / "sae", "AutoEncoder", layer=0)
    (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": "CrossCoder"}}))
    refused(folder, "is of CrossCoder, which is not read")
    (folder / "config.json").write_text('{"trainer": ')
    with pytest.raises(InvalidWeights, match="missing or cut short"):
        Dictionary.load(folder)


def test_a_threshold_that_was_never_set(tmp_path):
    """dictionary_learning starts at -1: every positive pre-activation counts."""
    folder = checkpoint(tmp_path / "sae", "BatchTopKSAE", layer=0)
    state = torch.load(folder / "ae.pt", weights_only=True)
    torch.save({**state, "threshold": torch.tensor(-1.0)}, folder / "ae.pt")
    dictionary, x = Dictionary.load(folder), load_file(GOLDEN / "x.safetensors")["x"]
    assert torch.equal(dictionary.encode(x), dictionary.pre_activations(x).relu())
    assert not dictionary.get_buffer("threshold").any()
