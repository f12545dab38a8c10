"""The tasks of text, and tiny random models whose byte-pair tokenizers have a token for every word of theirs."""

from __future__ import annotations

import copy
import functools
from types import ModuleType, SimpleNamespace

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from circuits import tasks
from patching.lens import LensModel

NAMES = (
    "agreement", "arithmetic", "capitals", "docstring", "greater_than", "induction", "ioi", "multiple_choice",
    "pronouns",
)  # fmt: skip
SPLITS = ("train", "held-out", "held-out-words", "held-out-templates", "held-out-all")

OPTIONS = [(name, corruption) for name in NAMES for corruption in tasks.load(name).CORRUPTIONS]
"""Every corruption of every task."""


def module(name: str) -> ModuleType:
    return tasks.load(name)


def training_split(name: str) -> str:
    """The split that keeps to training words; that of `ioi` holds out pairs alone."""
    return "train-names" if name == "ioi" else "train"


@functools.cache
def corpus() -> tuple[str, ...]:
    """Prompts of all tasks and splits, and every word that must be one token."""
    texts = [f" {word}" for name in NAMES for word in module(name).WORDS]
    texts += [f" {word}" for word in module("arithmetic").NUMBER_WORDS]
    for name in NAMES:
        for split in SPLITS:
            texts += [prompt.clean for prompt in module(name).generate(300, seed=0, split=split)]
    return tuple(texts)


@functools.cache
def tokenizer(*, bos: bool) -> PreTrainedTokenizerFast:
    """Byte pairs as GPT-2's, numbers in groups of two digits; with `bos`, a text begins with a token, as in Llama 3."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\d{1,2}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=12_000, special_tokens=["<s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    digits = [f"{start}{number:02d}" for number in range(100) for start in ("", " 17")]
    backend.train_from_iterator([*corpus(), *digits], trainer)
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<s>")


@functools.cache
def bare(*, bos: bool = False) -> SimpleNamespace:
    """A tokenizer, and no model."""
    return SimpleNamespace(tokenizer=tokenizer(bos=bos))


@functools.cache
def model(family: str) -> LensModel:
    """A tiny random model: `gpt2`, or `llama` with a beginning-of-sequence token."""
    return LensModel.wrap(copy.deepcopy(hugging_face(family)), tokenizer=tokenizer(bos=family == "llama"), name=family)


@functools.cache
def hugging_face(family: str) -> transformers.PreTrainedModel:
    """The same model as Hugging Face runs it, which no bridge has touched."""
    words = tokenizer(bos=family == "llama")
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    if family == "gpt2":
        config = transformers.GPT2Config(n_layer=2, n_head=4, n_embd=32, vocab_size=len(words), n_positions=128, **ends)
    else:
        config = transformers.LlamaConfig(
            num_hidden_layers=2, hidden_size=32, vocab_size=len(words), intermediate_size=48, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, **ends,
        )  # fmt: skip
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(config).eval().to(torch.float64)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10.0)  # else all logits are about equal
    return made
