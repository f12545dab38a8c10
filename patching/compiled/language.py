"""A small language of programs that a transformer can be built to run: RASP with finite alphabets.

A program is a set of named variables. Every variable has a value at every position of a prompt, and every value is one
of finitely many symbols. Two variables are given: `tokens` (position 0 always holds the beginning-of-sequence symbol
`BOS`) and `positions` (0, 1, 2, ...). The others are made by four operations:

=====================  ================================================================================================
`Aggregate(s, value)`  an attention head: the value at the positions that the selector `s` picks
`Mean(s, value)`       the same where values differ: how often each symbol occurs there, as fractions
`Count(s)`             an attention head: how many positions the selector picks, as 1 / (1 + count)
`Map(names, by)`       an MLP: a function of one or several variables at the same position
=====================  ================================================================================================

A selector compares a query variable at one position with a key variable at that position and all before it. Position 0
is never picked; a head whose selector picks nothing takes the value at position 0 instead. Nothing here needs torch.

Source: RASP, arXiv 2106.06981; tracr, arXiv 2301.05062. Ours is causal, has no hidden sorts or divisions, and knows for
each variable which nodes write and read it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, Final

from graphs.errors import WiretraceError
from graphs.nodes import Letter

BOS: Final = "^"
"""What stands at position 0 of every prompt."""

TOKENS: Final = "tokens"
POSITIONS: Final = "positions"
INPUTS: Final = (TOKENS, POSITIONS)
MOST_PROMPTS: Final = 200_000
"""More token lists than this are not enumerated."""

Symbol = Hashable
Value = Any  # a symbol, a count, or the fraction of each symbol
Prompt = tuple[str, ...]


class InvalidProgram(WiretraceError):
    """A program that cannot be compiled."""


@dataclass(frozen=True)
class Select:
    """Which earlier positions a position looks at.

    Attributes:
        query: variable at the looking position; None if it does not matter (the predicate then gets None).
        key: variable at the positions looked at.
        predicate: of query symbol and key symbol.
    """

    query: str | None
    key: str
    predicate: Callable[[Any, Any], bool]


@dataclass(frozen=True)
class Aggregate:
    """The value at the selected positions, which must be the same at all of them."""

    select: Select
    value: str


@dataclass(frozen=True)
class Mean:
    """The fraction of the selected positions that hold each symbol. Only the output can read it."""

    select: Select
    value: str


@dataclass(frozen=True)
class Count:
    """How many positions are selected. Only a `Map` of this variable alone can read it."""

    select: Select


@dataclass(frozen=True)
class Map:
    """A function of variables at one position.

    Attributes:
        of: the variables, in the order of the function's arguments.
        by: the function, from symbols (or one count) to a symbol.
    """

    of: tuple[str, ...]
    by: Callable[..., Symbol]


Operation = Aggregate | Mean | Count | Map


@dataclass(frozen=True, eq=False)  # two programs are the same if they are one object: functions cannot be compared
class Program:
    """A program, what it should compute, and on which prompts.

    Attributes:
        name: of the model (`zoo:NAME`) and the task.
        description: one line.
        alphabet: the tokens of prompts, without `BOS`.
        variables: name and operation of every variable.
        output: the variables that are turned into logits, with their weights; all of them have symbols that become
            tokens. Usually one variable of weight 1.
        specification: what the answer after a prompt (without `BOS`) is, written without regard to the program: a
            symbol, or the value of each symbol.
        lengths: how many tokens prompts have, without `BOS`.
        valid: which token lists of these lengths are prompts.
        pairs: clean and corrupt prompts to draw from; empty for any two of one length with different answers.
        note: what is special about the circuit; says so where it is not minimal.
    """

    name: str
    description: str
    alphabet: tuple[str, ...]
    variables: Mapping[str, Operation]
    output: Mapping[str, float]
    specification: Callable[[Prompt], Any]
    lengths: tuple[int, ...]
    valid: Callable[[Prompt], bool] = lambda prompt: True
    pairs: tuple[tuple[Prompt, Prompt], ...] = ()
    note: str = ""

    @property
    def context(self) -> int:
        """How many positions the model has: the longest prompt and `BOS`."""
        return max(self.lengths) + 1

    @property
    def width(self) -> int:
        """How many dimensions the residual stream of its model has: those of all variables."""
        return sum(variable.width for variable in self.analysis.values())

    @cached_property
    def analysis(self) -> Mapping[str, Variable]:
        """Every variable with what follows from the program, in an order in which each can be computed.

        Raises:
            InvalidProgram: the program makes no sense; the message says why.
        """
        return analyse(self)

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """The tokens of the model: `BOS`, the alphabet, and what else the output can be."""
        said = (str(symbol) for name in self.output for symbol in self.analysis[name].symbols)
        return tuple(dict.fromkeys((BOS, *self.alphabet, *said)))

    def prompts(self, length: int) -> list[Prompt]:
        """Every prompt of a length, in alphabetical order of its tokens.

        Raises:
            InvalidProgram: there are too many token lists to go through.
        """
        if len(self.alphabet) ** length > MOST_PROMPTS:
            raise InvalidProgram(
                f"expected at most {MOST_PROMPTS:,} token lists to go through; {self.name} has {len(self.alphabet)} "
                f"tokens and prompts of {length}. Shorten the prompts or the alphabet."
            )
        return [prompt for prompt in itertools.product(self.alphabet, repeat=length) if self.valid(prompt)]

    def run(self, prompt: Sequence[str], *, instead: Mapping[str, Run] | None = None) -> Run:
        """The program on `BOS` and a prompt, to be asked for values. It computes what the values asked for need.

        Args:
            prompt: tokens, without `BOS`.
            instead: variables that are not computed here but take, at every position, the value that they have in
                another run, on a prompt as long: an interchange intervention.

        Raises:
            InvalidProgram: a variable that the program does not compute, or a prompt of another length.

        Example:
            >>> from patching.compiled.programs import PROGRAMS
            >>> program = PROGRAMS["modular_sum"]
            >>> program.run(("1", "2")).answer(), program.run(("0", "2")).answer()
            ('0', '2')
            >>> program.run(("1", "2"), instead={"before": program.run(("0", "2"))}).answer()
            '2'
        """
        return Run(self, (BOS, *prompt), {} if instead is None else instead)

    def logits(self, prompt: Sequence[str]) -> dict[str, float]:
        """What the program says after a prompt: the weighted value of each token, before scaling."""
        return self.run(prompt).logits()

    def answer(self, prompt: Prompt) -> str | None:
        """The right answer after a prompt, as a token, by the specification; None if several are equally right."""
        said = self.specification(prompt)
        if not isinstance(said, Mapping):
            return str(said)
        best = [symbol for symbol, value in said.items() if value == max(said.values())]
        return str(best[0]) if len(best) == 1 else None


@dataclass(frozen=True)
class Variable:
    """What follows from a program about one variable.

    Attributes:
        name: of the variable.
        operation: that makes it; None for the inputs.
        symbols: its alphabet; empty for a count.
        kind: `symbol`, `mean` or `count`.
        varies: whether it depends on tokens; otherwise it is the same on every prompt.
        at_bos: its value at position 0, which is the same on every prompt.
    """

    name: str
    operation: Operation | None
    symbols: tuple[Symbol, ...]
    kind: str
    varies: bool
    at_bos: Value

    @property
    def width(self) -> int:
        """How many dimensions of the residual stream it takes."""
        return 1 if self.kind == "count" else len(self.symbols)


def reads(operation: Operation) -> dict[Letter | None, tuple[str, ...]]:
    """The variables that an operation reads, by port: q, k and v for a head, None for an MLP.

    Every head also reads at its key port which position is the first, to keep apart from the others the one that
    stands for "nothing selected"; a `Count` reads it at its value port too.
    """
    if isinstance(operation, Map):
        return {None: operation.of}
    select = operation.select
    value = POSITIONS if isinstance(operation, Count) else operation.value
    query = () if select.query is None else (select.query,)
    return {"q": query, "k": tuple(dict.fromkeys((select.key, POSITIONS))), "v": (value,)}


def analyse(program: Program) -> dict[str, Variable]:
    """Check a program and find the alphabet, kind and value at position 0 of each variable.

    Raises:
        InvalidProgram: tokens that text cannot tell apart, no lengths, unknown or cyclic variables, a map of nothing, a
            mean or count where symbols are needed, a selector by position that looks ahead.
    """
    _check_prompts(program)
    _check_names(program)
    known = {
        TOKENS: Variable(TOKENS, None, (BOS, *program.alphabet), "symbol", True, BOS),
        POSITIONS: Variable(POSITIONS, None, tuple(range(program.context)), "symbol", False, 0),
    }
    for name in _in_order(program):
        known[name] = _variable(name, program.variables[name], known, program)
    for name in program.output:
        if known[name].kind == "count":
            raise InvalidProgram(f"expected symbols or a mean as output of {program.name}; {name} is a count. Map it.")
    return known


def _check_prompts(program: Program) -> None:
    if not program.alphabet or len(set(program.alphabet)) < len(program.alphabet) or BOS in program.alphabet:
        raise InvalidProgram(
            f"expected an alphabet of distinct tokens without {BOS!r}; got {program.alphabet} in {program.name}."
        )
    blank = [token for token in program.alphabet if token.split() != [token]]
    if blank:
        raise InvalidProgram(
            f"expected tokens without blanks in {program.name}, which part the tokens of a text; got {blank[0]!r}."
        )
    if not program.lengths or min(program.lengths) < 1:
        raise InvalidProgram(
            f"expected lengths of at least one token for the prompts of {program.name}; got {program.lengths}."
        )


def _check_names(program: Program) -> None:
    taken = [name for name in INPUTS if name in program.variables]
    if taken or not program.output:
        what = f"the name {taken[0]!r} is an input's" if taken else "there is no output"
        raise InvalidProgram(f"expected new names for variables and an output in {program.name}; {what}.")
    for name, made in program.variables.items():
        if isinstance(made, Map) and not made.of:
            raise InvalidProgram(
                f"expected variables for {name} of {program.name} to map; got none. For one that is always the same, "
                f"map {POSITIONS}."
            )
    uses = [(name, used) for name, made in program.variables.items() for used in itertools.chain(*reads(made).values())]
    for user, used in [*uses, *(("the output", name) for name in program.output)]:
        if used not in (*INPUTS, *program.variables):
            raise InvalidProgram(
                f"expected a variable out of {', '.join((*INPUTS, *program.variables))} in {program.name}; "
                f"{user} reads {used!r}. Define it, or mind the spelling."
            )


def _in_order(program: Program) -> Iterator[str]:
    """The program's own variables, each after those that it reads."""
    done, left = set[str](INPUTS), dict(program.variables)
    while left:
        ready = [name for name, made in left.items() if set(itertools.chain(*reads(made).values())) <= done]
        if not ready:
            raise InvalidProgram(
                f"expected variables that can be computed one after another in {program.name}; "
                f"{', '.join(left)} read each other in a circle. Break it."
            )
        for name in ready:
            del left[name]
        done.update(ready)
        yield from ready


