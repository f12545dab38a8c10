"""Attributions of real runs, against leave-one-out, additivity and the interaction formula."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from circuits import coar, features, tasks
from circuits.coar import Attribution
from circuits.coar.baselines import leave_one_out
from circuits.coar.estimate import default_samples
from graphs.components import Architecture
from graphs.nodes import Node
from patching import LensModel, toy
from patching.component_run import ComponentRun
from patching.errors import InvalidOption
from patching.exact import scores as exact_scores
from patching.masked import MaskedRun
from tests import tiny


def additive_run() -> ComponentRun:
    """One layer of heads without a norm at the end: logits are a sum over heads."""
    return ComponentRun(toy.model(), toy.task())


def test_an_additive_model_is_found_exactly() -> None:
    """P4.1: weights are leave-one-out effects, the intercept is the ablated run, held-out correlation is 1."""
    run = additive_run()
    found = coar.attribute(run, samples=40, keep=0.5)
    torch.testing.assert_close(found.weights, leave_one_out(run), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.intercept, run(run.zeros()), rtol=0, atol=1e-6)
    result = coar.evaluate(run, found, keeps=(0.5, 0.9), samples=30, baselines=())
    assert result.of("coar", 0.5).defined.min() == pytest.approx(1.0, abs=1e-6)


def test_the_weights_carry_interactions_at_the_keep_probability() -> None:
    """P4.3 on a transformer: enumerate all masks of four heads, weighted by their probability."""
    run = ComponentRun(tiny.model("gpt2"), tiny.task(n=2), components=["a0.h0", "a0.h1", "a1.h2", "a1.h3"])
    keep, units = 0.7, 4
    every = torch.tensor([[(code >> bit) & 1 for bit in range(units)] for code in range(16)], dtype=torch.float64)
    chance = (keep**every * (1 - keep) ** (1 - every)).prod(1)
    outputs, centred = run(every), every - keep
    population = (chance[:, None, None] * centred[:, :, None] * outputs[:, None, :]).sum(0) / (keep * (1 - keep))
    found = coar.attribute(run, samples=20_000, keep=keep)
    error = found.standard_error
    assert error is not None
    assert bool(((found.weights - population.T).abs() < 5 * error + 1e-9).all())


def test_rare_ablations_are_leave_one_out() -> None:
    run = ComponentRun(tiny.model("gpt2"), tiny.task(n=2))
    alone = leave_one_out(run)
    far = coar.attribute(run, samples=2000, keep=0.6).weights
    near = coar.attribute(run, samples=4000, keep=0.995).weights
    assert float((near - alone).norm()) < 0.25 * float((far - alone).norm())


def test_scores_have_the_projects_sign() -> None:
    nodes = MaskedRun(tiny.model("gpt2"), tiny.task(n=3)).nodes()
    found = coar.scores(nodes, samples=4000, keep=0.995)
    assert found.level == "node"
    assert torch.corrcoef(torch.stack((found.values, exact_scores(nodes).values)))[0, 1] > 0.9
    neurons = MaskedRun(tiny.model("gpt2"), tiny.task(n=2)).neurons()
    assert len(coar.scores(neurons, samples=400, keep=0.9)) == neurons.n_units
    with pytest.raises(InvalidOption, match="without positions"):
        coar.scores(nodes.positions())
    with pytest.raises(InvalidOption, match=r"run\.nodes"):
        coar.scores(nodes.edges())


def test_masks_of_their_own_and_the_mean_prompt() -> None:
    run = additive_run()
    own = coar.attribute(run, samples=40, keep=0.5, own_masks=True)
    torch.testing.assert_close(own.weights, leave_one_out(run), rtol=0, atol=1e-6)
    mean = coar.attribute(run, samples=40, keep=0.5, mean_prompt=True)
    assert mean.weights.shape == (1, 2)
    torch.testing.assert_close(mean.weights[0], leave_one_out(run).mean(0), rtol=0, atol=1e-6)
    with pytest.raises(InvalidOption, match="shared masks for the mean prompt"):
        coar.attribute(run, own_masks=True, mean_prompt=True)


def test_subsets_sum_to_nothing_and_say_so() -> None:
    run = ComponentRun(tiny.model("gpt2"), tiny.task(n=2))
    found = coar.attribute(run, samples=500, keep=0.7, masks="subset")
    assert found.weights.sum(1).abs().max() < 1e-8
    assert "shift" in found.provenance["options"]["reason"]


def test_features_of_a_dictionary_are_components_too() -> None:
    model = LensModel.load("zoo:ioi", device="cpu")
    task = tasks.ioi.make(model, n=4, seed=0, split="train")
    run = ComponentRun(model, task, components=("features",), dictionaries=[features.load("zoo:ioi", "resid_post2")])
    assert run.n_units == 257
    found = coar.attribute(run, samples=800, keep=0.9)
    judged = coar.evaluate(run, found, keeps=(0.9,), samples=60, baselines=("leave_one_out", "attribution_patching"))
    assert judged.of("coar").mean > 0.9
    strongest = found.units[int(found.mean().abs().argmax())]
    assert strongest.site == "resid"
    alone = run.clean_metric - run(run.mask_without([strongest]))
    assert float(alone.mean()) * found[strongest] > 0


def test_a_folder_makes_it_go_on(tmp_path: Path) -> None:
    run = additive_run()
    first = coar.attribute(run, samples=60, keep=0.5, folder=tmp_path, shard_rows=20)
    assert len(list(tmp_path.glob("shard-*"))) == 3
    again = coar.attribute(run, samples=60, keep=0.5, folder=tmp_path, shard_rows=20)
    assert torch.equal(first.weights, again.weights)


def test_the_default_number_of_samples() -> None:
    assert [default_samples(units) for units in (3, 500, 50_000)] == [1_000, 5_000, 20_000]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0.0}, "strictly between 0 and 1"),
        ({"keep": 1.0}, "strictly between 0 and 1"),
        ({"samples": 0}, "samples"),
        ({"estimator": "magic"}, "estimator"),
        ({"samples": 2, "estimator": "normal_equations"}, "ridge"),
    ],
)
def test_options_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        coar.attribute(additive_run(), **options)  # type: ignore[arg-type]


# --- the result -----------------------------------------------------------------------------------------------------


def made() -> Attribution:
    units = tuple(Node.parse(name) for name in ("a0.h0", "a0.h1", "m0"))
    weights = torch.tensor([[1.0, -2.0, 0.5], [3.0, -1.0, 0.5]], dtype=torch.float64)
    intercept = torch.tensor([0.25, 0.0], dtype=torch.float64)
    return Attribution(Architecture(1, 2), units, weights, intercept, 0.9, None, {"method": "coar"})


def test_by_hand() -> None:
    found = made()
    assert found["a0.h0"] == 2.0
    assert found.ranking() == [0, 2, 1]
    assert found.change(["a0.h0", "m0"]).tolist() == [-1.5, -3.5]
    assert found.predict(torch.tensor([[1.0, 0.0, 1.0]])).tolist() == [[1.75, 3.5]]
    assert found.to_frame()["component"].tolist() == ["a0.h0", "m0", "a0.h1"]
    assert repr(found) == "Attribution(3 components, 2 prompts, keep=0.9; a0.h0 +2.000, m0 +0.500, a0.h1 -1.500)"
    assert "a0.h0" in found._repr_html_()
    with pytest.raises(InvalidOption, match="got m7"):
        found.index("m7")
    with pytest.raises(InvalidOption, match="every writer"):
        found.scores()


def test_files_come_back(tmp_path: Path) -> None:
    found = made()
    found.save(tmp_path / "a.safetensors")
    again = Attribution.load(tmp_path / "a.safetensors")
    assert torch.equal(again.weights, found.weights)
    assert (again.units, again.keep, again.provenance) == (found.units, found.keep, found.provenance)
    assert again.architecture == found.architecture
    data = (tmp_path / "a.safetensors").read_bytes()
    for bad in (data[:40], b"", b"{}" + data[2:], data[:-8]):
        (tmp_path / "b.safetensors").write_bytes(bad)
        with pytest.raises(InvalidOption, match=r"b\.safetensors cannot be read"):
            Attribution.load(tmp_path / "b.safetensors")


def test_weights_that_do_not_hold_together() -> None:
    units = (Node.parse("m0"),)
    with pytest.raises(InvalidOption, match=r"of shape \[1, 1\]"):
        Attribution(Architecture(1, 1), units, torch.zeros(1, 2).double(), torch.zeros(1).double(), 0.9)
    with pytest.raises(InvalidOption, match="finite"):
        Attribution(Architecture(1, 1), units, torch.full((1, 1), torch.nan).double(), torch.zeros(1).double(), 0.9)


def test_the_design_is_part_of_the_result() -> None:
    told = coar.attribute(additive_run(), samples=30, keep=0.5, seed=5).provenance["options"]
    assert (told["samples"], told["keep"], told["seed"], told["masks"]) == (30, 0.5, 5, "bernoulli")
