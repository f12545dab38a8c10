"""The same dictionary at several sparsities: how much is explained for how many features that are on.

No single number says how good a dictionary is. What can be compared is a curve, explained variance against L0, and
the share of features that died on the way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from circuits.features.dictionary import create
from circuits.features.metrics import report
from circuits.features.training import Batch, Recipe, Training, train
from patching.errors import InvalidOption
from patching.progress import Progress, silent

if TYPE_CHECKING:
    import pandas as pd

WITH_K = ("topk", "batchtopk", "matryoshka")
"""Architectures whose sparsity is a k."""


@dataclass(frozen=True)
class Row:
    """One point of a sweep, measured by the rule of inference on activations that were held out.

    Attributes:
        value: k, or the coefficient of the sparsity penalty.
        l0: features that are on, on average.
        explained_variance: ``1 - E||y - x_hat||² / E||y - E y||²``.
        dead: share of the features that are never on in the activations held out.
        training: the dictionary and how it came about.
    """

    value: float
    l0: float
    explained_variance: float
    dead: float
    training: Training


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    Attributes:
        name: what was varied, ``k`` or ``sparsity``.
        rows: in the order asked for.
    """

    name: str
    rows: tuple[Row, ...]

    def to_frame(self) -> pd.DataFrame:
        """The numbers as a table."""
        import pandas

        return pandas.DataFrame(
            [{self.name: r.value, "l0": r.l0, "explained_variance": r.explained_variance, "dead": r.dead}
             for r in self.rows]
        )  # fmt: skip


def sweep(
    architecture: str,
    batches: Iterable[Batch],
    *,
    values: Sequence[float],
    held_out: Tensor | tuple[Tensor, Tensor],
    n_features: int,
    steps: int,
    lr: float = 3e-4,
    seed: int = 0,
    recipe: Recipe | None = None,
    site: str | None = None,
    progress: Progress = silent,
    **options: Any,
) -> Sweep:
    """Train one dictionary for each sparsity, all from the same start and on the same batches.

    Args:
        architecture: as in `create`.
        batches: as in `train`; something that can be iterated again.
        values: of k for topk, batchtopk and matryoshka, or else of the sparsity coefficient.
        held_out: activations to measure on, [token, d_in], or a pair for transcoders.
        n_features: of every dictionary.
        steps: updates of each.
        lr: learning rate.
        seed: of the starting weights.
        recipe: everything else.
        site: where the dictionaries belong.
        progress: called with the number of steps done and to do, of all dictionaries together.
        **options: of the architecture.

    Raises:
        InvalidOption: no values, or what `create` and `train` refuse.

    Cost: one training for each value.

    Example:
        >>> from circuits.features import toys
        >>> toy = toys.superposition(8, 16, 0.05)
        >>> found = sweep("topk", toy.batches(64), values=[1, 4], held_out=toy.sample(500), n_features=16, steps=20)
        >>> [row.l0 <= row.value for row in found.rows]
        [True, True]
    """
    if not len(values):
        raise InvalidOption("expected at least one value to sweep over; got none.")
    if iter(batches) is batches:
        raise InvalidOption("expected batches that can be iterated again (a list, an ActivationBuffer, a toy's).")
    x, y = held_out if isinstance(held_out, tuple) else (held_out, held_out)
    with_k = architecture in WITH_K
    rows = []
    for number, value in enumerate(values):
        own: dict[str, Any] = options | ({"k": value} if with_k else {})
        widths = {"d_in": x.shape[-1], "d_out": y.shape[-1]}
        dictionary = create(architecture, n_features=n_features, seed=seed, site=site, **widths, **own)

        def shown(done: int, total: int, before: int = number) -> None:
            progress(before * total + done, len(values) * total)

        training = train(
            dictionary, batches, steps=steps, lr=lr, sparsity=None if with_k else value, recipe=recipe, progress=shown
        )
        judged = report(training.dictionary, x, targets=None if y is x else y)
        rows.append(Row(value, judged.l0, judged.explained_variance, judged.dead, training))
    return Sweep("k" if with_k else "sparsity", tuple(rows))
