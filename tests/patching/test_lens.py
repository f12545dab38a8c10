"""Loading and wrapping models: every family, every dtype; what cannot be trusted is refused with a sentence."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models

from graphs.components import Architecture
from graphs.errors import WiretraceError
from patching import model_sources
from patching.errors import InvalidWeights, ModelNotFound, UnsupportedModel
from patching.lens import TOLERANCES, LensModel
from patching.masked import MaskedRun
from patching.selfcheck import relative_errors
from tests import tiny
from tests.leftovers import traces
from tests.oracle import EVERY_LOGIT, at_answer, projected, tolerance

GROUPED = {"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "native_llama"}


# --- families -------------------------------------------------------------------------------------------------------


def test_architecture(family: str) -> None:
    shape = tiny.model(family).architecture
    expected = Architecture(
        n_layers=2, n_heads=4, n_kv_heads=2 if family in GROUPED else 4,
        has_mlp=family != "attention_only", parallel=family == "gpt_neox",
    )  # fmt: skip
    assert shape == expected


def test_double_precision_passes_the_self_check(family: str) -> None:
    assert tiny.model(family).check() < (1e-6 if tolerance(family) < 1e-6 else TOLERANCES[torch.float64])


def test_single_precision_passes_the_self_check(family: str) -> None:
    assert tiny.model(family, dtype=torch.float32).check() < 2e-5


def test_half_precision_passes_the_self_check(family: str) -> None:
    model = tiny.model(family, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert 0 < model.check() < TOLERANCES[torch.bfloat16]


def test_logits_are_those_of_the_unwrapped_model(family: str) -> None:
    if family in tiny.CONFIGS:
        unwrapped = tiny.hugging_face(family)
        tokens = tiny.task().clean
        with torch.no_grad():
            expected = unwrapped(tokens).logits
        torch.testing.assert_close(tiny.model(family).logits(tokens), expected, rtol=0, atol=tolerance(family))


def test_what_enters_the_first_block(family: str) -> None:
    model, tokens = tiny.model(family), tiny.task().clean
    seen: list[torch.Tensor] = []
    block = model.bridge.blocks[0]
    handle = block.register_forward_pre_hook(
        lambda _module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    model.logits(tokens)
    handle.remove()
    assert torch.equal(model.embed(tokens), seen[0])


def test_weights_are_views(family: str) -> None:
    """The pieces follow the model's own weights; nothing is copied but small sums."""
    model = tiny.hugging_face(family) if family in tiny.CONFIGS else tiny.native()
    wrapped = LensModel.wrap(model)
    storages = {p.untyped_storage().data_ptr() for p in wrapped.bridge.original_model.parameters()}
    for block in wrapped.blocks:
        tensors = [*block.attention.weights.values(), block.attention.out]
        tensors += [] if block.mlp is None else [block.mlp.w_in, block.mlp.w_out]
        assert all(tensor.untyped_storage().data_ptr() in storages for tensor in tensors)
    assert wrapped.readout.unembed.untyped_storage().data_ptr() in storages


def test_loading_and_checking_leave_nothing(family: str) -> None:
    model = tiny.model(family)
    before = traces(model)
    model.check()
    model.embed(tiny.task().clean)
    model.contexts(9)
    model.logits(tiny.task().clean)
    assert traces(model) == before


def test_the_model_runs_as_before_once_it_is_wrapped(family: str) -> None:
    model, task = tiny.model(family), tiny.task()
    before = model.logits(task.clean)
    run = MaskedRun(model, task, metric=EVERY_LOGIT)
    run.gradient(run.ones())
    assert torch.equal(model.logits(task.clean), before)


# --- variants of the families ---------------------------------------------------------------------------------------

ROPE = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 100.0,
        "original_max_position_embeddings": 8}  # fmt: skip

