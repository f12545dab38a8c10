"""Masks are seeds: any rows again, by anyone, with the frequencies that the design states."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from circuits.coar.masks import BLOCK_ENTRIES, VERSION, MaskDesign
from patching.errors import InvalidOption

ROOT = Path(__file__).resolve().parents[3]
KINDS = pytest.mark.parametrize("kind", ["bernoulli", "subset"])
PROMPTS = pytest.mark.parametrize("prompts", [None, 3])


def design_of(**changes: object) -> MaskDesign:
    return MaskDesign(**{"n_units": 12, "samples": 700, "keep": 0.75, "seed": 5, **changes})  # type: ignore[arg-type]


@KINDS
@PROMPTS
@given(data=st.data())
def test_any_range_is_a_slice_of_all(kind: str, prompts: int | None, data: st.DataObject) -> None:
    design = design_of(kind=kind, prompts=prompts)
    start = data.draw(st.integers(0, 700))
    stop = data.draw(st.integers(start, 700))
    assert torch.equal(design.rows(start, stop), design.rows()[start:stop])


@KINDS
@PROMPTS
@given(cuts=st.lists(st.integers(0, 700), max_size=5))
def test_ranges_of_any_partition_join_to_all(kind: str, prompts: int | None, cuts: list[int]) -> None:
    design = design_of(kind=kind, prompts=prompts)
    ends = [0, *sorted(cuts), 700]
    parts = [design.rows(start, stop) for start, stop in pairwise(ends)]
    assert torch.equal(torch.cat(parts), design.rows())


@given(chosen=st.sets(st.integers(0, 699), min_size=1, max_size=40))
def test_blocks_give_chosen_rows(chosen: set[int]) -> None:
    design = design_of()
    numbers = torch.tensor(sorted(chosen))
    pairs = list(design.blocks(numbers))
    assert torch.equal(torch.cat([rows for rows, _ in pairs]), numbers)
    assert torch.equal(torch.cat([masks for _, masks in pairs]), design.rows()[numbers])
    assert all(len(rows) <= design.block_rows for rows, _ in pairs)


def test_the_rule_is_the_documented_one() -> None:
    """Made again from the words of the docstring, entry by entry."""
    name = f"wiretrace-masks/1 bernoulli units=12 keep={(0.71).hex()} seed=5 prompts=None"
    key = int.from_bytes(hashlib.sha256(name.encode()).digest(), "little")
    bits = np.random.PCG64(np.random.SeedSequence(key, spawn_key=(1,)))
    lanes = b"".join(int(word).to_bytes(8, "little") for word in bits.random_raw(256 * 12 // 8))
    more = iter([])
    ties = sum(lane == 181 for lane in lanes)  # 256 * 0.71 = 181.76
    more = iter((int(word) >> 11) / 2**53 for word in bits.random_raw(ties))
    expected = [lane < 181 or (lane == 181 and next(more) < 256 * 0.71 - 181) for lane in lanes]
    assert ties > 0
    assert design_of(keep=0.71).block(1).flatten().tolist() == expected


def test_the_same_in_another_process() -> None:
    program = (
        "import hashlib; from circuits.coar.masks import MaskDesign; "
        "masks = MaskDesign(n_units=12, samples=700, keep=0.75, seed=5).rows(500, 700); "
        "print(hashlib.sha256(bytes(masks.flatten().tolist())).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    mine = hashlib.sha256(bytes(design_of().rows(500, 700).flatten().tolist())).hexdigest()
    assert other.stdout.split() == [mine]


@KINDS
@PROMPTS
def test_shapes(kind: str, prompts: int | None) -> None:
    design = design_of(kind=kind, prompts=prompts)
    expected = (700, 12) if prompts is None else (700, 3, 12)
    assert design.rows().shape == expected
    assert design.rows().dtype == torch.bool
    assert design.rows(3, 3).shape == (0, *expected[1:])
    assert design.bytes_per_row == math.prod(expected[1:]) == design.rows(0, 1).numel()


# --- frequencies --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0.5, 0.9, 0.975, 0.003, 0.9999])
def test_bernoulli_masks_are_independent_with_the_stated_probability(keep: float) -> None:
    """Counts of units and of neighbouring pairs within five standard errors."""
    masks = MaskDesign(n_units=400, samples=5000, keep=keep, seed=1).rows().double()
    count = masks.numel()
    assert abs(float(masks.mean()) - keep) < 5 * math.sqrt(keep * (1 - keep) / count)
    for one, other in ((masks[:, 1:], masks[:, :-1]), (masks[1:], masks[:-1])):  # along units, and along samples
        covariance = float(((one - keep) * (other - keep)).mean())
        assert abs(covariance) < 5 * keep * (1 - keep) / math.sqrt(one.numel())


def test_probabilities_finer_than_a_byte_are_kept() -> None:
    """Bytes alone would give 230/256 = 0.8984 or 231/256 = 0.9023; the standard error is 0.0001."""
    masks = MaskDesign(n_units=3000, samples=3000, keep=0.9, seed=0).rows()
    assert abs(float(masks.double().mean()) - 0.9) < 5e-4


def test_masks_of_prompts_differ() -> None:
    masks = design_of(prompts=3, keep=0.5).rows().double()
    for other in (1, 2):
        agreement = float((masks[:, 0] == masks[:, other]).double().mean())
        assert abs(agreement - 0.5) < 5 * 0.5 / math.sqrt(700 * 12)


@PROMPTS
def test_subsets_ablate_exactly_their_number_each_unit_alike(prompts: int | None) -> None:
    design = design_of(kind="subset", prompts=prompts, samples=6000, keep=0.7)  # round(3.6) = 4 of 12
    masks = design.rows()
    assert design.n_ablated == 4
    assert set((~masks).sum(-1).flatten().tolist()) == {4}
    rows = masks.reshape(-1, 12).double()
    assert torch.allclose(rows.mean(0), torch.full((12,), 8 / 12).double(), atol=5 * math.sqrt(2 / 9 / len(rows)))
    assert design.kept_share == pytest.approx(8 / 12)
    # of the 495 subsets, each as likely as another: chi-squared within five standard deviations of its mean
    codes = (rows.long() * (2 ** torch.arange(12))).sum(1)
    counts = torch.bincount(codes.unique(return_inverse=True)[1], minlength=495).double()
    assert len(counts) == 495
    statistic = float(((counts - len(rows) / 495).square() / (len(rows) / 495)).sum())
    assert abs(statistic - 494) < 5 * math.sqrt(2 * 494)


# --- designs ------------------------------------------------------------------------------------------------------


def test_more_samples_begin_with_the_same_rows() -> None:
    assert torch.equal(design_of(samples=900).rows(0, 700), design_of().rows())
    assert torch.equal(design_of().with_samples(300).rows(), design_of().rows(0, 300))


@pytest.mark.parametrize(
    "changes",
    [{"seed": 6}, {"keep": 0.7500001}, {"prompts": 1}, {"n_units": 13}, {"kind": "subset"}],
    ids=lambda changes: next(iter(changes)),
)
def test_designs_that_differ_share_nothing(changes: dict[str, object]) -> None:
    """Agreement at the rate of chance, keep**2 + (1 - keep)**2, within five standard errors."""
    other = design_of(**changes)
    one, two = design_of().rows().double(), other.rows().reshape(700, -1)[:, :12].double()
    chance = 0.75**2 + 0.25**2
    assert abs(float((one == two).double().mean()) - chance) < 5 * math.sqrt(chance * (1 - chance) / one.numel())
    assert other.digest() != design_of().digest()


def test_other_designs() -> None:
    design = design_of()
    assert design.with_seed(9) == design_of(seed=9)
    assert design.with_keep(0.5) == design_of(keep=0.5)
    assert design.with_samples(3) == design_of(samples=3)
    assert design.with_samples(3).digest() != design.digest()


@KINDS
@PROMPTS
def test_written_and_read_again(kind: str, prompts: int | None) -> None:
    design = design_of(kind=kind, prompts=prompts)
    assert MaskDesign.from_dict(design.to_dict()) == design
    assert MaskDesign.from_dict(design.to_dict()).digest() == design.digest()


@given(n_units=st.integers(1, 10**7), prompts=st.none() | st.integers(1, 10**4))
def test_blocks_are_bounded(n_units: int, prompts: int | None) -> None:
    design = design_of(n_units=n_units, prompts=prompts)
    assert design.block_rows == 1 or design.block_rows * design.bytes_per_row <= BLOCK_ENTRIES
    assert 1 <= design.block_rows <= 256


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 1, 0.0, 1.0, -0.1, 1.1, float("nan"), True, "0.9"])
def test_keep_of_0_or_1_is_refused_with_the_reason(keep: object) -> None:
    with pytest.raises(InvalidOption, match=r"strictly between 0 and 1 \(alpha = 1 - keep too\).*no weight"):
        design_of(keep=keep)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"samples": 0}, "samples to be an integer of 1 or more; got 0"),
        ({"n_units": 0}, "n_units to be an integer of 1 or more"),
        ({"n_units": 2.5}, "n_units to be an integer"),
        ({"seed": -1}, "seed to be an integer of 0 or more"),
        ({"seed": True}, "seed to be an integer"),
        ({"prompts": 0}, "prompts to be an integer of 1 or more"),
        ({"kind": "normal"}, "among bernoulli, subset; got 'normal'"),
        ({"kind": "subset", "keep": 0.999}, "ablates 0"),
        ({"kind": "subset", "keep": 0.001}, "ablates 12"),
        ({"kind": "subset", "n_units": 1}, "subsets that ablate from 1"),
    ],
)
def test_what_makes_no_design_is_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidOption, match=says):
        design_of(**changes)


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (5, 4), (0, 701)])
def test_ranges_outside_are_refused(start: int, stop: int) -> None:
    with pytest.raises(InvalidOption, match="700 samples"):
        design_of().rows(start, stop)


def test_masks_of_another_version_are_refused() -> None:
    document = design_of().to_dict()
    with pytest.raises(InvalidOption, match=f"made by {VERSION}; got 'wiretrace-masks/0'"):
        MaskDesign.from_dict({**document, "version": "wiretrace-masks/0"})
    with pytest.raises(InvalidOption, match="fields of a MaskDesign"):
        MaskDesign.from_dict({**document, "alpha": 0.1})
