"""Prompts with two labels, one that a classifier should follow and one that it should not, and how it does on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from circuits.features.activations import Prompts
from patching.errors import InvalidOption


@dataclass(frozen=True)
class LabelledPrompts:
    """Prompts with the label that a probe should learn and one that it should not.

    Attributes:
        prompts: token ids, and which positions count.
        intended, spurious: the labels.

    Raises:
        InvalidOption: not one label of each kind per prompt.
    """

    prompts: Prompts
    intended: Bool[Tensor, " example"]
    spurious: Bool[Tensor, " example"]

    def __post_init__(self) -> None:
        for name in ("intended", "spurious"):
            labels = getattr(self, name)
            if labels.shape != (len(self.prompts),) or labels.dtype != torch.bool:
                raise InvalidOption(
                    f"expected a boolean {name} label for each of {len(self.prompts)} prompts; got {labels.dtype} "
                    f"{list(labels.shape)}."
                )
        if not bool(self.prompts.keep.any(-1).all()):
            rows = (~self.prompts.keep.any(-1)).nonzero().flatten().tolist()
            raise InvalidOption(f"expected a position that counts in every prompt; rows {rows[:10]} have none.")

    def __len__(self) -> int:
        return len(self.prompts)

    def label(self, name: str) -> Bool[Tensor, " example"]:
        """The label of a name.

        Raises:
            InvalidOption: the name is neither intended nor spurious.
        """
        if name not in ("intended", "spurious"):
            raise InvalidOption(f"expected the label intended or spurious; got {name!r}.")
        return getattr(self, name)


def delete_tokens(data: LabelledPrompts, tokens: Iterable[int], *, fill: int = 0) -> LabelledPrompts:
    """The prompts without some tokens, such as those that give the spurious label away.

    Args:
        data: the prompts.
        tokens: ids to take out.
        fill: id of the padding that is added on the right, where it does not count.

    Raises:
        InvalidOption: nothing is left of a prompt.

    Example:
        >>> prompts = Prompts.from_tokens(torch.tensor([[5, 1, 6], [7, 8, 9]]))
        >>> left = delete_tokens(LabelledPrompts(prompts, torch.ones(2).bool(), torch.ones(2).bool()), [1])
        >>> left.prompts.tokens.tolist(), left.prompts.keep.tolist()
        ([[5, 6, 0], [7, 8, 9]], [[True, True, False], [True, True, True]])
    """
    given = data.prompts
    gone = torch.isin(given.tokens, torch.tensor(sorted(set(tokens)), dtype=given.tokens.dtype))
    padding = given.keep.int().flip(-1).cumsum(-1).flip(-1) == 0  # after the last position that counts
    order = (gone | padding).to(torch.int8).argsort(dim=-1, stable=True)
    left = (~gone & ~padding).sum(-1, keepdim=True)
    if not bool((left > 0).all()):
        rows = (left[:, 0] == 0).nonzero().flatten().tolist()
        raise InvalidOption(f"expected something left of every prompt; rows {rows[:10]} hold only the deleted tokens.")
    there = torch.arange(given.tokens.shape[1]) < left
    kept = Prompts(given.tokens.gather(-1, order).where(there, fill), given.keep.gather(-1, order) & there)
    return LabelledPrompts(kept, data.intended, data.spurious)


@dataclass(frozen=True)
class Accuracies:
    """How a probe does on prompts with two labels.

    Attributes:
        intended, spurious: share of prompts on which it says the one, the other label.
        groups: by (intended, spurious), the share of that group's prompts on which it says the intended label.
        counts: by group, how many prompts.
    """

    intended: float
    spurious: float
    groups: Mapping[tuple[bool, bool], float]
    counts: Mapping[tuple[bool, bool], int]

    @property
    def worst(self) -> float:
        """Of the groups, the lowest."""
        return min(self.groups.values())


def accuracies(
    said: Bool[Tensor, " example"], intended: Bool[Tensor, " example"], spurious: Bool[Tensor, " example"]
) -> Accuracies:
    """Accuracies of predictions.

    Example:
        >>> true, false = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
        >>> found = accuracies(false, intended=true, spurious=false)
        >>> found.intended, found.spurious, found.worst
        (0.5, 1.0, 0.0)
    """
    groups, counts = {}, {}
    for first in (True, False):
        for second in (True, False):
            rows = (intended == first) & (spurious == second)
            if bool(rows.any()):
                groups[first, second] = float((said[rows] == first).double().mean())
                counts[first, second] = int(rows.sum())
    follows = [float((said == labels).double().mean()) for labels in (intended, spurious)]
    return Accuracies(follows[0], follows[1], groups, counts)


def table(rows: Mapping[str, Accuracies], *, features: Mapping[str, int] | None = None) -> str:
    """Accuracies by name, as a table in Markdown.

    Args:
        rows: by name.
        features: how many features each zeroes, where it does.
    """
    wide = max(len(name) for name in rows)
    lines = [
        f"| {'':<{wide}} | features zeroed | intended | spurious | worst group |",
        f"|{'-' * (wide + 2)}|--:|--:|--:|--:|",
    ]
    for name, found in rows.items():
        count = (features or {}).get(name)
        lines.append(
            f"| {name:<{wide}} | {'' if count is None else count} | {found.intended:.1%} | {found.spurious:.1%} | "
            f"{found.worst:.1%} |"
        )
    return "\n".join(lines)
