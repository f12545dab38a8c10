"""Pictures of effects: the same bytes every time, text as text, what is drawn where, nothing on top of a name."""

from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from graphs.errors import UnknownFormat, WriteFailed
from patching import pictures
from patching.effects import Effects
from patching.errors import InvalidOption
from patching.pictures import heat_map, scatter

PROVENANCE = {"method": "activation patching", "metric": "logit_difference", "options": {"window": 1}}


def effects(
    *shape: int, n: int = 3, axes: tuple[str, ...] = ("layer", "head", "position"), **fields: object
) -> Effects:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(n, *shape, generator=generator, dtype=torch.float64)
    letters = {"layer": "L", "head": "H"}
    labels = tuple(
        tuple(f"{letters.get(name, '')}{i}" for i in range(size)) for name, size in zip(axes, shape, strict=False)
    )
    metric = torch.zeros(n, dtype=torch.float64)
    chosen = {"provenance": PROVENANCE} | fields
    return Effects(values, axes[: len(shape)], labels, metric, metric + 1, **chosen)  # type: ignore[arg-type]


def words(path: Path) -> list[str]:
    """Every text of an SVG file."""
    texts = ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")
    return ["".join(element.itertext()).strip() for element in texts]


def kinds() -> dict[str, Callable[[Path], None]]:
    table, curve, estimate = effects(3, 4), effects(5), effects(3, 4)
    windows = replace(curve, singles=curve.values * 2, provenance=PROVENANCE | {"options": {"window": 3}})
    return {
        "table": lambda path: heat_map(table, path, title="a title"),
        "curve": lambda path: heat_map(curve, path),
        "windows": lambda path: heat_map(windows, path),
        "scatter": lambda path: scatter(replace(estimate, values=estimate.values * 1.3), table, path),
    }


@pytest.mark.parametrize("suffix", [".svg", ".pdf", ".png"])
@pytest.mark.parametrize("name", ["table", "curve", "windows", "scatter"])
def test_the_same_effects_give_the_same_bytes_whatever_the_user_s_settings(
    name: str, suffix: str, tmp_path: Path
) -> None:
    import matplotlib

    draw = kinds()[name]
    draw(tmp_path / f"a{suffix}")
    with matplotlib.rc_context({"font.size": 20, "axes.grid": True, "image.cmap": "jet", "text.color": "red"}):
        draw(tmp_path / f"b{suffix}")
    data = (tmp_path / f"a{suffix}").read_bytes()
    assert data == (tmp_path / f"b{suffix}").read_bytes()
    assert data.startswith({".svg": b"<?xml", ".pdf": b"%PDF", ".png": b"\x89PNG"}[suffix])
    assert b"CreationDate" not in data
    assert b"<dc:date>" not in data


def test_a_heat_map_says_what_it_shows(tmp_path: Path) -> None:
    heat_map(effects(3, 4), tmp_path / "a.svg", title="$x_1$ & co")
    said = words(tmp_path / "a.svg")
    assert {"L0", "L1", "L2", "H0", "H1", "H2", "H3", "layer", "head", "$x_1$ & co"} <= set(said)
    assert "effect on logit_difference" in " ".join(said)


