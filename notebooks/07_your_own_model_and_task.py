# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Your own model and task
#
# Any model that Hugging Face can save, and any pairs of prompts that a file can hold. Here both are made on the spot,
# so that nothing is downloaded: a small GPT-2 that learns the capitals of some countries in a few seconds.

# %%
import json
import tempfile
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from circuits import acdc, evaluate, tasks
from patching import LensModel, MaskedRun, exact

folder = Path(tempfile.mkdtemp())
capitals = {
    "Egypt": "Cairo", "France": "Paris", "Ghana": "Accra", "Greece": "Athens", "India": "Delhi", "Italy": "Rome",
    "Japan": "Tokyo", "Kenya": "Nairobi", "Norway": "Oslo", "Peru": "Lima", "Poland": "Warsaw", "Spain": "Madrid",
}  # fmt: skip
templates = ("The capital of {} is", "Once in {} we saw")  # of equally many words, so that they make one batch
sentences = [(text.format(country), city) for country, city in capitals.items() for text in templates]

words = sorted({word for text, city in sentences for word in (*text.split(), city)})
vocabulary = {word: number for number, word in enumerate(("<pad>", *words))}
by_word = Tokenizer(models.WordLevel(vocabulary, "<pad>"))
by_word.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=by_word, pad_token="<pad>")

# %% [markdown]
# The model: two layers of four heads. What a model can do is up to you; this one is taught until it knows.

# %%
torch.manual_seed(0)
config = transformers.GPT2Config(
    n_layer=2, n_head=4, n_embd=32, n_positions=16, vocab_size=len(vocabulary), bos_token_id=0, eos_token_id=0,
    resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
)  # fmt: skip
network = transformers.GPT2LMHeadModel(config)
adam = torch.optim.AdamW(network.parameters(), lr=5e-3)
tokens = torch.tensor(tokenizer([text for text, _ in sentences])["input_ids"])
cities = torch.tensor([vocabulary[city] for _, city in sentences])
for _ in range(150):
    loss = torch.nn.functional.cross_entropy(network(tokens).logits[:, -1], cities)
    adam.zero_grad()
    loss.backward()
    adam.step()
network.save_pretrained(folder / "model")
tokenizer.save_pretrained(folder / "model")
print("learned" if loss < 0.05 else f"not learned: loss {loss:.2f}")

# %% [markdown]
# The task: pairs of prompts in a file. On the corrupt prompt another country stands there.

# %%
countries = list(capitals)
pairs = []
for number, country in enumerate(countries):
    other = countries[(number + 5) % len(countries)]
    for text in templates:
        pairs.append(
            {
                "clean": text.format(country),
                "corrupt": text.format(other),
                "answers": [f" {capitals[country]}"],
                "wrong_answers": [f" {capitals[other]}"],
            }
        )
_ = (folder / "capitals.json").write_text(json.dumps({"name": "capitals", "prompts": pairs}))

# %% [markdown]
# From here on it is like any other: which components carry the answer, and which wires?

# %%
model = LensModel.load(str(folder / "model"))
run = MaskedRun(model, tasks.from_file(folder / "capitals.json", model, split="train"))
print(f"logit difference: clean {run.clean_metric.mean():.2f}, corrupt {run.corrupt_metric.mean():.2f}")
exact.scores(run.nodes()).to_frame().head(6)

# %%
circuit = acdc.search(run, tau=0.5)
circuit

# %% [markdown]
# Pairs that the search did not see say whether the circuit is one of capitals, or of these prompts.

# %%
held_out = MaskedRun(model, tasks.from_file(folder / "capitals.json", model, split="held-out"))
print(evaluate(held_out, circuit))
