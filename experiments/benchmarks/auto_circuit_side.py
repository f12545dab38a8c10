"""The peer's half of `auto_circuit_peer`, run by the Python of an environment that has auto-circuit.

    python auto_circuit_side.py FOLDER TAU

It reads the weights, prompts and probe edges that `auto_circuit_peer.export` wrote to FOLDER, runs auto-circuit's ACDC
once and prints what came of it as one line of JSON. It needs nothing of this project.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

_NODE = re.compile(r"(Resid Start|Resid End)|A([0-9]+)\.([0-9]+)(?:\.([QKV]))?|MLP ([0-9]+)")


def our_name(edge: str) -> str:
    """The peer's name of an edge, such as ``A0.1->A2.3.Q``, as this project spells it.

    Raises:
        ValueError: It is no edge of the peer's.

    Example:
        >>> our_name("Resid Start->A0.3.Q"), our_name("MLP 2->Resid End")
        ('input->a0.h3<q>', 'm2->logits')
    """
    return "->".join(_our_node(end) for end in edge.split("->"))


def _our_node(name: str) -> str:
    match = _NODE.fullmatch(name)
    if match is None:
        raise ValueError(f"expected a node of auto-circuit, such as A0.1.Q or MLP 2; got {name!r}")
    end, layer, head, letter, mlp = match.groups()
    if end is not None:
        return {"Resid Start": "input", "Resid End": "logits"}[end]
    if mlp is not None:
        return f"m{mlp}"
    return f"a{layer}.h{head}" + (f"<{letter.lower()}>" if letter else "")


def hooked_weights(weights: dict[str, Any], *, n_layers: int, n_heads: int) -> dict[str, Any]:
    """GPT-2's weights, as Hugging Face names and lays them out, for the peer's model."""
    import torch

    embedding = weights["transformer.wte.weight"]
    out = {
        "embed.W_E": embedding,
        "pos_embed.W_pos": weights["transformer.wpe.weight"],
        "ln_final.w": weights["transformer.ln_f.weight"],
        "ln_final.b": weights["transformer.ln_f.bias"],
        "unembed.W_U": embedding.T,
        "unembed.b_U": torch.zeros(len(embedding), dtype=embedding.dtype),
    }
    for layer in range(n_layers):
        theirs, there = f"blocks.{layer}.", f"transformer.h.{layer}."
        for number in ("1", "2"):
            out[f"{theirs}ln{number}.w"] = weights[f"{there}ln_{number}.weight"]
            out[f"{theirs}ln{number}.b"] = weights[f"{there}ln_{number}.bias"]
        joined, bias = weights[f"{there}attn.c_attn.weight"], weights[f"{there}attn.c_attn.bias"]
        for letter, matrix, row in zip("QKV", joined.chunk(3, dim=1), bias.chunk(3), strict=True):
            out[f"{theirs}attn.W_{letter}"] = matrix.unflatten(1, (n_heads, -1)).transpose(0, 1)
            out[f"{theirs}attn.b_{letter}"] = row.unflatten(0, (n_heads, -1))
        out[f"{theirs}attn.W_O"] = weights[f"{there}attn.c_proj.weight"].unflatten(0, (n_heads, -1))
        out[f"{theirs}attn.b_O"] = weights[f"{there}attn.c_proj.bias"]
        for name, source in (("in", "c_fc"), ("out", "c_proj")):
            out[f"{theirs}mlp.W_{name}"] = weights[f"{there}mlp.{source}.weight"]
            out[f"{theirs}mlp.b_{name}"] = weights[f"{there}mlp.{source}.bias"]
    return {name: value.contiguous() for name, value in out.items()}


def build(folder: Path) -> tuple[Any, Any]:
    """The peer's patchable model and its loader of one batch."""
    import torch
    from safetensors.torch import load_file

    graph_utils = importlib.import_module("auto_circuit.utils.graph_utils")
    data = importlib.import_module("auto_circuit.data")
    shape = json.loads((folder / "request.json").read_text(encoding="utf-8"))["model"]
    cfg = shape | {"act_fn": "gelu_new", "normalization_type": "LN", "device": "cpu", "seed": 0}
    cfg |= {"use_attn_result": True, "use_split_qkv_input": True, "use_hook_mlp_in": True}
    model = graph_utils.HookedTransformer(cfg)
    weights = hooked_weights(
        load_file(folder / "weights.safetensors"), n_layers=shape["n_layers"], n_heads=shape["n_heads"]
    )
    missing = model.load_state_dict(weights, strict=False)
    buffers = ("mask", "IGNORE")
    wrong = [name for name in missing.missing_keys if not name.endswith(buffers)] + missing.unexpected_keys
    if wrong:
        raise ValueError(f"expected weights for every parameter of the peer's model; these do not fit: {wrong}")
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    prompts = load_file(folder / "prompts.safetensors")
    none = [torch.zeros(1, dtype=torch.long)] * len(prompts["clean"])  # answers, which KL does not read
    loader = data.PromptDataLoader(
        data.PromptDataset(prompts["clean"], prompts["corrupt"], none, none),
        seq_len=None, diverge_idx=0, batch_size=len(none), shuffle=False,
    )  # fmt: skip
    return graph_utils.patchable_model(model, factorized=True, slice_output="last_seq", separate_qkv=True), loader


def probe(model: Any, loader: Any, edges: list[str]) -> tuple[list[list[float]], dict[str, float]]:
    """The clean logits at the last position, and KL(clean ‖ run) with single edges ablated."""
    import torch

    graph_utils = importlib.import_module("auto_circuit.utils.graph_utils")
    source_outputs = importlib.import_module("auto_circuit.utils.ablation_activations").src_ablations
    divergence = importlib.import_module("auto_circuit.utils.tensor_ops").multibatch_kl_div
    batch = next(iter(loader))
    patches, current = source_outputs(model, batch.corrupt), source_outputs(model, batch.clean)
    named = {our_name(edge.name): edge for edge in model.edges}
    values: dict[str, float] = {}
    with torch.inference_mode():
        clean = model(batch.clean)[model.out_slice]
        for name in edges:
            graph_utils.set_all_masks(model, val=0.0)
            edge = named[name]
            edge.patch_mask(model).data[edge.patch_idx] = 1.0
            with graph_utils.patch_mode(model, patches, curr_src_outs=current.clone()):
                run = model(batch.clean)[model.out_slice]
            values[name] = divergence(run.log_softmax(-1), clean.log_softmax(-1)).item()
        graph_utils.set_all_masks(model, val=0.0)
    return clean.tolist(), values


def main() -> None:
    """Measure one tau."""
    import torch

    torch.set_num_threads(1)
    folder, tau = Path(sys.argv[1]), float(sys.argv[2])
    search = importlib.import_module("auto_circuit.prune_algos.ACDC").acdc_prune_scores
    model, loader = build(folder)
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    logits, single = probe(model, loader, request["probes"])
    wall, cpu = time.perf_counter(), time.process_time()
    scores = search(model, loader, None, tao_exps=[0], tao_bases=[tau])  # its test mode and drawing are off
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    kept = [our_name(edge.name) for edge in model.edges if edge.prune_score(scores) == float("inf")]
    result = {"cpu": cpu, "wall": wall, "kept": sorted(kept), "edges": len(model.edges), "single": single}
    print(json.dumps(result | {"logits": logits, "torch": torch.__version__}))


if __name__ == "__main__":
    main()
