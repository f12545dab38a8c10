"""Random models to train: a GPT-2, or the same without MLPs; and how each is saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.zoo_training.recipe import Recipe

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor, nn
    from transformers import GPT2LMHeadModel


def build(recipe: Recipe, *, d_vocab: int) -> nn.Module:
    """Make the random model of a recipe: a GPT-2, or one of TransformerLens without MLPs where `d_mlp` is 0."""
    return gpt2(recipe, d_vocab=d_vocab) if recipe.d_mlp else attention_only(recipe, d_vocab=d_vocab)


def gpt2(recipe: Recipe, *, d_vocab: int) -> GPT2LMHeadModel:
    """Make a GPT-2 with random weights, drawn from the recipe's seed.

    Args:
        recipe: The shape and the seed.
        d_vocab: Size of the vocabulary.

    Returns:
        A float32 model on the CPU, without dropout, its unembedding tied to its embedding.
    """
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=d_vocab,
        n_positions=recipe.n_ctx,
        n_embd=recipe.d_model,
        n_layer=recipe.n_layers,
        n_head=recipe.n_heads,
        n_inner=recipe.d_mlp,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=recipe.initial_std,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return GPT2LMHeadModel(config)


def attention_only(recipe: Recipe, *, d_vocab: int) -> nn.Module:
    """Make a transformer of attention layers alone with random weights, drawn from the recipe's seed.

    Args:
        recipe: The shape and the seed; `d_mlp` is not used.
        d_vocab: Size of the vocabulary.

    Returns:
        A float32 bridge on the CPU, with LayerNorm and learnt or rotary positions, its unembedding not tied.
    """
    from patching.lens import native_bridge

    return native_bridge(
        d_model=recipe.d_model,
        d_head=recipe.d_model // recipe.n_heads,
        n_layers=recipe.n_layers,
        n_heads=recipe.n_heads,
        n_ctx=recipe.n_ctx,
        d_vocab=d_vocab,
        attn_only=True,
        act_fn="gelu_new",
        normalization_type="LN",
        positional_embedding_type="rotary" if recipe.rotary else "standard",
        initializer_range=recipe.initial_std,
        seed=recipe.seed,
    )


def logits(model: Any, tokens: Int[Tensor, "row pos"]) -> Float[Tensor, "row pos d_vocab"]:
    """The logits of either kind of model, nothing masked but the future."""
    import torch

    network = getattr(model, "original_model", model)
    given = network(tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
    return given if isinstance(given, torch.Tensor) else given.logits


def parameters(model: Any) -> list[nn.Parameter]:
    """Every weight once, in a fixed order."""
    return list(getattr(model, "original_model", model).parameters())


def layer_matrices(model: Any) -> list[nn.Parameter]:
    """The matrices of the layers: all but embeddings, unembedding and vectors."""
    named = getattr(model, "original_model", model).named_parameters()
    return [weight for name, weight in named if weight.dim() == 2 and name.startswith(("layers.", "transformer.h."))]


def save(model: Any, folder: Path) -> None:
    """Write configuration and weights, in Hugging Face format or that of `patching.native_folder`."""
    from patching import native_folder

    if hasattr(model, "original_model"):
        native_folder.save(model, folder)
    else:
        model.save_pretrained(folder)


def kind(recipe: Recipe) -> str:
    """What a model of a recipe is, for its card.

    Example:
        >>> kind(Recipe(d_mlp=0))
        'Attention-only transformer'
    """
    return "GPT-2" if recipe.d_mlp else "Attention-only transformer"
