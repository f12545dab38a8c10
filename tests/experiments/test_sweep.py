"""Sweeps: what a table expands to, in which order, and what is refused by name."""

from __future__ import annotations

import itertools
import math
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from experiments.config_file import build, override
from experiments.errors import BadConfig
from experiments.store.naming import digest, folder_name
from experiments.sweep import expand, fixed, is_sweep

HEAD = 'schema = "wiretrace-config/1"\ntask = "ioi"\nmodel = "zoo:ioi"\n'
PATCH = 'schema = "wiretrace-patch-config/1"\ntask = "ioi"\nmodel = "zoo:ioi"\n'
ATTRIBUTE = 'schema = "wiretrace-attribute/1"\ntask = "ioi"\nmodel = "zoo:ioi"\n'


def labels(text: str, head: str = HEAD) -> list[str]:
    return [run.label for run in expand(tomllib.loads(head + text))]


def test_one_run_is_a_sweep_of_one():
    (run,) = expand(tomllib.loads(HEAD), root=Path("store"))
    assert run.settings["method"] == "acdc"
    assert run.settings["options"] == {"tau": 0.05}
    assert run.variant == {}
    assert run.folder == Path("store") / run.name
    assert re.fullmatch(r"ioi-zoo-ioi-acdc-[0-9a-f]{8}", run.name)


def test_these_methods_each_with_its_options_on_these_tasks_with_these_seeds():
    text = """
    [sweep]
    seeds = [4, 7]
    [sweep.grid]
    prompts = [8, 16]
    [sweep.task.ioi]
    [sweep.task.reverse]
    model = "zoo:reverse"
    [sweep.method.acdc]
    tau = [0.02, 0.1]
    absolute = true
    [sweep.method.eap_ig_inputs]
    n = [50, 100]
    options.steps = 3
    """
    runs = expand(tomllib.loads(HEAD + text))
    assert len(runs) == 2 * (2 + 2) * 2 * 2
    assert [run.settings["seed"] for run in runs] == [4, 7] * 16
    assert [run.settings["prompts"] for run in runs[:4]] == [8, 8, 16, 16]
    assert {(run.settings["task"], run.settings["model"]) for run in runs} == {
        ("ioi", "zoo:ioi"),
        ("reverse", "zoo:reverse"),
    }
    first, last = runs[0], runs[-1]
    assert first.settings["options"] == {"tau": 0.02, "absolute": True}
    assert (last.settings["n"], last.settings["options"]) == (100, {"steps": 3})
    assert (
        last.label == "task=reverse, model=zoo:reverse, method=eap_ig_inputs, n=100, options.steps=3, "
        "prompts=16, seed=7"
    )


def test_variants_one_by_one_meet_the_grid():
    text = """
    [[sweep.runs]]
    method = "atp"
    n = 50
    [[sweep.runs]]
    method = "acdc"
    "options.tau" = 0.3
    [sweep.grid]
    ablation = ["corrupt", "zero"]
    """
    assert labels(text) == [
        "method=atp, n=50, ablation=corrupt",
        "method=atp, n=50, ablation=zero",
        "method=acdc, options.tau=0.3, ablation=corrupt",
        "method=acdc, options.tau=0.3, ablation=zero",
    ]


def test_patching_and_attribution_sweep_too():
    assert labels('[sweep.grid]\nmethod = ["exact", "atp"]\nkind = ["q", "z"]', PATCH) == [
        "method=exact, kind=q", "method=exact, kind=z", "method=atp, kind=q", "method=atp, kind=z",
    ]  # fmt: skip
    assert labels("[sweep]\nseeds = 2\n[sweep.grid]\nkeep = [0.8, 0.95]", ATTRIBUTE) == [
        "keep=0.8, seed=0", "keep=0.8, seed=1", "keep=0.95, seed=0", "keep=0.95, seed=1",
    ]  # fmt: skip


