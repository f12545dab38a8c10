"""Compiled models: what they compute is what their specification says, and their circuit is what their weights say."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits import acdc, tasks
from graphs.circuit import Circuit
from graphs.components import ComponentGraph
from graphs.nodes import INPUT, Edge, Node, Port
from patching import atp, compiled, model_sources
from patching.compiled import PROGRAMS
from patching.compiled.compiler import LOGIT_SCALE, SHARPNESS, compile_program
from patching.compiled.language import (
    BOS,
    POSITIONS,
    TOKENS,
    Aggregate,
    Count,
    InvalidProgram,
    Map,
    Mean,
    Operation,
    Program,
    Prompt,
    Select,
)  # fmt: skip
from patching.compiled.prompts import SMALLEST_SPLIT, draw, is_held_out
from patching.compiled.wiring import lay_out
from patching.errors import InvalidOption, InvalidTask, ModelNotFound
from patching.lens import LensModel
from patching.masked import MaskedRun
from patching.task import Task

EACH = pytest.mark.parametrize("name", PROGRAMS)
BY_POSITION = [
    name for name, program in PROGRAMS.items()
    if all(isinstance(made, Map) or (made.select.key == POSITIONS and made.select.query in (None, POSITIONS))
           for made in program.variables.values())
]  # fmt: skip
REDUNDANT = {"or_gate", "redundant_heads"}
"""Programs whose two branches carry the same answer."""

BRANCHES = {"input->a0.h0<v>", "input->a0.h1<v>", "a0.h0->m0", "a0.h1->m0"}


@functools.cache
def model(name: str, dtype: torch.dtype = torch.float64) -> LensModel:
    return LensModel.load(f"zoo:{name}", dtype=dtype, device="cpu")


def logits(model: LensModel, program: Program, prompts: list[Prompt]) -> torch.Tensor:
    """The model's own logits after each of some prompts of one length, divided by the scale."""
    number = {token: row for row, token in enumerate(program.vocabulary)}
    rows = torch.tensor([[0, *(number[token] for token in prompt)] for prompt in prompts])
    return model.logits(rows)[:, -1].double() / LOGIT_SCALE


def names(circuit: Circuit) -> set[str]:
    return {str(edge) for edge in circuit.edges}


def needed(run: MaskedRun, circuit: Circuit) -> set[str]:
    """The edges whose removal from a circuit changes the prediction on some prompt (run: KL, edges or by position)."""
    masks = run.mask_of(circuit).expand(len(circuit.edges), *run.mask_shape).clone()
    for row, edge in enumerate(circuit.edges):
        place = slice(None) if edge.position is None else edge.position
        masks[(row, place, run.graph.number(edge)) if run.per_position else (row, run.graph.number(edge))] = 0.0
    worst = run(masks).amax(-1).tolist()
    return {str(edge) for edge, kl in zip(circuit.edges, worst, strict=True) if kl > 1e-3}


# --- what the models compute ----------------------------------------------------------------------------------------


ROUNDED = [
    name
    for name, program in PROGRAMS.items()
    if any(isinstance(made, Count | Mean) for made in program.variables.values())
]
"""Programs in which something is rounded at all: the others compute with zeros and ones."""


@pytest.mark.parametrize(
    ("name", "dtype", "limit"),
    [
        *((name, torch.float64, 1e-13) for name in PROGRAMS),
        *((name, torch.float32, 1e-5) for name in ROUNDED),
        *(
            pytest.param(name, torch.float32, 1e-30, marks=pytest.mark.slow)
            for name in PROGRAMS
            if name not in (*ROUNDED, "negative_head")
        ),
    ],
)
def test_every_prompt_gets_the_specified_logits(name: str, dtype: torch.dtype, limit: float) -> None:
    program = PROGRAMS[name]
    for length in program.lengths:
        prompts = program.prompts(length)
        expected = torch.zeros(len(prompts), len(program.vocabulary), dtype=torch.float64)
        for row, prompt in enumerate(prompts):
            said = program.specification(prompt)
            for symbol, value in (said if isinstance(said, Mapping) else {said: 1}).items():
                expected[row, program.vocabulary.index(str(symbol))] = float(value)
        found = logits(model(name, dtype), program, prompts)
        torch.testing.assert_close(found, expected, rtol=0, atol=limit)


