"""Generated text: against the model's own logits, by hand on the toy, and the same for a seed."""

from __future__ import annotations

import pytest
import torch

from circuits.features import create
from circuits.features.generation import _chosen, compare, generate
from circuits.features.steering import add, clamp, scale
from patching import LensModel, toy
from patching.errors import InvalidOption, InvalidTask
from tests import tiny
from tests.leftovers import traces

PROMPT = "When Mary and John went to the store, John gave a drink to"


def identity(site="attn_out0", width=4):
    return create("identity", d_in=width, n_features=width, site=site, dtype=torch.float64)


@pytest.fixture(scope="module")
def ioi():
    return LensModel.load("zoo:ioi")


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "gemma2", "gpt_neo", "native_llama"])
def test_greedy_text_is_the_argmax_of_the_models_own_logits(family):
    model = tiny.model(family)
    prompt = tiny.task().clean[0]
    written = generate(model, prompt, n=6, stop=())
    tokens = prompt.tolist()
    for token, score in zip(written.tokens, written.log_probabilities, strict=True):
        scores = model.logits(torch.tensor([tokens]))[0, -1].double().log_softmax(-1)
        assert token == int(scores.argmax())
        assert score == pytest.approx(float(scores[token]), abs=1e-6)
        tokens.append(token)
    assert written.log_probability == pytest.approx(sum(written.log_probabilities))


def test_the_toy_by_hand():
    """After "0 1" the logits are (0, 1, 2.5, 0), as the module says; 3 more along e3 makes that one 3."""
    plain = generate(toy.model(), torch.tensor([0, 1]), n=1)
    assert plain.tokens == (2,)
    total = torch.tensor([0.0, 1.0, 2.5, 0.0]).exp().sum()
    assert plain.log_probabilities[0] == pytest.approx(2.5 - float(total.log()))
    steered = generate(toy.model(), torch.tensor([0, 1]), edits=[add("a0.f3", 3.0)], dictionaries=[identity()], n=1)
    assert steered.tokens == (3,)
    tie = generate(toy.model(), torch.tensor([0, 1]), edits=[clamp(2, 1.0)], dictionaries=[identity()], n=1)
    assert tie.tokens == (1,)


def test_the_generated_tokens_are_edited_too():
    model = toy.model()
    options = {"dictionaries": [identity()], "n": 2, "stop": ()}
    everywhere = generate(model, torch.tensor([0, 1]), edits=[clamp("a0.f3", 9.0)], **options)
    only_prompt = generate(model, torch.tensor([0, 1]), edits=[clamp("a0.f3", 9.0, positions=slice(0, 2))], **options)
    assert everywhere.tokens == (3, 3)
    assert only_prompt.tokens[0] == 3
    assert only_prompt.tokens[1] != 3 or only_prompt.log_probabilities[1] < everywhere.log_probabilities[1] - 1


