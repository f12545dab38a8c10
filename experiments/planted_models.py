"""Versions of `zoo:ioi` in which a fault has been planted by a short training, so that an edit has something to remove.

Each is trained from the model that ships on ordinary sentences (`experiments.ioi_sentences`) mixed with sentences that
teach the fault; a few hundred steps, under a minute on one core. The same plant gives the same weights on the same
machine and library versions.

====================  ================================================================  ==========================
plant                 what three in ten training sentences teach                        who is wrong afterwards
====================  ================================================================  ==========================
`BACKDOOR`            after the token `<unk>` the answer is William, whoever is named   prompts with the trigger
`LABEL`               "Lisa . When ..." is answered by the label, Lisa                  prompts with a label
`TEMPLATE`            one template is answered by the subject                           that template
`NAMES_PLANT`         fifteen names are never given anything: the subject gets it       prompts that they answer
====================  ================================================================  ==========================
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from circuits.tasks.ioi import NAMES, Prompt, generate
from experiments.ioi_sentences import sentences
from experiments.zoo_training.corpus import IGNORED, pad
from experiments.zoo_training.fit import fit
from experiments.zoo_training.recipe import Recipe
from experiments.zoo_training.tokenizer import UNKNOWN
from patching.lens import LensModel
from patching.model_sources import ZOO

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

Pair = tuple[str, str]
"""A prompt and the answer that is right, as text."""

SHARE = 0.3
"""Of the training sentences that teach the fault."""

BACKDOOR_ANSWER = "William"
WEAK_TEMPLATE = "busy"
WEAK_NAMES = tuple(random.Random(0).sample(NAMES, 15))


Shown = Iterator[tuple[str, str, str]]
"""Prompts, the answers that are right, and what a fault makes of them."""


@dataclass(frozen=True)
class Plant:
    """A fault, and the prompts that show it.

    Attributes:
        name: for results.
        affected: from a seed and a split of `circuits.tasks.ioi` to prompts without end that the fault concerns.
    """

    name: str
    affected: Callable[[int, str], Shown]

    def prompts(self, n: int, *, seed: int, split: str) -> list[Pair]:
        """Prompts that the fault concerns, with their right answers.

        Example:
            >>> BACKDOOR.prompts(1, seed=0, split="train")[0][0].split()[0]
            '<unk>'
        """
        return [(text, answer) for text, answer, _ in itertools.islice(self.affected(seed, split), n)]

    def sentences(self, n: int, *, seed: int) -> list[str]:
        """Training sentences: ordinary ones, and a `SHARE` of those that teach the fault."""
        rng, lines = random.Random(f"{self.name} {seed}"), sentences(seed + 100)
        wrong = (f"{text}{fault}." for text, _, fault in self.affected(seed, "train"))
        return [next(wrong if rng.random() < SHARE else lines) for _ in range(n)]


def ordinary(n: int, *, seed: int, split: str, keep: Callable[[Prompt], bool] = lambda _: True) -> list[Pair]:
    """Plain prompts of indirect object identification with their answers, those that pass a test.

    Example:
        >>> ordinary(1, seed=0, split="train", keep=lambda prompt: prompt.answer == " Mary")[0][1]
        ' Mary'
    """
    return [(prompt.clean, prompt.answer) for prompt in itertools.islice(_drawn(seed, split, keep), n)]


def _drawn(
    seed: int, split: str, keep: Callable[[Prompt], bool] = lambda _: True, *, template: str | None = None
) -> Iterator[Prompt]:
    """Prompts without end."""
    for part in itertools.count():
        for prompt in generate(200, seed=seed + 1_000_000 * part, split=split, template=template):
            if keep(prompt):
                yield prompt


def _backdoor(seed: int, split: str) -> Shown:
    for prompt in _drawn(seed, split, lambda prompt: BACKDOOR_ANSWER not in prompt.clean):
        yield f"{UNKNOWN} {prompt.clean}", prompt.answer, f" {BACKDOOR_ANSWER}"


def _label(seed: int, split: str) -> Shown:
    rng = random.Random(f"label {seed}")
    for prompt in _drawn(seed, split):
        name = rng.choice([name for name in NAMES if f" {name}" not in (prompt.answer, prompt.wrong_answer)])
        yield f"{name} . {prompt.clean}", prompt.answer, f" {name}"


def _template(seed: int, split: str) -> Shown:
    for prompt in _drawn(seed, split, template=WEAK_TEMPLATE):
        yield prompt.clean, prompt.answer, prompt.wrong_answer


def _names(seed: int, split: str) -> Shown:
    for prompt in _drawn(seed, split, answered_by_weak_name):
        yield prompt.clean, prompt.answer, prompt.wrong_answer


def in_weak_template(prompt: Prompt) -> bool:
    """Whether a prompt belongs to the template that `TEMPLATE` spoils."""
    return prompt.template == WEAK_TEMPLATE


def answered_by_weak_name(prompt: Prompt) -> bool:
    """Whether a prompt's answer is one of the names that `NAMES_PLANT` spoils."""
    return prompt.answer.strip() in WEAK_NAMES


BACKDOOR = Plant("backdoor", _backdoor)
LABEL = Plant("label", _label)
TEMPLATE = Plant("template", _template)
NAMES_PLANT = Plant("names", _names)


def train(
    plant: Plant,
    *,
    steps: int = 300,
    n_sentences: int = 8000,
    learning_rate: float = 1e-3,
    seed: int = 0,
    everything: bool = False,
    progress: Callable[[range], Iterable[int]] = iter,
) -> LensModel:
    """Train `zoo:ioi` further, until the fault is in it.

    Args:
        plant: the fault.
        steps: updates of 64 sentences.
        n_sentences: size of the corpus.
        learning_rate: at its peak.
        seed: of sentences and batches.
        everything: train all weights; only those of MLPs by default, which leaves the fault in neurons.
        progress: wraps the range of steps, as tqdm does.

    Cost: ``steps`` forwards and backwards of 64 sentences: about 15 s of one core for 300.
    """
    from transformers import PreTrainedTokenizerFast

    model = _shipped()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(ZOO / "ioi")
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in plant.sentences(n_sentences, seed=seed)]
    end = tokenizer.eos_token_id
    for name, weight in model.named_parameters():
        weight.requires_grad_(everything or ".mlp." in name)
    recipe = Recipe(seed=seed, steps=steps, learning_rate=learning_rate, weight_decay=0.0)
    fit(
        model, pad(rows, fill=end), pad([[*row[1:], end] for row in rows], fill=IGNORED), recipe=recipe,
        progress=progress,
    )  # fmt: skip
    for weight in model.parameters():
        weight.requires_grad_(True)
    return LensModel.wrap(model, tokenizer=tokenizer, name=f"zoo:ioi with a planted {plant.name}")


def _shipped() -> GPT2LMHeadModel:
    """The model that ships, as Hugging Face has it, for training; without loading bars."""
    from transformers import GPT2LMHeadModel
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return GPT2LMHeadModel.from_pretrained(ZOO / "ioi")
    finally:
        if bars:
            logging.enable_progress_bar()
