"""Interventions on programs: what the interpreter says under them is what the compiled model does when patched."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from circuits.interchange import subsets, task_of
from graphs.nodes import Node
from patching import compiled
from patching.compiled import PROGRAMS, trained
from patching.compiled.compiler import LOGIT_SCALE
from patching.compiled.interchange import Interchange, alignment, draw, intervene, pool
from patching.compiled.language import TOKENS, InvalidProgram, Map, Program
from patching.compiled.prompts import is_held_out
from patching.errors import InvalidOption, ModelNotFound
from patching.masked import MaskedRun
from patching.metrics import Metric

WITH_NODES = [name for name in PROGRAMS if name != "copy_token"]


def nodes(*names: str) -> tuple[Node, ...]:
    return tuple(Node.parse(name) for name in names)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_variable_exchanged_for_its_own_value_changes_nothing(name: str) -> None:
    program = PROGRAMS[name]
    for length in program.lengths:
        for prompt in random.Random(0).sample(program.prompts(length), k=min(4, len(program.prompts(length)))):
            run = program.run(prompt)
            same = program.run(prompt, instead=dict.fromkeys(program.variables, program.run(prompt)))
            assert same.logits() == run.logits() == program.logits(prompt)
            assert same.answer() == run.answer()


def test_a_run_says_the_specified_answer() -> None:
    for program in PROGRAMS.values():
        for prompt in program.prompts(max(program.lengths))[::11]:
            assert program.run(prompt).answer() == program.answer(prompt)


def test_interventions_by_hand() -> None:
    reverse = PROGRAMS["reverse"]
    base, source = ("a", "b", "c", "|"), ("b", "|", "b", "a")
    assert intervene(reverse, base, base, ()).answer == "c"
    early = ("a", "b", "|", "b")
    # The separator of the source stands at 3: after it, at position 4, the wanted place is 2 · 3 - 4 - 1 = 1.
    assert intervene(reverse, base, early, nodes("a0.h0")).answer == "a"
    assert intervene(reverse, base, early, nodes("m0")).answer == "a"
    assert intervene(reverse, base, early, nodes("a1.h0")).answer == reverse.run(early).answer() == "a"
    assert intervene(reverse, base, early, nodes("a0.h0")).matters
    with pytest.raises(InvalidProgram, match="expected a run of reverse on 5 tokens"):
        intervene(reverse, base, source[:3], nodes("m0"))
    mean = intervene(PROGRAMS["xproportion"], ("x", "x", "a"), ("a", "b", "x"), nodes("m0"))
    assert mean.said["x"] == pytest.approx(1 / 3)
    assert mean.answer == "other"


def projected(weights: torch.Tensor) -> Metric:
    return Metric("projection", True, lambda prediction: (prediction.logits * weights).sum(-1))


def patched_and_said(program: Program, drawn: list[Interchange]) -> tuple[torch.Tensor, torch.Tensor]:
    """A random projection of the logits of the compiled model with nodes patched, and of what the program says."""
    weights = torch.randn(len(program.vocabulary), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = compiled.model(program.name, dtype=torch.float64)
    run = MaskedRun(model, task_of(program, drawn), metric=projected(weights)).nodes()
    mask = run.ones()
    mask[[run.graph.source_index[node] for node in drawn[0].nodes]] = 0.0
    said = torch.tensor([list(each.said.values()) for each in drawn], dtype=torch.float64)
    return run(mask), LOGIT_SCALE * said @ weights


@pytest.mark.parametrize("name", WITH_NODES)
def test_patching_a_node_of_the_compiled_model_is_intervening_on_its_variables(name: str) -> None:
    """The engine exchanges writes, the interpreter exchanges values; neither knows of the other."""
    program = PROGRAMS[name]
    aligned = tuple(alignment(program))
    chosen = [(node,) for node in aligned] + subsets(aligned)[-2:-1]
    for each in chosen:
        patched, said = patched_and_said(program, draw(program, each, n=8, seed=1))
        torch.testing.assert_close(patched, said, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", WITH_NODES)
def test_the_alignment_is_that_of_the_true_circuit(name: str) -> None:
    held = alignment(PROGRAMS[name])
    circuit = compiled.truth(name, constants=True)
    assert set(held) == {node for node in circuit.nodes if node.kind in ("head", "mlp")}
    named = list(itertools.chain(*held.values()))
    assert len(set(named)) == len(named)
    assert set(PROGRAMS[name].output) <= {*named, "tokens"}


def test_two_variables_of_one_mlp_are_exchanged_together() -> None:
    held = alignment(PROGRAMS["compare_counts"])
    assert held[Node.parse("m0")] == ("number_a", "number_b")
    assert Node.parse("m1") not in alignment(PROGRAMS["decoys"])


def test_draws_are_of_one_split_and_change_the_answer_half_of_the_time() -> None:
    program = PROGRAMS["duplicate"]
    for split in ("train", "held-out"):
        drawn = draw(program, nodes("a0.h0"), n=40, seed=2, split=split)
        assert drawn == draw(program, nodes("a0.h0"), n=40, seed=2, split=split)
        assert sum(each.matters for each in drawn) == 20
        for each in drawn:
            assert {is_held_out(each.base), is_held_out(each.source)} == {split == "held-out"}
            assert len(each.base) == len(each.source)
            assert each.matters == (each.answer != program.answer(each.base))
    assert draw(program, nodes("a0.h0"), n=40, seed=3) != draw(program, nodes("a0.h0"), n=40, seed=2)
    plain = draw(program, (), n=30, seed=0)
    assert len({each.base for each in plain}) > 20
    assert not any(each.matters for each in plain)


def test_draws_hold_as_many_that_matter_as_asked_for() -> None:
    drawn = draw(PROGRAMS["previous_token"], nodes("a0.h0"), n=10, seed=0, matters=1.0)
    assert all(each.matters for each in drawn)
    program = Program(
        "sketch", "", ("a", "b"), {"said": Map((TOKENS,), str), "spare": Map((TOKENS,), str),
        "out": Map(("said", "spare"), lambda said, spare: said)}, {"out": 1.0}, lambda prompt: prompt[-1], lengths=(1,),
    )  # fmt: skip
    spare = draw(program, nodes("m0"), n=4, seed=0)
    assert any(each.matters for each in spare)  # one MLP holds both
    few = draw(PROGRAMS["or_gate"], nodes("a0.h0"), n=10, seed=0, matters=0.0)
    assert len(few) == 10
    assert not any(each.matters for each in few)


def test_bad_interventions_are_refused() -> None:
    program = PROGRAMS["reverse"]
    run = program.run(("a", "b", "|"))
    with pytest.raises(InvalidProgram, match=r"a variable out of middle, wanted, letter of reverse .* got 'tokens'"):
        program.run(("a", "b", "|"), instead={"tokens": run})
    with pytest.raises(InvalidProgram, match=r"expected a run of reverse on 5 tokens to take middle from; got one of"):
        program.run(("a", "b", "|", "b"), instead={"middle": run})
    with pytest.raises(InvalidProgram, match="got one of and_gate on 4"):
        program.run(("a", "b", "|"), instead={"middle": PROGRAMS["and_gate"].run(("1", "1", "="))})
    with pytest.raises(InvalidOption, match=r"nodes out of a0.h0, m0, a1.h0, .* got a0.h1"):
        intervene(program, ("a", "b", "|"), ("b", "b", "|"), nodes("a0.h1"))
    with pytest.raises(InvalidOption, match="at least 1; got 0"):
        draw(program, nodes("m0"), n=0, seed=0)
    with pytest.raises(InvalidOption, match="one of train, held-out; got 'test'"):
        pool(program, "test")


# --- the models that were trained so ---------------------------------------------------------------------------------


def test_names_of_trained_models_lead_to_programs() -> None:
    assert len(compiled.trained_names()) >= 5
    for name in compiled.trained_names():
        assert compiled.program(name) is PROGRAMS[name.removeprefix("zoo:").removesuffix("_trained")]
        assert not compiled.is_compiled(name)


@pytest.mark.parametrize("name", trained.names())
def test_the_circuit_of_a_trained_model_is_the_programs_in_a_larger_model(name: str) -> None:
    found, plain = compiled.truth(f"{name}_trained"), compiled.truth(name)
    assert found.edges == plain.edges
    assert found.architecture.n_heads >= plain.architecture.n_heads + 2
    assert found.provenance["model"] == f"zoo:{name}_trained"
    pairs, edges = trained.known_edges(PROGRAMS[name])
    true = {(edge.source, edge.target) for edge in plain.edges if edge.source in alignment(PROGRAMS[name])}
    assert {pair for pair, flows in pairs.items() if flows} == true
    assert len(edges) >= len(pairs)


def test_what_a_trained_model_cannot_tell_is_refused() -> None:
    with pytest.raises(InvalidOption, match="at all positions and without constants"):
        compiled.truth("reverse_trained", constants=True)
    with pytest.raises(ModelNotFound, match="expected a program that a trained model ships of"):
        trained.truth(PROGRAMS["or_gate"])
