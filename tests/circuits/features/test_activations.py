"""Activations are those of the model itself, of the tokens that count; streams are shuffled, repeatable and bounded."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from circuits.features import create
from circuits.features.activation_buffer import ActivationBuffer, ShuffledRows
from circuits.features.activations import Prompts, collect, parse_site, read, width
from circuits.features.training import train
from circuits.tasks import ioi
from graphs.errors import WriteFailed
from patching import toy
from patching.errors import InvalidOption, InvalidTask
from patching.lens import LensModel
from tests import tiny

HOOKS = {
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
    "resid_pre": "hook_resid_pre",
}


@pytest.fixture(scope="module")
def model() -> LensModel:
    return tiny.model("gpt2", dtype=torch.float32)


@pytest.fixture(scope="module")
def ioi_model() -> LensModel:
    return LensModel.load("zoo:ioi", device="cpu")


def prompts(n: int = 12, length: int = 7, *, seed: int = 0) -> Prompts:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(tiny.VOCAB, (n, length), generator=generator)
    return Prompts.from_tokens(tokens, lengths=torch.randint(2, length + 1, (n,), generator=generator))


# --- what is read ----------------------------------------------------------------------------------------------------


def test_values_are_those_of_the_models_own_hooks(family):
    """At every site, against TransformerLens's cache."""
    model, task = tiny.model(family), tiny.task(n=3)
    sites = [f"{kind}1" for kind in HOOKS if model.architecture.has_mlp or kind != "mlp_out"]
    found = read(model, task.clean, sites)
    cached: dict[str, torch.Tensor] = {}

    def keep(name: str):
        def hook(value, hook):
            cached[name] = value

        return hook

    with torch.no_grad():
        model.bridge.run_with_hooks(
            task.clean, fwd_hooks=[(f"blocks.1.{HOOKS[site[:-1]]}", keep(site)) for site in sites]
        )
    for site in sites:
        assert torch.allclose(found[site], cached[site].to(found[site]), rtol=1e-4, atol=1e-5), site


def test_what_an_mlp_reads_gives_what_it_writes(family):
    model, task = tiny.model(family), tiny.task(n=3)
    if not model.architecture.has_mlp:
        with pytest.raises(InvalidOption, match="no MLP"):
            read(model, task.clean, ["mlp_in0"])
        return
    found = read(model, task.clean, ["mlp_in1", "mlp_out1"])
    mlp = model.blocks[1].mlp
    assert torch.allclose(mlp.write(mlp.hidden(found["mlp_in1"])), found["mlp_out1"], rtol=1e-9, atol=1e-10)


def test_the_toy_by_hand():
    """On "0 1" head 0 writes 1 and head 1 writes 1.5 along e2; on its first token alone head 0 writes 2."""
    rows = collect(toy.model(), toy.task(), ["attn_out0", "resid_pre0", "resid_post0"])
    assert rows["attn_out0"][:2].tolist() == [[0, 0, 2, 0], [0, 0, 2.5, 0]]
    assert rows["resid_pre0"][:2].tolist() == [[1, 0, 0, 0], [0, 1, 0, 0]]
    assert torch.equal(rows["resid_post0"], rows["resid_pre0"] + rows["attn_out0"])


def test_neurons_are_as_wide_as_the_mlp(model):
    rows = collect(model, prompts(3), ["neurons0"])["neurons0"]
    assert rows.shape[1] == width(model, "neurons0") == model.blocks[0].mlp.w_in.shape[0]
    assert width(model, "mlp_in0") == width(model, "resid_pre0") == model.d_model


def test_a_forward_stops_after_the_last_site(model, monkeypatch):
    later = []
    original = type(model.blocks[1].attention).project
    monkeypatch.setattr(
        type(model.blocks[1].attention), "project", lambda self, *a: (later.append(self), original(self, *a))[1]
    )
    read(model, prompts(2).tokens, ["resid_post0"])
    assert later
    assert all(each is model.blocks[0].attention for each in later)


# --- which tokens count ----------------------------------------------------------------------------------------------


