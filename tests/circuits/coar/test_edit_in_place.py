"""Edits in a model's own weights: the model's plain forward is the engine's masked run, and undoing is exact."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import weakref

import pytest
import torch

from circuits.coar.edit import Edit
from circuits.coar.in_place import in_force
from graphs.nodes import INPUT, Node, head, mlp, neuron
from patching.component_run import ComponentRun
from patching.errors import InvalidOption
from patching.lens import LensModel
from patching.task import Task
from tests import tiny

HEADS, NEURONS, MLPS = (head(0, 1), head(1, 3)), (neuron(0, 3), neuron(1, 7)), (mlp(0),)
MIXED = (head(0, 1), mlp(0), neuron(0, 2), neuron(1, 3))

# Hugging Face computes RMS norms and rotary tables in float32 whatever the weights, so the unedited models differ from
# the pieces by as much.
CLOSE = {"gpt2": 1e-12, "gpt_neox": 1e-12, "attention_only": 1e-12, "llama": 2e-6, "qwen3": 2e-6, "gemma2": 5e-6}


def fresh(family: str) -> LensModel:
    """A model of this test's own, since its weights change."""
    if family == "attention_only":
        return LensModel.wrap(tiny.native(), name=family, check=False)
    return LensModel.wrap(tiny.hugging_face(family), name=family, check=False)