AXES = {
    "ablation": st.sampled_from(["corrupt", "zero", "mean", "resample"]),
    "prompts": st.integers(1, 50),
    "held_out": st.integers(1, 50),
    "options.tau": st.integers(0, 1000).map(lambda number: number / 1000),
    "metric": st.sampled_from(["loss", "probability", "kl"]),
}


@st.composite
def grids(draw: st.DrawFn) -> dict[str, list]:
    names = draw(st.lists(st.sampled_from(sorted(AXES)), unique=True, min_size=1, max_size=4))
    return {name: draw(st.lists(AXES[name], unique=True, min_size=1, max_size=4)) for name in names}


@limits(max_examples=60, deadline=None)
@given(grid=grids(), seeds=st.none() | st.integers(1, 3) | st.lists(st.integers(0, 9), unique=True, min_size=1))
def test_a_grid_is_the_product_of_its_lists(grid, seeds):
    base = tomllib.loads(HEAD)
    found = expand(base | {"sweep": {"grid": grid, **({} if seeds is None else {"seeds": seeds})}})
    named = [] if seeds is None else [list(range(seeds)) if isinstance(seeds, int) else seeds]
    assert len(found) == math.prod(len(values) for values in [*grid.values(), *named])
    assert len({run.name for run in found}) == len(found)
    names = [*grid, *(["seed"] if named else [])]
    expected = list(itertools.product(*grid.values(), *named))
    assert [tuple(run.variant[name] for name in names) for run in found] == expected
    for run in found:
        assert expand(run.settings)[0].settings == run.settings, "settings are whole: expanding them changes nothing"
        for name, value in run.variant.items():
            held = run.settings["options"]["tau"] if name == "options.tau" else run.settings[name]
            assert held == value


@limits(max_examples=40, deadline=None)
@given(grid=grids(), data=st.data())
def test_an_override_fixes_what_varies(grid, data):
    base = tomllib.loads(HEAD) | {"sweep": {"grid": grid, "seeds": 2}}
    name = data.draw(st.sampled_from(sorted(grid)))
    value = data.draw(AXES[name])
    found = expand(override(base, [f"{name}={value}"]))
    rest = {each: values for each, values in grid.items() if each != name}
    assert len(found) == 2 * math.prod(map(len, rest.values()))
    assert all((run.settings["options"] | run.settings)[name.removeprefix("options.")] == value for run in found)


