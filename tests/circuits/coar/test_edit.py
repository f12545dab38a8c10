"""An edit as an object: made from a run, through the engine, merged, saved, and files that are none."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from circuits.coar import edit as edit_module
from circuits.coar.edit import Edit, replacement
from graphs.errors import BadFile, WriteFailed
from graphs.nodes import INPUT, Node, error, feature, head, mlp, neuron
from patching.component_run import ComponentRun
from patching.errors import InvalidOption
from tests import tiny
from tests.circuits.coar import additive

UNITS = (neuron(1, 3), head(0, 1), mlp(0))


def run_of(ablation: str, components=("heads", "mlps", "neurons")) -> ComponentRun:
    return ComponentRun(tiny.model("gpt2"), tiny.task(n=3, prefix=1), components=components, ablation=ablation)


# --- making ---------------------------------------------------------------------------------------------------------


def test_units_are_put_in_order_and_counted_once():
    edit = Edit((*UNITS, head(0, 1)))
    assert edit.units == (head(0, 1), mlp(0), neuron(1, 3))
    assert len(edit) == 3
    assert "3 to zero: a0.h1, m0, m1.n3" in repr(edit)
    assert Edit.of(run_of("zero"), ["m1.n3", "a0.h1", mlp(0)]) == edit


def test_constants_are_the_means_of_what_components_write():
    """Against the engine's own definition, from values read one by one."""
    from patching.sites import Start, forward

    run = run_of("mean")
    model, task = run.model, run.task
    seen = {}

    def keep(kind, layer, value, _narrow):
        seen[kind, layer] = value
        return value

    start = Start(0, 0, 0, model.embed(task.corrupt))
    forward(model, model.contexts(task.clean.shape[1]), start, keep, answer=task.positions, trim=False)
    real = torch.arange(task.clean.shape[1]) <= task.positions[:, None]
    edit = Edit.of(run, UNITS)
    assert torch.allclose(edit.constants[head(0, 1)], seen["z", 0][1][real].mean(0))
    assert torch.allclose(edit.constants[mlp(0)], seen["mlp_out", 0][real].mean(0))
    assert torch.allclose(edit.constants[neuron(1, 3)], seen["neurons", 1][real][:, 3].mean())


def test_constants_are_the_edits_own():
    given = torch.ones(8)
    edit = Edit((head(0, 1),), {head(0, 1): given})
    given.zero_()
    assert edit.constants[head(0, 1)].tolist() == [1.0] * 8
    with pytest.raises(TypeError):
        edit.constants[head(0, 1)] = given
    with pytest.raises(dataclasses.FrozenInstanceError):
        edit.units = ()


@pytest.mark.parametrize("ablation", ["corrupt", "mean-positional", "resample"])
def test_ablations_that_depend_on_prompt_or_position_make_no_edit(ablation):
    task = dataclasses.replace(tiny.task(n=4), positions=torch.full((4,), tiny.LENGTH - 1))
    run = ComponentRun(tiny.model("gpt2"), task, ablation=ablation)
    with pytest.raises(InvalidOption, match=f"one value for all prompts and positions.*got {ablation}"):
        Edit.of(run, ["a0.h1"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((("a0.h1",),), "Nodes; got 'a0.h1'"),
        (((head(0, 1),), {mlp(0): torch.ones(32)}), "got one of m0"),
        (((mlp(0),), {mlp(0): torch.tensor([torch.nan])}), "those of m0 are not"),
    ],
)
def test_bad_edits_are_refused(arguments, words):
    with pytest.raises(InvalidOption, match=words):
        Edit(*arguments)


def test_units_that_the_run_lacks():
    with pytest.raises(InvalidOption, match=r"a component of this run.*got a0\.h3"):
        Edit.of(run_of("zero", components=("a0.h1",)), ["a0.h3"])


# --- through the engine ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ablation", ["zero", "mean", "mean-clean"])
def test_a_run_of_the_edits_own_is_the_masked_run(ablation):
    run = run_of(ablation)
    edit = Edit.of(run, UNITS)
    mask = edit.mask(run)
    assert [str(run.units[i]) for i in (mask == 0).nonzero().flatten()] == ["a0.h1", "m0", "m1.n3"]
    own = edit.run(run.model, run.task)
    assert own.units == edit.units
    assert torch.equal(own(own.zeros()), run(mask))
    assert torch.equal(own(own.ones()), run.clean_metric)


