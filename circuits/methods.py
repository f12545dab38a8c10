"""The table of methods: one line each."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Method:
    """A way to score units or to find a circuit.

    Attributes:
        name: as on the command line.
        home: ``module:function`` of its one public function, taking a `MaskedRun` first.
        gives: ``scores`` or ``circuit``.
        levels: units that it scores.
        summary: what it computes.
        cost: what that takes, in forwards and backwards.
        when: what it is good for.
        source: where it is from.
        options: keyword arguments of the function that a user may set, with their types.
        effects: whether scores are effects with a sign; else they are positive importances, good for ranking alone.
        by_position: whether it takes a run by `MaskedRun.positions`.
    """

    name: str
    home: str
    gives: str
    levels: tuple[str, ...]
    summary: str
    cost: str
    when: str
    source: str
    options: dict[str, type]
    effects: bool = True
    by_position: bool = False

    def function(self) -> Callable[..., Any]:
        """The public function; imports torch."""
        module, name = self.home.split(":")
        return getattr(importlib.import_module(module), name)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("acdc", "circuits.acdc:search", "circuit", ("edge", "node"),
               "walks back from the logits and drops edges whose loss raises the damage by less than tau",
               "about one partial run per edge", "one circuit that has been tested edge by edge",
               "arXiv 2304.14997",
               {"tau": float, "absolute": bool, "order": str, "merged": bool, "seed": int}, by_position=True),
        Method("subnetwork_probing", "circuits.subnetwork_probing:search", "circuit", ("edge", "node"),
               "learns a hard concrete mask at a price per unit kept (SP)",
               "one dense run forward and backward per step", "edges that matter only together",
               "arXiv 2104.03514, 2304.14997",
               {"regularisation": float, "steps": int, "lr": float, "seed": int}),
        Method("edge_pruning", "circuits.edge_pruning:search", "circuit", ("edge",),
               "learns a hard concrete mask held to a target sparsity by a Lagrangian, and keeps exactly that many "
               "edges",
               "one dense run forward and backward per step", "a learned circuit of a given size",
               "arXiv 2406.16778",
               {"sparsity": float, "steps": int, "lr": float, "seed": int}),
        Method("ugs", "circuits.ugs:search", "circuit", ("edge", "node"),
               "learns keep probabilities by uniform gradient sampling at a price per unit",
               "samples dense runs forward and backward per step", "learned masks with optimal ablation",
               "arXiv 2409.09951",
               {"regularisation": float, "samples": int, "steps": int, "lr": float, "seed": int}),
        Method("information_bottleneck", "circuits.information_bottleneck:search", "circuit", ("node",),
               "learns how much noise each node bears (IBCircuit)",
               "one dense run forward and backward per step", "nodes, where there are no corrupt prompts",
               "arXiv 2602.22581", {"beta": float, "steps": int, "lr": float, "seed": int}),
        Method("hisp", "circuits.hisp:scores", "scores", ("edge", "node"),
               "mean size of the metric's slope in each unit's mask, as a share of its layer; no effect, a ranking "
               "alone",
               "two forwards and one backward for all", "a baseline of the ACDC paper",
               "arXiv 1905.10650, 2304.14997", {}, effects=False),
        Method("atp", "patching.atp:scores", "scores", ("edge", "node", "neuron"),
               "first-order effect of every edge (EAP), node or neuron",
               "two forwards and one backward for all", "a first look; misses what saturates",
               "arXiv 2310.10348, 2403.00745", {}),
        Method("eap_ig_inputs", "patching.eap_ig:inputs", "scores", ("edge", "node", "neuron"),
               "attribution patching with gradients averaged while the embeddings go to the ablated run",
               "one forward and backward per step", "the usual choice",
               "arXiv 2403.17806", {"steps": int, "rule": str}),
        Method("eap_ig_activations", "patching.eap_ig:activations", "scores", ("edge", "node", "neuron"),
               "the same while each layer's own writes go to the ablated run",
               "a forward and backward from there per layer and step", "ablations whose inputs cannot be mixed",
               "arXiv 2403.17806", {"steps": int, "rule": str}),
        Method("clean_corrupted", "patching.eap_ig:clean_corrupted", "scores", ("edge", "node", "neuron"),
               "attribution patching with the mean gradient of the clean and the ablated run",
               "two forwards and backwards more", "nearly as cheap as EAP, and less noisy",
               "arXiv 2403.17806", {}),
        Method("ceap", "patching.ceap:scores", "scores", ("edge", "node", "neuron"),
               "conductance: gradients times each unit's own steps on the way of the embeddings",
               "one forward and backward per step", "scores that add up to the whole effect over every cut",
               "arXiv 2606.16920, 1805.12233", {"steps": int, "rule": str}),
        Method("eap_gp", "patching.eap_gp:scores", "scores", ("edge", "node", "neuron"),
               "attribution patching with gradients along a path down the distance of the outputs",
               "two forwards and backwards per step", "research on paths",
               "arXiv 2502.06852", {"steps": int, "length": float}),
        Method("relp", "patching.relp:scores", "scores", ("edge", "node", "neuron"),
               "attribution patching with the backward pass of layer-wise relevance propagation",
               "two forwards and one backward for all", "as cheap as EAP, often far better",
               "arXiv 2508.21258", {"constant_patterns": bool}),
        Method("exact", "patching.exact:scores", "scores", ("edge", "node", "neuron"),
               "measured effect of ablating every edge, node or neuron alone",
               "one partial run each", "small models, and as the truth for the other scores",
               "arXiv 2309.16042", {}),
        Method("coar", "circuits.coar:scores", "scores", ("node", "neuron"),
               "component attribution: regression of the output on random ablations of all units together",
               "one forward per sample", "effects while other parts are missing too; edits",
               "arXiv 2404.11534", {"samples": int, "keep": float, "seed": int, "estimator": str}),
        Method("information_flow", "circuits.information_flow:scores", "scores", ("edge",),
               "share of each source in the residual that each target reads, on the clean run; no effect, a ranking "
               "alone",
               "one forward", "a ranking without corrupt prompts and without a metric",
               "arXiv 2403.00824, 2403.17806", {}, effects=False),
        Method("magnitude", "patching.magnitude:scores", "scores", ("edge", "node"),
               "length of the change that the ablation makes to each source's write; no effect, a ranking alone",
               "no more than the run itself", "a baseline to beat", "arXiv 2407.08734", {}, effects=False),
        Method("random", "patching.random_scores:scores", "scores", ("edge", "node", "neuron"),
               "a random number for every unit", "free", "the baseline to beat", "arXiv 2504.13151", {"seed": int},
               effects=False),
    )
}  # fmt: skip
"""Every method by its name: a row puts one on the command line, into the tests of all and into the documentation."""