def test_padding_never_counts_and_changes_nothing(model):
    chosen = prompts()
    rows = collect(model, chosen, ["resid_post1"])["resid_post1"]
    alone = [
        collect(model, tokens[:int(keep.sum())][None], ["resid_post1"])["resid_post1"]
        for tokens, keep in zip(chosen.tokens, chosen.keep, strict=True)
    ]  # fmt: skip
    assert len(rows) == chosen.n_tokens
    assert torch.allclose(rows, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_a_task_counts_up_to_its_answer_position_without_bos(ioi_model):
    task = ioi.make(ioi_model, n=6, seed=0)
    chosen = Prompts.from_task(task)
    assert chosen.keep.sum(1).tolist() == (task.positions + 1).tolist()
    both = Prompts.from_task(task, corrupt=True)
    assert len(both) == 12
    assert torch.equal(both.tokens[6:], task.corrupt)
    import dataclasses

    with_bos = Prompts.from_task(dataclasses.replace(task, starts_with_bos=True))
    assert with_bos.keep.sum(1).tolist() == task.positions.tolist()
    assert not with_bos.keep[:, 0].any()


def test_bos_is_left_out_wherever_it_stands():
    tokens = torch.tensor([[9, 1, 2], [9, 3, 9]])
    assert Prompts.from_tokens(tokens, bos=9).keep.tolist() == [[False, True, True], [False, True, False]]


def test_texts_are_cut_to_the_context(ioi_model):
    text = "When Mary and John went to the store, John gave a drink to Mary. " * 4
    count = len(ioi_model.tokenizer(text, add_special_tokens=False)["input_ids"])
    chosen = Prompts.from_texts([text, "Then, Mary"], ioi_model, prepend_bos=True, length=10)
    assert chosen.tokens.shape[1] == 10
    assert chosen.n_tokens == count + 3
    assert not chosen.keep[:, 0].any()
    assert set(chosen.tokens[:, 0].tolist()) == {ioi_model.tokenizer.bos_token_id}
    plain = Prompts.from_texts([text], ioi_model)
    assert plain.tokens.shape[1] == ioi_model.n_ctx
    assert plain.tokens[plain.keep].tolist() == ioi_model.tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda m: Prompts(torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 2, dtype=torch.bool)), "same shape"),
        (lambda m: Prompts.from_tokens(torch.tensor([[-1, 2]])), "0 or more"),
        (lambda m: Prompts.from_tokens(torch.tensor([[5, 5]]), bos=5), "no position|at least one position"),
        (lambda m: Prompts.from_texts(["a"], tiny.model("gpt2")), "tokenizer"),
        (lambda m: Prompts.from_texts([""], m), "at least one token"),
        (lambda m: read(m, torch.tensor([[10_000]]), ["mlp_out0"]), "vocabulary"),
    ],
)
def test_prompts_that_cannot_be_are_refused(make, said, ioi_model):
    with pytest.raises(InvalidTask, match=said):
        make(ioi_model)


@pytest.mark.parametrize(
    ("site", "said"),
    [
        ("mlp_out", "KIND and LAYER"), ("mlp_out9", "layer from 0 to 1"), ("z0", "one vector per token"),
        ("mlp_out0@3", "one vector per token"), ("pattern0", "one vector per token"), ("hook_resid_mid0", "site"),
    ],
)  # fmt: skip
def test_sites_that_cannot_be_read_are_refused(site, said, model):
    with pytest.raises(InvalidOption, match=said):
        parse_site(site, model)


def test_lengths_of_text_that_cannot_be_are_refused(ioi_model):
    for length in (0, 1, 41):
        with pytest.raises(InvalidOption, match="length"):
            Prompts.from_texts(["Then, Mary"], ioi_model, prepend_bos=True, length=length)


def test_memory_changes_the_pieces_alone(model):
    pieces = []
    small = collect(model, prompts(), ["mlp_out1"], memory=1, progress=lambda *args: pieces.append(args))["mlp_out1"]
    assert pieces == [(i, 12) for i in range(1, 13)]
    assert torch.allclose(small, collect(model, prompts(), ["mlp_out1"])["mlp_out1"], rtol=1e-5, atol=1e-6)


# --- the buffer ------------------------------------------------------------------------------------------------------


def rows_of(batches) -> set[tuple[float, ...]]:
    return {tuple(row) for batch in batches for row in batch.double().round(decimals=4).tolist()}


