"""What decides the weights of an interchange-trained model, and its shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from graphs.components import Architecture
from patching.compiled.language import Program
from patching.compiled.wiring import lay_out

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, apart from library versions.

    Attributes:
        seed: Of weights, interventions and batches.
        steps: Updates.
        batch: Interventions per update; each is three prompts and a source.
        interventions: How many are drawn in advance, of which batches are made.
        learning_rate: At its peak; 100 steps of linear warm-up, then a cosine down to a twentieth.
        weight_decay: AdamW's, on matrices.
        initial_std: Of the initial weights.
        layers: Blocks at least; as many as the program needs if that is more.
        extra_heads: Heads in each layer beyond the most that the program needs in one.
        d_head: Width of a head; the residual stream is that times the heads.
        d_mlp: Hidden width of each MLP.
        threads: PyTorch's, since sums depend on how they are split.
    """

    seed: int = 0
    steps: int = 3000
    batch: int = 64
    interventions: int = 12_000
    learning_rate: float = 3e-3
    weight_decay: float = 0.03
    initial_std: float = 0.06
    layers: int = 2
    extra_heads: int = 3
    d_head: int = 8
    d_mlp: int = 64
    threads: int = 1


RECIPES: Final[Mapping[str, Recipe]] = {}
"""Programs that need another recipe than the default."""


def architecture(program: Program, recipe: Recipe) -> Architecture:
    """The shape of a program's model: the program's nodes and more.

    Example:
        >>> from patching.compiled import PROGRAMS
        >>> architecture(PROGRAMS["previous_token"], Recipe())
        Architecture(n_layers=2, n_heads=4, n_kv_heads=4, has_mlp=True, parallel=False)
    """
    needed = lay_out(program).architecture
    return Architecture(max(recipe.layers, needed.n_layers), needed.n_heads + recipe.extra_heads)


def build_model(program: Program, recipe: Recipe) -> GPT2LMHeadModel:
    """Make a GPT-2 with random weights, drawn from the recipe's seed.

    Returns:
        A float32 model on the CPU, without dropout.
    """
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = architecture(program, recipe)
    config = GPT2Config(
        vocab_size=len(program.vocabulary),
        n_positions=program.context,
        n_embd=shape.n_heads * recipe.d_head,
        n_layer=shape.n_layers,
        n_head=shape.n_heads,
        n_inner=recipe.d_mlp,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=recipe.initial_std,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return GPT2LMHeadModel(config)
