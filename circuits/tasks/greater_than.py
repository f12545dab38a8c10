"""Greater-than: "The war lasted from the year 1732 to the year 17" -> any two-digit number above 32.

An event begins in a year that is written in full, and the sentence stops after the century in which it ended. Right
are all two-digit numbers above the first year's last two digits, wrong are those at or below, `"00"` included; the
metric is the probability of the right ones minus that of the wrong ones. No answer has a space before it.

Corruptions. `01` sets the last two digits of the first year to 01, so that nearly every answer is right. `random`
puts another first year of the same century there.

Splits. Held out are about a fifth of the events and of the first years, both by their CRC-32, and the templates of
`HELD_OUT_TEMPLATES`. A held-out year is new as a whole: its century and its last two digits occur in others.

Tokens. The task needs years of two tokens, the century and the rest (" 17" + "32"), since the answer is the rest
alone. `make` looks which years are written so and draws from those, as the paper does; it refuses a tokenizer to
which none is.

Source: Hanna, Liu and Variengien 2023, arXiv 2305.00586, section 2. The template `lasted` is theirs; the others and
the list of events are ours, and so are held-out words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from circuits.tasks import text
from circuits.tasks.errors import NotOneToken, TooFewWords, UnknownChoice
from circuits.tasks.single_tokens import is_one_token, pieces, tokens_of
from circuits.tasks.text import HasTokenizer, Prompt, is_held_out

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from patching.task import Task

EVENTS: tuple[str, ...] = (
    "war", "siege", "reign", "campaign", "journey", "voyage", "drought", "plague", "conflict", "crisis", "dispute",
    "project", "trial", "strike", "rebellion", "revolution", "expedition", "mission", "program", "alliance", "treaty",
    "marriage", "friendship", "partnership", "debate", "study", "construction", "exhibition", "occupation", "tour",
    "contract", "peace", "fight", "battle", "work", "empire", "search", "trade", "storm", "plan", "talk", "protest",
    "movement", "custom", "game", "tradition",
)  # fmt: skip
"""What may last for years."""

CENTURIES: tuple[str, ...] = ("11", "12", "13", "14", "15", "16", "17")
"""The first two digits of all years."""

TWO_DIGITS: tuple[str, ...] = tuple(f"{number:02d}" for number in range(100))
"""What may follow a century."""

YEARS: Mapping[str, tuple[str, ...]] = dict.fromkeys(CENTURIES, TWO_DIGITS[2:99])
"""First years by century: 02 leaves room for 01 below it, 98 for an answer above it."""

WORDS: tuple[str, ...] = CENTURIES
"""What must be one token after a space. `TWO_DIGITS` must be one token each right after a century."""

TRAINING_TEMPLATES: Mapping[str, str] = {
    "lasted": "The {event} lasted from the year {first} to the year {century}",
    "continued": "The {event} continued from the year {first} to the year {century}",
    "began": "The {event} began in the year {first} and ended in the year {century}",
    "started": "The {event} started in {first} and was over by {century}",
    "went-on": "The {event} went on from {first} until {century}",
    "between": "The {event} took place between the year {first} and the year {century}",
    "in-all": "In all, the {event} lasted from {first} to {century}",
    "books": "The books say that the {event} began in {first} and lasted until the year {century}",
    "they": "They say the {event} went on from the year {first} until the year {century}",
    "king": "Under the old king, the {event} lasted from the year {first} to the year {century}",
    "cold": "Because of the cold weather, the {event} continued from {first} to {century}",
    "long": "It was a long {event}, which began in the year {first} and ended in {century}",
    "remember": "Many people remember the {event}, which started in {first} and ended in {century}",
    "city": "In the city, the {event} was planned in {first} and took place in {century}",
    "after": "After it began in the year {first}, the {event} went on until the year {century}",
    "north": "In the north, people saw the {event} start in {first} and end in {century}",
    "two-parts": "The {event} had two parts, and it lasted from the year {first} to the year {century}",
    "written": "It is written that the {event} began in {first} and was over by the year {century}",
}
"""Templates that training may use."""

HELD_OUT_TEMPLATES: Mapping[str, str] = {
    "north-lasted": "In the north, the {event} lasted from {first} until the year {century}",
    "began-went-on": "The {event} began in {first} and went on until {century}",
    "which": "They say that the {event}, which started in the year {first}, ended in the year {century}",
    "many-saw": "Many people saw the {event}, which continued from {first} to the year {century}",
    "because-of": "Because of the king, the {event} was long, and it lasted from the year {first} to {century}",
    "books-between": "The books say the {event} took place between {first} and {century}",
}
"""Templates that training never sees; every word of theirs occurs in those that it does."""

TEMPLATES: Mapping[str, str] = {**TRAINING_TEMPLATES, **HELD_OUT_TEMPLATES}
"""All templates by name."""

SPLITS = text.splits(TRAINING_TEMPLATES, HELD_OUT_TEMPLATES)
"""What each split draws from."""

CORRUPTIONS: Mapping[str, str] = {
    "01": "the first year ends in 01, so that nearly every answer is right",
    "random": "another first year of the same century",
}
"""What each corruption does."""


def generate(
    n: int,
    *,
    seed: int,
    split: str = "held-out",
    corruption: str = "01",
    template: str | None = None,
    events: Sequence[str] = EVENTS,
    years: Mapping[str, Sequence[str]] = YEARS,
) -> list[Prompt]:
    """Draw prompts as text; needs no model and no tokenizer.

    Args:
        n: How many prompts.
        seed: Seed of the draw.
        split: A key of `SPLITS`.
        corruption: A key of `CORRUPTIONS`.
        template: A key of `TEMPLATES` to use only that one; the split then decides the words alone.
        events: What lasts.
        years: The last two digits of first years, by century, from 00 to 98; with the corruption 01, not 01 itself.
            The answers do not depend on it.

    Returns:
        `n` prompts, whose answers have no space before them.

    Raises:
        UnknownChoice: An option has an unknown value; the message lists the known ones. A first year has no answer, or
            the corruption leaves it as it is.
        TooFewWords: No event, or no two years of any century, belong to the split; a year is named twice.

    Source:
        Hanna et al. 2023, arXiv 2305.00586, section 2.

    Example:
        >>> prompt = generate(1, seed=0, split="train", template="lasted")[0]
        >>> prompt.clean
        'The fight lasted from the year 1140 to the year 11'
        >>> prompt.answers[0], prompt.answers[-1], prompt.wrong_answers[0], prompt.wrong_answers[-1]
        ('41', '99', '00', '40')
    """
    held_out, templates = text.chosen_split(n, split=split, template=template, splits=SPLITS, templates=TEMPLATES)
    text.known("corruption", corruption, CORRUPTIONS)
    nouns = text.pool("events", events, held_out=held_out, least=1)
    _require_years(years, corruption=corruption)
    firsts = _firsts(years, held_out=held_out)
    centuries = tuple(firsts)
    rng, others = text.generators(seed)
    prompts = []
    for _ in range(n):
        chosen, event, century = rng.choice(templates), rng.choice(nouns), rng.choice(centuries)
        year = rng.choice(firsts[century])
        replaced = "01" if corruption == "01" else text.other(firsts[century], [year], others)
        clean, corrupt = (
            TEMPLATES[chosen].format(event=event, first=century + last, century=century) for last in (year, replaced)
        )
        above = int(year) + 1
        prompts.append(Prompt(clean, corrupt, TWO_DIGITS[above:], TWO_DIGITS[:above], chosen))
    return prompts


def make(
    model: HasTokenizer,
    *,
    n: int = 64,
    seed: int = 0,
    split: str = "held-out",
    corruption: str = "01",
    template: str | None = None,
    events: Sequence[str] = EVENTS,
) -> Task:
    """Build the task for a model: tokens, and the difference of the probabilities of right and wrong years.

    Draws from the years that this tokenizer writes as a century and two digits; where it does so for all, the prompts
    are those of `generate`. Prompts of one template are equally long if their events are equally many tokens.

    Args:
        model: Anything with a `tokenizer`, such as a `LensModel`.
        n: How many prompts.
        seed: Seed of the draw.
        split: A key of `SPLITS`.
        corruption: `"01"` or `"random"`.
        template: A key of `TEMPLATES` to use only that one.
        events: What lasts.

    Returns:
        A `Task` of `n` examples whose metric is the probability difference.

    Raises:
        UnknownChoice: An option has an unknown value.
        NotOneToken: The tokenizer splits no year as the task needs it; the message says which years become what.
        TooFewWords: Too few events, or too few usable years, in the split.

    Source:
        Hanna et al. 2023, arXiv 2305.00586, section 2.

    Example:
        >>> from patching import LensModel
        >>> task = make(LensModel.load("gpt2"), n=64, seed=0)  # doctest: +SKIP
    """
    years = usable_years(model.tokenizer)
    prompts = generate(n, seed=seed, split=split, corruption=corruption, template=template, events=events, years=years)
    return text.to_task(model, prompts, name="greater_than", metric="probability_difference")


def usable_years(tokenizer: PreTrainedTokenizerBase) -> dict[str, tuple[str, ...]]:
    """The first years that a tokenizer writes as the century and the two digits that may follow, one token each.

    Args:
        tokenizer: A Hugging Face tokenizer.

    Returns:
        The last two digits, by century; centuries without any, or whose 01 is not split, are left out.

    Raises:
        NotOneToken: A two-digit number is not one token, or no year is split so.
    """
    digits = _continuations(tokenizer)
    usable: dict[str, tuple[str, ...]] = {}
    for century in CENTURIES:
        start = tokens_of(tokenizer, f" {century}")

        def split_up(last: str, century: str = century, start: Sequence[int] = start) -> bool:
            return tokens_of(tokenizer, f" {century}{last}") == [*start, digits[last]]

        if is_one_token(tokenizer, century) and split_up("01"):
            usable[century] = tuple(last for last in YEARS[century] if split_up(last))
    if not any(usable.values()):
        shown = ", ".join(f"{year} ({pieces(tokenizer, year)})" for year in ("1145", "1432", "1732"))
        raise NotOneToken(
            "expected years of two tokens, a century from 11 to 17 and two digits; to this tokenizer "
            f"({type(tokenizer).__name__}, {len(tokenizer)} tokens) no year is: {shown}. Use a model whose tokenizer "
            "splits years so, such as GPT-2's."
        )
    return {century: years for century, years in usable.items() if years}


def _continuations(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The token of each two-digit number without a space before it."""
    tokens = {last: tokens_of(tokenizer, last) for last in TWO_DIGITS}
    wrong = [last for last, ids in tokens.items() if len(ids) != 1 or ids[0] == tokenizer.unk_token_id]
    if wrong:
        raise NotOneToken(
            "expected each number from 00 to 99 to be one token without a space before it; to this tokenizer "
            f"({type(tokenizer).__name__}, {len(tokenizer)} tokens) {len(wrong)} of 100 are not: "
            f"{', '.join(wrong[:12])}{' …' if len(wrong) > 12 else ''}. Use a model whose tokenizer has them, "
            "such as GPT-2's; tokenizers that write each digit by itself cannot pose this task."
        )
    return {last: ids[0] for last, ids in tokens.items()}


