"""Recorded behaviour of sae-lens, circuit-tracer and dictionary_learning on tiny dictionaries.

Not a test and not needed by one: the folders beside this file are what it wrote. It runs in an environment of its own,
since none of the three installs next to this library's transformer_lens:

    python3 -m venv peers
    peers/bin/pip install torch==2.13.0
    peers/bin/pip install sae-lens==6.54.0
    peers/bin/pip install --no-deps dictionary-learning==0.1.0 circuit-tracer==0.5.0
    peers/bin/python tests/circuits/features/golden/make.py

    make.py FOLDER              write everything into FOLDER (this one, if it is not given)
    make.py --read FOLDER       let sae-lens run every dictionary in FOLDER, and circuit-tracer every layer, on
                                `x.safetensors` there; the answers go to `answers.safetensors`

With WIRETRACE_SAE_LENS_PYTHON=peers/bin/python the tests do both.

Weights are multiples of 1/8 and inputs of 1/4, so small that every product and every sum is exact in float32: the
answers are the same on every machine, whatever the order of summation. Where a root or an exponential is in between,
the weights are random, the name ends in ``_random``, and equal bits can be asked for only where a matrix product of
random numbers (``canary``) gives the recorded bits.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from unittest.mock import MagicMock

import torch
from safetensors.torch import load_file, save_file

D_IN, D_OUT, FEATURES, K = 6, 4, 10, 5
HERE = Path(__file__).parent


class Draws:
    """Numbers from one seeded stream, exact or random."""

    def __init__(self, seed: int, exact: bool = True) -> None:
        self.generator, self.exact = torch.Generator().manual_seed(seed), exact

    def __call__(self, *shape: int) -> torch.Tensor:
        if self.exact:
            return torch.randint(-8, 9, shape, generator=self.generator) / 8
        return torch.randn(shape, generator=self.generator) / 2

    def axes(self) -> torch.Tensor:
        """Decoder directions along one coordinate each, of length 1/2, 1 or 2: their lengths are exact."""
        rows = torch.zeros(FEATURES, D_IN)
        lengths = torch.tensor([0.5, 1.0, 2.0, -1.0])
        for row in range(FEATURES):
            rows[row, row % D_IN] = lengths[row % 4]
        return rows


def inputs(exact: bool) -> torch.Tensor:
    """Seven rows, the first of them zeros."""
    generator = torch.Generator().manual_seed(1)
    quarters = torch.randint(-8, 9, (7, D_IN), generator=generator) / 4
    x = quarters if exact else torch.randn(7, D_IN, generator=generator)
    x[0] = 0
    return x


def weights(draws: Draws, d_out: int = D_IN) -> dict[str, torch.Tensor]:
    return {
        "W_enc": draws(D_IN, FEATURES),
        "b_enc": draws(FEATURES),
        "W_dec": draws(FEATURES, d_out),
        "b_dec": draws(d_out),
    }


def with_threshold(tensors: dict[str, torch.Tensor], draws: Draws, x: torch.Tensor, centred: bool) -> dict:
    """Thresholds of which one is exactly a pre-activation that occurs: it must be off there."""
    z = (x - tensors["b_dec"] if centred else x) @ tensors["W_enc"] + tensors["b_enc"]
    threshold = draws(FEATURES).abs()
    threshold[:5] = z.clamp(min=0).max(dim=0).values[:5]
    threshold[2:5] /= 2
    return {**tensors, "threshold": threshold}


# ------------------------------------------------------------------------------------------------------ sae-lens


def sae_lens_cases(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Write every layout and record what sae-lens answers."""
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.gated_sae import GatedTrainingSAE, GatedTrainingSAEConfig
    from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
    from sae_lens.saes.matryoshka_batchtopk_sae import (
        MatryoshkaBatchTopKTrainingSAE,
        MatryoshkaBatchTopKTrainingSAEConfig,
    )
    from sae_lens.saes.sae import SAE, SAEMetadata
    from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.saes.transcoder import (
        JumpReLUSkipTranscoder,
        JumpReLUSkipTranscoderConfig,
        JumpReLUTranscoder,
        JumpReLUTranscoderConfig,
        SkipTranscoder,
        SkipTranscoderConfig,
        Transcoder,
        TranscoderConfig,
    )

    x, noise, answers = inputs(True), inputs(False), {}

    def filled(sae, tensors):
        with torch.no_grad():
            for name, value in tensors.items():
                getattr(sae, name).copy_(value)
        return sae

    def config(kind, site="hook_mlp_out", **options):
        metadata = SAEMetadata(model_name="toy", hook_name=f"blocks.1.{site}", prepend_bos=True)
        return kind(**{"d_in": D_IN, "d_sae": FEATURES, "metadata": metadata, **options})

    def answer(name, sae=None):
        given = (noise if name.endswith("_random") else x).to(torch.float32)
        sae = sae or SAE.load_from_disk(folder / name)
        if sae.cfg.reshape_activations == "hook_z":
            given = given.reshape(7, 2, 3)
        with torch.no_grad():
            features = sae.encode(given)
            whole = sae(given)
        answers[name] = {"features": features, "output": whole.reshape(7, -1)}

    draws = Draws(0)
    four = weights(draws)
    standard = filled(StandardTrainingSAE(config(StandardTrainingSAEConfig)), four)
    standard.save_inference_model(folder / "standard")
    loose = StandardTrainingSAE(config(StandardTrainingSAEConfig, apply_b_dec_to_input=False))
    filled(loose, weights(Draws(1, exact=False))).save_inference_model(folder / "standard_random")
    short = StandardTrainingSAE(config(StandardTrainingSAEConfig, dtype="bfloat16"))
    filled(short, four).save_inference_model(folder / "standard_bfloat16")

    topk = TopKTrainingSAE(config(TopKTrainingSAEConfig, k=K, rescale_acts_by_decoder_norm=False))
    filled(topk, weights(draws)).save_inference_model(folder / "topk")
    rescaled = TopKSAE(config(TopKSAEConfig, k=K, rescale_acts_by_decoder_norm=True))
    filled(rescaled, weights(Draws(2, False))).save_model(folder / "topk_rescaled_random")

    batch = BatchTopKTrainingSAE(config(BatchTopKTrainingSAEConfig, k=2.5, rescale_acts_by_decoder_norm=False))
    tensors = weights(draws)
    z = (x - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]
    filled(batch, {**tensors, "topk_threshold": z[3].max().double()}).save_inference_model(folder / "batchtopk")
    batch.cfg.rescale_acts_by_decoder_norm = True
    axes = {**weights(draws), "W_dec": draws.axes(), "topk_threshold": torch.tensor(0.75).double()}
    filled(batch, axes).save_model(folder / "batchtopk_checkpoint")
    batch.save_inference_model(folder / "scratch")
    answer("batchtopk_checkpoint", SAE.load_from_disk(folder / "scratch"))
    matryoshka = MatryoshkaBatchTopKTrainingSAE(
        config(MatryoshkaBatchTopKTrainingSAEConfig, k=2, matryoshka_widths=[2, 5, FEATURES])
    )
    filled(matryoshka, axes).save_inference_model(folder / "matryoshka")

    jumps = with_threshold(weights(draws), draws, x, centred=False)
    jump = JumpReLUTrainingSAE(config(JumpReLUTrainingSAEConfig, "hook_resid_post", apply_b_dec_to_input=False))
    filled(jump, jumps).save_inference_model(folder / "jumprelu")
    gates = {name: value for name, value in weights(draws).items() if name != "b_enc"}
    gates |= {"b_gate": draws(FEATURES), "b_mag": draws(FEATURES)}
    gated = GatedTrainingSAE(config(GatedTrainingSAEConfig, "hook_attn_out"))
    filled(gated, gates).save_inference_model(folder / "gated")
    loose = Draws(3, False)
    gates = {name: value for name, value in weights(loose).items() if name != "b_enc"}
    gates |= {name: loose(FEATURES) for name in ("b_gate", "b_mag", "r_mag")}
    filled(gated, gates).save_inference_model(folder / "gated_random")

    between = {"d_out": D_OUT, "apply_b_dec_to_input": False}
    between["metadata"] = SAEMetadata(hook_name="blocks.1.ln2.hook_normalized", hook_name_out="blocks.1.hook_mlp_out")
    pair = with_threshold(weights(draws, D_OUT), draws, x, centred=False)
    plain, skip = {name: value for name, value in pair.items() if name != "threshold"}, draws(D_OUT, D_IN)
    for name, kind, kind_config, tensors in (
        ("transcoder", Transcoder, TranscoderConfig, plain),
        ("skip_transcoder", SkipTranscoder, SkipTranscoderConfig, {**plain, "W_skip": skip}),
        ("jumprelu_transcoder", JumpReLUTranscoder, JumpReLUTranscoderConfig, pair),
        ("jumprelu_skip_transcoder", JumpReLUSkipTranscoder, JumpReLUSkipTranscoderConfig, {**pair, "W_skip": skip}),
    ):
        filled(kind(config(kind_config, **between)), tensors).save_model(folder / name)

    heads = config(StandardTrainingSAEConfig, "attn.hook_z", reshape_activations="hook_z")
    filled(StandardTrainingSAE(heads), four).save_inference_model(folder / "heads")
    scaled = config(StandardTrainingSAEConfig, normalize_activations="expected_average_only_in")
    filled(StandardTrainingSAE(scaled), four).save_inference_model(folder / "scaled")
    (folder / "scaled" / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 0.5}) + "\n")
    folded = SAE.load_from_disk(folder / "scaled")
    folded.fold_activation_norm_scaling_factor(0.5)
    answer("scaled", folded)

    legacy = {"d_in": D_IN, "d_sae": FEATURES, "dtype": "torch.float32", "model_name": "toy", "context_size": 8}
    old = {**legacy, "hook_point": "blocks.2.hook_resid_pre", "activation_fn_str": "relu", "sae_lens_version": "3.0.0"}
    ones = {**four, "scaling_factor": torch.ones(FEATURES)}
    write(folder / "legacy_standard", {**old, "normalize_activations": "none"}, ones)
    old = {**legacy, "hook_name": "blocks.2.attn.hook_z", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}
    write(folder / "legacy_topk_heads", {**old, "architecture": "standard", "normalize_activations": False}, four)
    logs = {**weights(Draws(4, False)), "log_threshold": Draws(5, False)(FEATURES) - 1}
    old = {**legacy, "hook_name": "blocks.2.hook_resid_post", "architecture": "jumprelu", "apply_b_dec_to_input": False}
    write(folder / "legacy_jumprelu_random", old, logs)
    exponential = {**logs, "threshold": logs["log_threshold"].exp()}
    write(folder / "scratch", old, {name: value for name, value in exponential.items() if name != "log_threshold"})
    answer("legacy_jumprelu_random", SAE.load_from_disk(folder / "scratch"))

    for name in ("cfg.json", "sae_weights.safetensors"):
        (folder / "scratch" / name).unlink()
    (folder / "scratch").rmdir()
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name not in answers:
            answer(path.name)
        described = json.loads((path / "cfg.json").read_text())
        (path / "cfg.json").write_text(json.dumps(described, sort_keys=True) + "\n")  # sae-lens's order is random
    return answers


