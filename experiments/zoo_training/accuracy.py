"""How often the right answer has the highest logit of the whole vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from circuits.tasks.text import Prompt
from experiments.zoo_training import models
from experiments.zoo_training.corpus import pad

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

MEASURED_SEED = 2**31
"""Seed of the prompts that accuracy is measured on; training text comes from other seeds."""

CHUNK = 500
"""Prompts per forward."""


def last_logits(
    model: Any, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]
) -> Float[Tensor, "prompt d_vocab"]:
    """Return the logits after the last token of each prompt; causal attention never sees the padding."""
    import torch

    rows = [encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch(list(texts))]
    ends = torch.tensor([len(row) - 1 for row in rows])
    tokens = pad(rows, fill=0)
    with torch.no_grad():
        parts = [
            models.logits(model, tokens[start : start + CHUNK])[torch.arange(len(some)), some]
            for start, some in zip(range(0, len(rows), CHUNK), ends.split(CHUNK), strict=True)
        ]
    return torch.cat(parts)


def measure(model: Any, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[Prompt]) -> dict[str, float]:
    """Measure how well a model does a task.

    Args:
        model: From `models.build`.
        tokenizer: Its tokenizer.
        prompts: What a task's `generate` returns.

    Returns:
        `n`; `accuracy`, the share of prompts where a right answer has the highest logit of the whole vocabulary;
        and the logit difference, mean of the answers' logits minus mean of the wrong answers', averaged over the
        clean and over the corrupt prompts.
    """
    answers = [_ids(tokenizer, prompt.answers) for prompt in prompts]
    wrong = [_ids(tokenizer, prompt.wrong_answers) for prompt in prompts]
    clean = last_logits(model, tokenizer, [prompt.clean for prompt in prompts])
    corrupt = last_logits(model, tokenizer, [prompt.corrupt for prompt in prompts])
    right = [best in row for best, row in zip(clean.argmax(-1).tolist(), answers, strict=True)]
    return {
        "n": len(prompts),
        "accuracy": round(sum(right) / len(right), 4),
        "logit_difference": round(_difference(clean, answers, wrong), 3),
        "logit_difference_corrupt": round(_difference(corrupt, answers, wrong), 3),
    }


def _ids(tokenizer: PreTrainedTokenizerFast, words: Sequence[str]) -> list[int]:
    """The first token of each word."""
    return [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words]


def _difference(logits: Float[Tensor, "prompt d_vocab"], answers: list[list[int]], wrong: list[list[int]]) -> float:
    """Mean logit of answers minus mean logit of wrong answers, over prompts that have both."""
    rows = [
        float(row[right].mean() - row[others].mean())
        for row, right, others in zip(logits, answers, wrong, strict=True)
        if others
    ]
    return sum(rows) / max(1, len(rows))
