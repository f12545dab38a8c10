"""Tasks: tokenised, padded, checked row by row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from patching import toy
from patching.errors import InvalidTask
from patching.masked import MaskedRun
from patching.task import Task
from tests import tiny

WORDS = ("[BOS]", "Mary", "John", "Ann", "gave", "milk", "to", "ran", "un", "happy")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A word is a token; "unhappy" is unknown and so is not one."""
    backend = Tokenizer(
        models.WordPiece({word: n for n, word in enumerate((*WORDS, "##happy", "[UNK]"))}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="[BOS]")


def prompts(tokenizer: Any, **changes: Any) -> Task:
    parts: dict[str, Any] = {
        "name": "who",
        "clean": ["Mary John gave milk to", "John ran to"],
        "corrupt": ["John Mary gave milk to", "Ann ran to"],
        "answers": ["Mary", ["John", "Mary"]],
        "wrong_answers": ["John", "Ann"],
    }
    return Task.from_prompts(tokenizer, **(parts | changes))


def test_prompts_become_padded_token_ids(tokenizer: Any) -> None:
    task = prompts(tokenizer)
    assert task.clean.tolist() == [[1, 2, 4, 5, 6], [2, 7, 6, 0, 0]]
    assert task.corrupt.tolist() == [[2, 1, 4, 5, 6], [3, 7, 6, 0, 0]]
    assert task.positions.tolist() == [4, 2]
    assert task.answers.tolist() == [[1, -1], [2, 1]]
    assert task.wrong_answers.tolist() == [[2], [3]]
    assert task.texts == ("Mary John gave milk to", "John ran to")
    assert (task.metric, task.starts_with_bos, len(task)) == ("logit_difference", False, 2)


def test_a_bos_token_goes_in_front(tokenizer: Any) -> None:
    task = prompts(tokenizer, prepend_bos=True)
    assert task.clean[:, 0].tolist() == task.corrupt[:, 0].tolist() == [0, 0]
    assert task.positions.tolist() == [5, 3]
    assert task.starts_with_bos


def test_swapped_exchanges_prompts_and_keeps_answers(tokenizer: Any) -> None:
    task = prompts(tokenizer)
    swapped = task.swapped()
    assert torch.equal(swapped.clean, task.corrupt)
    assert torch.equal(swapped.corrupt, task.clean)
    assert torch.equal(swapped.answers, task.answers)
    assert torch.equal(swapped.swapped().clean, task.clean)


def test_noising_one_way_is_denoising_the_other() -> None:
    run, swapped = (MaskedRun(toy.model(), task) for task in (toy.task(), toy.task().swapped()))
    assert torch.equal(swapped.clean_metric, run.corrupt_metric)
    torch.testing.assert_close(swapped.corrupt_metric, run.clean_metric)


@pytest.mark.parametrize("rows", [slice(1, 2), torch.tensor([1])])
def test_a_subset_is_a_task(tokenizer: Any, rows: Any) -> None:
    part = prompts(tokenizer).subset(rows)
    assert part.clean.tolist() == [[2, 7, 6, 0, 0]]
    assert part.texts == ("John ran to",)
    assert part.positions.tolist() == [2]


def test_a_subset_of_a_task_without_texts() -> None:
    assert toy.task().subset(slice(0, 2)).texts == ()


# --- bad input ------------------------------------------------------------------------------------------------------


def test_pairs_of_different_length_are_named(tokenizer: Any) -> None:
    with pytest.raises(InvalidTask, match=r"rows \[1\] differ. Row 1: 3 tokens in 'John ran to', 4 in 'Ann ran to to'"):
        prompts(tokenizer, corrupt=["John Mary gave milk to", "Ann ran to to"])


def test_many_pairs_of_different_length_are_not_all_listed(tokenizer: Any) -> None:
    with pytest.raises(InvalidTask, match=r"\[0, 1, 2, 3, 4, 5, 6, 7, 8, 9\] … differ"):
        Task.from_prompts(
            tokenizer,
            name="long",
            clean=["ran"] * 12,
            corrupt=["ran to"] * 12,
            answers=["milk"] * 12,
            wrong_answers=["to"] * 12,
        )


def test_an_answer_of_several_tokens_is_named(tokenizer: Any) -> None:
    with pytest.raises(InvalidTask, match=r"one token; 'unhappy' \(row 1\) is 2 tokens.*leading space"):
        prompts(tokenizer, answers=["Mary", "unhappy"])
    with pytest.raises(InvalidTask, match=r"'milk to' \(row 0\) is 2 tokens"):
        prompts(tokenizer, wrong_answers=["milk to", "Ann"])
    with pytest.raises(InvalidTask, match=r"'' \(row 0\) is 0 tokens"):
        prompts(tokenizer, answers=["", "Ann"])


def test_an_answer_that_is_also_wrong_is_refused(tokenizer: Any) -> None:
    with pytest.raises(InvalidTask, match=r"not also wrong answers; rows \[1\]"):
        prompts(tokenizer, wrong_answers=["John", ["Ann", "Mary"]])


def test_a_list_that_is_too_short_is_refused(tokenizer: Any) -> None:
    with pytest.raises(InvalidTask, match=r"as many of each and at least one.*'answers': 1"):
        prompts(tokenizer, answers=["Mary"])
    with pytest.raises(InvalidTask, match=r"at least one"):
        prompts(tokenizer, clean=[], corrupt=[], answers=[], wrong_answers=[])


def test_an_empty_prompt_is_refused(tokenizer: Any) -> None:
    with pytest.raises(InvalidTask, match=r"at least one token; rows \[1\] are empty"):
        prompts(tokenizer, clean=["Mary John gave milk to", ""], corrupt=["John Mary gave milk to", ""])


def test_a_missing_tokenizer_is_refused() -> None:
    with pytest.raises(InvalidTask, match=r"expected a tokenizer; this model has none"):
        prompts(None)


def test_a_missing_bos_token_is_refused(tokenizer: Any) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(InvalidTask, match=r"BOS token for prepend_bos=True"):
        prompts(bare, prepend_bos=True)


PARTS = {name: getattr(tiny.task(), name) for name in ("clean", "corrupt", "answers", "wrong_answers", "positions")}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"corrupt": PARTS["corrupt"][:, :-1]}, r"one shape \[example, pos\]; got \[3, 7\] and \[3, 6\]"),
        ({"corrupt": PARTS["corrupt"][:2]}, r"got \[3, 7\] and \[2, 7\]"),
        ({name: PARTS[name][:0] for name in PARTS}, "at least one prompt"),
        ({"answers": PARTS["answers"][:2]}, "3 rows of answers, one per prompt; got 2"),
        ({"wrong_answers": PARTS["wrong_answers"][:1]}, "3 rows of wrong_answers"),
        ({"positions": PARTS["positions"][:2]}, "3 rows of positions"),
        ({"positions": PARTS["positions"] + 5}, "answer positions from 0 to 6"),
        ({"positions": PARTS["positions"] - 8}, "answer positions from 0 to 6"),
        ({"answers": torch.tensor([[1], [-1], [2]])}, r"an answer for every prompt; rows \[1\] have none"),
        ({"clean": PARTS["clean"] - 60}, "token ids of 0 or more"),
        ({"corrupt": PARTS["corrupt"] - 60}, "token ids of 0 or more"),
    ],
)
def test_token_ids_that_make_no_task_are_refused(changes: dict[str, torch.Tensor], sentence: str) -> None:
    from jaxtyping import TypeCheckError  # whoever runs with type checks may get their message first

    with pytest.raises((InvalidTask, TypeCheckError)) as caught:
        Task("bad", **(PARTS | changes))  # type: ignore[arg-type]
    if isinstance(caught.value, InvalidTask):
        caught.match(sentence)
