"""Strict interchange training, on recipes that take a second; its hooks against the engine."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

from experiments import train_interchange
from experiments.interchange_training.card import model_card
from experiments.interchange_training.data import build_data, draw
from experiments.interchange_training.exchange import Exchange
from experiments.interchange_training.fit import batch_losses, fit
from experiments.interchange_training.recipe import Recipe, architecture, build_model
from experiments.train_interchange import train
from experiments.zoo_training.folder import OutputExists
from experiments.zoo_training.specialist import weights_digest
from patching import LensModel, MaskedRun
from patching.compiled import PROGRAMS, trained
from patching.compiled.compiler import LOGIT_SCALE
from patching.errors import InvalidOption, ModelNotFound
from patching.metrics import Metric
from patching.model_sources import ZOO
from patching.task import Task

TINY = Recipe(steps=4, batch=8, interventions=64, d_mlp=8, d_head=4)
REVERSE = PROGRAMS["reverse"]


def test_hooks_exchange_what_the_engine_exchanges() -> None:
    """Random sets of nodes of a random model: logits under hooks equal those under node masks, in double precision."""
    generator = torch.Generator().manual_seed(0)
    model = build_model(REVERSE, replace(TINY, initial_std=0.4)).double().eval()
    base, source = (torch.randint(0, 5, (6, 7), generator=generator) for _ in range(2))
    exchange = Exchange(model)
    chosen = torch.rand(12, len(exchange.nodes), generator=generator) < 0.4
    with torch.no_grad():
        recorded = exchange.record(source)
        hooked = torch.stack([exchange.run(base, recorded, row.expand(6, -1))[:, -1] for row in chosen])
        plain = exchange.run(base, recorded, torch.zeros_like(chosen[:6]))
    exchange.close()
    torch.testing.assert_close(model(base).logits, plain, rtol=0, atol=1e-12)  # and no hook is left behind
    weights = torch.randn(hooked.shape[-1], dtype=torch.float64, generator=generator)
    some = torch.zeros(6, 1, dtype=torch.long)
    task = Task("random", base, source, some, some + 1, torch.full((6,), 6))
    metric = Metric("projection", True, lambda prediction: (prediction.logits * weights).sum(-1))
    run = MaskedRun(LensModel.wrap(model), task, metric=metric).nodes()
    assert run.units[1:] == exchange.nodes
    masks = torch.cat((torch.ones(12, 1), (~chosen).double()), dim=1).double()
    torch.testing.assert_close(run(masks), hooked @ weights, rtol=0, atol=1e-10)


def test_each_row_has_its_own_nodes_exchanged() -> None:
    model = build_model(REVERSE, replace(TINY, initial_std=0.4)).eval()
    base, source = (torch.randint(0, 5, (3, 6), generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    exchange = Exchange(model)
    chosen = torch.zeros(3, len(exchange.nodes), dtype=torch.bool)
    chosen[0, 0] = chosen[1, -1] = True
    with torch.no_grad():
        recorded = exchange.record(source)
        together = exchange.run(base, recorded, chosen)
        for row in range(3):
            alone = exchange.run(
                base[row : row + 1], [value[row : row + 1] for value in recorded], chosen[row : row + 1]
            )
            torch.testing.assert_close(together[row], alone[0])
    exchange.close()


def test_gradients_reach_the_weights_through_the_source() -> None:
    """With every node exchanged, the last MLP's output comes from the source run alone."""
    model = build_model(REVERSE, replace(TINY, initial_std=0.4))
    exchange = Exchange(model)
    base, source = torch.zeros(1, 3, dtype=torch.long), torch.full((1, 3), 2)
    recorded = exchange.record(source)
    exchange.run(base, recorded, torch.ones(1, len(exchange.nodes), dtype=torch.bool)).square().sum().backward()
    exchange.close()
    gradient = model.transformer.wte.weight.grad
    assert gradient is not None
    assert gradient[2].abs().sum() > 0  # a token of the source prompt only


def test_the_losses_are_divergences_from_the_program() -> None:
    recipe = replace(TINY, initial_std=0.4)
    data, model = build_data(REVERSE, recipe), build_model(REVERSE, recipe).eval()
    exchange = Exchange(model)
    nothing = torch.zeros(data.nodes.shape[1], dtype=torch.bool)
    rows = torch.arange(16)
    with torch.no_grad():
        losses = batch_losses(exchange, data, rows, useless=nothing, generator=torch.Generator().manual_seed(0))
        exchange.close()
        said = model(data.base[rows]).logits[rows, data.last[rows]].softmax(-1)
    expected = (data.plain[rows] * (data.plain[rows] / said).log()).sum(-1).mean()
    torch.testing.assert_close(losses[0], expected)
    torch.testing.assert_close(losses[2], expected)  # no useless nodes: nothing is exchanged
    assert losses[1] != losses[0]


