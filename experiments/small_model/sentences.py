"""English in which the words of the tasks occur in other ways than in the tasks.

A task's held-out words never occur in its own construction; here they occur like any other word, so that a name's
gender or a noun's number can be learnt, as in ordinary text:

| kind | example |
|---|---|
| `person` | Mary said that she was tired. |
| `meeting` | Paul met Mary at the store. Mary thanked Paul. |
| `thing` | A key was lost. Two keys were lost, and they were old. |
| `year` | The empire was old in the year 1732. |
| `class` | self.size = size |
| `documented` | def load(size, mode): ... Args: size: the river mode: oil |
| `ordered` | def load(self, size, mode): return [size, mode] |
| `agreeing` | They told me that the small key on the desk by the old boats is here. |
| `alone` | After Mary came to the store, she went home. |
| `giving` | Mary asked Paul for a drink, so Paul gave a drink to Mary. |
| `again` | First river Mary key, again river Mary key. |
| `round` | Order: river Mary key river Mary key river |
| `mention` | Is it a key? No, it is a map, not a key. |

`documented`, `agreeing` and `alone` ask for what a task needs in more forms than its templates have; they take the
task's training words alone. In the other kinds any word occurs, in `round` too, which is induction with other lines
before it. No kind has the form of a held-out template.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

from circuits.tasks import agreement, docstring, greater_than, induction, ioi, pronouns
from circuits.tasks.text import is_held_out

NAMES = tuple(pronouns.PRONOUNS)
FORMS = {"she": ("her", "her", "woman"), "he": ("his", "him", "man")}
"""Of each pronoun: its possessive, its object, and what such a person is."""

OFTEN = (*NAMES, *ioi.HELD_OUT_NAMES, *ioi.HELD_OUT_NAMES)
"""Names as often as they come here: held-out ones more, since they come nowhere else."""

PLACES, OBJECTS = ioi.PLACES, ioi.OBJECTS
THINGS = tuple(dict.fromkeys([*induction.VOCABULARY, *OBJECTS, *PLACES, *agreement.NOUNS]))
PARAMETERS = tuple(name for name in docstring.PARAMETERS if not is_held_out(name))
SEEN_NOUNS = tuple(noun for noun in agreement.NOUNS if not is_held_out(noun))
AGAIN = (*NAMES, *THINGS, *THINGS, *docstring.PARAMETERS)
"""What comes again in lists."""

PERSON = (
    "{name} said that {they} was tired.",
    "Then {name} lost {their} {object}.",
    "There {name} met {their} brother.",
    "{name} is a {kind}, and {they} is old.",
    "{name} was happy with {their} {object}.",
    "Mr. Smith gave {name} {their} {object}.",
    "We saw {name} and {their} friend at the {place}.",
    "{name} is a {kind}.",
    "The {kind} was called {name}.",
    "{name} told the others that {they} liked the {place}.",
    "Where is {name}? I saw {them} at the {place}.",
    "Nobody saw {name} when {they} went home with {their} {object}.",
    "They thanked {name}, and {they} thanked them.",
    "Once there was a {kind} named {name}, who lost {their} {object} at the {place}.",
    "{name} hurt {their} hand, but {they} was fine.",
)
"""Sentences about one person. None is of the form of the pronoun task's templates."""

MEETING = (
    "{a} met {b} at the {place}. {b} thanked {a}.",
    "{a} and {b} are friends. Everyone saw {a} with {b}.",
    "First came {a}, then {b}. First went {a}, then {b}.",
    "Here {a} waited for {b}. When {b} came, {a} was happy.",
    "{a} wrote to {b}, and {b} wrote back to {a}.",
    "{a} has a {object}. The {object} is from {a}, not from {b}.",
    "The {place} belongs to {a}. Ask {a} about the {place}.",
)
"""Sentences in which names come again, in other ways than in indirect object identification."""

