"""Path patching against masks, arithmetic by hand, and hooks on the model's own code."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from graphs.errors import BadName, UnknownEdge, UnknownNode
from graphs.nodes import Edge, Node, Port, head
from patching import toy
from patching.activation import SiteRun
from patching.errors import InvalidOption
from patching.lens import LensModel
from patching.masked import MaskedRun
from patching.path import between, direct, proportion_explained, sweep_senders, through
from patching.task import Task
from tests import tiny
from tests.oracle import EVERY_LOGIT, Oracle, at_answer, projected, tolerance

SAME = 1e-11
Place = tuple[str, int | None]  # what and in which layer
SHAPES = ("gpt2", "llama", "gemma2", "gpt_neox", "attention_only")  # every shape of block and of norm
SEQUENTIAL = ("gpt2", "llama", "gpt_neo")  # no norm behind attention


@functools.lru_cache(maxsize=16)
def masked(family: str, ablation: str = "corrupt", prefix: int = 2) -> MaskedRun:
    return MaskedRun(tiny.model(family), tiny.task(prefix=prefix), metric=EVERY_LOGIT, ablation=ablation)


@functools.lru_cache(maxsize=16)
def sites(family: str, direction: str = "noising", prefix: int = 2) -> SiteRun:
    return SiteRun(tiny.model(family), tiny.task(prefix=prefix), metric=EVERY_LOGIT, direction=direction)


@functools.lru_cache(maxsize=1)
def linear_model() -> LensModel:
    """Attention-only, no norm, and queries of zero: patterns are uniform whatever is patched."""
    bridge = tiny.native(normalization_type=None)
    with torch.no_grad():
        for layer in bridge.original_model.layers:
            for parameter in layer.attn.q.parameters():
                parameter.zero_()
    return LensModel.wrap(bridge, name="linear")


def some_unchanged(task: Task) -> Task:
    """The same task, its second prompt not corrupted."""
    corrupt = task.corrupt.clone()
    corrupt[1] = task.clean[1]
    return Task(task.name, task.clean, corrupt, task.answers, task.wrong_answers, task.positions, metric=task.metric)


def a_few_edges(run: MaskedRun) -> list[Edge]:
    """Some edges into every kind of receiver."""
    edges = run.graph.edges
    return list(dict.fromkeys([*edges[::11], *edges[-3:]]))


# --- direct ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", SHAPES)
def test_a_direct_edge_is_a_mask_entry(family: str) -> None:
    run = masked(family)
    edges = a_few_edges(run)
    effects = direct(run, edges)
    masks = run.ones().repeat(len(edges), 1)
    for mask, edge in zip(masks, edges, strict=True):
        mask[run.graph.number(edge)] = 0
    torch.testing.assert_close(effects.values, (run(masks) - run.clean_metric).T, rtol=0, atol=SAME)
    assert effects.labels == (tuple(map(str, edges)),)
    assert float(effects.importance.max()) > 0.01


@pytest.mark.parametrize("norm", ["recomputed", "frozen"])
@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gpt_neox"])
def test_a_sender_that_does_not_change_does_nothing_to_the_last_bit(family: str, norm: str) -> None:
    task = some_unchanged(tiny.task())
    run = MaskedRun(tiny.model(family), task, metric=EVERY_LOGIT)
    effects = direct(run, a_few_edges(run), norm=norm)
    assert (effects.values[1] == 0).all()
    assert (effects.values[[0, 2]].abs().sum(1) > 0.01).all()
    joint = between(run, ["input", "a0.h1"], ["a1.h0", "logits"])
    assert joint.values[1] == 0
    assert (joint.values[[0, 2]].abs() > 0).all()


def test_what_changes_after_the_answer_alone_does_nothing() -> None:
    task = tiny.task()
    corrupt = task.clean.clone()
    corrupt[:, -1] = task.corrupt[:, -1]  # the second prompt is answered one position earlier
    task = Task(task.name, task.clean, corrupt, task.answers, task.wrong_answers, task.positions, metric=task.metric)
    run = MaskedRun(tiny.model("gpt2"), task, metric=EVERY_LOGIT)
    for norm in ("recomputed", "frozen"):
        values = direct(run, ["input->m0", "input->logits"], norm=norm).values
        assert (values[1] == 0).all()
        assert (values[0] != 0).all()


@pytest.mark.parametrize("name", ["toy", "two layers"])
def test_in_a_linear_model_direct_edges_add_up_to_the_total_effect(name: str) -> None:
    model, task = (toy.model(), toy.task()) if name == "toy" else (linear_model(), tiny.task())
    run = MaskedRun(model, task)
    for node in run.graph.sources:
        edges = [edge for edge in run.graph.edges if edge.source == node]
        mask = run.nodes().ones()
        mask[run.graph.source_index[node]] = 0
        whole = run.nodes()(mask) - run.clean_metric
        for norm in ("recomputed", "frozen"):
            parts = direct(run, edges, norm=norm).values.sum(1)
            torch.testing.assert_close(parts, whole, rtol=0, atol=1e-10)
    assert float((run.corrupt_metric - run.clean_metric).abs().max()) > 0.1


def test_the_sum_is_not_the_total_effect_in_a_model_that_is_not_linear() -> None:
    run = masked("gpt2")
    edges = [edge for edge in run.graph.edges if str(edge.source) == "m0"]
    whole = between(run, "m0", [edge.reads for edge in edges]).values[:, 0]
    assert float((direct(run, edges).values.sum(1) - whole).abs().max()) > 0.01


def test_frozen_is_recomputed_without_norms() -> None:
    model = LensModel.wrap(tiny.native(normalization_type=None, attn_only=False, d_mlp=48), name="no norm")
    run = MaskedRun(model, tiny.task(prefix=2), metric=EVERY_LOGIT)
    edges = run.graph.edges[::3]
    frozen, recomputed = direct(run, edges, norm="frozen"), direct(run, edges)
    torch.testing.assert_close(frozen.values, recomputed.values, rtol=0, atol=1e-10)
    assert float(recomputed.importance.max()) > 0.1


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox"])
def test_frozen_differs_from_recomputed_with_norms(family: str) -> None:
    run = masked(family)
    edges = a_few_edges(run)
    gap = direct(run, edges, norm="frozen").values - direct(run, edges).values
    assert float(gap.abs().max()) > 1e-3


@contextmanager
def hooked(handles: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def frozen_by_hand(run: MaskedRun, edge: Edge, *, zero: bool = False) -> Tensor:
    """The frozen effect of one edge, with hooks on the model's own modules and a norm written out."""
    bridge, task = run.model.bridge, run.task
    oracle = Oracle(run.model)
    sender = edge.source
    change = (0 if zero else oracle.sources(task.corrupt)[sender]) - oracle.sources(task.clean)[sender]
    layer, entering = edge.target.layer, {}
    module = bridge.ln_final if layer is None else bridge.blocks[layer].ln2 if edge.port is None else None
    norm = module or bridge.blocks[layer].ln1
    keep = norm.register_forward_pre_hook(lambda _m, args: entering.update(x=args[0]))
    with hooked([keep]), torch.no_grad():
        clean = bridge(task.clean)
    x = entering["x"]
    weight = norm.original_component.weight
    if run.model.name == "llama":
        read = change / (x.pow(2).mean(-1, keepdim=True) + norm.original_component.variance_epsilon).sqrt() * weight
    else:
        variance = x.var(-1, unbiased=False, keepdim=True)
        centred = change - change.mean(-1, keepdim=True)
        read = centred / (variance + norm.original_component.eps).sqrt() * weight
    if module is None:
        letter, part = str(edge.port), edge.target.index
        attention = bridge.blocks[layer].attn
        added = read @ getattr(attention, f"W_{letter.upper()}")[part]

        def add(_module: Any, _args: Any, output: Tensor) -> Tensor:
            output = output.clone()
            output.unflatten(-1, (-1, added.shape[-1]))[:, :, part] += added
            return output

        handle = getattr(attention, letter).register_forward_hook(add)
    else:
        handle = module.register_forward_hook(lambda _m, _a, output: output + read)
    with hooked([handle]), torch.no_grad():
        patched = bridge(task.clean)
    return projected(at_answer(task, patched)) - projected(at_answer(task, clean))


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("gpt2", ("m0->a1.h2<q>", "a0.h1->a1.h0<k>", "input->a0.h3<v>", "a0.h2->m0", "m0->m1", "a1.h3->logits")),
        ("llama", ("m0->a1.h2<q>", "a0.h1->a1.kv1<k>", "input->a0.kv0<v>", "a0.h2->m0", "m0->m1", "m1->logits")),
        ("gpt_neox", ("m0->a1.h1<q>", "m0->m1", "input->logits")),
    ],
)
def test_frozen_is_the_computation_by_hand(family: str, names: tuple[str, ...]) -> None:
    run = masked(family)
    effects = direct(run, names, norm="frozen").values
    for column, name in enumerate(names):
        own = frozen_by_hand(run, Edge.parse(name))
        torch.testing.assert_close(effects[:, column], own, rtol=0, atol=tolerance(family))
        assert float(own.abs().max()) > 1e-3


