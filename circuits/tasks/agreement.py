"""Subject-verb agreement past a distractor: "The keys to the cabinet" -> " are", not " is".

The verb that is due agrees with the subject, whatever the noun between them is. Right are the forms of several verbs
that agree (" are", " were", " have" ...), wrong are the others; the metric is the difference of their mean logits.
Prompts alternate between a singular and a plural subject; the distractor's number is drawn.

Corruptions. `number` flips the subject's number and nothing else ("The key to the cabinet"), so that the answer
flips. `noun` does so with another noun in its place.

Splits. Held out are about a fifth of the nouns, by the CRC-32 of their singular, and the templates of
`HELD_OUT_TEMPLATES`. Subject and distractors are of the same part.

Source: Linzen, Dupoux and Goldberg 2016, arXiv 1611.01368 (the behaviour); Finlayson et al. 2021, arXiv 2106.06087
(pairs that differ in the subject's number alone). The templates and nouns are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from circuits.tasks import text
from circuits.tasks.errors import TooFewWords
from circuits.tasks.single_tokens import one_token_pairs, require_one_token
from circuits.tasks.text import HasTokenizer, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from patching.task import Task

NOUNS: tuple[str, ...] = (
    "key", "cabinet", "book", "table", "chair", "door", "window", "car", "picture", "letter", "cup", "bag", "bottle",
    "clock", "shirt", "hat", "ship", "boat", "plane", "train", "truck", "horse", "dog", "cat", "bird", "tree",
    "flower", "apple", "stone", "house", "bridge", "tower", "road", "garden", "field", "river", "hill", "farm",
    "school", "shop", "hotel", "doctor", "teacher", "student", "farmer", "author", "artist", "guard", "friend", "boy",
    "girl", "king", "queen", "lawyer", "driver", "player", "worker", "writer", "manager", "engine", "machine", "phone",
    "computer", "camera", "guitar", "desk", "wheel", "rock", "coin", "toy", "gift", "ring", "map", "card",
)  # fmt: skip
"""Singulars; each has a plural in -s, and both are one token of GPT-2 after a space."""

VERBS: Mapping[str, str] = {"is": "are", "was": "were", "has": "have", "seems": "seem", "looks": "look"}
"""Verbs that may be due: the form after a singular, and after a plural."""

WORDS: tuple[str, ...] = (*NOUNS, *(f"{noun}s" for noun in NOUNS), *VERBS, *VERBS.values())
"""What must be one token after a space."""

TRAINING_TEMPLATES: Mapping[str, str] = {
    "near": "The {subject} near the {near}",
    "behind": "The {subject} behind the {near}",
    "beside": "The {subject} beside the {near}",
    "to": "The {subject} to the {near}",
    "morning": "In the morning, the {subject} next to the {near}",
    "know": "We know that the {subject} under the {near}",
    "think": "They think that the {subject} above the {near}",
    "old": "The old {subject} from the {near}",
    "heard": "Yesterday we heard that the {subject} by the {near}",
    "saw": "The {subject} that we saw near the {near}",
    "front": "The {subject} in front of the {near}",
    "small": "The {subject} with the small {near}",
    "home": "At home, the {subject} on the {near}",
    "across": "She said that the {subject} across from the {near}",
    "found": "The {subject} that they found behind the {near}",
    "everyone": "Everyone knows that the {subject} of the {near}",
    "big": "Even the new {subject} beside the big {near}",
    "bought": "He told us that the {subject} that you bought for the {near}",
    "today": "Today the {subject}",
    "two": "The {subject} near the {near} behind the {far}",
    "after": "After lunch, the {subject} by the {near}",
    "way": "On the way home we saw that the {subject} under the old {near}",
}
"""Templates that training may use."""

HELD_OUT_TEMPLATES: Mapping[str, str] = {
    "new-behind": "The new {subject} behind the {near}",
    "said-near": "They said that the {subject} near the {near}",
    "morning-found": "In the morning, the {subject} that we found beside the {near}",
    "small-front": "The small {subject} in front of the {near}",
    "yesterday": "Yesterday she told us that the {subject} next to the {near}",
    "think-under": "We think that the {subject} under the old {near} by the {far}",
}
"""Templates that training never sees; every word of theirs occurs in those that it does."""

TEMPLATES: Mapping[str, str] = {**TRAINING_TEMPLATES, **HELD_OUT_TEMPLATES}
"""All templates by name; `{near}` and `{far}` are distractors."""

SPLITS = text.splits(TRAINING_TEMPLATES, HELD_OUT_TEMPLATES)
"""What each split draws from."""

CORRUPTIONS: Mapping[str, str] = {
    "number": "the subject's number flips, and with it the answer",
    "noun": "another noun of the other number is the subject",
}
"""What each corruption does."""


def generate(
    n: int,
    *,
    seed: int,
    split: str = "held-out",
    corruption: str = "number",
    template: str | None = None,
    nouns: Sequence[str] = NOUNS,
    verbs: Mapping[str, str] = VERBS,
) -> list[Prompt]:
    """Draw prompts as text; needs no model and no tokenizer.

    Args:
        n: How many prompts; the subjects of even rows are singular, those of odd ones plural.
        seed: Seed of the draw.
        split: A key of `SPLITS`.
        corruption: A key of `CORRUPTIONS`.
        template: A key of `TEMPLATES` to use only that one; the split then decides the nouns alone.
        nouns: Singulars of nouns with a plural in -s.
        verbs: The verbs that may be due, singular to plural.

    Returns:
        `n` prompts, all with the same two sets of answers.

    Raises:
        UnknownChoice: An option has an unknown value; the message lists the known ones.
        TooFewWords: Fewer than four nouns belong to the split, or no verb is given.

    Source:
        Finlayson et al. 2021, arXiv 2106.06087.

    Example:
        >>> prompt = generate(2, seed=0, split="train", template="to")[1]
        >>> prompt.clean, prompt.corrupt
        ('The gardens to the guitars', 'The garden to the guitars')
        >>> prompt.answers[0], prompt.wrong_answers[0]
        (' are', ' is')
    """
    held_out, templates = text.chosen_split(n, split=split, template=template, splits=SPLITS, templates=TEMPLATES)
    text.known("corruption", corruption, CORRUPTIONS)
    if not verbs:
        raise TooFewWords("expected at least one verb; got none.")
    pool = text.pool("nouns", nouns, held_out=held_out, least=4)
    forms = tuple(tuple(f" {verb}" for verb in kind) for kind in (verbs, verbs.values()))
    rng, others = text.generators(seed)
    prompts = []
    for i in range(n):
        chosen = rng.choice(templates)
        plural = i % 2
        subject, *distractors = rng.sample(pool, 3)
        near, far = (_form(noun, rng.randrange(2)) for noun in distractors)
        replaced = subject if corruption == "number" else text.other(pool, [subject, *distractors], others)
        clean, corrupt = (
            TEMPLATES[chosen].format(subject=word, near=near, far=far)
            for word in (_form(subject, plural), _form(replaced, 1 - plural))
        )
        prompts.append(Prompt(clean, corrupt, forms[plural], forms[1 - plural], chosen))
    return prompts


def make(
    model: HasTokenizer,
    *,
    n: int = 64,
    seed: int = 0,
    split: str = "held-out",
    corruption: str = "number",
    template: str | None = None,
    nouns: Sequence[str] = NOUNS,
    verbs: Mapping[str, str] = VERBS,
) -> Task:
    """Build the task for a model: tokens, and the logit difference between the verbs' two forms.

    Args:
        model: Anything with a `tokenizer`, such as a `LensModel`.
        n: How many prompts.
        seed: Seed of the draw.
        split: A key of `SPLITS`.
        corruption: `"number"` or `"noun"`.
        template: A key of `TEMPLATES` to use only that one, for equally long prompts.
        nouns: Singulars of nouns with a plural in -s; give your own for a tokenizer to which some of ours, or their
            plurals, are several tokens.
        verbs: The verbs that may be due, singular to plural.

    Returns:
        A `Task` of `n` examples; its metric is the logit difference.

    Raises:
        UnknownChoice: An option has an unknown value.
        TooFewWords: Too few nouns in the split, or no verb.
        NotOneToken: Some words are not one token of this tokenizer; the message names them.

    Source:
        Finlayson et al. 2021, arXiv 2106.06087.

    Example:
        >>> from patching import LensModel
        >>> task = make(LensModel.load("gpt2"), n=64, seed=0, verbs={"is": "are"})  # doctest: +SKIP
    """
    prompts = generate(n, seed=seed, split=split, corruption=corruption, template=template, nouns=nouns, verbs=verbs)
    require_one_token(
        model.tokenizer,
        [*nouns, *(_form(noun, 1) for noun in nouns)],
        remedy="To leave them out, pass nouns=agreement.usable_nouns(model.tokenizer); or pass nouns of your own.",
    )
    require_one_token(
        model.tokenizer,
        [*verbs, *verbs.values()],
        remedy=text.remedy("verbs", "agreement.VERBS", by="one_token_pairs"),
    )
    return text.to_task(model, prompts, name="agreement")


def usable_nouns(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The nouns of `NOUNS` whose singular and plural are one token each after a space.

    Args:
        tokenizer: A Hugging Face tokenizer.
    """
    plurals = {noun: _form(noun, 1) for noun in NOUNS}
    return list(one_token_pairs(tokenizer, plurals))


def _form(noun: str, plural: int) -> str:
    """The noun, or its plural."""
    return f"{noun}s" if plural else noun
