"""SCR and TPP on activations whose features are known: what erasing them must do is worked out beforehand."""

from __future__ import annotations

import pytest
import torch

from circuits.features import create
from circuits.features.concept_erasure import (
    Pooled,
    TwoLabels,
    pooled,
    spurious_correlation_removal,
    targeted_probe_perturbation,
    worth,
)
from circuits.features.probing import Probe, fit
from patching.errors import InvalidOption

WIDTH = 6


def signs(labels):
    return labels.float() * 2 - 1


def planted(rows: int, *, biased: bool, seed: int, mixed: bool = False) -> TwoLabels:
    """x = ±1 e0 (intended) ± 3 e1 (spurious) and noise elsewhere; ReLU features ±e_i, or two that mix both labels."""
    generator = torch.Generator().manual_seed(seed)
    intended = torch.arange(rows) % 2 == 0
    spurious = intended if biased else torch.arange(rows) % 4 < 2
    x = torch.zeros(rows, WIDTH)
    x[:, 0], x[:, 1] = signs(intended), 3 * signs(spurious)
    x[:, 2:] = 0.1 * torch.randn(rows, WIDTH - 2, generator=generator)
    return TwoLabels(pooled(signed(mixed=mixed), x), intended, spurious)


def signed(*, mixed: bool = False):
    """Twelve features, plus and minus each direction; ``mixed`` turns the first two directions by 45 degrees."""
    turn = torch.eye(WIDTH)
    if mixed:
        turn[:2, :2] = torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / 2**0.5
    dictionary = create("relu", d_in=WIDTH, n_features=2 * WIDTH)
    with torch.no_grad():
        dictionary.W_dec.copy_(torch.cat((turn, -turn)))
        dictionary.W_enc.copy_(dictionary.W_dec.T)
    return dictionary


def data(*, mixed: bool = False):
    return (
        planted(200, biased=True, seed=0, mixed=mixed),
        planted(200, biased=False, seed=1, mixed=mixed),
        planted(400, biased=False, seed=2, mixed=mixed),
    )


def test_scr_of_a_perfect_dictionary_is_one():
    """The biased probe follows the spurious label: 50 %. Without features 1 and 7 nothing but the intended is left."""
    found = spurious_correlation_removal(*data(), counts=(0, 1, 2, 50))
    assert found.erased == "spurious"
    assert (found.before, found.best) == (0.5, 1.0)
    assert set(found.latents[:2].tolist()) == {1, 1 + WIDTH}
    assert found.scores[0] == 0.0
    assert found.scores[2] == 1.0
    assert found.accuracies[2] == 1.0
    assert found.accuracies[3] == 1.0  # the intended label's features have no effect on the other: never erased
    assert "spurious features erased" in str(found)
    assert found.to_frame()["score"].tolist() == list(found.scores)


def test_scr_of_a_dictionary_that_mixes_the_labels_is_low():
    found = spurious_correlation_removal(*data(mixed=True), counts=(2, 4))
    assert max(found.scores) <= 0.5


def test_scr_erases_the_side_that_the_probe_prefers():
    """With the labels' strengths exchanged, the biased probe follows the intended label, which is erased instead."""
    biased, balanced, test = (part.swapped() for part in data())
    found = spurious_correlation_removal(biased, balanced, test, counts=(2,))
    assert found.erased == "intended"
    assert found.scores == (1.0,)


def test_scr_with_nothing_to_regain_is_zero():
    same = [TwoLabels(part.data, part.intended, part.intended) for part in data()[:1]]
    balanced = data()[1]
    with pytest.raises(InvalidOption, match="balanced ones"):
        spurious_correlation_removal(same[0], same[0], balanced)
    with pytest.raises(InvalidOption, match="numbers of features"):
        spurious_correlation_removal(same[0], balanced, balanced, counts=())


