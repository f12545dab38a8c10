"""Top activating examples, histograms and quantiles, held against everything computed at once and sorted plainly."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.features import create
from circuits.features.activations import Prompts, read
from circuits.features.examples import collect
from circuits.features.tally import BINS, Best, Entries, Tally
from patching import toy
from patching.errors import InvalidOption, NotFinite
from tests import tiny

INTEGERS = st.lists(st.lists(st.integers(-1, 3), min_size=3, max_size=3), min_size=1, max_size=24)


def cuts_of(rows, widths):
    start = 0
    for width in widths:
        yield start, rows[start : start + width]
        start += width
        if start >= len(rows):
            return
    if start < len(rows):
        yield start, rows[start:]


@settings(deadline=None, max_examples=60)
@given(rows=INTEGERS, widths=st.lists(st.integers(1, 5), max_size=6), k=st.integers(1, 4), length=st.integers(0, 5))
def test_the_best_are_those_of_a_plain_sort_however_the_stream_is_cut(rows, widths, k, length):
    best = Best(3, k, length=length or None)
    for start, part in cuts_of(rows, widths):
        activations = torch.tensor(part, dtype=torch.float32)
        best.offer(Entries.of(activations, torch.arange(start, start + len(part))))
    for feature in range(3):
        entries = [(-row[feature], token) for token, row in enumerate(rows) if row[feature] > 0]
        entries.sort()
        if length:
            seen: set[int] = set()
            entries = [e for e in entries if not (e[1] // length in seen or seen.add(e[1] // length))]
        want = [token for _, token in entries[:k]]
        assert best.token[feature].tolist() == want + [-1] * (k - len(want))
        assert best.value[feature, : len(want)].tolist() == [-value for value, _ in entries[:k]]


@settings(deadline=None, max_examples=60)
@given(
    values=st.lists(st.floats(2**-10, 1e4, width=32), min_size=1, max_size=30),
    widths=st.lists(st.integers(1, 7), max_size=5),
)
def test_the_histogram_is_numpys_however_the_stream_is_cut(values, widths):
    rows = [[value, 0.0] for value in values]
    tally = Tally(2)
    for _, part in cuts_of(rows, widths):
        tally.add(Entries.of(torch.tensor(part, dtype=torch.float32), torch.arange(len(part))), n_tokens=len(part))
    reach = 2.0 ** int(tally.reach[0])
    assert reach / 2 <= max(values) < reach
    expected, _ = np.histogram(values, bins=BINS, range=(0.0, reach))
    assert tally.histogram[0].tolist() == expected.tolist()
    assert int(tally.histogram[1].sum()) == int(tally.active[1]) == 0
    assert float(tally.total[0]) == pytest.approx(math.fsum(values))
    assert float(tally.maximum[0]) == max(values)


def gallery_and_truth(*, n=9, memory=1 << 29, k=3, family="gpt2", **options):
    """A gallery of a random dictionary, and the activations of all tokens and features."""
    model, task = tiny.model(family), tiny.task(n=n)
    dictionary = create("relu", d_in=32, n_features=20, site="mlp_out1", seed=3, dtype=torch.float64)
    prompts = Prompts.from_task(task)
    values = read(model, prompts.tokens, ["mlp_out1"])["mlp_out1"]
    with torch.no_grad():
        dictionary.b_enc[7] = -1e9  # dead
        truth = dictionary.encode(values).masked_fill(~prompts.keep[..., None], 0.0)
    gallery = collect(model, dictionary, task, k=k, memory=memory, **options)
    return gallery, truth, prompts


@pytest.mark.parametrize("per_prompt", [True, False])
def test_top_examples_are_those_of_a_full_sort(per_prompt):
    gallery, truth, prompts = gallery_and_truth(per_prompt=per_prompt)
    for feature in range(20):
        view = gallery.feature(feature)
        own = truth[..., feature]
        cells = [(-float(own[p, t]), p, t) for p, t in (own > 0).nonzero().tolist()]
        cells.sort()
        if per_prompt:
            seen: set[int] = set()
            cells = [c for c in cells if not (c[1] in seen or seen.add(c[1]))]
        assert [(e.prompt, e.position) for e in view.top] == [(p, t) for _, p, t in cells[:3]]
        assert [e.activation for e in view.top] == pytest.approx([-value for value, _, _ in cells[:3]])
        assert view.n_active == int((own > 0).sum())
        assert view.frequency == pytest.approx(view.n_active / int(prompts.keep.sum()))
        assert view.maximum == pytest.approx(float(own.max()))
        assert view.mean == pytest.approx(float(own[own > 0].mean()) if view.n_active else 0.0)
        assert sum(view.histogram) == view.n_active
    assert gallery.dead.tolist() == [7]
    assert gallery.feature(7).top == gallery.feature(7).along == ()


def test_contexts_hold_the_activations_around():
    gallery, truth, prompts = gallery_and_truth(window=(2, 1))
    lengths = prompts.keep.sum(-1)
    for feature in range(20):
        view = gallery.feature(feature)
        for example in (*view.top, *view.along):
            start = max(0, example.position - 2)
            stop = min(example.position + 2, int(lengths[example.prompt]))
            want = truth[example.prompt, start:stop, feature].tolist()
            assert example.activations == pytest.approx(want, rel=1e-6, abs=1e-9)
            assert example.tokens == tuple(
                f"‹{token}›" for token in prompts.tokens[example.prompt, start:stop].tolist()
            )
            assert example.activations[example.at] == pytest.approx(example.activation, rel=1e-6)


def test_quantiles_are_exact_where_the_sample_holds_all():
    gallery, truth, _ = gallery_and_truth(quantiles=(0.0, 0.5, 1.0), sample=100)
    for feature in range(20):
        own = truth[..., feature]
        values = sorted(own[own > 0].tolist())
        if not values:
            continue
        along = gallery.feature(feature).along
        want = [values[0], values[math.floor((len(values) - 1) * 0.5 + 0.5)], values[-1]]
        assert [each.activation for each in along] == pytest.approx(want)
        assert [each.quantile for each in along] == [0.0, 0.5, 1.0]


def test_a_small_sample_estimates_quantiles_without_bias():
    """Over seeds, the middle of five draws without replacement is on average the middle of all."""
    model, dictionary = (
        tiny.model("gpt2"),
        create("identity", d_in=32, n_features=32, site="mlp_out0", dtype=torch.float64),
    )
    tokens = torch.randint(0, 50, (8, 7), generator=torch.Generator().manual_seed(1))
    values = read(model, tokens, ["mlp_out0"])["mlp_out0"].reshape(-1, 32)
    feature = int((values > 0).sum(0).argmax())
    ranked = sorted(values[values[:, feature] > 0, feature].tolist())
    ranks = []
    for seed in range(40):
        gallery = collect(
            model, dictionary, tokens, quantiles=(0.5,), sample=5, seed=seed, k=1, n_logits=1, n_neighbours=1
        )
        ranks.append(
            min(range(len(ranked)), key=lambda r: abs(ranked[r] - gallery.feature(feature).along[0].activation))
        )
    middle, spread = (len(ranked) - 1) / 2, np.std(ranks) / math.sqrt(40)
    assert len(set(ranks)) > 5
    assert abs(np.mean(ranks) - middle) < 3.5 * spread


@pytest.mark.parametrize("memory", [1, 20_000, 1 << 29])
def test_nothing_depends_on_the_budget(memory):
    gallery, *_ = gallery_and_truth(memory=memory)
    whole, *_ = gallery_and_truth()
    assert torch.equal(gallery.top.token, whole.top.token)
    assert torch.equal(gallery.along.token, whole.along.token)
    assert torch.equal(gallery.tally.histogram, whole.tally.histogram)
    assert torch.allclose(gallery.top.around, whole.top.around, rtol=1e-6, atol=1e-9)
    assert torch.equal(gallery.raised.places, whole.raised.places)
    assert torch.equal(gallery.alike.places, whole.alike.places)


def test_activations_of_all_tokens_are_never_held():
    """With a budget of a few rows, no piece of the stream has more."""
    from circuits.features.examples import _Stream
    from circuits.features.reading import place_of

    model, dictionary = (
        tiny.model("gpt2"),
        create("relu", d_in=32, n_features=512, site="mlp_out1", dtype=torch.float64),
    )
    budget = 2 * 6 * 512 * 8 * 5
    stream = _Stream(model, dictionary, Prompts.from_task(tiny.task(n=12)), place_of(dictionary, model), budget)
    sizes = [len(activations) for _, activations, _ in stream]
    assert max(sizes) <= 5
    assert sum(sizes) == int(Prompts.from_task(tiny.task(n=12)).keep.sum())


def test_ties_go_to_the_earlier_token():
    model = toy.model()
    dictionary = create("identity", d_in=4, n_features=4, site="resid_pre0", dtype=torch.float64)
    tokens = torch.tensor([[0, 1], [1, 0], [0, 0]])
    top = collect(model, dictionary, tokens, k=4, per_prompt=False).feature(0).top
    assert [(each.prompt, each.position) for each in top] == [(0, 0), (1, 1), (2, 0), (2, 1)]


def test_bos_is_shown_and_not_counted():
    import dataclasses

    task = dataclasses.replace(toy.task(), starts_with_bos=True)
    dictionary = create("identity", d_in=4, n_features=4, site="resid_pre0", dtype=torch.float64)
    gallery = collect(toy.model(), dictionary, task)
    assert gallery.tally.n_tokens == 4
    example = gallery.feature(1).top[0]
    assert (example.position, example.tokens, example.activations) == (1, ("‹0›", "‹1›"), (0.0, 1.0))


def test_transcoders_read_what_the_mlp_reads():
    model = tiny.model("llama")
    dictionary = create("transcoder", d_in=32, n_features=16, site="mlp_out1", seed=1, dtype=torch.float64)
    with torch.no_grad():
        dictionary.W_enc.copy_(torch.randn(32, 16, generator=torch.Generator().manual_seed(0)))
    tokens = tiny.task().clean
    gallery = collect(model, dictionary, tokens)
    values = dictionary.encode(read(model, tokens, ["mlp_in1"])["mlp_in1"]).detach()
    assert float(gallery.tally.maximum.max()) == pytest.approx(float(values.max()))
    assert int(gallery.tally.active.sum()) == int((values > 0).sum())


def test_progress_reaches_the_end():
    calls = []
    collect(
        toy.model(),
        create("identity", d_in=4, n_features=4, site="attn_out0"),
        toy.task(),
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == sorted(calls)
    assert calls[-1] == (8, 8)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"k": 0}, "expected k to be a whole number, 1 or more; got 0"),
        ({"quantiles": (1.5,)}, "expected quantiles from 0 to 1"),
        ({"window": (-1, 2)}, "expected window to be a whole number"),
        ({"site": "z0"}, "one vector per token"),
        ({"site": "mlp_out0"}, "it has no MLP"),
        ({"site": "attn_out1"}, "expected a layer from 0 to 0"),
        ({"site": "nowhere"}, "expected a site as KIND and LAYER"),
    ],
)
def test_bad_options_are_refused(options, sentence):
    dictionary = create("identity", d_in=4, n_features=4, site="attn_out0")
    with pytest.raises(InvalidOption) as caught:
        collect(toy.model(), dictionary, toy.task(), **options)
    assert sentence in str(caught.value)


def test_a_dictionary_that_does_not_fit_is_refused():
    with pytest.raises(InvalidOption, match="expected a dictionary of width 4"):
        collect(toy.model(), create("relu", d_in=8, n_features=4, site="attn_out0"), toy.task())
    with pytest.raises(InvalidOption, match="knows its site"):
        collect(toy.model(), create("relu", d_in=4, n_features=4), toy.task())
    broken = create("relu", d_in=4, n_features=4, site="attn_out0")
    with torch.no_grad():
        broken.W_enc[0, 0] = torch.nan
    with pytest.raises(InvalidOption, match="W_enc of the dictionary at attn_out0 has NaN"):
        collect(toy.model(), broken, toy.task())
    huge = create("relu", d_in=4, n_features=4, site="attn_out0")
    with torch.no_grad():
        huge.W_enc.fill_(3e38)
    with pytest.raises(NotFinite, match="became NaN or infinite"):
        collect(toy.model(), huge, toy.task())
    with pytest.raises(InvalidOption, match="expected a feature from 0 to 3"):
        collect(toy.model(), create("identity", d_in=4, n_features=4, site="attn_out0"), toy.task()).feature(4)