def test_chunks_do_not_change_direct_effects() -> None:
    task, model = tiny.task(n=5), tiny.model("gpt2")
    small = MaskedRun(model, task, metric=EVERY_LOGIT, memory=1 << 15)
    assert len(small.batches) > 1
    assert small.samples_that_fit == 1
    seen: list[tuple[int, int]] = []
    for norm in ("recomputed", "frozen"):
        edges = a_few_edges(small)[:6]
        large = direct(MaskedRun(model, task, metric=EVERY_LOGIT), edges, norm=norm)
        found = direct(small, edges, norm=norm, progress=lambda done, total: seen.append((done, total)))
        torch.testing.assert_close(found.values, large.values, rtol=0, atol=SAME)
        assert seen[-1][0] == seen[-1][1]


def test_frozen_takes_replacements_that_are_no_run() -> None:
    run = masked("attention_only", "zero")
    for name in ("a0.h1->a1.h0<v>", "a1.h2->logits"):
        own = frozen_by_hand(run, Edge.parse(name), zero=True)
        torch.testing.assert_close(direct(run, name, norm="frozen").values[:, 0], own, rtol=0, atol=SAME)
        assert float((direct(run, name).values[:, 0] - own).abs().max()) > 1e-3


# --- between --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", SHAPES)
def test_between_one_and_one_is_a_direct_edge(family: str) -> None:
    run = masked(family)
    for edge in run.graph.edges[1::23]:
        torch.testing.assert_close(
            between(run, edge.source, edge.reads).values, direct(run, edge).values, rtol=0, atol=SAME
        )


