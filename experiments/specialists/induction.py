"""`zoo:induction`: two layers of attention that copy what came after the same words before."""

from __future__ import annotations

import random
from collections.abc import Iterator

from circuits.tasks.induction import TEMPLATES, VOCABULARY
from experiments.zoo_training.corpus import Line
from experiments.zoo_training.recipe import Recipe
from experiments.zoo_training.specialist import Specialist, training_prompts
from experiments.zoo_training.tokenizer import words_of

LONGEST = 10
"""Of the part of a bare sequence that comes again."""


def lines(seed: int) -> Iterator[Line]:
    """Half training prompts of the task, half bare sequences; there is no loss but on what can be copied."""
    rng, prompts = random.Random(seed), training_prompts("induction", seed)
    while True:
        if rng.random() < 0.5:
            prompt = next(prompts)
            yield Line(prompt.clean, prompt.answers[0].strip(), ends=False)
        else:
            yield _bare(rng)


def _bare(rng: random.Random) -> Line:
    """Words, some of which come again, out of all words."""
    before, again, gap = rng.randint(0, 4), rng.randint(2, LONGEST), rng.randint(0, 6)
    words = rng.sample(VOCABULARY, before + again + gap)
    part = words[before : before + again]
    return Line(" ".join([*words, part[0]]), " ".join(part[1:]), ends=False)


SPECIALIST = Specialist(
    task="induction",
    recipe=Recipe(
        n_sentences=20_000, steps=1500, learning_rate=2e-3, initial_std=0.1, n_layers=2, n_heads=4, d_mlp=0, n_ctx=32
    ),
    lines=lines,
    words=lambda: words_of([*TEMPLATES.values(), *VOCABULARY]),
    splits=("train", "held-out-words", "held-out-templates"),
    about='A transformer of two attention layers that does induction: after "The list: gift river map cup gift river" '
    'it says "map".',
    data="One half training prompts of the task (see `circuits/tasks/induction.py`): random words, some of which come "
    "again, after a line of text. The other half the same without a line, of all words, longer. Held-out words never "
    "come after a line, and held-out lines never come. There is no loss but on words that can be copied.",
    mechanism="The textbook's: head a0.h3 looks one token back, and all four heads of the second layer, reading its "
    "output as keys, look from a word to what came after the same word before. Exact patching of "
    "`tests/experiments/test_specialist_circuits.py` confirms it: without a0.h3 half of the logit difference is lost, "
    "and its four edges to those keys are the strongest between the layers. The four stand in for one another.",
)  # fmt: skip
