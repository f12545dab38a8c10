"""Effects: statistics by hand, labels, comparison, files."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from graphs.errors import WriteFailed
from patching.agreement import rank_biased_overlap
from patching.agreement import ranks as shared_ranks
from patching.effects import Effects
from patching.errors import InvalidOption


def of(values: object, *, base: object = None, source: object = None, **fields: object) -> Effects:
    """Effects over layers, or layers and heads, from nested lists [example][layer]([head])."""
    array = torch.tensor(values, dtype=torch.float64)
    names = ("layer", "head")[: array.ndim - 1]
    labels = tuple(tuple(f"{name[0].upper()}{i}" for i in range(n)) for name, n in zip(names, array.shape[1:]))  # noqa: B905
    zeros = [0.0] * len(array)
    metrics = [torch.tensor(zeros if x is None else x, dtype=torch.float64) for x in (base, source)]
    return Effects(array, names, labels, *metrics, **fields)  # type: ignore[arg-type]


# Two prompts, two layers, two heads; L0 H1 has effects of opposite sign.
SMALL = of([[[1.0, 3.0], [0.0, -4.0]], [[3.0, -3.0], [0.0, -8.0]]], base=[10.0, 6.0], source=[2.0, 2.0])


def test_means_and_errors_by_hand() -> None:
    assert SMALL.mean.tolist() == [[2.0, 0.0], [0.0, -6.0]]
    # deviations ±1, ±3, 0, ±2 of two prompts: std = √2 · deviation, over √2 prompts
    assert SMALL.standard_error.flatten().tolist() == pytest.approx([1.0, 3.0, 0.0, 2.0])
    assert SMALL.importance.tolist() == [[2.0, 3.0], [0.0, 6.0]]
    assert SMALL.absolute_mean.tolist() == [[2.0, 0.0], [0.0, 6.0]]


def test_normalised_is_a_ratio_of_means_and_not_clipped() -> None:
    # the gap is the mean of -8 and -4
    assert SMALL.normalised.flatten().tolist() == pytest.approx([-1 / 3, 0.0, 0.0, 1.0])
    assert of([[12.0]], base=[1.0], source=[4.0]).normalised.tolist() == [4.0]
    with pytest.raises(InvalidOption, match="they agree"):
        _ = of([[1.0]]).normalised


def test_one_prompt_has_no_standard_error() -> None:
    with pytest.raises(InvalidOption, match="at least two prompts"):
        _ = of([[1.0, 2.0]]).standard_error
    assert "standard error" not in of([[1.0, 2.0]]).to_frame()


def test_detected_is_two_standard_deviations_over_the_array() -> None:
    # nine zeros and x: mean x/10, deviation of x 0.9 x, std x/√10 = 0.316 x, so x is 2.8 deviations out
    assert of([[0.0] * 9 + [-5.0]]).detected.tolist() == [False] * 9 + [True]
    # four zeros and x: deviation 0.8 x, std x/√5 = 0.447 x: 1.8
    assert not of([[0.0] * 4 + [5.0]]).detected.any()
    # mean 1, squares 4 · 1 + 0 + 16 over n - 1 = 5: std 2, and 5 is just two away, no more
    assert not of([[0.0] * 4 + [1.0, 5.0]]).detected.any()
    # a shift of everything changes nothing: it is not "far from zero"
    assert of([[7.0] * 9 + [2.0]]).detected.tolist() == [False] * 9 + [True]


def test_nothing_is_detected_in_an_array_of_one() -> None:
    assert of([[3.0], [4.0]]).detected.tolist() == [False]
    assert of([[3.0], [4.0]]).to_frame()["detected"].tolist() == [False]


def test_labels_lead_to_means() -> None:
    assert SMALL["L1", "H1"] == -6.0
    assert of([[1.0, 2.0]])["L1"] == 2.0
    with pytest.raises(InvalidOption, match="expected a head out of H0, H1; got 'H7'"):
        _ = SMALL["L1", "H7"]
    with pytest.raises(InvalidOption, match="one label for each of layer, head"):
        _ = SMALL["L1"]
    assert SMALL.names() == ["L0 H0", "L0 H1", "L1 H0", "L1 H1"]


def test_top_is_by_importance_and_gives_means() -> None:
    assert SMALL.top(3) == [("L1 H1", -6.0), ("L0 H1", 0.0), ("L0 H0", 2.0)]
    assert of([[1.0, -1.0, 1.0]]).top(2) == [("L0", 1.0), ("L1", -1.0)], "ties go by place"


def test_the_frame_is_sorted_by_importance() -> None:
    frame = SMALL.to_frame()
    assert list(frame.columns) == ["layer", "head", "effect", "standard error", "importance", "detected"]
    assert frame.iloc[0].tolist() == ["L1", "H1", -6.0, 2.0, 6.0, False]
    assert frame["importance"].tolist() == [6.0, 3.0, 2.0, 0.0]


# ---------------------------------------------------------------------------------------------------- comparison


def test_rank_biased_overlap_by_hand() -> None:
    # agreements: depth 1: {0}∩{1} = 0; depth 2: {0,1}∩{1,0} = 2/2; depth 3: 3/3
    # (1 - p)(0 + p·1 + p²·1) + p³·1 with p = 0.5: 0.5·0.75 + 0.125
    assert rank_biased_overlap([0, 1, 2], [1, 0, 2], 0.5) == pytest.approx(0.5)
    assert rank_biased_overlap([0, 1], [2, 3], 0.9) == 0.0
    # agree at depth 1, then 1/2 for ever
    assert rank_biased_overlap([0, 1], [0, 2], 0.9) == pytest.approx(0.1 * (1 + 0.9 / 2) + 0.81 / 2)


@given(order=st.permutations(range(6)), p=st.floats(0.05, 0.95))
def test_rank_biased_overlap_is_symmetric_and_between_0_and_1(order: list[int], p: float) -> None:
    straight = list(range(6))
    value = rank_biased_overlap(straight, order, p)
    assert value == pytest.approx(rank_biased_overlap(order, straight, p))
    assert -1e-12 <= value <= 1 + 1e-12
    assert (value == pytest.approx(1.0)) == (order == straight)


@pytest.mark.parametrize(
    ("values", "ranks"),
    [([3, 1, 2], [2, 0, 1]), ([5, 1, 5, 0], [2.5, 1, 2.5, 0]), ([7, 7, 7], [1, 1, 1]), ([0, 2, 0], [0.5, 2, 0.5])],
)
def test_ties_share_their_mean_rank(values: list[float], ranks: list[float]) -> None:
    assert shared_ranks(torch.tensor(values, dtype=torch.float64)).tolist() == ranks


def test_comparison_by_hand() -> None:
    true = of([[4.0, -3.0, 2.0, 0.0]])
    ours = of([[4.0, -3.0, 0.1, 1.0]])
    found = ours.compare(true, k=3, persistence=0.5)
    assert found["recall@3"] == pytest.approx(2 / 3)
    assert found["false negatives@3"] == 1.0, "0.1 is below a tenth of 2"
    assert found["spearman"] == pytest.approx(0.8), "1 - 6 · (1 + 1) / (4 · 15)"
    # orders 0 1 3 2 and 0 1 2 3: agreement 1, 1, 2/3, 1
    assert found["rank-biased overlap"] == pytest.approx(0.5 + 0.25 + 0.125 * 2 / 3 + 0.0625 + 0.0625)
    x, y = [3.475, -3.525, -0.425, 0.475], [3.25, -3.75, 1.25, -0.75]  # less their means
    expected = sum(a * b for a, b in zip(x, y, strict=True)) / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))
    assert found["pearson"] == pytest.approx(expected)


def test_the_sign_counts_only_where_both_have_one() -> None:
    true, ours = of([[4.0, -3.0, 2.0]]), of([[4.0, 3.0, 2.0]])
    assert ours.compare(true)["pearson"] < 0.9
    assert replace(ours, signed=False).compare(true)["pearson"] == pytest.approx(1.0)
    assert math.isnan(of([[1.0, 1.0]]).compare(of([[1.0, 2.0]]))["spearman"])


def test_other_axes_are_not_compared() -> None:
    for other in (of([[1.0, 2.0]]), replace(SMALL, labels=(("L0", "L2"), ("H0", "H1")))):
        with pytest.raises(InvalidOption, match="over the same axes"):
            SMALL.compare(other)


# --------------------------------------------------------------------------------------------------------- files


def equal(a: Effects, b: Effects) -> bool:
    def same(x: Tensor | None, y: Tensor | None) -> bool:
        return x is y is None or (x is not None and y is not None and x.dtype == y.dtype and torch.equal(x, y))

    tensors = ("values", "base_metric", "source_metric", "singles")
    return (a.axes, a.labels, a.signed, a.provenance) == (b.axes, b.labels, b.signed, b.provenance) and all(
        same(getattr(a, name), getattr(b, name)) for name in tensors
    )


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=6, max_size=6),
    st.booleans(),
    st.booleans(),
)
def test_a_file_gives_every_bit_back(numbers: list[float], signed: bool, windows: bool) -> None:
    import tempfile

    values = [numbers[:3], numbers[3:]]
    made = of(values, base=numbers[:2], source=numbers[2:4], signed=signed, provenance={"method": "μ", "n": [1, None]})
    made = replace(made, singles=made.values / 3 if windows else None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "effects.json"
        made.save(path)
        assert equal(Effects.load(path), made)
        assert json.loads(path.read_text())["schema"] == "wiretrace-effects/1"


def test_single_precision_comes_back_as_the_same_numbers_in_double(tmp_path: Path) -> None:
    made = replace(SMALL, values=(SMALL.values / 3).float())
    made.save(tmp_path / "e.json")
    assert torch.equal(Effects.load(tmp_path / "e.json").values, made.values.double())


def test_what_no_file_can_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="finite"):
        replace(SMALL, values=SMALL.values / 0).save(tmp_path / "e.json")
    with pytest.raises(InvalidOption, match="plain data"):
        replace(SMALL, provenance={"metric": object()}).save(tmp_path / "e.json")
    with pytest.raises(WriteFailed):
        SMALL.save(tmp_path / "nowhere" / "e.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"schema": "wiretrace-scores/1"}, "schema"),
        ({"values": None}, "it has no values"),
        ({"values": [[1.0, 2.0]]}, r"values of shape \[2, 2, 2\]; got \[1, 2\]"),
        ({"values": [[[1.0, 2.0], [3.0]], [[1.0, 2.0], [3.0, 4.0]]]}, ""),
        ({"values": [[["a", "b"]]]}, ""),
        ({"values": [[[1e999, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]}, "not all finite"),
        ({"values": 10**400}, ""),
        ({"base_metric": [1.0]}, "shape"),
        ({"base_metric": []}, "do not match"),
        ({"source_metric": [float("nan"), 0.0]}, "not all finite"),
        ({"singles": [1.0]}, "singles of shape"),
        ({"axes": ["layer"]}, "do not match"),
        ({"axes": ["layer", 3]}, "must be text"),
        ({"labels": [["L0", "L1"], ["H0"]]}, "shape"),
        ({"labels": 3}, ""),
        ({"signed": 1}, "true or false"),
        ({"provenance": []}, "an object"),
    ],
)
def test_a_corrupted_file_is_refused(tmp_path: Path, change: dict[str, object], sentence: str) -> None:
    path = tmp_path / "e.json"
    SMALL.save(path)
    document = json.loads(path.read_text()) | change
    path.write_text(json.dumps(document))
    with pytest.raises(InvalidOption, match=f"expected a file of schema wiretrace-effects/1.*{sentence}"):
        Effects.load(path)


def test_a_missing_key_a_cut_file_and_no_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "e.json"
    SMALL.save(path)
    text = path.read_text()
    for cut in range(0, len(text) - 2, 7):
        path.write_text(text[:cut])
        with pytest.raises(InvalidOption, match="cannot be read"):
            Effects.load(path)
    for name in json.loads(text):
        path.write_text(json.dumps({key: value for key, value in json.loads(text).items() if key != name}))
        with pytest.raises(InvalidOption, match="cannot be read"):
            Effects.load(path)
    path.write_bytes(b"\xff\xfe\x00")
    for bad in (path, tmp_path / "nothing.json", tmp_path):
        with pytest.raises(InvalidOption, match="cannot be read"):
            Effects.load(bad)
    path.write_text("[" * 100_000)
    with pytest.raises(InvalidOption, match="cannot be read"):
        Effects.load(path)
