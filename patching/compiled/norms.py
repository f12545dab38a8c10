"""Which programs can be compiled into a model with LayerNorm, exactly. Nothing here needs torch.

LayerNorm takes the mean from a residual and divides by its length. Both do nothing if the mean is always 0 and the
length always the same. So a compiled model with LayerNorm holds every variable twice, as x and as -x: the mean is 0. A
symbol is a one-hot vector, so a residual into which n symbols were written has the squared length 2 n, on every prompt
and at every position; the weights of each norm multiply by it again. Readers read the first copy.

A count, 1 / (1 + count), and a mean, as fractions, are of no fixed length, so programs with either are refused. So are
those in which a head may meet several values at once at some position (it then writes a mixture), if heads of a later
layer read from that position.
"""

from __future__ import annotations

import functools

from graphs.nodes import Node
from patching.compiled.language import InvalidProgram, Program
from patching.compiled.wiring import Wiring, lay_out

SUFFIX = "_ln"
"""What the name of a compiled model with LayerNorm ends with."""


def written_before(wiring: Wiring, *, layer: int, mlp: bool) -> int:
    """How many variables are in the residual stream that a layer's attention, or its MLP, reads.

    Args:
        wiring: the program, laid out.
        layer: from 0; one more than the last for the final norm.
        mlp: whether it is the MLP that reads.

    Example:
        >>> from patching.compiled.programs import PROGRAMS
        >>> wiring = lay_out(PROGRAMS["and_gate"])
        >>> [written_before(wiring, layer=layer, mlp=mlp) for layer, mlp in ((0, False), (0, True), (1, False))]
        [2, 4, 5]
    """

    def is_before(writer: Node) -> bool:
        if writer.layer is None or writer.layer < layer:
            return True
        return mlp and writer.layer == layer and writer.kind == "head"

    return sum(is_before(writer) for writer in wiring.writers.values())


@functools.cache
def why_not(program: Program) -> str | None:
    """Why a program cannot be compiled exactly into a model with LayerNorm; None if it can.

    Cost: the program is run on all of its prompts.

    Example:
        >>> from patching.compiled.programs import PROGRAMS
        >>> why_not(PROGRAMS["reverse"]) is None
        True
        >>> why_not(PROGRAMS["count"])
        'many is a count, whose length in the residual stream differs between prompts'
    """
    for name, variable in program.analysis.items():
        if variable.kind != "symbol":
            return f"{name} is a {variable.kind}, whose length in the residual stream differs between prompts"
    wiring = lay_out(program)
    last = max((writer.layer or 0 for writer in wiring.writers.values() if writer.kind == "head"), default=0)
    early = [name for name in program.variables if (wiring.writers[name].layer or 0) < last]
    for length in program.lengths:
        for prompt in program.prompts(length):
            run = program.run(prompt)
            for name in early:
                for at in range(length + 1):
                    try:
                        run.value(name, at)
                    except InvalidProgram:
                        return (
                            f"{name} may meet several values at once before the end of a prompt ({' '.join(prompt)}), "
                            "and their mixture, which is shorter, stands where later heads read"
                        )
    return None


def require_exact(program: Program) -> None:
    """Refuse a program that LayerNorm would change.

    Raises:
        InvalidProgram: with the reason.
    """
    reason = why_not(program)
    if reason is not None:
        raise InvalidProgram(
            f"expected a program of symbols that LayerNorm leaves as they are; in {program.name}, {reason}. "
            f"Use zoo:{program.name}, which has no norm."
        )
