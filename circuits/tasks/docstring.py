"""Docstring completion: "def port(self, load, size, files): ... :param load: ... :param size: ... :param" -> " files".

A Python function's docstring lists its parameters in the order of the definition; the next one is due. The
definition has parameters before and after those that the docstring is about. The wrong answers are all other
names that belong to the prompt, those of its corruptions included, so that the metric, the mean logit difference,
asks for the right name among them.

Corruptions. `random_random` puts other names both into the definition, in place of the three that count, and into
the docstring. `random_doc` changes the docstring's alone, `random_def` the two before the answer in the definition,
`random_def_doc` both of these to the same two, and `random_answer` the answer in the definition.

Splits. Held out are about a fifth of the parameter names, by their CRC-32, and the templates of
`HELD_OUT_TEMPLATES`; names of functions and the words of descriptions are the same in all splits.

Source: Heimersheim and Janiak 2023, "A circuit for Python docstrings in a 4-layer attention-only transformer"
(Alignment Forum); corruptions and wrong answers as in the code of Conmy et al. 2023, arXiv 2304.14997. The templates,
names and words are ours.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from circuits.tasks import text
from circuits.tasks.single_tokens import require_one_token
from circuits.tasks.text import HasTokenizer, Prompt

if TYPE_CHECKING:
    from patching.task import Task

PARAMETERS: tuple[str, ...] = (
    "data", "name", "file", "value", "test", "result", "line", "user", "key", "default", "request", "path", "output",
    "node", "item", "model", "response", "text", "version", "function", "log", "string", "field", "start", "number",
    "values", "index", "error", "content", "context", "image", "message", "check", "size", "event", "state", "row",
    "object", "end", "files", "form", "query", "fields", "instance", "label", "action", "target", "array",
    "code", "table", "source", "config", "first", "options", "update", "module", "status", "group", "client", "last",
    "read", "base", "format", "color", "order", "count", "match", "title", "parent", "call", "session",
    "server", "host", "date", "project", "page",
)  # fmt: skip
"""Names of parameters; each is one token of GPT-2 after a space."""

FUNCTIONS: tuple[str, ...] = (
    "port", "load", "save", "send", "open", "close", "find", "add", "remove", "create", "build", "run", "write", "make",
    "get", "set", "sort", "join", "copy", "move",
)  # fmt: skip
"""Names of functions."""

DESCRIPTIONS: tuple[str, ...] = (
    "oil", "column", "piece", "crime", "population", "unit", "dark", "water", "light", "sound", "sea", "ground",
    "paper", "glass", "wood", "iron", "gold", "river", "forest", "stone", "bread", "music", "history", "science",
    "nature", "energy", "window", "wall", "floor", "street",
)  # fmt: skip
"""Words of descriptions, which mean nothing."""

WORDS: tuple[str, ...] = PARAMETERS
"""What must be one token after a space."""

TRAINING_TEMPLATES: Mapping[str, str] = {
    "method": (
        "def {function}(self, {p}, {q}, {a}, {b}, {c}, {s}):\n"
        '    """{w0} {w1} {w2}\n\n    :param {da}: {w3} {w4}\n    :param {db}: {w5} {w6}\n    :param'
    ),
    "method-short": (
        "def {function}(self, {a}, {b}, {c}):\n"
        '    """{w0} {w1}\n\n    :param {da}: {w2} {w3}\n    :param {db}: {w4} {w5}\n    :param'
    ),
    "method-prefix": (
        "def {function}(self, {p}, {a}, {b}, {c}):\n"
        '    """{w0} {w1} {w2}\n\n    :param {da}: {w3}\n    :param {db}: {w4}\n    :param'
    ),
    "class-method": (
        "def {function}(cls, {p}, {a}, {b}, {c}, {s}):\n"
        '    """{w0} {w1}\n\n    :param {da}: {w2} {w3}\n    :param {db}: {w4} {w5}\n    :param'
    ),
    "async": (
        "async def {function}(self, {a}, {b}, {c}, {s}):\n"
        '    """{w0}\n\n    :param {da}: {w1} {w2} {w3}\n    :param {db}: {w4} {w5} {w6}\n    :param'
    ),
    "one-more": (
        "def {function}(self, {q}, {a}, {b}, {c}, {s}):\n"
        '    """{w0} {w1} {w2} {w3}\n\n    :param {da}: the {w4}\n    :param {db}: the {w5}\n    :param'
    ),
    "long": (
        "def {function}(self, {p}, {q}, {a}, {b}, {c}):\n"
        '    """{w0} {w1} {w2} {w3}\n\n    :param {da}: {w4} {w5}\n    :param {db}: {w6} {w7}\n    :param'
    ),
    "bare": (
        'def {function}(self, {a}, {b}, {c}, {s}):\n    """{w0} {w1}\n\n    :param {da}:\n    :param {db}:\n    :param'
    ),
}
"""Templates that training may use. `method` has the shape of the source: two parameters before, one after."""

