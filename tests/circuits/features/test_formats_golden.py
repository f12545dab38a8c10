"""Tiny dictionaries of other libraries, recorded once (`golden/make.py`), give the same bits here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from circuits.features.architectures import BatchTopK, Gated, JumpRelu, Matryoshka, Relu, TopK
from circuits.features.dictionary import Dictionary, create
from circuits.features.formats import circuit_tracer, dictionary_learning
from circuits.features.transcoders import SkipTranscoder, Transcoder

GOLDEN = Path(__file__).parent / "golden"
SAE_LENS = sorted(path.name for path in (GOLDEN / "sae_lens").iterdir())
INPUTS = load_file(GOLDEN / "x.safetensors")
PEER = os.environ.get("WIRETRACE_SAE_LENS_PYTHON")
needs_peer = pytest.mark.skipif(not PEER, reason="WIRETRACE_SAE_LENS_PYTHON names no python with sae-lens 6.54")


def recorded(library, case):
    tensors = load_file(GOLDEN / f"{library}.safetensors")
    return {name.split("/", 1)[1]: value for name, value in tensors.items() if name.startswith(f"{case}/")}


def same_arithmetic():
    """Whether this machine multiplies, exponentiates and takes roots as the one that recorded did, to the bit."""
    left, right = INPUTS["left"], INPUTS["right"]
    return (
        torch.equal(left @ right, INPUTS["product"])
        and torch.equal(right.exp(), INPUTS["exponential"])
        and torch.equal(right.norm(dim=0), INPUTS["length"])
    )


def assert_same(found, expected, *, exact):
    assert found.dtype == expected.dtype
    if exact:
        assert torch.equal(found, expected)
    else:
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


# ------------------------------------------------------------------------------------------------------ sae-lens


def test_every_layout_is_recorded():
    assert len(SAE_LENS) == 20


@pytest.mark.parametrize("case", SAE_LENS)
def test_sae_lens_gives_the_same_bits(case):
    random = case.endswith("_random")
    dictionary = Dictionary.load(GOLDEN / "sae_lens" / case)
    x, expected = INPUTS["x_random" if random else "x"], recorded("sae_lens", case)
    with torch.no_grad():
        exact = not random or same_arithmetic()
        assert_same(dictionary.encode(x), expected["features"], exact=exact)
        assert_same(dictionary.reconstruct(x), expected["output"], exact=exact)
    assert bool((expected["features"] != 0).any())
    assert bool((expected["features"] == 0).any())


@pytest.mark.parametrize(
    ("case", "kind", "site"),
    [
        ("standard", Relu, "mlp_out1"),
        ("topk", TopK, "mlp_out1"),
        ("batchtopk", BatchTopK, "mlp_out1"),
        ("batchtopk_checkpoint", BatchTopK, "mlp_out1"),
        ("matryoshka", Matryoshka, "mlp_out1"),
        ("jumprelu", JumpRelu, "resid_post1"),
        ("gated", Gated, "attn_out1"),
        ("transcoder", Transcoder, "mlp_out1"),
        ("jumprelu_skip_transcoder", SkipTranscoder, "mlp_out1"),
        ("heads", Relu, "z1"),
        ("legacy_standard", Relu, "resid_pre2"),
        ("legacy_topk_heads", TopK, "z2"),
        ("legacy_jumprelu_random", JumpRelu, "resid_post2"),
    ],
)
def test_sae_lens_says_what_it_is(case, kind, site):
    dictionary = Dictionary.load(GOLDEN / "sae_lens" / case)
    assert type(dictionary) is kind
    assert dictionary.site == site


def test_sae_lens_options_arrive():
    def load(case):
        return Dictionary.load(GOLDEN / "sae_lens" / case)

    topk, batch, nested = load("topk_rescaled_random"), load("batchtopk"), load("matryoshka")
    assert isinstance(topk, TopK) and isinstance(batch, BatchTopK) and isinstance(nested, Matryoshka)  # noqa: PT018
    assert (topk.k, topk.rescale, batch.k, nested.prefixes) == (5, True, 2.5, (2, 5, 10))
    transcoder = load("transcoder")
    assert (transcoder.d_in, transcoder.d_out, transcoder.subtract_b_dec) == (6, 4, False)
    assert transcoder.metadata["hook_name"] == "blocks.1.ln2.hook_normalized"
    assert load("jumprelu").subtract_b_dec is False
    assert load("standard_bfloat16").dtype == torch.bfloat16
    assert load("heads").metadata["reshape_activations"] == "hook_z"


def test_a_pre_activation_at_the_threshold_is_off():
    for case in ("jumprelu", "jumprelu_transcoder", "batchtopk"):
        dictionary = Dictionary.load(GOLDEN / "sae_lens" / case)
        z, threshold = dictionary.pre_activations(INPUTS["x"]), dictionary.threshold
        at = z == threshold
        assert bool((at & (z > 0)).any()), f"{case} was recorded with a positive pre-activation at its threshold"
        assert bool((recorded("sae_lens", case)["features"][at] == 0).all())


def test_top_k_keeps_fewer_where_fewer_are_positive():
    kept = (recorded("sae_lens", "topk")["features"] != 0).sum(-1)
    assert int(kept.max()) == 5
    assert int(kept.min()) < 5


def test_the_scale_may_be_given_by_hand(tmp_path):
    shutil.copytree(GOLDEN / "sae_lens" / "scaled", tmp_path / "scaled")
    (tmp_path / "scaled" / "activation_scaler.json").unlink()
    given = Dictionary.load(tmp_path / "scaled", input_scale=0.5)
    assert torch.equal(given.encode(INPUTS["x"]), recorded("sae_lens", "scaled")["features"])
    plain = Dictionary.load(GOLDEN / "sae_lens" / "standard")
    assert torch.equal(given.encode(INPUTS["x"]), plain.encode(0.5 * INPUTS["x"]))


# ---------------------------------------------------------------------------------------------- circuit-tracer


@pytest.mark.parametrize("layer", range(4))
def test_circuit_tracer_gives_the_same_bits(layer):
    dictionary = Dictionary.load(GOLDEN / "circuit_tracer" / f"layer_{layer}.safetensors")
    expected = recorded("circuit_tracer", f"layer_{layer}")
    assert_same(dictionary.encode(INPUTS["x"]).detach(), expected["features"], exact=True)
    assert_same(dictionary.reconstruct(INPUTS["x"]).detach(), expected["output"], exact=True)
    assert dictionary.site == f"mlp_out{layer}"
    assert dictionary.metadata == {"model_name": "toy", "hook_name": f"blocks.{layer}.mlp.hook_in"}


def test_circuit_tracer_top_k_keeps_negative_values():
    layers = circuit_tracer.load_layers(GOLDEN / "circuit_tracer")
    assert list(layers) == [0, 1, 2, 3]
    features = layers[2].encode(INPUTS["x"])[1:]
    assert bool(((features != 0).sum(-1) == 5).all())
    assert bool((features < 0).any())


def test_circuit_tracer_layers_are_written_as_they_were(tmp_path):
    layers = circuit_tracer.load_layers(GOLDEN / "circuit_tracer")
    circuit_tracer.save_layers(layers, tmp_path / "again", model_name="toy")
    for layer in range(3):  # the fourth was in the layout of Gemma Scope 2
        name = f"layer_{layer}.safetensors"
        old, new = load_file(GOLDEN / "circuit_tracer" / name), load_file(tmp_path / "again" / name)
        assert old.keys() == new.keys()
        assert all(torch.equal(old[key], new[key]) for key in old)
    again = circuit_tracer.load_layers(tmp_path / "again")
    assert again[3].metadata == layers[3].metadata
    assert torch.equal(again[3].reconstruct(INPUTS["x"]), layers[3].reconstruct(INPUTS["x"]))


# ---------------------------------------------------------------------------------------- dictionary_learning

CLASSES = {
    "AutoEncoder": Relu,
    "AutoEncoderNew": Relu,
    "AutoEncoderTopK": TopK,
    "BatchTopKSAE": BatchTopK,
    "MatryoshkaBatchTopKSAE": Matryoshka,
    "GatedAutoEncoder": Gated,
    "JumpReluAutoEncoder": JumpRelu,
}


def checkpoint(folder, kind, **trainer):
    """The files that dictionary_learning's trainer leaves."""
    folder.mkdir()
    found = recorded("dictionary_learning", kind)
    state = {name.removeprefix("state."): value for name, value in found.items() if name.startswith("state.")}
    torch.save(state, folder / "ae.pt")
    if trainer:
        (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": kind, **trainer}, "buffer": None}))
    return folder


@pytest.mark.parametrize("kind", CLASSES)
def test_dictionary_learning_gives_the_same_bits(kind, tmp_path):
    folder = checkpoint(tmp_path / "sae", kind, layer=5, submodule_name="resid_post_layer_5")
    dictionary, expected = Dictionary.load(folder), recorded("dictionary_learning", kind)
    assert type(dictionary) is CLASSES[kind]
    assert dictionary.site == "resid_post5"
    assert dictionary.metadata["dictionary_learning"]["trainer"]["dict_class"] == kind
    assert_same(dictionary.encode(INPUTS["x"]).detach(), expected["features"], exact=True)
    assert_same(dictionary.reconstruct(INPUTS["x"]).detach(), expected["output"], exact=True)


@pytest.mark.parametrize("kind", CLASSES)
def test_dictionary_learning_without_its_description(kind, tmp_path):
    file = checkpoint(tmp_path / "sae", kind) / "ae.pt"
    if kind in ("AutoEncoderTopK", "BatchTopKSAE"):
        with pytest.raises(ValueError, match=r"config.json beside .* fit more than one class"):
            dictionary_learning.load(file)
    else:
        expected = recorded("dictionary_learning", kind)
        assert_same(Dictionary.load(file).encode(INPUTS["x"]).detach(), expected["features"], exact=True)


# ------------------------------------------------------------- with sae-lens itself, in an environment of its own

OURS = {
    "relu": {},
    "relu_centred": {"subtract_b_dec": True},
    "topk": {"k": 3},
    "topk_rescaled": {"k": 3, "rescale": True},
    "batchtopk": {"k": 2.5},
    "matryoshka": {"k": 2, "prefixes": (2, 5, 10)},
    "gated": {},
    "jumprelu": {"threshold": 0.3},
    "transcoder": {"d_out": 4},
    "transcoder_jumprelu": {"d_out": 4, "threshold": 0.3},
    "skip_transcoder": {"d_out": 4},
    "skip_transcoder_jumprelu": {"d_out": 4, "threshold": 0.3},
    "tied": {},
}


def trained(name):
    """A dictionary with every weight away from its start."""
    architecture = name if name in ("skip_transcoder", "transcoder") else name.removesuffix("_jumprelu").split("_c")[0]
    architecture = architecture.removesuffix("_rescaled")
    made = create(architecture, d_in=6, n_features=10, seed=3, site="mlp_out1", **OURS[name])
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for key, value in (*made.named_parameters(), *made.named_buffers()):
            if (name, key) != ("tied", "b_dec"):
                value.add_(torch.rand(value.shape, generator=generator) / 4)
    return made


@needs_peer
@pytest.mark.slow
def test_sae_lens_reads_what_we_write(tmp_path):
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(5))
    save_file({"x": x}, tmp_path / "x.safetensors")
    for name in OURS:
        trained(name).save(tmp_path / name)
    layers = [create("transcoder", d_in=6, n_features=10, threshold=threshold) for threshold in (None, 0.2)]
    layers.append(create("skip_transcoder", d_in=6, n_features=10))
    for layer, made in enumerate(layers):
        circuit_tracer.save(made, tmp_path / f"layer_{layer}.safetensors")
    subprocess.run([PEER, GOLDEN / "make.py", "--read", tmp_path], check=True, timeout=600)
    answers = load_file(tmp_path / "answers.safetensors")
    assert len(answers) == 2 * len(OURS) + 6
    for name in OURS:
        exact = name != "tied"  # its encoder is a transposed view here: another order of summation
        with torch.no_grad():
            assert_same(trained(name).encode(x), answers[f"{name}/features"], exact=exact)
            assert_same(trained(name).reconstruct(x), answers[f"{name}/output"], exact=exact)
    for layer, made in enumerate(layers):
        with torch.no_grad():
            torch.testing.assert_close(made.encode(x), answers[f"layer_{layer}/features"], rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(made.reconstruct(x), answers[f"layer_{layer}/output"], rtol=1e-6, atol=1e-6)


@needs_peer
@pytest.mark.slow
def test_the_recorded_folders_are_what_the_script_writes(tmp_path):
    subprocess.run([PEER, GOLDEN / "make.py", tmp_path], check=True, timeout=600)
    for old in sorted(path for path in GOLDEN.rglob("*") if path.is_file() and path.name != "make.py"):
        new = tmp_path / old.relative_to(GOLDEN)
        assert new.read_bytes() == old.read_bytes(), old.name
