"""Cross-entropy and KL recovered: identities, the model's own logits, and an independent forward by hooks on tokens."""

from __future__ import annotations

import math

import pytest
import torch

from circuits.features import create
from circuits.features.activations import Prompts
from circuits.features.loss_recovered import Recovered, measure
from patching.errors import InvalidOption
from patching.lens import LensModel
from tests import tiny

SITES = ("resid_pre0", "attn_out0", "mlp_out0", "resid_post0", "attn_out1", "mlp_out1", "resid_post1")
TOKENS = torch.randint(0, tiny.VOCAB, (5, tiny.LENGTH), generator=torch.Generator().manual_seed(3))
LENGTHS = torch.tensor([7, 5, 6, 2, 7])
PROMPTS = Prompts.from_tokens(TOKENS, lengths=LENGTHS)


def identity(site: str, width: int = 32):
    return create("identity", d_in=width, n_features=width, site=site, dtype=torch.float64)


def constant(site: str, value: float = 0.0, width: int = 32):
    """A dictionary that says the same of everything."""
    dictionary = create("relu", d_in=width, n_features=3, site=site, dtype=torch.float64)
    with torch.no_grad():
        dictionary.W_enc.zero_()
        dictionary.b_dec.fill_(value)
    return dictionary


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_identity_recovers_all_and_zeros_nothing(family, site):
    model = tiny.model(family)
    found = measure(model, identity(site), PROMPTS)
    for share in (found.loss_recovered, found.loss_recovered_mean, found.kl_recovered, found.kl_recovered_mean):
        assert share == pytest.approx(1.0, abs=1e-12)
    nothing = measure(model, constant(site), PROMPTS)
    assert nothing.dictionary == nothing.zero
    assert nothing.loss_recovered == 0.0
    assert nothing.kl_recovered == 0.0


def test_the_clean_loss_is_the_models_own():
    model = tiny.model("gpt2")
    found = measure(model, identity("mlp_out0"), PROMPTS)
    log_probs = torch.log_softmax(model.logits(TOKENS).double(), dim=-1)
    losses = [
        -float(log_probs[row, place, TOKENS[row, place + 1]])
        for row, length in enumerate(LENGTHS.tolist())
        for place in range(length - 1)
    ]
    assert found.tokens == len(losses) == 22
    assert found.clean == pytest.approx(sum(losses) / len(losses), rel=1e-9)


def test_replacing_the_last_residual_by_hand():
    """At the last residual what follows is the readout alone, so every number can be had without a run."""
    model = tiny.model("gpt2")
    found = measure(model, constant("resid_post1", 0.5), PROMPTS)
    keep = PROMPTS.keep[:, :-1] & PROMPTS.keep[:, 1:]
    clean = torch.log_softmax(model.logits(TOKENS).double(), dim=-1)[:, :-1][keep]
    said = torch.log_softmax(model.readout.logits(torch.full((32,), 0.5, dtype=torch.float64)), dim=-1)
    zero = torch.log_softmax(model.readout.logits(torch.zeros(32, dtype=torch.float64)), dim=-1)
    following = TOKENS[:, 1:][keep]
    assert found.dictionary == pytest.approx(-float(said[following].mean()), rel=1e-9)
    assert found.zero == pytest.approx(-float(zero[following].mean()), rel=1e-9)
    assert found.kl_dictionary == pytest.approx(float((clean.exp() * (clean - said)).sum(-1).mean()), rel=1e-9)


def test_the_mean_is_over_tokens_that_count():
    """A dictionary that says the mean recovers nothing against the mean."""
    from circuits.features.activations import collect

    model = tiny.model("llama")
    dictionary = constant("attn_out1")
    with torch.no_grad():
        dictionary.b_dec.copy_(collect(model, PROMPTS, ["attn_out1"])["attn_out1"].mean(0))
    found = measure(model, dictionary, PROMPTS)
    assert found.dictionary == pytest.approx(found.mean, rel=1e-9)
    assert found.loss_recovered_mean == pytest.approx(0.0, abs=1e-8)
    assert found.kl_recovered_mean == pytest.approx(0.0, abs=1e-8)


def test_padding_and_chunks_do_not_matter():
    model = tiny.model("gpt2")
    dictionary = create("relu", d_in=32, n_features=48, site="mlp_out0", dtype=torch.float64, seed=1)
    whole = measure(model, dictionary, PROMPTS)
    small = measure(model, dictionary, PROMPTS, memory=1)
    other = Prompts(torch.where(PROMPTS.keep, PROMPTS.tokens, 17), PROMPTS.keep)
    padded = measure(model, dictionary, other)
    for name in ("dictionary", "zero", "mean", "kl_dictionary", "kl_zero", "kl_mean"):
        assert getattr(small, name) == pytest.approx(getattr(whole, name), rel=1e-9)
        assert getattr(padded, name) == pytest.approx(getattr(whole, name), rel=1e-9)


def test_bos_is_never_replaced():
    """With zeros at every other token, what BOS carries still reaches them: the loss is not that of all zeros."""
    model = tiny.model("gpt2")
    rows = Prompts(TOKENS, PROMPTS.keep & (torch.arange(tiny.LENGTH) > 0))
    kept, gone = measure(model, constant("resid_pre0"), rows), measure(model, constant("resid_pre0"), PROMPTS)
    assert kept.tokens == gone.tokens - 5
    assert abs(kept.zero - gone.zero) > 1e-3


def test_a_task_counts_its_answers():
    model, task = tiny.model("gpt2"), tiny.task(n=3, prefix=1)
    found = measure(model, identity("mlp_out0"), task)
    assert found.tokens == int(task.positions.sum()) + 3


def test_the_models_own_mlp_is_its_transcoder():
    relu = LensModel.wrap(tiny.native(act_fn="relu", attn_only=False, d_mlp=48), name="relu")
    mlp = relu.blocks[1].mlp
    assert mlp is not None
    width = mlp.w_in.shape[0]
    exact = create("transcoder", d_in=relu.d_model, n_features=width, site="mlp_out1", dtype=torch.float64)
    norm = relu.blocks[1].mlp_norm
    x = torch.randn(4, relu.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    bias = mlp.write(torch.zeros(1, width, dtype=torch.float64))[0]
    with torch.no_grad():
        exact.W_dec.copy_(mlp.write(torch.eye(width, dtype=torch.float64)) - bias)
        exact.b_dec.copy_(bias)
        exact.W_enc.copy_(mlp.w_in.T)
        exact.b_enc.copy_(mlp.b_in)
    assert torch.allclose(exact.reconstruct(norm(x)), mlp.write(mlp.hidden(norm(x))))
    found = measure(relu, exact, TOKENS % relu.d_vocab)
    assert found.loss_recovered == pytest.approx(1.0, abs=1e-9)
    assert found.kl_dictionary == pytest.approx(0.0, abs=1e-12)


def test_no_difference_is_nan():
    same = Recovered(3, 1.0, 1.5, 1.0 + 1e-7, 2.0, 0.5, 1e-7, 1.0)
    assert math.isnan(same.loss_recovered)
    assert math.isnan(same.kl_recovered)
    assert same.loss_recovered_mean == 0.5
    assert same.to_dict()["predictions"] == 3
    assert dict(same.rows())["loss recovered (mean)"] == "0.5000"


def test_bad_input():
    model = tiny.model("gpt2")
    with pytest.raises(InvalidOption, match="width"):
        measure(model, identity("mlp_out0", width=5), PROMPTS)
    with pytest.raises(InvalidOption, match="next token"):
        measure(model, identity("mlp_out0"), TOKENS[:, :1])