@EACH
def test_there_are_prompts_of_every_length_and_several_answers(name: str) -> None:
    program = PROGRAMS[name]
    counts = [len(program.prompts(length)) for length in program.lengths]
    assert all(counts)
    answers = {program.answer(prompt) for length in program.lengths for prompt in program.prompts(length)}
    assert len(answers - {None}) > 1


def test_there_are_at_least_twenty_and_they_are_listed() -> None:
    assert len(PROGRAMS) >= 20
    assert set(compiled.zoo_names()) == {f"zoo:{name}" for name in PROGRAMS}
    assert len({program.description for program in PROGRAMS.values()}) == len(PROGRAMS)
    assert {name for name, module in tasks.TASKS.items() if module == "circuits.tasks.compiled"} == set(PROGRAMS)
    assert not set(compiled.zoo_names()) & set(model_sources.zoo_names())  # a name means one model


@EACH
def test_the_interpreter_agrees_with_the_specification(name: str) -> None:
    program = PROGRAMS[name]
    for length in program.lengths:
        for prompt in program.prompts(length)[::7]:
            said = program.specification(prompt)
            values = said if isinstance(said, Mapping) else {said: 1}
            expected = dict.fromkeys(program.vocabulary, 0.0) | {str(key): float(each) for key, each in values.items()}
            assert program.logits(prompt) == pytest.approx(expected)


LETTERS = ("a", "b", "c")


def random_program(seed: int) -> Program:
    """Five variables that read each other at random, of all kinds of operation; the last one is said."""
    rng = random.Random(seed)
    made: dict[str, Operation] = {}
    readable = [TOKENS, POSITIONS]
    for number in range(5):
        name, kind = f"v{number}", rng.choice(("map", "map", "copy", "count"))
        if kind == "map":
            of = tuple(rng.choices(readable, k=rng.choice((1, 2))))
            made[name] = Map(of, table(rng.randrange(10**9), LETTERS))
        else:
            query, key = rng.choice((None, *readable)), rng.choice(readable)
            pick = table(rng.randrange(10**9), (True, False))
            if kind == "copy":
                made[name] = Aggregate(one_place(rng), rng.choice(readable))
            else:
                made[f"n{number}"] = Count(causal(query, key, pick))
                made[name] = Map((f"n{number}",), table(rng.randrange(10**9), LETTERS))
        readable.append(name)
    made["said"] = Map((readable[-1], rng.choice(readable)), table(rng.randrange(10**9), LETTERS))
    return Program(f"random{seed}", "", LETTERS, made, {"said": 1.0}, lambda prompt: "a", lengths=(4,))


def table(seed: int, results: tuple[object, ...]) -> object:
    """A random function, the same for the same arguments."""
    return lambda *arguments: random.Random(f"{seed} {arguments}").choice(results)


def causal(query: str | None, key: str, pick: object) -> Select:
    if (query, key) == (POSITIONS, POSITIONS):
        return Select(query, key, lambda here, place: place <= here and pick(here, place))
    return Select(query, key, pick)


def one_place(rng: random.Random) -> Select:
    steps = rng.randrange(4)
    if rng.random() < 0.5:
        return Select(None, POSITIONS, lambda _, place: place == steps)
    return Select(POSITIONS, POSITIONS, lambda here, place: place == here - steps)


@settings(max_examples=12)
@given(st.integers(0, 10**6))
def test_any_program_is_compiled_into_what_it_says_and_its_circuit_suffices(seed: int) -> None:
    program = random_program(seed)
    prompts = [tuple(random.Random(seed + n).choices(LETTERS, k=4)) for n in range(12)]
    own = compile_program(program, dtype=torch.float64)
    expected = torch.tensor([list(program.logits(prompt).values()) for prompt in prompts], dtype=torch.float64)
    torch.testing.assert_close(logits(own, program, prompts), expected, rtol=0, atol=1e-12)
    number = {token: row for row, token in enumerate(program.vocabulary)}
    rows = torch.tensor([[0, *(number[token] for token in prompt)] for prompt in prompts])
    some = torch.zeros(len(rows), 1, dtype=torch.long)
    task = Task(program.name, rows, rows.roll(1, dims=0), some, some + 1, torch.full((len(rows),), 4), metric="kl")
    wiring = lay_out(program)
    for ablation, constants in (("corrupt", False), ("zero", True)):
        run = MaskedRun(own, task, ablation=ablation)
        assert run(run.mask_of(wiring.circuit(constants=constants))).max() < 1e-6
        run = run.positions()
        assert run(run.mask_of(wiring.circuit_at(4, constants=constants))).max() < 1e-6