@pytest.mark.parametrize("family", SHAPES)
def test_between_takes_all_edges_together(family: str) -> None:
    run = masked(family)
    grouped = run.model.architecture.grouped
    senders = ("input", "a0.h1", "a0.h3")
    owner = "a1.kv1" if grouped else "a1.h2"
    ports = ("a1.h2<q>", f"{owner}<k>", f"{owner}<v>", "logits")
    mask = run.ones()
    for sender in senders:
        for port in ports:
            mask[run.graph.number(Edge.parse(f"{sender}->{port}"))] = 0
    effects = between(run, senders, ["a1.h2", "logits"])  # the head stands for its three ports
    torch.testing.assert_close(effects.values[:, 0], run(mask) - run.clean_metric, rtol=0, atol=SAME)
    assert effects.labels == ((f"input, a0.h1, a0.h3 -> {', '.join(ports)}",),)
    assert float(effects.values.abs().max()) > 0.01


def test_between_leaves_out_pairs_without_an_edge() -> None:
    run = masked("gpt2")
    two = between(run, ["a0.h0", "a1.h0"], ["a1.h1<q>", "m1"])
    mask = run.ones()
    for name in ("a0.h0->a1.h1<q>", "a0.h0->m1", "a1.h0->m1"):
        mask[run.graph.number(Edge.parse(name))] = 0
    torch.testing.assert_close(two.values[:, 0], run(mask) - run.clean_metric, rtol=0, atol=SAME)


# --- through --------------------------------------------------------------------------------------------------------


