"""What there is, as tables and as data: from the files of models alone, whatever is in them."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from circuits import tasks
from experiments import listings
from experiments.model_files import ZOO, describe, known_zoo, sizes
from patching import LensModel, compiled

RECORD: dict[str, Any] = {
    "schema": "wiretrace-training/1",
    "tasks": ["ioi", "agreement"],
    "accuracy": {
        "ioi": {
            "train": {"accuracy": 0.1},
            "train-names": {"accuracy": 0.2},
            "held-out": {"n": 9, "accuracy": 0.991},
            "held-out-templates": {"accuracy": 0.952},
        },
        "agreement": {"held-out": {"accuracy": 1}},
        "by_template": {"when": 0.2},
    },
    "made_by": "python -m experiments.train_small --seed 0",
    "licence": "MIT",
    "text_loss": {"held_out": 3.456, "n_tokens": 10},
}  # fmt: skip


def shipped(root: Path, name: str, record: Any, *, card: str = "") -> None:
    (root / name).mkdir()
    (root / name / "config.json").write_text(json.dumps({"n_layer": 1, "n_head": 4, "n_embd": 64}))
    (root / name / "training.json").write_text(record if isinstance(record, str) else json.dumps(record))
    (root / name / "README.md").write_text(card)


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("experiments.model_files.ZOO", tmp_path)
    return tmp_path


def text(tables: list[Any], *, width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    for table in tables:
        console.print(table)
    return console.export_text()


def test_a_record_is_read(zoo: Path) -> None:
    shipped(zoo, "small", RECORD)
    found = describe("zoo:small")
    assert found.tasks == ("ioi", "agreement")
    assert found.accuracy == {"ioi": {"held-out": 0.991, "held-out-templates": 0.952}, "agreement": {"held-out": 1.0}}
    assert found.lowest("ioi") == ("held-out-templates", 0.952)
    assert found.lowest("pronouns") is None
    assert (found.made_by, found.licence, found.text_loss) == (RECORD["made_by"], "MIT", 3.456)
    assert found.shape == "1 layer, 4 heads, width 64"
    shown = text(listings.models(), width=160)
    assert "ioi 95.2% (held-out-templates)" in shown
    assert "agreement 100.0% (held-out)" in shown
    assert "text 3.46 nats per token" in shown
    assert "train_small --seed 0" in shown
    assert "licence MIT" in shown
    assert "not known" in shown
    assert "10.0%" not in shown
    assert "20.0%" not in shown


def test_a_model_with_a_known_circuit(zoo: Path) -> None:
    shipped(zoo, "odd_trained", {"task": "reverse", "truth": "no_such_program", "interchange_accuracy": 0.987})
    (row, *_) = listings.model_rows()
    assert (row["truth"], row["true_edges"], row["provenance"]) == ("no_such_program", None, "trained by interchange")
    assert "interchange accuracy 98.7%" in text(listings.models(), width=160)


def test_the_shipped_trained_models_tell_their_circuit() -> None:
    for row in listings.model_rows():
        if row["provenance"] == "trained by interchange":
            truth = compiled.truth(row["model"])
            assert (row["true_edges"], row["possible_edges"]) == (truth.n_edges, truth.n_possible)
            assert row["interchange_accuracy"] is not None


def test_a_licence_is_looked_up_in_the_card(zoo: Path) -> None:
    shipped(zoo, "one", {"task": "ioi"}, card="---\nlanguage: en\nlicense: apache-2.0\ntags: [a]\n---\n# one\n")
    shipped(zoo, "two", {"task": "ioi"}, card="# two\nlicense: fake\n")
    assert describe("zoo:one").licence == "APACHE-2.0"
    assert describe("zoo:two").licence is None
    assert "not recorded" in text(listings.models(), width=160)


def test_what_ships_says_who_made_it() -> None:
    for path in sorted(ZOO.iterdir()):
        if (path / "config.json").is_file():
            found = describe(f"zoo:{path.name}")
            assert found.tasks, path.name
            assert set(found.tasks) <= set(tasks.TASKS), path.name
            assert all(found.lowest(task) for task in found.tasks), path.name
            assert found.made_by, path.name
            assert found.licence, path.name
            assert found.parameters, path.name


@pytest.mark.parametrize("width", [50, 80, 119, 120, 200])
def test_nothing_is_lost_at_any_width(width: int) -> None:
    """Folded or below each other, every name and figure is there."""
    for tables, names in (
        (listings.models(width=width), [row["model"] for row in listings.model_rows()]),
        (listings.task_tables(width=width), sorted(tasks.TASKS)),
    ):
        shown = text(tables, width=width)
        assert max(map(len, shown.splitlines())) <= width
        lines = {word for line in shown.splitlines() for word in line.split()[:1]}
        assert set(names) <= lines
        assert "…" not in shown
    if width < listings.WIDE:
        assert "truth known" in text(listings.task_tables(width=width), width=width)


def test_a_narrow_terminal_keeps_words_whole() -> None:
    shown = text(listings.models(width=80), width=80)
    assert "116,288 weights, 0.5 MB" in shown
    assert "python -m experiments.train_ioi --seed 0" in shown


def test_json_is_for_scripts(wiretrace) -> None:
    models, known = (json.loads(wiretrace(command, "--json").stdout) for command in ("models", "tasks"))
    by_name = {row["model"]: row for row in models}
    assert by_name["zoo:ioi"]["accuracy"]["ioi"]["held-out-templates"] == 0.9975
    assert by_name["zoo:ioi"]["made_by"] == "python -m experiments.train_ioi --seed 0"
    assert by_name["zoo:reverse"]["true_edges"] == compiled.truth("reverse").n_edges
    assert by_name["zoo:reverse"]["provenance"] == "compiled"
    normed = by_name["zoo:reverse_ln"]
    assert (normed["layer_norm"], normed["shape"]) == (True, "2 layers, 1 head, width 72")
    assert by_name["zoo:agreement_toy"]["provenance"] == "made by hand"
    assert by_name["zoo:agreement_toy"]["shape"] == "1 layer, 1 head, width 8"
    by_task = {row["task"]: row for row in known}
    assert {"zoo:reverse", "zoo:reverse_ln", "zoo:reverse_trained"} <= set(by_task["reverse"]["models"])
    assert not any(split.startswith("train") for row in known for splits in row["models"].values() for split in splits)
    assert set(by_task) == set(tasks.TASKS)
    assert by_task["reverse"]["default_model"] == "zoo:reverse"
    assert by_task["ioi"]["models"]["zoo:ioi"]["held-out-templates"] == 0.9975
    assert by_task["ioi"]["splits"][0] == "train"


def test_everything_that_loads_without_a_network_is_listed() -> None:
    listed = [row["model"] for row in listings.model_rows()]
    assert len(set(listed)) == len(listed)
    assert set(listed) == set(known_zoo())
    assert {*compiled.zoo_names(), *compiled.layer_norm_names(), *compiled.trained_names()} <= set(listed)


@pytest.mark.parametrize("name", ["zoo:reverse", "zoo:reverse_ln", "zoo:parity_ln", "zoo:agreement_toy"])
def test_models_without_files_have_the_size_that_is_listed(name: str) -> None:
    (row,) = (row for row in listings.model_rows() if row["model"] == name)
    model = LensModel.load(name, device="cpu")
    assert model.name == name
    assert row["shape"] == sizes(model.architecture.n_layers, model.architecture.n_heads, model.d_model)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["ioi", "train"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["ioi", "held-out", "accuracy", "n"]) | st.text(max_size=3), inner, max_size=3
        )
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    record=st.dictionaries(
        st.sampled_from(
            ["task", "tasks", "accuracy", "truth", "interchange_accuracy", "made_by", "licence", "text_loss"]
        ),
        ANYTHING,
    )
)
def test_no_record_breaks_the_listing(zoo: Path, monkeypatch: pytest.MonkeyPatch, record: dict[str, Any]) -> None:
    monkeypatch.setattr(compiled, "zoo_names", lambda: ())
    if not (zoo / "odd").is_dir():
        shipped(zoo, "odd", "")
    (zoo / "odd" / "training.json").write_text(json.dumps(record))
    assert "zoo:odd" in text(listings.models(), width=160)
    json.loads(listings.to_json(listings.model_rows()[:1]))


@pytest.mark.parametrize(
    "record", ["", "[]", "{", '{"task": 5}', "[" * 100_000, '{"accuracy": {"ioi": 5}, "task": "ioi"}']
)
def test_a_damaged_record_is_not_recorded(zoo: Path, record: str) -> None:
    shipped(zoo, "odd", record)
    assert "not recorded" in text(listings.models(), width=160)


def test_listing_loads_no_torch() -> None:
    code = (
        "import sys; from experiments import listings; listings.models(); listings.task_tables();"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
