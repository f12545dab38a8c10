"""Models whose circuit is known, because a program was compiled into their weights.

`language` says what a program is, `programs` holds them, `wiring` reads the true circuit off a program, `compiler` sets
the weights, `prompts` draws pairs. `norms` says which programs there are with LayerNorm too (`zoo:NAME_ln`), `trained`
which were trained into standard transformers (`zoo:NAME_trained`), `interchange` what programs say when variables are
exchanged. Names are listed, and circuits told, without torch.

Example:
    >>> from patching import compiled
    >>> print(compiled.truth("and_gate"))
    zoo:and_gate · and_gate · compiled from the program: 5 of 13 edges between 5 nodes (1 layers, 2 heads, MLPs)
    >>> from patching import MaskedRun
    >>> run = MaskedRun(compiled.model("and_gate"), compiled.task("and_gate", n=8, seed=0), metric="kl")
    >>> bool(run(run.mask_of(compiled.truth("and_gate"))).max() < 1e-6)
    True
"""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import TYPE_CHECKING

from graphs.circuit import Circuit
from patching.compiled import trained
from patching.compiled.language import Program
from patching.compiled.norms import SUFFIX, require_exact, why_not
from patching.compiled.programs import PROGRAMS
from patching.compiled.prompts import draw
from patching.compiled.wiring import lay_out
from patching.errors import InvalidOption, ModelNotFound

if TYPE_CHECKING:
    import torch

    from patching.lens import LensModel
    from patching.task import Task

__all__ = [
    "PROGRAMS", "is_compiled", "layer_norm_names", "model", "program", "task", "trained_names", "truth", "zoo_names",
]  # fmt: skip


def zoo_names() -> tuple[str, ...]:
    """Every compiled model, as `zoo:NAME`.

    Example:
        >>> "zoo:reverse" in zoo_names()
        True
    """
    return tuple(f"zoo:{name}" for name in sorted(PROGRAMS))


def layer_norm_names() -> tuple[str, ...]:
    """Every compiled model that there is with LayerNorm too, as `zoo:NAME_ln`; it computes the same as `zoo:NAME`.

    Cost: the first call runs every program on all of its prompts, about a second.

    Example:
        >>> "zoo:reverse_ln" in layer_norm_names(), "zoo:count_ln" in layer_norm_names()
        (True, False)
    """
    return tuple(f"zoo:{name}{SUFFIX}" for name in sorted(PROGRAMS) if why_not(PROGRAMS[name]) is None)


def trained_names() -> tuple[str, ...]:
    """Every shipped model that was trained to compute a program node by node, as `zoo:NAME_trained`.

    They load as files do; `program`, `task` and `truth` know them.

    Example:
        >>> "zoo:reverse_trained" in trained_names()
        True
    """
    return tuple(f"zoo:{name}{trained.SUFFIX}" for name in trained.names())


def is_compiled(name: str) -> bool:
    """Whether `zoo:NAME` is a compiled model, with LayerNorm or without.

    Example:
        >>> is_compiled("zoo:reverse"), is_compiled("zoo:reverse_ln"), is_compiled("zoo:ioi")
        (True, True, False)
    """
    return name.startswith("zoo:") and name.removeprefix("zoo:").removesuffix(SUFFIX) in PROGRAMS


