"""What feature circuits are worth, against runs under masks written out."""

from __future__ import annotations

import math

import pytest
import torch

from circuits.features import agreement_toy as toy
from circuits.features import plots
from circuits.features.feature_faithfulness import Judge, faithfulness, faithfulness_curve
from circuits.features.feature_run import FeatureRun
from circuits.features.node_effects import node_effects
from graphs.circuit import Circuit
from graphs.nodes import Node
from patching.component_run import ComponentRun
from patching.errors import InvalidOption
from patching.sites import Site
from tests import tiny
from tests.circuits.features import random_dictionaries


def made(architecture="relu", *, n=3, **options):
    model = tiny.model("gpt2")
    dictionaries = random_dictionaries.everywhere(model, architecture, features=24)
    return FeatureRun(model, tiny.task(n=n, length=5), dictionaries, **options)


def chosen(run, *, whole, positions=True):
    shapes = {site: (run.length, one.n_features + 1) for site, one in run.dictionaries.items()}
    return {site: torch.full(shape if positions else shape[1:], whole) for site, shape in shapes.items()}


@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize("errors", ["circuit", "keep"])
def test_everything_is_worth_one_and_nothing_is_worth_nothing(errors, positions):
    run = made()
    judge = Judge(run, run.task, positions=positions, errors=errors)
    all_, none = (judge(chosen(run, whole=whole, positions=positions)) for whole in (True, False))
    assert (all_.faithfulness, all_.completeness) == pytest.approx((1.0, 0.0), abs=1e-12)
    assert (none.faithfulness, none.completeness) == pytest.approx((0.0, 1.0), abs=1e-12)
    assert none.nodes == 0
    units = sum(one.n_features + (errors == "circuit") for one in run.dictionaries.values())
    assert all_.nodes == judge.possible == units * (run.length if positions else 1)


@pytest.mark.parametrize("errors", ["circuit", "keep", "ablate", "ablate-attn-mlp"])
@pytest.mark.parametrize("start_layer", [0, 1])
def test_worth_is_that_of_runs_under_masks(errors, start_layer):
    """The masks are written out here node by node."""
    run = made()
    effects = node_effects(run, steps=3)
    threshold = 0.05
    curve = faithfulness_curve(effects, thresholds=[threshold], errors=errors, start_layer=start_layer)
    kept = set(effects.nodes(threshold))
    other = ComponentRun(
        run.model, run.task, components=("features",), dictionaries=list(run.dictionaries.values()),
        ablation="mean-positional",
    ).positions()  # fmt: skip
    masks = torch.zeros(3, *other.mask_shape, dtype=torch.float64)
    counted = 0
    for place, unit in enumerate(other.units):
        early = start_layer and (unit.layer is None or unit.layer < start_layer)
        inner = errors == "ablate-attn-mlp" and unit.site in ("attn", "mlp")
        for position in range(run.length):
            node = Node(unit.kind, unit.layer, unit.index, position)
            if early or (unit.is_error and errors == "keep"):
                masks[:, position, place] = 1
            elif not (unit.is_error and (errors == "ablate" or inner)):
                masks[0, position, place] = node in kept
                masks[1, position, place] = node not in kept
                counted += node in kept
    circuit, rest, none = other(masks).mean(-1).tolist()
    (worth,) = curve.worth
    assert worth.nodes == counted
    assert worth.faithfulness == pytest.approx((circuit - none) / (curve.full - none), rel=1e-9)
    assert worth.completeness == pytest.approx((rest - none) / (curve.full - none), rel=1e-9)
    assert (curve.full, curve.empty) == pytest.approx((float(other.clean_metric.mean()), none))


def test_curves_go_from_everything_with_an_effect_to_nothing():
    run = made()
    effects = node_effects(run, steps=3)
    curve = faithfulness_curve(effects)
    sizes = [one.nodes for one in curve.worth]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 100
    assert sizes[-1] == 0
    assert curve.worth[-1].faithfulness == pytest.approx(0, abs=1e-12)
    points = curve.points()
    assert points == sorted(points)
    assert len(points) == len({size for size in sizes if size})
    size = curve.size_for(0.9)
    assert size in sizes
    assert curve.size_for(math.inf) is None


def test_held_out_prompts_are_judged_on_their_own():
    run = made()
    effects = node_effects(run, steps=3)
    held_out = tiny.task(n=4, length=5, seed=9)
    curve = faithfulness_curve(effects, task=held_out, thresholds=[0.05])
    clean = FeatureRun(run.model, held_out, list(run.dictionaries.values())).clean_metric.mean()
    assert curve.full == pytest.approx(float(clean))
    with pytest.raises(InvalidOption, match="prompts of 5 tokens"):
        faithfulness_curve(effects, task=tiny.task(n=3, length=6))
    summed = node_effects(run, aggregation="sum", steps=3)
    assert faithfulness_curve(summed, task=tiny.task(n=3, length=6), thresholds=[0.1]).worth[0].nodes > 0


def test_nodes_without_positions_are_judged_against_their_own_corrupt_prompts():
    run = made()
    effects = node_effects(run, aggregation="sum", steps=2)
    default, corrupt, mean = (
        faithfulness_curve(effects, thresholds=[0.2], ablation=ablation)
        for ablation in (None, "corrupt", "mean-positional")
    )
    assert default.worth == corrupt.worth != mean.worth
    assert default.provenance["judgement"]["judged with"] == "corrupt"
    assert default.empty == pytest.approx(float(run.patched_metric.mean()))


