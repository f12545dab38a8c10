"""The recipe of `zoo:small`, and its training from step to step with checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graphs.errors import WiretraceError, WriteFailed

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor
    from transformers import GPT2LMHeadModel

EVERY = 150
"""Steps between checkpoints."""

CHECKPOINT = "checkpoint.pt"
"""Its file."""


class OtherRecipe(WiretraceError):
    """A checkpoint is of another recipe, or no checkpoint."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, apart from library versions and the version of Python's library.

    Attributes:
        seed: Of the data and the initial weights.
        steps: Updates; no row of the data is seen twice.
        last_steps: Those of them, at the end, that are on the last part of the data.
        last_share: Of the weights after them in the mean with those before them, which is the model.
        batch: Rows per update.
        n_ctx: Tokens per row, and the longest prompt.
        muon_rate: Muon's learning rate at its peak.
        adam_rate: AdamW's. `rate` says how both change.
        weight_decay: Of the matrices.
        n_layers: Transformer blocks.
        n_heads: Attention heads per block.
        d_model: Width of the residual stream.
        d_mlp: Hidden width of each MLP.
        d_vocab: Size of the vocabulary.
        threads: PyTorch's, since sums depend on how they are split.
    """

    seed: int = 0
    steps: int = 4000
    last_steps: int = 400
    last_share: float = 0.75
    batch: int = 32
    n_ctx: int = 128
    muon_rate: float = 0.02
    adam_rate: float = 2e-3
    weight_decay: float = 0.05
    n_layers: int = 4
    n_heads: int = 8
    d_model: int = 256
    d_mlp: int = 1024
    d_vocab: int = 4096
    threads: int = 2


def build_model(recipe: Recipe) -> GPT2LMHeadModel:
    """Make the GPT-2 with random weights, drawn from the recipe's seed."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=recipe.d_vocab,
        n_positions=recipe.n_ctx,
        n_embd=recipe.d_model,
        n_layer=recipe.n_layers,
        n_head=recipe.n_heads,
        n_inner=recipe.d_mlp,
        activation_function="gelu_pytorch_tanh",  # the same function as GPT-2's gelu_new, in one kernel
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return GPT2LMHeadModel(config)


