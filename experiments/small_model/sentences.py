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
| `agreeing` | Soon the small key on the desk by the old boats is here. |
| `again` | First river Mary key, again river Mary key. |
| `round` | Order: river Mary key river Mary key river |
| `mention` | Is it a key? No, it is a map, not a key. |
| `ordered` | def load(self, size, mode): return [size, mode] |
| `telling` | They told me that the old key by the boats is here. |
| `giving` | Mary asked Paul for a drink, so Paul gave a drink to Mary. |
| `again_any` | as `again`, of any words |
| `round_any` | as `round`, of any words |
| `short`, `documented_the`, `given` | as `agreeing`, `documented`, `giving`: nearer to what was learnt last |
| `alone` | After Mary came to the store, she went home. |

Kinds from `documented` to `round`, `telling` and `alone`, ask for what a task needs in more forms than its templates
have. They take the task's training words alone. No kind has the form of a held-out template.
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

PLACES, OBJECTS = ioi.PLACES, ioi.OBJECTS
THINGS = tuple(dict.fromkeys([*induction.VOCABULARY, *OBJECTS, *PLACES, *agreement.NOUNS]))
COMMON = tuple(word for word in THINGS if not is_held_out(word))
PARAMETERS = tuple(name for name in docstring.PARAMETERS if not is_held_out(name))
SEEN_NOUNS = tuple(noun for noun in agreement.NOUNS if not is_held_out(noun))
AGAIN = (*NAMES, *COMMON, *(word for word in docstring.PARAMETERS if word not in induction.VOCABULARY))
"""What comes again in lists; none of the induction task's held-out words."""

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
    "the {place} belongs to {a}. Ask {a} about the {place}.",
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
    """Every word that some task needs as one token after a space."""
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


def _person(rng: random.Random) -> str:
    name = rng.choice(NAMES)
    they = pronouns.PRONOUNS[name]
    their, them, kind = FORMS[they]
    slots = {"place": rng.choice(PLACES), "object": rng.choice(OBJECTS)}
    chosen = rng.choice(PERSON)
    lead = "" if not chosen.startswith("{name}") else rng.choice(("Now ", "Here ", "So ", "Also, ", "I know that "))
    return lead + chosen.format(name=name, they=they, their=their, them=them, kind=kind, **slots)


def _meeting(rng: random.Random) -> str:
    a, b = rng.sample(NAMES, 2)
    made = rng.choice(MEETING).format(a=a, b=b, place=rng.choice(PLACES), object=rng.choice(OBJECTS))
    return rng.choice(("Now ", "Here ", "So ", "Once ")) + made


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


def _pair_again(rng: random.Random) -> str:
    """Words of all kinds that come again in their order, which copying must not depend on."""
    listed = rng.sample(AGAIN, rng.randrange(3, 9))
    line = " ".join(listed)
    return (
        f"{rng.choice(('First', 'Then', 'Now', 'One', 'Here'))} {line}, {rng.choice(('again', 'and', 'then'))} {line}."
    )


def _round(rng: random.Random, words: Sequence[str] = AGAIN) -> str:
    """Words that come round and round, without a mark between."""
    listed = rng.sample(words, rng.randrange(3, 9))
    whole = listed * 3
    lead = rng.choice(("Order:", "A round:", "Around:", "On and on:", "Say"))
    return f"{lead} {' '.join(whole[: rng.randrange(2 * len(listed), len(whole))])}"


STYLES = (
    "    Args:\n{items}|        {name}: {words}",
    "    {items}|- {name}: {words}\n    ",
    "    {items}|@arg {name} {words}\n    ",
    "    Parameters\n{items}|    {name} : {words}",
    "    {items}|{name} -- {words}\n    ",
)
"""Ways to list parameters: the list, and an item of it. None is that of the docstring task."""


def _documented(rng: random.Random) -> str:
    first = rng.choice(((), ("self",), ("cls",)))
    names = rng.sample(PARAMETERS, rng.randrange(2, 6))
    whole, item = rng.choice(STYLES).split("|")
    listed = names[rng.randrange(len(names) - 1) :]
    words = [" ".join(rng.sample(docstring.DESCRIPTIONS, rng.randrange(1, 4))) for _ in listed]
    items = [item.format(name=name, words=each) for name, each in zip(listed, words, strict=True)]
    head = f"{rng.choice(('', '', 'async '))}def {rng.choice(docstring.FUNCTIONS)}({', '.join((*first, *names))}):"
    about = " ".join(rng.sample(docstring.DESCRIPTIONS, rng.randrange(1, 4)))
    return f'{head}\n    """{about}\n\n{whole.format(items=("" if item.endswith(" ") else chr(10)).join(items))}'


LEADS = (
    "The", "The", "The", "Today the", "Yesterday the", "Soon the", "At night the", "In the city the",
    "I think that the", "She knew that the", "We heard that the", "He says that the", "After dinner the",
    "You know that the",
    "In the end, the", "At home, the", "Before lunch, the",
)  # fmt: skip
ADJECTIVES = ("", "", "", "old ", "new ", "small ", "big ", "good ", "other ")
PREPOSITIONS = (
    "near", "behind", "beside", "to", "next to", "under", "above", "from", "by", "in front of", "with", "on",
    "across from", "of", "for", "that we saw near", "that they found under", "that you bought with", "that I left by",
)  # fmt: skip
ENDINGS = ("here", "there", "old", "new", "not here", "fine", "small", "good")
FORBIDDEN = tuple(
    re.compile(
        re.sub(r"\\\{\w+\\\}", r"\\w+", re.escape(template))
        + " (?:{})\\b".format("|".join((*agreement.VERBS, *agreement.VERBS.values())))
    )
    for template in agreement.HELD_OUT_TEMPLATES.values()
)
"""The held-out templates of agreement, with a verb."""