class Hooks:
    """Runs C and D of the IOI paper with hooks on a bridge's modules: q, k and v of every head are frozen."""

    def __init__(self, model: LensModel, base: Tensor, source: Tensor) -> None:
        self.bridge, self.tokens = model.bridge, base
        self.shape = model.architecture
        self.of_base, self.of_source = self.run(base, {})[1], self.run(source, {})[1]

    def modules(self) -> Iterator[tuple[Place, Any, bool]]:
        """Each site, its module, and whether it is what enters that module."""
        for layer, block in enumerate(self.bridge.blocks):
            for letter in "qkv":
                yield (letter, layer), getattr(block.attn, letter), False
            yield ("z", layer), block.attn.o, True
            if self.shape.has_mlp:
                yield ("read", layer), block.ln2, False
                yield ("mlp", layer), block.mlp, False
        yield ("read", self.shape.n_layers), self.bridge.ln_final, True

    @torch.no_grad()
    def run(self, tokens: Tensor, change: dict[Place, Callable[[Tensor], Tensor]]) -> tuple[Tensor, dict]:
        """Logits, and every site as it came, before it was changed."""
        seen: dict[Place, Tensor] = {}

        def hook(site: Place, enters: bool) -> Callable[..., Any]:
            def changed(value: Tensor) -> Tensor:
                seen[site] = value.clone()
                return change[site](value.clone()) if site in change else value

            if enters:
                return lambda _module, args: (changed(args[0]), *args[1:])
            return lambda _module, _args, output: changed(output)

        handles = [
            (module.register_forward_pre_hook if enters else module.register_forward_hook)(hook(site, enters))
            for site, module, enters in self.modules()
        ]
        with hooked(handles):
            return self.bridge(tokens), seen

    def heads(self, kind: str, value: Tensor) -> Tensor:
        """Split into heads or groups: a view."""
        return value.unflatten(-1, (self.shape.n_heads if kind in "qz" else self.shape.n_kv_heads, -1))

    def effect(self, task: Task, senders: list[Node], ports: list[Port], *, freeze_mlps: bool) -> Tensor:
        """Metric of run D minus that of the base run."""
        kept = [site for site in self.of_base if site[0] in "qkv" or (freeze_mlps and site[0] == "mlp")]
        c = {site: functools.partial(self.frozen, self.of_base[site]) for site in kept}
        for node in senders:
            site = ("z" if node.kind == "head" else "mlp", node.layer)
            c[site] = functools.partial(self.overwritten, site, [n for n in senders if n.layer == node.layer])
        logits, read = self.run(self.tokens, c)
        if ports != [Port(Node("logits"))]:
            d = {}
            for node, letter in ports:
                site = (letter or "read", node.layer)
                parts = [n.index for n, which in ports if (which or "read", n.layer) == site]
                d[site] = functools.partial(self.received, letter, parts, read[site])
            logits, _ = self.run(self.tokens, d)
        plain = self.run(self.tokens, {})[0]
        return projected(at_answer(task, logits)) - projected(at_answer(task, plain))

    def frozen(self, kept: Tensor, _value: Tensor) -> Tensor:
        return kept.clone()

    def overwritten(self, site: Place, nodes: list[Node], value: Tensor) -> Tensor:
        """The source's MLP, or the heads that send as in the source."""
        if site[0] == "mlp":
            return self.of_source[site].clone()
        for node in nodes:
            if node.kind == "head":
                self.heads("z", value)[:, :, node.index] = self.heads("z", self.of_source[site])[:, :, node.index]
        return value

    def received(self, letter: str | None, parts: list[int | None], recorded: Tensor, value: Tensor) -> Tensor:
        if letter is None:
            return recorded.clone()
        self.heads(letter, value)[:, :, parts] = self.heads(letter, recorded)[:, :, parts]
        return value


CASES = (
    (["a0.h1"], ["a1.h2<q>"]),
    (["a0.h1", "a0.h3", "m0"], ["a1.h0", "a1.h2<q>"]),
    (["a0.h2"], ["m1"]),
    (["m0"], ["m1", "a1.h3"]),
    (["a0.h0", "a1.h2"], ["logits"]),
)
WITHIN_A_BLOCK = (  # where the MLP reads the heads of its own block
    (["a0.h0"], ["m0", "a1.h1"]),
    (["a0.h0", "a1.h2"], ["a1.h0<q>", "m1"]),
)


@pytest.mark.parametrize("freeze_mlps", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox"])
def test_through_is_the_four_runs_of_the_paper(family: str, freeze_mlps: bool) -> None:
    for direction in ("noising", "denoising"):
        run = sites(family, direction)
        task, graph = run.task, run.model.graph
        base, source = (task.clean, task.corrupt) if direction == "noising" else (task.corrupt, task.clean)
        hooks = Hooks(run.model, base, source)
        for senders, receivers in CASES + (() if graph.architecture.parallel else WITHIN_A_BLOCK):
            ports: list[Port] = []
            for name in receivers:
                node = Node.parse(name.split("<")[0])
                ports += [Port.parse(name)] if "<" in name or node.kind == "logits" else graph.readers(node)
            theirs = hooks.effect(task, [Node.parse(name) for name in senders], ports, freeze_mlps=freeze_mlps)
            ours = through(run, senders, receivers, freeze_mlps=freeze_mlps).values[:, 0]
            torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance(family))
            assert float(theirs.abs().max()) > 1e-3, (senders, receivers)