class Trainer:
    """A model with its two optimisers and the step that it has come to."""

    def __init__(self, recipe: Recipe) -> None:
        import torch

        self.recipe, self.step = recipe, 0
        self.losses: list[float] = []
        self.kept: dict[str, Tensor] = {}
        self.seconds = self.cpu_seconds = 0.0
        self.model = build_model(recipe)
        matrices, rest = [], []
        for name, weight in self.model.named_parameters():
            (matrices if weight.dim() == 2 and name.startswith("transformer.h.") else rest).append(weight)
        self.optimizers = (
            torch.optim.Muon(matrices, lr=recipe.muon_rate, weight_decay=recipe.weight_decay),
            torch.optim.AdamW(rest, lr=recipe.adam_rate, betas=(0.9, 0.98), weight_decay=0.0),
        )

    def update(self, rows: Int[Tensor, "row pos"]) -> float:
        """One update; returns the loss in nats per token."""
        import torch

        share = rate(self.step, self.recipe.steps - self.recipe.last_steps, self.recipe.last_steps)
        for optimizer, peak in zip(self.optimizers, (self.recipe.muon_rate, self.recipe.adam_rate), strict=True):
            optimizer.param_groups[0]["lr"] = peak * share
            optimizer.zero_grad(set_to_none=False)
        logits = self.model(rows[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        self.losses.append(loss.item())
        return self.losses[-1]

    def keep(self) -> None:
        """Keep the weights as they are, for the mean."""
        self.kept = {name: weight.clone() for name, weight in self.model.state_dict().items()}

    def take_mean(self) -> None:
        """Give the model the mean, by the recipe's share, of its weights and those that were kept."""
        share, now = self.recipe.last_share, self.model.state_dict()
        self.model.load_state_dict({name: kept + share * (now[name] - kept) for name, kept in self.kept.items()})

    def save(self, path: Path, *, digest: str) -> None:
        """Write a checkpoint, whole or not at all.

        Raises:
            WriteFailed: The system refuses.
        """
        import torch

        state = {
            "step": self.step,
            "losses": self.losses,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "model": self.model.state_dict(),
            "kept": self.kept,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "recipe": asdict(self.recipe),
            "data": digest,
        }
        part = path.with_suffix(".part")
        try:
            torch.save(state, part)
            part.replace(path)
        except (OSError, RuntimeError) as error:
            raise WriteFailed(f"cannot write {path}: {error}. Make room, and give the same command again.") from error

    def restore(self, path: Path, *, digest: str) -> None:
        """Go on from a checkpoint of the same recipe and data.

        Raises:
            OtherRecipe: It is of others, or cannot be read.
        """
        import torch

        try:
            state = torch.load(path, weights_only=True)
            of = state["recipe"], state["data"]
        except Exception as error:
            raise OtherRecipe(f"expected a checkpoint; {path} cannot be read as one: {error}. Remove it.") from error
        if of != (asdict(self.recipe), digest):
            raise OtherRecipe(
                f"expected a checkpoint of this recipe and this Python's text; {path} is of another. Remove it, or "
                "choose another --work."
            )
        self.model.load_state_dict(state["model"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.step, self.losses, self.kept = state["step"], state["losses"], state["kept"]
        self.seconds, self.cpu_seconds = state["seconds"], state["cpu_seconds"]


def rate(step: int, first: int, last: int) -> float:
    """The learning rate as a share of its peak.

    Up over 100 steps, level for two fifths of the first part, down to nothing; in the last part from a quarter to
    nothing.

    Args:
        step: Which update.
        first: Updates of the first part.
        last: Updates of the last part.

    Example:
        >>> [rate(step, 4000, 400) for step in (0, 99, 1600, 2800, 4000, 4200)]
        [0.01, 1.0, 1.0, 0.5, 0.25, 0.125]
    """
    if step >= first:
        return 0.25 * (first + last - step) / last
    return min(1.0, (step + 1) / 100, (first - step) / (0.6 * first))


def fit(
    trainer: Trainer,
    rows: Int[Tensor, "row pos"],
    *,
    work: Path,
    digest: str,
    progress: Callable[[range], Iterable[int]] = iter,
) -> None:
    """Train to the end of the recipe, from the checkpoint in `work` if there is one.

    The model then has a mean of its weights after the first part and after the last, at both of which the learning rate
    has come to nothing: what the last part teaches costs less of the rest so.

    Args:
        trainer: The model and its optimisers.
        rows: The training data.
        work: Folder of the checkpoint, which is written every `EVERY` steps and at the end.
        digest: Of the data; a checkpoint of other data is refused.
        progress: Wraps the range of the steps that are left, as tqdm does.

    Raises:
        OtherRecipe: The checkpoint is of another recipe or of other data, or cannot be read.
        WriteFailed: The folder cannot be written.
    """
    recipe, checkpoint = trainer.recipe, work / CHECKPOINT
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteFailed(f"cannot make {work}: {error.strerror}. Choose another --work.") from error
    if checkpoint.exists():
        trainer.restore(checkpoint, digest=digest)
    trainer.model.train()
    for step in progress(range(trainer.step, recipe.steps)):
        start, cpu_start = time.perf_counter(), time.process_time()
        trainer.update(rows[step * recipe.batch : (step + 1) * recipe.batch])
        if trainer.step == recipe.steps - recipe.last_steps:
            trainer.keep()
        trainer.seconds += time.perf_counter() - start
        trainer.cpu_seconds += time.process_time() - cpu_start
        if trainer.step % EVERY == 0 or trainer.step == recipe.steps:
            trainer.save(checkpoint, digest=digest)
    trainer.take_mean()
    trainer.model.eval()
