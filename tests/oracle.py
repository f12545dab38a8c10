"""The masked run, written a second time and as plainly as possible: the model's own code with hooks.

Nothing of the engine is used. The model's own forward runs once per mask; whatever a port reads is put in place of
what the module received, every source is recorded as it is written, and the attention core (rotary embeddings,
groups, soft-caps, windows, norms of queries and keys) stays the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from graphs.nodes import INPUT, LOGITS, Edge, Node, Port, head, kv, mlp
from patching.lens import LensModel
from patching.metrics import Metric
from patching.task import Task

Values = dict[Node, Tensor]

# Families whose code computes norms, rotary tables or scores in float32 whatever the dtype of the weights.
ROUNDED = {"gpt_neo", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "native_llama"}


def tolerance(family: str) -> float:
    """How far the engine may be from the model's own code in float64."""
    return 1e-5 if family in ROUNDED else 1e-11


def projected(logits: Tensor) -> Tensor:
    """One number per prompt that depends on every logit: no error is likely to leave it as it is."""
    generator = torch.Generator().manual_seed(7)
    return logits @ torch.randn(logits.shape[-1], generator=generator, dtype=torch.float64)


EVERY_LOGIT = Metric("every_logit", True, lambda prediction: projected(prediction.logits))


def at_answer(task: Task, logits: Tensor) -> Tensor:
    """The logits that the metric sees."""
    return logits[torch.arange(len(task)), task.positions].double()


def logit_difference(task: Task, logits: Tensor) -> Tensor:
    """The metric of that name, from all logits; for tasks without padded answers."""
    seen = at_answer(task, logits)
    return seen.gather(1, task.answers).mean(1) - seen.gather(1, task.wrong_answers).mean(1)


class Oracle:
    """Runs a model with some edges replaced, given the replacement of every source."""

    def __init__(self, model: LensModel) -> None:
        self.model, self.bridge = model, model.bridge
        self.shape = model.architecture

    def sources(self, tokens: Tensor) -> Values:
        """What every source writes on an unpatched run."""
        return self.run(tokens, {}, {})[1]

    def measure(
        self,
        task: Task,
        mask: Iterable[Any],
        *,
        replacement: Values | None = None,
        metric: Callable[[Task, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """`EVERY_LOGIT` (or another metric) of each prompt under a mask over edges, in the order of the graph.

        Replacements are those of the corrupt prompts unless given. A mask entry is a number, or one per position.
        """
        by_edge = dict(zip(self.model.graph.edges, mask, strict=True))
        values = self.sources(task.corrupt) if replacement is None else replacement
        logits, _ = self.run(task.clean, by_edge, values)
        return projected(at_answer(task, logits)) if metric is None else metric(task, logits)

    @torch.no_grad()
    def run(self, tokens: Tensor, mask: Mapping[Edge, Any], replacement: Values) -> tuple[Tensor, Values]:
        """Logits and source values when edge e reads ``mask[e] * current + (1 - mask[e]) * replacement``."""
        one = _Run(self, mask, replacement)
        handles = [handle for layer in range(self.shape.n_layers) for handle in one.watch(layer)]
        handles.append(self.bridge.ln_final.register_forward_pre_hook(one.reads_at(Port(LOGITS))))
        try:
            logits = self.bridge(tokens)
        finally:
            for handle in handles:
                handle.remove()
        return logits, one.current


class _Run:
    """One forward of the model: what has been written so far, and the hooks that read and write it."""

    def __init__(self, oracle: Oracle, mask: Mapping[Edge, Any], replacement: Values) -> None:
        self.bridge, self.shape, self.replacement = oracle.bridge, oracle.shape, replacement
        self.current: Values = {}
        self.residual = torch.empty(0)
        self.off: dict[Port, list[tuple[Node, Tensor]]] = {}
        for edge, value in mask.items():
            lost = 1 - torch.as_tensor(value, dtype=torch.float64).reshape(-1, 1)  # for all positions, or for each
            if bool(lost.any()):
                self.off.setdefault(edge.reads, []).append((edge.source, lost))

    def reads(self, port: Port, plain: Tensor) -> Tensor:
        """What a port reads in place of the plain residual."""
        for source, lost in self.off.get(port, ()):
            plain = plain + lost.to(plain) * (self.replacement[source] - self.current[source])
        return plain

    def reads_at(self, port: Port) -> Callable[..., Any]:
        """A hook before a norm that only this port reads through."""
        return lambda _module, args: (self.reads(port, args[0]), *args[1:])

    def watch(self, layer: int) -> Iterator[Any]:
        """All hooks of a layer."""
        block = self.bridge.blocks[layer]
        yield block.register_forward_pre_hook(self.enters, with_kwargs=True)
        for letter in "qkv":
            yield getattr(block.attn, letter).register_forward_hook(partial(self.projects, layer, letter))
        yield block.attn.o.register_forward_pre_hook(partial(self.heads_write, layer))
        if self.shape.has_mlp:
            yield block.ln2.register_forward_pre_hook(self.reads_at(Port(mlp(layer))))
            last = getattr(block, "ln2_post", None) or block.mlp
            yield last.register_forward_hook(partial(self.mlp_writes, layer))

    def enters(self, _module: Any, args: Any, kwargs: Any) -> None:
        """The residual in front of a block."""
        self.residual = args[0] if args else kwargs["hidden_states"]
        self.current.setdefault(INPUT, self.residual)

    def projects(self, layer: int, letter: Any, _module: Any, _args: Any, output: Tensor) -> Tensor:
        """Queries, keys or values, each head's (or group's) from what its own port reads."""
        block, heads = self.bridge.blocks[layer], letter == "q" or not self.shape.grouped
        weight, bias = (getattr(block.attn, f"{kind}_{letter.upper()}", None) for kind in "Wb")
        parts = []
        for index, matrix in enumerate(weight):
            node = head(layer, index) if heads else kv(layer, index)
            part = block.ln1.original_component(self.reads(Port(node, letter), self.residual)) @ matrix
            parts.append(part if bias is None else part + bias[index])
        return torch.stack(parts, dim=2).reshape(output.shape)

    def heads_write(self, layer: int, _module: Any, args: Any) -> None:
        """What each head adds; behind a norm, its share of the normed sum."""
        block = self.bridge.blocks[layer]
        z = args[0].reshape(*args[0].shape[:2], self.shape.n_heads, -1)
        written = torch.einsum("bphe,hed->hbpd", z, block.attn.W_O)
        post = getattr(block, "ln1_post", None)
        if post is not None:
            total = written.sum(0)
            share = post.original_component(total) / total
            written = written * share.nan_to_num()  # 0 / 0 where all heads write nothing
        for index in range(self.shape.n_heads):
            self.current[head(layer, index)] = written[index]

    def mlp_writes(self, layer: int, _module: Any, _args: Any, output: Any) -> None:
        """What the MLP adds, after the norm behind it if there is one."""
        self.current[mlp(layer)] = output[0] if isinstance(output, tuple) else output
