"""Config files that are no configs, and single values set from the command line."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from experiments.config_file import LARGEST, SCHEMAS, build, field_kinds, override, read, settings_of
from experiments.errors import BadConfig
from graphs.errors import WiretraceError

SEARCH = {"schema": "wiretrace-config/1", "task": "ioi", "model": "zoo:ioi"}
PATCH = {"schema": "wiretrace-patch-config/1", "task": "ioi", "model": "zoo:ioi"}
ATTRIBUTE = {"schema": "wiretrace-attribute/1", "task": "ioi", "model": "zoo:ioi"}


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "it is empty"),
        (b"# nothing\n", "it is empty"),
        (b"seed = 3", "got None. Copy a config.toml of a run"),
        (b"schema = 3", "got 3"),
        (b'schema = "wiretrace-config/2"', "which a newer version of Wiretrace wrote"),
        (b'schema = "wiretrace-known-circuit/7"', "expected schema = 'wiretrace-known-circuit/1'"),
        (b'schema = "wiretrace-cofnig/1"', "Did you mean wiretrace-config/1 or"),
        ('schema = "wiretrace-config/1"'.encode("utf-16"), "is not UTF-8 text"),
        (b'task = "caf\xe9"', "is not UTF-8 text (byte 11)"),
        (b"a = " + b"[" * 5000, "expected a TOML file"),
        (b"seed = " + b"9" * 5000, "expected a TOML file"),
        (b"#" * (LARGEST + 1), "larger than 1 MB"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path, data, sentence):
    path = tmp_path / "config.toml"
    path.write_bytes(data)
    with pytest.raises(WiretraceError) as caught:
        read(path)
    assert sentence in str(caught.value)


def test_a_byte_order_mark_is_no_harm(tmp_path):
    path = tmp_path / "config.toml"
    path.write_bytes(b"\xef\xbb\xbf" + b'schema = "wiretrace-config/1"')
    assert read(path) == {"schema": "wiretrace-config/1"}


@pytest.mark.parametrize("settings", [SEARCH, PATCH, ATTRIBUTE])
def test_settings_and_configs_are_inverse(settings):
    config = build(settings)
    assert build(settings_of(config)) == config
    assert settings_of(config)["schema"] == settings["schema"]


def test_settings_of_no_single_run_are_refused():
    with pytest.raises(BadConfig, match=r"got a table \[sweep\]"):
        build(SEARCH | {"sweep": {"seeds": 2}})
    with pytest.raises(BadConfig, match="methods against a known circuit"):
        build({"schema": "wiretrace-known-circuit/1"})


def test_the_schemas_are_those_of_the_writers():
    from experiments.known_circuits import SCHEMA

    assert SCHEMA in SCHEMAS
    for schema in SCHEMAS:
        assert field_kinds(schema)["task"] == "str"


@pytest.mark.parametrize(
    ("base", "change", "name", "value"),
    [
        (SEARCH, "seed=3", "seed", 3),
        (SEARCH, " seed = 3 ", "seed", 3),
        (SEARCH, "model=gpt2", "model", "gpt2"),
        (SEARCH, 'model="gpt2"', "model", "gpt2"),
        (SEARCH, "model=true", "model", "true"),
        (SEARCH, "signed=true", "signed", True),
        (SEARCH, "options.tau=0.02", "options", {"tau": 0.02}),
        (SEARCH, "method.tau=2", "options", {"tau": 2}),
        (SEARCH | {"method": "acdc"}, "options.tau=2", "options", {"tau": 2.0}),
        (SEARCH | {"options": {"tau": 1.0}}, "options.absolute=true", "options", {"tau": 1.0, "absolute": True}),
        (SEARCH | {"method": "acdc"}, "options.order=paper", "options", {"order": "paper"}),
        (PATCH, "kind=q", "kind", "q"),
        (PATCH, "to=a2.h5<q>", "to", "a2.h5<q>"),
        (ATTRIBUTE, "keep=0.5", "keep", 0.5),
        (ATTRIBUTE, "stop=0", "stop", 0.0),
        (SEARCH, "sweep.seeds=2", "sweep", {"seeds": 2}),
        (SEARCH, "sweep.grid.options.tau=[0.1, 0.2]", "sweep", {"grid": {"options": {"tau": [0.1, 0.2]}}}),
    ],
)
def test_a_value_is_set_in_its_type(base, change, name, value):
    made = override(base, [change])
    assert made[name] == value
    assert type(made[name]) is type(value)
    assert "sweep" not in base
    assert {key: kept for key, kept in made.items() if key != name} == {k: v for k, v in base.items() if k != name}


@pytest.mark.parametrize(
    ("base", "change", "sentence"),
    [
        (SEARCH, "seed", "expected --set as NAME=VALUE"),
        (SEARCH, "=3", "expected --set as NAME=VALUE"),
        (SEARCH, "seed=", "expected --set as NAME=VALUE"),
        (SEARCH, "seed=1.5", "expected seed to be a whole number; got '1.5'"),
        (SEARCH, "seed=true", "expected seed to be a whole number"),
        (SEARCH, "seed=1\nn=3", "expected seed to be a whole number"),
        (SEARCH, "signed=1", "expected signed to be true or false"),
        (SEARCH, "sed=1", "Did you mean seed or"),
        (SEARCH, "options=1", "got 'options'"),
        (SEARCH | {"method": "acdc"}, "options.tau=x", "expected options.tau to be a number; got 'x'"),
        (SEARCH | {"options": 3}, "options.tau=1", "expected options to be a table"),
        (PATCH, "options.tau=1", "expected --set with one of task, model, kind"),
        (ATTRIBUTE, "keep=half", "expected keep to be a number; got 'half'"),
        (SEARCH | {"sweep": 3}, "sweep.seeds=2", "expected sweep to be a table"),
    ],
)
def test_a_value_that_cannot_be_set_is_refused(base, change, sentence):
    with pytest.raises(BadConfig) as caught:
        override(base, [change])
    assert sentence in str(caught.value)


@limits(max_examples=60, deadline=None)
@given(text=st.text(max_size=30), base=st.sampled_from([SEARCH, PATCH, ATTRIBUTE]))
def test_no_value_crashes_the_command_line(text, base):
    for name in ("model", "seed", "options.tau", "sweep.grid.n"):
        try:
            build(override(base, [f"{name}={text}"]))
        except WiretraceError:
            continue


def test_later_changes_win():
    assert override(SEARCH, ["seed=1", "seed=2"])["seed"] == 2
    text = tomllib.loads('schema = "wiretrace-config/1"\ntask = "ioi"\nmodel = "m"\n[sweep.method.atp]\nn = [1, 2]')
    assert override(text, ["n=7"])["sweep"] == {"method": {"atp": {"n": 7}}}
