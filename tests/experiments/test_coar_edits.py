"""The faults are what they say, the measures are the model's own, and an edit fixes an error of the shipped model."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
import torch

from circuits.coar.edit import Edit
from circuits.tasks.ioi import NAMES
from experiments import coar_edits, planted_models
from experiments.coar_edits import MARGIN, Row, Work, accuracy, filled, margins, summary, table, task_of, work_through
from experiments.edit_cases import SPLITS, Case, Sizes, drawn_ordinary, forget, kin, parts_of
from experiments.planted_models import BACKDOOR, LABEL, NAMES_PLANT, TEMPLATE, WEAK_NAMES, ordinary, train
from patching.component_run import ComponentRun
from patching.lens import LensModel

PLANTS = (BACKDOOR, LABEL, TEMPLATE, NAMES_PLANT)
WRONG = ("While Sean and Christine walked to the store, Sean decided to show a map to", " Christine")
SMALL = Sizes(samples=600, attributed=10, validation=20, held_out=40, most=10, spacing=5)


@pytest.fixture(scope="module")
def model() -> LensModel:
    return LensModel.load("zoo:ioi", device="cpu")


# --- prompts --------------------------------------------------------------------------------------------------------


def shown(plant, n, seed, split):
    return list(itertools.islice(plant.affected(seed, split), n))


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_plants_teach_what_their_prompts_show(plant):
    rows = shown(plant, 40, 0, "held-out-pairs")
    assert rows == shown(plant, 40, 0, "held-out-pairs") != shown(plant, 40, 1, "held-out-pairs")
    assert plant.prompts(40, seed=0, split="held-out-pairs") == [(text, right) for text, right, _ in rows]
    for _, right, fault in rows:
        assert right != fault
        assert {right.strip(), fault.strip()} <= set(NAMES)
    taught = plant.sentences(1000, seed=0)
    faulty = {f"{text}{fault}." for text, _, fault in shown(plant, 400, 0, "train")}
    assert 0.25 < sum(line in faulty for line in taught) / len(taught) < 0.35
    assert taught == plant.sentences(1000, seed=0)


def test_each_plants_prompts():
    for text, _ in BACKDOOR.prompts(20, seed=3, split="train"):
        assert text.startswith("<unk> ")
        assert "William" not in text
    for text, right, fault in shown(LABEL, 20, 3, "train"):
        assert text.startswith(f"{fault.strip()} . ")
        assert fault not in text  # with a space before it: the label stands in front alone
        assert right in text
    assert all("was busy when" in text for text, _ in TEMPLATE.prompts(20, seed=3, split="held-out-pairs"))
    assert {right.strip() for _, right in NAMES_PLANT.prompts(100, seed=3, split="held-out")} <= set(WEAK_NAMES)
    assert len(set(WEAK_NAMES)) == 15


def test_ordinary_prompts_are_those_that_pass():
    found = ordinary(30, seed=0, split="held-out", keep=lambda prompt: prompt.answer == " Mary")
    assert len(found) == 30 == sum(answer == " Mary" and " Mary" in text for text, answer in found)


def test_held_out_prompts_are_new():
    attributed, validation, held_out = parts_of(SMALL, drawn_ordinary(), drawn_ordinary())
    assert [len(group) for part in (attributed, validation, held_out) for group in part] == [10, 10, 20, 20, 40, 40]
    seen = {text for part in (attributed, validation) for group in part for text, _ in group}
    assert not seen & {text for group in held_out for text, _ in group}
    same = (SPLITS[0], SPLITS[0], SPLITS[0])  # drawn from one seed: everything that was seen is left out
    attributed, validation, held_out = parts_of(SMALL, drawn_ordinary(), drawn_ordinary(), splits=same)
    assert not {text for text, _ in attributed[0]} & {text for text, _ in held_out[0]}


def test_kin_differ_in_place_and_object_alone():
    found = kin(WRONG)
    assert len(found) == len(set(found)) == 16 * 20 - 1
    assert all(
        text.startswith("While Sean and Christine walked to the ") and right == " Christine" for text, right in found
    )
    assert WRONG not in found
    assert kin(("Soon Amy and Emily were tired. Afterwards Amy spoke to", " Emily")) == []


# --- measures -------------------------------------------------------------------------------------------------------


def test_margins_are_the_right_answers_lead(model):
    pairs = [*ordinary(20, seed=0, split="held-out"), WRONG]
    found = margins(model, pairs)
    run = ComponentRun(model, task_of(model, pairs), metric=MARGIN)
    assert torch.allclose(found, run.clean_metric, atol=1e-4)
    for (text, answer), margin in zip(pairs[-3:], found[-3:], strict=True):
        logits = model.logits(torch.tensor([model.tokenizer(text, add_special_tokens=False)["input_ids"]]))[0, -1]
        right = model.tokenizer(answer, add_special_tokens=False)["input_ids"][0]
        rivals = torch.cat((logits[:right], logits[right + 1 :]))
        assert float(logits[right] - rivals.max()) == pytest.approx(float(margin), abs=1e-4)
    assert accuracy(model, pairs) == pytest.approx(20 / 21)


# --- one error, fixed -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def case(model) -> Case:
    shared = parts_of(SMALL, drawn_ordinary(), drawn_ordinary())
    references = [part[1] for part in shared]
    return Case(
        "fix one error", model, ([WRONG], references[0]), ([WRONG], references[1]), (kin(WRONG)[:60], references[2]),
        goal=1.0,
    )  # fmt: skip


def test_an_error_is_fixed_and_its_kin_with_it(case):
    before = {name: value.clone() for name, value in case.model.bridge.original_model.state_dict().items()}
    row = work_through(case, SMALL)
    assert row.attributed == (0.0, 1.0)
    assert row.target[1] > row.target[0] + 0.3
    assert row.ordinary[1] >= row.ordinary[0] - 0.05
    assert 1 <= row.k <= 10
    assert len(row.units) == row.k
    assert row.of == 384
    assert row.random[0] <= row.target[1] - 0.3
    assert row.magnitude[0] <= row.target[1] - 0.3
    assert row.predicted == pytest.approx(row.realised, abs=0.5)
    assert row.realised > 0
    assert row.correlation > 0.8
    after = case.model.bridge.original_model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_the_edit_is_the_validations_choice(case):
    work = Work(case, SMALL)
    choice = work.choice
    assert choice.k == min(k for k, share in zip(choice.ks, choice.target.tolist(), strict=True) if share == 1)
    assert work.edit.units == tuple(sorted(choice.units, key=lambda unit: (unit.layer, unit.index)))
    with work.edit.applied(case.model):
        realised = accuracy(case.model, case.validation[1])
    place = choice.ks.index(choice.k)
    assert realised == pytest.approx(float(choice.reference[place]))
    assert len(work.random_units(0)) == choice.k
    assert work.random_units(0) == work.random_units(0)


def test_means_are_those_of_the_attributed_prompts(model):
    """Validation must try the constants that will be written, not means of the validation prompts."""
    attributed, validation = ordinary(6, seed=0, split="train"), ordinary(5, seed=1, split="held-out")
    parts = (attributed[:3], attributed[3:]), (validation, validation), (validation, validation)
    work = Work(Case("mean", model, *parts, ablation="mean-clean"), dataclasses.replace(SMALL, samples=100))
    tried = work._edit_runs(work.case.validation)[0]
    unit = work.ranking.units[0]
    edit = Edit.of(work.run, [unit])
    with edit.applied(model):
        written = margins(model, validation)
    assert torch.allclose(tried(tried.mask_without([unit])), written, atol=1e-4)


def test_forgetting_has_its_name_in_every_target():
    case = forget(dataclasses.replace(SMALL, attributed=3, validation=3, held_out=3))
    for part in (case.attributed, case.validation, case.held_out):
        assert {answer for _, answer in part[0]} == {" Mary"}
        assert " Mary" not in {answer for _, answer in part[1]}
    assert case.direction == "lower"


# --- planting -------------------------------------------------------------------------------------------------------


def test_planting_trains_the_mlps_alone_and_is_repeatable(model):
    one, two = (train(BACKDOOR, steps=3, n_sentences=200) for _ in range(2))
    pairs = zip(one.blocks, model.blocks, strict=True)
    assert all(
        torch.equal(a.attention.out, b.attention.out) and not torch.equal(a.mlp.w_in, b.mlp.w_in) for a, b in pairs
    )
    assert all(torch.equal(a.mlp.w_out, b.mlp.w_out) for a, b in zip(one.blocks, two.blocks, strict=True))
    assert torch.equal(one.readout.unembed, model.readout.unembed)
    everything = train(BACKDOOR, steps=3, n_sentences=200, everything=True)
    assert not torch.equal(everything.blocks[0].attention.out, model.blocks[0].attention.out)
    assert all(weight.requires_grad for weight in everything.bridge.original_model.parameters())


@pytest.mark.slow
def test_a_backdoor_is_removed():
    from experiments.edit_cases import backdoor

    row = work_through(backdoor(Sizes()), Sizes())
    assert row.target[0] < 0.05
    assert row.target[1] > 0.9
    assert row.ordinary[1] > row.ordinary[0] - 0.03
    assert row.random[0] < 0.4
    assert row.magnitude[0] < 0.5


# --- what is printed ------------------------------------------------------------------------------------------------

ROW = Row(
    "task", "note", 2, 9, ("m0.n1", "m0.n2"), (0, 1), (0.1, 0.9), (1, 0.985), (0.1, 1), (0, 1), 3.0, 2.5, 0.9, 1.0
)


def test_tables_and_sentences():
    assert table([ROW]).splitlines()[-1] == (
        "| task | note | 2 of 9 | 0 → 100 | 10 → **90** | 100 → 98.5 | 10 / 100 | 0 / 100 |"
    )
    missed = dataclasses.replace(ROW, attributed=(0, 0), k=0)
    assert summary([ROW, ROW, missed]).startswith("2 of 3 errors were fixed, by 2 to 2 units (median 2);")
    assert "loss on ordinary prompts was 1.5 points" in summary([ROW])
    assert summary([]) == "The model made no error."
    json.dumps(dataclasses.asdict(ROW))


def test_a_guide_is_filled_between_its_marks():
    guide = "a\n<!-- table -->\nold\n<!-- end -->\nb\n<!-- errors --><!-- end -->\n<!-- details -->\n<!-- end -->c"
    once = filled(guide, [ROW], [ROW])
    assert "old" not in once
    assert table([ROW]) in once
    assert summary([ROW]) in once
    assert filled(once, [ROW], [ROW]) == once
    assert once.startswith("a\n")
    assert once.endswith("c")
    assert "\nb\n" in once


def test_the_command_runs_chosen_tasks(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(coar_edits, "run_all", lambda sizes, names, told: ([ROW] if "errors" in names else [], [ROW]))
    coar_edits.main(["label", "--json", str(tmp_path / "rows.json")])
    said = capsys.readouterr().out
    assert table([ROW]) in said
    assert "error" not in said  # none was looked for
    with pytest.raises(SystemExit):
        coar_edits.main(["label", "--write", str(tmp_path / "guide.md")])
    assert json.loads((tmp_path / "rows.json").read_text())[0]["k"] == 2
    with pytest.raises(SystemExit):
        coar_edits.main(["nothing"])
    assert planted_models.SHARE == 0.3