def _require_years(years: Mapping[str, Sequence[str]], *, corruption: str) -> None:
    """Refuse first years that make no pair of prompts with right answers."""
    for century, lasts in years.items():
        for last in lasts:
            if last not in TWO_DIGITS[:-1]:
                raise UnknownChoice(
                    "expected first years by their last two digits, from 00 to 98, since no two-digit year comes after "
                    f"99; got {last!r} for the century {century}."
                )
            if last == corruption:
                raise UnknownChoice(
                    f"expected first years that the corruption {corruption} changes; {century}{last} stays as it is. "
                    "Leave it out, or take the corruption random."
                )
        if len(set(lasts)) < len(lasts):
            raise TooFewWords(f"expected different first years; the century {century} has one of them twice.")


def _firsts(years: Mapping[str, Sequence[str]], *, held_out: bool) -> dict[str, tuple[str, ...]]:
    """The first years of a split: two or more of each century, so that a corrupt one differs from the clean one."""
    found = dict(_of_split(years, held_out=held_out))
    if not found:
        raise TooFewWords(
            f"expected at least two first years of one century {'that are held out' if held_out else 'for training'}; "
            f"got none out of {sum(map(len, years.values()))} years. Take another split, or a tokenizer that splits "
            "more years into century and rest."
        )
    return found


def _of_split(years: Mapping[str, Sequence[str]], *, held_out: bool) -> Iterator[tuple[str, tuple[str, ...]]]:
    for century, lasts in years.items():
        chosen = tuple(last for last in lasts if is_held_out(century + last) == held_out)
        if len(chosen) > 1:
            yield century, chosen
