"""Interventions of a program as tensors."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from experiments.interchange_training.recipe import Recipe, architecture
from graphs.components import ComponentGraph
from patching.compiled.interchange import Interchange, alignment, intervene, pool
from patching.compiled.language import InvalidProgram, Program, Prompt

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

PASSED_OVER: Final = 8
"""Of interventions that leave the answer as it is, one in so many is kept while they would be the majority."""


@dataclass(frozen=True)
class Data:
    """Interventions, one per row.

    Attributes:
        base: Prompts, padded on the right.
        source: The prompts whose variables are exchanged in.
        last: Position of each prompt's last token.
        plain: The compiled model's probability of every token after the base.
        swapped: The same under the intervention.
        nodes: Which nodes hold the exchanged variables.
    """

    base: Int[Tensor, "row pos"]
    source: Int[Tensor, "row pos"]
    last: Int[Tensor, " row"]
    plain: Float[Tensor, "row d_vocab"]
    swapped: Float[Tensor, "row d_vocab"]
    nodes: Bool[Tensor, "row node"]


def build_data(program: Program, recipe: Recipe) -> Data:
    """Draw interventions on pairs of training prompts: on one node half of the time, else on a random set of them.

    What is to be learnt is what the compiled model says: softmax of the program's values, scaled as there.
    """
    import torch

    from circuits.interchange import prompt_rows
    from patching.compiled.compiler import LOGIT_SCALE

    def probabilities(said: Iterable[Mapping[str, float]]) -> Tensor:
        return torch.softmax(LOGIT_SCALE * torch.tensor([list(each.values()) for each in said]), dim=-1)

    drawn = draw(program, recipe)
    order = ComponentGraph(architecture(program, recipe)).sources[1:]
    plain = {each.base: program.logits(each.base) for each in drawn}
    return Data(
        base=prompt_rows(program, [each.base for each in drawn]),
        source=prompt_rows(program, [each.source for each in drawn]),
        last=torch.tensor([len(each.base) for each in drawn]),
        plain=probabilities(plain[each.base] for each in drawn),
        swapped=probabilities(each.said for each in drawn),
        nodes=torch.tensor([[node in each.nodes for node in order] for each in drawn]),
    )


def draw(program: Program, recipe: Recipe) -> list[Interchange]:
    """Random pairs of training prompts and sets of nodes; in half of them the answer changes, if that is not too rare.

    Pairs to which the program says nothing are left out.
    """
    rng = random.Random(recipe.seed)
    aligned = tuple(alignment(program))
    prompts = pool(program, "train")
    by_length: dict[int, list[Prompt]] = {}
    for prompt in prompts:
        by_length.setdefault(len(prompt), []).append(prompt)
    drawn: list[Interchange] = []
    seen = 0
    while len(drawn) < recipe.interventions:
        base = rng.choice(prompts)
        size = 1 if rng.random() < 0.5 else rng.randint(1, len(aligned))
        chosen = set(rng.sample(aligned, size))
        nodes = tuple(node for node in aligned if node in chosen)
        try:
            made = intervene(program, base, rng.choice(by_length[len(base)]), nodes)
        except InvalidProgram:
            continue
        seen += 1
        if made.matters or len(drawn) % 2 or seen % PASSED_OVER == 0:
            drawn.append(made)
    return drawn