def test_what_is_to_be_learnt_is_what_the_program_says() -> None:
    data, drawn = build_data(REVERSE, TINY), draw(REVERSE, TINY)
    for row in range(0, 64, 9):
        said = torch.tensor(list(drawn[row].said.values()))
        torch.testing.assert_close(data.swapped[row], (LOGIT_SCALE * said).softmax(-1))
        assert REVERSE.vocabulary[int(data.plain[row].argmax())] == REVERSE.answer(drawn[row].base)
        tokens = [REVERSE.vocabulary[int(token)] for token in data.base[row, : int(data.last[row]) + 1]]
        assert tuple(tokens) == ("^", *drawn[row].base)
    assert 0.4 < sum(each.matters for each in draw(REVERSE, replace(TINY, interventions=2000))) / 2000 <= 1.0
    assert {len(each.nodes) for each in draw(REVERSE, replace(TINY, interventions=200))} == {1, 2, 3}


def test_the_model_has_the_programs_nodes_and_more() -> None:
    shape = architecture(PROGRAMS["sort_unique"], Recipe())
    assert (shape.n_layers, shape.n_heads) == (3, 6)
    assert architecture(PROGRAMS["and_gate"], Recipe()).n_layers == 2


def test_a_reduced_training_writes_a_whole_model_twice_the_same(tmp_path) -> None:
    before = torch.get_num_threads(), torch.random.get_rng_state()
    first, second = (train("and_gate", tmp_path / name, recipe=TINY, measured=4) for name in "ab")
    assert first["weights_sha256"] == second["weights_sha256"] == weights_digest(tmp_path / "a")
    other = train("and_gate", tmp_path / "c", recipe=replace(TINY, seed=1), measured=4)
    assert other["weights_sha256"] != first["weights_sha256"]
    assert (torch.get_num_threads(), torch.equal(torch.random.get_rng_state(), before[1])) == (before[0], True)
    assert json.loads((tmp_path / "a" / "training.json").read_text()) == json.loads(json.dumps(first))
    assert first["made_by"] == "python -m experiments.train_interchange and_gate --seed 0 --steps 4"
    assert (tmp_path / "a" / "README.md").read_text() == model_card(first, PROGRAMS["and_gate"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]
    assert LensModel.load(tmp_path / "a", device="cpu").tokenizer.get_vocab() == {"^": 0, "0": 1, "1": 2, "=": 3}
    with pytest.raises(OutputExists):
        train("and_gate", tmp_path / "a", recipe=TINY)


def test_training_lowers_every_loss() -> None:
    recipe = replace(TINY, batch=32, interventions=400)
    data = build_data(PROGRAMS["and_gate"], recipe)
    aligned = [0, 1, 5]
    ends = []
    for steps in (5, 150):
        chosen = replace(recipe, steps=steps)
        ends.append(fit(build_model(PROGRAMS["and_gate"], recipe), data, aligned=aligned, recipe=chosen))
    assert all(ends[1][name] < 0.5 * ends[0][name] for name in ("behaviour", "interchange", "strict")), ends


def test_stopping_leaves_nothing(tmp_path) -> None:
    def interrupted(steps: range):
        yield steps[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train("and_gate", tmp_path / "a", recipe=TINY, progress=interrupted)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_trained_is_refused(tmp_path) -> None:
    with pytest.raises(InvalidOption, match="copy_token has none"):
        train("copy_token", tmp_path / "a", recipe=TINY)
    app = Typer()
    app.command()(train_interchange.main)
    result = CliRunner().invoke(app, ["revers", "--out", str(tmp_path / "a")])
    assert result.exit_code == 1
    assert "Did you mean reverse" in result.output
    with pytest.raises(ModelNotFound):
        train("nothing", tmp_path / "a")


@pytest.mark.parametrize("name", trained.names())
def test_the_record_and_the_card_that_ship_belong_to_the_weights(name: str) -> None:
    folder = ZOO / f"{name}_trained"
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    assert record["weights_sha256"] == weights_digest(folder)
    assert record["task"] == record["truth"] == name
    assert record["accuracy"][name]["held-out"]["accuracy"] == record["interchange"]["held-out"]["task"]["accuracy"]
    assert (folder / "README.md").read_text(encoding="utf-8") == model_card(record, PROGRAMS[name])
    assert re.fullmatch(rf"python -m experiments.train_interchange {name} --seed \d+( --steps \d+)?", record["made_by"])
    assert record["parameters"] == sum(
        each.numel() for each in build_model(PROGRAMS[name], Recipe(**record["recipe"])).parameters()
    )
