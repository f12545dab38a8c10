"""Programs whose circuit is known: gates, compositions of heads, counting, sequences.

Each has a specification that is written on its own, so that what the program, the model and the specification say can
be compared on every prompt. Prompts end where the answer is asked for. Nothing here needs torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from patching.compiled.language import BOS, POSITIONS, TOKENS, Aggregate, Count, Map, Mean, Program, Prompt, Select

BITS = ("0", "1")
LETTERS = ("a", "b", "c")


def _at(position: int) -> Select:
    """One position, the same for all."""
    return Select(None, POSITIONS, lambda _, place: place == position)


def _back(steps: int) -> Select:
    """The position so many steps before."""
    return Select(POSITIONS, POSITIONS, lambda here, place: place == here - steps)


def _holds(symbol: str, key: str = TOKENS) -> Select:
    """Every position at which a variable holds a symbol."""
    return Select(None, key, lambda _, held: held == symbol)


def _same(query: str = TOKENS, key: str = TOKENS) -> Select:
    """Every position whose key is the query."""
    return Select(query, key, lambda wanted, held: wanted == held)


EVERY = Select(None, POSITIONS, lambda _, place: True)


def _yes(is_so: bool) -> str:
    return "yes" if is_so else "no"


def _occurs_once_before(prompt: Prompt) -> bool:
    """Whether the last token stands just once before, and not right before itself."""
    return prompt[:-1].count(prompt[-1]) == 1 and prompt[-2] != prompt[-1]


# --- gates ----------------------------------------------------------------------------------------------------------


def _gate(name: str, description: str, by: Callable[[bool, bool], bool], **others: Any) -> Program:
    """Two heads fetch two bits, an MLP joins them, at the third token."""
    return Program(
        name, description, ("0", "1", "="),
        {
            "left": Aggregate(_at(1), TOKENS),
            "right": Aggregate(_at(2), TOKENS),
            "both": Map(("left", "right"), lambda left, right: str(int(by(left == "1", right == "1")))),
        },
        {"both": 1.0},
        lambda prompt: str(int(by(prompt[0] == "1", prompt[1] == "1"))),
        lengths=(3,), valid=lambda prompt: prompt[2] == "=" and "=" not in prompt[:2], **others,
    )  # fmt: skip


ALL_OR_NOTHING = ((("1", "1", "="), ("0", "0", "=")),)

GATES = (
    _gate("and_gate", "two bits, both of which must be 1", lambda left, right: left and right),
    _gate(
        "or_gate", "two bits, one of which must be 1", lambda left, right: left or right, pairs=ALL_OR_NOTHING,
        note="Both bits are 1 in every clean prompt and 0 in every corrupt one, so either wire alone carries the "
        "answer and neither is needed: removing one changes nothing, and noising finds one branch of two.",
    ),
    _gate("xor_gate", "two bits, just one of which must be 1", lambda left, right: left != right),
    Program(
        "and_or_gate", "(first and second bit) or third", ("0", "1", "="),
        {
            "one": Aggregate(_at(1), TOKENS),
            "two": Aggregate(_at(2), TOKENS),
            "three": Aggregate(_at(3), TOKENS),
            "and": Map(("one", "two"), lambda one, two: one == two == "1"),
            "or": Map(("and", "three"), lambda both, three: str(int(both or three == "1"))),
        },
        {"or": 1.0},
        lambda prompt: str(int((prompt[0] == "1" and prompt[1] == "1") or prompt[2] == "1")),
        lengths=(4,), valid=lambda prompt: prompt[3] == "=" and "=" not in prompt[:3],
    ),
    Program(
        "parity", "whether three bits hold an odd number of 1s, two layers deep", ("0", "1", "="),
        {
            "one": Aggregate(_at(1), TOKENS),
            "two": Aggregate(_at(2), TOKENS),
            "three": Aggregate(_at(3), TOKENS),
            "half": Map(("one", "two"), lambda one, two: (one == "1") != (two == "1")),
            "odd": Map(("half", "three"), lambda half, three: str(int(half != (three == "1")))),
        },
        {"odd": 1.0},
        lambda prompt: str(prompt.count("1") % 2),
        lengths=(4,), valid=lambda prompt: prompt[3] == "=" and "=" not in prompt[:3],
    ),
    Program(
        "redundant_heads", "two heads copy the same bit, and either is enough", ("0", "1", "="),
        {
            "main": Aggregate(_at(1), TOKENS),
            "backup": Aggregate(_at(1), TOKENS),
            "either": Map(("main", "backup"), lambda main, backup: "1" if "1" in (main, backup) else "0"),
        },
        {"either": 1.0},
        lambda prompt: prompt[0],
        lengths=(2,), valid=lambda prompt: prompt[1] == "=" and prompt[0] != "=",
        pairs=((("1", "="), ("0", "=")),),
        note="Either head alone gives the answer, so removing one changes nothing; noising finds one of the two.",
    ),
    Program(
        "negative_head", "one head writes twice the first token, another takes one of it away again", LETTERS,
        {"for": Aggregate(_at(1), TOKENS), "against": Aggregate(_at(1), TOKENS)},
        {"for": 2.0, "against": -1.0},
        lambda prompt: prompt[0],
        lengths=(3,),
        note="The edges of the negative head lower the logit of the answer. ACDC drops what improves the metric "
        "unless it compares absolute changes; by absolute score, all edges count.",
    ),
)  # fmt: skip


# --- heads alone and heads composed ---------------------------------------------------------------------------------


def _after_first(prompt: Prompt, token: str) -> str:
    return prompt[prompt.index(token) + 1]


def _two_hop_is_clear(prompt: Prompt) -> bool:
    """Whether both hops lead to one place each."""
    if prompt[:-1].count(prompt[-1]) != 1:
        return False
    middle = prompt.index(prompt[-1]) + 1
    return middle < len(prompt) - 1 and prompt[middle] != prompt[-1] and prompt[:-1].count(prompt[middle]) == 1


def _lookup_is_clear(prompt: Prompt) -> bool:
    """Keys and values take turns, the last token is one of the keys, and no key comes twice."""
    keys, values = prompt[:-1:2], prompt[1:-1:2]
    letters, digits = set("abc"), set("12")
    return set(keys) <= letters and set(values) <= digits and len(set(keys)) == len(keys) and prompt[-1] in keys


def _reverse_is_under_way(prompt: Prompt) -> bool:
    """Two or three letters, the separator, and what of their reverse has been given so far, with some left to give."""
    if prompt.count("|") != 1:
        return False
    at = prompt.index("|")
    letters, given = prompt[:at], prompt[at + 1 :]
    return at in (2, 3) and len(given) < at and given == letters[::-1][: len(given)]


def _reversed(prompt: Prompt) -> str:
    at = prompt.index("|")
    return prompt[:at][::-1][len(prompt) - at - 1]


HEADS = (
    Program(
        "copy_token", "the last token itself, with no head at all", LETTERS,
        {}, {TOKENS: 1.0}, lambda prompt: prompt[-1], lengths=(1, 2, 3),
    ),
    Program(
        "next_letter", "the letter after the last one in the alphabet, by an MLP alone", LETTERS,
        {"next": Map((TOKENS,), lambda token: {"a": "b", "b": "c", "c": "a"}.get(token, BOS))},
        {"next": 1.0}, lambda prompt: "abca"["abc".index(prompt[-1]) + 1], lengths=(1, 2, 3),
    ),
    Program(
        "first_token", "the first token", LETTERS,
        {"first": Aggregate(_at(1), TOKENS)}, {"first": 1.0}, lambda prompt: prompt[0], lengths=(2, 3, 4),
    ),
    Program(
        "previous_token", "the token before the last: a shift by one", LETTERS,
        {"before": Aggregate(_back(1), TOKENS)},
        {"before": 1.0}, lambda prompt: (BOS, *prompt)[-2], lengths=(1, 2, 3, 4),
    ),
    Program(
        "third_back", "the token three steps back", LETTERS,
        {"back": Aggregate(_back(3), TOKENS)}, {"back": 1.0}, lambda prompt: prompt[-4], lengths=(4, 5),
    ),
    Program(
        "first_letter", "the first token that is not a dot", (".", "a", "b"),
        {
            "letters": Count(Select(None, TOKENS, lambda _, held: held in ("a", "b"))),
            "is_one": Map(("letters",), lambda count: count == 1),
            "mark": Map(("is_one", TOKENS), lambda is_one, token: "first" if is_one and token in ("a", "b") else "-"),
            "first": Aggregate(_holds("first", "mark"), TOKENS),
        },
        {"first": 1.0},
        lambda prompt: next((token for token in prompt if token != "."), BOS),
        lengths=(3, 4, 5),
    ),
    Program(
        "induction_by_hand", "what followed the last token when it stood there before", ("a", "b", "c", "d"),
        {
            "before": Aggregate(_back(1), TOKENS),
            "after": Aggregate(_same(TOKENS, "before"), TOKENS),
        },
        {"after": 1.0},
        lambda prompt: _after_first(prompt, prompt[-1]),
        lengths=(4, 5), valid=_occurs_once_before,
        note="A previous-token head feeds the keys of an induction head (K-composition).",
    ),
    Program(
        "two_hop", "what follows the token that follows the last one: a b b c a -> b -> c", ("a", "b", "c", "d"),
        {
            "before": Aggregate(_back(1), TOKENS),
            "one": Aggregate(_same(TOKENS, "before"), TOKENS),
            "two": Aggregate(_same("one", "before"), TOKENS),
        },
        {"two": 1.0},
        lambda prompt: _after_first(prompt, _after_first(prompt, prompt[-1])),
        lengths=(4, 5, 6), valid=_two_hop_is_clear,
        note="Q- and K-composition in one chain: the first hop is the query of the second.",
    ),
    Program(
        "key_value_lookup", "the value that stood after the same key: a 1 b 2 b -> 2", ("a", "b", "c", "1", "2"),
        {
            "key": Aggregate(_back(1), TOKENS),
            "found": Aggregate(Select(TOKENS, "key", lambda wanted, key: wanted in ("a", "b", "c") and wanted == key),
                               TOKENS),
        },
        {"found": 1.0},
        lambda prompt: dict(zip(prompt[:-1:2], prompt[1:-1:2], strict=True))[prompt[-1]],
        lengths=(3, 5), valid=_lookup_is_clear,
    ),
    Program(
        "reverse", "after a separator, the letters before it from last to first", ("a", "b", "c", "|"),
        {
            "middle": Aggregate(_holds("|"), POSITIONS),
            "wanted": Map(("middle", POSITIONS), lambda middle, here: max(0, 2 * middle - here - 1)),
            "letter": Aggregate(_same("wanted", POSITIONS), TOKENS),
        },
        {"letter": 1.0}, _reversed, lengths=(3, 4, 5, 6), valid=_reverse_is_under_way,
    ),
    Program(
        "decoys", "the previous token, beside a chain of heads and MLPs that the output does not read", LETTERS,
        {
            "before": Aggregate(_back(1), TOKENS),
            "unread": Aggregate(_at(1), TOKENS),
            "mixed": Map(("unread", "before"), lambda unread, before: unread == before),
            "deeper": Aggregate(Select("before", TOKENS, lambda wanted, held: wanted == held), "before"),
            "deepest": Map(("mixed", "before"), lambda mixed, before: (mixed, before)),
        },
        {"before": 1.0}, lambda prompt: prompt[-2], lengths=(3,),
        valid=lambda prompt: len(set(prompt)) == len(prompt),
        note="Most of the model computes something; none of it is in the circuit.",
    ),
)  # fmt: skip


# --- counting -------------------------------------------------------------------------------------------------------


def _count(symbol: str) -> Count:
    return Count(_holds(symbol))


def _fractions(prompt: Prompt, symbols: tuple[str, ...]) -> dict[str, Fraction]:
    return {symbol: Fraction(prompt.count(symbol), len(prompt)) for symbol in symbols}


def _is_balanced(prompt: Prompt) -> bool:
    heights = list(itertools.accumulate({"(": 1, ")": -1}[token] for token in prompt))
    return heights[-1] == 0 and min(heights) >= 0


COUNTING = (
    Program(
        "xproportion", "the fraction of tokens so far that are x", ("x", "a", "b"),
        {
            "is_x": Map((TOKENS,), lambda token: "x" if token == "x" else "other"),
            "share": Mean(EVERY, "is_x"),
        },
        {"share": 1.0},
        lambda prompt: {"x": _fractions(prompt, ("x",))["x"], "other": 1 - _fractions(prompt, ("x",))["x"]},
        lengths=(3, 4, 5),
    ),
    Program(
        "most_frequent", "the token that stands there most often, by one head that averages", LETTERS,
        {"shares": Mean(EVERY, TOKENS)}, {"shares": 1.0}, lambda prompt: _fractions(prompt, LETTERS), lengths=(3, 5),
    ),
    Program(
        "count", "how many of the tokens are x", ("x", "a"),
        {"many": _count("x"), "number": Map(("many",), str)},
        {"number": 1.0}, lambda prompt: str(prompt.count("x")), lengths=(3, 4, 5),
    ),
    Program(
        "even_count", "whether the number of x is even", ("x", "a"),
        {"many": _count("x"), "even": Map(("many",), lambda count: "even" if count % 2 == 0 else "odd")},
        {"even": 1.0}, lambda prompt: ("even", "odd")[sum(token == "x" for token in prompt) % 2], lengths=(3, 4, 5),
    ),
    Program(
        "histogram", "how often the last token has come so far, itself included", LETTERS,
        {"many": Count(_same()), "number": Map(("many",), str)},
        {"number": 1.0}, lambda prompt: str(prompt.count(prompt[-1])), lengths=(3, 4, 5),
    ),
    Program(
        "duplicate", "whether the last token came before", ("a", "b", "c", "d"),
        {"many": Count(_same()), "again": Map(("many",), lambda count: _yes(count > 1))},
        {"again": 1.0}, lambda prompt: _yes(prompt[-1] in prompt[:-1]), lengths=(2, 3, 4),
    ),
    Program(
        "rank", "how many tokens so far are smaller than the last one", ("1", "2", "3"),
        {
            "smaller": Count(Select(TOKENS, TOKENS, lambda here, held: BOS not in (here, held) and held < here)),
            "rank": Map(("smaller",), str),
        },
        {"rank": 1.0}, lambda prompt: str(sum(int(token) < int(prompt[-1]) for token in prompt)), lengths=(3, 4),
    ),
    Program(
        "compare_counts", "whether a or b is more frequent, or neither", ("a", "b", "."),
        {
            "many_a": _count("a"), "number_a": Map(("many_a",), lambda count: count),
            "many_b": _count("b"), "number_b": Map(("many_b",), lambda count: count),
            "more": Map(("number_a", "number_b"), lambda a, b: "a" if a > b else "b" if b > a else "tie"),
        },
        {"more": 1.0},
        lambda prompt: {-1: "b", 0: "tie", 1: "a"}[(d := prompt.count("a") - prompt.count("b")) and d // abs(d)],
        lengths=(3, 4),
    ),
    Program(
        "balanced_brackets", "whether all brackets are closed, and none before it was opened", ("(", ")"),
        {
            "opened": _count("("), "number_opened": Map(("opened",), lambda count: count),
            "closed": _count(")"), "number_closed": Map(("closed",), lambda count: count),
            "height": Map(("number_opened", "number_closed"), lambda up, down: "+" if up > down else "-0"[up == down]),
            "ever_below": Aggregate(_holds("-", "height"), "height"),
            "balanced": Map(("ever_below", "height"), lambda below, height: _yes(below != "-" and height == "0")),
        },
        {"balanced": 1.0}, lambda prompt: _yes(_is_balanced(prompt)), lengths=(2, 4, 6),
    ),
)  # fmt: skip


# --- patterns and sets ----------------------------------------------------------------------------------------------


def _present(symbol: str) -> Aggregate:
    """The symbol if it occurs, else `BOS`."""
    return Aggregate(_holds(symbol), TOKENS)


def _next_of(there: str, token: str) -> str:
    """The smallest of the symbols in `there`, or the smallest above a token; a dot at the end."""
    return min((symbol for symbol in there if token == "|" or symbol > token), default=".")


def _sorting_is_under_way(prompt: Prompt) -> bool:
    """Letters, the separator, and what has been given so far of the sorted letters, each once."""
    if prompt.count("|") != 1:
        return False
    at = prompt.index("|")
    order, given = tuple(sorted(set(prompt[:at]))), prompt[at + 1 :]
    return at >= 1 and given == order[: len(given)]


def _next_in_order(prompt: Prompt) -> str:
    at = prompt.index("|")
    return [*sorted(set(prompt[:at])), "."][len(prompt) - at - 1]


PATTERNS = (
    Program(
        "previous_equal", "whether the last two tokens are the same", LETTERS,
        {
            "before": Aggregate(_back(1), TOKENS),
            "same": Map(("before", TOKENS), lambda before, token: _yes(before == token)),
        },
        {"same": 1.0}, lambda prompt: _yes(prompt[-1] == prompt[-2]), lengths=(2, 3, 4),
    ),
    Program(
        "modular_sum", "the sum of the last two digits modulo 3", ("0", "1", "2"),
        {
            "before": Aggregate(_back(1), TOKENS),
            "sum": Map(("before", TOKENS), lambda a, b: BOS if BOS in (a, b) else str((int(a) + int(b)) % 3)),
        },
        {"sum": 1.0}, lambda prompt: str((int(prompt[-2]) + int(prompt[-1])) % 3), lengths=(2, 3, 4),
    ),
    Program(
        "detect_pattern", "whether a b has come anywhere", LETTERS,
        {
            "before": Aggregate(_back(1), TOKENS),
            "hit": Map(("before", TOKENS), lambda before, token: _yes((before, token) == ("a", "b"))),
            "ever": Aggregate(_holds("yes", "hit"), "hit"),
        },
        {"ever": 1.0}, lambda prompt: _yes("ab" in "".join(prompt)), lengths=(3, 4, 5),
    ),
    Program(
        "skip_trigram", "after b or c, whether an a has come before: a ... b -> yes", LETTERS,
        {
            "seen": _present("a"),
            "said": Map(("seen", TOKENS), lambda seen, token: _yes(seen == "a") if token in ("b", "c") else token),
        },
        {"said": 1.0}, lambda prompt: _yes("a" in prompt) if prompt[-1] != "a" else "a", lengths=(2, 3, 4),
    ),
    Program(
        "maximum", "the largest letter among dots, by one head for each letter that may be there", (".", *LETTERS),
        {
            "a": _present("a"), "b": _present("b"), "c": _present("c"),
            "two": Map(("a", "b"), max),
            "largest": Map(("two", "c"), lambda two, c: "c" if c == "c" else two),
        },
        {"largest": 1.0}, lambda prompt: max((token for token in prompt if token != "."), default=BOS),
        lengths=(2, 3, 4),
    ),
    Program(
        "sort_unique", "after a separator, the letters before it in order, each once", ("a", "b", "c", "|"),
        {
            "a": _present("a"), "b": _present("b"), "c": _present("c"),
            "two": Map(("a", "b"), lambda a, b: ("a" if a == "a" else "") + ("b" if b == "b" else "")),
            "all": Map(("two", "c"), lambda two, c: two + ("c" if c == "c" else "")),
            "next": Map(("all", TOKENS), _next_of),
        },
        {"next": 1.0}, _next_in_order, lengths=(3, 4, 5), valid=_sorting_is_under_way,
    ),
)  # fmt: skip

PROGRAMS: dict[str, Program] = {program.name: program for program in (*GATES, *HEADS, *COUNTING, *PATTERNS)}
"""Every program by name."""
