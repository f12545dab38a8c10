"""How people also write nodes, and how to spell them here, so that a refusal can say what may have been meant."""

from __future__ import annotations

import re
from typing import Final

_LONGEST: Final = 60  # no habit is longer, and matching takes quadratic time

_AT = r"(?:[ ]*@[ ]*(?P<at>[0-9]{1,5}))?"
_SITE_HABITS: Final = (  # what people call the sites of dictionaries, and their letters here
    (r"(?:input|embed(?:s|ding|dings)?|(?:hook_)?resid_pre[ ._]*0)", "input"),
    (r"(?:attn?|attention)(?:[ ._]?out)?[ ._]*(?P<layer>[0-9]{1,4})", "a{layer}"),
    (r"a[ ._]*(?P<layer>[0-9]{1,4})", "a{layer}"),
    (r"(?:m|mlp)(?:[ ._]?out)?[ ._]*(?P<layer>[0-9]{1,4})", "m{layer}"),
    (r"(?:r|res|resid|resid_post|residual)[ ._]*(?P<layer>[0-9]{1,4})", "r{layer}"),
)
_HABITS: Final = (  # how people also write nodes, and how to spell them here
    (
        r"(?:l|a|attn\.?|layer\.?)?(?P<layer>[0-9]{1,4})[ .,_/-]*(?:h|head)?[ .]*(?P<index>[0-9]{1,5})",
        "a{layer}.h{index}",
    ),
    (r"(?:l|a)?(?P<layer>[0-9]{1,4})[ .,_-]*kv[ .]*(?P<index>[0-9]{1,5})", "a{layer}.kv{index}"),
    (r"(?:m|mlp|l)[ ._]*(?P<layer>[0-9]{1,4})[ ._]*n(?:euron)?[ ._]*(?P<index>[0-9]{1,7})", "m{layer}.n{index}"),
    (r"(?:m|mlp)[ ._]*(?P<layer>[0-9]{1,4})", "m{layer}"),
    (r"inputs?|embed(?:s|ding|dings)?|resid_pre", "input"),
    (r"logits?|outputs?|unembed|resid_post", "logits"),
    *(
        (f"{pattern}[ ./_-]*{rest}{_AT}", f"{spelling}.{end}")
        for pattern, spelling in _SITE_HABITS
        for rest, end in ((r"(?:f|feat|feature|latent)?[ ._]*(?P<index>[0-9]{1,8})", "f{index}"), ("err(?:or)?", "err"))
    ),
)


def suggestion(text: str) -> str | None:
    """The spelling of the node that a text may mean; None if it is like no habit.

    Example:
        >>> suggestion("L9H6"), suggestion("resid_post3.f7 @ 4"), suggestion("paris")
        ('a9.h6', 'r3.f7@4', None)
    """
    if len(text) > _LONGEST:
        return None
    for pattern, spelling in _HABITS:
        match = re.fullmatch(pattern, text.strip().lower(), re.ASCII)
        if match:
            numbers = {name: int(number) for name, number in match.groupdict().items() if number is not None}
            at = f"@{numbers['at']}" if "at" in numbers else ""
            return spelling.format(**numbers) + at
    return None
