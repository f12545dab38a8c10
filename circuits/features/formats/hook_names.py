"""Names of sites: ours (``mlp_out3``) and those of hooks (``blocks.3.hook_mlp_out``), which other libraries write."""

from __future__ import annotations

import re

_HOOKS = {
    "resid_pre": "hook_resid_pre",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "z": "attn.hook_z",
    "attn_out": "hook_attn_out",
    "resid_mid": "hook_resid_mid",
    "neurons": "mlp.hook_post",
    "mlp_out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
}
_KINDS = {hook: kind for kind, hook in _HOOKS.items()}


def hook_of(site: str | None) -> str | None:
    """The hook of a site; None for None and for kinds of sites that are no hooks.

    Example:
        >>> hook_of("mlp_out3"), hook_of("z0"), hook_of(None)
        ('blocks.3.hook_mlp_out', 'blocks.0.attn.hook_z', None)
    """
    match = re.fullmatch(r"([a-z_]+)([0-9]+)", site or "")
    return f"blocks.{match[2]}.{_HOOKS[match[1]]}" if match and match[1] in _HOOKS else None


def site_of(hook: object) -> str | None:
    """The site of a hook; None for hooks that are not sites here.

    Example:
        >>> site_of("blocks.3.hook_mlp_out"), site_of("hook_embed"), site_of("blocks.3.ln2.hook_normalized")
        ('mlp_out3', 'resid_pre0', None)
    """
    if hook == "hook_embed":
        return "resid_pre0"
    match = re.fullmatch(r"blocks\.([0-9]+)\.(.+)", hook) if isinstance(hook, str) else None
    return f"{_KINDS[match[2]]}{match[1]}" if match and match[2] in _KINDS else None