VARIANTS: dict[str, Callable[[], Any]] = {
    "gpt2 with a scale per layer": lambda: transformers.GPT2Config(
        n_layer=2, n_head=4, n_embd=32, vocab_size=50, n_positions=32, scale_attn_by_inverse_layer_idx=True),
    "gpt2 with relu": lambda: transformers.GPT2Config(
        n_layer=2, n_head=4, n_embd=32, vocab_size=50, n_positions=32, activation_function="relu", n_inner=40),
    "llama with biases": lambda: transformers.LlamaConfig(attention_bias=True, mlp_bias=True, **tiny.HEADS),
    "llama with one key/value group": lambda: transformers.LlamaConfig(**(tiny.HEADS | {"num_key_value_heads": 1})),
    "llama with scaled rotations": lambda: transformers.LlamaConfig(rope_parameters=ROPE, **tiny.HEADS),
    "neox turned in full": lambda: transformers.GPTNeoXConfig(
        num_attention_heads=4, **tiny.SHAPE,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}),
    "neox without biases": lambda: transformers.GPTNeoXConfig(
        num_attention_heads=4, attention_bias=False, **tiny.SHAPE),
    "qwen2 with a window": lambda: transformers.Qwen2Config(
        use_sliding_window=True, sliding_window=4, max_window_layers=1, **tiny.HEADS),
    "gemma2 without caps": lambda: transformers.Gemma2Config(
        head_dim=16, attn_logit_softcapping=None, final_logit_softcapping=None, **tiny.HEADS),
    "gemma2 with tight caps": lambda: transformers.Gemma2Config(
        head_dim=16, attn_logit_softcapping=0.5, final_logit_softcapping=1.0, **tiny.HEADS),
    "tied embeddings": lambda: transformers.LlamaConfig(tie_word_embeddings=True, **tiny.HEADS),
}  # fmt: skip


