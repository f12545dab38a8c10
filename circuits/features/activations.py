"""Activations to train dictionaries on: which tokens count, and what stands at a site for each of them.

`Prompts` are token ids with a mask of the positions that count: beginning-of-sequence tokens and padding never do.
`collect` runs a model over them and keeps what stands at some sites, one row per token that counts. For streams that
are shuffled, re-iterable and bounded in memory see `circuits.features.activation_buffer`.

Sites are spelled as in `patching.sites` (``mlp_out1``, ``resid_pre0``), and one more: ``mlp_in1``, what the MLP of
layer 1 reads after its norm, the input of a transcoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patching.chunks import Chunks
from patching.errors import InvalidOption, InvalidTask, NotFinite
from patching.lens import LensModel
from patching.masked import DEFAULT_BYTES
from patching.progress import Progress, silent
from patching.sites import Site, Start, count_parts, forward, kind_of
from patching.task import Task

MLP_IN = "mlp_in"
"""What an MLP reads, after its norm; no site of its own, but a function of one."""


@dataclass(frozen=True)
class Prompts:
    """Token ids, and which positions count.

    Prompts of different lengths are padded on the right, which a causal model never sees from the left.

    Attributes:
        tokens: token ids.
        keep: the positions whose activations are used.

    Raises:
        InvalidTask: shapes differ, ids are negative, or no position counts.
    """

    tokens: Int[Tensor, "example pos"]
    keep: Bool[Tensor, "example pos"]

    def __post_init__(self) -> None:
        if self.tokens.ndim != 2 or self.tokens.shape != self.keep.shape:
            raise InvalidTask(
                "expected token ids [example, pos] and a mask of the same shape; got "
                f"{list(self.tokens.shape)} and {list(self.keep.shape)}."
            )
        if bool((self.tokens < 0).any()):
            raise InvalidTask("expected token ids of 0 or more; got negative ones.")
        if not bool(self.keep.any()):
            raise InvalidTask(
                "expected at least one position that counts; every one is padding or a beginning-of-sequence token. "
                "Give longer prompts."
            )

    @classmethod
    def from_task(cls, task: Task, *, corrupt: bool = False) -> Prompts:
        """The prompts of a task, up to each one's answer position.

        Args:
            task: the task; its first position is left out where it says that this is a BOS token.
            corrupt: take the corrupt prompts as well, after the clean ones.

        Example:
            >>> from patching import toy
            >>> Prompts.from_task(toy.task()).n_tokens
            8
        """
        keep = torch.arange(task.clean.shape[1]) <= task.positions.cpu()[:, None]
        if task.starts_with_bos:
            keep[:, 0] = False
        tokens = task.clean.cpu()
        if corrupt:
            tokens, keep = torch.cat((tokens, task.corrupt.cpu())), torch.cat((keep, keep))
        return cls(tokens, keep)

    @classmethod
    def from_tokens(
        cls,
        tokens: Int[Tensor, "example pos"],
        *,
        lengths: Int[Tensor, " example"] | None = None,
        bos: int | None = None,
    ) -> Prompts:
        """Rows of token ids.

        Args:
            tokens: the ids.
            lengths: how many of each row are no padding; all by default.
            bos: the id of the beginning-of-sequence token, left out wherever it stands.
        """
        keep = torch.ones_like(tokens, dtype=torch.bool)
        if lengths is not None:
            keep = torch.arange(tokens.shape[1]) < lengths.cpu()[:, None]
        if bos is not None:
            keep = keep & (tokens != bos)
        return cls(tokens.cpu(), keep.cpu())

    @classmethod
    def from_texts(
        cls, texts: Sequence[str], model: LensModel, *, prepend_bos: bool = False, length: int | None = None
    ) -> Prompts:
        """Texts, cut into pieces that fit the model.

        Args:
            texts: as many as you like.
            model: whose tokenizer and context are used.
            prepend_bos: put the tokenizer's beginning-of-sequence token before every piece; it does not count.
            length: tokens in a piece at most, the BOS token included; the model's context by default.

        Raises:
            InvalidTask: the model has no tokenizer or no BOS token, or no text has a token.
            InvalidOption: a length that leaves no token, or more than the context.
        """
        if model.tokenizer is None:
            raise InvalidTask("expected a model with a tokenizer; this one has none. Use Prompts.from_tokens.")
        start = [model.tokenizer.bos_token_id] if prepend_bos else []
        if start == [None]:
            raise InvalidTask("expected a tokenizer with a BOS token for prepend_bos=True; this one has none.")
        room = (model.n_ctx if length is None else length) - len(start)
        if isinstance(length, bool) or room < 1 or room + len(start) > model.n_ctx:
            raise InvalidOption(
                f"expected a length from {len(start) + 1} to {model.n_ctx}, the context of {model.name}; got "
                f"{length!r}."
            )
        pieces: list[list[int]] = []
        for text in texts:
            ids = list(model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
            pieces += [start + ids[first : first + room] for first in range(0, len(ids), room)]
        if not pieces:
            raise InvalidTask("expected at least one token of text; got none.")
        lengths = torch.tensor([len(piece) for piece in pieces])
        tokens = torch.tensor([piece + [0] * (int(lengths.max()) - len(piece)) for piece in pieces])
        keep = torch.arange(tokens.shape[1]) < lengths[:, None]
        keep[:, : len(start)] = False
        return cls(tokens, keep)

    @property
    def n_tokens(self) -> int:
        """How many positions count."""
        return int(self.keep.sum())

    def __len__(self) -> int:
        return len(self.tokens)

    def subset(self, rows: slice | Int[Tensor, " row"]) -> Prompts:
        """Some of the prompts."""
        return Prompts(self.tokens[rows], self.keep[rows])


def as_prompts(subject: Prompts | Task | Int[Tensor, "example pos"]) -> Prompts:
    """Prompts from whatever holds them: a task means its clean prompts, ids mean every position."""
    if isinstance(subject, Prompts):
        return subject
    return Prompts.from_task(subject) if isinstance(subject, Task) else Prompts.from_tokens(subject)


def parse_site(site: str | Site, model: LensModel) -> Site:
    """The site that a name means in a model, if a dictionary can stand there.

    Raises:
        InvalidOption: no such site in this model, or one that is split into heads or holds one position alone.

    Example:
        >>> from patching import toy
        >>> parse_site("resid_post0", toy.model())
        Site(kind='resid_post', layer=0, part=None, position=None)
    """
    name = str(site)
    reads = name.startswith(MLP_IN)
    found = Site.parse(name.replace(MLP_IN, "mlp_out", 1) if reads else name)
    layers = len(model.blocks)
    if found.layer >= layers:
        raise InvalidOption(f"expected a layer from 0 to {layers - 1} of {model.name}; got {name}.")
    kind = kind_of(found.kind, model.architecture)
    if kind.parts not in (None, "neuron") or found.part is not None or found.position is not None:
        raise InvalidOption(
            f"expected a site with one vector per token, all positions (mlp_out1, resid_pre0, {MLP_IN}1); got {name}."
        )
    return Site(MLP_IN, found.layer) if reads else found


def width(model: LensModel, site: str | Site) -> int:
    """How many numbers stand at a site for each token."""
    found = parse_site(site, model)
    neurons = found.kind == "neurons"
    return count_parts(kind_of("neurons", model.architecture), model) if neurons else model.d_model


class _Enough(Exception):
    """Ends a forward once every site has been seen."""


@torch.no_grad()
def read(
    model: LensModel, tokens: Int[Tensor, "example pos"], sites: Sequence[str | Site]
) -> dict[str, Float[Tensor, "example pos width"]]:
    """What stands at some sites, at every position. Cost: one forward, up to the last of the sites.

    Raises:
        InvalidOption: a site that the model does not have.

    Example:
        >>> from patching import toy
        >>> tuple(read(toy.model(), toy.task().clean, ["resid_post0"])["resid_post0"].shape)
        (4, 2, 4)
    """
    if int(tokens.max()) >= model.d_vocab:
        raise InvalidTask(
            f"expected token ids below {model.d_vocab}, the vocabulary of {model.name}; got {int(tokens.max())}. "
            "Were the prompts made with another model's tokenizer?"
        )
    wanted = {(parsed.kind, parsed.layer): str(parsed) for parsed in (parse_site(site, model) for site in sites)}
    before_mlp = "resid_pre" if model.architecture.parallel else "resid_mid"
    found: dict[str, Tensor] = {}

    def keep(kind: str, layer: int, value: Tensor, _narrow: bool) -> Tensor:
        if (kind, layer) in wanted:
            found[wanted[kind, layer]] = value
        if kind == before_mlp and (MLP_IN, layer) in wanted:
            found[wanted[MLP_IN, layer]] = model.blocks[layer].mlp_norm(value)
        if len(found) == len(wanted):
            raise _Enough
        return value

    contexts = model.contexts(tokens.shape[1])
    answer = torch.zeros(len(tokens), dtype=torch.long, device=model.device)
    with suppress(_Enough):
        forward(model, contexts, Start(0, 0, 0, model.embed(tokens)), keep, answer=answer, trim=False)
    return found


def _counted(model: LensModel, prompts: Prompts, sites: Sequence[str | Site], rows: slice) -> dict[str, Tensor]:
    """What stands at sites for the tokens of some prompts that count, on the CPU."""
    found, keep = read(model, prompts.tokens[rows], sites), prompts.keep[rows]
    return {name: value[keep.to(value.device)].cpu() for name, value in found.items()}


def prompts_that_fit(model: LensModel, length: int, memory: int) -> int:
    """How many prompts of some length can run at once within a number of bytes; at least one."""
    heads = model.architecture.n_heads * model.blocks[0].attention.out.shape[1]
    neurons = count_parts(kind_of("neurons", model.architecture), model) if model.architecture.has_mlp else 0
    token = 8 * model.d_model + 6 * heads + 3 * neurons + 3 * model.architecture.n_heads * length
    return max(1, memory // (model.dtype.itemsize * length * token))


def collect(
    model: LensModel,
    prompts: Prompts | Task | Int[Tensor, "example pos"],
    sites: Sequence[str | Site],
    *,
    memory: int = DEFAULT_BYTES,
    progress: Progress = silent,
) -> dict[str, Float[Tensor, "token width"]]:
    """What stands at some sites for every token that counts, in the order of prompts and positions.

    All of it is held in memory: for more than fits, see `circuits.features.activation_buffer.ActivationBuffer`.

    Args:
        model: the model.
        prompts: a task (its clean prompts), token ids (every position) or `Prompts`.
        sites: spelled as in `patching.sites`, or ``mlp_in1``.
        memory: bytes that the forwards may use beyond what is returned.
        progress: called with the number of prompts done and to do.

    Returns:
        By site, one row per token that counts, in the model's dtype, on the CPU.

    Raises:
        InvalidOption: a site that the model does not have.
        NotFinite: an activation is NaN or infinite.

    Cost: one forward of every prompt for all sites together, no unembedding.

    Example:
        >>> from patching import toy
        >>> rows = collect(toy.model(), toy.task(), ["attn_out0", "resid_post0"])
        >>> tuple(rows["attn_out0"].shape)
        (8, 4)
    """
    chosen = as_prompts(prompts)
    size = prompts_that_fit(model, chosen.tokens.shape[1], memory)
    parts: dict[str, list[Tensor]] = {str(site): [] for site in sites}
    work = partial(_counted, model, chosen, sites)
    for rows, found in Chunks("prompts", model.device).over(len(chosen), size, work):
        for name, values in found.items():
            if not bool(torch.isfinite(values).all()):
                raise NotFinite(
                    f"expected finite activations; {name} of {model.name} holds NaN or infinity in prompts "
                    f"{rows.start} to {rows.stop - 1}. Half precision overflows easily: load the model in float32."
                )
            parts[name].append(values)
        progress(rows.stop, len(chosen))
    return {name: torch.cat(rows) for name, rows in parts.items()}
