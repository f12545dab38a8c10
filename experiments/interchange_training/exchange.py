"""A GPT-2 whose nodes' writes are exchanged for those on other prompts, with gradients to its weights.

The engine of `patching` runs detached weights, so nothing can be trained through it. Here hooks do the exchange, as
plainly as can be; the tests hold them against `MaskedRun` over nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from graphs.components import Architecture, ComponentGraph
from graphs.nodes import Node

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor
    from transformers import GPT2LMHeadModel


class Exchange:
    """Hooks on a GPT-2: heads are met at the input of the attention's output matrix, MLPs at their output.

    Args:
        model: Hooked until `close`.
    """

    def __init__(self, model: GPT2LMHeadModel) -> None:
        self.model = model
        self.layers, self.heads = int(model.config.n_layer), int(model.config.n_head)
        self._recorded: list[Tensor] = []
        self._source: list[Tensor] | None = None
        self._masks: list[Tensor] = []
        self._handles = []
        blocks: Any = model.transformer.h
        for layer, block in enumerate(blocks):
            self._handles.append(block.attn.c_proj.register_forward_pre_hook(self._on_heads(2 * layer)))
            self._handles.append(block.mlp.register_forward_hook(self._on_mlp(2 * layer + 1)))

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Every head and MLP, in the order of masks."""
        return ComponentGraph(Architecture(self.layers, self.heads)).sources[1:]

    def record(self, tokens: Int[Tensor, "row pos"]) -> list[Tensor]:
        """What every node writes on some prompts: z of all heads, then the MLP, layer by layer."""
        self._recorded, self._source = [], None
        self.model(tokens, use_cache=False)
        return self._recorded

    def run(
        self, tokens: Int[Tensor, "row pos"], source: list[Tensor], exchanged: Bool[Tensor, "row node"]
    ) -> Float[Tensor, "row pos d_vocab"]:
        """The logits when, in each row, the chosen nodes write what they wrote in a recorded run.

        Args:
            tokens: Prompts.
            source: From `record`, of prompts of the same shape.
            exchanged: True for nodes that write what was recorded.
        """
        rows = exchanged.unflatten(1, (self.layers, self.heads + 1))
        self._masks = [mask for layer in range(self.layers) for mask in (rows[:, layer, :-1], rows[:, layer, -1:])]
        self._source = source
        return self.model(tokens, use_cache=False).logits

    def close(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()

    def _on_heads(self, place: int) -> Callable[..., tuple[Tensor]]:
        def hook(_module: object, args: tuple[Tensor]) -> tuple[Tensor]:
            return (self._passed(place, args[0]),)

        return hook

    def _on_mlp(self, place: int) -> Callable[..., Tensor]:
        def hook(_module: object, _args: object, output: Tensor) -> Tensor:
            return self._passed(place, output)

        return hook

    def _passed(self, place: int, value: Tensor) -> Tensor:
        """What goes on: the value itself, or the recorded one where its node is exchanged."""
        if self._source is None:
            self._recorded.append(value)
            return value
        mask = self._masks[place]
        wide = mask.repeat_interleave(value.shape[-1] // mask.shape[-1], dim=-1)[:, None, :]
        return value.where(~wide, self._source[place])