def test_the_attention_that_leaks_is_as_little_as_stated() -> None:
    """One head that copies the second token: its pattern, from queries and keys, in double precision."""
    small = model("first_token")
    attention = small.blocks[0].attention
    x = small.embed(torch.tensor([[0, 1, 2, 3, 1]])).unsqueeze(0)
    q, k = (attention.project(letter, x) for letter in "qk")
    pattern = attention.pattern(q, k, small.contexts(5)[0].bias)[0, 0, -1]
    leak = torch.tensor(SHARPNESS / 2, dtype=torch.float64)
    assert pattern[1] == 1.0
    assert 0 < pattern[0] <= torch.exp(-leak) * 1.01
    assert (pattern[2:] <= torch.exp(-2 * leak) * 1.01).all()


def test_softer_heads_leak_by_so_much_and_show_their_slopes() -> None:
    program, sharpness = PROGRAMS["induction_by_hand"], 20.0
    soft = compile_program(program, dtype=torch.float64, sharpness=sharpness)
    prompts = program.prompts(5)
    error = (logits(soft, program, prompts) - logits(model("induction_by_hand"), program, prompts)).abs().max()
    assert 0 < error < 2 * torch.exp(torch.tensor(-sharpness / 2))
    run = MaskedRun(soft, compiled.task("induction_by_hand", n=16, seed=0))
    slopes = run.gradient(run.ones()).abs()
    assert (slopes > 1e-9).equal(run.mask_of(compiled.truth("induction_by_hand")).bool())
    for bad in (0.0, float("nan")):
        with pytest.raises(InvalidOption, match="expected sharpness to be a positive number"):
            compile_program(program, sharpness=bad)


@EACH
def test_models_load_by_name_and_pass_the_self_check(name: str) -> None:
    loaded = model(name)
    assert loaded.name == f"zoo:{name}"
    assert loaded.dtype == torch.float64
    assert loaded.check() < 1e-12
    assert loaded.architecture == compiled.truth(name).architecture
    assert loaded.d_model == PROGRAMS[name].width


@pytest.mark.parametrize("name", ["reverse", "balanced_brackets", "sort_unique"])
def test_single_precision_is_the_default_and_passes_the_self_check(name: str) -> None:
    loaded = LensModel.load(f"zoo:{name}", device="cpu")
    assert loaded.dtype == torch.float32
    assert loaded.check() < 1e-5


def test_the_tokenizer_reads_and_writes_tokens_between_spaces() -> None:
    tokenizer = model("reverse").tokenizer
    ids = tokenizer("^ a b |")["input_ids"]
    assert ids == [0, 1, 2, 4]
    assert tokenizer.decode(ids) == "^ a b |"


# --- the true circuit -----------------------------------------------------------------------------------------------


def written(model: LensModel, node: Node) -> torch.Tensor:
    """Rows that span all that a node can write: [row, d_model]."""
    if node == INPUT:
        parts = model.bridge.original_model
        return torch.cat((parts.tok_embed.weight, parts.pos.weight)).detach()
    block = model.blocks[node.layer or 0]
    if node.kind == "head":
        return block.attention.out[node.index]
    assert block.mlp is not None
    assert block.mlp.b_out is not None
    return torch.cat((block.mlp.w_out.T, block.mlp.b_out[None]))


def read(model: LensModel, port: Port) -> torch.Tensor:
    """Columns that a port takes products with: [d_model, column]."""
    if port.node.kind == "logits":
        return model.readout.unembed
    block = model.blocks[port.node.layer or 0]
    if port.node.kind == "mlp":
        assert block.mlp is not None
        return block.mlp.w_in.T
    assert port.letter is not None
    return block.attention.weights[port.letter][port.node.index or 0]


