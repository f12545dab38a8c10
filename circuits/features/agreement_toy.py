"""Features of `zoo:agreement_toy`, the transformer made by hand (`patching.agreement_toy`), whose circuit is known.

    the dog(s) near car(s) V  ->  are, if the subject is plural, else is

`dictionaries` has 16 features at each site, plus and minus every direction with a ReLU, so that no error is left over.
Feature i is direction i, feature 8 + i its opposite. What carries a change of the subject's number is

    input@1 {sing, plur} -> attention@4 {moved, -moved} -> MLP@4 {out} -> residual@4 {out} -> logits

and nothing else. The neuron is off for a singular subject, so no gradient there sees anything upstream of it: of a
change to plural, attribution patching finds two nodes of six, integrated gradients all six.

Source: the task of arXiv 2403.19647, with a model that can be done by hand.
"""

from __future__ import annotations

import torch

from circuits.features.dictionary import Dictionary, create
from graphs.circuit import Circuit
from graphs.nodes import LOGITS, Edge, Node, error, feature
from patching.agreement_toy import DIRECTIONS, NAME, VOCABULARY, directions, model
from patching.errors import InvalidOption
from patching.task import Task

__all__ = [
    "DIRECTIONS", "SITES", "SUBJECT", "VERB", "VOCABULARY", "dictionaries", "directions", "model", "moved_error",
    "nodes", "task", "truth",
]  # fmt: skip

SITES = ("resid_pre0", "attn_out0", "mlp_out0", "resid_post0")
SUBJECT, VERB = 1, 4


def task(*, clean: str = "plural", changed: str = "subject") -> Task:
    """Two prompts, one with each number of the noun that stays as it is.

    The metric is logit(are) - logit(is), whichever is right, so that both directions can be compared.

    Args:
        clean: the number of the changed noun in the clean prompts, ``plural`` or ``singular``; the corrupt ones have
            the other.
        changed: ``subject``, or ``distractor``, which nothing depends on.

    Raises:
        InvalidOption: another number or noun.
    """
    if clean not in ("singular", "plural"):
        raise InvalidOption(f"expected clean prompts that are singular or plural; got {clean!r}.")
    if changed not in ("subject", "distractor"):
        raise InvalidOption(f"expected a change of the subject or the distractor; got {changed!r}.")
    numbers = {"singular": ("dog", "car"), "plural": ("dogs", "cars")}
    other = {"singular": "plural", "plural": "singular"}

    def prompts(number: str) -> list[str]:
        subject, distractor = changed == "subject", changed == "distractor"
        rows = []
        for kept in ("singular", "plural"):
            noun, second = numbers[number if subject else kept][0], numbers[number if distractor else kept][1]
            rows.append(f"the {noun} near {second} V")
        return rows

    texts = prompts(clean)
    ids = [
        [[VOCABULARY.index(word) for word in text.split()] for text in side] for side in (texts, prompts(other[clean]))
    ]
    answers, wrong = (torch.full((2, 1), VOCABULARY.index(word)) for word in ("are", "is"))
    return Task(
        f"agreement ({changed} {clean} to {other[clean]})",
        torch.tensor(ids[0]),
        torch.tensor(ids[1]),
        answers,
        wrong,
        torch.full((2,), VERB),
        texts=tuple(texts),
    )


def dictionaries(
    dtype: torch.dtype = torch.float64, *, seed: int = 0, without: dict[str, tuple[str, ...]] | None = None
) -> tuple[Dictionary, ...]:
    """A dictionary at each of `SITES` whose features are plus and minus every direction.

    Args:
        dtype: of the weights.
        seed: that of the model.
        without: of a site, names of directions whose two features never come on, so that the error term holds them.

    Raises:
        InvalidOption: there is no such direction.

    Example:
        >>> [(one.site, one.n_features) for one in dictionaries()][:2]
        [('resid_pre0', 16), ('attn_out0', 16)]
    """
    rows = directions(seed).to(dtype)
    made = []
    for site in SITES:
        one = create("relu", d_in=8, n_features=16, site=site, dtype=dtype)
        with torch.no_grad():
            one.W_dec.copy_(torch.cat((rows, -rows)))
            one.W_enc.copy_(one.W_dec.T)
            for name in (without or {}).get(site, ()):
                if name not in DIRECTIONS:
                    raise InvalidOption(f"expected directions out of {', '.join(DIRECTIONS)}; got {name!r}.")
                index = DIRECTIONS.index(name)
                one.W_enc[:, [index, index + 8]] = 0.0
        made.append(one)
    return tuple(made)


def nodes() -> dict[str, Node]:
    """The planted nodes by what they mean."""
    places = {name: index for index, name in enumerate(DIRECTIONS)}
    return {
        "sing": feature("input", None, places["sing"], SUBJECT),
        "plur": feature("input", None, places["plur"], SUBJECT),
        "moved": feature("attn", 0, places["moved"], VERB),
        "not moved": feature("attn", 0, places["moved"] + 8, VERB),
        "out": feature("mlp", 0, places["out"], VERB),
        "left": feature("resid", 0, places["out"], VERB),
    }


def moved_error() -> Node:
    """The error term that carries what moves when the dictionary at attention is `without` it."""
    return error("attn", 0, VERB)


def truth() -> Circuit:
    """The planted circuit: six features, and the edges through which one changes another.

    Both numbers at the subject change both signs of what is moved, in the course of a change from one number to the
    other; at a prompt of one number only one sign is on.

    Example:
        >>> len(truth().edges)
        8
    """
    known = nodes()
    edges = [Edge(known[number], known[sign]) for number in ("sing", "plur") for sign in ("moved", "not moved")]
    edges += [Edge(known[sign], known["out"]) for sign in ("moved", "not moved")]
    edges += [Edge(known["out"], known["left"]), Edge(known["left"], LOGITS)]
    return Circuit(model().architecture, edges, provenance={"model": NAME, "task": "agreement"})