HELD_OUT_TEMPLATES: Mapping[str, str] = {
    "class-short": (
        "def {function}(cls, {a}, {b}, {c}, {s}):\n"
        '    """{w0} {w1} {w2}\n\n    :param {da}: {w3} {w4}\n    :param {db}: {w5} {w6}\n    :param'
    ),
    "async-prefix": (
        "async def {function}(self, {p}, {a}, {b}, {c}, {s}):\n"
        '    """{w0} {w1}\n\n    :param {da}: {w2} {w3}\n    :param {db}: {w4} {w5}\n    :param'
    ),
    "method-the": (
        "def {function}(self, {p}, {q}, {a}, {b}, {c}, {s}):\n"
        '    """{w0} {w1}\n\n    :param {da}: the {w2} {w3}\n    :param {db}: the {w4} {w5}\n    :param'
    ),
}
"""Templates that training never sees: other numbers of parameters and words in other combinations."""

TEMPLATES: Mapping[str, str] = {**TRAINING_TEMPLATES, **HELD_OUT_TEMPLATES}
"""All templates by name; `{a}`, `{b}`, `{c}` are the parameters that count, `{da}`, `{db}` those of the docstring."""

SPLITS = text.splits(TRAINING_TEMPLATES, HELD_OUT_TEMPLATES)
"""What each split draws from."""

CLEAN: tuple[str, ...] = ("a", "b", "c", "p", "q", "s")
"""The slots of parameters; a template need not have all."""

REPLACEMENTS: tuple[str, ...] = ("other_a", "other_b", "other_c", "other_da", "other_db", "both_a", "both_b")
"""The names that corruptions put in their places; drawn for every prompt, whichever corruption is asked for."""

CORRUPTIONS: Mapping[str, str] = {
    "random_random": "other names in the definition and, unlike them, in the docstring",
    "random_doc": "other names in the docstring",
    "random_def": "other names before the answer in the definition",
    "random_def_doc": "the same other names in both places, before the answer",
    "random_answer": "another name in place of the answer in the definition",
}
"""What each corruption does."""

CHANGES: Mapping[str, Mapping[str, str]] = {
    "random_random": {"a": "other_a", "b": "other_b", "c": "other_c", "da": "other_da", "db": "other_db"},
    "random_doc": {"da": "both_a", "db": "both_b"},
    "random_def": {"a": "both_a", "b": "both_b"},
    "random_def_doc": {"a": "both_a", "b": "both_b", "da": "both_a", "db": "both_b"},
    "random_answer": {"c": "other_c"},
}
"""Which slots of a template each corruption fills with which of the names drawn for it."""


