"""Interactions against a function whose second-order terms are known, numpy's least squares, and the graph of both."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from circuits import coar, top_edges
from circuits.coar.masks import MaskDesign
from circuits.coar.pairs import _fitted
from patching import atp
from patching.component_run import ComponentRun
from patching.errors import InvalidOption
from patching.masked import MaskedRun
from tests import tiny

RUN = ComponentRun(tiny.model("gpt2"), tiny.task(n=3))


def test_a_quadratic_function_is_found_exactly() -> None:
    """P4.3: first-order weights are w_i + keep · Σ_j C_ij, and the pairs are C."""
    generator = torch.Generator().manual_seed(0)
    units, keep = RUN.n_units, 0.7
    pairs = torch.tensor(list(combinations(range(units), 2)))
    single = torch.randn(units, 2, generator=generator, dtype=torch.float64)
    double = torch.randn(len(pairs), 2, generator=generator, dtype=torch.float64)
    design = MaskDesign(units, 600, keep, 0)
    masks = design.rows().double()
    outputs = 1.5 + masks @ single + (masks[:, pairs[:, 0]] * masks[:, pairs[:, 1]]) @ double
    found = _fitted(RUN, design, outputs, RUN.units, pairs)
    torch.testing.assert_close(found.values, double.T, rtol=0, atol=1e-9)
    raised = single.clone()
    for (first, second), value in zip(pairs.tolist(), double, strict=True):
        raised[first] += keep * value
        raised[second] += keep * value
    torch.testing.assert_close(found.weights, raised.T, rtol=0, atol=1e-9)
    assert float(found.explained.min()) == pytest.approx(1.0)
    assert float(found.first_order.max()) < 0.999


def test_a_models_pairs_are_numpys_least_squares() -> None:
    chosen = ["a0.h1", "m0", "a1.h2", "m1"]
    found = coar.interactions(RUN, chosen=chosen, samples=300, keep=0.7)
    design = MaskDesign(RUN.n_units, 300, 0.7, 0)
    centred = design.rows().double().numpy() - 0.7
    products = np.stack([centred[:, i] * centred[:, j] for i, j in found.pairs.tolist()], axis=1)
    columns = np.concatenate([np.ones((300, 1)), centred, products], axis=1)
    outputs = RUN(design.rows().double()).numpy()
    expected = np.linalg.lstsq(columns, outputs, rcond=None)[0]
    np.testing.assert_allclose(found.values.numpy(), expected[1 + RUN.n_units :].T, atol=1e-8)
    np.testing.assert_allclose(found.weights.numpy(), expected[1 : 1 + RUN.n_units].T, atol=1e-8)
    assert [str(unit) for unit in found.chosen] == chosen
    assert torch.equal(found.matrix(), found.matrix().T)
    assert len(found.to_frame()) == 6


def test_noise_has_no_strong_pairs_and_a_planted_one_is_found() -> None:
    generator = torch.Generator().manual_seed(1)
    pairs = torch.tensor(list(combinations(range(RUN.n_units), 2)))
    design = MaskDesign(RUN.n_units, 2000, 0.7, 0)
    masks = design.rows().double()
    noise = torch.randn(2000, 1, generator=generator, dtype=torch.float64)
    planted = _fitted(RUN, design, noise + 2 * (masks[:, :1] * masks[:, 3:4]), RUN.units, pairs)
    strong = planted.strong(errors=5.0)
    assert [planted.pairs[i].tolist() for i in strong] == [[0, 3]]
    value = float(planted.mean()[strong[0]])
    assert abs(value - 2.0) < 4 * float(planted.standard_error[strong[0]])


def test_the_graph_holds_weights_interactions_and_edges() -> None:
    attribution = coar.attribute(RUN, samples=300, keep=0.8)
    pairs = coar.interactions(RUN, samples=600, keep=0.7)
    circuit = top_edges(atp.scores(MaskedRun(RUN.model, RUN.task)), n=12)
    g = coar.to_networkx(attribution, interactions=pairs, circuit=circuit)
    for place, unit in enumerate(RUN.units):
        assert g.nodes[str(unit)]["weight"] == pytest.approx(float(attribution.mean()[place]))
        assert g.nodes[str(unit)]["score"] == -g.nodes[str(unit)]["weight"]
    kinds = [told["relation"] for *_, told in g.edges(data=True)]
    assert kinds.count("circuit") == circuit.n_edges > 0
    assert kinds.count("interaction") == len(pairs.strong()) > 0
    assert {str(node) for node in circuit.nodes} <= set(g.nodes)
    small = coar.to_networkx(attribution, top=3)
    best = sorted((-abs(float(weight)), i) for i, weight in enumerate(attribution.mean()))[:3]
    assert set(small.nodes) == {str(RUN.units[i]) for _, i in best}


def test_what_cannot_be_paired() -> None:
    with pytest.raises(InvalidOption, match="at least two"):
        coar.interactions(RUN, chosen=["m0"])
    with pytest.raises(InvalidOption, match="more samples than"):
        coar.interactions(RUN, samples=20)
    wide = ComponentRun(RUN.model, RUN.task, components=("neurons",))
    with pytest.raises(InvalidOption, match="Choose fewer components"):
        coar.interactions(wide)
    attribution = coar.attribute(RUN, samples=100)
    other = top_edges(atp.scores(MaskedRun(tiny.model("llama"), tiny.task(n=2))), n=2)
    with pytest.raises(InvalidOption, match="another architecture"):
        coar.to_networkx(attribution, circuit=other)
