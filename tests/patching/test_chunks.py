"""Where memory is short, chunks are halved and the work goes on; nothing else changes.

The errors are the real ones: torch's own classes with the sentences that it writes, and, in a process of its own, an
allocator that is really refused.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits import acdc
from circuits.features import agreement_toy
from circuits.features.activations import collect
from circuits.features.edge_effects import edge_effects
from circuits.features.feature_run import FeatureRun
from circuits.features.node_effects import node_effects
from patching import MaskedRun, atp, atp_star, ceap, chunks, eap_ig, engine, exact, path, toy
from patching.activation import SiteRun, sweep
from patching.chunks import Chunks, LessMemory, free_memory, is_out_of_memory
from patching.component_run import ComponentRun
from patching.errors import InvalidOption, OutOfMemory
from tests import tiny

ERRORS = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total ..."),
    "cpu": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "numpy": lambda: MemoryError("Unable to allocate 3.64 TiB for an array with shape (1000000000000,)"),
    "cublas": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
}


class Shortage:
    """Wraps a function so that it fails with a real error while what it is given is larger than a limit."""

    def __init__(self, most: int, size: Callable[..., int], error: str = "cpu") -> None:
        self.most, self.size, self.error, self.refused, self.sizes = most, size, error, 0, []

    def wrap(self, function: Callable) -> Callable:
        def limited(*args, **options):
            size = self.size(*args, **options)
            if size > self.most:
                self.refused += 1
                raise ERRORS[self.error]()
            self.sizes.append(size)
            return function(*args, **options)

        return limited


@pytest.fixture
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LessMemory)
        yield


def model_and_task(n: int = 6):
    return tiny.model("gpt2", dtype=torch.float64), tiny.task(n=n, prefix=1)


# --- the loop by itself ---------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(0, 40), size=st.integers(1, 50), most=st.integers(1, 50), error=st.sampled_from(sorted(ERRORS))
)
def test_every_thing_is_done_once_in_order_whatever_fits(count: int, size: int, most: int, error: str) -> None:
    tried = []

    def work(rows: slice) -> list[int]:
        tried.append(rows.stop - rows.start)
        if tried[-1] > most:
            raise ERRORS[error]()
        return list(range(rows.start, rows.stop))

    loop = Chunks("masks")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        done = list(loop.over(count, size, work))
    assert [each for _, found in done for each in found] == list(range(count))
    assert [(rows.start, rows.stop) for rows, _ in done] == [(found[0], found[-1] + 1) for _, found in done]
    assert len(tried) <= count + 6  # each failure halves: at most log2(50) of them
    short = min(size, count) > most
    assert (loop.limit is not None) == short
    assert len(caught) == short


def test_what_is_said_names_both_sizes_and_is_said_once() -> None:
    shortage = Shortage(3, lambda rows: rows.stop - rows.start, "cuda")
    loop = Chunks("masks", "cpu")
    work = shortage.wrap(lambda rows: None)
    with pytest.warns(LessMemory, match="with 16 masks at a time; going on with 2") as caught:
        _ = [list(loop.over(40, 16, work)) for _ in range(2)]
    assert len(caught) == 1
    assert shortage.refused == 3  # 16, 8, 4; what is known to be too much is not tried again
    assert set(shortage.sizes) == {2}


def test_one_that_does_not_fit_is_an_error_that_says_what_to_do() -> None:
    def work(rows: slice) -> None:
        raise ERRORS["cpu"]()

    with pytest.raises(OutOfMemory, match=r"DefaultCPUAllocator.*smaller memory=.*fewer or shorter prompts"):
        list(Chunks("masks").over(5, 4, work))


def test_other_errors_pass_through_at_once() -> None:
    calls = []

    def work(rows: slice) -> None:
        calls.append(rows)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)")

    with pytest.raises(RuntimeError, match="shapes"):
        list(Chunks("masks").over(8, 4, work))
    assert len(calls) == 1


def test_what_the_failed_chunk_held_is_let_go_before_the_next_try() -> None:
    import weakref

    held: list[weakref.ref] = []

    def work(size: int) -> int:
        assert all(one() is None for one in held), "tensors of the chunk that failed are still there"
        mine = torch.zeros(size)
        held.append(weakref.ref(mine))
        if size > 1:
            raise ERRORS["cpu"]()
        return size

    with pytest.warns(LessMemory):
        assert Chunks("prompts").fit(8, work) == 1
    assert len(held) == 4


@pytest.mark.parametrize("error", sorted(ERRORS))
def test_the_real_errors_are_known(error: str) -> None:
    assert is_out_of_memory(ERRORS[error]())


def test_the_error_of_this_machine_s_allocator_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


# --- the engine -----------------------------------------------------------------------------------------------------


def masks_per_evaluation(state: engine.State, masks, **options) -> int:
    return len(masks)


def examples_with_gradient(state: engine.State, masks, **options) -> int:
    return len(state.batch.task) if options.get("tensor") is not None else 0


@pytest.mark.parametrize("view", ["edges", "nodes", "positions"])
def test_values_are_those_of_the_run_that_has_room(view: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, task = model_and_task()
    plain, short = (getattr(MaskedRun(model, task), view)() for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    masks = (torch.rand(11, *plain.mask_shape, generator=generator, dtype=torch.float64) < 0.6).double()
    shortage = Shortage(2, masks_per_evaluation)
    expected = plain(masks)
    monkeypatch.setattr("patching.masked.evaluate", shortage.wrap(engine.evaluate))
    with pytest.warns(LessMemory, match="masks at a time; going on with") as caught:
        found = short(masks), short(masks[:3])
    assert torch.allclose(found[0], expected, rtol=0, atol=1e-12)
    assert torch.allclose(found[1], expected[:3], rtol=0, atol=1e-12)
    assert len(caught) == 1
    assert max(shortage.sizes) <= 2


def test_prompts_are_halved_where_gradients_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model, task = model_and_task(n=7)
    plain, short = MaskedRun(model, task), MaskedRun(model, task)
    mask = torch.rand(2, plain.n_units, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values, slopes = plain.value_and_gradient(mask)
    shortage = Shortage(2, examples_with_gradient, "cuda")
    monkeypatch.setattr("patching.masked.evaluate", shortage.wrap(engine.evaluate))
    batches = short.batches
    with pytest.warns(LessMemory, match="7 prompts at a time; going on with 1") as caught:
        found = short.value_and_gradient(mask)
    assert len(caught) == 1
    assert torch.allclose(found[0], values, rtol=0, atol=1e-12)
    assert torch.allclose(found[1], slopes, rtol=0, atol=1e-12)
    assert short.batches is batches  # values without gradients keep their shape
    assert shortage.refused == 2  # 7 and 3; the second mask starts with what fits


def test_a_single_prompt_with_gradients_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    run = MaskedRun(toy.model(), toy.task())
    monkeypatch.setattr("patching.masked.evaluate", Shortage(0, lambda *a, **o: 1).wrap(engine.evaluate))
    with pytest.raises(OutOfMemory, match="one of the prompts at a time"):
        run.gradient(run.ones())
    with pytest.raises(OutOfMemory, match="one of the masks at a time"):
        run(run.ones())
    monkeypatch.undo()
    assert torch.equal(run(run.ones()), run.clean_metric)


@pytest.mark.parametrize("size", [1, 2, 3, 6])
@pytest.mark.parametrize("ablation", ["corrupt", "zero", "mean"])
def test_a_batch_in_pieces_is_the_batch(size: int, ablation: str) -> None:
    model, task = model_and_task()
    run = MaskedRun(model, task, ablation=ablation)
    pieces = run.in_batches_of(size)
    masks = (torch.rand(4, run.n_units, generator=torch.Generator().manual_seed(2)) < 0.5).double()
    assert [len(batch.task) for batch in pieces.batches] == [size] * (6 // size)
    assert torch.allclose(pieces(masks), run(masks), rtol=0, atol=1e-12)
    assert torch.allclose(pieces.gradient(masks[0]), run.gradient(masks[0]), rtol=0, atol=1e-12)
    assert torch.equal(pieces.clean_metric, run.clean_metric)


def test_constants_that_are_trained_stay_in_pieces() -> None:
    model, task = model_and_task()
    run = MaskedRun(model, task, ablation="zero")
    constants = run.batches[0].replacement.map(lambda value: (value + 0.3).requires_grad_())
    view = run.with_constants(constants)
    mask = (torch.rand(run.n_units, generator=torch.Generator().manual_seed(3)) < 0.5).double()
    assert torch.allclose(view.in_batches_of(2)(mask), view(mask), rtol=0, atol=1e-12)
    assert not torch.allclose(view(mask), run(mask))


def first_order(run: MaskedRun) -> dict:
    sites = SiteRun(run.model, run.task)
    return {
        "atp": atp.scores(run).values,
        "eap_ig": eap_ig.inputs(run, steps=2).values,
        "activations": eap_ig.activations(run.nodes(), steps=1).values,
        "ceap": ceap.scores(run, steps=2).values,
        "atp_star": atp_star.scores(sites, "z").mean,
    }


def test_scores_from_gradients_are_those_of_the_run_that_has_room(monkeypatch: pytest.MonkeyPatch, quiet: None) -> None:
    from patching import tape

    model, task = model_and_task()
    expected = first_order(MaskedRun(model, task))
    shortage = Shortage(2, lambda batch, *args, **options: len(batch.task))
    for module in ("first_order", "eap_ig", "ceap"):
        monkeypatch.setattr(f"patching.{module}.record", shortage.wrap(tape.record))
    sites = Shortage(2, lambda part, kinds: len(part.answer))
    monkeypatch.setattr("patching.atp_star._Tape", sites.wrap(atp_star._Tape))
    found = first_order(MaskedRun(model, task))
    assert shortage.refused
    assert sites.refused
    for name, values in expected.items():
        assert torch.allclose(found[name], values, rtol=0, atol=1e-12), name


def test_patches_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    from patching import activation

    model, task = model_and_task()
    expected = sweep(SiteRun(model, task), "z").mean
    shortage = Shortage(1, lambda part, patches, first: len(patches))
    monkeypatch.setattr("patching.activation._Replace", shortage.wrap(activation._Replace))
    with pytest.warns(LessMemory, match="patches at a time; going on with 1"):
        found = sweep(SiteRun(model, task), "z").mean
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_paths_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    model, task = model_and_task()
    edges = list(MaskedRun(model, task).graph.edges)[-9:]
    expected = path.direct(MaskedRun(model, task), edges, norm="frozen").mean
    shortage = Shortage(2, lambda self, port, senders: len(senders))
    original = path._CleanRun.metric
    monkeypatch.setattr(path._CleanRun, "metric", shortage.wrap(original))
    with pytest.warns(LessMemory):
        found = path.direct(MaskedRun(model, task), edges, norm="frozen").mean
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("positional", [False, True])
def test_components_are_halved(positional: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from patching import component_run

    model, task = model_and_task()
    plain, short = ComponentRun(model, task), ComponentRun(model, task)
    if positional:
        plain, short = plain.positions(), short.positions()
    masks = (torch.rand(9, *plain.mask_shape, generator=torch.Generator().manual_seed(4)) < 0.5).double()
    expected, slopes = plain(masks), plain.slopes()
    shortage = Shortage(2, lambda part, mask, layer: len(mask) if not mask.requires_grad else len(part))
    monkeypatch.setattr(component_run.Part, "run", shortage.wrap(component_run.Part.run))
    with pytest.warns(LessMemory) as caught:
        found = short(masks), short.slopes()
    assert torch.allclose(found[0], expected, rtol=0, atol=1e-12)
    assert torch.allclose(found[1], slopes, rtol=0, atol=1e-12)
    assert len(caught) == 2  # masks, and prompts for the gradients


@pytest.mark.parametrize("make", [MaskedRun, SiteRun, ComponentRun])
@pytest.mark.parametrize("ablation", ["corrupt", "mean"])
def test_runs_are_made_in_smaller_batches_where_memory_is_short(
    make: type, ablation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from patching import activation, component_run, masked

    model, task = model_and_task()
    places = {MaskedRun: (masked, "Batch"), SiteRun: (activation, "Part"), ComponentRun: (component_run, "Part")}
    module, name = places[make]
    index = {MaskedRun: 2, SiteRun: 1, ComponentRun: 1}[make]
    shortage = Shortage(3, lambda *args, **options: len(args[index]))
    before = make(model, task, ablation=ablation)
    monkeypatch.setattr(module, name, shortage.wrap(getattr(module, name)))
    with pytest.warns(LessMemory, match="6 prompts at a time; going on with 3"):
        after = make(model, task, ablation=ablation)
    metric = "base_metric" if make is SiteRun else "clean_metric"
    assert torch.allclose(getattr(before, metric), getattr(after, metric), rtol=0, atol=1e-12)
    assert after.largest_batch == 3


def test_features_and_their_edges_are_halved(monkeypatch: pytest.MonkeyPatch, quiet: None) -> None:
    from circuits.features import edge_graph
    from circuits.features import node_effects as of_nodes

    def both() -> tuple:
        run = FeatureRun(agreement_toy.model(), agreement_toy.task(), agreement_toy.dictionaries())
        effects = node_effects(run, steps=3)
        run.prompt_chunks.limit = None  # or edges would begin with what fitted before
        return effects.nodes(0.1), edge_effects(run, effects, nodes=effects.nodes(0.1), steps=3).edges(0.1)

    nodes, edges = both()
    shortage = Shortage(1, lambda part, *args: len(part))
    monkeypatch.setattr(of_nodes, "products", shortage.wrap(of_nodes.products))
    graphs = Shortage(1, lambda part, *args: len(part))
    monkeypatch.setattr(edge_graph.Moves, "of", graphs.wrap(edge_graph.Moves.of))
    found = both()
    assert shortage.refused
    assert graphs.refused
    assert found[0] == pytest.approx(nodes, abs=1e-9)
    assert found[1] == pytest.approx(edges, abs=1e-9)


def test_activations_are_collected_a_few_prompts_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from circuits.features import activations

    model, task = model_and_task()
    expected = collect(model, task, ["mlp_out0", "resid_post1"])
    shortage = Shortage(1, lambda model, tokens, sites: len(tokens))
    monkeypatch.setattr(activations, "read", shortage.wrap(activations.read))
    with pytest.warns(LessMemory):
        found = collect(model, task, ["mlp_out0", "resid_post1"])
    for site, rows in expected.items():
        assert torch.allclose(found[site], rows, rtol=0, atol=1e-12)


# --- searches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.003, 0.02])
@pytest.mark.parametrize("view", ["edges", "nodes"])
def test_acdc_decides_the_same_at_every_edge(
    tau: float, view: str, monkeypatch: pytest.MonkeyPatch, quiet: None
) -> None:
    model, task = model_and_task()

    def search() -> tuple:
        decisions: list = []
        run = getattr(MaskedRun(model, task, metric="kl"), view)()
        circuit = acdc.search(run, tau=tau, watch=decisions.append)
        return set(circuit.edges), [(each.name, each.kept) for each in decisions]

    expected = search()
    shortage = Shortage(2, masks_per_evaluation)
    slopes = Shortage(2, lambda state, number, **options: len(state.batch.task))
    monkeypatch.setattr("patching.masked.evaluate", shortage.wrap(engine.evaluate))
    monkeypatch.setattr("patching.masked.slopes", slopes.wrap(engine.slopes))
    assert search() == expected
    assert shortage.refused
    assert bool(slopes.refused) == (view == "edges")


def test_a_cursor_moves_as_before_after_a_shortage(monkeypatch: pytest.MonkeyPatch, quiet: None) -> None:
    model, task = model_and_task()
    plain, short = MaskedRun(model, task).cursor(), MaskedRun(model, task).cursor()
    generator = torch.Generator().manual_seed(5)
    mask = plain.run.ones()
    for step in range(4):
        looks = mask.repeat(5, 1)
        looks[torch.arange(5), torch.randint(plain.run.n_units, (5,), generator=generator)] = 0.0
        expected = plain.look(looks)
        with monkeypatch.context() as patch:
            if step != 2:  # and one that has room between them
                patch.setattr("patching.masked.evaluate", Shortage(2, masks_per_evaluation).wrap(engine.evaluate))
            found = short.look(looks)
        assert torch.allclose(found, expected, rtol=0, atol=1e-12)
        plain.move(3)
        short.move(3)
        mask = looks[3]
        assert torch.allclose(short.metric, plain.metric, rtol=0, atol=1e-12)
        assert torch.allclose(short.metric, short.run(mask), rtol=0, atol=1e-12)


def test_a_state_is_whole_when_memory_runs_out_while_it_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    model, task = model_and_task()
    run = MaskedRun(model, task)
    cursor = run.cursor()
    mask = run.ones()
    mask[::3] = 0.0
    cursor.look(mask[None])
    own, calls = engine.State.own, []

    def refused(self: engine.State, name: str, layer: int):
        calls.append(name)
        if len(calls) == 4:
            raise ERRORS["cpu"]()
        return own(self, name, layer)

    with monkeypatch.context() as patch:
        patch.setattr(engine.State, "own", refused)
        with pytest.raises(RuntimeError, match="allocate"):
            cursor.move(0)
    assert torch.equal(cursor.metric, run.clean_metric)
    other = run.ones()
    other[5] = 0.0
    assert torch.allclose(cursor.look(other[None])[0], run(other), rtol=0, atol=1e-12)


# --- budgets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [0, -1, True])
@pytest.mark.parametrize("make", [MaskedRun, SiteRun, ComponentRun])
def test_a_budget_is_a_number_of_bytes(make: type, memory: object) -> None:
    with pytest.raises(InvalidOption, match="expected memory to be a number of bytes"):
        make(toy.model(), toy.task(), memory=memory)


def test_free_memory_is_no_more_than_the_machine_has() -> None:
    free = free_memory("cpu")
    if free is None:
        pytest.skip("this system does not say")
    assert 0 < free <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize("version", [1, 2])
def test_the_limits_of_control_groups_count(version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    base = tmp_path if version == 2 else tmp_path / "memory"
    for group, limit, usage in (("a", "1000", "400"), ("a/b", "max" if version == 2 else "9000", "300")):
        (base / group).mkdir(parents=True)
        for name, number in zip(names, (limit, usage), strict=True):
            (base / group / name).write_text(number + "\n")
    told = {2: ["0::/a/b"], 1: ["5:memory:/a/b", "4:cpu,cpuacct:/x"]}[version]
    real = chunks._lines
    monkeypatch.setattr(chunks, "_lines", lambda path: told if str(path) == "/proc/self/cgroup" else real(path))
    assert min(chunks._in_groups(tmp_path)) == 600


# --- memory that is really refused ----------------------------------------------------------------------------------

STARVED = """
    import resource, warnings
    import torch
    torch.set_num_threads(1)
    from circuits import tasks
    from patching import LensModel, MaskedRun
    from patching.chunks import LessMemory

    model = LensModel.load("zoo:ioi", device="cpu")
    run = MaskedRun(model, tasks.ioi.make(model, n=8, seed=0), memory=1 << 40)  # everything at once, or so it thinks
    masks = (torch.rand(48, run.n_units, generator=torch.Generator().manual_seed(0)) < 0.7).to(torch.float32)
    expected = torch.cat([run(part) for part in masks.split(3)])
    used = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmSize"))
    resource.setrlimit(resource.RLIMIT_AS, (used + 12 * run._bytes(8),) * 2)  # room for about a dozen masks
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found, again = run(masks), run(masks)
    assert len(caught) == 1 and caught[0].category is LessMemory, [str(each.message) for each in caught]
    print(caught[0].message)
    for values in (found, again):
        assert torch.allclose(values, expected, rtol=0, atol=1e-4), (values - expected).abs().max()
    print("the same")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space, as Linux does")
def test_a_process_whose_memory_is_really_refused_goes_on() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(STARVED)],
        capture_output=True,
        text=True,
        timeout=900,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "with 48 masks at a time; going on with" in done.stdout, done.stdout
    assert done.stdout.splitlines()[-1] == "the same"


def test_exact_scores_survive_a_shortage(monkeypatch: pytest.MonkeyPatch, quiet: None) -> None:
    model, task = model_and_task()
    expected = exact.scores(MaskedRun(model, task)).values
    monkeypatch.setattr("patching.masked.evaluate", Shortage(3, masks_per_evaluation, "numpy").wrap(engine.evaluate))
    assert torch.allclose(exact.scores(MaskedRun(model, task)).values, expected, rtol=0, atol=1e-12)
