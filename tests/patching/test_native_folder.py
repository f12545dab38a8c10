"""Native models in folders: what is saved is what is loaded, and what is wrong with a folder is said."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from patching import native_folder
from patching.errors import InvalidWeights, ModelNotFound
from patching.lens import LensModel
from patching.masked import MaskedRun
from tests import tiny

MLPS = {"attn_only": False, "d_mlp": 24, "act_fn": "relu", "normalization_type": None}


@pytest.mark.parametrize("changes", [{}, MLPS, {"normalization_type": "RMS", "positional_embedding_type": "rotary"}])
def test_what_is_loaded_computes_what_was_saved(tmp_path, changes):
    bridge = tiny.native(**changes)
    native_folder.save(bridge, tmp_path)
    saved, loaded = LensModel.wrap(bridge), LensModel.load(tmp_path, dtype=torch.float64, device="cpu")
    assert loaded.architecture == saved.architecture
    tokens = torch.arange(10).reshape(2, 5)
    assert torch.equal(loaded.logits(tokens), saved.logits(tokens))
    task = tiny.task()
    mask = torch.rand(1, saved.graph.n_edges, generator=torch.Generator().manual_seed(0), dtype=torch.float64).round()
    assert torch.equal(MaskedRun(loaded, task)(mask), MaskedRun(saved, task)(mask))


def test_without_mlps_there_are_no_mlp_nodes(tmp_path):
    native_folder.save(tiny.native(), tmp_path)
    loaded = LensModel.load(tmp_path, device="cpu")
    assert not loaded.architecture.has_mlp
    assert loaded.dtype == torch.float32
    assert loaded.tokenizer is None


@pytest.mark.parametrize("size", [0.0, 0.5])
def test_a_bias_of_zeros_at_the_unembedding_is_none(tmp_path, size):
    """TransformerLens 3 makes one; what is saved with either version is loaded with either, and counted alike."""
    bridge = tiny.native()
    head = bridge.unembed.original_component
    head.bias = torch.nn.Parameter(size * torch.arange(len(head.weight), dtype=head.weight.dtype))
    native_folder.save(bridge, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert ("head.bias" in weights) == (size > 0)
    loaded = LensModel.load(tmp_path, device="cpu", dtype=torch.float64)
    assert loaded.parameter_count == sum(weight.numel() for weight in weights.values())
    tokens = torch.arange(10).reshape(2, 5)
    assert torch.equal(loaded.logits(tokens), LensModel.wrap(bridge).logits(tokens))


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"model": {"type": "Nope"}}'])
def test_a_damaged_tokenizer_is_refused(tmp_path, text):
    native_folder.save(tiny.native(), tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(text)
    with pytest.raises(InvalidWeights, match=r"expected a whole tokenizer in .*tokenizer\.json.*cannot be read"):
        LensModel.load(tmp_path, device="cpu")


def test_weights_are_named_by_their_place(tmp_path):
    native_folder.save(tiny.native(), tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert {"tok_embed.weight", "pos.weight", "layers.1.attn.q.weight", "layers.0.ln1.bias", "head.weight"} <= names
    assert not [name for name in names if "_original" in name]


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda weights: weights.pop("head.weight"), "head.weight"),
        (lambda weights: weights.update(extra=torch.zeros(2)), "extra"),
        (lambda weights: weights.update({"head.weight": torch.zeros(2, 2)}), "head.weight"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, spoil, what):
    native_folder.save(tiny.native(), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    spoil(weights)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(InvalidWeights, match=what):
        LensModel.load(tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda settings: settings.pop("head_dim"), "lacks head_dim"),
        (lambda settings: settings.update(position_embedding="alibi"), "alibi"),
        (lambda settings: settings.update(hidden_size="wide"), "config.json"),
    ],
)
def test_settings_that_describe_no_model_are_named(tmp_path, change, what):
    native_folder.save(tiny.native(), tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    change(settings)
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelNotFound, match=what):
        LensModel.load(tmp_path, device="cpu")


def test_weights_in_another_file_are_not_looked_for(tmp_path):
    native_folder.save(tiny.native(), tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    with pytest.raises(InvalidWeights, match="no such file"):
        LensModel.load(tmp_path, device="cpu")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    bridge = tiny.native()
    with torch.no_grad():
        bridge.original_model.head.original_component.weight[0, 0] = torch.nan
    native_folder.save(bridge, tmp_path)
    with pytest.raises(InvalidWeights, match="NaN"):
        LensModel.load(tmp_path, device="cpu")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"model_type": "gpt2"}', "\x00"])
def test_other_folders_are_not_native(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    assert not native_folder.is_native(tmp_path)