def test_a_mask_needs_a_run_with_the_edits_replacements():
    edit = Edit.of(run_of("mean"), UNITS)
    for ablation in ("zero", "mean-clean"):
        with pytest.raises(InvalidOption, match=rf"replaces .* by what the edit does.*{ablation}"):
            edit.mask(run_of(ablation))
    with pytest.raises(InvalidOption, match="for all prompts and positions"):
        edit.mask(run_of("corrupt"))
    with pytest.raises(InvalidOption, match="by what the edit does"):
        Edit(UNITS).mask(run_of("mean"))


def test_edits_can_mix_zero_and_constants_in_any_dtype():
    run = run_of("mean")
    part = Edit.of(run, (mlp(0),)) | Edit((head(0, 1),))
    own = part.run(run.model, run.task, metric="log_probability", memory=1 << 16)
    zeroed = ComponentRun(run.model, run.task, ablation="zero", metric="log_probability")
    once = own(own.mask_without([head(0, 1)]))
    assert torch.allclose(once, zeroed(zeroed.mask_without([head(0, 1)])), atol=1e-12)
    assert own.ablation.name == "edit"
    assert own.provenance("x", {})["ablation"] == "edit"
    half = Edit(part.units, {mlp(0): part.constants[mlp(0)].float()}).run(run.model, run.task)
    assert torch.allclose(half(half.zeros()), part.run(run.model, run.task)(half.zeros()), atol=1e-5)


def test_an_empty_edit_has_no_run_and_wrong_constants_are_refused():
    model, task = tiny.model("gpt2"), tiny.task(n=2)
    with pytest.raises(InvalidOption, match="at least one unit"):
        Edit(()).run(model, task)
    with pytest.raises(InvalidOption, match=r"shape \[8\] for a0.h1; got \[3\]"):
        Edit((head(0, 1),), {head(0, 1): torch.ones(3)}).run(model, task)