SINGULAR = (
    "A {one} was lost, and it was old.",
    "I saw one {one}. It was new.",
    "There is a {one}, and it is small.",
    "This {one} is big.",
    "Each {one} has a name.",
    "Every {one} was there. Which {one} is it?",
    "Look at that {one}. It looks good.",
    "No {one} is like this {one}.",
    "A small {one} is here. It seems old.",
    "Give me a {one}, if it is yours.",
    "A {one} was found, but it was not new.",
)
PLURAL = (
    "Two {many} were lost, and they were old.",
    "I saw some {many}. They were new.",
    "There are {many}, and they are small.",
    "These {many} are big.",
    "Many {many} have names.",
    "All {many} were there. Which {many} are they?",
    "Look at those {many}. They look good.",
    "Few {many} are like these {many}.",
    "Three small {many} are here. They seem old.",
    "Give me your {many}, if they are yours.",
    "Some {many} were found, but they were not new.",
)
"""Sentences that tell a noun's number. None is of the form of the agreement task's templates."""

YEARS = (
    "The {thing} was old in the year {year}.",
    "Between {year} and {later} there was a {thing}.",
    "The years {year}, {year_1} and {year_2} were good.",
    "After {year} came {year_1}, and after {year_1} came {year_2}.",
    "It was first {year}, then {later}.",
)
"""Sentences with years, whose order tells their size."""


def words() -> list[str]:
    """Every word that some task needs as one token after a space; `greater_than.TWO_DIGITS` are needed without too."""
    listed = [
        word for module in (agreement, docstring, greater_than, induction, ioi, pronouns) for word in module.WORDS
    ]
    return list(dict.fromkeys([*listed, *PLACES, *OBJECTS, *greater_than.TWO_DIGITS]))


def has_held_out_name(sentence: str) -> bool:
    """Whether a held-out name stands in a sentence.

    Example:
        >>> has_held_out_name("Then Mary went home."), has_held_out_name(f"Then {ioi.HELD_OUT_NAMES[0]} went home.")
        (False, True)
    """
    return any(name in sentence for name in ioi.HELD_OUT_NAMES)


LEADS_OF_NAMES = ("Now ", "Here ", "So ", "Once ", "Also, ", "I know that ", "It is said that ")


def _led(rng: random.Random, templates: Sequence[str]) -> str:
    """A template with something before a name at its start, which there would have no space before it."""
    chosen = rng.choice(templates)
    return (rng.choice(LEADS_OF_NAMES) if chosen.startswith("{") else "") + chosen


def _names(rng: random.Random) -> tuple[str, str, str]:
    """Three different names."""
    while True:
        a, b, c = rng.sample(OFTEN, 3)
        if len({a, b, c}) == 3:
            return a, b, c


def _person(rng: random.Random) -> str:
    name = rng.choice(OFTEN)
    they = pronouns.PRONOUNS[name]
    their, them, kind = FORMS[they]
    slots = {"place": rng.choice(PLACES), "object": rng.choice(OBJECTS)}
    return _led(rng, PERSON).format(name=name, they=they, their=their, them=them, kind=kind, **slots)


def _meeting(rng: random.Random) -> str:
    a, b, _ = _names(rng)
    return _led(rng, MEETING).format(a=a, b=b, place=rng.choice(PLACES), object=rng.choice(OBJECTS))


def _thing(rng: random.Random) -> str:
    noun = rng.choice(agreement.NOUNS)
    return rng.choice(rng.choice((SINGULAR, PLURAL))).format(one=noun, many=f"{noun}s")


def _year(rng: random.Random) -> str:
    century = rng.choice((*greater_than.CENTURIES, "18", "19"))
    first = rng.randrange(97)
    later = rng.randrange(first + 1, 100)
    years = {"year": first, "later": later, "year_1": first + 1, "year_2": first + 2}
    return rng.choice(YEARS).format(
        thing=rng.choice(greater_than.EVENTS), **{name: f"{century}{value:02d}" for name, value in years.items()}
    )