def program(name: str) -> Program:
    """A program by its name, with or without `zoo:`, or by that of its model with LayerNorm or its trained model.

    Raises:
        ModelNotFound: there is none of that name; the nearest are offered.

    Example:
        >>> program("reverse").description
        'after a separator, the letters before it from last to first'
    """
    short = name.removeprefix("zoo:")
    short = short.removesuffix(SUFFIX if short.endswith(SUFFIX) else trained.SUFFIX)
    if short not in PROGRAMS:
        near = difflib.get_close_matches(short, PROGRAMS, n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ModelNotFound(f"expected a compiled program out of {', '.join(PROGRAMS)}; got {name!r}.{hint}")
    return PROGRAMS[short]


def truth(name: str, *, constants: bool = False, length: int | None = None) -> Circuit:
    """The true circuit of a compiled model, read off its program.

    With LayerNorm it is the same, under ablations that exchange prompts; others (zero, means) change the length of the
    residual stream, and with it everything. Of a trained model, see `trained.truth` for what is certain.

    Args:
        name: of the program, its model with LayerNorm, or its trained model.
        constants: with edges that carry the same value on every prompt (positions), which only an ablation that
            changes them, such as zero, can show.
        length: by position, for prompts of this many tokens (without `BOS`); every position together by default.

    Returns:
        The edges through which variables flow that the output depends on; no scores.

    Raises:
        ModelNotFound: there is no such program, or its model does not ship.
        InvalidProgram: its prompts are not of this length, or LayerNorm would change what it computes.
        InvalidOption: positions or constants of a trained model.

    Example:
        >>> [str(edge) for edge in truth("previous_token").edges]
        ['input->a0.h0<v>', 'a0.h0->logits']
        >>> [str(edge) for edge in truth("previous_token", length=3).edges]
        ['input->a0.h0<v>@2', 'a0.h0->logits@3']
    """
    wiring = lay_out(program(name))
    if name.endswith(trained.SUFFIX):
        if length is not None or constants:
            raise InvalidOption(
                f"expected the circuit of {name} at all positions and without constants; what was trained says no more."
            )
        return trained.truth(wiring.program)
    found = wiring.circuit(constants=constants) if length is None else wiring.circuit_at(length, constants=constants)
    if not name.endswith(SUFFIX):
        return found
    require_exact(wiring.program)
    return replace(found, provenance={**found.provenance, "model": f"zoo:{wiring.program.name}{SUFFIX}"})


def model(name: str, *, dtype: torch.dtype | None = None, device: str | torch.device | None = None) -> LensModel:
    """A compiled model, named `zoo:NAME`; its weights are computed, not read.

    Args:
        name: of the program; with `_ln` at its end, with LayerNorm.
        dtype: of the weights; float32 by default.
        device: where to put it; the CPU by default.

    Raises:
        ModelNotFound: there is no such program, or its trained model is meant, which is not compiled.
        InvalidProgram: LayerNorm would change what it computes.

    Example:
        >>> model("reverse")
        LensModel('zoo:reverse', layers=2, heads=1, d_model=36, edges=23, torch.float32, cpu)
    """
    import torch

    from patching.compiled.compiler import compile_program

    if name.endswith(trained.SUFFIX):
        plain = f"zoo:{program(name).name}"
        raise ModelNotFound(
            f"expected a compiled model, such as {plain}; {name!r} is the name of a trained one. If it ships, "
            f"`LensModel.load({plain + trained.SUFFIX!r})` loads it."
        )
    return compile_program(
        program(name), dtype=dtype or torch.float32, device=device or "cpu", layer_norm=name.endswith(SUFFIX)
    )


def task(name: str, *, n: int = 32, seed: int = 0, split: str = "train", length: int | None = None) -> Task:
    """Prompts of a compiled model, judged by logit(right answer) - logit(the corrupt prompt's answer).

    Args:
        name: of the program.
        n: how many pairs.
        seed: of the draw.
        split: `train` or `held-out`.
        length: of all prompts, without `BOS`; any by default, padded on the right.

    Raises:
        ModelNotFound: there is no such program.
        InvalidOption: an option is out of its range.

    Example:
        >>> task("previous_token", n=2, seed=0, length=3).texts
        ('^ b b a', '^ a a b')
    """
    import torch

    from patching.task import Task

    made = program(name)
    number = {token: row for row, token in enumerate(made.vocabulary)}
    pairs = draw(made, n=n, seed=seed, split=split, length=length)
    width = max(len(clean) for clean, _ in pairs)
    rows = [[[0, *(number[token] for token in prompt)] + [0] * (width - len(prompt)) for prompt in side]
            for side in zip(*pairs, strict=True)]  # fmt: skip
    answers = [[[number[str(made.answer(prompt))]] for prompt in side] for side in zip(*pairs, strict=True)]
    return Task(
        name=made.name,
        clean=torch.tensor(rows[0]),
        corrupt=torch.tensor(rows[1]),
        answers=torch.tensor(answers[0]),
        wrong_answers=torch.tensor(answers[1]),
        positions=torch.tensor([len(clean) for clean, _ in pairs]),
        texts=tuple(" ".join(("^", *clean)) for clean, _ in pairs),
        starts_with_bos=True,
    )
