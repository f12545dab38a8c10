"""The comparison with auto-circuit, as far as it runs without its environment: what is exchanged, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from circuits import acdc
from experiments.benchmarks import auto_circuit_peer as peer
from experiments.benchmarks import auto_circuit_side as side
from experiments.benchmarks import rows
from graphs import Architecture, ComponentGraph
from patching import MaskedRun

SHAPE = {"n_layers": 2, "n_heads": 4, "d_model": 32, "d_head": 8, "d_mlp": 48, "n_ctx": 20, "d_vocab": 60}


@pytest.fixture(scope="module")
def exchanged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exchange")
    peer.export(folder, shape=SHAPE, weights=peer.random_weights(SHAPE))
    return folder


def test_the_exported_weights_give_the_same_logits(exchanged: Path) -> None:
    """Against a model that never was in a file."""
    model = peer._hugging_face(SHAPE)
    model.load_state_dict(peer.random_weights(SHAPE), strict=False)
    model.lm_head.weight = model.transformer.wte.weight
    loaded = peer.load(exchanged)
    tokens = peer.prompts(exchanged, loaded).clean
    with torch.no_grad():
        assert torch.allclose(loaded.logits(tokens), model(tokens).logits, atol=1e-5)
    assert float(loaded.logits(tokens).std()) > 1


def test_the_prompts_are_the_benchmarks_own(exchanged: Path) -> None:
    model = peer.load(exchanged)
    task, own = peer.prompts(exchanged, model), rows.random_task(model)
    assert torch.equal(task.clean, own.clean)
    assert torch.equal(task.corrupt, own.corrupt)
    assert task.metric == "kl"


def test_the_peers_weights_compute_what_gpt2_computes(exchanged: Path) -> None:
    """Attention and MLP of layer 1 by hand from the converted weights, against Hugging Face's modules."""
    from safetensors.torch import load_file

    weights = side.hooked_weights(load_file(exchanged / "weights.safetensors"), n_layers=2, n_heads=4)
    model = peer._hugging_face(SHAPE)
    model.load_state_dict(peer.random_weights(SHAPE), strict=False)
    block = model.transformer.h[1]
    read = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))

    def part(name: str) -> torch.Tensor:
        return weights[f"blocks.1.{name}"]

    q, k, v = (
        torch.einsum("bpm,hmd->bhpd", read, part(f"attn.W_{letter}")) + part(f"attn.b_{letter}")[:, None]
        for letter in "QKV"
    )
    scores = (q @ k.transpose(-1, -2) / 8**0.5).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    attended = torch.einsum("bhpd,hdm->bpm", scores.softmax(-1) @ v, part("attn.W_O")) + part("attn.b_O")
    hidden = torch.nn.functional.gelu(read @ part("mlp.W_in") + part("mlp.b_in"), approximate="tanh")
    with torch.no_grad():
        assert torch.allclose(attended, block.attn(read)[0], atol=1e-5)
        assert torch.allclose(hidden @ part("mlp.W_out") + part("mlp.b_out"), block.mlp(read), atol=1e-5)
    assert torch.equal(weights["unembed.W_U"], model.transformer.wte.weight.T)


def test_names_of_edges_are_translated_one_to_one() -> None:
    """Every edge of theirs, named as auto-circuit 1.0.1 names nodes, is one of ours."""
    graph = ComponentGraph(Architecture(2, 2))

    def theirs(node: str) -> str:
        if node in ("input", "logits"):
            return {"input": "Resid Start", "logits": "Resid End"}[node]
        if node.startswith("m"):
            return f"MLP {node[1:]}"
        return node.upper().replace("H", "").replace("<", ".").replace(">", "")

    for edge in graph.edges:
        assert side.our_name("->".join(map(theirs, str(edge).split("->")))) == str(edge)
    with pytest.raises(ValueError, match=r"A0\.1\.Q or MLP 2"):
        side.our_name("A0.1->Logits")


def test_our_side_measures_the_search(exchanged: Path) -> None:
    result = peer.ours(exchanged, tau=1e-3, repeats=2)
    model = peer.load(exchanged)
    run = MaskedRun(model, peer.prompts(exchanged, model))
    assert result["kept"] == sorted(map(str, acdc.search(run, tau=1e-3).edges))
    assert 0 < len(result["kept"]) < result["edges"] == 110
    probes = json.loads((exchanged / "request.json").read_text())["probes"]
    assert list(result["single"]) == probes
    mask = run.ones()
    strongest = max(probes, key=result["single"].__getitem__)
    mask[[str(edge) for edge in run.graph.edges].index(strongest)] = 0.0
    assert result["single"][strongest] == pytest.approx(float(run(mask).mean()), rel=1e-4)
    assert result["single"][strongest] > 1e-3
    assert result["cpu"] > 0


def sides(**changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    mine = {
        "cpu": 0.5, "wall": 0.5, "kept": ["a", "b", "c"], "edges": 10, "single": {"a": 0.1}, "logits": [[1.0, 2.0]],
    }  # fmt: skip
    return mine, mine | {"cpu": 50.0, "wall": 60.0, "kept": ["b", "c", "d"]} | changes


def test_a_row_is_theirs_over_ours() -> None:
    row = peer.compare(*sides(), tau=0.1, bar=90.0, name="m")
    assert (row.ratio, row.wall_ratio, row.ours, row.floor, row.met) == (100.0, 120.0, 500.0, 50000.0, True)
    assert "kept 3 and theirs 3" in row.note
    assert "Jaccard 0.50" in row.note
    assert not peer.compare(*sides(), tau=0.1, bar=101.0, name="m").met


@pytest.mark.parametrize(
    "change", [{"logits": [[1.0, 2.001]]}, {"logits": [[1.0, float("nan")]]}, {"single": {"a": 0.11}}, {"edges": 11}]
)
def test_sides_that_compute_other_things_are_not_compared(change: dict[str, Any]) -> None:
    with pytest.raises(peer.PeerFailed, match="same quantities"):
        peer.compare(*sides(**change), tau=0.1, bar=1.0, name="m")


def test_a_missing_environment_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(peer.PeerFailed, match=f"--make-env {tmp_path / 'env'}"):
        peer.python_of(tmp_path / "env")
    with pytest.raises(SystemExit, match="--make-env"):
        peer.main(["--env", str(tmp_path / "env"), "--out", str(tmp_path / "rows.json")])
    assert not list(tmp_path.iterdir())


def test_no_environment_in_the_project_or_over_other_files(tmp_path: Path) -> None:
    with pytest.raises(peer.PeerFailed, match="outside the project"):
        peer.make_environment(peer.ROOT / "peer-env")
    assert not (peer.ROOT / "peer-env").exists()
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(peer.PeerFailed, match="holds other files"):
        peer.make_environment(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "required"),
        (["--env", "x"], "--out"),
        (["--env", "x", "--make-env", "y", "--out", "z"], "not allowed"),
        (["--env", "x", "--out", "z", "--repeats", "0"], "--repeats"),
        (["--env", "x", "--out", "z", "--shares", "0.5"], "invalid choice"),
        (["--env", "x", "--out", "z", "--allocator", "mine"], "invalid choice"),
    ],
)
def test_wrong_arguments(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        peer.main(words)
    assert said in capsys.readouterr().err


def test_a_failing_process_shows_the_end_of_what_it_said() -> None:
    with pytest.raises(peer.PeerFailed, match=r"(?s)the peer failed with code 1.*no such thing"):
        peer._checked([peer.sys.executable, "-c", "raise SystemExit('no such thing')"], what="the peer", settings={})
