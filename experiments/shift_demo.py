"""SHIFT on a planted spurious correlation in `zoo:ioi`: ``python -m experiments.shift_demo --help``.

A probe on mean activations should tell whether something is *given* or *sold*. In the training sentences women give
and men sell, so the people's names, three words of each sentence against one verb, tell as much, and the probe learns
these. In the test sentences verbs and names are independent.

Rows of the table, besides SHIFT: the probe as it was; one trained and tested on sentences without the names (the tokens
that give the spurious label away); SHIFT with coordinates in place of features; features chosen with the labels of
balanced sentences, as many as SHIFT's; probes trained on balanced sentences, with features zeroed or not.

The person: with ``--write`` the features are listed in a file to be marked, which ``--selection`` reads. Without one, a
rule stands in for the person who reads the examples: what is active before the verb was said cannot be about the verb.
It sees what the person sees, and no label.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from circuits.tasks.ioi import NAMES, OBJECTS, PLACES
from experiments.errors import BadConfig

if TYPE_CHECKING:
    from circuits.features.dictionary import Dictionary
    from circuits.features.examples import Gallery
    from circuits.features.labelled_prompts import Accuracies, LabelledPrompts
    from circuits.features.pooled_run import PooledRun
    from circuits.features.shift_selection import Line
    from graphs.nodes import Node
    from patching.lens import LensModel

WOMEN = (
    "Alicia", "Allison", "Amanda", "Amy", "Andrea", "Angela",
    "Ashley", "Christina", "Christine", "Elizabeth", "Emily", "Erin",
)  # fmt: skip
MEN = (
    "Aaron", "Adam", "Alexander", "Andrew", "Anthony", "Benjamin",
    "Brandon", "Brian", "Charles", "Christopher", "Daniel", "David",
)  # fmt: skip
GIVES, SELLS = "gave", "sold"
OPENINGS = (
    "When {first} and {second} went to the {place},",
    "Then, {first} and {second} went to the {place}.",
    "While {first} and {second} were working at the {place},",
    "After lunch, {first} and {second} went to the {place}.",
    "As {first} and {second} left the {place},",
)
SITE = "resid_post1"
"""What the probe reads: the stream before the last layer, as in the paper."""
SITES = ("resid_pre0", "attn_out0", "mlp_out0", "resid_post0", "attn_out1", "mlp_out1", "resid_post1")
PENALTY = 0.1


@dataclass(frozen=True)
class Sentence:
    """A sentence with its two labels."""

    text: str
    gives: bool
    women: bool


def sentences(n: int, *, seed: int, biased: bool) -> list[Sentence]:
    """Draw sentences.

    Args:
        n: how many.
        seed: of the draw.
        biased: women give and men do not, or verbs and names are independent.

    Example:
        >>> [(one.gives, one.women) for one in sentences(4, seed=0, biased=False)]
        [(True, True), (False, True), (True, False), (False, False)]
    """
    rng = random.Random(f"shift {seed}")
    drawn = []
    for number in range(n):
        gives = number % 2 == 0
        women = gives if biased else number % 4 < 2
        first, second = rng.sample(WOMEN if women else MEN, 2)
        opening = rng.choice(OPENINGS).format(first=first, second=second, place=rng.choice(PLACES))
        subject, verb = rng.choice((first, second)), GIVES if gives else SELLS
        drawn.append(Sentence(f"{opening} {subject} {verb} a {rng.choice(OBJECTS)} to", gives, women))
    return drawn


def labelled(model: LensModel, drawn: Sequence[Sentence]) -> LabelledPrompts:
    """Sentences as token ids with labels: intended whether something is given, spurious whether by women."""
    import torch

    from circuits.features.activations import Prompts
    from circuits.features.labelled_prompts import LabelledPrompts
    from circuits.features.spelling import token_ids

    rows = [token_ids(one.text, model) for one in drawn]
    width = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    prompts = Prompts.from_tokens(tokens, lengths=torch.tensor([len(row) for row in rows]))
    labels = [torch.tensor([getattr(one, name) for one in drawn]) for name in ("gives", "women")]
    return LabelledPrompts(prompts, *labels)


@dataclass(frozen=True)
class Data:
    """What the probes are trained and judged on."""

    biased: LabelledPrompts
    balanced: LabelledPrompts
    test: LabelledPrompts

    @classmethod
    def draw(cls, model: LensModel, *, n: int = 1500, seed: int = 0) -> Data:
        """Biased and balanced training sentences and balanced test sentences, n of each."""
        parts = [labelled(model, sentences(n, seed=3 * seed + k, biased=k == 0)) for k in range(3)]
        return cls(*parts)


def is_beside_the_point(line: Line) -> bool:
    """The stand-in for a person: whether most of a feature's strongest examples stand before the verb."""
    early = sum(
        not any(word.strip() in (GIVES, SELLS) for word in example.tokens[: example.at + 1])
        for example in line.examples
    )
    return early > len(line.examples) / 2


def rank(run: PooledRun, data: Data, galleries: Mapping[str, Gallery], *, n: int) -> tuple[Line, ...]:
    """What a person sees of the n features that help the biased probe most."""
    from circuits.features import shift, shift_selection

    probe = shift.fit_probe(run, data.biased, penalty=PENALTY)
    return shift_selection.lines(shift.latent_effects(run, probe, data.biased), galleries, n=n, signed=True)


