"""How people read tokens and features, and write prompts."""

from __future__ import annotations

from graphs.circuit import visible
from patching.errors import InvalidTask
from patching.lens import LensModel


def spelled_token(token: int, model: LensModel) -> str:
    """A token as text, with its leading space and with unprintable characters as escapes.

    What a token adds to a text is read from writing it twice: many tokenizers drop the space before a first word.

    Example:
        >>> from patching import toy
        >>> spelled_token(3, toy.model())
        '‹3›'
    """
    if model.tokenizer is None:
        return f"‹{token}›"
    once, twice = model.tokenizer.decode([token]), model.tokenizer.decode([token, token])
    text = twice.removeprefix(once) if twice.startswith(once) and len(twice) > len(once) else once
    return visible(text) if text else f"‹{token}›"


def spelled_feature(site: str, index: int | str) -> str:
    """A feature as a node (``m1.f12``) where the site of its dictionary has such nodes.

    Example:
        >>> spelled_feature("mlp_out1", 12), spelled_feature("resid_pre0", 3), spelled_feature("resid_mid1", 3)
        ('m1.f12', 'input.f3', 'resid_mid1.f3')
    """
    for kind, letter in (("attn_out", "a"), ("mlp_out", "m"), ("resid_post", "r")):
        if site.startswith(kind):
            return f"{letter}{site.removeprefix(kind)}.f{index}"
    return f"{'input' if site == 'resid_pre0' else site}.f{index}"


def token_ids(text: str, model: LensModel) -> list[int]:
    """The tokens of a text, without special ones.

    Raises:
        InvalidTask: the model has no tokenizer, or the text no token.
    """
    if model.tokenizer is None:
        raise InvalidTask(f"expected a model with a tokenizer to read text; {model.name} has none. Give token ids.")
    ids = list(model.tokenizer(text, add_special_tokens=False)["input_ids"])
    if not ids:
        raise InvalidTask(f"expected a text of at least one token; got {text!r}.")
    return ids
