"""Activations averaged over tokens, as linear probes read them, with features zeroed on the way there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.features.activations import Prompts, parse_site, prompts_that_fit
from circuits.features.dictionary import Dictionary
from circuits.features.reading import directions, place_of
from circuits.features.spelling import spelled_feature
from graphs.nodes import Node
from patching.component_run import FEATURE_SITES
from patching.errors import InvalidOption
from patching.lens import LensModel
from patching.masked import DEFAULT_BYTES
from patching.sites import KINDS, Site, Start, forward

_ORDER = {kind: place for place, kind in enumerate(KINDS)}  # in which a layer computes its sites


class PooledRun:
    """What a probe reads: a site's activation, averaged over the tokens that count, with features ablated on the way.

    Args:
        model: the model.
        site: that the probe reads, such as ``resid_post1``.
        dictionaries: of features, each at a site of its own, at the probe's or before it.
        memory: bytes that one call may use.

    Raises:
        InvalidOption: a site that the model lacks; a dictionary after the probe, of another width, or a transcoder; two
            at one site.

    Example:
        >>> from circuits.features.dictionary import create
        >>> from patching import toy
        >>> identity = create("identity", d_in=4, n_features=4, site="resid_pre0", dtype=torch.float64)
        >>> run = PooledRun(toy.model(), "resid_pre0", dictionaries=[identity])
        >>> prompts = Prompts.from_tokens(torch.tensor([[0, 1, 1, 1]]))
        >>> run(prompts).tolist(), run(prompts, without=[run.node(Site("resid_pre", 0), 1)]).tolist()
        ([[0.25, 0.75, 0.0, 0.0]], [[0.25, 0.0, 0.0, 0.0]])
    """

    def __init__(
        self,
        model: LensModel,
        site: str | Site,
        *,
        dictionaries: Sequence[Dictionary] = (),
        memory: int = DEFAULT_BYTES,
    ) -> None:
        self.model, self.memory = model, memory
        self.site = parse_site(site, model)
        if self.site.kind not in KINDS:
            raise InvalidOption(f"expected a site of the model to probe; got {self.site}.")
        found = sorted(((self._checked(one), one) for one in dictionaries), key=lambda pair: _rank(pair[0]))
        self.dictionaries: dict[Site, Dictionary] = dict(found)
        if len(self.dictionaries) < len(found):
            raise InvalidOption(f"expected one dictionary for each site; got {', '.join(str(s) for s, _ in found)}.")

    def _checked(self, dictionary: Dictionary) -> Site:
        place = place_of(dictionary, self.model)
        site = place.site
        if place.transcoder:
            raise InvalidOption(
                f"expected a dictionary that reads where it writes; the one at {site} is a transcoder, whose features "
                "cannot be taken out of the site with the rest kept."
            )
        if site.kind not in FEATURE_SITES or (site.kind == "resid_pre" and site.layer):
            raise InvalidOption(f"expected a dictionary at attn_out, mlp_out, resid_post or resid_pre0; got {site}.")
        if _rank(site) > _rank(self.site):
            raise InvalidOption(f"expected dictionaries at or before the probe's site {self.site}; got {site}.")
        return site

    def node(self, site: Site, index: int) -> Node:
        """The node of a feature: ``m1.f12``."""
        return Node.parse(spelled_feature(str(site), index))

    def site_of(self, node: Node) -> Site:
        """The site of a feature.

        Raises:
            InvalidOption: it is no feature of these dictionaries.
        """
        for site, dictionary in self.dictionaries.items():
            if not node.is_error and node.site == FEATURE_SITES[site.kind] and (node.layer or 0) == site.layer:
                if node.index is not None and node.index < dictionary.n_features and node.position is None:
                    return site
                break
        have = ", ".join(f"{self.node(site, one.n_features - 1)}" for site, one in self.dictionaries.items())
        raise InvalidOption(
            f"expected a feature of this run's dictionaries, at all positions (up to {have or 'none'}); got {node}."
        )

    @torch.no_grad()
    def __call__(self, prompts: Prompts, *, without: Iterable[Node] = ()) -> Float[Tensor, "example width"]:
        """Mean activations at the site, in float64.

        Args:
            prompts: token ids; their mask says which positions are averaged, and ablated.
            without: features to zero at every position that counts. What else the activation holds, the error term
                included, stays; later features are computed from what then arrives.

        Raises:
            InvalidOption: a node that is no feature of these dictionaries.

        Cost: one forward up to the site, and the encoders of the sites that lose features.
        """
        gone: dict[Site, list[int]] = {}
        for node in without:
            gone.setdefault(self.site_of(node), []).append(node.index or 0)
        latents = {site: torch.tensor(sorted(set(indices))) for site, indices in gone.items()}
        parts = []
        for piece in self.pieces(prompts):

            def change(site: Site, value: Tensor, keep: Tensor = piece.keep) -> Tensor:
                return self._zeroed(site, value, latents[site], keep) if site in latents else value

            start = Start(0, 0, 0, self.model.embed(piece.tokens))
            parts.append(self.pool(self.run(start, piece, change), piece.keep))
        return torch.cat(parts)

    def _zeroed(self, site: Site, value: Tensor, latents: Tensor, keep: Tensor) -> Tensor:
        dictionary = self.dictionaries[site]
        lost = dictionary.encode(value)[..., latents] @ directions(dictionary)[latents]
        return value - (lost * keep.to(value.device).unsqueeze(-1)).to(value.dtype)

    def run(self, start: Start, prompts: Prompts, change: Callable[[Site, Tensor], Tensor]) -> Tensor:
        """The value at the probe's site, when ``change`` says what every site carries. Carries gradients."""

        def visit(kind: str, layer: int, value: Tensor, _narrow: bool) -> Tensor:
            here = Site(kind, layer)
            value = change(here, value)
            if here == self.site:
                raise _Reached(value)
            return value

        answer = torch.zeros(len(prompts), dtype=torch.long, device=self.model.device)
        try:
            forward(
                self.model, self.model.contexts(prompts.tokens.shape[1]), start, visit, answer=answer, trim=False
            )  # fmt: skip
        except _Reached as reached:
            return reached.value
        raise AssertionError(f"a run never came to {self.site}")

    def pool(
        self, value: Float[Tensor, "*sample example pos width"], keep: Bool[Tensor, "example pos"]
    ) -> Float[Tensor, "*sample example width"]:
        """The mean over the positions that count."""
        shares = keep.to(value.device).double()
        shares = shares / shares.sum(-1, keepdim=True)
        return (value.double() * shares.unsqueeze(-1)).sum(-2)

    def pieces(self, prompts: Prompts) -> Iterator[Prompts]:
        """The prompts, as many at a time as fit."""
        length = prompts.tokens.shape[1]
        size = prompts_that_fit(self.model, length, self.memory // 4)
        widest = max((one.n_features for one in self.dictionaries.values()), default=1)
        size = max(1, min(size, self.memory // (6 * length * widest * self.model.dtype.itemsize)))
        for low in range(0, len(prompts), size):
            yield prompts.subset(slice(low, low + size))


class _Reached(Exception):
    """Ends a run at the probe's site, with the value there."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


def _rank(site: Site) -> tuple[int, int]:
    return site.layer, _ORDER[site.kind]