@pytest.mark.parametrize("name", [name for name in PROGRAMS if name != "decoys"])
def test_the_circuit_is_where_the_weights_connect(name: str) -> None:
    """Read off the weights: an edge carries something iff what its source can write is not orthogonal to its target."""
    own = model(name)
    connected = {
        str(edge) for edge in own.graph.edges if bool((written(own, edge.source) @ read(own, edge.reads)).any())
    }
    assert names(compiled.truth(name, constants=True)) == connected


def test_what_the_output_does_not_depend_on_is_not_in_the_circuit() -> None:
    assert names(compiled.truth("decoys")) == {"input->a0.h0<v>", "a0.h0->logits"}
    own = model("decoys")
    assert bool((written(own, Node.parse("a0.h0")) @ read(own, Port.parse("m0"))).any())


def test_circuits_by_hand() -> None:
    assert names(compiled.truth("and_gate")) == BRANCHES | {"m0->logits"}
    assert names(compiled.truth("xproportion")) == {"input->m0", "m0->a1.h0<v>", "a1.h0->logits"}
    assert names(compiled.truth("induction_by_hand")) == {
        "input->a0.h0<v>", "a0.h0->a1.h0<k>", "input->a1.h0<q>", "input->a1.h0<v>", "a1.h0->logits",
    }  # fmt: skip
    assert names(compiled.truth("reverse")) == {
        "input->a0.h0<k>", "a0.h0->m0", "m0->a1.h0<q>", "input->a1.h0<v>", "a1.h0->logits",
    }  # fmt: skip
    constant = names(compiled.truth("reverse", constants=True)) - names(compiled.truth("reverse"))
    assert constant == {"input->a0.h0<v>", "input->m0", "input->a1.h0<k>"}


@EACH
def test_the_circuit_alone_does_all_that_the_model_does(name: str) -> None:
    for ablation, constants in (("corrupt", False), ("zero", True)):
        run = MaskedRun(model(name), compiled.task(name, n=48, seed=1), ablation=ablation, metric="kl")
        assert run(run.mask_of(compiled.truth(name, constants=constants))).max() < 1e-6


@EACH
def test_the_circuit_is_minimal_unless_the_note_says_otherwise(name: str) -> None:
    run = MaskedRun(model(name), compiled.task(name, n=64, seed=0), metric="kl")
    truth = compiled.truth(name)
    spare = names(truth) - needed(run, truth)
    assert spare == (BRANCHES if name in REDUNDANT else set())
    if spare:
        assert "removing one changes nothing" in PROGRAMS[name].note


@EACH
def test_positive_metrics_on_clean_prompts_and_negative_ones_on_corrupt_prompts(name: str) -> None:
    run = MaskedRun(model(name), compiled.task(name, n=48, seed=2))
    assert (run.clean_metric > 0).all()
    assert (run.corrupt_metric < 0).all()


# --- by position ----------------------------------------------------------------------------------------------------


def test_positions_by_hand() -> None:
    assert names(compiled.truth("third_back", length=5)) == {"input->a0.h0<v>@2", "a0.h0->logits@5"}
    assert names(compiled.truth("and_gate", length=3)) == {
        "input->a0.h0<v>@1", "input->a0.h1<v>@2", "a0.h0->m0@3", "a0.h1->m0@3", "m0->logits@3",
    }  # fmt: skip
    found = names(compiled.truth("induction_by_hand", length=4))
    assert {"input->a1.h0<q>@4", "a1.h0->logits@4"} <= found
    assert "input->a1.h0<q>@3" not in found


@EACH
def test_the_circuit_by_position_does_all_that_the_model_does(name: str) -> None:
    length = max(PROGRAMS[name].lengths)
    for ablation, constants in (("corrupt", False), ("zero", True)):
        task = compiled.task(name, n=24, seed=3, length=length)
        run = MaskedRun(model(name), task, ablation=ablation, metric="kl").positions()
        circuit = compiled.truth(name, constants=constants, length=length)
        assert run(run.mask_of(circuit)).max() < 1e-6
        whole = compiled.truth(name, constants=constants)
        assert {str(edge.everywhere()) for edge in circuit.edges} == names(whole)