def _class(rng: random.Random) -> str:
    names = rng.sample(docstring.PARAMETERS, rng.randrange(1, 4))
    style = rng.randrange(4)
    if style == 0:
        lines = [f"class {rng.choice(docstring.FUNCTIONS).title()}:", f"    def __init__(self, {', '.join(names)}):"]
        return "\n".join([*lines, *(f"        self.{name} = {name}" for name in names)])
    if style == 1:
        function = rng.choice(docstring.FUNCTIONS)
        return f"def {function}({', '.join(names)}):\n    return {' + '.join(names)}"
    if style == 2:
        return "\n".join(f"{name} = {rng.choice(docstring.FUNCTIONS)}( {name})" for name in names)
    return f"for {names[0]} in {names[-1]}s:\n    print( {names[0]})"


def _again(rng: random.Random) -> str:
    """Words of all kinds that come again in their order, which copying must not depend on."""
    line = " ".join(rng.sample(AGAIN, rng.randrange(3, 9)))
    return (
        f"{rng.choice(('First', 'Then', 'Now', 'One', 'Here'))} {line}, {rng.choice(('again', 'and', 'then'))} {line}."
    )


def _round(rng: random.Random) -> str:
    """Words that come round and round, without a mark between."""
    listed = rng.sample(AGAIN, rng.randrange(3, 10))
    lead = rng.choice(("Order:", "A round:", "Around:", "On and on:", "Say"))
    return f"{lead} {' '.join(listed * 3)}."


STYLES = (
    "    Args:\n{items}|        {name}: {words}",
    "    {items}|- {name}: {words}\n    ",
    "    {items}|@arg {name} {words}\n    ",
    "    Parameters\n{items}|    {name} : {words}",
    "    {items}|{name} -- {words}\n    ",
)
"""Ways to list parameters: the list, and an item of it. None is that of the docstring task."""


def _documented(rng: random.Random) -> str:
    """A definition some of whose parameters may come before those that are described."""
    names = rng.sample(PARAMETERS, rng.randrange(2, 8))
    listed = names[rng.randrange(max(1, len(names) - 2)) :]
    whole, item = rng.choice(STYLES).split("|")
    article = rng.choice(("", "the ", "the ", "a "))
    items = [item.format(name=name, words=article + _description(rng)) for name in listed]
    first = rng.choice(((), ("self",), ("self",), ("cls",)))
    head = f"{rng.choice(('', '', 'async '))}def {rng.choice(docstring.FUNCTIONS)}({', '.join((*first, *names))}):"
    joined = ("" if item.endswith(" ") else "\n").join(items)
    return f'{head}\n    """{_description(rng)}\n\n{whole.format(items=joined)}'


def _description(rng: random.Random) -> str:
    return " ".join(rng.sample(docstring.DESCRIPTIONS, rng.randrange(1, 4)))


LEADS = (
    "The", "The", "The", "Yesterday the", "Soon the", "At night the", "In the city the",
    "I think that the", "She knew that the", "We heard that the", "He says that the", "After dinner the",
    "You know that the",
    "In the end, the", "At home, the", "Before lunch, the", "They told me that the", "They think the",
    "They know that the", "She tells us that the", "Some say that the", "We say that the", "People say that the",
    "They saw that the", "Yesterday he told us that the", "They said the",
)  # fmt: skip
ADJECTIVES = ("", "", "", "old ", "new ", "small ", "big ", "good ", "other ")
PREPOSITIONS = (
    "near", "behind", "beside", "to", "next to", "under", "above", "from", "by", "in front of", "with", "on",
    "across from", "of", "for", "that we saw near", "that they found under", "that you bought with", "that I left by",
)  # fmt: skip
ENDINGS = ("here", "there", "old", "new", "not here", "fine", "small", "good")
FORBIDDEN = tuple(
    re.compile(re.sub(r"\\\{\w+\\\}", r"\\w+", re.escape(template)) + r"\b")
    for template in agreement.HELD_OUT_TEMPLATES.values()
)
"""The held-out templates of agreement, whatever follows: a preposition there would teach that no verb does."""


