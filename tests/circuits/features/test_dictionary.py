"""Dictionaries against their formulas, written out in numpy, and the identities that they must satisfy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.features.architectures import BatchTopK, Identity, Matryoshka, Tied, TopK, jump, top
from circuits.features.dictionary import Dictionary, create
from circuits.features.transcoders import SkipTranscoder, Transcoder
from patching.errors import InvalidOption

D_IN, D_OUT, FEATURES = 6, 4, 10
CASES = {
    "relu": {},
    "relu centred": {"subtract_b_dec": True},
    "topk": {"k": 4},
    "topk rescaled": {"k": 4, "rescale": True},
    "batchtopk": {"k": 2.5},
    "matryoshka": {"k": 3, "prefixes": (2, 5, 10)},
    "gated": {},
    "jumprelu": {"threshold": 0.2},
    "transcoder": {"d_out": D_OUT},
    "transcoder jumprelu": {"d_out": D_OUT, "threshold": 0.2},
    "transcoder topk": {"d_out": D_OUT, "k": 4},
    "skip_transcoder": {"d_out": D_OUT},
    "skip_transcoder jumprelu": {"d_out": D_OUT, "threshold": 0.2},
    "identity": {},
    "tied": {},
}
SPARSE = [name for name in CASES if name != "identity"]
SELF = [name for name in CASES if "transcoder" not in name]


def trained(name, *, seed=0, dtype=torch.float64, **shape) -> Dictionary:
    """A dictionary whose every weight has left its start, thresholds included."""
    architecture = name.split()[0]
    shape = {"d_in": D_IN, "n_features": D_IN if architecture == "identity" else FEATURES, **CASES[name], **shape}
    made = create(architecture, seed=seed, dtype=dtype, **shape)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for key, value in (*made.named_parameters(), *made.named_buffers()):
            if key == "threshold":
                value.copy_(torch.rand(value.shape, generator=generator) / 2)
            elif (architecture, key) != ("tied", "b_dec"):
                value.add_(torch.randn(value.shape, generator=generator) / 3)
    return made


def rows(count=7, *, seed=2, dtype=torch.float64):
    return torch.randn(count, D_IN, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ---------------------------------------------------------------------------------------------------- the formulas


def numpy_features(dictionary, row):
    """The features of one row, feature by feature, from the definitions."""
    weights = {key: value.detach().numpy() for key, value in dictionary.state_dict().items()}
    if dictionary.architecture == "identity":
        return row.copy()
    x = row - weights["b_dec"] if dictionary.subtract_b_dec else row
    encoder = weights["W_dec"].T if dictionary.architecture == "tied" else weights["W_enc"]
    bias = weights["b_gate"] if dictionary.architecture == "gated" else weights["b_enc"]
    along = [sum(x[i] * encoder[i, j] for i in range(D_IN)) for j in range(FEATURES)]
    z = [along[j] + bias[j] for j in range(FEATURES)]
    if dictionary.architecture == "gated":
        strength = [along[j] * np.exp(weights["r_mag"][j]) + weights["b_mag"][j] for j in range(FEATURES)]
        return np.array([strength[j] if z[j] > 0 and strength[j] > 0 else 0.0 for j in range(FEATURES)])
    if getattr(dictionary, "rescale", False):
        z = [z[j] * np.sqrt((weights["W_dec"][j] ** 2).sum()) for j in range(FEATURES)]
    if isinstance(dictionary, TopK | Transcoder) and dictionary.k is not None:
        allowed = sorted(range(FEATURES), key=lambda j: z[j], reverse=True)[: dictionary.k]
        return np.array([max(z[j], 0.0) if j in allowed else 0.0 for j in range(FEATURES)])
    threshold = weights.get("threshold", np.zeros(FEATURES))
    return np.array([z[j] if z[j] > threshold[j] else 0.0 for j in range(FEATURES)])


def numpy_reconstruction(dictionary, features, row):
    weights = {key: value.detach().numpy() for key, value in dictionary.state_dict().items()}
    if dictionary.architecture == "identity":
        return features
    total = weights["b_dec"].copy()
    for j, feature in enumerate(features):
        length = np.sqrt((weights["W_dec"][j] ** 2).sum()) if getattr(dictionary, "rescale", False) else 1.0
        total = total + feature / length * weights["W_dec"][j]
    return total + weights["W_skip"] @ row if "W_skip" in weights else total


@pytest.mark.parametrize("name", CASES)
def test_encode_and_decode_are_their_formulas(name):
    dictionary, x = trained(name), rows()
    found = dictionary.encode(x).detach().numpy()
    for row, features in zip(x.numpy(), found, strict=True):
        np.testing.assert_allclose(features, numpy_features(dictionary, row), atol=1e-13)
        expected = numpy_reconstruction(dictionary, features, row)
        given_x = torch.tensor(row)
        np.testing.assert_allclose(dictionary.decode(torch.tensor(features), given_x).detach(), expected, atol=1e-13)
    assert (found == 0).any() or name == "identity"


def test_by_hand():
    dictionary = create("relu", d_in=2, n_features=3, subtract_b_dec=True)
    with torch.no_grad():
        dictionary.W_enc.copy_(torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, -1.0]]))
        dictionary.b_enc.copy_(torch.tensor([0.0, -1.0, 0.0]))
        dictionary.W_dec.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]))
        dictionary.b_dec.copy_(torch.tensor([1.0, 1.0]))
    x = torch.tensor([3.0, 5.0])  # centred: 2, 4; z = 2, 3, -2
    assert dictionary.encode(x).tolist() == [2.0, 3.0, 0.0]
    assert dictionary.reconstruct(x).tolist() == [3.0, 4.0]
    assert dictionary.error(x).tolist() == [0.0, 1.0]


def test_at_the_threshold_a_feature_is_off():
    z = torch.tensor([0.5, 0.5000001, 0.25, -1.0])
    assert jump(z, torch.tensor([0.5, 0.5, 0.0, -2.0])).tolist() == pytest.approx([0.0, 0.5000001, 0.25, 0.0])


def test_top_k_may_keep_fewer():
    assert top(torch.tensor([-1.0, 2.0, -3.0, -4.0]), 3).tolist() == [0.0, 2.0, 0.0, 0.0]
    assert top(torch.tensor([-1.0, 2.0, -3.0, -4.0]), 3, rectify=False).tolist() == [-1.0, 2.0, -3.0, 0.0]


def test_gated_features_from_pre_activations():
    dictionary, x = trained("gated"), rows()
    torch.testing.assert_close(dictionary.activate(dictionary.pre_activations(x)), dictionary.encode(x))


# ------------------------------------------------------------------------------------------------------ identities


@pytest.mark.parametrize("name", CASES)
def test_a_row_does_not_depend_on_the_others(name):
    dictionary, x = trained(name), rows()
    together = dictionary.encode(x)
    for index in range(len(x)):
        alone = dictionary.encode(x[index])
        torch.testing.assert_close(together[index], alone, rtol=0, atol=1e-14)
        assert torch.equal(together[index] == 0, alone == 0)
    torch.testing.assert_close(dictionary.encode(x[:6].reshape(2, 3, D_IN)).reshape(6, -1), together[:6])


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), name=st.sampled_from(SELF), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_features_and_error_make_x(seed, name, scale):
    dictionary = trained(name, seed=seed, dtype=torch.float32)
    x = scale * rows(3, seed=seed, dtype=torch.float32)
    features = dictionary.encode(x)
    whole = dictionary.decode(features, x) + dictionary.error(x)
    size = torch.maximum(x.abs(), dictionary.reconstruct(x).abs())
    assert bool(((whole - x).abs() <= 2**-23 * size).all())  # one rounding of the difference, one of the sum
    in_double = dictionary.reconstruct(x).double() + dictionary.error(x.double())
    assert torch.equal(in_double.float(), x)
    assert bool((features >= 0).all()) or name == "identity"


def test_the_error_of_a_transcoder_needs_its_target():
    dictionary, x = trained("transcoder"), rows()
    target = torch.ones(len(x), D_OUT, dtype=torch.float64)
    torch.testing.assert_close(dictionary.reconstruct(x) + dictionary.error(x, target), target)
    with pytest.raises(InvalidOption, match="expected a target"):
        dictionary.error(x)


def test_an_mlp_is_its_own_transcoder():
    """W_enc = W_in and W_dec = W_out of a ReLU network: the error is 0, to the bit."""
    generator = torch.Generator().manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(D_IN, 12), torch.nn.ReLU(), torch.nn.Linear(12, D_OUT))
    dictionary = create("transcoder", d_in=D_IN, n_features=12, d_out=D_OUT)
    first, last = network[0], network[2]
    with torch.no_grad():
        for value in network.parameters():  # eighths: exact, however a product is summed
            value.copy_(torch.randint(-8, 9, value.shape, generator=generator) / 8)
        for name, value in (
            ("W_enc", first.weight.T),
            ("b_enc", first.bias),
            ("W_dec", last.weight.T),
            ("b_dec", last.bias),
        ):
            getattr(dictionary, name).copy_(value)
    x = torch.randint(-8, 9, (5, D_IN), generator=generator) / 4
    assert torch.equal(dictionary.error(x, network(x)), torch.zeros(5, D_OUT))


@pytest.mark.parametrize("name", CASES)
def test_decode_is_affine(name):
    dictionary, x = trained(name), rows()
    first, second = dictionary.encode(x), dictionary.encode(x.flip(0))
    mixed = dictionary.decode(0.3 * first + 0.7 * second, x)
    expected = 0.3 * dictionary.decode(first, x) + 0.7 * dictionary.decode(second, x)
    torch.testing.assert_close(mixed, expected)


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_of_a_feature_is_along_its_direction(name):
    dictionary, x = trained(name), rows()
    features = dictionary.encode(x).detach().requires_grad_()
    direction = torch.arange(1.0, dictionary.d_out + 1, dtype=torch.float64)
    (dictionary.decode(features, x) @ direction).sum().backward()
    expected = dictionary.W_dec.detach() @ direction
    if getattr(dictionary, "rescale", False):
        expected = expected / dictionary.decoder_norms().detach()
    assert features.grad is not None
    torch.testing.assert_close(features.grad, expected.expand_as(features))


def test_the_threshold_gets_no_gradient_from_encode():
    dictionary = trained("jumprelu")
    dictionary.encode(rows()).sum().backward()
    assert dictionary.W_enc.grad is not None
    assert bool((dictionary.W_enc.grad != 0).any())
    assert dictionary.get_parameter("threshold").grad is None


def test_identity():
    dictionary, x = create("identity", d_in=D_IN, n_features=D_IN), rows(dtype=torch.float32)
    assert list(dictionary.parameters()) == []
    assert torch.equal(dictionary.encode(x), x)
    assert torch.equal(dictionary.error(x), torch.zeros_like(x))
    assert torch.equal(dictionary.W_dec, torch.eye(D_IN))
    assert torch.equal(dictionary.decoder_norms(), torch.ones(D_IN))
    assert torch.equal(dictionary.b_enc, dictionary.b_dec)
    assert dictionary.double().dtype == torch.float64


def test_tied_directions_are_one_matrix():
    dictionary = create("tied", d_in=D_IN, n_features=FEATURES)
    assert isinstance(dictionary, Tied)
    assert dictionary.W_enc.data_ptr() == dictionary.W_dec.data_ptr()
    assert {name for name, value in dictionary.named_parameters() if value.requires_grad} == {"W_dec", "b_enc"}
    x = rows(dtype=torch.float32)
    torch.testing.assert_close(dictionary.untied().encode(x), dictionary.encode(x))


# ------------------------------------------------------------------------------------------ the same map, other weights

FOLDABLE = [name for name in CASES if name not in ("topk", "transcoder topk", "identity")]


@pytest.mark.parametrize("name", FOLDABLE)
def test_folding_the_directions_lengths(name):
    dictionary, x = trained(name), rows()
    norms = dictionary.decoder_norms().detach()
    before = {key: value.clone() for key, value in dictionary.state_dict().items()}
    folded = dictionary.fold_decoder_norm()
    torch.testing.assert_close(folded.reconstruct(x), dictionary.reconstruct(x))
    torch.testing.assert_close(folded.decoder_norms(), torch.ones_like(norms))
    assert not getattr(folded, "rescale", False)
    scaled = 1.0 if name == "topk rescaled" else norms  # those features were scaled already
    torch.testing.assert_close(folded.encode(x), dictionary.encode(x) * scaled)
    assert all(torch.equal(value, before[key]) for key, value in dictionary.state_dict().items())


@pytest.mark.parametrize("name", ["topk", "transcoder topk"])
def test_folding_would_change_which_are_the_k_largest(name):
    with pytest.raises(InvalidOption, match="largest pre-activations would be others"):
        trained(name).fold_decoder_norm()


@pytest.mark.parametrize("name", ["relu", "topk rescaled", "jumprelu", "gated", "skip_transcoder jumprelu"])
def test_a_direction_of_length_zero(name):
    dictionary, x = trained(name), rows()
    with torch.no_grad():
        dictionary.W_dec[3] = 0
    assert bool(torch.isfinite(dictionary.reconstruct(x)).all())
    folded = dictionary.fold_decoder_norm()
    torch.testing.assert_close(folded.reconstruct(x), dictionary.reconstruct(x))


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("scale", [0.25, 7.0])
def test_folding_the_scale_of_the_input(name, scale):
    dictionary, x = trained(name), rows()
    folded = dictionary.fold_input_scale(scale)
    torch.testing.assert_close(folded.reconstruct(x), dictionary.reconstruct(scale * x) / scale)
    shrunk = scale if name == "topk rescaled" else 1.0  # its features follow the directions' lengths
    torch.testing.assert_close(folded.encode(x) * shrunk, dictionary.encode(scale * x))


@pytest.mark.parametrize("name", ["transcoder", "skip_transcoder jumprelu"])
def test_folding_two_scales_of_a_transcoder(name):
    dictionary, x = trained(name), rows()
    folded = dictionary.fold_input_scale(2.0, output_scale=5.0)
    torch.testing.assert_close(folded.reconstruct(x), dictionary.reconstruct(2 * x) / 5)


@pytest.mark.parametrize("name", SPARSE)
def test_another_order_of_the_features(name):
    dictionary, x = trained(name), rows()
    order = torch.tensor([1, 0, 4, 2, 3, 9, 5, 7, 8, 6])  # within the prefixes 2, 5, 10
    permuted = dictionary.permute(order)
    torch.testing.assert_close(permuted.encode(x), dictionary.encode(x)[:, order])
    torch.testing.assert_close(permuted.reconstruct(x), dictionary.reconstruct(x))
    back = permuted.permute(order.argsort().tolist())
    assert all(torch.equal(value, dictionary.state_dict()[key]) for key, value in back.state_dict().items())


@pytest.mark.parametrize("order", [[0, 1, 2], [0] * FEATURES, list(range(1, FEATURES + 1))])
def test_an_order_names_each_feature_once(order):
    with pytest.raises(InvalidOption, match="each index from 0 to 9 once"):
        trained("relu").permute(order)


def test_features_stay_in_their_level():
    with pytest.raises(InvalidOption, match="same prefixes"):
        trained("matryoshka").permute([9, *range(1, 9), 0])


def test_an_identity_has_nothing_to_fold_or_permute():
    dictionary = trained("identity")
    assert isinstance(dictionary.fold_decoder_norm(), Identity)
    for refused in (lambda: dictionary.fold_input_scale(2.0), lambda: dictionary.permute(range(D_IN))):
        with pytest.raises(InvalidOption, match="expected a dictionary with weights"):
            refused()


@pytest.mark.parametrize("scale", [0, -1.0, float("nan"), float("inf"), True, "2"])
def test_a_scale_is_a_number_above_zero(scale):
    with pytest.raises(InvalidOption, match="finite number above 0"):
        trained("relu").fold_input_scale(scale)


def test_only_a_transcoder_has_an_output_scale():
    with pytest.raises(InvalidOption, match="expected no output_scale"):
        trained("relu").fold_input_scale(2.0, output_scale=3.0)


# ------------------------------------------------------------------------------------------------------ edge cases


@pytest.mark.parametrize("name", CASES)
def test_zero_input_and_no_rows(name):
    dictionary = trained(name)
    zero = torch.zeros(D_IN, dtype=torch.float64)
    assert bool(torch.isfinite(dictionary.reconstruct(zero)).all())
    assert dictionary.encode(zero[None][:0]).shape == (0, dictionary.n_features)


@pytest.mark.parametrize("name", SPARSE)
def test_one_feature(name):
    options = {"k": 1} if "k" in CASES[name] else {}
    options |= {"prefixes": None} if name == "matryoshka" else {}
    dictionary, x = trained(name, n_features=1, **options), rows()
    assert dictionary.encode(x).shape == (len(x), 1)
    assert dictionary.reconstruct(x).shape == (len(x), dictionary.d_out)


@pytest.mark.parametrize("name", ["relu", "jumprelu", "batchtopk", "topk"])
def test_features_that_never_fire(name):
    dictionary, x = trained(name), rows()
    with torch.no_grad():
        dictionary.b_enc.fill_(-1e6)
    assert torch.equal(dictionary.encode(x), torch.zeros(len(x), FEATURES, dtype=torch.float64))
    assert torch.equal(dictionary.reconstruct(x), dictionary.b_dec.expand(len(x), -1))


@pytest.mark.parametrize("name", ["topk", "topk rescaled", "transcoder topk"])
def test_no_row_has_more_than_k(name):
    features = trained(name).encode(rows(200))
    assert int((features != 0).sum(-1).max()) == 4


def test_inputs_take_the_type_of_the_weights():
    dictionary = trained("relu", dtype=torch.float32)
    assert dictionary.encode(rows().double()).dtype == torch.float32
    assert dictionary.error(rows().double()).dtype == torch.float64
    assert dictionary.bfloat16().encode(rows()).dtype == torch.bfloat16


def test_creation():
    first, same, other = (create("relu", d_in=D_IN, n_features=FEATURES, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.W_dec, same.W_dec)
    assert not torch.equal(first.W_dec, other.W_dec)
    assert torch.equal(first.W_enc, first.W_dec.T)
    torch.testing.assert_close(first.decoder_norms(), torch.full((FEATURES,), 0.1))
    torch.testing.assert_close(
        create("topk", d_in=D_IN, n_features=FEATURES, k=2).decoder_norms(), torch.ones(FEATURES)
    )
    transcoder = create("skip_transcoder", d_in=D_IN, n_features=FEATURES, d_out=D_OUT)
    assert isinstance(transcoder, SkipTranscoder)
    assert not transcoder.W_skip.any()
    assert not transcoder.subtract_b_dec
    torch.testing.assert_close(transcoder.W_enc.norm(dim=0), torch.ones(FEATURES))
    default = create("matryoshka", d_in=D_IN, n_features=16, k=2)
    assert isinstance(default, Matryoshka)
    assert default.prefixes == (2, 4, 8, 16)


def test_the_threshold_of_batchtopk_is_saved_state_and_not_trained():
    dictionary = create("batchtopk", d_in=D_IN, n_features=FEATURES, k=2.5)
    assert isinstance(dictionary, BatchTopK)
    assert "threshold" in dictionary.state_dict()
    assert "threshold" not in dict(dictionary.named_parameters())
    x = rows(dtype=torch.float32)
    assert torch.equal(dictionary.encode(x), dictionary.pre_activations(x).relu())
    dictionary.threshold.fill_(0.4)
    assert bool((dictionary.encode(x)[dictionary.pre_activations(x) <= 0.4] == 0).all())


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        ("sparse", {}, "expected an architecture out of relu"),
        ("topk", {}, "expected k for topk"),
        ("topk", {"k": FEATURES + 1}, "from 1 to n_features = 10; got 11"),
        ("topk", {"k": 0}, "from 1 to n_features"),
        ("topk", {"k": 2.0}, "whole number"),
        ("batchtopk", {"k": 10.5}, "up to n_features = 10"),
        ("batchtopk", {"k": float("nan")}, "expected k above 0"),
        ("batchtopk", {"k": "2"}, "expected k above 0"),
        ("matryoshka", {"k": 2, "prefixes": (2, 5)}, "rise to n_features = 10"),
        ("matryoshka", {"k": 2, "prefixes": (5, 5, 10)}, "rise to n_features = 10"),
        ("matryoshka", {"k": 2, "prefixes": (0, 10)}, "rise to n_features = 10"),
        ("matryoshka", {"k": 2, "prefixes": ()}, "rise to n_features = 10"),
        ("jumprelu", {"threshold": -0.1}, "threshold of 0 or more"),
        ("jumprelu", {"k": 3}, "expected options of jumprelu out of threshold"),
        ("relu", {"d_out": D_OUT}, "expected d_out = d_in = 6"),
        ("relu", {"site": "blocks.0.hook_mlp_out"}, "expected a site such as"),
        ("relu", {"d_in": 0}, "expected d_in to be a whole number"),
        ("relu", {"n_features": True}, "expected n_features to be a whole number"),
        ("relu", {"dtype": torch.int64}, "expected a float type"),
        ("transcoder", {"subtract_b_dec": True}, "belongs to what it writes"),
        ("transcoder", {"threshold": 0.1, "k": 2}, "not both"),
        ("transcoder", {"k": 11}, "from 1 to n_features"),
        ("identity", {}, "expected n_features = d_in = 6"),
        ("identity", {"n_features": D_IN, "subtract_b_dec": True}, "has no b_dec"),
    ],
)
def test_what_cannot_be_made(architecture, options, message):
    with pytest.raises(InvalidOption, match=message):
        create(architecture, **{"d_in": D_IN, "n_features": FEATURES, **options})


@pytest.mark.parametrize("name", CASES)
def test_another_width_is_refused(name):
    dictionary = trained(name, site="mlp_out1")
    wrong = torch.ones(3, D_IN + 1)
    with pytest.raises(InvalidOption, match=r"d_in = 6; got shape \(3, 7\).*mlp_out1"):
        dictionary.encode(wrong)
    with pytest.raises(InvalidOption, match="n_features = "):
        dictionary.decode(torch.ones(3, 99), rows(3))
    with pytest.raises(InvalidOption, match="d_in = 6"):
        dictionary.encode(torch.tensor(1.0))


def test_a_skip_needs_x():
    dictionary = trained("skip_transcoder")
    assert isinstance(dictionary, Transcoder)
    with pytest.raises(InvalidOption, match=r"give decode\(features, x\)"):
        dictionary.decode(dictionary.encode(rows()))
