"""One feature in a notebook: a few numbers, its strongest examples with shaded tokens, logit effects.

Plain HTML with its styles on each element and no script, in colours that suit light and dark pages. All text is
escaped, and no more than `MOST_EXAMPLES` examples are shown, so that a stored notebook stays small.
"""

from __future__ import annotations

import html
from typing import Final

from circuits.features.examples import Example, FeatureView
from graphs.circuit import visible

MOST_EXAMPLES: Final = 6

_CHIP = "padding:1px;border-radius:3px;"
_LEFT = "text-align:left;vertical-align:top;"


def shown(view: FeatureView) -> str:
    """A feature as an HTML element.

    Example:
        >>> from circuits.features import create
        >>> from circuits.features.examples import collect
        >>> from patching import toy
        >>> dictionary = create("identity", d_in=4, n_features=4, site="attn_out0")
        >>> "a0.f2" in shown(collect(toy.model(), dictionary, toy.task()).feature(2))
        True
    """
    label = f" <em>{_text(view.label)}</em>" if view.label else ""
    parts = [f'<p style="margin:0 0 4px"><b>{_text(view.name)}</b>{label} <small>{_numbers(view)}</small></p>']
    if view.top:
        rows = "".join(_row(example, view.maximum) for example in view.top[:MOST_EXAMPLES])
        parts.append(f'<table style="border-collapse:collapse;font-size:90%">{rows}</table>')
    if view.raised:
        parts.append(_effects("raises", view.raised) + _effects("lowers", view.lowered))
    return f'<div class="wiretrace-feature" style="max-width:60em">{"".join(parts)}</div>'


def _numbers(view: FeatureView) -> str:
    if not view.n_active:
        return "dead: active at no token"
    return (
        f"active at {view.frequency:.2g} of tokens ({view.n_active:,}), largest activation {view.maximum:.3g}, "
        f"mean {view.mean:.3g}"
    )


def _row(example: Example, maximum: float) -> str:
    chips = []
    for place, (token, activation) in enumerate(zip(example.tokens, example.activations, strict=True)):
        share = min(1.0, activation / maximum) if activation > 0 and maximum > 0 else 0.0
        tone = f"background:rgba(240,162,2,{0.14 + 0.66 * share:.2f});" if share else ""
        ring = "outline:1px solid currentColor;" if place == example.at else ""
        space, word = (" ", token[1:]) if token[:1] == " " and token.strip() else ("", token)
        chip = _text(word if word.strip() else "␣")
        chips.append(f'{space}<span style="{_CHIP}{tone}{ring}" title="{activation:.3g}">{chip}</span>')
    return (
        f'<tr><td style="text-align:right;vertical-align:top;padding-right:8px">{example.activation:.3g}</td>'
        f'<td style="{_LEFT}font-family:monospace;white-space:pre-wrap">{"".join(chips)}</td></tr>'
    )


def _effects(what: str, pairs: tuple[tuple[str, float], ...]) -> str:
    said = ", ".join(f"<code>{_text(token)}</code>&nbsp;{value:+.2g}" for token, value in pairs[:MOST_EXAMPLES])
    return f'<p style="margin:4px 0 0;font-size:90%"><b>{what}</b> {said}</p>'


def _text(text: str) -> str:
    return html.escape(visible(text))