@pytest.mark.parametrize("family", [*SEQUENTIAL, "gpt_neox", "attention_only"])
def test_with_mlps_frozen_and_the_logits_it_is_the_direct_effect(family: str) -> None:
    run, edges = sites(family), masked(family)
    for senders in (["a0.h1"], ["a1.h0", "a1.h3"], ["input", "a0.h2"], ["a1.h2", "a0.h0", "a0.h1"]):
        ours = through(run, senders, "logits", freeze_mlps=True)
        torch.testing.assert_close(ours.values, between(edges, senders, "logits").values, rtol=0, atol=SAME)
        assert float(ours.values.abs().min()) > 0
    if run.model.architecture.has_mlp:
        ours = through(run, ["m0", "a1.h1"], "logits", freeze_mlps=True)
        torch.testing.assert_close(ours.values, between(edges, ["m0", "a1.h1"], "logits").values, rtol=0, atol=SAME)
        free = through(run, ["a0.h1"], "logits").values
        assert float((free - through(run, ["a0.h1"], "logits", freeze_mlps=True).values).abs().max()) > 1e-3


@pytest.mark.parametrize("family", SEQUENTIAL)
def test_with_mlps_frozen_it_is_the_direct_edges_into_receivers_that_do_not_read_each_other(family: str) -> None:
    run, edges = sites(family), masked(family)
    into = (["a0.h1"], ["a1.h2"]), (["a0.h0", "m0"], ["a1.h0", "a1.h3<q>"]), (["a0.h2", "m0"], ["m1"]), ("input", "m0")
    for senders, receivers in into:
        ours = through(run, senders, receivers, freeze_mlps=True).values
        torch.testing.assert_close(ours, between(edges, senders, receivers).values, rtol=0, atol=SAME)
        assert float(ours.abs().min()) > 0


def test_a_receiver_keeps_what_was_recorded_whatever_earlier_receivers_write() -> None:
    run, edges = sites("gpt2"), masked("gpt2")
    set_, free = through(run, "m0", ["a1.h0", "m1"], freeze_mlps=True), between(edges, "m0", ["a1.h0", "m1"])
    assert float((set_.values - free.values).abs().max()) > 1e-3


@pytest.mark.parametrize("family", SHAPES)
def test_everything_that_is_written_into_the_logits_is_the_source_run(family: str) -> None:
    run = sites(family)
    ours = through(run, run.model.graph.sources, "logits").values[:, 0]
    torch.testing.assert_close(ours, run.source_metric - run.base_metric, rtol=0, atol=SAME)


@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("receivers", [["a1.h0<q>", "a1.h2"], ["m1"], ["logits"]])
def test_a_sweep_is_one_call_for_each_head(receivers: list[str], direction: str) -> None:
    run = sites("gpt2", direction)
    seen: list[tuple[int, int]] = []
    effects = sweep_senders(run, receivers, progress=lambda done, total: seen.append((done, total)))
    assert effects.axes == ("layer", "head")
    assert effects.values.shape == (3, 2, 4)
    assert seen[-1][0] == seen[-1][1] > 0
    for layer in range(2):
        for index in range(4):
            if layer == 1 and receivers[0].startswith("a1"):
                assert (effects.values[:, layer, index] == 0).all()
                continue
            one = through(run, head(layer, index), receivers).values[:, 0]
            torch.testing.assert_close(effects.values[:, layer, index], one, rtol=0, atol=SAME)
            assert float(one.abs().max()) > 0


def test_chunks_do_not_change_a_sweep() -> None:
    task, model = tiny.task(n=5), tiny.model("llama")
    small = SiteRun(model, task, metric=EVERY_LOGIT, memory=1 << 15)
    assert len(small.parts) > 1
    whole = sweep_senders(SiteRun(model, task, metric=EVERY_LOGIT), "a1.h3")
    torch.testing.assert_close(sweep_senders(small, "a1.h3").values, whole.values, rtol=0, atol=SAME)