def write(folder: Path, config: dict, tensors: dict[str, torch.Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(config) + "\n")
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "sae_weights.safetensors")


# ------------------------------------------------------------------------------ dictionary_learning, circuit-tracer


def dictionary_learning_cases() -> dict[str, dict[str, torch.Tensor]]:
    """States of every class, and what they answer. The tests pickle the states themselves."""
    from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    x, answers = inputs(True), {}
    for seed, made in enumerate(
        (
            AutoEncoder(D_IN, FEATURES),
            AutoEncoderNew(D_IN, FEATURES),
            AutoEncoderTopK(D_IN, FEATURES, K),
            BatchTopKSAE(D_IN, FEATURES, K),
            MatryoshkaBatchTopKSAE(D_IN, FEATURES, K, [2, 3, 5]),
            GatedAutoEncoder(D_IN, FEATURES),
            JumpReluAutoEncoder(D_IN, FEATURES),
        )
    ):
        draws, state = Draws(10 + seed), made.state_dict()
        for name, value in state.items():
            if name == "r_mag":
                value.zero_()
            elif name in ("decoder.weight", "W_dec"):
                value.copy_(draws.axes().T if name == "decoder.weight" else draws.axes())
            elif name == "threshold":
                value.copy_(draws(*value.shape).abs() + 0.25)
            elif value.is_floating_point():
                value.copy_(draws(*value.shape))
        made.load_state_dict(state)
        with torch.no_grad():
            features = made.encode(x)
            answers[type(made).__name__] = {
                **{f"state.{name}": value.clone().contiguous() for name, value in state.items()},
                "features": features,
                "output": made.decode(features),
            }
    return answers


