"""Effects of patching, as a labelled array with its spread over prompts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from graphs.atomic import read_text, write_text
from graphs.errors import BadFile
from patching.agreement import agreement
from patching.errors import InvalidOption

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = "wiretrace-effects/1"


@dataclass(frozen=True)
class Effects:
    """What each of an array of patches does to the metric, prompt by prompt.

    The sign: effect = metric(patched) - metric(base). Noising, the base is the clean run and negative means that the
    patched part helps; denoising, the base is the corrupt run and positive does.

    Attributes:
        values: effect of every prompt; the axes after the first are named by ``axes``.
        axes: for example ``("layer", "head")`` or ``("layer", "position")``.
        labels: what each step along each axis is called.
        base_metric, source_metric: of every prompt, unpatched and in the run that supplies the patches.
        provenance: method, options, model, task, ablation, metric, direction.
        signed: False where values are absolute by construction (GradDrop).
        singles: for windows, the sum of the effects of the window's layers patched one by one.
    """

    values: Float[Tensor, "example ..."]
    axes: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    base_metric: Float[Tensor, " example"]
    source_metric: Float[Tensor, " example"]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    signed: bool = True
    singles: Float[Tensor, "example ..."] | None = None

    def __post_init__(self) -> None:
        """Results live on the CPU, wherever the model is."""
        for name in ("values", "base_metric", "source_metric", "singles"):
            tensor = getattr(self, name)
            object.__setattr__(self, name, None if tensor is None else tensor.detach().cpu())

    @property
    def mean(self) -> Float[Tensor, ...]:
        """Mean effect over prompts, in the metric's unit."""
        return self.values.mean(0)

    @property
    def standard_error(self) -> Float[Tensor, ...]:
        """Standard error of the mean.

        Raises:
            InvalidOption: there are fewer than two prompts.
        """
        if len(self.values) < 2:
            raise InvalidOption("expected at least two prompts for a standard error; got 1. Add prompts to the task.")
        return self.values.std(0) / math.sqrt(len(self.values))

    @property
    def importance(self) -> Float[Tensor, ...]:
        """Mean over prompts of absolute effects (arXiv 2403.00745, eq. 5)."""
        return self.values.abs().mean(0)

    @property
    def absolute_mean(self) -> Float[Tensor, ...]:
        """Absolute value of the mean effect: prompts of opposite sign cancel."""
        return self.mean.abs()

    @property
    def normalised(self) -> Float[Tensor, ...]:
        """Mean effect over the mean gap between the two runs: 0 is the base run, 1 the source run; not clipped.

        A ratio of means, as in the literature; prompts with a small gap then weigh little.
        """
        gap = float((self.source_metric - self.base_metric).mean())
        if gap == 0:
            raise InvalidOption(
                "expected base and source runs with different metrics; they agree, so no effect can be normalised."
            )
        return self.mean / gap

    @property
    def detected(self) -> Bool[Tensor, ...]:
        """Effects more than two standard deviations from the mean over the array (arXiv 2309.16042).

        None of an array of one: it has no spread.
        """
        mean = self.mean
        if mean.numel() < 2:
            return torch.zeros_like(mean, dtype=torch.bool)
        return (mean - mean.mean()).abs() > 2 * mean.std()

    def __getitem__(self, labels: str | tuple[str, ...]) -> float:
        """The mean effect at some labels, such as ``effects["L3", "H5"]``.

        Raises:
            InvalidOption: there is no such label; the message lists those that exist.
        """
        wanted = (labels,) if isinstance(labels, str) else labels
        if len(wanted) != len(self.axes):
            raise InvalidOption(f"expected one label for each of {', '.join(self.axes)}; got {wanted}.")
        index = []
        for label, axis, known in zip(wanted, self.axes, self.labels, strict=True):
            if label not in known:
                some = ", ".join(known[:12]) + (", …" if len(known) > 12 else "")
                raise InvalidOption(f"expected a {axis} out of {some}; got {label!r}.")
            index.append(known.index(label))
        return float(self.mean[tuple(index)])

    def top(self, n: int = 10) -> list[tuple[str, float]]:
        """The n largest by `importance`: name and mean effect."""
        names = self.names()
        order = self.importance.flatten().argsort(descending=True, stable=True)[:n].tolist()
        mean = self.mean.flatten()
        return [(names[i], float(mean[i])) for i in order]

    def names(self) -> list[str]:
        """Name of every entry, in the order of the flattened array."""
        names = [""]
        for known in self.labels:
            names = [f"{name} {label}".strip() for name in names for label in known]
        return names

    def compare(self, true: Effects, *, k: int = 10, persistence: float = 0.9) -> dict[str, float]:
        """How well these effects predict others of the same axes.

        See `agreement`; mean effects are correlated, or importances where either side is unsigned.

        Raises:
            InvalidOption: the axes or labels differ.
        """
        if self.axes != true.axes or self.labels != true.labels:
            raise InvalidOption(
                f"expected effects over the same axes; got {self.axes} and {true.axes}, or other labels along them."
            )
        ours, theirs = self.importance.flatten().double(), true.importance.flatten().double()
        signed = self.signed and true.signed
        values = (self.mean.flatten(), true.mean.flatten()) if signed else (ours, theirs)
        return agreement(*values, ours, theirs, k=k, persistence=persistence)

    def to_frame(self) -> pd.DataFrame:
        """One row per entry, most important first."""
        import itertools

        import pandas as pd

        columns: dict[str, Any] = dict(zip(self.axes, zip(*itertools.product(*self.labels), strict=True), strict=True))
        columns["effect"] = self.mean.flatten().tolist()
        if len(self.values) > 1:
            columns["standard error"] = self.standard_error.flatten().tolist()
        columns["importance"] = self.importance.flatten().tolist()
        columns["detected"] = self.detected.flatten().tolist()
        return pd.DataFrame(columns).sort_values("importance", ascending=False, kind="stable", ignore_index=True)

    def save(self, path: str | Path) -> None:
        """Write as JSON, atomically; float64 values come back to the last bit.

        Raises:
            InvalidOption: a value is not finite, or the provenance is not plain data.
            WriteFailed: the system refuses.
        """
        document = {
            "schema": SCHEMA,
            "axes": self.axes,
            "labels": self.labels,
            "signed": self.signed,
            "provenance": dict(self.provenance),
            "base_metric": self.base_metric.tolist(),
            "source_metric": self.source_metric.tolist(),
            "values": self.values.tolist(),
            "singles": None if self.singles is None else self.singles.tolist(),
        }
        try:
            text = json.dumps(document, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InvalidOption(f"expected finite effects and a provenance of plain data to save; {error}.") from error
        write_text(Path(path), text + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Effects:
        """Read what `save` wrote.

        Raises:
            InvalidOption: the file is not of this kind or does not hold together.
        """
        try:
            return _from_document(json.loads(read_text(path)))
        except (BadFile, ValueError, KeyError, TypeError, ArithmeticError, RuntimeError) as error:
            said = f"it has no {error}" if isinstance(error, KeyError) else error
            raise InvalidOption(f"expected a file of schema {SCHEMA}; {path} cannot be read as one: {said}.") from error

    def plot(self, path: str | Path, *, title: str | None = None) -> None:
        """Write a heat map (two axes) or a curve (one axis); .svg, .pdf or .png.

        Raises:
            UnknownFormat: the suffix is none of these.
            InvalidOption: there are more than two axes.
        """
        from patching.pictures import heat_map

        heat_map(self, Path(path), title=title)

    def scatter(self, true: Effects, path: str | Path) -> None:
        """Write a scatter plot of these importances against true ones, the largest named.

        Raises:
            UnknownFormat: the suffix is not .svg, .pdf or .png.
            InvalidOption: the two have other axes or labels.
        """
        from patching.pictures import scatter

        scatter(self, true, Path(path))

    def __repr__(self) -> str:
        best = ", ".join(f"{name} {value:+.3f}" for name, value in self.top(3))
        shape = " × ".join(f"{len(known)} {axis}s" for axis, known in zip(self.axes, self.labels, strict=True))
        return f"Effects({self.provenance.get('method', '?')}, {shape}; {best}, …)"

    def _repr_html_(self) -> str:
        return self.to_frame().head(20).to_html(index=False)


def _from_document(document: Any) -> Effects:
    """The effects in a document of `Effects.save`; anything wrong with it raises an error that says so."""
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ValueError("its schema is another one")
    labels = tuple(tuple(known) for known in document["labels"])
    axes, signed, provenance = tuple(document["axes"]), document["signed"], document["provenance"]
    if not all(isinstance(word, str) for word in (*axes, *(label for known in labels for label in known))):
        raise ValueError("axes and labels must be text")
    if not isinstance(signed, bool) or not isinstance(provenance, dict):
        raise ValueError("signed must be true or false, and provenance an object")
    arrays = {}
    for name in ("base_metric", "source_metric", "values", "singles"):
        arrays[name] = None if document[name] is None else torch.tensor(document[name], dtype=torch.float64)
        if arrays[name] is None and name != "singles":
            raise ValueError(f"it has no {name}")
    examples = tuple(arrays["base_metric"].shape)
    shape = (*examples, *map(len, labels))
    if len(examples) != 1 or 0 in shape or len(axes) != len(labels) or not axes:
        raise ValueError("prompts, axes and labels do not match")
    for name, array in arrays.items():
        expected = examples if name.endswith("metric") else shape
        if array is not None and tuple(array.shape) != expected:
            raise ValueError(f"expected {name} of shape {list(expected)}; got {list(array.shape)}")
        if array is not None and not bool(torch.isfinite(array).all()):
            raise ValueError(f"{name} are not all finite")
    return Effects(
        arrays["values"], axes, labels, arrays["base_metric"], arrays["source_metric"], provenance, signed=signed,
        singles=arrays["singles"],
    )  # fmt: skip