@pytest.mark.parametrize("receivers", ["a1.h2", "m1", "logits"])
def test_through_does_nothing_to_prompts_on_which_the_senders_do_not_change(receivers: str) -> None:
    run = SiteRun(tiny.model("gpt2"), some_unchanged(tiny.task()), metric=EVERY_LOGIT)
    for effects in (through(run, ["a0.h1", "m0"], receivers), sweep_senders(run, receivers)):
        assert (effects.values[1] == 0).all()
        assert (effects.values[[0, 2]] != 0).any()


def test_nothing_of_a_run_is_changed() -> None:
    run = SiteRun(tiny.model("gpt2"), tiny.task(), metric=EVERY_LOGIT)
    kept = [value for part in run.parts for values in (part.base, part.source) for k in values for value in values[k]]
    before = [value.clone() for value in kept]
    through(run, ["input", "a0.h1", "m0"], ["a1.h2", "m1"])
    through(run, ["a0.h1"], "logits", freeze_mlps=True)
    assert all(torch.equal(a, b) for a, b in zip(before, kept, strict=True))


# --- proportion explained -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["kl", "logit_difference"])
@pytest.mark.parametrize("family", SHAPES)
def test_everything_explains_all_and_nothing_explains_nothing(family: str, metric: str) -> None:
    run = MaskedRun(tiny.model(family), tiny.task(), metric=metric)
    assert proportion_explained(run, run.graph.edges).proportion == pytest.approx(1, abs=1e-12)
    assert proportion_explained(run, []).proportion == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("metric", ["kl", "logit_difference"])
def test_explained_is_measured_from_masks_prompt_by_prompt(metric: str) -> None:
    run = MaskedRun(tiny.model("gpt2"), tiny.task(n=4), metric=metric)
    kept = list(run.graph.edges[::2])
    mask = run.zeros()
    mask[::2] = 1
    found = proportion_explained(run, kept)
    unexplained, total = ((run(m) - run.clean_metric).abs() for m in (mask, run.zeros()))
    torch.testing.assert_close(found.unexplained, unexplained, rtol=0, atol=SAME)
    assert found.proportion == pytest.approx(1 - float(unexplained.mean() / total.mean()))
    assert float(found.unexplained.mean()) > 0
    assert "of the total effect" in repr(found)
    assert metric in repr(found)


def test_differences_of_opposite_sign_do_not_cancel() -> None:
    run = MaskedRun(toy.model(), toy.task())
    gaps = run.corrupt_metric - run.clean_metric
    assert float(gaps.min()) < 0 < float(gaps.max())
    found = proportion_explained(run, [])
    torch.testing.assert_close(found.total, gaps.abs(), rtol=0, atol=SAME)