def weights(model: LensModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.bridge.original_model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def plain_metric(model: LensModel, task: Task) -> torch.Tensor:
    """Logit differences from the model's own forward."""
    logits = model.logits(task.clean)[torch.arange(len(task)), task.positions].double()
    return logits.gather(-1, task.answers).mean(-1) - logits.gather(-1, task.wrong_answers).mean(-1)


CASES = [
    *((family, "zero", units) for family in ("gpt2", "gpt_neox", "llama") for units in (HEADS, NEURONS, MLPS, MIXED)),
    *((family, "mean", units) for family in ("gpt2", "gpt_neox") for units in (HEADS, NEURONS, MLPS, MIXED)),
    ("attention_only", "zero", HEADS),
    ("attention_only", "mean", HEADS),
    ("qwen3", "zero", MIXED),
    ("gemma2", "zero", NEURONS),
    ("gemma2", "zero", MLPS),
]


@pytest.mark.parametrize(("family", "ablation", "units"), CASES, ids=lambda case: str(case).replace("Node", ""))
def test_in_place_is_the_engine(family, ablation, units):
    model, task = fresh(family), tiny.task(n=4, prefix=1)
    run = ComponentRun(model, task, components=units, ablation=ablation)
    edit = Edit.of(run, units)
    assert bool(edit.constants) == (ablation == "mean")
    before, state = model.logits(task.clean), weights(model)
    masked = run(edit.mask(run))
    assert torch.equal(masked, run(run.zeros()))
    assert (masked - run.clean_metric).abs().min() > 1e-4  # it does something
    with edit.applied(model) as edited:
        assert (plain_metric(edited, task) - masked).abs().max() <= CLOSE[family]
        from_pieces = ComponentRun(edited, task, components=("heads",)).clean_metric
        assert (from_pieces - masked).abs().max() <= 1e-12
        if ablation == "mean":
            assert edited.check() < 1e-5  # the pieces, biases summed anew, are still the model
    assert same(weights(model), state)
    assert torch.equal(model.logits(task.clean), before)


@pytest.mark.parametrize("units", [HEADS, NEURONS, MLPS])
def test_on_other_prompts_the_edit_keeps_its_constants(units):
    """Means of one task, used on another: a run of the edit's own, not one that pools anew."""
    model = fresh("gpt2")
    edit = Edit.of(ComponentRun(model, tiny.task(n=4), components=units, ablation="mean"), units)
    task = tiny.task(n=5, seed=3, length=9)
    run = edit.run(model, task)
    with edit.applied(model):
        assert torch.allclose(plain_metric(model, task), run(run.zeros()), atol=1e-12)
    pooled = ComponentRun(model, task, components=units, ablation="mean")
    assert not torch.allclose(pooled(pooled.zeros()), run(run.zeros()), atol=1e-4)


def test_weights_that_change_are_the_components_alone():
    model = fresh("gpt2")
    parameters = dict(model.bridge.original_model.named_parameters())  # each once, unlike state_dict
    state = {name: value.detach().clone() for name, value in parameters.items()}
    with Edit((head(0, 1), neuron(1, 7))).applied(model):
        now = {name: value.detach().clone() for name, value in parameters.items()}
    changed = sorted(name for name in state if not torch.equal(state[name], now[name]))
    assert len(changed) == 2
    assert "h.0" in changed[0]
    assert "h.1" in changed[1]
    head_rows, neuron_rows = ((state[name] - now[name]).abs().sum(1) > 0 for name in changed)  # Conv1D: [in, out]
    assert head_rows.nonzero().flatten().tolist() == list(range(8, 16))
    assert neuron_rows.nonzero().flatten().tolist() == [7]


# --- undoing --------------------------------------------------------------------------------------------------------


def test_undo_after_an_exception():
    model, state = (made := fresh("gpt2")), weights(made)
    seen = []

    def stop_while_edited():
        with Edit(MIXED).applied(model):
            seen.append(weights(model))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_while_edited()
    assert not same(seen[0], state)
    assert same(weights(model), state)
    assert in_force(model) == ()


def test_a_second_undo_does_nothing():
    model, state = (made := fresh("gpt2")), weights(made)
    undo = Edit(HEADS).apply(model)
    assert not undo.done
    assert in_force(model) == (Edit(HEADS),)
    undo()
    undo()
    assert undo.done
    assert same(weights(model), state)


def test_nested_edits_are_undone_in_any_order():
    """After each undo the weights are those of the remaining edits alone, and in the end the original ones."""
    model, task = fresh("gpt2"), tiny.task(n=3)
    run = ComponentRun(model, task, components=("heads", "mlps", "neurons"), ablation="mean")
    edits = [Edit.of(run, units) for units in ((head(0, 1), neuron(0, 3)), (head(0, 1), mlp(0)), NEURONS)]
    alone = {}
    for left in itertools.chain.from_iterable(itertools.combinations(range(3), count) for count in range(4)):
        with contextlib.ExitStack() as stack:
            for number in left:
                stack.enter_context(edits[number].applied(model))
            alone[left] = weights(model)
            if len(left) == 3:
                masked = run((edits[0] | edits[1] | edits[2]).mask(run))
                assert torch.allclose(plain_metric(model, task), masked, atol=1e-12)
    for order in itertools.permutations(range(3)):
        undos = [edit.apply(model) for edit in edits]
        left = [0, 1, 2]
        for number in order:
            undos[number]()
            left.remove(number)
            assert in_force(model) == tuple(edits[each] for each in left)
            assert same(weights(model), alone[tuple(left)])


def test_contradictions_with_an_edit_in_force_are_refused():
    model = fresh("gpt2")
    mean = Edit.of(ComponentRun(model, tiny.task(n=3), components=HEADS, ablation="mean"), HEADS)
    with mean.applied(model):
        state = weights(model)
        with pytest.raises(InvalidOption, match=r"a0\.h1.*different"):
            Edit((head(0, 1),)).apply(model)
        assert same(weights(model), state)


def test_a_failure_half_way_leaves_nothing_behind(monkeypatch):
    model, state = (made := fresh("gpt2")), weights(made)
    copy, calls = torch.Tensor.copy_, []

    def fail_at_the_third(self, *args):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return copy(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "copy_", fail_at_the_third)
        with pytest.raises(RuntimeError, match="out of memory"):
            Edit(MIXED).apply(model)
    assert len(calls) > 3  # some were written, and taken back
    assert same(weights(model), state)
    assert in_force(model) == ()


def test_sums_of_biases_are_made_anew():
    """`bias_prefix` is remembered by the model: an edit of a bias must not leave the old sum behind."""
    model = fresh("gpt2")
    old = model.bias_prefix
    edit = Edit.of(ComponentRun(model, tiny.task(n=3), components=HEADS, ablation="mean"), HEADS)
    with edit.applied(model):
        assert not torch.equal(model.bias_prefix, old)
    assert torch.equal(model.bias_prefix, old)


def test_an_edit_for_good_does_not_keep_the_model_alive():
    model = fresh("gpt2")
    undo = Edit(HEADS).apply(model)
    gone = weakref.ref(model.bridge.original_model)
    assert gone() is not None
    del undo, model
    import gc

    gc.collect()
    assert gone() is None


def test_the_empty_edit_changes_nothing():
    model, state = (made := fresh("gpt2")), weights(made)
    with Edit(()).applied(model):
        assert same(weights(model), state)


# --- what weights cannot hold ---------------------------------------------------------------------------------------


def mean_edit(model: LensModel, units: tuple[Node, ...]) -> Edit:
    return Edit.of(ComponentRun(model, tiny.task(n=3), components=units, ablation="mean"), units)


@pytest.mark.parametrize("units", [HEADS, NEURONS, MLPS])
def test_no_bias_no_constant(units):
    model = fresh("llama")
    edit = mean_edit(model, units)
    with pytest.raises(InvalidOption, match=r"llama has none there.*engine"):
        edit.apply(model)
    run = edit.run(model, tiny.task(n=3))  # the engine can
    assert (run(run.zeros()) - run.clean_metric).abs().min() > 1e-5


def test_a_norm_after_the_weights():
    model = fresh("gemma2")
    for edit in (Edit(HEADS), mean_edit(model, NEURONS), mean_edit(model, MLPS)):
        with pytest.raises(InvalidOption, match="has a norm after them"):
            edit.apply(model)


@pytest.mark.parametrize("name", ["input", "m0.f3", "r1.err"])
def test_no_weights_of_their_own(name):
    with pytest.raises(InvalidOption, match=r"weights of their own; got .*engine"):
        Edit((Node.parse(name),)).apply(fresh("gpt2"))


@pytest.mark.parametrize("name", ["a2.h0", "a0.h4", "m2", "m0.n128", "m9.n0"])
def test_components_that_are_not_there(name):
    with pytest.raises(InvalidOption, match=f"it has no {name}"):
        Edit((Node.parse(name),)).apply(fresh("gpt2"))


def test_an_attention_only_model_has_no_mlp():
    for name in ("m0", "m0.n1"):
        with pytest.raises(InvalidOption, match=f"it has no {name}"):
            Edit((Node.parse(name),)).apply(fresh("attention_only"))


def test_constants_of_another_model():
    for unit in (head(0, 1), mlp(0), neuron(0, 1)):
        with pytest.raises(InvalidOption, match=r"another model\?"):
            Edit((unit,), {unit: torch.ones(3)}).apply(fresh("gpt2"))


def test_weights_shared_between_layers():
    """Tied parameters and shared modules: an edit of one layer would be one of the other too."""
    for part in ("weight", "bias"):
        tied = tiny.hugging_face("gpt2")
        setattr(tied.transformer.h[1].mlp.c_proj, part, getattr(tied.transformer.h[0].mlp.c_proj, part))
        model = LensModel.wrap(tied, name="tied")
        state = weights(model)
        with pytest.raises(InvalidOption, match=r"shared by .*h\.0.*and .*h\.1"):
            Edit((neuron(1, 3),)).apply(model)
        assert same(weights(model), state)
        Edit((head(1, 3),)).apply(model)  # other weights are free
    one = tiny.hugging_face("gpt2")
    one.transformer.h[1].mlp.c_proj = one.transformer.h[0].mlp.c_proj
    with pytest.raises(InvalidOption, match="shared by"):
        Edit(MLPS).apply(LensModel.wrap(one, name="shared"))


def test_weights_that_the_model_computes_on_the_way():
    model = fresh("gpt2")
    first = model.blocks[0]
    copied = dataclasses.replace(first, attention=dataclasses.replace(first.attention, out=first.attention.out.clone()))
    model.blocks = (copied, *model.blocks[1:])
    with pytest.raises(InvalidOption, match="changed in place"):
        Edit((head(0, 1),)).apply(model)


def test_the_input_is_edited_through_the_engine():
    model, task = tiny.model("gpt2"), tiny.task(n=3)
    run = Edit((INPUT, head(0, 0))).run(model, task)
    expected = ComponentRun(model, task, components=("input", "heads"), ablation="zero")
    assert torch.equal(run(run.zeros()), expected(expected.mask_without([INPUT, head(0, 0)])))