def test_planted_circuit_is_all_there_is():
    """Six nodes of 340, as faithful as the model and complete; each one is needed."""
    model, task, dictionaries = toy.model(), toy.task(), toy.dictionaries()
    truth = toy.truth()
    worth = faithfulness(truth, model, task, dictionaries)
    assert (worth.nodes, worth.faithfulness, worth.completeness) == pytest.approx((6, 1.0, 0.0), abs=1e-9)
    for name in ("out", "left"):
        nodes = {node: 0.0 for node in truth.nodes if node not in (toy.nodes()[name],) and node.kind != "logits"}
        smaller = Circuit(model.architecture, [], {}, {}, nodes)
        assert faithfulness(smaller, model, task, dictionaries).faithfulness < 0.5


def test_neurons_need_more_nodes_than_the_features_that_were_planted():
    """The planted directions are turned against the axes, so no few neurons carry what six features do."""
    from circuits.features.dictionary import create

    neurons = [create("identity", d_in=8, n_features=8, site=site, dtype=torch.float64) for site in toy.SITES]
    sizes = []
    for dictionaries in (toy.dictionaries(), neurons):
        effects = node_effects(FeatureRun(toy.model(), toy.task(), dictionaries), steps=20)
        sizes.append(faithfulness_curve(effects).size_for(0.95))
    assert sizes[0] == 6
    assert sizes[1] > 15


def test_a_metric_that_cannot_be_lost_has_no_faithfulness():
    run = FeatureRun(toy.model(), toy.task(changed="distractor"), toy.dictionaries())
    judge = Judge(run, run.task, positions=True)
    assert math.isnan(judge(chosen(run, whole=False)).faithfulness)


def test_what_does_not_fit_is_refused():
    run = FeatureRun(toy.model(), toy.task(), toy.dictionaries())
    effects = node_effects(run, method="atp")
    with pytest.raises(InvalidOption, match="errors out of circuit, keep, ablate"):
        faithfulness_curve(effects, errors="drop")
    with pytest.raises(InvalidOption, match="start layer from 0 to 0"):
        faithfulness_curve(effects, start_layer=1)
    with pytest.raises(InvalidOption, match="at least one threshold"):
        faithfulness_curve(effects, thresholds=[])
    nothing = FeatureRun(toy.model(), tiny.task(n=1, length=3).__class__(
        "same", run.task.clean, run.task.clean, run.task.answers, run.task.wrong_answers, run.task.positions
    ), toy.dictionaries())  # fmt: skip
    with pytest.raises(InvalidOption, match="Do clean and corrupt prompts differ"):
        faithfulness_curve(node_effects(nothing))
    judge = Judge(run, run.task, positions=True)
    with pytest.raises(InvalidOption, match="all have a position"):
        judge.of([Node.parse("m0.f6")])
    with pytest.raises(InvalidOption, match="faithfulness or completeness"):
        faithfulness_curve(effects).points("minimality")


def test_figures_are_the_same_bytes_for_the_same_curves(tmp_path):
    run = made(n=2)
    effects = node_effects(run, steps=2)
    curves = {
        errors: faithfulness_curve(effects, thresholds=[0.01, 0.1, 0.3], errors=errors)
        for errors in ("circuit", "keep")
    }
    for name in ("one.svg", "two.svg"):
        plots.faithfulness(curves, tmp_path / name, title="random")
    drawn = (tmp_path / "one.svg").read_bytes()
    assert drawn == (tmp_path / "two.svg").read_bytes()
    for word in (b"faithfulness", b"completeness", b"nodes", b"keep"):
        assert word in drawn
    with pytest.raises(InvalidOption, match="at least one curve"):
        plots.faithfulness({}, tmp_path / "none.svg")
    empty = faithfulness_curve(effects, thresholds=[1e6])
    with pytest.raises(InvalidOption, match="at least one circuit"):
        plots.faithfulness({"none": empty}, tmp_path / "none.svg")


def test_a_site_that_starts_later_is_kept():
    run = made(n=2)
    judge = Judge(run, run.task, positions=False, start_layer=1)
    kept = chosen(run, whole=False, positions=False)
    kept[Site("mlp_out", 0)][:] = True
    assert judge(kept) == judge(chosen(run, whole=False, positions=False))


def test_shipped_features_need_fewer_nodes_than_neurons_on_held_out_names():
    """Indirect object identification, one template and order, so that positions mean the same in all prompts."""
    from circuits.features import shipped
    from circuits.features.dictionary import create
    from circuits.tasks import ioi
    from patching.lens import LensModel

    model = LensModel.load("zoo:ioi")
    template = next(iter(ioi.TRAINING_TEMPLATES))
    task, held_out = (
        ioi.make(model, n=48, seed=seed, split=split, template=template).subset(slice(0, 48, 2))
        for seed, split in ((0, "train"), (5, "held-out-pairs"))
    )
    names = shipped.shipped(model.name)
    features = [shipped.load(model.name, name) for name in names]
    neurons = [create("identity", d_in=model.d_model, n_features=model.d_model, site=name) for name in names]
    sizes = []
    for dictionaries in (features, neurons):
        effects = node_effects(FeatureRun(model, task, dictionaries))
        sizes.append(faithfulness_curve(effects, task=held_out, start_layer=1).size_for(0.8))
    assert 20 < sizes[0] < 0.8 * sizes[1]