@pytest.mark.parametrize("name", sorted(set(BY_POSITION) - REDUNDANT))
def test_where_heads_look_by_position_the_circuit_by_position_is_minimal(name: str) -> None:
    length = max(PROGRAMS[name].lengths)
    run = MaskedRun(model(name), compiled.task(name, n=64, seed=0, length=length), metric="kl").positions()
    circuit = compiled.truth(name, length=length)
    assert needed(run, circuit) == names(circuit)


def test_many_programs_look_by_position() -> None:
    assert len(BY_POSITION) >= 12


# --- searches that should, and should not, find it ------------------------------------------------------------------


def test_acdc_finds_both_branches_of_and() -> None:
    run = MaskedRun(model("and_gate"), compiled.task("and_gate", n=32, seed=0))
    assert set(acdc.search(run, tau=0.1).edges) == set(compiled.truth("and_gate").edges)


@pytest.mark.parametrize("absolute", [False, True])
def test_acdc_finds_one_branch_of_or(absolute: bool) -> None:
    """All bits 1, exchanged for 0: the branch that is tried first is not missed, the other carries the answer."""
    run = MaskedRun(model("or_gate"), compiled.task("or_gate", n=8, seed=0))
    found = acdc.search(run, tau=0.1, absolute=absolute)
    assert names(found) == {"input->a0.h0<v>", "a0.h0->m0", "m0->logits"}
    assert float(run.damage(run(run.mask_of(found)))) == pytest.approx(0.0, abs=1e-9)


def test_denoising_finds_both_branches_of_or() -> None:
    run = MaskedRun(model("or_gate"), compiled.task("or_gate", n=8, seed=0).swapped())
    found = acdc.search(run, tau=0.1, absolute=True)
    assert set(found.edges) == set(compiled.truth("or_gate").edges)


def test_acdc_drops_the_negative_head_unless_changes_are_absolute() -> None:
    run = MaskedRun(model("negative_head"), compiled.task("negative_head", n=32, seed=0))
    against = {"a0.h1->logits", "input->a0.h1<v>"}
    assert names(acdc.search(run, tau=0.1)) == names(compiled.truth("negative_head")) - against
    assert names(acdc.search(run, tau=0.1, absolute=True)) == names(compiled.truth("negative_head"))


@pytest.mark.parametrize("name", sorted(set(PROGRAMS) - REDUNDANT - {"negative_head"}))
def test_acdc_finds_every_other_circuit(name: str) -> None:
    run = MaskedRun(model(name), compiled.task(name, n=32, seed=0))
    assert names(acdc.search(run, tau=0.01)) == names(compiled.truth(name))


@pytest.mark.parametrize(
    "name",
    [
        "negative_head",
        "most_frequent",
        "induction_by_hand",
        "and_or_gate",  # without norms an MLP reads the residual stream itself
        "decoys",
        "xproportion",
    ],
)
def test_edge_attribution_is_the_gradient_of_the_mask(name: str) -> None:
    run = MaskedRun(model(name), compiled.task(name, n=8, seed=0))
    torch.testing.assert_close(atp.scores(run).values, -run.gradient(run.ones()))


# --- prompts --------------------------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("split", ["train", "held-out"])
def test_pairs_have_one_length_and_two_answers(name: str, split: str) -> None:
    program = PROGRAMS[name]
    pairs = draw(program, n=20, seed=4, split=split)
    assert len(pairs) == 20
    assert pairs == draw(program, n=20, seed=4, split=split)
    for clean, corrupt in pairs:
        assert len(clean) == len(corrupt)
        assert program.valid(clean)
        assert program.valid(corrupt)
        assert None not in (program.answer(clean), program.answer(corrupt))
        assert program.answer(clean) != program.answer(corrupt)


def test_the_splits_share_no_prompt() -> None:
    for name, program in PROGRAMS.items():
        if program.pairs or sum(len(program.prompts(length)) for length in program.lengths) < SMALLEST_SPLIT:
            continue
        for split in ("train", "held-out"):
            used = set(itertools.chain(*draw(program, n=200, seed=0, split=split)))
            assert {is_held_out(prompt) for prompt in used} == {split == "held-out"}, name


def test_other_seeds_give_other_prompts() -> None:
    assert draw(PROGRAMS["reverse"], n=8, seed=0) != draw(PROGRAMS["reverse"], n=8, seed=1)