@pytest.mark.parametrize("budget", [2**28, 1024 + 128 * 15])
@pytest.mark.parametrize("on_disk", [False, True])
def test_an_epoch_holds_every_token_once(budget, on_disk, model, tmp_path):
    chosen = prompts(20)
    folder = tmp_path / "buffer" if on_disk else None
    buffer = ActivationBuffer(model, chosen, "resid_post1", batch=6, budget=budget, folder=folder)
    assert (len(buffer.sections) > 3) == (budget < 2**28)
    batches = list(buffer)
    assert len(batches) == len(buffer)
    assert sum(map(len, batches)) == buffer.n_tokens == chosen.n_tokens
    assert all(len(batch) <= 6 for batch in batches)
    expected = collect(model, chosen, ["resid_post1"])["resid_post1"]
    together = torch.cat(batches)
    for column in range(0, 32, 8):
        assert torch.allclose(together[:, column].sort().values, expected[:, column].sort().values, atol=1e-4)


def test_the_stream_is_the_same_each_time_and_another_in_each_epoch(model):
    def make(**options) -> ActivationBuffer:
        return ActivationBuffer(model, prompts(20), "mlp_out0", batch=8, budget=1024 + 128 * 40, **options)

    buffer = make()
    stream = buffer.from_step(0)
    first = [next(stream) for _ in range(2 * len(buffer) + 3)]
    for start in (0, 2, len(buffer), len(buffer) + 5):
        again = make().from_step(start)
        for number in range(start, start + 3):
            assert torch.equal(next(again), first[number])
    one, two = torch.cat(first[: len(buffer)]), torch.cat(first[len(buffer) : 2 * len(buffer)])
    assert not torch.equal(one, two)
    assert rows_of([one]) == rows_of([two])
    other = make(seed=1)
    assert not torch.equal(next(other.from_step(0)), first[0])
    assert all(torch.equal(a, b) for a, b in zip(buffer, buffer, strict=True)), "iterated again"


def test_tokens_of_one_prompt_are_spread_over_batches(ioi_model):
    """With 100 prompts of about 17 tokens, a batch of 50 would hold 3 of them unshuffled."""
    task = ioi.make(ioi_model, n=100, seed=0)
    chosen = Prompts.from_task(task)
    owner = torch.arange(100)[:, None].expand_as(chosen.keep)[chosen.keep]
    rows = collect(ioi_model, chosen, ["resid_post0"])["resid_post0"]
    batch = next(iter(ActivationBuffer(ioi_model, chosen, "resid_post0", batch=50)))
    owners = {int(owner[(rows - row).abs().sum(-1).argmin()]) for row in batch}
    assert len(owners) > 30


def test_pairs_belong_to_the_same_token(model, tmp_path):
    mlp = model.blocks[1].mlp
    for folder in (None, tmp_path):
        buffer = ActivationBuffer(
            model, prompts(20), "mlp_in1", target="mlp_out1", batch=7, budget=1024 + 256 * 30, folder=folder
        )
        for x, y in buffer:
            assert torch.allclose(mlp.write(mlp.hidden(x)), y, rtol=1e-4, atol=1e-4)


def test_the_file_never_exceeds_its_budget_and_is_plain_safetensors(model, tmp_path):
    chosen, budget = prompts(40), 1024 + 128 * 20
    buffer = ActivationBuffer(model, chosen, "resid_post1", batch=4, budget=budget, folder=tmp_path)
    assert len(buffer.sections) > 4
    largest = 0
    for _ in buffer:
        files = list(tmp_path.iterdir())
        assert len(files) == 1
        largest = max(largest, sum(path.stat().st_size for path in files))
    assert 0 < largest <= budget
    with safe_open(buffer.path, framework="pt") as file:
        assert file.get_tensor("input").shape[1] == 32
        assert file.metadata()["sites"] == "resid_post1"
    buffer.clear()
    assert list(tmp_path.iterdir()) == []


def test_what_a_buffer_serves_is_mapped_not_loaded(model, tmp_path):
    """Serving one batch of a file of 40 MB must not bring the file into memory."""
    tokens = torch.randint(tiny.VOCAB, (10_000, 32), generator=torch.Generator().manual_seed(0))
    buffer = ActivationBuffer(model, tokens, "resid_pre0", batch=64, budget=2**26, folder=tmp_path)
    next(iter(buffer))
    assert buffer.path.stat().st_size > 4e7
    again = ActivationBuffer(model, tokens, "resid_pre0", batch=64, budget=2**26, folder=tmp_path)
    again.fingerprint()
    before = resident()
    (stored,) = again._stored(0)
    assert stored.shape == (320_000, 32)
    stored[:64].sum()
    assert resident() - before < 2e7


