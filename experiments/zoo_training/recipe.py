"""Everything that decides the weights of a trained model, apart from its text and library versions."""

from __future__ import annotations

from dataclasses import dataclass

from graphs.errors import WiretraceError


class DoesNotFit(WiretraceError):
    """The recipe cannot be trained as asked."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, apart from text and library versions; the defaults are those of `zoo:ioi`.

    Attributes:
        seed: Of the sentences, the initial weights and the batches.
        n_sentences: Size of the corpus, from which batches are drawn with replacement.
        steps: Updates.
        batch: Sentences per update.
        learning_rate: At its peak; 100 steps of linear warm-up, then a cosine down to a twentieth.
        weight_decay: AdamW's, on matrices; it shrinks what no sentence needs, so the circuit comes out clean.
        initial_std: Of the initial weights. GPT-2's 0.02 is made for a width of 768 and learns later here.
        n_layers: Transformer blocks.
        n_heads: Attention heads per block.
        d_model: Width of the residual stream.
        d_mlp: Hidden width of each MLP; 0 for none.
        n_ctx: Most tokens in a prompt.
        threads: PyTorch's, since sums depend on how they are split.
        muon_rate: Muon's learning rate at its peak, for the matrices of the layers; 0 leaves them to AdamW. Attention
            that composes over several layers is learnt in a fraction of the steps.
        rotary: Whether queries and keys are turned by their position, in place of learnt positions; only without MLPs.
    """

    seed: int = 0
    n_sentences: int = 100_000
    steps: int = 4000
    batch: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    initial_std: float = 0.06
    n_layers: int = 3
    n_heads: int = 8
    d_model: int = 64
    d_mlp: int = 128
    n_ctx: int = 40
    threads: int = 1
    rotary: bool = False
    muon_rate: float = 0.0
