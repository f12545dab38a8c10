"""Capital cities: "The capital of France is the city of" -> " Paris", not the capital of another country.

A fact that the model must have learnt, asked for in words. The wrong answer is the capital of another country, drawn
for each prompt; the metric is logit(right city) - logit(wrong city).

Corruptions. `country` names that other country, so that the answer flips to the wrong one. `region` names a part of
the world that has no capital, so that nothing is left to recall.

Splits. Held out are the countries whose CRC-32 is divisible by five (Iran, Italy, Syria, Turkey), and the templates
of `HELD_OUT_TEMPLATES`. A fact cannot be inferred from others: held-out countries say how far a circuit reaches, not
whether a model learnt to generalise.

Source: Meng et al. 2022, arXiv 2202.05262, and Chughtai et al. 2024, arXiv 2402.07321 (recall of facts); clean and
corrupt pairs as in Mueller et al. 2025, arXiv 2504.13151. The templates and the table are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from circuits.tasks import text
from circuits.tasks.errors import TooFewWords
from circuits.tasks.single_tokens import require_one_token
from circuits.tasks.text import HasTokenizer, Prompt

if TYPE_CHECKING:
    from patching.task import Task

CAPITALS: Mapping[str, str] = {
    "Afghanistan": "Kabul", "Australia": "Canberra", "Austria": "Vienna", "Belgium": "Brussels", "Canada": "Ottawa",
    "Chile": "Santiago", "China": "Beijing", "Cuba": "Havana", "Denmark": "Copenhagen", "Egypt": "Cairo",
    "England": "London", "Finland": "Helsinki", "France": "Paris", "Germany": "Berlin", "Greece": "Athens",
    "Hungary": "Budapest", "Iran": "Tehran", "Iraq": "Baghdad", "Ireland": "Dublin", "Italy": "Rome",
    "Jamaica": "Kingston", "Japan": "Tokyo", "Lebanon": "Beirut", "Libya": "Tripoli", "Norway": "Oslo",
    "Pakistan": "Islamabad", "Peru": "Lima", "Poland": "Warsaw", "Portugal": "Lisbon", "Russia": "Moscow",
    "Scotland": "Edinburgh", "Spain": "Madrid", "Sweden": "Stockholm", "Switzerland": "Bern", "Syria": "Damascus",
    "Thailand": "Bangkok", "Tunisia": "Tunis", "Turkey": "Ankara", "Wales": "Cardiff",
}  # fmt: skip
"""Countries and their capitals; each word is one token of GPT-2 after a space."""

REGIONS: tuple[str, ...] = ("Africa", "America", "Asia", "Europe")
"""Parts of the world without a capital."""

WORDS: tuple[str, ...] = (*CAPITALS, *CAPITALS.values(), *REGIONS)
"""What must be one token after a space."""

TRAINING_TEMPLATES: Mapping[str, str] = {
    "city-of": "The capital of {country} is the city of",
    "is": "The capital of {country} is",
    "called": "The capital city of {country} is called",
    "name": "The name of the capital of {country} is",
    "teacher": "The teacher told us that the capital of {country} is",
    "visited": "Last year we went to {country} and saw its capital,",
    "government": "The government of {country} sits in",
    "lives": "She lives in the capital of {country}, which is called",
    "map": "On this map of {country}, the capital is marked as",
    "flew": "They flew to {country} and landed in the capital,",
    "question": "Question: What is the capital of {country}? Answer:",
    "travel": "If you travel to the capital of {country}, you will be in",
    "book": "The book about {country} says that its capital is",
    "everyone": "Everyone knows that the capital of {country} is",
    "train": "The train from the north of {country} goes to its capital,",
    "president": "The leader of {country} lives in the capital,",
}
"""Templates that training may use."""

HELD_OUT_TEMPLATES: Mapping[str, str] = {
    "told": "She told us that the capital city of {country} is",
    "went": "Last year they went to the capital of {country}, which is called",
    "book-says": "The book says that the name of the capital of {country} is",
    "lives-in": "The teacher lives in {country} and knows its capital,",
    "question-name": "Question: What is the name of the capital of {country}? Answer:",
}
"""Templates that training never sees; every word of theirs occurs in those that it does."""

TEMPLATES: Mapping[str, str] = {**TRAINING_TEMPLATES, **HELD_OUT_TEMPLATES}
"""All templates by name."""

SPLITS = text.splits(TRAINING_TEMPLATES, HELD_OUT_TEMPLATES)
"""What each split draws from."""

CORRUPTIONS: Mapping[str, str] = {
    "country": "another country, whose capital is the wrong answer",
    "region": "a part of the world that has no capital",
}
"""What each corruption does."""


def generate(
    n: int,
    *,
    seed: int,
    split: str = "held-out",
    corruption: str = "country",
    template: str | None = None,
    facts: Mapping[str, str] = CAPITALS,
) -> list[Prompt]:
    """Draw prompts as text; needs no model and no tokenizer.

    Args:
        n: How many prompts.
        seed: Seed of the draw.
        split: A key of `SPLITS`.
        corruption: A key of `CORRUPTIONS`.
        template: A key of `TEMPLATES` to use only that one; the split then decides the countries alone.
        facts: Countries and their capitals.

    Returns:
        `n` prompts.

    Raises:
        UnknownChoice: An option has an unknown value; the message lists the known ones.
        TooFewWords: Fewer than two countries belong to the split, or two of them have one capital.

    Source:
        Chughtai et al. 2024, arXiv 2402.07321.

    Example:
        >>> prompt = generate(1, seed=0, split="train", template="city-of")[0]
        >>> prompt.clean, prompt.corrupt
        ('The capital of Portugal is the city of', 'The capital of Austria is the city of')
        >>> prompt.answers, prompt.wrong_answers
        ((' Lisbon',), (' Vienna',))
    """
    held_out, templates = text.chosen_split(n, split=split, template=template, splits=SPLITS, templates=TEMPLATES)
    text.known("corruption", corruption, CORRUPTIONS)
    pool = text.pool("facts", facts, held_out=held_out, least=2)
    if len({facts[country] for country in pool}) < len(pool):
        raise TooFewWords("expected a capital for each country alone; got the same for two of them. Leave one out.")
    rng, others = text.generators(seed)
    prompts = []
    for _ in range(n):
        chosen = rng.choice(templates)
        country, another = rng.sample(pool, 2)
        replaced = another if corruption == "country" else others.choice(REGIONS)
        prompts.append(
            Prompt(
                clean=TEMPLATES[chosen].format(country=country),
                corrupt=TEMPLATES[chosen].format(country=replaced),
                answers=(f" {facts[country]}",),
                wrong_answers=(f" {facts[another]}",),
                template=chosen,
            )
        )
    return prompts


def make(
    model: HasTokenizer,
    *,
    n: int = 64,
    seed: int = 0,
    split: str = "held-out",
    corruption: str = "country",
    template: str | None = None,
    facts: Mapping[str, str] = CAPITALS,
) -> Task:
    """Build the task for a model: tokens, and the logit difference between the right capital and another.

    Args:
        model: Anything with a `tokenizer`, such as a `LensModel`.
        n: How many prompts.
        seed: Seed of the draw.
        split: A key of `SPLITS`.
        corruption: `"country"` or `"region"`.
        template: A key of `TEMPLATES` to use only that one, for equally long prompts.
        facts: Countries and their capitals; give your own for a tokenizer to which some of ours are several tokens.

    Returns:
        A `Task` of `n` examples; its metric is the logit difference.

    Raises:
        UnknownChoice: An option has an unknown value.
        TooFewWords: Too few countries in the split.
        NotOneToken: Some words are not one token of this tokenizer; the message names them.

    Source:
        Chughtai et al. 2024, arXiv 2402.07321.

    Example:
        >>> from patching import LensModel
        >>> task = make(LensModel.load("gpt2"), n=64, seed=0, split="train")  # doctest: +SKIP
    """
    prompts = generate(n, seed=seed, split=split, corruption=corruption, template=template, facts=facts)
    require_one_token(
        model.tokenizer,
        [*facts, *facts.values()],
        remedy=text.remedy("facts", "capitals.CAPITALS", by="one_token_pairs"),
    )
    if corruption == "region":
        require_one_token(model.tokenizer, REGIONS, remedy='Take corruption="country" with this tokenizer.')
    return text.to_task(model, prompts, name="capitals")
