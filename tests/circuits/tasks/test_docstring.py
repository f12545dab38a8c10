"""Docstring completion: what is defined, what is documented, and what each corruption leaves of it."""

from __future__ import annotations

import ast
import re

import pytest

from circuits.tasks import docstring


def read(said: str) -> tuple[list[str], list[str]]:
    """The parameters of the definition without self, and those of the docstring so far."""
    (function,) = ast.parse(said + ' x"""').body
    defined = [argument.arg for argument in function.args.args]
    assert defined[0] in ("self", "cls")
    return defined[1:], re.findall(r":param (\w+):", ast.get_docstring(function))


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_python_reads_it_and_the_next_parameter_is_the_answer(split):
    for prompt in docstring.generate(300, seed=0, split=split):
        defined, documented = read(prompt.clean)
        assert len(documented) == 2
        at = defined.index(documented[0])
        assert defined[at : at + 2] == documented
        assert prompt.answers == (f" {defined[at + 2]}",)
        assert set(defined) - {defined[at + 2]} <= {wrong.strip() for wrong in prompt.wrong_answers}
        assert len(set(defined)) == len(defined)
        assert prompt.clean.endswith(":param")


def test_the_sources_shape_has_two_parameters_before_and_one_after():
    for prompt in docstring.generate(20, seed=0, template="method"):
        defined, documented = read(prompt.clean)
        assert len(defined) == 6
        assert defined.index(documented[0]) == 2
        assert len(prompt.wrong_answers) == 5 + 7  # the definition's others, and seven of the corruptions, as there


@pytest.mark.parametrize("corruption", sorted(docstring.CORRUPTIONS))
def test_corruptions_by_what_they_change(corruption):
    for prompt in docstring.generate(200, seed=1, corruption=corruption):
        (defined, documented), (other_defined, other_documented) = read(prompt.clean), read(prompt.corrupt)
        at = defined.index(documented[0])
        changed = [place for place, (a, b) in enumerate(zip(defined, other_defined, strict=True)) if a != b]
        answer = prompt.answers[0].strip()
        assert changed == {
            "random_random": [at, at + 1, at + 2], "random_doc": [], "random_def": [at, at + 1],
            "random_def_doc": [at, at + 1], "random_answer": [at + 2],
        }[corruption]  # fmt: skip
        kept = corruption in ("random_def", "random_answer")
        assert (documented == other_documented) == kept
        assert kept or not set(documented) & set(other_documented)
        if corruption == "random_random":
            assert not set(other_documented) & set(other_defined)  # nothing says which is next
        if corruption == "random_def_doc":
            assert other_documented == other_defined[at : at + 2]  # the same task with other names
        assert (answer in other_defined) == (corruption in ("random_doc", "random_def", "random_def_doc"))
        assert {*other_defined, *other_documented} - {answer} <= {wrong.strip() for wrong in prompt.wrong_answers}


def test_descriptions_and_functions_are_no_parameters():
    assert not {*docstring.DESCRIPTIONS, *docstring.FUNCTIONS, "self", "cls", "the"} & set(docstring.PARAMETERS)
