"""Tiny random models of every supported family, made offline, and tasks of random tokens for them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import transformers

from patching.lens import LensModel
from patching.task import Task

VOCAB, LENGTH = 50, 7
SHAPE: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 32, "vocab_size": VOCAB, "intermediate_size": 48}
HEADS: dict[str, Any] = dict(num_attention_heads=4, num_key_value_heads=2, **SHAPE)

CONFIGS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: transformers.GPT2Config(n_layer=2, n_head=4, n_embd=32, vocab_size=VOCAB, n_positions=32),
    "gpt_neo": lambda: transformers.GPTNeoConfig(
        num_layers=2, num_heads=4, hidden_size=32, vocab_size=VOCAB, max_position_embeddings=32,
        attention_types=[[["global", "local"], 1]], window_size=4, intermediate_size=48,
    ),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(num_attention_heads=4, **SHAPE),
    "gpt_neox_sequential": lambda: transformers.GPTNeoXConfig(
        num_attention_heads=4, use_parallel_residual=False, **SHAPE
    ),
    "llama": lambda: transformers.LlamaConfig(**HEADS),
    "mistral": lambda: transformers.MistralConfig(sliding_window=4, **HEADS),
    "qwen2": lambda: transformers.Qwen2Config(**HEADS),
    "qwen3": lambda: transformers.Qwen3Config(head_dim=16, **HEADS),
    "gemma2": lambda: transformers.Gemma2Config(head_dim=16, sliding_window=4, **HEADS),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        head_dim=16, sliding_window=4, layer_types=["sliding_attention", "full_attention"], **HEADS
    ),
}  # fmt: skip

FAMILIES = (*CONFIGS, "attention_only", "native_llama")


def hugging_face(family: str, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
    """A random model with weights large enough that attention is not uniform and biases are not zero."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[family]()).eval().to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(6.0 if "wte" not in name and "embed" not in name else 20.0)
            else:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(0.2 * noise.to(dtype))  # the same weights, rounded, whatever the dtype
    return model


def native(*, dtype: torch.dtype = torch.float64, seed: int = 0, **changes: Any) -> Any:
    """A random TransformerLens-native model; attention-only unless changed."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    config = {
        "d_model": 32, "d_head": 8, "n_layers": 2, "n_ctx": 32, "n_heads": 4, "d_vocab": VOCAB, "attn_only": True,
        "seed": seed, "act_fn": "gelu", "normalization_type": "LN",
    }  # fmt: skip
    bridge = TransformerBridge.boot_native(TransformerBridgeConfig(**(config | changes)), dtype=dtype).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in bridge.original_model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype)
            parameter.add_((0.25 if parameter.ndim > 1 else 0.1) * noise)
    return bridge


@functools.lru_cache(maxsize=64)
def model(family: str, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> LensModel:
    """A tiny model of a family, shared between tests: it is never changed."""
    if family == "attention_only":
        return LensModel.wrap(native(dtype=dtype, seed=seed), name=family)
    if family == "native_llama":
        changes = {
            "attn_only": False, "gated_mlp": True, "normalization_type": "RMS", "positional_embedding_type": "rotary",
            "n_key_value_heads": 2, "d_mlp": 48, "act_fn": "silu",
        }  # fmt: skip
        return LensModel.wrap(native(dtype=dtype, seed=seed, **changes), name=family)
    return LensModel.wrap(hugging_face(family, dtype=dtype, seed=seed), name=family)


def task(*, n: int = 3, length: int = LENGTH, prefix: int = 0, seed: int = 0, metric: str = "logit_difference") -> Task:
    """Random prompts of different lengths whose first ``prefix`` tokens agree with their corruption."""
    generator = torch.Generator().manual_seed(seed)
    clean, corrupt = torch.randint(0, VOCAB, (2, n, length), generator=generator)
    corrupt[:, :prefix] = clean[:, :prefix]
    answers = torch.randint(0, VOCAB // 2, (n, 1), generator=generator)
    wrong = torch.randint(VOCAB // 2, VOCAB, (n, 2), generator=generator)
    positions = torch.tensor([length - 1 - (row % 2) for row in range(n)])
    return Task("random", clean, corrupt, answers, wrong, positions, metric=metric)
