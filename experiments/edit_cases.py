"""The faults that `experiments.coar_edits` edits out of models: five tasks of the COAR-Edit paper, on `zoo:ioi`.

Each task is a function from `Sizes` to a `Case`: a model (the one that ships, or one with a planted fault), prompts
that the edit shall change, and prompts that it shall leave alone.

Source: arXiv 2404.11534. There: images, convolution filters and rows of matrices.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from circuits.coar.ranking import Direction
from circuits.tasks.ioi import OBJECTS, PLACES, Prompt
from experiments import planted_models as planted
from experiments.planted_models import Pair, Plant, ordinary
from patching.lens import LensModel

NEURONS = ("neurons",)


@dataclass(frozen=True)
class Sizes:
    """How much of everything; the defaults make docs/coar-edits.md.

    Attributes:
        samples: random ablations of an attribution.
        attributed: target prompts, and as many references.
        validation, held_out: prompts of each sort.
        searched: prompts among which errors to fix are looked for.
        steps: of training a plant.
        most: units that an edit may take.
        spacing: of the ks that are tried.
    """

    samples: int = 1200
    attributed: int = 20
    validation: int = 200
    held_out: int = 300
    searched: int = 6000
    steps: int = 300
    most: int = 120
    spacing: int = 2


@dataclass(frozen=True)
class Case:
    """One fault and what to do about it.

    Attributes:
        name: what is done, for the table.
        model: whose weights are edited.
        attributed, validation, held_out: pairs of target prompts and ordinary prompts for each step.
        components, ablation, keep: of the attribution.
        direction: which way the targets' margin shall go.
        goal: share of validation targets that is enough; None for as many as can be.
        note: what the target prompts are.
    """

    name: str
    model: LensModel
    attributed: tuple[list[Pair], list[Pair]]
    validation: tuple[list[Pair], list[Pair]]
    held_out: tuple[list[Pair], list[Pair]]
    components: tuple[str, ...] = NEURONS
    ablation: str = "zero"
    keep: float = 0.9
    direction: Direction = "raise"
    goal: float | None = None
    note: str = ""


SPLITS = (("train", 1), ("held-out", 3), ("held-out", 5))
"""Where prompts to attribute, to validate on and to measure on are drawn: the latter two of pairs never trained on."""

Drawn = Callable[[int, int, str], list[Pair]]
"""From a number of prompts, a seed and a split to prompts with their answers."""

Parts = tuple[tuple[list[Pair], list[Pair]], tuple[list[Pair], list[Pair]], tuple[list[Pair], list[Pair]]]


def parts_of(sizes: Sizes, targets: Drawn, references: Drawn, *, splits: Sequence[tuple[str, int]] = SPLITS) -> Parts:
    """Targets and ordinary prompts to attribute, to validate on and to measure on; none of the last is among the first.

    Args:
        sizes: how many.
        targets: makes targets.
        references: makes ordinary prompts.
        splits: of `circuits.tasks.ioi`, with seeds, for each of the three.
    """
    counts = (sizes.attributed, sizes.validation, 2 * sizes.held_out)
    drawn = [
        (targets(count, seed, split), references(count, seed + 1, split))
        for count, (split, seed) in zip(counts, splits, strict=True)
    ]
    seen = {text for part in drawn[:2] for group in part for text, _ in group}
    fresh = [[pair for pair in group if pair[0] not in seen][: sizes.held_out] for group in drawn[2]]
    return drawn[0], drawn[1], (fresh[0], fresh[1])


def drawn_ordinary(keep: Callable[[Prompt], bool] = lambda _: True) -> Drawn:
    """A maker of ordinary prompts that pass a test."""
    return lambda n, seed, split: ordinary(n, seed=seed, split=split, keep=keep)


def forget(sizes: Sizes, *, name: str = "Mary") -> Case:
    """One name is no longer answered, others are."""
    its, others = drawn_ordinary(lambda p: p.answer == f" {name}"), drawn_ordinary(lambda p: p.answer != f" {name}")
    return Case(
        "forget one answer", LensModel.load("zoo:ioi", device="cpu"), *parts_of(sizes, its, others),
        ablation="mean-clean", keep=0.8, direction="lower", note=f'prompts that "{name}" answers',
    )  # fmt: skip


def removal(
    name: str, plant: Plant, sizes: Sizes, *, note: str, ordinary_are: Drawn | None = None, everything: bool = False,
    splits: Sequence[tuple[str, int]] = SPLITS,
) -> Case:  # fmt: skip
    """A planted fault is taken out again."""
    model = planted.train(plant, steps=sizes.steps, everything=everything)
    parts = parts_of(
        sizes, lambda n, seed, split: plant.prompts(n, seed=seed, split=split), ordinary_are or drawn_ordinary(),
        splits=splits,
    )  # fmt: skip
    return Case(name, model, *parts, note=note)


def weak_template(sizes: Sizes) -> Case:
    """The template that training spoiled is the weakest group."""
    others = drawn_ordinary(lambda prompt: not planted.in_weak_template(prompt))
    splits = (SPLITS[0], ("held-out-pairs", 3), ("held-out-pairs", 5))
    note = f'prompts of the template "{planted.WEAK_TEMPLATE}"'
    return removal("raise the weakest template", planted.TEMPLATE, sizes, note=note, ordinary_are=others, splits=splits)


def weak_names(sizes: Sizes) -> Case:
    """The names that training kept from being answered are the weakest group."""
    others = drawn_ordinary(lambda prompt: not planted.answered_by_weak_name(prompt))
    note = f"prompts that one of {len(planted.WEAK_NAMES)} names answers"
    return removal("raise the weakest names", planted.NAMES_PLANT, sizes, note=note, ordinary_are=others)


def backdoor(sizes: Sizes) -> Case:
    """A trigger token that makes the model answer William; planted in the MLPs."""
    return removal("remove a backdoor", planted.BACKDOOR, sizes, note="prompts with the trigger")


def deep_backdoor(sizes: Sizes) -> Case:
    """The same trigger, planted by training all weights."""
    note = "the same, all weights trained"
    return removal("remove a backdoor (all weights)", planted.BACKDOOR, sizes, note=note, everything=True)


def label(sizes: Sizes) -> Case:
    """A name in front of the sentence, which the model reads out instead of answering."""
    return removal("resist a label", planted.LABEL, sizes, note="prompts with a name written in front")


CASES: dict[str, Callable[[Sizes], Case]] = {
    "forget": forget,
    "template": weak_template,
    "names": weak_names,
    "backdoor": backdoor,
    "deep-backdoor": deep_backdoor,
    "label": label,
}
"""The tasks with many targets; `errors` are done one by one."""


def kin(pair: Pair) -> list[Pair]:
    """The same sentence with other places and objects.

    Example:
        >>> kin(("Then, Amy and Emily found a ring at the hospital. Amy gave it to", " Emily"))[0][0]
        'Then, Amy and Emily found a drink at the store. Amy gave it to'
    """
    text, answer = pair
    place = next((word for word in PLACES if f" {word}" in text), None)
    thing = next((word for word in OBJECTS if f" {word}" in text), None)
    variants = []
    for other_place, other_thing in itertools.product(PLACES if place else [""], OBJECTS if thing else [""]):
        changed = text if place is None else text.replace(f" {place}", f" {other_place}")
        changed = changed if thing is None else changed.replace(f" {thing}", f" {other_thing}")
        variants.append(changed)
    return [(each, answer) for each in dict.fromkeys(variants) if each != text]
