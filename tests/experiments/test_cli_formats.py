"""`wiretrace export` writes every format and reads those that can be read."""

from __future__ import annotations

import pytest

from graphs import Circuit, load
from graphs.export import FORMATS
from graphs.importing import READERS


@pytest.mark.parametrize("name", [name for name in READERS if name != "mib"])
def test_export_by_name_goes_beside_the_circuit_and_reads_back(finished_run, wiretrace, tmp_path, name):
    circuit = Circuit.load(finished_run / "circuit.json")
    source = tmp_path / "mine.json"
    circuit.save(source)
    result = wiretrace("export", source, "--to", name)
    path = tmp_path / f"mine{FORMATS[name]}"
    assert (result.exit_code, result.stdout) == (0, f"{path}\n"), result.stderr
    assert load(path) == circuit
    assert wiretrace("export", path, "--to", "json", "--out", tmp_path / "again.json").exit_code == 0
    assert (tmp_path / "again.json").read_bytes() == source.read_bytes()


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (("--to", "cyjs"), "circuit.cyjs"),
        (("--to", ".GV"), "circuit.dot"),
        (("--to", "tikz"), "circuit.tex"),
        (("--to", "dot", "--out", "a.gv"), "a.gv"),
        (("--to", "node-link", "--out", "a.json"), "a.json"),
        (("--to", "csv", "--out", "a"), "a.csv"),
        (("--to", "mib", "--d-model", "64"), "circuit.mib.json"),
        (("--out", "a.neuronpedia.json"), "a.neuronpedia.json"),
    ],
)
def test_formats_by_suffix_and_name(finished_run, wiretrace, tmp_path, monkeypatch, words, file):
    monkeypatch.chdir(tmp_path)
    Circuit.load(finished_run / "circuit.json").save("circuit.json")
    result = wiretrace("export", "circuit.json", *words)
    assert (result.exit_code, result.stdout) == (0, f"{file}\n"), result.stderr
    assert (tmp_path / file).stat().st_size > 100


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--to", "mib"), "mib has the options d_model"),
        (("--to", "csv", "--d-model", "8"), "csv has no options"),
        (("--to", "dot", "--out", "a.json"), "expected --out to end in .dot or .gv"),
        (("--to", "graphviz"), "expected a format out of json, graphml"),
    ],
)
def test_what_does_not_fit_is_said(finished_run, wiretrace, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    result = wiretrace("export", finished_run, *words)
    assert result.exit_code == 1
    assert said in result.stderr
    assert not list(tmp_path.iterdir())


def test_the_help_names_every_format(wiretrace, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    words = wiretrace("export", "--help").stdout.replace(",", " ").replace(".", " ").split()
    assert set(FORMATS) <= set(words)
