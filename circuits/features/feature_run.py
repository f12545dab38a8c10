"""Two runs of a task seen through dictionaries: the clean one, and the one that supplies patches.

At a site with a dictionary, ``x = f @ W_dec + b_dec + error``. A patch gives features or the error term the values
that they have in the second run, and lets everything after the site run freely. Decoders are affine, so moving all
features and the error term of a site from one run to the other moves x along a straight line that does not depend on
the dictionary: gradients are taken at the sites of the model as it is, and one pass serves any dictionaries.

    dm/df = dm/dx @ W_dec^T          dm/derror = dm/dx
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from circuits.features.dictionary import Dictionary
from graphs.nodes import Node, error, feature
from patching import ablations, metrics
from patching.ablations import Ablation
from patching.chunks import Chunks, check_memory
from patching.component_run import FEATURE_SITES, groups_of
from patching.errors import InvalidOption
from patching.lens import LensModel
from patching.masked import DEFAULT_BYTES, check_tokens
from patching.metrics import Contrast, Metric, Prediction
from patching.sites import Site, Start, Visit, at, forward
from patching.task import Task


class FeatureRun:
    """A model on a task with dictionaries at some of its sites.

    Making one costs two forwards, and keeps the residual stream and the dictionaries' sites of both.

    Args:
        model: the model.
        task: prompts and answers.
        dictionaries: each at a site of its own: ``attn_out``, ``mlp_out`` or ``resid_post`` of any layer, or
            ``resid_pre0``. Never ``resid_mid``: what is put there reaches the MLP alone in many implementations.
        ablation: what patches carry: a run of other prompts (``corrupt``), or features and error terms that are zero or
            pooled over prompts; a name from `ablations.ABLATIONS` or an `Ablation`.
        metric: a name from `metrics.METRICS` or a `Metric`; the task's own by default.
        memory: bytes that one call may use beyond what is stored; chunks are halved where there is less
            (`patching.chunks`).

    Raises:
        InvalidOption: no dictionaries, two at a site, a width or a site that does not fit, weights that are not finite,
            or a transcoder, which does not read where it writes.

    Example:
        >>> from circuits.features import agreement_toy as toy
        >>> run = FeatureRun(toy.model(), toy.task(), toy.dictionaries())
        >>> [str(site) for site in run.sites], run.patched_metric.round().tolist()
        (['resid_pre0', 'attn_out0', 'mlp_out0', 'resid_post0'], [0.0, 0.0])
    """

    def __init__(
        self,
        model: LensModel,
        task: Task,
        dictionaries: Sequence[Dictionary],
        *,
        ablation: str | Ablation = "corrupt",
        metric: str | Metric | None = None,
        memory: int = DEFAULT_BYTES,
    ) -> None:
        if not dictionaries:
            raise InvalidOption("expected at least one dictionary; got none. create('identity', ...) makes neurons.")
        check_memory(memory)
        self.model, self.task, self.memory = model, task, memory
        self.prompt_chunks = Chunks("prompts", model.device)
        self.ablation = ablations.get(ablation)
        self.metric = metrics.get(task.metric if metric is None else metric)
        if self.ablation.constants is not None:
            raise InvalidOption(f"expected an ablation of features; {self.ablation.name} has no constants for them.")
        check_tokens(model, task)
        usable = [_usable(dictionary, model) for dictionary in dictionaries]
        places = [Site(group.site, group.layer) for group in groups_of(model, ("features",), usable)]
        by_name = {dictionary.site: dictionary for dictionary in usable}
        self.dictionaries: dict[Site, Dictionary] = {site: by_name[str(site)] for site in places}
        self.length = task.clean.shape[1]
        size = max(1, min(len(task), memory // (2 * (self.step_bytes(1) + self.feature_bytes(1)))))
        self.parts = self.prompt_chunks.fit(size, self._made)

    @property
    def largest_batch(self) -> int:
        """How many prompts are run together."""
        return max(map(len, self.parts))

    def in_batches_of(self, size: int) -> FeatureRun:
        """The same run with its prompts in parts of at most some size, and a budget in proportion. Nothing is run."""
        view = copy.copy(self)
        view.memory = max(1, self.memory * size // self.largest_batch)
        view.parts = [part.subset(rows) for part in self.parts for rows in in_chunks(len(part), size)]
        return view

    @torch.no_grad()
    def _made(self, size: int) -> list[Part]:
        """The prompts in parts of some size."""
        prompts = self.ablation.prompts(self.task)
        clean, other = self.model.embed(self.task.clean), self.ablation.embed(self.model, self.task, prompts)
        parts: list[Part] = []
        for low in range(0, len(self.task), size):
            rows = slice(low, low + size)
            parts.append(Part(self, self.task.subset(rows), clean[rows], other[rows]))
        combine = self.ablation.combine
        if combine is None:
            return parts
        weights = self.ablation.weights(self.task).to(self.model.device)
        for site, dictionary in self.dictionaries.items():
            there = torch.cat([part.source[site] for part in parts])
            features = dictionary.encode(there)
            pooled = (combine(features, weights), combine(there - dictionary.decode(features), weights))
            for part in parts:
                part.pooled[site] = pooled
        return parts

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites of the dictionaries, in the order in which the model computes them."""
        return tuple(self.dictionaries)

    @property
    def clean_metric(self) -> Float[Tensor, " example"]:
        """The metric of every prompt."""
        return torch.cat([part.base_metric for part in self.parts])

    @property
    def patched_metric(self) -> Float[Tensor, " example"]:
        """The metric of the run that supplies the patches, or from whose features they are pooled."""
        return torch.cat([part.source_metric for part in self.parts])

    def node(self, site: Site, unit: int, position: int | None = None) -> Node:
        """The node of a feature; that of the error term for the number after the last feature."""
        name = FEATURE_SITES[site.kind]
        layer = None if name == "input" else site.layer
        if unit == self.dictionaries[site].n_features:
            return error(name, layer, position)
        return feature(name, layer, unit, position)

    def place(self, node: Node) -> tuple[Site, int]:
        """The site of a node and its number there.

        Raises:
            InvalidOption: no dictionary here has it.
        """
        kinds = {name: kind for kind, name in FEATURE_SITES.items()}
        site = None if node.site is None else Site(kinds[node.site], node.layer or 0)
        if site not in self.dictionaries:
            raise InvalidOption(
                f"expected a feature or error term at one of {', '.join(map(str, self.sites))}; got {node}."
            )
        count = self.dictionaries[site].n_features
        if not node.is_error and (node.index or 0) >= count:
            raise InvalidOption(f"expected a feature from 0 to {count - 1} at {site}; got {node}.")
        if node.position is not None and node.position >= self.length:
            raise InvalidOption(f"expected a position from 0 to {self.length - 1}; got {node}.")
        return site, count if node.is_error else node.index or 0

    def layer_bytes(self, examples: int) -> int:
        """Bytes of one layer's forward and backward on some prompts."""
        model = self.model
        mlp = max((block.mlp.w_in.shape[0] if block.mlp else 0) for block in model.blocks)
        heads = model.architecture.n_heads * model.blocks[0].attention.out.shape[1]
        token = 8 * model.d_model + 8 * heads + 4 * mlp + 4 * model.architecture.n_heads * self.length
        return examples * self.length * token * model.dtype.itemsize

    def step_bytes(self, examples: int) -> int:
        """Bytes of one forward and backward of some prompts."""
        logits = 2 * examples * self.model.d_vocab * self.model.dtype.itemsize
        return self.layer_bytes(examples) * len(self.model.blocks) + logits

    def feature_bytes(self, examples: int) -> int:
        """Bytes of the features of one site in some prompts, a few times over."""
        widest = max(dictionary.n_features for dictionary in self.dictionaries.values())
        return 5 * examples * self.length * widest * self.model.dtype.itemsize

    def provenance(self, method: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """How a result came about, as plain data."""
        return {
            "method": method,
            "options": dict(options),
            "model": self.model.name,
            "task": self.task.name,
            "prompts": len(self.task),
            "dictionaries": {
                str(site): f"{one.architecture}, {one.n_features} features" for site, one in self.dictionaries.items()
            },
            "ablation": self.ablation.name,
            "metric": self.metric.name,
            "sign": "effect = metric(patched) - metric(clean)",
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "torch": torch.__version__,
        }

    def __repr__(self) -> str:
        return (
            f"FeatureRun({self.model.name}, {self.task.name}, {len(self.task)} prompts, "
            f"{len(self.sites)} dictionaries, ablation={self.ablation.name}, metric={self.metric.name})"
        )


class Part:
    """Some prompts: both runs at the sites, and the clean one before every layer."""

    def __init__(self, run: FeatureRun, task: Task, clean: Tensor, other: Tensor) -> None:
        self.model, self.metric, self.dictionaries = run.model, run.metric, run.dictionaries
        model = run.model
        self.answers, self.wrong = task.answers.to(model.device), task.wrong_answers.to(model.device)
        self.contrast = Contrast.of(self.answers, self.wrong)
        self.answer = task.positions.to(model.device)
        self.contexts = model.contexts(task.clean.shape[1])
        self.embedded, self.other = clean, other
        self.streams: list[Tensor] = []
        self.middles: list[Tensor] = []
        self.base, final = self._recorded(clean, keep_streams=True)
        self.source, last = self._recorded(other)
        self.pooled: dict[Site, tuple[Tensor, Tensor]] = {}
        self.clean_log_probs = None
        if run.metric.needs_clean:
            self.clean_log_probs = torch.log_softmax(model.readout.logits(final).double(), dim=-1)
        self.base_metric, self.source_metric = self.measure(final), self.measure(last)

    def __len__(self) -> int:
        return len(self.answer)

    def subset(self, rows: slice) -> Part:
        """Some of the prompts."""
        own = copy.copy(self)
        for name in ("answers", "wrong", "answer", "embedded", "other", "base_metric", "source_metric"):
            setattr(own, name, getattr(self, name)[rows])
        own.contrast = Contrast.of(own.answers, own.wrong)
        own.streams, own.middles = ([value[rows] for value in row] for row in (self.streams, self.middles))
        own.base, own.source = ({site: value[rows] for site, value in run.items()} for run in (self.base, self.source))
        own.clean_log_probs = None if self.clean_log_probs is None else self.clean_log_probs[rows]
        return own

    def _recorded(self, embedded: Tensor, *, keep_streams: bool = False) -> tuple[dict[Site, Tensor], Tensor]:
        found: dict[Site, Tensor] = {}

        def keep(kind: str, layer: int, value: Tensor, _narrow: bool) -> Tensor:
            if (site := Site(kind, layer)) in self.dictionaries:
                found[site] = value
            if keep_streams and kind == "resid_pre":
                self.streams.append(value)
            if keep_streams and kind == "attn_out":
                self.middles.append(self.streams[-1] + value)
            return value

        return found, self.run(keep, embedded, trim=False)

    def run(self, visit: Visit, embedded: Tensor, *, trim: bool = True) -> Float[Tensor, "*sample example d_model"]:
        """The final residuals of a run whose sites are shown to a visitor."""
        return forward(self.model, self.contexts, Start(0, 0, 0, embedded), visit, answer=self.answer, trim=trim)

    def measure(self, residual: Float[Tensor, "*sample example d_model"]) -> Float[Tensor, "*sample example"]:
        """The metric of final residuals."""
        return self.metric(
            Prediction(residual, self.model.readout, self.answers, self.wrong, self.clean_log_probs, self.contrast)
        )

    def patched(
        self, site: Site, value: Float[Tensor, "*sample example pos d_model"]
    ) -> Float[Tensor, "*sample example"]:
        """The metric of the clean run with a site set to something else; what follows runs freely."""
        layer, last = site.layer, len(self.model.blocks)
        if site.kind == "attn_out":
            before = self.streams[layer]  # also stands in for z, which is not read after attention
            start = Start(layer, 2, 0, before, z=before, middle=before + value)
        elif site.kind == "mlp_out":
            start = Start(layer + 1, 0, 0, self.middles[layer] + value)
        else:
            start = Start(layer + (site.kind == "resid_post"), 0, 0, value)
        if start.layer == last:
            return self.measure(at(start.residual, self.answer)[..., 0, :])
        return self.measure(forward(self.model, self.contexts, start, _as_is, answer=self.answer))

    @torch.no_grad()
    def change(self, site: Site) -> tuple[Tensor, Tensor]:
        """By how much features [example, pos, feature] and error term [example, pos, d_model] differ in the patches."""
        dictionary = self.dictionaries[site]
        features = dictionary.encode(self.base[site])
        rest = self.base[site] - dictionary.decode(features)
        if site in self.pooled:
            new, error_there = self.pooled[site]
        else:
            new = dictionary.encode(self.source[site])
            error_there = self.source[site] - dictionary.decode(new)
        return new - features, error_there - rest

    @torch.no_grad()
    def step(self, site: Site) -> Float[Tensor, "example pos d_model"]:
        """By how much the site's value differs when all its features and its error term are patched."""
        if site not in self.pooled:
            return self.source[site] - self.base[site]
        features, rest = self.pooled[site]
        return self.dictionaries[site].decode(features) + rest - self.base[site]


def feature_gradients(
    dictionary: Dictionary, gradient: Float[Tensor, "*batch d_model"]
) -> Float[Tensor, "*batch feature"]:
    """dm/df of every feature from dm/dx: ``g @ W_dec^T`` for the decoder as it is used, rescaled or not."""
    features = torch.zeros(*gradient.shape[:-1], dictionary.n_features, dtype=gradient.dtype, device=gradient.device)
    with torch.enable_grad():
        features.requires_grad_(True)
        decoded = dictionary.decode(features)
        (pulled,) = torch.autograd.grad(decoded, features, gradient.expand_as(decoded))
    return pulled


@torch.no_grad()
def decoder_rows(dictionary: Dictionary, units: Int[Tensor, " unit"]) -> Float[Tensor, "unit d_model"]:
    """What one unit of each feature adds to x: rows of W_dec, as the decoder uses them."""
    nothing = torch.zeros(1, dictionary.n_features, dtype=dictionary.dtype, device=units.device)
    rows = [
        dictionary.decode(one_hot(units[chunk], dictionary.n_features).to(dictionary.dtype))
        for chunk in in_chunks(len(units), 256)
    ]
    return torch.cat([*rows, nothing.new_zeros(0, dictionary.d_out)]) - dictionary.decode(nothing)


def gates(dictionary: Dictionary, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch feature"]:
    """df/dz of every feature at x: how features follow their own pre-activations (0 where they are off)."""
    with torch.no_grad():
        z = dictionary.pre_activations(x).detach().requires_grad_(True)
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(dictionary.activate(z).sum(), z)
    return slope


def error_pull_back(
    dictionary: Dictionary, slopes: Float[Tensor, "*batch feature"], gradient: Float[Tensor, "*#batch d_model"]
) -> Float[Tensor, "*_ d_model"]:
    """The gradient at x of a function of the error term, whose gradient at the error term is given.

    ``slopes`` are the `gates` at x: ``error = x - decode(encode(x))``, so ``g - (g @ W_dec^T * df/dz) @ W_enc^T``.
    """
    through = feature_gradients(dictionary, gradient) * slopes
    return gradient - through @ dictionary.W_enc.detach().T


def in_chunks(count: int, size: int) -> Iterable[slice]:
    """Slices of a row of things, of some size each."""
    return (slice(low, min(low + size, count)) for low in range(0, count, max(1, size)))


def fitting(memory: int, each: int) -> int:
    """How many things of so many bytes fit; at least one."""
    return max(1, memory // max(1, each))


def _as_is(_kind: str, _layer: int, value: Tensor, _narrow: bool) -> Tensor:
    return value


def _usable(dictionary: Dictionary, model: LensModel) -> Dictionary:
    """The dictionary in the model's precision and place: itself, or else a copy."""
    if dictionary.architecture in ("transcoder", "skip_transcoder"):
        raise InvalidOption(
            f"expected dictionaries that read where they write; the {dictionary.architecture} of {dictionary.site} "
            "reads what the MLP reads. Use an autoencoder of mlp_out."
        )
    if dictionary.d_out != model.d_model:
        raise InvalidOption(
            f"expected a dictionary of {model.name}'s width {model.d_model}; that of {dictionary.site} writes "
            f"{dictionary.d_out}."
        )
    for name, weight in (*dictionary.named_parameters(), *dictionary.named_buffers()):
        if not bool(torch.isfinite(weight).all()):
            raise InvalidOption(f"expected finite weights; {name} of the dictionary of {dictionary.site} has others.")
    weight = dictionary.b_dec
    if weight.dtype == model.dtype and weight.device == model.device:
        return dictionary
    return copy.deepcopy(dictionary).to(device=model.device, dtype=model.dtype)