class Halves:
    """A dictionary of eight features at an MLP's output: the positive parts of four coordinates and their negatives."""

    site, n_features = "mlp_out1", 8

    def __init__(self, width: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.rows = torch.randn(4, width, generator=generator, dtype=torch.float64) / width**0.5

    def encode(self, x):
        along = x @ self.rows.T
        return torch.cat((along.relu(), (-along).relu()), dim=-1)

    def decode(self, features):
        return (features[..., :4] - features[..., 4:]) @ self.rows


def test_features_and_error_terms_through_the_engine():
    model, task = tiny.model("gpt2"), tiny.task(n=3)
    dictionary = Halves(model.d_model)
    run = ComponentRun(model, task, components=("features",), dictionaries=[dictionary], ablation="mean")
    active = [i for i in range(8) if float(replacement(run, feature("mlp", 1, i)))]  # of each pair one may never be
    units = (feature("mlp", 1, active[0]), feature("mlp", 1, active[-1]), error("mlp", 1))
    edit = Edit.of(run, units)
    assert [tuple(edit.constants[unit].shape) for unit in edit.units] == [(model.d_model,), (), ()]
    own = edit.run(model, task, dictionaries=[dictionary])
    assert torch.allclose(own(own.zeros()), run(edit.mask(run)), atol=1e-12)
    assert (own(own.zeros()) - run.clean_metric).abs().max() > 1e-4


def test_predicted_change_is_minus_the_sum_of_weights():
    weights = torch.tensor([[1.0, -2.0, 4.0], [0.5, 0.25, 8.0]])
    edit = Edit((head(0, 0), head(0, 2)))
    assert edit.predicted(additive.attribution(weights)).tolist() == [-5.0, -8.5]
    with pytest.raises(InvalidOption, match="it has no m0"):
        Edit((mlp(0),)).predicted(additive.attribution(weights))


def test_replacement_of_the_input():
    run = run_of("mean", components=("input",))
    assert replacement(run, INPUT).shape == (run.model.d_model,)


# --- merging --------------------------------------------------------------------------------------------------------


def test_merging_is_a_union():
    run = run_of("mean")
    one, other = Edit.of(run, UNITS[:2]), Edit.of(run, UNITS[1:])
    assert one | other == other | one == Edit.of(run, UNITS)
    assert one | one == one
    assert one | Edit(()) == one
    assert hash(one | other) == hash(other | one)
    assert one != other
    assert one != "edit"
    assert (one | other).provenance["of"] == [dict(one.provenance), dict(other.provenance)]


def test_contradictory_constants_are_refused():
    run = run_of("mean")
    mean, zero = Edit.of(run, UNITS), Edit(UNITS[:1])
    for pair in ((mean, zero), (zero, mean)):
        with pytest.raises(InvalidOption, match=r"they replace m1\.n3 by different values"):
            _ = pair[0] | pair[1]
    explicit = Edit(UNITS[:1], {UNITS[0]: torch.tensor(0.0)})
    assert explicit == zero
    assert (explicit | zero) == zero


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_saved_edits_come_back_bit_for_bit(tmp_path, ablation):
    run = run_of(ablation)
    edit = Edit.of(run, UNITS, provenance={"k": 3})
    edit.save(tmp_path / "e.json")
    found = Edit.load(tmp_path / "e.json")
    assert found == edit
    assert dict(found.provenance) == dict(edit.provenance)
    assert found.provenance["k"] == 3
    assert found.provenance["ablation"] == ablation
    assert all(found.constants[unit].dtype == torch.float64 for unit in found.constants)
    assert len(list(tmp_path.iterdir())) == (1 if ablation == "zero" else 2)
    assert torch.equal(run(found.mask(run)), run(edit.mask(run)))


def test_saving_over_an_edit_leaves_no_constants_behind(tmp_path):
    path = tmp_path / "e.json"
    other = tmp_path / "e.mine.txt"
    other.write_text("not ours")
    mean, zero = Edit.of(run_of("mean"), UNITS), Edit(UNITS)
    clean = Edit.of(run_of("mean-clean"), UNITS)
    for edit, files in ((mean, 3), (clean, 3), (clean, 3), (zero, 2)):
        edit.save(path)
        assert Edit.load(path) == edit
        assert len(list(tmp_path.iterdir())) == files


def test_a_crash_while_saving_leaves_the_old_edit_whole(tmp_path, monkeypatch):
    path, old = tmp_path / "e.json", Edit.of(run_of("mean"), UNITS)
    old.save(path)

    def refuse(*_args):
        raise WriteFailed("no space left")

    monkeypatch.setattr(edit_module, "write_text", refuse)
    with pytest.raises(WriteFailed):
        Edit.of(run_of("mean-clean"), UNITS).save(path)
    assert Edit.load(path) == old


def damaged(document: dict, **changes) -> str:
    return json.dumps({**document, **changes})


def test_files_that_are_no_edits(tmp_path):
    path = tmp_path / "e.json"
    Edit.of(run_of("mean"), UNITS).save(path)
    text = path.read_text()
    document = json.loads(text)
    constants = tmp_path / document["constants"]["file"]
    bad = {
        text[:-10]: "cannot be read",
        "[]": "cannot be read",
        "{}": "schema",
        damaged(document, schema="wiretrace-scores/1"): "wiretrace-scores/1",
        damaged(document, units=["a0.h1", "a0.h1"]): "twice",
        damaged(document, units=["a0.x1"]): "expected a node",
        damaged(document, units=[3]): "expected a node",
        damaged(document, units=["a0.h1"]): "constants of ablated units alone",
        damaged(document, provenance=3): "cannot be read",
        damaged(document, constants={"file": "../e.safetensors", "sha256": ""}): "stand elsewhere",
        damaged(document, constants={"file": "none.safetensors", "sha256": ""}): "are not there",
        damaged(document, constants={"file": constants.name, "sha256": "0"}): "not those it was saved with",
    }
    for content, words in bad.items():
        path.write_text(content)
        with pytest.raises(BadFile, match=words):
            Edit.load(path)
    path.write_text(text)
    constants.write_bytes(constants.read_bytes()[:-8])
    with pytest.raises(BadFile, match="not those it was saved with"):
        Edit.load(path)
    with pytest.raises(BadFile, match="no file"):
        Edit.load(tmp_path / "none.json")


def test_provenance_that_is_no_data_is_not_written(tmp_path):
    with pytest.raises((TypeError, ValueError)):
        Edit((head(0, 1),), provenance={"model": object()}).save(tmp_path / "e.json")
    assert list(tmp_path.iterdir()) == []


def test_names_with_positions_are_not_units_of_a_run():
    with pytest.raises(InvalidOption, match=r"it has no m1\.f2@3"):
        Edit((Node.parse("m1.f2@3"),)).run(
            tiny.model("gpt2"), tiny.task(n=2), dictionaries=[Halves(tiny.model("gpt2").d_model)]
        )