def generate(
    n: int,
    *,
    seed: int,
    split: str = "held-out",
    corruption: str = "random_random",
    template: str | None = None,
    parameters: Sequence[str] = PARAMETERS,
) -> list[Prompt]:
    """Draw prompts as text; needs no model and no tokenizer.

    Args:
        n: How many prompts.
        seed: Seed of the draw.
        split: A key of `SPLITS`.
        corruption: A key of `CORRUPTIONS`.
        template: A key of `TEMPLATES` to use only that one; the split then decides the names alone.
        parameters: Names of parameters.

    Returns:
        `n` prompts.

    Raises:
        UnknownChoice: An option has an unknown value; the message lists the known ones.
        TooFewWords: Fewer than 13 names belong to the split.

    Source:
        Heimersheim and Janiak 2023.

    Example:
        >>> prompt = generate(1, seed=0, split="train", template="method-short", corruption="random_doc")[0]
        >>> prompt.clean.splitlines()[0], prompt.answers
        ('def open(self, count, size, file):', (' file',))
        >>> prompt.clean.splitlines()[3:]
        ['    :param count: nature crime', '    :param size: stone light', '    :param']
        >>> prompt.corrupt.splitlines()[3:]
        ['    :param text: nature crime', '    :param session: stone light', '    :param']
    """
    held_out, templates = text.chosen_split(n, split=split, template=template, splits=SPLITS, templates=TEMPLATES)
    changed = CHANGES[text.known("corruption", corruption, CORRUPTIONS)]
    needed = len(CLEAN) + len(REPLACEMENTS)
    names = text.pool("parameters", parameters, held_out=held_out, least=needed)
    rng = random.Random(seed)
    prompts = []
    for _ in range(n):
        chosen = rng.choice(templates)
        slots = dict(zip((*CLEAN, *REPLACEMENTS), rng.sample(names, needed), strict=True))
        slots |= {"da": slots["a"], "db": slots["b"], "function": rng.choice(FUNCTIONS)}
        slots |= {f"w{place}": word for place, word in enumerate(rng.sample(DESCRIPTIONS, 8))}
        corrupt = slots | {slot: slots[source] for slot, source in changed.items()}
        wrong = tuple(f" {slots[slot]}" for slot in (*_others(TEMPLATES[chosen]), *REPLACEMENTS))
        prompts.append(
            Prompt(
                clean=TEMPLATES[chosen].format_map(slots),
                corrupt=TEMPLATES[chosen].format_map(corrupt),
                answers=(f" {slots['c']}",),
                wrong_answers=wrong,
                template=chosen,
            )
        )
    return prompts


def make(
    model: HasTokenizer,
    *,
    n: int = 64,
    seed: int = 0,
    split: str = "held-out",
    corruption: str = "random_random",
    template: str | None = None,
    parameters: Sequence[str] = PARAMETERS,
) -> Task:
    """Build the task for a model: tokens, and the logit difference between the next parameter and other names.

    Args:
        model: Anything with a `tokenizer`, such as a `LensModel`.
        n: How many prompts.
        seed: Seed of the draw.
        split: A key of `SPLITS`.
        corruption: A key of `CORRUPTIONS`.
        template: A key of `TEMPLATES` to use only that one, for equally long prompts.
        parameters: Names of parameters; give your own for a tokenizer to which some of ours are several tokens.

    Returns:
        A `Task` of `n` examples; its metric is the logit difference.

    Raises:
        UnknownChoice: An option has an unknown value.
        TooFewWords: Too few names in the split.
        NotOneToken: Some names are not one token of this tokenizer; the message names them.

    Source:
        Heimersheim and Janiak 2023.

    Example:
        >>> from patching import LensModel
        >>> task = make(LensModel.load("gpt2"), n=50, seed=0, template="method")  # doctest: +SKIP
    """
    prompts = generate(n, seed=seed, split=split, corruption=corruption, template=template, parameters=parameters)
    require_one_token(model.tokenizer, parameters, remedy=text.remedy("parameters", "docstring.PARAMETERS"))
    return text.to_task(model, prompts, name="docstring")


def _others(template: str) -> tuple[str, ...]:
    """The slots of a template whose names are wrong answers."""
    return tuple(slot for slot in CLEAN if slot != "c" and f"{{{slot}}}" in template)
