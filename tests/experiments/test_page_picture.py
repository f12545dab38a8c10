"""The example that the picture of the page shows is the model's own."""

from __future__ import annotations

import shutil

import pytest
import torch

from circuits import tasks
from experiments.page_picture import attention, photograph, prompt
from graphs import Circuit, Edge
from graphs.export import html
from patching import LensModel


@pytest.fixture(scope="module")
def model():
    return LensModel.load("zoo:ioi")


def test_prompt_and_patterns(model):
    task = tasks.load("ioi").make(model, n=2, seed=0, split="train")
    shown, patterns = prompt(model, task), attention(model, task)
    length = len(shown.tokens)
    assert "".join(shown.tokens).replace(" ", "") == task.texts[0].replace(" ", "")
    assert shown.answer.strip() in task.texts[0]
    assert shown.wrong.strip() in task.texts[0]
    assert shown.answer != shown.wrong
    assert set(patterns) == {f"a{layer}.h{head}" for layer in range(3) for head in range(8)}
    for pattern in patterns.values():
        torch.testing.assert_close(pattern.sum(-1), torch.ones(length))
        assert torch.equal(pattern, pattern.tril())
    names = ["input->a2.h5<v>", "a2.h5->logits"]
    circuit = Circuit(model.architecture, [Edge.parse(name) for name in names])
    assert "a2.h5" in html.dumps(circuit, prompt=shown, attention=patterns)


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium on this machine")
def test_the_photograph_is_a_picture_of_the_size_asked(model, tmp_path):
    circuit = Circuit(model.architecture, [Edge.parse("m0->logits")])
    html.write(circuit, tmp_path / "page.html")
    look = {"chosen": "m0", "browser": "chromium", "wide": 640, "high": 480}
    photograph(tmp_path / "page.html", tmp_path / "page.png", **look)
    data = (tmp_path / "page.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert (int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")) == (640, 480)
    assert len(data) > 5_000