def test_dead_ends_explain_nothing() -> None:
    run = MaskedRun(tiny.model("gpt2"), tiny.task(), metric="kl")
    kept = ["input->a0.h1<v>", "a0.h1->m1", "m1->logits", "input->logits"]
    dead = ["input->a1.h0<q>", "a0.h1->a1.h2<v>", "input->a0.h3<k>", "m0->a1.h3<q>"]  # nobody reads these heads
    plain, more = proportion_explained(run, kept), proportion_explained(run, kept + dead)
    assert more.proportion == pytest.approx(plain.proportion, abs=1e-12)
    alive = proportion_explained(run, [*kept, *dead, "a0.h3->logits"])
    assert abs(alive.proportion - plain.proportion) > 1e-6


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda m, _s: direct(m, []), InvalidOption, "at least one edge"),
        (lambda m, _s: direct(m, "input->a0.h0<v>", norm="fixed"), InvalidOption, "recomputed, frozen"),
        (lambda m, _s: direct(m, "m0->a0.h0<q>"), UnknownEdge, "reads only what is written before"),
        (lambda m, _s: direct(m, "input->a0.h0<v>@3"), InvalidOption, "Use input->a0.h0<v>"),
        (lambda m, _s: direct(m, "input to a0"), BadName, "SOURCE->TARGET"),
        (lambda m, _s: direct(m.nodes(), "input->logits"), InvalidOption, "run over edges"),
        (lambda m, _s: direct(m.positions(), "input->logits"), InvalidOption, "run over edges"),
        (lambda m, _s: between(m.nodes(), "input", "logits"), InvalidOption, "run over edges"),
        (lambda m, _s: between(m, "m1", "a1.h0"), InvalidOption, "write before a receiver reads; got m1"),
        (lambda m, _s: between(m, ["m1", "a0.h0"], "a1.h0"), InvalidOption, "got m1, after every one of a1.h0<q>"),
        (lambda m, _s: between(m, "m0", ["a0.h0<q>", "m1"]), InvalidOption, "got a0.h0<q>, before every one of m0"),
        (lambda m, _s: between(m, [], "logits"), InvalidOption, "at least one sender"),
        (lambda m, _s: between(m, "input", []), InvalidOption, "at least one receiver"),
        (lambda m, _s: between(m, "logits", "logits"), InvalidOption, "write to the residual stream"),
        (lambda m, _s: between(m, "input", "input"), InvalidOption, "only writes"),
        (lambda m, _s: between(m, "a7.h0", "logits"), UnknownNode, "a0.h0 to a1.h3"),
        (lambda m, _s: between(m, "input", "a7.h0"), UnknownNode, "a0.h0 to a1.h3"),
        (lambda m, _s: between(m, "input", "a1.kv0<k>"), UnknownEdge, "use a1.h0<k>"),
        (lambda m, _s: between(m, "input", "a1.h0<x>"), BadName, "q, k or v"),
        (lambda m, _s: between(m, "L1H0", "logits"), BadName, "did you mean"),
        (lambda m, _s: proportion_explained(m.nodes(), []), InvalidOption, "run over edges"),
        (lambda m, _s: proportion_explained(m, ["m1->m0"]), UnknownEdge, "reads only what is written before"),
        (lambda _m, s: through(s, "a1.h0", "a1.h1<q>"), InvalidOption, "write before a receiver reads; got a1.h0"),
        (lambda _m, s: through(s, "m1", "a0.h1"), InvalidOption, "choose later receivers"),
        (lambda _m, s: through(s, "a0.h0", ["logits", "m1"]), InvalidOption, "logits as the only receiver"),
        (lambda _m, s: sweep_senders(s, ["logits", "m1"]), InvalidOption, "logits as the only receiver"),
        (lambda _m, s: sweep_senders(s, "a0.h0"), InvalidOption, "Choose receivers further on"),
    ],
)
def test_mistakes_are_told(call: Callable[..., Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error) as caught:
        call(masked("gpt2"), sites("gpt2"))
    assert says in str(caught.value)


def test_groups_read_for_their_heads() -> None:
    run = masked("llama")
    with pytest.raises(UnknownEdge, match=r"use input->a1\.kv1<k>"):
        between(run, "input", "a1.h2<k>")
    with pytest.raises(InvalidOption, match=r"Name its heads: a1\.h2, a1\.h3"):
        between(run, "a1.kv1", "logits")
    group = between(run, "input", "a1.kv1").values
    torch.testing.assert_close(
        group, between(run, "input", [Port.parse("a1.kv1<k>"), "a1.kv1<v>"]).values, rtol=0, atol=SAME
    )


def test_without_a_corruption_there_is_nothing_to_patch() -> None:
    task = tiny.task()
    same = Task(task.name, task.clean, task.clean, task.answers, task.wrong_answers, task.positions)
    run = SiteRun(tiny.model("gpt2"), same)
    with pytest.raises(InvalidOption, match="nothing to patch"):
        through(run, "a0.h1", "logits")
    with pytest.raises(InvalidOption, match="nothing to patch"):
        sweep_senders(run, "logits")
    with pytest.raises(InvalidOption, match="nothing to explain"):
        proportion_explained(MaskedRun(tiny.model("gpt2"), same, metric="kl"), [])


def test_results_say_where_they_come_from() -> None:
    run, edges = sites("gpt2"), masked("gpt2")
    assert direct(edges, "m0->m1", norm="frozen").provenance["options"] == {"norm": "frozen", "edges": ["m0->m1"]}
    options = through(run, "a0.h1", "a1.h2<q>").provenance["options"]
    assert options == {"senders": ["a0.h1"], "receivers": ["a1.h2<q>"], "freeze_mlps": False}
    assert proportion_explained(edges, ["m0->m1"]).provenance["options"] == {"edges": ["m0->m1"]}
    torch.testing.assert_close(direct(edges, "m0->m1").source_metric, edges.corrupt_metric)