def compare(
    run: PooledRun,
    neurons: PooledRun,
    data: Data,
    *,
    chosen: Sequence[Node],
    chosen_neurons: Sequence[Node],
    giveaway: Sequence[int],
) -> tuple[dict[str, Accuracies], dict[str, int]]:
    """Every row of the table, and how many features each zeroes."""
    from circuits.features import shift
    from circuits.features.labelled_prompts import delete_tokens

    probe = shift.fit_probe(run, data.biased, penalty=PENALTY)
    bare = [delete_tokens(part, giveaway) for part in (data.biased, data.test)]
    best = shift.skyline(run, probe, data.balanced, len(chosen))
    best_neurons = shift.skyline(neurons, probe, data.balanced, len(chosen_neurons))
    rows: dict[str, Accuracies] = {}
    counts: dict[str, int] = {}

    def add(name: str, where: PooledRun, without: Sequence[Node], train: LabelledPrompts | None = None) -> None:
        own = probe if train is None else shift.fit_probe(where, train, without=without, penalty=PENALTY)
        rows[name] = shift.evaluate(where, own, data.test, without=without)
        if without:
            counts[name] = len(without)

    add("original probe", run, ())
    rows["names deleted"] = shift.evaluate(run, shift.fit_probe(run, bare[0], penalty=PENALTY), bare[1])
    add("SHIFT, coordinates", neurons, chosen_neurons)
    add("SHIFT, coordinates, retrained", neurons, chosen_neurons, data.biased)
    add("SHIFT", run, chosen)
    add("SHIFT, retrained", run, chosen, data.biased)
    add("skyline, coordinates", neurons, best_neurons)
    add("skyline", run, best)
    add("skyline, retrained", run, best, data.biased)
    add("balanced probe (oracle)", run, (), data.balanced)
    add("balanced probe, SHIFT's features zeroed", run, chosen, data.balanced)
    return rows, counts


def shipped_dictionaries() -> list[Dictionary]:
    """Those that ship, of the sites up to the probe's."""
    from circuits.features import shipped

    return [shipped.load("zoo:ioi", site) for site in SITES]


def dictionaries_in(folder: Path, sites: Sequence[str] = SITES) -> list[Dictionary]:
    """Dictionaries of the sites, from a folder that holds one for each, named by its site.

    Raises:
        BadConfig: a site's is missing.
    """
    from circuits.features.dictionary import Dictionary

    missing = [site for site in sites if not (folder / site).is_dir()]
    if missing:
        raise BadConfig(
            f"expected a dictionary for each site in {folder}; there is none of {', '.join(missing)}. Leave "
            "--dictionaries away for those that ship."
        )
    loaded = [Dictionary.load(folder / site) for site in sites]
    for site, one in zip(sites, loaded, strict=True):
        one.site = site
    return loaded


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    from circuits.features import create, examples, shift_selection
    from circuits.features.labelled_prompts import table
    from circuits.features.pooled_run import PooledRun
    from circuits.features.spelling import token_ids
    from patching.lens import LensModel

    options = _parser().parse_args(arguments)
    model = LensModel.load("zoo:ioi")
    data = Data.draw(model, n=options.n, seed=options.seed)
    own = shipped_dictionaries() if options.dictionaries is None else dictionaries_in(options.dictionaries)
    run = PooledRun(model, SITE, dictionaries=own)
    identities = [create("identity", d_in=model.d_model, n_features=model.d_model, site=site) for site in SITES]
    neurons = PooledRun(model, SITE, dictionaries=identities)
    rows: dict[str, tuple[Line, ...]] = {}
    for name, where in (("features", run), ("coordinates", neurons)):
        galleries = {
            str(site): examples.collect(model, one, data.biased.prompts, k=5)
            for site, one in where.dictionaries.items()
        }
        rows[name] = rank(where, data, galleries, n=options.listed)
    if options.write is not None:
        shift_selection.write(options.write, rows["features"], task="whether something is given or sold")
        sys.stdout.write(f"Mark features in {options.write}, then give it back by --selection.\n")
        return
    chosen = [line.feature for line in rows["features"] if is_beside_the_point(line)]
    if options.selection is not None:
        listed = [line.feature for line in rows["features"]]
        chosen = list(shift_selection.read(options.selection, known=listed).marked)
    found, counts = compare(
        run,
        neurons,
        data,
        chosen=chosen,
        chosen_neurons=[line.feature for line in rows["coordinates"] if is_beside_the_point(line)],
        giveaway=[token_ids(f" {name}", model)[0] for name in NAMES],
    )
    sys.stdout.write(table(found, features=counts) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.shift_demo", description=__doc__)
    parser.add_argument("--n", type=int, default=1500, help="sentences of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the sentences")
    parser.add_argument("--listed", type=int, default=60, help="features that the person looks at")
    parser.add_argument(
        "--dictionaries", type=Path, help="folder with a dictionary for each site; by default those that ship"
    )
    parser.add_argument("--write", type=Path, help="write the features to be marked into this file, and stop")
    parser.add_argument("--selection", type=Path, help="the file with the marks; a rule stands in for it if absent")
    return parser


if __name__ == "__main__":
    main()
