"""GPT-2 small on eight IOI prompts, against published numbers: ``python -m experiments.check_gpt2_ioi``.

The reference (``data/gpt2_ioi_patching.json``) holds exact and attribution patching of every head's z, q, k, v and
pattern, and of the residual stream, attention and MLP outputs by position, from the stored outputs of TransformerLens's
demo notebooks. Needs the network once, to fetch GPT-2 (about 550 MB), or a directory that holds it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from patching import Effects, LensModel, SiteRun, Task, atp_star, sweep

REFERENCE = Path(__file__).parent / "data" / "gpt2_ioi_patching.json"
HEADS, STREAMS = ("z", "q", "k", "v", "pattern"), ("resid_pre", "attn_out", "mlp_out")
AGREES = 2e-3
"""The reference has four decimals and its own rounding of single precision."""

PROMPTS = (
    ("When John and Mary went to the shops,{} gave the bag to", (" John", " Mary")),
    ("When Tom and James went to the park,{} gave the ball to", (" Tom", " James")),
    ("When Dan and Sid went to the shops,{} gave an apple to", (" Dan", " Sid")),
    ("After Martin and Amy went to the park,{} gave a drink to", (" Martin", " Amy")),
)


@dataclass(frozen=True)
class Agreement:
    """One array of the reference beside ours."""

    method: str
    kind: str
    largest_difference: float
    pearson: float

    @property
    def holds(self) -> bool:
        """Whether every entry agrees."""
        return self.largest_difference <= AGREES


def demo_task(model: LensModel) -> Task:
    """The eight prompts: each template with either name as the subject, corrupt being its neighbour."""
    texts, answers, wrong = [], [], []
    for template, (first, second) in PROMPTS:
        for subject, other in ((second, first), (first, second)):
            texts.append(template.format(subject))
            answers.append(other)
            wrong.append(subject)
    swapped = [texts[row + 1 - 2 * (row % 2)] for row in range(len(texts))]
    return Task.from_prompts(
        model.tokenizer, name="ioi-demo", clean=texts, corrupt=swapped, answers=answers, wrong_answers=wrong,
        prepend_bos=True,
    )  # fmt: skip


def effects(run: SiteRun, methods: Sequence[str] = ("exact", "atp")) -> dict[str, dict[str, Effects]]:
    """Every array of the reference, measured here."""
    found: dict[str, dict[str, Effects]] = {method: {} for method in methods}
    plain: dict[str, Any] = {"qk_fix": False, "grad_drop": False}
    for kinds, positions in ((HEADS, False), (STREAMS, True)):
        for kind in kinds:
            if "exact" in methods:
                found["exact"][kind] = sweep(run, kind, positions=positions)
        if "atp" in methods:
            found["atp"] |= atp_star.scores_of(run, kinds, positions=positions, **plain)
    return found


def compare(found: Mapping[str, Mapping[str, Effects]], reference: Mapping[str, Any]) -> list[Agreement]:
    """Largest difference and correlation of every array, normalised as in the reference."""
    rows = []
    for method, arrays in found.items():
        for kind, ours in arrays.items():
            if kind not in reference.get(method, {}):
                continue
            theirs = torch.tensor(reference[method][kind], dtype=torch.float64)
            mine = ours.normalised.double().cpu()
            if mine.shape != theirs.shape:
                raise ValueError(
                    f"expected {list(theirs.shape)} values of {kind} ({method}), as in the reference; got "
                    f"{list(mine.shape)}. Is this GPT-2 small, with the same prompts?"
                )
            both = torch.stack([mine.flatten(), theirs.flatten()])
            rows.append(Agreement(method, kind, float((mine - theirs).abs().max()), float(torch.corrcoef(both)[0, 1])))
    return rows


def main() -> int:
    """Print the comparison; 1 if anything disagrees."""
    parser = argparse.ArgumentParser(prog="python -m experiments.check_gpt2_ioi", description=__doc__)
    parser.add_argument("--model", default="gpt2", help="hub name or directory of GPT-2 small")
    parser.add_argument("--reference", type=Path, default=REFERENCE, help="JSON file to compare with")
    options = parser.parse_args()
    reference = json.loads(options.reference.read_text(encoding="utf-8"))
    model = LensModel.load(options.model)
    run = SiteRun(model, demo_task(model), direction="denoising")
    return report(run, compare(effects(run), reference), Console())


def report(run: SiteRun, rows: Sequence[Agreement], console: Console) -> int:
    """The table, and what the QK fix does to the query that AtP misses most."""
    table = Table("method", "site", "largest difference", "Pearson", "")
    for row in rows:
        mark = "agrees" if row.holds else "DIFFERS"
        table.add_row(row.method, row.kind, f"{row.largest_difference:.4f}", f"{row.pearson:.4f}", mark)
    console.print(table)
    exact = sweep(run, "q").normalised
    plain = atp_star.scores(run, "q", qk_fix=False, grad_drop=False).normalised
    fixed = atp_star.scores(run, "q", grad_drop=False).normalised
    worst = (exact - plain).abs()
    layer, head = divmod(int(worst.argmax()), worst.shape[1])
    values = [float(array[layer, head]) for array in (exact, plain, fixed)]
    closer = abs(values[2] - values[0]) < abs(values[1] - values[0])
    console.print(
        f"Query of head {layer}.{head}, which AtP misses most: exact {values[0]:.3f}, AtP {values[1]:.3f}, with the QK "
        f"fix {values[2]:.3f} ({'closer' if closer else 'NOT closer'})."
    )
    return 0 if closer and all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