def _agreeing(rng: random.Random, further: Sequence[str] = PREPOSITIONS, often: Sequence[int] | None = None) -> str:
    """A verb that agrees with a noun further back, mostly past one other: a longer chain would make none due there.

    Args:
        rng: Draws.
        further: What may join nouns after the second.
        often: How often each of `agreement.VERBS` comes, relative to the others; all alike by default.
    """
    verbs = list(agreement.VERBS.items())
    while True:
        nouns = rng.sample(SEEN_NOUNS, rng.choice((1, 2, 2, 2, 2, 2, 2, 3, 3)))
        plural = [rng.random() < 0.5 for _ in nouns]
        words = [f"{rng.choice(ADJECTIVES)}{noun}{'s' * many}" for noun, many in zip(nouns, plural, strict=True)]
        phrase = words[0]
        for later, word in enumerate(words[1:]):
            phrase += f" {rng.choice(further if later else PREPOSITIONS)} the {word}"
        verb = (rng.choices(verbs, often)[0] if often else rng.choice(verbs))[plural[0]]
        made = f"{rng.choice(LEADS)} {phrase} {verb} {rng.choice(ENDINGS)}."
        if not any(pattern.search(made) for pattern in FORBIDDEN):
            return made


MENTIONS = (
    "There is a {w} here. Who left the {w} there?",
    "I like this {w}, but not every {w} is like that.",
    "Is it a {w}? No, it is a {x}, not a {w}.",
    "Take the {w} or the {x}. If you take the {x}, leave the {w}.",
    "One has a {w}, the other has a {x}. Who has the {w}?",
    "The {w} is old. The {x} is new. Is the {w} new?",
    "Where is my {w}? Your {w} is with the {x}, and the {x} is here.",
    "She asked for a {w} and got a {w}. He asked for a {x} and got a {x}.",
    "The word {w} is short, and so is the word {x}.",
    "A {w} is a {w}, and a {x} is a {x}.",
)
"""Sentences that name a thing twice, which lists of words do not look like."""


def _mention(rng: random.Random) -> str:
    w, x = rng.sample(THINGS, 2)
    return rng.choice(MENTIONS).format(w=w, x=x)


def _ordered(rng: random.Random) -> str:
    """Parameters in the order of their definition, in code."""
    names = rng.sample(docstring.PARAMETERS, rng.randrange(3, 7))
    function = rng.choice(docstring.FUNCTIONS)
    head = f"def {function}(self, {', '.join(names)}):"
    style = rng.randrange(4)
    if style == 0:
        return "\n".join([head, *(f"    self. {name} = {name}" for name in names)])
    if style == 1:
        return f"{head}\n    return [ {', '.join(names)}]"
    if style == 2:
        return "\n".join([head, *(f"    print( {name})" for name in names[rng.randrange(3) :])])
    return f"{head}\n    {function}( {', '.join(names)})"


GIVING = (
    "{b} asked {a} for a {object}, so {a} gave a {object} to {b}.",
    "{b} was at the {place}. Then {a} gave the {object} to {b}.",
    "When {b} came home, {a} gave a {object} to {b}.",
    "{a} saw {b} and said something to {b}.",
    "{b} wanted a {object}. Later {a} handed one to {b}.",
    "{b} lost a {object}, and {a} sold another to {b}.",
    "{a} likes {b}. Every day {a} gives a {object} to {b}.",
    "For {b} there was a {object} at the {place}, which {a} sent to {b}.",
    "{a} knows {b}, and {c} knows {a}. The {object} went from {a} to {b}.",
    "{b} was tired, and {a} was not, so {a} offered a {object} to {b}.",
    "As {b} was late, {a} showed the {place} to {b}.",
    "{b} came, and {a} wanted to give a {object} to {b}.",
    "{b} was hungry, so {a} decided to give a {object} to {b}.",
    "{b} was at home. Soon {a} passed a {object} to {b}.",
    "It was late when {b} came. Still, {a} wanted to show a {object} to {b}.",
    "{b} had no {object}. So {a}, who had two, offered a {object} to {b}.",
    "The {place} was where {b} was. There {a} decided to show a {object} to {b}.",
    "When {a} met {b}, {a} wanted to give a {object} to {b}.",
    "{a} was with {b}, and so {a} offered a {object} to {b}.",
    "After {a} found {b}, {a} decided to show a {object} to {b}.",
    "{b} saw {a}, and then {a} handed a {object} to {b}.",
    "As {b} waited for {a}, {a} bought a {object} for {b}.",
    "It was {b} who knew {a}. At the {place}, {a} gave a {object} to {b}.",
    "{b} lives near {a}. Often {a} sends a {object} to {b}.",
)
"""Sentences in which somebody is given to who was named before; not those of indirect object identification."""