def drawn(made: Effects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The matplotlib figure of a heat map."""
    figures = []
    monkeypatch.setattr(pictures, "_write", lambda figure, path: figures.append(figure))
    heat_map(made, tmp_path / "a.svg")
    return figures[0]


def test_layers_go_upwards(tmp_path: Path, monkeypatch) -> None:
    axes = drawn(effects(3, 4), tmp_path, monkeypatch).axes[0]
    ticks = {label.get_text(): axes.transData.transform((0, label.get_position()[1]))[1]
             for label in axes.get_yticklabels()}  # fmt: skip
    assert ticks["L0"] < ticks["L1"] < ticks["L2"]


def test_colours_are_centred_at_zero_and_stand_at_their_places(tmp_path: Path, monkeypatch) -> None:
    made = effects(3, 4)
    mesh = drawn(made, tmp_path, monkeypatch).axes[0].collections[0]
    largest = float(made.mean.abs().max())
    assert mesh.get_clim() == (-largest, largest)
    assert mesh.get_array().tolist() == made.mean.tolist()
    red, green, blue, _ = mesh.get_cmap()(0.5)
    assert min(red, green, blue) > 0.95, "nothing is white"
    low, high = mesh.get_cmap()(0.25), mesh.get_cmap()(0.75)
    assert low[2] > low[0]
    assert high[0] > high[2]


def test_absolute_effects_have_one_side(tmp_path: Path, monkeypatch) -> None:
    made = effects(3, 4)
    made = replace(made, values=made.values.abs(), signed=False)
    figure = drawn(made, tmp_path, monkeypatch)
    assert figure.axes[0].collections[0].get_clim() == (0.0, float(made.mean.max()))
    assert figure.axes[1].get_ylabel() == "absolute effect on\nlogit_difference"


def test_dots_stand_on_detected_cells(tmp_path: Path, monkeypatch) -> None:
    made = effects(3, 4)
    made.values[:, 1, 2] = 20.0
    made.values[:, 2, 0] = -15.0
    assert int(made.detected.sum()) == 2
    lines = drawn(made, tmp_path, monkeypatch).axes[0].lines
    dots = {tuple(point) for line in lines for point in line.get_xydata().tolist()}
    assert dots == {(2.5, 1.5), (0.5, 2.5)}


def test_effects_that_are_all_zero_can_be_drawn(tmp_path: Path) -> None:
    made = effects(3, 4)
    heat_map(replace(made, values=made.values * 0), tmp_path / "a.svg")
    scatter(replace(made, values=made.values * 0), replace(made, values=made.values * 0), tmp_path / "b.svg")
    assert "Pearson undefined" in words(tmp_path / "b.svg")


@pytest.mark.parametrize(("layers", "positions"), [(48, 30), (3, 1000), (120, 5), (1, 1)])
def test_labels_are_thinned_until_they_fit(layers: int, positions: int, tmp_path: Path, monkeypatch) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    made = effects(layers, positions, n=2, axes=("layer", "position"))
    figure = drawn(made, tmp_path, monkeypatch)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    axes = figure.axes[0]
    page = figure.bbox
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        boxes = [label.get_window_extent() for label in labels]
        assert labels[0].get_text() in ("0", "L0")
        assert all(not a.overlaps(b) for a, b in itertools.pairwise(boxes))
        assert all(page.x0 <= b.x0 and b.x1 <= page.x1 and page.y0 <= b.y0 and b.y1 <= page.y1 for b in boxes)


def test_a_large_heat_map_is_a_small_file(tmp_path: Path) -> None:
    heat_map(effects(32, 1024, n=2, axes=("layer", "position")), tmp_path / "a.svg")
    assert (tmp_path / "a.svg").stat().st_size < 2_000_000
    assert "L0" in words(tmp_path / "a.svg")


# --------------------------------------------------------------------------------------------------------- curve


def test_a_curve_has_a_standard_error_at_every_point(tmp_path: Path, monkeypatch) -> None:
    made = effects(5)
    axes = drawn(made, tmp_path, monkeypatch).axes[0]
    (bars,) = axes.containers
    assert bars[0].get_ydata().tolist() == pytest.approx(made.mean.tolist())
    ends = bars[2][0].get_segments()
    half = [(end[1][1] - end[0][1]) / 2 for end in ends]
    assert half == pytest.approx(made.standard_error.tolist())
    assert drawn(effects(5, n=1), tmp_path, monkeypatch).axes[0].containers[0][2] == ()


def test_windows_stand_beside_the_sum_of_single_layers(tmp_path: Path) -> None:
    kinds()["windows"](tmp_path / "a.svg")
    said = words(tmp_path / "a.svg")
    assert "3 layers patched together" in said
    assert "sum of the layers patched one by one" in said
    kinds()["curve"](tmp_path / "b.svg")
    assert not any("sum" in text for text in words(tmp_path / "b.svg"))


def test_three_axes_are_refused_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match=r"got layer × head × position\. Sweep with parts=False, or pick"):
        heat_map(effects(3, 4, 5), tmp_path / "a.svg")
    heat_map(effects(3, 4, 1), tmp_path / "a.svg")
    assert "head (position 0)" in words(tmp_path / "a.svg")


@pytest.mark.parametrize("name", ["a.gif", "a"])
def test_other_formats_and_places_are_refused(name: str, tmp_path: Path) -> None:
    for draw in (kinds()["table"], kinds()["scatter"]):
        with pytest.raises(UnknownFormat, match=r"\.svg, \.pdf, \.png"):
            draw(tmp_path / name)
        with pytest.raises(WriteFailed):
            draw(tmp_path / "nowhere" / "a.svg")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------- scatter


def test_a_scatter_names_the_ten_largest_true_ones(tmp_path: Path) -> None:
    true = effects(6, 6)
    estimate = replace(true, values=true.values.flip(1), provenance={"method": "atp_star"})
    scatter(estimate, true, tmp_path / "a.svg")
    said = words(tmp_path / "a.svg")
    named = {text for text in said if re.fullmatch(r"L\d H\d", text)}
    assert named == {name for name, _ in true.top(10)}
    assert "importance, AtP*" in said
    assert "importance, activation patching" in said


def test_a_scatter_tells_the_correlations_of_what_it_shows(tmp_path: Path) -> None:
    import numpy as np

    true = effects(6, 6)
    estimate = replace(true, values=true.values.flip(1))
    scatter(estimate, true, tmp_path / "a.svg")
    a, b = (x.importance.flatten().numpy() for x in (true, estimate))
    pearson = np.corrcoef(a, b)[0, 1]
    spearman = np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1]
    said = words(tmp_path / "a.svg")
    assert any(f"Pearson {pearson:.2f}".replace("-", "−") in text for text in said)
    assert any(f"Spearman {spearman:.2f}".replace("-", "−") in text for text in said)


@pytest.mark.parametrize("spread", [30.0, 6.0, 0.0])
def test_names_do_not_lie_on_one_another(spread: float) -> None:
    generator = torch.Generator().manual_seed(1)
    dots = [tuple((95 + spread * x).tolist()) for x in torch.randn(10, 2, generator=generator, dtype=torch.float64)]
    places = pictures._placed([(f"L{i} H{i}", dot) for i, dot in enumerate(dots)], dots, [], [])
    assert not any(a.meets(b) for a, b in itertools.combinations(places, 2))
    assert all(p.left >= 0 and p.right <= 190 and p.bottom >= 0 and p.top <= 190 for p in places)
    if spread == 30.0:
        assert all(math.isclose(p.distance(*dot), min(p.distance(*d) for d in dots)) or p.distance(*dot) < 30
                   for p, dot in zip(places, dots, strict=True))  # fmt: skip


def test_a_scatter_of_other_axes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="over the same axes"):
        scatter(effects(3, 4), effects(4, 3), tmp_path / "a.svg")


def test_the_methods_of_effects_draw(tmp_path: Path) -> None:
    made = effects(3, 4)
    made.plot(tmp_path / "a.svg")
    heat_map(made, tmp_path / "b.svg")
    made.scatter(made, tmp_path / "c.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert "Pearson 1.00" in " ".join(words(tmp_path / "c.svg"))
