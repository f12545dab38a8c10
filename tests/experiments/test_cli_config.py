"""Settings: written and read back, spelled as a command, checked against the library's own tables."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from circuits.methods import METHODS
from experiments import config as settings
from experiments.config import ABLATIONS, METRICS, Config, command_line, load, to_toml
from experiments.errors import BadConfig
from experiments.model_files import FAMILIES
from experiments.nearest import did_you_mean
from graphs.errors import WiretraceError

NAMES = st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable())


@st.composite
def configs(draw: st.DrawFn) -> Config:
    method = METHODS[draw(st.sampled_from(sorted(METHODS)))]
    words = st.sampled_from(["left", "midpoint", "a=b"])
    kinds = {float: st.floats(0, 1e6), bool: st.booleans(), int: st.integers(0, 1000), str: words}
    options = {name: draw(kinds[kind]) for name, kind in method.options.items() if draw(st.booleans())}
    level = draw(st.sampled_from(method.levels))
    taken = method.gives == "scores"
    return Config(
        task="ioi",
        model=draw(NAMES),
        method=method.name,
        options=options,
        level=level,
        positions=method.by_position and draw(st.booleans()),
        n=draw(st.none() | st.integers(1, 10**6)) if taken else None,
        selection=draw(st.sampled_from(["top", "greedy"])) if taken and level == "edge" else "top",
        signed=taken and draw(st.booleans()),
        ablation=draw(st.sampled_from(sorted(ABLATIONS))),
        metric=draw(st.none() | st.sampled_from(sorted(METRICS))),
        prompts=draw(st.integers(1, 1000)),
        held_out=draw(st.integers(1, 1000)),
        seed=draw(st.integers(0, 2**40)),
        device=draw(st.sampled_from([None, "cpu", "cuda", "cuda:1"])),
    )


@limits(max_examples=40, deadline=None)
@given(config=configs())
def test_a_config_file_gives_its_config_back(config, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "config.toml"
    path.write_text(to_toml(config, comments=("a comment",)), encoding="utf-8")
    assert load(path) == config


@limits(max_examples=40, deadline=None)
@given(config=configs())
def test_a_command_line_means_its_config(config):
    from typer.testing import CliRunner

    from experiments import cli

    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "_run", lambda config, **options: seen.append((config, options)))
        words = shlex.split(command_line(config, out="a folder/run", flags=("--resume",)))
        result = CliRunner().invoke(cli.app, words[1:])
    assert result.exit_code == 0, result.stderr
    ((found, options),) = seen
    assert found == config
    assert str(options["out"]) == "a folder/run"
    assert options["resume"]


def test_the_names_are_the_library_s():
    from patching.ablations import ABLATIONS as known_ablations
    from patching.metrics import METRICS as known_metrics
    from tests import tiny

    assert set(ABLATIONS) == set(known_ablations)
    assert set(METRICS) == set(known_metrics)
    assert set(FAMILIES) == {make().model_type for make in tiny.CONFIGS.values()}


def test_the_zoo_is_the_library_s():
    from experiments import model_files
    from patching import model_sources

    assert model_sources.ZOO == model_files.ZOO
    assert model_sources.zoo_names() == model_files.zoo()


def test_every_method_can_be_run_with_its_defaults():
    for name in METHODS:
        Config("ioi", "gpt2", name)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "expected schema"),
        ("schema = ", "expected a TOML file"),
        ('schema = "wiretrace-config/9"', "got 'wiretrace-config/9'"),
        ('schema = "wiretrace-config/1"', "to name task and model"),
        ('schema = "wiretrace-config/1"\ntask = "ioi"\nmodle = "x"', "Did you mean model?"),
        ('schema = "wiretrace-config/1"\ntask = "ioi"\nmodel = 3', "expected the setting model to be text; got 3"),
        ('schema = "wiretrace-config/1"\ntask = "ioi"\nmodel = "x"\nseed = true', "a whole number; got True"),
        ('schema = "wiretrace-config/1"\ntask = "ioi"\nmodel = "x"\nseed = 1.5', "a whole number; got 1.5"),
        ('schema = "wiretrace-config/1"\ntask = "ioi"\nmodel = "x"\noptions = 1', "to be a table; got 1"),
        ('schema = "wiretrace-config/1"\ntask = "ioi"\nmodel = "x"\n[options]\ntau = "a"', "of type float"),
        ('schema = "wiretrace-config/1"\ntask = "ioi"\nmodel = "x"\n[options]\ntau = nan', "a finite number"),
        ('schema = "wiretrace-config/1"\ntask = "ioi"\nmodel = "a\\u0000b"', "expected the name of a model"),
    ],
)
def test_a_bad_config_file_is_refused(tmp_path, text, sentence):
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(BadConfig) as caught:
        load(path)
    assert sentence in str(caught.value)


@limits(deadline=None)
@given(data=st.binary(max_size=200))
def test_no_file_crashes_the_reader(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "config.toml"
    path.write_bytes(data)
    with pytest.raises(WiretraceError):
        load(path)


def test_the_default_model_is_the_one_that_ships(monkeypatch):
    monkeypatch.setattr(settings, "zoo", lambda: ("zoo:ioi",))
    assert settings.default_model("ioi") == "zoo:ioi"
    monkeypatch.undo()
    assert settings.default_model("ioi") == settings.default_model("agreement") == "zoo:small"
    assert settings.default_model("sorting") == "zoo:sorting"
    monkeypatch.setattr(settings, "zoo", lambda: ())
    with pytest.raises(BadConfig, match="none ships"):
        settings.default_model("ioi")


def test_nearest_names_are_offered():
    assert did_you_mean("ioi", ["zoo:ioi", "zoo:docstring"]) == " Did you mean zoo:ioi?"
    assert did_you_mean("acd", ["acdc", "atp"]) == " Did you mean acdc?"
    assert did_you_mean("", ["acdc"]) == ""
    assert did_you_mean("quite different", ["acdc"]) == ""