def circuit_tracer_cases(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Four layers: ReLU, JumpReLU with a skip, top-k, and the tensors of Gemma Scope 2."""
    from circuit_tracer.transcoder.activation_functions import JumpReLU, TopK
    from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, load_gemma_scope_2_transcoder

    folder.mkdir(parents=True, exist_ok=True)
    x, draws, answers = inputs(True), Draws(20), {}
    activations = (torch.nn.functional.relu, JumpReLU(draws(FEATURES).abs()), TopK(K))
    for layer, activation in enumerate(activations):
        options = {"skip_connection": layer == 1, "device": torch.device("cpu"), "dtype": torch.float32}
        made = SingleLayerTranscoder(D_IN, FEATURES, activation, layer, **options)
        with torch.no_grad():
            for name, value in made.named_parameters():
                value.copy_(draws(*value.shape).abs() if "threshold" in name else draws(*value.shape))
        path = folder / f"layer_{layer}.safetensors"
        made.to_safetensors(str(path))
        if layer == 2:  # version 0.5.0 drops k; later ones write it so
            save_file({**load_file(path), "k": torch.tensor(K)}, path)
        with torch.no_grad():
            answers[f"layer_{layer}"] = {"features": made.encode(x), "output": made(x)}
    gemma = {"w_enc": draws(D_IN, FEATURES), "w_dec": draws(FEATURES, D_IN), "b_enc": draws(FEATURES)}
    gemma |= {"b_dec": draws(D_IN), "threshold": draws(FEATURES).abs(), "affine_skip_connection": draws(D_IN, D_IN)}
    save_file(gemma, folder / "layer_3.safetensors")
    made = load_gemma_scope_2_transcoder(str(folder / "layer_3.safetensors"), 3, device=torch.device("cpu"))
    with torch.no_grad():
        answers["layer_3"] = {"features": made.encode(x), "output": made(x)}
    lines = "model_name: toy\nmodel_kind: transcoder_set\nfeature_input_hook: mlp.hook_in  # what they read\n"
    (folder / "config.yaml").write_text(f'{lines}feature_output_hook: "hook_mlp_out"\n')
    return answers


# ---------------------------------------------------------------------------------------------------- the command


def make(folder: Path) -> None:
    """Everything, and the answers in one file for each library."""
    folder.mkdir(parents=True, exist_ok=True)
    answers = {
        "sae_lens": sae_lens_cases(folder / "sae_lens"),
        "circuit_tracer": circuit_tracer_cases(folder / "circuit_tracer"),
        "dictionary_learning": dictionary_learning_cases(),
    }
    for library, cases in answers.items():
        flat = {f"{case}/{name}": value.contiguous() for case, named in cases.items() for name, value in named.items()}
        save_file(flat, folder / f"{library}.safetensors")
    draws = Draws(30, exact=False)
    left, right = draws(7, D_IN), draws(D_IN, FEATURES)
    canary = {"left": left, "right": right, "product": left @ right}
    canary |= {"exponential": right.exp(), "length": right.norm(dim=0)}
    save_file({"x": inputs(True), "x_random": inputs(False), **canary}, folder / "x.safetensors")


def read(folder: Path) -> None:
    """What sae-lens answers for every dictionary in a folder, and circuit-tracer for every layer."""
    from circuit_tracer.transcoder.single_layer_transcoder import load_relu_transcoder
    from sae_lens import SAE

    x, answers = load_file(folder / "x.safetensors")["x"], {}
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            sae = SAE.load_from_disk(path)
            with torch.no_grad():
                answers[f"{path.name}/features"] = sae.encode(x).contiguous()
                answers[f"{path.name}/output"] = sae(x).contiguous()
        elif path.name.startswith("layer_"):
            made = load_relu_transcoder(
                str(path), 0, device=torch.device("cpu"), lazy_encoder=False, lazy_decoder=False
            )
            with torch.no_grad():
                answers[f"{path.stem}/features"] = made.encode(x)
                answers[f"{path.stem}/output"] = made(x)
    save_file(answers, folder / "answers.safetensors")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    import sae_lens

    assert sae_lens.__version__ == "6.54.0", sae_lens.__version__
    sys.modules |= {name: MagicMock() for name in ("nnsight", "nnsight.intervention", "zstandard")}  # not run here
    if sys.argv[1:2] == ["--read"]:
        read(Path(sys.argv[2]))
    else:
        make(Path(sys.argv[1]) if sys.argv[1:] else HERE)