def resident() -> int:
    """Bytes in memory now, of which those of mapped files are a part."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("no /proc on this system")
    return int(statm.read_text().split()[1]) * resource.getpagesize()


def test_a_file_of_the_same_arguments_is_used_again(model, tmp_path, monkeypatch):
    def make(**options) -> ActivationBuffer:
        return ActivationBuffer(model, prompts(), **({"site": "mlp_out0", "batch": 8, "folder": tmp_path} | options))

    first = list(make())
    from circuits.features import activation_buffer as module

    runs = []
    real = module.collect
    monkeypatch.setattr(module, "collect", lambda *a, **k: (runs.append(len(a[1])), real(*a, **k))[1])
    assert all(torch.equal(a, b) for a, b in zip(first, make(), strict=True))
    assert sum(runs) == 1, "one prompt, for the fingerprint"
    path = make().path
    path.write_bytes(path.read_bytes()[:-100])
    assert all(torch.equal(a, b) for a, b in zip(first, make(), strict=True)), "a damaged file is made again"
    assert make(site="mlp_out1").path != path
    assert make(seed=5).path != path


def test_a_dictionary_trains_on_a_buffer_and_goes_on_after_a_stop(model, tmp_path):
    def go(checkpoint: Path | None, stop: int | None = None):
        buffer = ActivationBuffer(model, prompts(20), "mlp_out1", batch=16, budget=1024 + 128 * 40)

        def progress(done: int, _total: int) -> None:
            if done == stop:
                raise KeyboardInterrupt

        from circuits.features.training import Recipe

        dictionary = create("topk", d_in=32, n_features=64, k=4, site="mlp_out1")
        return train(
            dictionary, buffer, steps=25, lr=1e-2, checkpoint=checkpoint, progress=progress,
            recipe=Recipe(checkpoint_every=4),
        )  # fmt: skip

    whole = go(None)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "file", 14)
    resumed = go(tmp_path / "file")
    assert torch.equal(whole.dictionary.W_dec, resumed.dictionary.W_dec)
    assert whole.history == resumed.history
    assert whole.last.squared_error < whole.history[0].squared_error


def test_a_half_precision_model_is_stored_as_it_is(tmp_path):
    half = tiny.model("gpt2", dtype=torch.bfloat16)
    buffer = ActivationBuffer(half, prompts(), "mlp_out0", batch=100, folder=tmp_path)
    (batch,) = list(buffer)
    assert batch.dtype == torch.bfloat16
    assert batch.shape == (prompts().n_tokens, 32)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch": 0}, "batch"),
        ({"budget": 1500}, r"budget of at least [\d,]+ bytes"),
        ({"site": "mlp_out7"}, "layer"),
        ({"target": "z0"}, "one vector per token"),
    ],
)
def test_buffers_that_cannot_be_are_refused(options, said, model):
    with pytest.raises(InvalidOption, match=said):
        ActivationBuffer(model, prompts(), **({"site": "mlp_out0"} | options))


def test_a_folder_that_cannot_be_made_is_said(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteFailed, match="folder"):
        ActivationBuffer(model, prompts(), "mlp_out0", folder=tmp_path / "file")


def test_rows_at_hand_are_shuffled_alike():
    rows = torch.arange(20.0)[:, None]
    batches = ShuffledRows(rows, 2 * rows, batch=6, seed=3)
    epoch = list(batches)
    assert len(epoch) == len(batches) == 3
    assert all(torch.equal(2 * x, y) for x, y in epoch)
    assert len({float(v) for x, _ in epoch for v in x}) == 18
    stream = batches.from_step(2)
    assert torch.equal(next(stream)[0], epoch[2][0])
    assert not torch.equal(next(stream)[0], epoch[0][0]), "another order in the second epoch"
    for options, said in (({"batch": 21}, "batch of 1 to 20"), ({"batch": 2, "target": rows[:3]}, "target")):
        with pytest.raises(InvalidOption, match=said):
            ShuffledRows(rows, **options)