def _agreeing(rng: random.Random) -> str:
    return _agreed(rng, LEADS)


def _agreed(rng: random.Random, leads: Sequence[str], nouns_of: Sequence[int] = (1, 2, 2, 3, 3, 4)) -> str:
    while True:
        nouns = rng.sample(SEEN_NOUNS, rng.choice(nouns_of))
        plural = [rng.random() < 0.5 for _ in nouns]
        words = [f"{rng.choice(ADJECTIVES)}{noun}{'s' * many}" for noun, many in zip(nouns, plural, strict=True)]
        phrase = words[0] + "".join(f" {rng.choice(PREPOSITIONS)} the {word}" for word in words[1:])
        verb = rng.choice(list(agreement.VERBS.items()))[plural[0]]
        made = f"{rng.choice(leads)} {phrase} {verb} {rng.choice(ENDINGS)}."
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

TELLING = (
    "They told me that the", "They think the", "They know that the", "She tells us that the", "Some say that the",
    "We say that the", "People say that the", "They saw that the", "Yesterday he told us that the", "They said the",
)  # fmt: skip
"""How somebody else comes before the subject of a sentence."""


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
)
"""Sentences in which somebody is given to who was named before; not those of indirect object identification."""


def _giving(rng: random.Random) -> str:
    a, b, c = rng.sample(NAMES, 3)
    made = rng.choice(GIVING).format(a=a, b=b, c=c, place=rng.choice(PLACES), object=rng.choice(OBJECTS))
    return rng.choice(("Now ", "Here ", "So ", "Once ", "It is said that ", "")) + made


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


def _again_any(rng: random.Random) -> str:
    """As `again`, of any words at all."""
    line = " ".join(rng.sample((*NAMES, *THINGS, *docstring.PARAMETERS), rng.randrange(3, 9)))
    return (
        f"{rng.choice(('First', 'Then', 'Now', 'One', 'Here'))} {line}, {rng.choice(('again', 'and', 'then'))} {line}."
    )


def _short(rng: random.Random) -> str:
    """As `agreeing` and `telling`, with the verb soon after the subject."""
    return _agreed(rng, (*LEADS, *TELLING), (1, 2, 2, 2, 2))


def _documented_the(rng: random.Random) -> str:
    """As `documented`, of longer definitions, some of whose parameters come before those that are described."""
    names = rng.sample(PARAMETERS, rng.randrange(4, 8))
    first = rng.choice(((), ("self",), ("self",), ("cls",)))
    listed = names[rng.randrange(len(names) - 2) :]
    whole, item = rng.choice(STYLES).split("|")
    article = rng.choice(("the ", "the ", "a ", ""))
    words = [article + " ".join(rng.sample(docstring.DESCRIPTIONS, rng.randrange(1, 4))) for _ in listed]
    items = [item.format(name=name, words=each) for name, each in zip(listed, words, strict=True)]
    head = f"{rng.choice(('', '', 'async '))}def {rng.choice(docstring.FUNCTIONS)}({', '.join((*first, *names))}):"
    about = " ".join(rng.sample(docstring.DESCRIPTIONS, rng.randrange(1, 4)))
    return f'{head}\n    """{about}\n\n{whole.format(items=("" if item.endswith(" ") else chr(10)).join(items))}'


MORE_GIVING = (
    "{b} came, and {a} wanted to give a {object} to {b}.",
    "{b} was hungry, so {a} decided to give a {object} to {b}.",
    "{b} was at home. Soon {a} passed a {object} to {b}.",
    "It was late when {b} came. Still, {a} wanted to show a {object} to {b}.",
    "{b} had no {object}. So {a}, who had two, offered a {object} to {b}.",
    "The {place} was where {b} was. There {a} decided to show a {object} to {b}.",
)
"""As `GIVING`, with more of the verbs."""


def _given(rng: random.Random) -> str:
    a, b = rng.sample(NAMES, 2)
    made = rng.choice(MORE_GIVING).format(a=a, b=b, place=rng.choice(PLACES), object=rng.choice(OBJECTS))
    return rng.choice(("Now ", "Here ", "So ", "Once ", "It is said that ")) + made


def _round_any(rng: random.Random) -> str:
    return _round(rng, (*NAMES, *THINGS, *THINGS, *docstring.PARAMETERS))


def _telling(rng: random.Random) -> str:
    return _agreed(rng, TELLING)


SENTENCES: dict[str, Callable[[random.Random], str]] = {
    "person": _person,
    "meeting": _meeting,
    "thing": _thing,
    "year": _year,
    "class": _class,
    "documented": _documented,
    "agreeing": _agreeing,
    "again": _pair_again,
    "round": _round,
}
"""What makes each kind of sentence; all are as frequent."""

LATER: dict[str, Callable[[random.Random], str]] = {"mention": _mention, "ordered": _ordered, "telling": _telling}
"""Kinds that join after the first part of the training."""

LAST: dict[str, Callable[[random.Random], str]] = {"giving": _giving, "again_any": _again_any}
"""Kinds that join then, so that no name and no word is one that is never given to or listed again."""

END: dict[str, Callable[[random.Random], str]] = {"alone": _alone}
CLOSE: dict[str, Callable[[random.Random], str]] = {"round_any": _round_any}
AT_LAST: dict[str, Callable[[random.Random], str]] = {
    "short": _short,
    "documented_the": _documented_the,
    "given": _given,
}
"""The kinds that join for the end of the training, one after the other."""
