"""The masked run, written a second time and as plainly as possible: the model's own code with hooks.

Nothing of the engine is used. The model's own forward runs once per mask; whatever a port reads is put in place of
what the module received, every source is recorded as it is written, and the attention core (rotary embeddings,
groups, soft-caps, windows, norms of queries and keys) stays the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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
        current: Values = {}
        off: dict[Port, list[tuple[Node, Tensor]]] = {}
        for edge, value in mask.items():
            value = torch.as_tensor(value, dtype=torch.float64)
            if bool((value != 1).any()):
                off.setdefault(edge.reads, []).append((edge.source, (1 - value).reshape(-1, 1)))

        def reads(port: Port, plain: Tensor) -> Tensor:
            total = plain
            for source, part in off.get(port, ()):
                total = total + part.to(plain) * (replacement[source] - current[source])
            return total

        handles: list[Any] = []
        residual: dict[str, Tensor] = {}

        def before_block(layer: int):
            def hook(_m: Any, args: Any, kwargs: Any) -> None:
                residual["x"] = args[0] if args else kwargs["hidden_states"]
                if layer == 0:
                    current[INPUT] = residual["x"]

            return hook

        def projection(layer: int, letter: str):
            block = self.bridge.blocks[layer]

            def hook(_m: Any, _args: Any, output: Tensor) -> Tensor:
                count = self.shape.n_heads if letter == "q" else self.shape.n_kv_heads
                weight = getattr(block.attn, f"W_{letter.upper()}")
                try:
                    bias = getattr(block.attn, f"b_{letter.upper()}")
                except AttributeError:
                    bias = None
                parts = []
                for index in range(count):
                    node = head(layer, index) if letter == "q" or not self.shape.grouped else kv(layer, index)
                    x = block.ln1.original_component(reads(Port(node, letter), residual["x"]))  # type: ignore[arg-type]
                    part = x @ weight[index]
                    parts.append(part if bias is None else part + bias[index])
                return torch.stack(parts, dim=2).reshape(output.shape)

            return hook

        def before_out(layer: int):
            block = self.bridge.blocks[layer]

            def hook(_m: Any, args: Any) -> None:
                z = args[0].reshape(*args[0].shape[:2], self.shape.n_heads, -1)
                written = torch.einsum("bphe,hed->hbpd", z, block.attn.W_O)
                post = getattr(block, "ln1_post", None)
                if post is not None:
                    total = written.sum(0)
                    normed = post.original_component(total)
                    written = written * (normed / total).nan_to_num()  # 0 / 0 where all heads write nothing
                for index in range(self.shape.n_heads):
                    current[head(layer, index)] = written[index]

            return hook

        def before_mlp_norm(layer: int):
            def hook(_m: Any, args: Any) -> Any:
                return (reads(Port(mlp(layer)), args[0]), *args[1:])

            return hook

        def after_mlp(layer: int):
            def hook(_m: Any, _args: Any, output: Any) -> None:
                current[mlp(layer)] = output[0] if isinstance(output, tuple) else output

            return hook

        for layer, block in enumerate(self.bridge.blocks):
            handles.append(block.register_forward_pre_hook(before_block(layer), with_kwargs=True))
            for letter in "qkv":
                handles.append(getattr(block.attn, letter).register_forward_hook(projection(layer, letter)))
            handles.append(block.attn.o.register_forward_pre_hook(before_out(layer)))
            if self.shape.has_mlp:
                handles.append(block.ln2.register_forward_pre_hook(before_mlp_norm(layer)))
                last = getattr(block, "ln2_post", None) or block.mlp
                handles.append(last.register_forward_hook(after_mlp(layer)))
        handles.append(
            self.bridge.ln_final.register_forward_pre_hook(lambda _m, args: (reads(Port(LOGITS), args[0]), *args[1:]))
        )
        try:
            logits = self.bridge(tokens)
        finally:
            for handle in handles:
                handle.remove()
        return logits, current