def _variable(name: str, made: Operation, known: Mapping[str, Variable], program: Program) -> Variable:
    used = [known[each] for each in itertools.chain(*reads(made).values())]
    alone = isinstance(made, Map) and len(made.of) == 1
    for each in used:
        if each.kind == "mean" or (each.kind == "count" and not alone):
            remedy = "Map it to symbols first" if each.kind == "count" else "Only the output can read it"
            raise InvalidProgram(
                f"expected symbols for {name} of {program.name}; {each.name} is a {each.kind}. {remedy}."
            )
    varies = any(each.varies for each in used)
    if isinstance(made, Map):
        domains = [range(program.context) if each.kind == "count" else each.symbols for each in used]
        symbols = tuple(dict.fromkeys(made.by(*row) for row in itertools.product(*domains)))
        return Variable(name, made, symbols, "symbol", varies, made.by(*(each.at_bos for each in used)))
    _check_causal(name, made.select, known, program)
    if isinstance(made, Count):
        return Variable(name, made, (), "count", varies, 0)
    value = known[made.value]
    if isinstance(made, Mean):
        return Variable(name, made, value.symbols, "mean", varies, {value.at_bos: Fraction(1)})
    return Variable(name, made, value.symbols, "symbol", varies, value.at_bos)


def _check_causal(name: str, select: Select, known: Mapping[str, Variable], program: Program) -> None:
    """Refuse a selector over bare positions that picks later ones: the causal mask would hide them silently."""
    if (select.query, select.key) != (POSITIONS, POSITIONS):
        return
    for query, key in itertools.combinations(known[POSITIONS].symbols, 2):
        if select.predicate(query, key):
            raise InvalidProgram(
                f"expected {name} of {program.name} to look back; at position {query} it selects position {key}. "
                "A causal model cannot see it: let the predicate ask for key <= query too."
            )


