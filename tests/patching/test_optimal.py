"""Optimal ablation: gradients by finite differences, optima by hand, and files."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from graphs.errors import WiretraceError, WriteFailed
from patching import ablations, optimal, toy
from patching.ablations import Ablation
from patching.engine import Writes
from patching.errors import InvalidOption, InvalidWeights, NotFinite
from patching.lens import LensModel
from patching.masked import MaskedRun
from patching.metrics import Metric
from patching.model_sources import zoo_names
from tests import tiny
from tests.leftovers import traces

TRAINED = pytest.mark.skipif("zoo:ioi" not in zoo_names(), reason="zoo:ioi is not there yet")


def run_of(family: str, *, n: int = 3, **options: object) -> MaskedRun:
    return MaskedRun(tiny.model(family), tiny.task(n=n, prefix=1), **({"metric": "kl"} | options))  # type: ignore[arg-type]


def damages(run: MaskedRun, ablation: str | Ablation) -> Tensor:
    return optimal.damages(MaskedRun(run.model, run.task, ablation=ablation, metric=run.metric))


def parts(ablation: Ablation) -> list[Tensor]:
    assert ablation.constants is not None
    return [ablation.constants.embedded, *ablation.constants.heads, *ablation.constants.mlps]


# --- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "attention_only"])
def test_gradient_against_finite_differences(family: str) -> None:
    """Of the constants of an MLP (or head), each in a run in which it alone is ablated."""
    run = run_of(family, ablation="mean-clean").nodes()
    start = [value.detach().clone().requires_grad_(True) for value in optimal._split(run.batches[0].replacement)]
    for source in (0, 1, run.n_units - 1):
        optimal._descend(run, start, [source], 0)
        found = start[source].grad
        assert found is not None
        direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        values = []
        for step in (1e-6, -1e-6):
            moved = [value.detach() + (step * direction if n == source else 0) for n, value in enumerate(start)]
            constants = optimal._joined(moved, run.graph)
            values.append(float(damages(run, Ablation("moved", lambda task: task.clean, constants=constants))[source]))
        assert float((found * direction).sum()) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5, abs=1e-8)


def test_constants_that_are_not_ablated_do_not_move() -> None:
    """One step of one source: every other constant is the mean to the last bit."""
    run = run_of("gpt2", ablation="mean-clean")
    trained = parts(optimal.train(run, steps=1, sources=1, seed=3))
    means = parts(Ablation("mean", lambda task: task.clean, constants=run.batches[0].replacement))
    moved = [not torch.equal(a, b) for a, b in zip(trained, means, strict=True)]
    assert sum(moved) == 1


def test_the_optimum_by_hand() -> None:
    """The toy, two prompts, KL: head 0 writes 1 on "0 1" and 2 on "0 0", and the damage only knows its e2 part.

    Ablated by a, the logits of e2 are off by a - 1 and a - 2; the best a is found on a fine grid with torch alone.
    """
    task = toy.task().subset(slice(2, 4))
    clean = torch.tensor([[0.0, 1, 3, 0], [1, 0, 2, 0]], dtype=torch.float64)  # "1 1": 3 along e2; "0 0": 2
    run = MaskedRun(toy.model(), task, metric="kl")
    assert torch.allclose(toy.model().logits(task.clean)[:, -1], clean)
    grid = torch.linspace(-2, 4, 6001, dtype=torch.float64)
    own = torch.tensor([0.0, 2.0], dtype=torch.float64)  # what head 0 writes
    logits = clean.expand(len(grid), 2, 4).clone()
    logits[..., 2] += grid[:, None] - own
    log_probs, wanted = torch.log_softmax(logits, -1), torch.log_softmax(clean, -1)
    kl = (wanted.exp() * (wanted - log_probs)).sum(-1).mean(-1)
    ablation = optimal.train(run, steps=60, lr=0.1, sources=3)
    assert ablation.constants is not None
    assert float(ablation.constants.heads[0][0]) == pytest.approx(float(grid[kl.argmin()]), abs=0.01)
    assert float(damages(run, ablation)[1]) == pytest.approx(float(kl.min()), abs=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_no_source_is_worse_than_its_mean_and_most_are_better(family: str) -> None:
    run = run_of(family, n=4)
    trained, mean = damages(run, optimal.train(run, steps=20, lr=0.1)), damages(run, "mean-clean")
    assert (trained <= mean + 1e-12).all()
    assert trained.mean() < 0.8 * mean.mean()
    assert (trained < mean - 1e-6).double().mean() > 0.7


def test_the_run_s_own_ablation_and_view_do_not_matter() -> None:
    found = [
        parts(optimal.train(run, steps=4))
        for run in (run_of("gpt2"), run_of("gpt2", ablation="zero").nodes(), run_of("gpt2").positions())
    ]
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_the_same_seed_the_same_numbers_whatever_the_batches() -> None:
    first, again, other, chunked = (
        parts(optimal.train(run_of("gpt2", memory=memory), steps=4, sources=2, seed=seed))
        for seed, memory in ((1, 1 << 27), (1, 1 << 27), (2, 1 << 27), (1, 1))
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert all(torch.allclose(a, b, atol=1e-8) for a, b in zip(first, chunked, strict=True))


def test_every_source_has_its_turn_before_any_has_another() -> None:
    turns = optimal._Turns(7, 3, 0)
    taken = [source for _ in range(7) for source in turns.next()]
    for start in range(0, 21, 7):
        assert sorted(taken[start : start + 7]) == list(range(7))
    assert taken[:7] != taken[7:14]


def test_nothing_is_left_behind() -> None:
    run = run_of("gpt2")
    before, state = traces(run.model), torch.get_rng_state()
    seen: list[tuple[int, int]] = []
    ablation = optimal.train(run, steps=3, progress=lambda done, total: seen.append((done, total)))
    assert traces(run.model) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert not any(value.requires_grad for value in parts(ablation))
    assert ablation.name == "optimal"


def test_damages_by_hand() -> None:
    """Head 0 writes 2 on "0 0", 1 on "0 1" and on "0 3", nothing on "1 1" and "1 3"."""
    found = optimal.damages(MaskedRun(toy.model(), toy.task()))
    single = [float(optimal.damages(MaskedRun(toy.model(), toy.task().subset(slice(n, n + 1))))[1]) for n in range(4)]
    assert single == pytest.approx([-1.0, 0.0, 0.0, 1.0])
    assert float(found[1]) == pytest.approx(sum(single) / 4)


@TRAINED
def test_on_a_trained_model_and_on_prompts_that_it_never_saw() -> None:
    from circuits import tasks

    model = LensModel.load("zoo:ioi")
    seen, unseen = (tasks.ioi.make(model, n=n, seed=seed) for n, seed in ((4, 0), (32, 5)))
    ablation = optimal.train(MaskedRun(model, seen, metric="kl"), steps=20, lr=0.1)
    for task in (seen, unseen):
        run = MaskedRun(model, task, metric="kl")
        assert damages(run, ablation).mean() < 0.8 * damages(run, "mean-clean").mean()


# --- files ----------------------------------------------------------------------------------------------------------


def random_constants(model: LensModel) -> Ablation:
    chance = torch.Generator().manual_seed(0)
    shapes = optimal._empty(model)
    values = shapes.map(lambda value: torch.randn(value.shape, generator=chance, dtype=torch.float64))
    return Ablation("optimal", lambda task: task.clean, constants=values)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "gemma2", "attention_only"])
def test_a_file_gives_the_same_run(family: str, tmp_path: Path) -> None:
    run = run_of(family)
    ablation = random_constants(run.model)
    optimal.save(ablation, tmp_path / "constants.safetensors")
    loaded = optimal.load(tmp_path / "constants.safetensors", run.model)
    assert loaded.name == "optimal"
    assert all(torch.equal(a, b) for a, b in zip(parts(ablation), parts(loaded), strict=True))
    masks = (torch.rand(3, run.n_units, generator=torch.Generator().manual_seed(0)) < 0.5).double()
    first, second = (MaskedRun(run.model, run.task, ablation=one)(masks) for one in (ablation, loaded))
    assert torch.equal(first, second)


def test_search_and_evaluation_share_it() -> None:
    from circuits import acdc, evaluate

    run = run_of("gpt2")
    tuned = MaskedRun(run.model, run.task, ablation=optimal.train(run, steps=5), metric="kl")
    circuit = acdc.search(tuned, tau=0.01)
    assert circuit.provenance["ablation"] == "optimal"
    assert evaluate(tuned, circuit).metric == "kl"


def saved(tmp_path: Path, family: str = "gpt2") -> Path:
    path = tmp_path / "constants.safetensors"
    optimal.save(random_constants(tiny.model(family)), path)
    return path


@pytest.mark.parametrize(
    ("family", "what"), [("llama", r"mlp|heads|input"), ("attention_only", r"mlp\.0 of shape None")]
)
def test_constants_of_another_model_are_refused(tmp_path: Path, family: str, what: str) -> None:
    path = saved(tmp_path)
    model = tiny.model(family) if family != "llama" else toy.model()
    with pytest.raises(InvalidWeights, match=rf"expected constants for .*({what}).*Load the model that they were"):
        optimal.load(path, model)


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, length: int) -> None:
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InvalidWeights, match=r"expected a whole safetensors file of constants; .*Save it again"):
        optimal.load(path, tiny.model("gpt2"))


def test_other_bad_files_are_refused(tmp_path: Path) -> None:
    path, model = saved(tmp_path), tiny.model("gpt2")
    with pytest.raises(InvalidWeights, match=r"cannot be read"):
        optimal.load(tmp_path / "missing.safetensors", model)
    tensors = load_file(path)
    tensors["mlp.1"][0, 0, 3] = math.nan
    save_file(tensors, path, {"schema": optimal.SCHEMA})
    with pytest.raises(InvalidWeights, match=r"expected finite constants; mlp\.1 in .* are not"):
        optimal.load(path, model)
    save_file(tensors, path)
    with pytest.raises(InvalidWeights, match=r"expected constants of schema wiretrace-constants/1; .* has None"):
        optimal.load(path, model)


def test_only_constants_can_be_saved(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match=r"expected an ablation with constants.*; got mean"):
        optimal.save(ablations.mean, tmp_path / "mean.safetensors")
    with pytest.raises(WriteFailed):
        optimal.save(random_constants(toy.model()), tmp_path / "no" / "folder.safetensors")
    assert list(tmp_path.iterdir()) == []


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("steps", True), ("sources", 0), ("lr", 0.0), ("lr", math.nan), ("seed", -1), ("seed", True)],
)
def test_options_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(InvalidOption, match=rf"expected {name} to be .*; got "):
        optimal.train(MaskedRun(toy.model(), toy.task()), **{name: value})  # type: ignore[arg-type]


def test_a_metric_without_a_gradient_is_refused() -> None:
    right = Metric("accuracy", True, lambda p: (p.logits.argmax(-1) == p.answers[:, 0]).double())
    with pytest.raises(InvalidOption, match=r"expected a metric with a gradient; accuracy has none"):
        optimal.train(MaskedRun(toy.model(), toy.task(), metric=right))


def test_divergence_names_the_step() -> None:
    fragile = Metric("log of the difference", False, lambda p: p.logit_difference().log())
    with pytest.raises(NotFinite, match=r"step \d+ of the training: expected a finite log of the difference"):
        optimal.train(MaskedRun(toy.model(), toy.task(), metric=fragile), steps=200, lr=1.0)


def test_splitting_and_joining_are_inverse() -> None:
    for family in ("gpt2", "attention_only"):
        model = tiny.model(family)
        whole = random_constants(model).constants
        assert isinstance(whole, Writes)
        split = optimal._split(whole)
        assert len(split) == len(model.graph.sources)
        again = optimal._joined(split, model.graph)
        assert torch.equal(again.embedded, whole.embedded)
        for one, other in ((again.heads, whole.heads), (again.mlps, whole.mlps)):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert issubclass(InvalidWeights, WiretraceError)