def test_tasks_are_made_for_the_model_alone() -> None:
    made = tasks.load("reverse").make(model("reverse"), n=3, seed=0, split="train")
    own = compiled.task("reverse", n=3, seed=0, split="train")
    assert torch.equal(made.clean, own.clean)
    assert made.name == "reverse"
    assert made.starts_with_bos
    assert made.texts[0].split()[0] == BOS
    with pytest.raises(InvalidTask, match="expected the model zoo:reverse"):
        tasks.load("reverse").make(model("two_hop"), n=3)


def test_answers_are_the_tokens_that_the_specification_gives() -> None:
    task = compiled.task("reverse", n=16, seed=0)
    program = PROGRAMS["reverse"]
    for text, answer, row, last in zip(task.texts, task.answers, task.clean, task.positions, strict=True):
        prompt = tuple(text.split()[1:])
        assert program.vocabulary[int(answer)] == program.specification(prompt)
        assert [program.vocabulary[int(token)] for token in row[: int(last) + 1]] == [BOS, *prompt]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"n": 0}, "at least 1; got 0"),
        ({"n": 4, "split": "test"}, "one of train, held-out; got 'test'"),
        ({"n": 4, "length": 9}, "a length out of"),
    ],
)
def test_bad_options_of_prompts_are_refused(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(InvalidOption, match=sentence):
        draw(PROGRAMS["reverse"], seed=0, **options)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ModelNotFound, match=r"Did you mean reverse"):
        compiled.program("revers")
    with pytest.raises(ModelNotFound, match=r"or a compiled model; got 'zoo:revers'"):
        LensModel.load("zoo:revers")


@pytest.mark.parametrize(
    "name", ["reverse_trained_ln", "reverse_ln_trained", "reverse_ln_ln", "reverse_trained_trained"]
)
def test_a_name_has_one_ending(name: str) -> None:
    for make in (compiled.program, compiled.truth, compiled.model, lambda name: compiled.task(name, n=2)):
        with pytest.raises(ModelNotFound, match=rf"got '{name}'"):
            make(name)


def test_names_of_models_that_are_not_compiled_are_refused() -> None:
    for name in ("reverse_trained", "zoo:two_hop_trained"):
        with pytest.raises(
            ModelNotFound, match=rf"expected a compiled model, such as zoo:\w+; '{name}' is the name of"
        ):
            compiled.model(name)
    for make in (compiled.truth, compiled.model):
        with pytest.raises(InvalidProgram, match=r"many is a count.* Use zoo:count"):
            make("count_ln")


# --- programs that cannot be ----------------------------------------------------------------------------------------


def sketch(output: str = "out", lengths: tuple[int, ...] = (3,), **variables: Operation) -> Program:
    return Program("sketch", "", LETTERS, variables, {output: 1.0}, lambda prompt: prompt[0], lengths=lengths)


SAME = Select(TOKENS, TOKENS, lambda here, held: here == held)
EVERY = Select(None, POSITIONS, lambda _, place: True)


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        (sketch(out=Map(("tokns",), str)), r"out reads 'tokns'"),
        (sketch("nothing", out=Map((TOKENS,), str)), r"the output reads 'nothing'"),
        (sketch(out=Map(("b",), str), b=Map(("out",), str)), r"out, b read each other in a circle"),
        (sketch(out=Aggregate(Select(POSITIONS, POSITIONS, lambda here, place: place == here + 1), TOKENS)),
         r"at position 0 it selects position 1. A causal model cannot see it"),
        (sketch("n", n=Count(SAME)), r"n is a count. Map it"),
        (sketch(out=Map(("m",), str), m=Mean(EVERY, TOKENS)), r"m is a mean. Only the output can read it"),
        (sketch(out=Map(("n", TOKENS), lambda n, token: token), n=Count(SAME)), r"n is a count. Map it to symbols"),
        (sketch(tokens=Map((POSITIONS,), str)), r"the name 'tokens' is an input's"),
        (Program("sketch", "", ("a", BOS), {}, {TOKENS: 1.0}, lambda p: p, lengths=(2,)), r"distinct tokens without"),
        (Program("sketch", "", ("a",), {}, {}, lambda p: p, lengths=(2,)), r"there is no output"),
        (Program("sketch", "", ("a b",), {}, {TOKENS: 1.0}, lambda p: p, lengths=(2,)), r"without blanks .* got 'a b'"),
        (Program("sketch", "", ("a", ""), {}, {TOKENS: 1.0}, lambda p: p, lengths=(2,)), r"without blanks .* got ''"),
        (sketch(lengths=(), out=Map((TOKENS,), str)), r"lengths of at least one token .* got \(\)"),
        (sketch(lengths=(3, 0), out=Map((TOKENS,), str)), r"lengths of at least one token .* got \(3, 0\)"),
        (sketch(out=Map((), lambda: "a")), r"expected variables for out of sketch to map; got none"),
    ],
)  # fmt: skip
def test_programs_that_make_no_sense_are_refused(program: Program, sentence: str) -> None:
    with pytest.raises(InvalidProgram, match=sentence):
        lay_out(program)