class Run:
    """A program on one prompt, interpreted: symbols stand for themselves, counts are whole numbers, means fractions.

    Made by `Program.run`.

    Attributes:
        program: that is run.
        prompt: its tokens, with `BOS`.
        instead: variables that take the values of other runs.
    """

    def __init__(self, program: Program, prompt: Prompt, instead: Mapping[str, Run] | None = None) -> None:
        self.program, self.prompt, self.instead = program, prompt, dict(instead or {})
        self._known: dict[tuple[str, int], Value] = {}
        for name, other in self.instead.items():
            if name not in program.variables:
                raise InvalidProgram(
                    f"expected a variable out of {', '.join(program.variables) or 'none'} of {program.name} to take "
                    f"from another run; got {name!r}."
                )
            if other.program is not program or len(other.prompt) != len(prompt):
                raise InvalidProgram(
                    f"expected a run of {program.name} on {len(prompt)} tokens to take {name} from; got one of "
                    f"{other.program.name} on {len(other.prompt)}."
                )

    def logits(self) -> dict[str, float]:
        """What the program says after the last token: the weighted value of each token, before scaling."""
        total = dict.fromkeys(self.program.vocabulary, 0.0)
        for name, weight in self.program.output.items():
            value = self.value(name, len(self.prompt) - 1)
            shares = value if isinstance(value, dict) else {value: 1}
            for symbol, share in shares.items():
                total[str(symbol)] += weight * float(share)
        return total

    def answer(self) -> str | None:
        """The token of the largest logit; None if there are several."""
        said = self.logits()
        best = [token for token, value in said.items() if value == max(said.values())]
        return best[0] if len(best) == 1 else None

    def value(self, name: str, at: int) -> Value:
        """A variable at a position.

        Raises:
            InvalidProgram: an `Aggregate` that this needs meets different values at once.
        """
        if (name, at) not in self._known:
            self._known[name, at] = self._computed(name, at)
        return self._known[name, at]

    def _computed(self, name: str, at: int) -> Value:
        if name in INPUTS:
            return self.prompt[at] if name == TOKENS else at
        if name in self.instead:
            return self.instead[name].value(name, at)
        made = self.program.variables[name]
        if isinstance(made, Map):
            return made.by(*(self.value(each, at) for each in made.of))
        query = None if made.select.query is None else self.value(made.select.query, at)
        places = [
            place for place in range(1, at + 1) if made.select.predicate(query, self.value(made.select.key, place))
        ]
        if isinstance(made, Count):
            return len(places)
        seen = [self.value(made.value, place) for place in places or [0]]
        if isinstance(made, Mean):
            return {symbol: Fraction(seen.count(symbol), len(seen)) for symbol in dict.fromkeys(seen)}
        if len(set(seen)) > 1:
            raise InvalidProgram(
                f"expected one value at all positions that {name} of {self.program.name} selects; at position {at} of "
                f"{' '.join(self.prompt)!r} they are {seen}. Use Mean, or restrict the prompts."
            )
        return seen[0]