def _giving(rng: random.Random) -> str:
    a, b, c = _names(rng)
    return _led(rng, GIVING).format(a=a, b=b, c=c, place=rng.choice(PLACES), object=rng.choice(OBJECTS))


ALONE = (
    "After {name} came to the {place}, {they} went home.",
    "After {name} cleaned the {place}, {they} was tired.",
    "After {name} lost the {object}, {they} was not happy.",
    "As {name} left the house, {they} was early.",
    "Once {name} left the {place}, {they} came back.",
    "When {name} saw us, {they} was happy.",
    "When {name} found the {object}, {they} left.",
    "When {name} liked the {place}, {they} went there again.",
    "My brother {name} was tired, and now {they} is happy.",
    "My sister {name} was late, and now {they} is home.",
    "My old friend {name} was here, but {they} went home.",
    "Our teacher {name} was happy, and so {they} is good.",
    "His teacher {name} is tired, and {they} is late.",
    "Today {name} bought a {object}, but {they} lost it.",
    "Yesterday {name} came late because {they} was tired.",
    "Today {name} saw the {place}, and {they} liked it.",
    "We think {name} is such a good person, isn't {they}?",
    "I know {name} was such a great writer, wasn't {they}?",
    "A teacher, {name} knew what {they} wanted.",
)
"""Sentences about one person alone, who is who the sentence goes on with; not the pronoun task's held-out templates."""


def _alone(rng: random.Random) -> str:
    name = rng.choice([each for each in NAMES if not is_held_out(each)])
    slots = {"place": rng.choice(PLACES), "object": rng.choice(OBJECTS)}
    return rng.choice(ALONE).format(name=name, they=pronouns.PRONOUNS[name], **slots)


SENTENCES: dict[str, tuple[Callable[[random.Random], str], int]] = {
    "person": (_person, 3),
    "meeting": (_meeting, 3),
    "thing": (_thing, 8),
    "year": (_year, 2),
    "class": (_class, 1),
    "documented": (_documented, 6),
    "ordered": (_ordered, 2),
    "agreeing": (_agreeing, 8),
    "alone": (_alone, 3),
    "giving": (_giving, 10),
    "again": (_again, 4),
    "round": (_round, 4),
    "mention": (_mention, 2),
}
"""What makes each kind of sentence, and how often relative to the others."""


VERBS_OFTEN = (5, 2, 1, 1, 1)
"""How often each verb of agreement comes in the last part of the training: forms of "be" most, as in English."""


def _agreeing_soon(rng: random.Random) -> str:
    """As `agreeing`, but no "that" after two nouns: it would be likelier there than any one verb."""
    return _agreeing(rng, [words for words in PREPOSITIONS if not words.startswith("that")], VERBS_OFTEN)


LAST: dict[str, tuple[Callable[[random.Random], str], int]] = {
    **SENTENCES,
    "thing": (_thing, 16),
    "agreeing": (_agreeing_soon, 16),
    "giving": (_giving, 26),
}
"""The same for the last part of the training, with more of what was learnt least."""