def randomised(config: Any, *, seed: int = 0) -> Any:
    """A model of a configuration, with weights large enough to notice."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6.0) if parameter.ndim > 1 else parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_are_reproduced(variant: str) -> None:
    """On prompts longer than those of the self-check; what TransformerLens cannot wrap is refused."""
    try:
        model = LensModel.wrap(randomised(VARIANTS[variant]()), name=variant)
    except UnsupportedModel:
        assert variant == "neox without biases"
        return
    task = tiny.task(length=20)
    run = MaskedRun(model, task, metric=EVERY_LOGIT)
    for mask, tokens in ((run.ones(), task.clean), (run.zeros(), task.corrupt)):
        own = projected(at_answer(task, model.logits(tokens)))
        torch.testing.assert_close(run(mask), own, rtol=1e-5, atol=1e-4)


PLAIN: dict[str, Any] = dict(num_attention_heads=4, **tiny.SHAPE)

OTHERS: dict[str, Callable[[], Any]] = {
    "granite": lambda: transformers.GraniteConfig(residual_multiplier=0.5, num_key_value_heads=2, **PLAIN),
    "bloom": lambda: transformers.BloomConfig(n_layer=2, n_head=4, hidden_size=32, vocab_size=50),
    "gptj": lambda: transformers.GPTJConfig(
        n_layer=2, n_head=4, n_embd=32, vocab_size=50, n_positions=32, rotary_dim=4
    ),
    "mixtral": lambda: transformers.MixtralConfig(num_key_value_heads=2, num_local_experts=2, **PLAIN),
    "olmo": lambda: transformers.OlmoConfig(**PLAIN),
    "olmo2": lambda: transformers.Olmo2Config(**PLAIN),
    "mamba": lambda: transformers.MambaConfig(num_hidden_layers=2, hidden_size=32, vocab_size=50, state_size=4),
    "phi3": lambda: transformers.Phi3Config(pad_token_id=0, num_key_value_heads=2, **PLAIN),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.filterwarnings("default")
def test_other_families_pass_or_are_refused(name: str) -> None:
    """Never an AttributeError, never silently wrong."""
    try:
        model = LensModel.wrap(randomised(OTHERS[name]()), name=name)
    except UnsupportedModel:
        assert name != "phi3"
    else:
        assert model.check() < TOLERANCES[torch.float64]


# --- the self-check -------------------------------------------------------------------------------------------------


def times(factor: float) -> Callable[..., Any]:
    """A forward hook that scales what a module gives."""
    return lambda _module, _args, out: (factor * out[0], *out[1:]) if isinstance(out, tuple) else factor * out


def test_a_scaled_residual_is_refused_with_the_figure() -> None:
    model = tiny.hugging_face("gpt2", dtype=torch.float32)
    wrapped = LensModel.wrap(model, check=False)
    handle = wrapped.bridge.blocks[0].register_forward_hook(times(1.1))  # the last one's scale would vanish in the norm
    errors = relative_errors(wrapped)
    with pytest.raises(UnsupportedModel) as caught:
        LensModel.wrap(wrapped.bridge, name="scaled")
    handle.remove()
    sentence = str(caught.value)
    figure = re.search(r"off by (\S+) relative, expected at most 1e-04 in float32", sentence)
    assert figure is not None, sentence
    assert float(figure[1]) == pytest.approx(max(errors.values()), rel=0.1)
    assert float(figure[1]) > 0.01
    assert sentence.startswith("scaled (GPT2LMHeadModel) fails the self-check: ")
    assert "refused" in sentence
    assert LensModel.wrap(wrapped.bridge).check() < 1e-4  # as soon as the scale is gone


@pytest.mark.parametrize("part", ["attn", "mlp", "ln1"])
def test_any_other_arithmetic_is_refused(part: str) -> None:
    bridge = LensModel.wrap(tiny.hugging_face("llama"), check=False).bridge
    handle = getattr(bridge.blocks[0], part).register_forward_hook(times(1.01))
    with pytest.raises(UnsupportedModel, match=r"off by"):
        LensModel.wrap(bridge)
    handle.remove()


def test_an_activation_that_becomes_nan_is_refused() -> None:
    bridge = LensModel.wrap(tiny.hugging_face("gpt2"), check=False).bridge
    handle = bridge.blocks[0].attn.register_forward_hook(times(torch.nan))
    with pytest.raises(WiretraceError):
        LensModel.wrap(bridge)
    handle.remove()


def test_a_model_that_is_no_decoder_is_refused() -> None:
    with pytest.raises(UnsupportedModel):
        LensModel.wrap(transformers.BertModel(transformers.BertConfig(**PLAIN)))


# --- wrapping -------------------------------------------------------------------------------------------------------


def test_what_is_no_language_model_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="cannot wrap Linear"):
        LensModel.wrap(torch.nn.Linear(2, 2))


def test_a_bridge_is_used_as_it_is() -> None:
    bridge = tiny.native(dtype=torch.float32)
    model = LensModel.wrap(bridge, name="mine")
    assert model.bridge is bridge
    assert (model.name, model.tokenizer, model.dtype) == ("mine", None, torch.float32)
    assert model.parameter_count == sum(p.numel() for p in bridge.original_model.parameters())
    assert "mine" in repr(model)
    assert "edges=81" in repr(model)


def test_a_model_in_training_mode_is_run_without_dropout() -> None:
    inner = transformers.GPT2LMHeadModel(tiny.CONFIGS["gpt2"]()).double().train()
    model = LensModel.wrap(inner)
    tokens = tiny.task().clean
    assert torch.equal(model.logits(tokens), model.logits(tokens))


def test_prompts_longer_than_the_context_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at most 32 tokens, the context of gpt2; got 33"):
        tiny.model("gpt2").contexts(33)


def test_contexts_are_those_of_the_length() -> None:
    """A window of four: position 6 sees 3 to 6 only."""
    for length in (5, 7, 12, 3, 4, 6, 8, 9, 10, 11, 5):
        first = tiny.model("mistral").contexts(length)[0]
        seen = first.bias == 0
        expected = torch.ones(length, length, dtype=torch.bool).tril().triu(-3)
        assert torch.equal(seen, expected)


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 with a tokenizer, in Hugging Face format."""
    folder = tmp_path_factory.mktemp("models") / "gpt2"
    tiny.hugging_face("gpt2", dtype=torch.float32).save_pretrained(folder)
    backend = Tokenizer(models.WordLevel({f"w{n}": n for n in range(tiny.VOCAB)}, unk_token="w0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """Files that a test may damage."""
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_folder_loads(saved: Path, dtype: torch.dtype) -> None:
    model = LensModel.load(saved, dtype=dtype)
    assert (model.name, model.dtype) == (str(saved), dtype)
    assert model.tokenizer("w7")["input_ids"] == [7]
    tokens = tiny.task().clean
    with torch.no_grad():
        expected = tiny.hugging_face("gpt2", dtype=torch.float32)(tokens).logits
    size = float(expected.abs().max())
    torch.testing.assert_close(
        model.logits(tokens).float(), expected, rtol=0, atol=size * (0.05 if dtype == torch.bfloat16 else 1e-5)
    )


def test_a_folder_without_tokenizer_loads(copy: Path) -> None:
    for path in copy.glob("tokenizer*"):
        path.unlink()
    assert LensModel.load(copy).tokenizer is None


DAMAGED = [b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"version": "1.0", "model": {"type": "Nope"}}']


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_tokenizer_is_not_taken_for_none(copy: Path, text: bytes) -> None:
    (copy / "tokenizer.json").write_bytes(text)
    with pytest.raises(InvalidWeights, match=r"expected a whole tokenizer in .*tokenizer\.json.*cannot be read"):
        LensModel.load(copy)


@pytest.mark.parametrize("text", ["{", "[]", '{"model": 1}'])
def test_damaged_settings_of_a_tokenizer_are_refused(copy: Path, text: str) -> None:
    (copy / "tokenizer_config.json").write_text(text)
    with pytest.raises(InvalidWeights, match=r"expected a whole tokenizer in .* and the files beside it"):
        LensModel.load(copy)


def test_loading_prints_nothing(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    LensModel.load(str(saved))
    out, err = capfd.readouterr()
    assert out == ""
    assert "Loading weights" not in err


def weights(folder: Path) -> Path:
    return folder / "model.safetensors"


def truncated(folder: Path) -> None:
    whole = weights(folder).read_bytes()
    weights(folder).write_bytes(whole[: len(whole) // 2])


def cut_in_the_header(folder: Path) -> None:
    weights(folder).write_bytes(weights(folder).read_bytes()[:50])


def empty(folder: Path) -> None:
    weights(folder).write_bytes(b"")


def garbage(folder: Path) -> None:
    weights(folder).write_bytes(b"\x93 this is not what it says it is" * 20)


def absurd_header(folder: Path) -> None:
    weights(folder).write_bytes((2**62).to_bytes(8, "little") + b"{}")


@pytest.mark.parametrize("damage", [truncated, cut_in_the_header, empty, garbage, absurd_header])
def test_damaged_weights_are_refused(copy: Path, damage: Callable[[Path], None]) -> None:
    damage(copy)
    with pytest.raises(InvalidWeights, match=r"model\.safetensors is [\d,]+ bytes and cannot be read.*truncated"):
        LensModel.load(copy)


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(weights(folder))
    edit(tensors)
    save_file(tensors, weights(folder), metadata={"format": "pt"})


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(copy: Path, value: float) -> None:
    change(copy, lambda tensors: tensors["transformer.h.1.mlp.c_fc.weight"].view(-1)[5].fill_(value))
    with pytest.raises(InvalidWeights, match=r"finite weights; .*1.*NaN or infinity"):
        LensModel.load(copy)


def test_a_checkpoint_with_a_missing_weight_is_refused(copy: Path) -> None:
    change(copy, lambda tensors: tensors.pop("transformer.h.1.attn.c_attn.weight"))
    with pytest.raises(InvalidWeights, match=r"1 weights are missing.*h\.1\.attn\.c_attn\.weight.*would be random"):
        LensModel.load(copy)


def test_a_checkpoint_with_a_weight_of_another_shape_is_refused(copy: Path) -> None:
    change(copy, lambda tensors: tensors.update({"transformer.h.1.mlp.c_fc.bias": torch.zeros(3)}))
    with pytest.raises(WiretraceError):
        LensModel.load(copy)


def test_a_pickle_is_refused_and_not_opened(copy: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (copy / "exploded",))

    torch.save(Bomb(), copy / "pytorch_model.bin")
    weights(copy).unlink()
    with pytest.raises(InvalidWeights, match=r"found pytorch_model\.bin.*can run code.*save_pretrained"):
        LensModel.load(copy)
    assert not (copy / "exploded").exists()


def test_a_pickle_beside_safetensors_is_not_opened(copy: Path) -> None:
    (copy / "pytorch_model.bin").write_bytes(b"\x80\x04never read")
    assert LensModel.load(copy).architecture.n_layers == 2


def test_a_folder_without_weights_is_refused(copy: Path) -> None:
    weights(copy).unlink()
    with pytest.raises(InvalidWeights, match=r"found none"):
        LensModel.load(copy)


def test_a_shard_that_is_missing_is_refused(copy: Path) -> None:
    names = list(load_file(weights(copy)))
    weights(copy).rename(copy / "model-00001-of-00002.safetensors")
    change_map = {name: f"model-0000{1 + (number > 3)}-of-00002.safetensors" for number, name in enumerate(names)}
    (copy / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": change_map}))
    with pytest.raises(WiretraceError):
        LensModel.load(copy)


@pytest.mark.parametrize(
    "config", ["", "{", "[]", '{"model_type": "no-such-thing"}', '{"model_type": "gpt2", "n_layer": "two"}']
)
def test_a_config_that_makes_no_model_is_refused(copy: Path, config: str) -> None:
    (copy / "config.json").write_text(config)
    with pytest.raises(WiretraceError):
        LensModel.load(copy)


def test_a_folder_without_config_is_refused(copy: Path) -> None:
    (copy / "config.json").unlink()
    with pytest.raises(ModelNotFound, match=r"expected config\.json in .*save_pretrained"):
        LensModel.load(copy)


@pytest.mark.parametrize(
    "name", ["./nowhere", "/no/such/folder", "~/no-such-folder-at-all", "a/b/c", "weights.safetensors"]
)
def test_a_folder_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ModelNotFound, match=r"directory with config\.json.*not there"):
        LensModel.load(name)


def test_a_file_is_not_a_folder(saved: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"is a file"):
        LensModel.load(saved / "model.safetensors")


def test_a_model_that_does_not_ship_is_refused() -> None:
    with pytest.raises(ModelNotFound, match=r"zoo:atlantis"):
        LensModel.load("zoo:atlantis")
    with pytest.raises(ModelNotFound):
        LensModel.load("zoo:../patching")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("reverse", "zoo:reverse"),
        ("Reverse", "zoo:reverse"),
        ("zoo:REVERSE", "zoo:reverse"),
        ("ZOO:Reverse_LN", "zoo:reverse_ln"),
        ("zoo:revrese_trained", "zoo:reverse_trained"),
        ("smal", "zoo:small"),
        ("ZOO:IOI", "zoo:ioi"),
    ],
)
def test_the_name_that_was_meant_is_offered(name: str, near: str) -> None:
    """Whatever its case, and with or without `zoo:`."""
    with pytest.raises(ModelNotFound, match=rf"{name}'.* Did you mean {near}( or .*)?\?$"):
        LensModel.load(name)


def test_a_name_that_is_near_nothing_is_answered_without_a_guess() -> None:
    assert model_sources.near_names("gpt2") == model_sources.near_names("zoo:") == model_sources.near_names("") == ()
    assert model_sources.near_names("zoo:cuont_ln")[0] == "zoo:count"  # there is none with LayerNorm


@pytest.mark.parametrize("name", ["my model", "a:b", "gpt2/", "x" * 200, "a\0b", "nobody/--", "é"])
def test_a_name_that_the_hub_cannot_have_is_refused(name: str) -> None:
    with pytest.raises(ModelNotFound, match=r"expected a local directory, one of .*, or the name of a model on the"):
        LensModel.load(name)


@pytest.mark.parametrize("name", ["x" * 300, "~nobody-has-this-name/model"])
def test_a_path_that_the_system_cannot_look_up_is_refused(name: str) -> None:
    with pytest.raises(ModelNotFound, match=r"expected a directory with config\.json"):
        LensModel.load(name)


# --- the hub, which these tests never reach -------------------------------------------------------------------------


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nobody had said that there is no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def test_a_hub_name_offline_is_refused_at_once() -> None:
    start = time.perf_counter()
    with pytest.raises(ModelNotFound, match=r"'gpt2' is neither a local directory.*HF_HUB_OFFLINE is set"):
        LensModel.load("gpt2")
    assert time.perf_counter() - start < 2


@pytest.mark.usefixtures("online")
def test_a_hub_that_does_not_answer_is_given_up_within_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://192.0.2.1")  # reserved: nobody is there
    start = time.perf_counter()
    with pytest.raises(ModelNotFound, match=r"hub cannot be reached.*give that folder"):
        LensModel.load("someone/something")
    assert time.perf_counter() - start < 2.5


@pytest.mark.usefixtures("online")
def test_a_network_without_names_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_names(*_args: Any, **_options: Any) -> Any:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", no_names)
    with pytest.raises(ModelNotFound, match=r"Temporary failure in name resolution"):
        LensModel.load("gpt2")


# --- the zoo --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif("zoo:ioi" not in model_sources.zoo_names(), reason="zoo:ioi is not there yet")
def test_models_that_ship_load() -> None:
    for name in model_sources.zoo_names():
        model = LensModel.load(name)
        assert model.name == name
        assert model.tokenizer is not None
        assert model.check() < 1e-4


def test_zoo_names_are_folders_with_a_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "a").mkdir()
    (tmp_path / "notes.txt").write_text("not a model")
    monkeypatch.setattr(model_sources, "ZOO", tmp_path)
    assert model_sources.zoo_names() == ()
    for name in "ab":
        (tmp_path / name / "config.json").write_text("{}")
    assert model_sources.zoo_names() == ("zoo:a", "zoo:b")
    monkeypatch.setattr(model_sources, "ZOO", tmp_path / "missing")
    assert model_sources.zoo_names() == ()