@pytest.mark.parametrize(
    "holds",
    [lambda _, held: 2 if held == "a" else 1, lambda _, held: held if held == "a" else "", lambda _, held: None],
)
def test_a_predicate_may_say_yes_and_no_in_any_way(holds: Callable[[str | None, str], Any]) -> None:
    """Whatever is true to Python is yes, to the interpreter and to the model."""
    program = sketch("shares", shares=Mean(Select(None, TOKENS, holds), TOKENS))
    prompts = program.prompts(3)
    expected = torch.tensor([list(program.logits(prompt).values()) for prompt in prompts], dtype=torch.float64)
    found = logits(compile_program(program, dtype=torch.float64), program, prompts)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def chain(length: int) -> Program:
    made: dict[str, Operation] = {"v0": Aggregate(EVERY, TOKENS)}
    for number in range(1, length):
        made[f"v{number}"] = Aggregate(EVERY, f"v{number - 1}")
    return sketch(f"v{length - 1}", **made)


def test_programs_that_do_not_fit_are_refused() -> None:
    assert lay_out(chain(3)).architecture.n_layers == 3
    with pytest.raises(InvalidProgram, match=r"fit into 2 layers; v2 would stand in layer 2"):
        lay_out(chain(3), layers=2)
    wide = sketch("v0", **{f"v{number}": Aggregate(EVERY, TOKENS) for number in range(3)})
    with pytest.raises(InvalidProgram, match=r"at most 2 heads in a layer; layer 0 needs 3"):
        lay_out(wide, heads=2)
    with pytest.raises(InvalidProgram, match=r"fit into 10 dimensions; its variables take 20"):
        compile_program(wide, width=10)


def test_a_selector_that_meets_several_values_is_refused_when_it_matters() -> None:
    program = sketch(out=Aggregate(EVERY, TOKENS))
    assert program.run(("a", "a")).value("out", 2) == "a"
    with pytest.raises(InvalidProgram, match=r"at position 2 of '\^ a b' they are \['a', 'b'\]"):
        program.run(("a", "b")).value("out", 2)


def test_a_mean_is_a_table_of_fractions_and_a_count_a_number() -> None:
    program = sketch("shares", shares=Mean(EVERY, TOKENS), many=Count(SAME))
    run = program.run(("a", "b", "a"))
    assert run.value("shares", 3) == {"a": Fraction(2, 3), "b": Fraction(1, 3)}
    assert run.value("shares", 0) == {BOS: Fraction(1)}
    assert [run.value("many", at) for at in range(4)] == [0, 1, 1, 2]


def test_too_many_prompts_are_not_enumerated() -> None:
    with pytest.raises(InvalidProgram, match="at most 200,000 token lists"):
        sketch(lengths=(20,), out=Map((TOKENS,), str)).prompts(20)


def test_a_length_that_prompts_do_not_have_is_refused() -> None:
    with pytest.raises(InvalidProgram, match=r"expected a length out of \(3, 4, 5, 6\) for reverse; got 7"):
        compiled.truth("reverse", length=7)


def test_the_circuit_says_where_it_is_from() -> None:
    circuit = compiled.truth("reverse", length=4)
    assert circuit.provenance["method"] == "compiled from the program"
    assert circuit.provenance["length"] == 4
    assert ComponentGraph(circuit.architecture).n_edges == 23
    assert all(isinstance(edge, Edge) and edge.position is not None for edge in circuit.edges)