@pytest.mark.parametrize(
    ("text", "change", "name", "value"),
    [
        ("[sweep]\nseeds = 5", "seed=3", "seed", 3),
        ("[sweep.grid]\nprompts = [4, 8]", "prompts=6", "prompts", 6),
        ("[sweep.grid]\noptions.tau = [0.1, 0.2]", "options.tau=0.3", "options", {"tau": 0.3}),
        ("[sweep.method.atp]\n[sweep.method.exact]", "method=acdc", "method", "acdc"),
    ],
)
def test_an_override_of_all_that_varies_leaves_a_sweep_of_one(text, change, name, value):
    made = override(tomllib.loads(HEAD + text), [change])
    (run,) = expand(made)
    assert run.settings[name] == value
    assert is_sweep(made)
    assert len(expand(override(made, ["sweep.seeds=2"]))) == 2
    with pytest.raises(BadConfig, match="to vary something"):
        expand(override(tomllib.loads(f"{HEAD}[sweep]"), [change]))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("sweep = 3", "expected [sweep] to be a table; got 3"),
        ("[sweep]", "to vary something"),
        ("[sweep]\nseed = 3", "expected tables such as [sweep.seed.VALUE]|Did you mean seeds?"),
        ("[sweep]\nseeds = 0", "a number of seeds from 1"),
        ("[sweep]\nseeds = [1, -1]", "a list of seeds from 0"),
        ("[sweep]\nseeds = [1, 1]", "stands there twice"),
        ("[sweep.grid]\nprompts = 3", "expected a list for prompts in [sweep.grid]; got 3"),
        ("[sweep.grid]\nprompts = []", "the list is empty"),
        ("[sweep.grid]\nprompts = [3, 3]", "expected every value of prompts in [sweep.grid] once"),
        ("[sweep.grid]\nprompts = [[3]]", "expected numbers, text or truth values for prompts"),
        ("[sweep.grid]\npromts = [3]", "got 'promts'. Did you mean prompts?"),
        ("[sweep.grid]\ntau = [0.1]", "and options.NAME in [sweep.grid]; got 'tau'"),
        ("[sweep.grid]\nprompts = [3, true]", "prompts=true (2 of 2): expected the setting prompts to be a"),
        ("[sweep.gird]\nprompts = [3]", "Did you mean grid?"),
        ("[sweep]\nruns = 3", "expected variants as tables [[sweep.runs]]"),
        ("[sweep]\nmethod = ['atp']", "Lists of values go into [sweep.grid]"),
        ("[sweep.method]\natp = 3", "expected [sweep.method.atp] to be a table; got 3"),
        ("[sweep.method.atp]\nmethod = 'acdc'", "to leave method alone"),
        ("[sweep.method.atp]\ntau = 0.1", "cannot be, method=atp, options.tau=0.1 (1 of 1): expected an op"),
        ("[sweep.method.acdd]", "Did you mean acdc?"),
        ("[sweep.method.atp]\nn = 5\n[sweep.grid]\nn = [5]", "n is varied by two"),
        ("[sweep.grid]\nmethod = ['acdc', 'atp']\nn = [5]", "method=acdc, n=5 (1 of 2): expected no n: acdc decides"),
        ("[sweep.method.acdc]\ntau = 0.05\n[sweep.method.atp]\n[[sweep.runs]]\n", None),
        ("[sweep]\nseeds = 10000\n[sweep.grid]\nprompts = [1, 2]", "at most 10,000 runs; this one has 20,000"),
        ("[[sweep.runs]]\nprompts = 32\n[[sweep.runs]]\n", "prompts=32"),
    ],
)  # fmt: skip
def test_a_bad_sweep_is_refused(text, sentence):
    settings = tomllib.loads(HEAD + text)
    if sentence is None:
        assert len(expand(settings)) == 2
        return
    with pytest.raises(BadConfig) as caught:
        expand(settings)
    assert any(each in str(caught.value) for each in sentence.split("|"))


def test_an_override_keeps_the_table_of_its_value():
    sweep = {"task": {"ioi": {"model": "zoo:ioi"}, "reverse": {"model": "zoo:reverse"}}, "seeds": 3}
    assert fixed(sweep, "task", "reverse") == ({"task": {"reverse": {"model": "zoo:reverse"}}, "seeds": 3}, True)
    assert fixed(sweep, "task", "xproportion") == ({"seeds": 3}, False)
    assert fixed({"grid": {"options": {"tau": [1, 2]}, "n": [1]}}, "options.tau", 3) == (
        {"grid": {"options": {}, "n": [1]}}, False,
    )  # fmt: skip
    assert fixed({"runs": [{"prompts": 3}, {}]}, "prompts", 9) == ({"runs": [{"prompts": 9}, {}]}, True)


@pytest.mark.parametrize("model", ["a/../../b", "C:\\models\\x", "..", "", "α" * 300, "x y\n", "-rf", "./"])
def test_no_name_leads_out_of_the_store(model):
    name = folder_name({"schema": "wiretrace-config/1", "task": "../../etc", "model": model, "method": "m" * 500})
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name)
    assert len(name) <= 140
    assert ".." not in Path(name).parts


def test_a_name_is_of_what_decides_the_result():
    config = build(tomllib.loads(HEAD)).to_dict()
    assert digest(config) == digest(dict(reversed(config.items())))
    assert digest(config) == digest(config | {"device": "cpu"})
    assert digest(config) != digest(config | {"seed": 1})
