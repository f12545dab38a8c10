"""Interchange interventions on programs: what a program says when some variables come from another prompt.

The *base* is the prompt that is run; variables written by some nodes take, at every position, the values that they have
on the *source*. What the program then says is what a model must say whose nodes compute these variables, when the
writes of the same nodes are exchanged for those that they make on the source. Nothing here needs torch.

Source: arXiv 2106.02997 (interchange interventions), 2112.00826 (training with them), 2407.14494 (strict: nodes without
variables are exchanged too, and must change nothing).
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from graphs.nodes import INPUT, Node
from patching.compiled.language import InvalidProgram, Program, Prompt
from patching.compiled.prompts import SMALLEST_SPLIT, SPLITS, is_held_out
from patching.compiled.wiring import lay_out
from patching.errors import InvalidOption

TRIES: Final = 20
"""So many pairs are drawn for each that is asked for before a node is said to have none."""


@dataclass(frozen=True)
class Interchange:
    """An interchange intervention and what the program says to it.

    Attributes:
        base: the prompt that is run, without `BOS`.
        source: the prompt, as long, on which the exchanged variables are computed.
        nodes: whose variables are exchanged.
        said: the value of each token, before scaling: its logit in the compiled model.
        answer: the token of the largest; None if there are several.
        matters: whether the answer is another than that of the base alone.
    """

    base: Prompt
    source: Prompt
    nodes: tuple[Node, ...]
    said: Mapping[str, float]
    answer: str | None
    matters: bool


@functools.cache
def alignment(program: Program) -> Mapping[Node, tuple[str, ...]]:
    """Which variables each node of a program's model writes: those that the output depends on, in order of layers.

    Example:
        >>> from patching.compiled.programs import PROGRAMS
        >>> {str(node): names for node, names in alignment(PROGRAMS["reverse"]).items()}
        {'a0.h0': ('middle',), 'm0': ('wanted',), 'a1.h0': ('letter',)}
    """
    wiring = lay_out(program)
    needed = wiring.needed()
    found: dict[Node, tuple[str, ...]] = {}
    for name in program.analysis:
        node = wiring.writers[name]
        if node != INPUT and name in needed:
            found[node] = (*found.get(node, ()), name)
    order = {node: number for number, node in enumerate(wiring.circuit(constants=True).graph.sources)}
    return dict(sorted(found.items(), key=lambda item: order[item[0]]))


def intervene(program: Program, base: Prompt, source: Prompt, nodes: tuple[Node, ...]) -> Interchange:
    """What a program says after a prompt when the variables of some nodes come from another one.

    Args:
        program: that is run.
        base: a prompt.
        source: another of the same length.
        nodes: out of `alignment`.

    Raises:
        InvalidOption: a node writes no variable that the output depends on.
        InvalidProgram: the prompts are not of one length, or a head meets several values at once, so that the program
            says nothing.

    Example:
        >>> from graphs import Node
        >>> from patching.compiled.programs import PROGRAMS
        >>> swapped = intervene(PROGRAMS["and_gate"], ("1", "1", "="), ("0", "0", "="), (Node.parse("a0.h0"),))
        >>> swapped.answer, swapped.matters
        ('0', True)
    """
    aligned = alignment(program)
    unknown = [str(node) for node in nodes if node not in aligned]
    if unknown:
        raise InvalidOption(
            f"expected nodes out of {', '.join(map(str, aligned))}, which hold variables of {program.name}; "
            f"got {', '.join(unknown)}."
        )
    other = program.run(source)
    run = program.run(base, instead={name: other for node in nodes for name in aligned[node]})
    return Interchange(base, source, nodes, run.logits(), run.answer(), run.answer() != program.run(base).answer())


def pool(program: Program, split: str) -> list[Prompt]:
    """The prompts of a split: about four in five for `train`, the others for `held-out`; all if there are few.

    Raises:
        InvalidOption: there is no such split.
    """
    if split not in SPLITS:
        raise InvalidOption(f"expected split to be one of {', '.join(SPLITS)}; got {split!r}.")
    prompts = [prompt for length in program.lengths for prompt in program.prompts(length)]
    if len(prompts) < SMALLEST_SPLIT:
        return prompts
    return [prompt for prompt in prompts if is_held_out(prompt) == (split == "held-out")]


def draw(
    program: Program, nodes: tuple[Node, ...], *, n: int, seed: int, split: str = "train", matters: float = 0.5
) -> list[Interchange]:
    """Draw interchange interventions on some nodes, with repetition; base and source are of one split and length.

    Pairs to which the program says nothing (a head meets several values at once) or for which several answers are
    equally right are left out.

    Args:
        program: whose prompts.
        nodes: whose variables are exchanged, out of `alignment`; none for plain runs, which never change the answer.
        n: how many.
        seed: of the draw.
        split: `train` or `held-out`.
        matters: share of those in which the answer changes, as far as such pairs are found.

    Raises:
        InvalidOption: an option is out of its range, or there is no pair at all.

    Example:
        >>> from graphs import Node
        >>> from patching.compiled.programs import PROGRAMS
        >>> drawn = draw(PROGRAMS["previous_token"], (Node.parse("a0.h0"),), n=4, seed=0)
        >>> [each.answer == each.source[-2] for each in drawn if len(each.base) > 1]
        [True, True, True, True]
    """
    if n < 1:
        raise InvalidOption(f"expected n, the number of interventions, to be at least 1; got {n}.")
    rng = random.Random(f"{seed} {split} {' '.join(map(str, nodes))}")
    prompts = pool(program, split)
    by_length = {len(prompt): [other for other in prompts if len(other) == len(prompt)] for prompt in prompts}
    found: dict[bool, list[Interchange]] = {True: [], False: []}
    share = round(n * matters) if nodes else 0
    for _ in range(TRIES * n):
        if len(found[True]) >= share and len(found[False]) >= n - share:
            break
        base = rng.choice(prompts)
        try:
            made = intervene(program, base, rng.choice(by_length[len(base)]), nodes)
        except InvalidProgram:
            continue
        if made.answer is not None:
            found[made.matters].append(made)
    changing = found[True][: max(share, n - len(found[False]))]
    drawn = changing + found[False][: n - len(changing)]
    if not drawn:
        raise InvalidOption(
            f"expected prompts of {program.name} to exchange {', '.join(map(str, nodes))}; none is fit."
        )
    drawn = list(itertools.islice(itertools.cycle(drawn), n))
    rng.shuffle(drawn)
    return drawn