def classes(rows: int, seed: int, *, shared: bool):
    """Three classes, each with a direction and feature of its own, or all written by one feature."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % 3
    x = torch.zeros(rows, WIDTH)
    x[torch.arange(rows), labels] = 2.0
    x[:, 3:] = 0.1 * torch.randn(rows, 3, generator=generator)
    features = torch.zeros(rows, 4)
    rows_of = torch.zeros(4, WIDTH)
    if shared:  # feature 0 carries a common shift of all three directions
        features[:, 0], rows_of[0, :3] = 1.0 + labels, torch.tensor([1.0, 1.0, 1.0])
    else:
        features[torch.arange(rows), labels] = 2.0
        rows_of[:3, :3] = torch.eye(3)
    return Pooled(x.double(), features.double(), rows_of.double()), labels


def test_tpp_of_features_of_one_class_each():
    """Erased, a class looks like none of the three: its own probe falls to chance, the others lose nothing."""
    train, labels = classes(300, 0, shared=False)
    test, truth = classes(150, 1, shared=False)
    found = targeted_probe_perturbation(train, labels, test, truth, counts=(0, 1))
    assert found.before == 1.0
    assert found.latents[:, 0].tolist() == [0, 1, 2]
    assert found.scores[0] == 0.0
    assert found.scores[1] == pytest.approx(0.5)
    assert found.accuracies == pytest.approx((0.0, 0.5))


def test_tpp_of_a_feature_that_all_classes_share_is_low():
    train, labels = classes(300, 0, shared=True)
    test, truth = classes(150, 1, shared=True)
    found = targeted_probe_perturbation(train, labels, test, truth, counts=(1,))
    assert found.scores[0] < 0.2
    with pytest.raises(InvalidOption, match="two classes"):
        targeted_probe_perturbation(train, labels * 0, test, truth)


def test_erasing_is_decoding_without_and_the_error_term_stays():
    """Against the definition token by token: decode(f with zeros) + error, then the mean over tokens that count."""
    dictionary = create("topk", d_in=WIDTH, n_features=10, k=3, rescale=True, seed=4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        dictionary.W_dec.mul_(torch.rand(10, 1, generator=generator) + 0.5)
    x = torch.randn(5, 4, WIDTH, generator=generator)
    keep = torch.arange(4) < torch.tensor([4, 3, 1, 2, 4])[:, None]
    found = pooled(dictionary, x, keep=keep, batch=2)
    latents = torch.tensor([2, 5, 7])
    features = dictionary.encode(x)
    zeroed = features.clone()
    zeroed[..., latents] = 0
    changed = dictionary.decode(zeroed) + (x - dictionary.decode(features))
    expected = torch.stack([row[mask].mean(0) for row, mask in zip(changed, keep, strict=True)])
    assert torch.allclose(found.without(latents), expected.double(), atol=1e-5)
    assert torch.allclose(found.without(latents[:0]), found.x)


def test_worth_adds_up_to_the_probes_difference():
    """Of a dictionary without error, what all features are worth is the difference of the classes' mean logits."""
    part = planted(200, biased=False, seed=3)
    probe = fit(part.data.x, part.spurious)
    logits = probe.logits(part.data.x)
    difference = logits[part.spurious].mean() - logits[~part.spurious].mean()
    assert float(worth(probe, part.data, part.spurious).sum()) == pytest.approx(float(difference), rel=1e-6)
    assert isinstance(probe, Probe)


def test_bad_pooling():
    with pytest.raises(InvalidOption, match="transcoder"):
        pooled(create("transcoder", d_in=2, n_features=2), torch.zeros(3, 2))
    with pytest.raises(InvalidOption, match="at least one for each"):
        pooled(signed(), torch.zeros(2, 3, WIDTH), keep=torch.tensor([[True] * 3, [False] * 3]))
    with pytest.raises(InvalidOption, match="a label for each"):
        TwoLabels(pooled(signed(), torch.zeros(2, WIDTH)), torch.ones(3).bool(), torch.ones(2).bool())