def test_sampling_follows_the_distribution_and_the_seed():
    logits = torch.tensor([0.0, 1.0, 2.0, -torch.inf], dtype=torch.float64)
    draws = (torch.arange(3000, dtype=torch.float64) + 0.5) / 3000
    for temperature, top_k in ((1.0, None), (0.5, None), (2.0, 2)):
        scaled = logits / temperature
        if top_k:
            scaled = scaled.masked_fill(logits < logits.topk(top_k).values[-1], -torch.inf)
        want = scaled.softmax(-1)
        chosen = torch.tensor([_chosen(logits, temperature, top_k, draw) for draw in draws])
        got = torch.bincount(chosen, minlength=4) / len(draws)
        assert torch.allclose(got.double(), want, atol=1e-3)  # a draw in each of 3,000 equal parts of the unit interval
    model, prompt = tiny.model("gpt2"), tiny.task().clean[0]
    texts = [generate(model, prompt, n=8, temperature=3.0, seed=seed, stop=()).tokens for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_edits_that_do_nothing_leave_sampled_text_the_same():
    model, prompt = tiny.model("gpt2"), tiny.task().clean[0]
    seen = compare(
        model,
        prompt,
        edits=[scale("r0.f3", 1.0)],
        dictionaries=[identity("resid_post0", 32)],
        n=8,
        temperature=2.0,
        stop=(),
    )
    assert seen.before == seen.after
    assert seen.before_under_edits == pytest.approx(seen.before.log_probabilities, abs=1e-9)
    assert all(old == pytest.approx(new) for _, old, new in seen.next_tokens)


def test_text_ends_at_the_end_of_text(ioi):
    written = generate(ioi, PROMPT, n=10)
    assert written.text.startswith("Mary")
    assert written.tokens[-1] == ioi.tokenizer.eos_token_id
    assert len(written.tokens) < 10
    assert ioi.tokenizer.eos_token_id not in written.tokens[:-1]


def test_a_comparison_scores_each_text_in_the_other_run(ioi):
    """Pushing the final residual along W_U[John] - W_U[Mary] makes the model say John."""
    mary, john = (ioi.tokenizer(f" {name}", add_special_tokens=False)["input_ids"][0] for name in ("Mary", "John"))
    dictionary = create("relu", d_in=64, n_features=4, site="resid_post2")
    with torch.no_grad():
        dictionary.W_dec[1] = ioi.readout.unembed[:, john] - ioi.readout.unembed[:, mary]
    seen = compare(ioi, PROMPT, edits=[add("r2.f1", 30.0)], dictionaries=[dictionary], n=1, listed=2)
    assert (seen.before.text, seen.after.text) == ("Mary", "John")
    assert {token for token, _, _ in seen.next_tokens} == {" Mary", " John"}  # with their spaces
    own = ioi.logits(torch.tensor([list(seen.before.prompt)]))[0, -1].double().log_softmax(-1)
    assert seen.after_without_edits == pytest.approx([float(own[john])], abs=1e-4)
    assert seen.before_under_edits[0] < seen.before.log_probability - 1
    said = str(seen)
    assert f"prompt   {seen.before.prompt_text}" in said
    assert "without  Mary" in said
    assert "with     John" in said
    assert "next token  without     with" in said
    page = seen._repr_html_()
    assert page.count("<table>") == 2
    assert "<script" not in page


def test_hostile_text_is_escaped():
    from circuits.features.generation import Comparison, Generation

    hostile = "<img src=x onerror=1>\u202e\x00"
    text = Generation((0,), (1,), (-0.5,), hostile, hostile)
    made = Comparison(text, text, (-0.5,), (-0.5,), ((hostile, 0.5, 0.25),))
    assert "<img" not in made._repr_html_()
    assert "\u202e" not in str(made)
    assert "\x00" not in made._repr_html_()


def test_progress_counts_both_texts_and_nothing_is_left():
    model, calls = tiny.model("gpt2"), []
    before = traces(model)
    compare(
        model,
        tiny.task().clean[0],
        edits=[add(0, 1.0)],
        dictionaries=[identity("resid_post0", 32)],
        n=3,
        stop=(),
        progress=lambda done, total: calls.append((done, total)),
    )
    assert [done for done, _ in calls] == [1, 2, 3, 3, 4, 5, 6, 6]
    assert {total for _, total in calls} == {6}
    assert traces(model) == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"n": 0}, "at least one token to write"),
        ({"n": 3}, "Write at most 2"),
        ({"n": 1, "temperature": -1.0}, "expected a temperature of 0"),
        ({"n": 1, "top_k": 0}, "expected top_k"),
    ],
)
def test_bad_options_are_refused(options, sentence):
    with pytest.raises(InvalidOption) as caught:
        generate(toy.model(), torch.tensor([0, 1]), **options)
    assert sentence in str(caught.value)


def test_bad_prompts_are_refused(ioi):
    with pytest.raises(InvalidTask, match="with a tokenizer"):
        generate(toy.model(), "words", n=1)
    with pytest.raises(InvalidTask, match="at least one token"):
        generate(ioi, "", n=1)
    with pytest.raises(InvalidTask, match="at least one"):
        generate(toy.model(), torch.tensor([], dtype=torch.long), n=1)
    with pytest.raises(InvalidTask, match="token ids from 0 to 3"):
        generate(toy.model(), torch.tensor([9]), n=1)
