"""A TransformerLens model seen as writers to, and readers of, one residual stream.

The only file of the project that names anything of TransformerLens. It finds the pieces of a model (weights as
views, norms, rotary tables, attention masks) through the bridge's common names, hands them over as `blocks`, and
trusts arithmetic rather than flags: `LensModel.check` compares a run of the pieces with the model's own logits,
so a family that computes something else is refused with the figure instead of being silently wrong.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from graphs.components import Architecture, ComponentGraph
from patching.blocks import Attention, Block, Context, Mlp, Norm, Readout, Rope, identity_norm
from patching.errors import InvalidWeights, UnsupportedModel

NATIVE_TYPE = "transformer_lens_native"
"""The `model_type` of folders that hold a model of TransformerLens itself (`patching.native_folder`)."""

TOLERANCES: dict[torch.dtype, float] = {
    # Hugging Face computes norms, rotary tables and some scores in float32 whatever the dtype of the weights.
    torch.float64: 1e-5,
    torch.float32: 1e-4,
    # About 20 and 13 machine epsilons; what a family computes differently shows as 1e-1 and more in float32 already.
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}


class LensModel:
    """A model whose components can be run one by one.

    Make one with `load` (a model that ships, a local directory, a hub name), or `wrap` (a TransformerBridge you
    already have). The wrapped model is read, never changed: no hook, flag or gradient stays behind.

    Attributes:
        name: what was asked for, e.g. ``zoo:ioi``.
        architecture: numbers of layers, heads and key/value heads.
        graph: every node and edge of that architecture.
        blocks: the layers, as pieces.
        readout: final norm and unembedding.
        tokenizer: the Hugging Face tokenizer, or None.
    """

    def __init__(self, bridge: Any, *, name: str, tokenizer: Any = None, check: bool = True) -> None:
        self.bridge = bridge
        self.name = name
        self.tokenizer = tokenizer
        parameters = list(bridge.original_model.parameters())
        self.device = parameters[0].device
        self.dtype = parameters[0].dtype
        _require_finite(bridge.original_model, name)
        with _named(name):
            self.blocks = tuple(_block(layer) for layer in bridge.blocks)
            self.readout = _readout(bridge)
            self.architecture = _architecture(bridge, self.blocks)
        self.graph = ComponentGraph(self.architecture)
        self.d_model = self.readout.unembed.shape[0]
        self.d_vocab = self.readout.unembed.shape[1]
        self.n_ctx = int(bridge.cfg.n_ctx)
        self._contexts: dict[int, tuple[Context, ...]] = {}
        if check:
            self.check()

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> LensModel:
        """Load a model for analysis.

        Args:
            source: ``zoo:NAME`` for a model that ships, is compiled (`patching.compiled`) or made by hand
                (`patching.agreement_toy`), a directory in Hugging Face format (config.json and safetensors weights) or
                of a native model (`patching.native_folder`), or the name of a model on the Hugging Face hub.
            device: where to put it; the first CUDA device if there is one, else the CPU.
            dtype: of the weights. float32 is the default because half precision cannot rank small effects.

        Raises:
            ModelNotFound: no such model here, or no network to fetch it from.
            InvalidWeights: the files are there but cannot be trusted (truncated, pickled, NaN).
            UnsupportedModel: the pieces do not reproduce the model's own logits.

        Example:
            >>> LensModel.load("zoo:ioi").architecture.n_layers > 1
            True
        """
        from patching import agreement_toy, compiled, model_sources, native_folder

        name = str(source)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if name == agreement_toy.NAME:
            return agreement_toy.model(dtype, device=device)
        if compiled.is_compiled(name):
            return compiled.model(name, dtype=dtype, device=device)
        folder = model_sources.folder_of(name)
        if folder is None:
            model_sources.require_reachable(name)
        else:
            model_sources.require_safe_files(folder)
            if native_folder.is_native(folder):
                bridge = native_folder.load(folder, dtype=dtype).to(device, print_details=False)
                return cls.wrap(bridge, tokenizer=native_folder.tokenizer(folder), name=name)
        hugging_face, tokenizer = model_sources.load_hugging_face(folder or name, dtype=dtype)
        return cls.wrap(hugging_face.to(device), tokenizer=tokenizer, name=name)

    @classmethod
    def wrap(cls, model: Any, *, tokenizer: Any = None, name: str | None = None, check: bool = True) -> LensModel:
        """Use a model that is already in memory: a TransformerBridge, or a Hugging Face causal language model.

        A Hugging Face model is wrapped in a bridge, which replaces its submodules in place (as TransformerLens
        always does); a bridge is used as it is. The model is put into evaluation mode, since dropout would make every
        run another.
        """
        if not hasattr(model, "blocks"):
            model = _bridge(model)
        elif tokenizer is None:
            tokenizer = getattr(model, "tokenizer", None)
        model.eval()
        return cls(model, name=name or type(model.original_model).__name__, tokenizer=tokenizer, check=check)

    @property
    def parameter_count(self) -> int:
        """Number of weights."""
        storages = {p.untyped_storage().data_ptr(): p for p in self.bridge.original_model.parameters()}
        return sum(p.untyped_storage().nbytes() // p.itemsize for p in storages.values())

    @torch.no_grad()
    def logits(self, tokens: Int[Tensor, "example pos"]) -> Float[Tensor, "example pos d_vocab"]:
        """The model's own logits, computed by the model's own code."""
        return self.bridge(tokens.to(self.device))

    @torch.no_grad()
    def embed(self, tokens: Int[Tensor, "example pos"]) -> Float[Tensor, "example pos d_model"]:
        """What enters the first block: token embedding, plus position embedding where the model has one."""
        seen: list[Tensor] = []

        def stop(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append(args[0] if args else kwargs["hidden_states"])
            raise _Stop

        with _pre_hooks([(self.bridge.blocks[0], stop)]), contextlib.suppress(_Stop):
            self.bridge(tokens.to(self.device))
        return seen[0].detach()

    def token_embeddings(self, tokens: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d_model"]:
        """Rows of the embedding matrix, before positions and scaling."""
        return self.bridge.W_E.detach()[tokens.to(self.device)]

    def contexts(self, length: int) -> tuple[Context, ...]:
        """Per layer, the attention mask and rotary tables for prompts of some length, as the model itself uses them."""
        if length > self.n_ctx:
            raise ValueError(
                f"expected prompts of at most {self.n_ctx} tokens, the context of {self.name}; got {length}. "
                "Shorten the prompts."
            )
        if length not in self._contexts:
            if len(self._contexts) >= 8:
                self._contexts.pop(next(iter(self._contexts)))
            self._contexts[length] = self._read_contexts(length)
        return self._contexts[length]

    @torch.no_grad()
    def _read_contexts(self, length: int) -> tuple[Context, ...]:
        calls: dict[int, dict[str, Any]] = {}

        def record(layer: int) -> Callable[..., None]:
            def hook(_module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                calls[layer] = kwargs

            return hook

        hooks = [(block.attn, record(layer)) for layer, block in enumerate(self.bridge.blocks)]
        with _pre_hooks(hooks):
            self.bridge(torch.zeros(1, length, dtype=torch.long, device=self.device))
        return tuple(
            _context(block.attn.original_component, calls.get(layer, {}), length, self)
            for layer, block in enumerate(self.bridge.blocks)
        )

    def check(self) -> float:
        """Compare the pieces with the model itself; returns the worst relative error.

        On random prompts: all masks 1 = the model's own logits; all masks 0 = the model on the corrupt prompts;
        the sum of all writers' changes = the change of the final residual; and with corrupt = clean, any mask
        gives the clean logits, port by port.

        Raises:
            UnsupportedModel: the worst error exceeds the tolerance of the dtype (1e-4 in float32).
        """
        from patching.selfcheck import relative_errors

        errors = relative_errors(self)
        what, worst = max(errors.items(), key=lambda item: item[1] if math.isfinite(item[1]) else math.inf)
        limit = TOLERANCES.get(self.dtype, 1e-1)
        if not worst <= limit:
            raise UnsupportedModel(
                f"{self.name} ({type(self.bridge.original_model).__name__}) fails the self-check: {what} is off by "
                f"{worst:.2g} relative, expected at most {limit:.0e} in {str(self.dtype).removeprefix('torch.')}. "
                "Its blocks compute something that this version does not model (for example a scaled residual, "
                "interleaved experts or bidirectional attention); results would be wrong, so it is refused. "
                "`wiretrace models` lists the families that pass."
            )
        return worst

    @cached_property
    def bias_prefix(self) -> Float[Tensor, "stage d_model"]:
        """Constants of the residual stream (attention output biases, which no head owns) before each reader.

        Stage 2l is the attention of layer l, 2l + 1 its MLP, the last one the final norm.
        """
        total = torch.zeros(self.d_model, device=self.device, dtype=self.dtype)
        rows = []
        for block in self.blocks:
            rows.append(total)
            after = total if block.attention.out_bias is None else total + block.attention.out_bias
            rows.append(total if self.architecture.parallel else after)
            total = after
        return torch.stack([*rows, total])

    def __repr__(self) -> str:
        shape = self.architecture
        return (
            f"LensModel({self.name!r}, layers={shape.n_layers}, heads={shape.n_heads}, "
            f"d_model={self.d_model}, edges={self.graph.n_edges:,}, {self.dtype}, {self.device})"
        )


class _Stop(Exception):
    """Ends a forward once the embedding has been seen."""


@contextlib.contextmanager
def _pre_hooks(hooks: list[tuple[nn.Module, Callable[..., None]]]) -> Iterator[None]:
    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """A model without the expected pieces is unsupported, not an AttributeError."""
    try:
        yield
    except (AttributeError, KeyError) as error:
        raise UnsupportedModel(
            f"{name} has no piece that every decoder block is expected to have: {error}. Supported are causal "
            "decoders with softmax attention and a plain or gated MLP; `wiretrace models` lists the families."
        ) from error


# --- reading the pieces of a bridge ---------------------------------------------------------------------------------


def _block(layer: Any) -> Block:
    attention = layer.attn
    post_attention, post_mlp = getattr(layer, "ln1_post", None), getattr(layer, "ln2_post", None)
    inner = attention.original_component
    mlp = getattr(layer, "mlp", None)
    _, d_model, d_head = attention.W_Q.shape
    return Block(
        attention_norm=_norm(layer.ln1, d_model),
        attention=Attention(
            weights={letter: _detached(getattr(attention, f"W_{letter.upper()}")) for letter in "qkv"},
            biases={letter: _optional(attention, f"b_{letter.upper()}") for letter in "qkv"},
            out=_detached(attention.W_O),
            out_bias=_optional(attention, "b_O"),
            scale=_score_scale(inner, d_head),
            softcap=_positive(
                getattr(inner, "attn_logit_softcapping", None) or getattr(inner, "attn_scores_soft_cap", None)
            ),
            query_norm=_norm(getattr(attention, "q_norm", None), d_head),
            key_norm=_norm(getattr(attention, "k_norm", None), d_head),
            post=_post_norm(post_attention, d_model),
        ),
        mlp_norm=identity_norm if mlp is None else _norm(layer.ln2, d_model),
        mlp=None if mlp is None else _mlp(mlp, _post_norm(post_mlp, d_model)),
    )


def _mlp(mlp: Any, post: Norm | None) -> Mlp:
    inner = mlp.original_component
    activation = getattr(inner, "act", None) or getattr(inner, "act_fn", None) or getattr(inner, "activation_fn", None)
    if activation is None or getattr(inner, "ln", None) is not None:
        raise UnsupportedModel(
            f"expected an MLP of the form out(act(in(x))) or out(act(gate(x)) * in(x)); got {type(inner).__name__}"
        )
    gate = getattr(mlp, "gate", None)
    w_in, b_in = _linear(getattr(mlp, "in"))
    w_gate, b_gate = _linear(gate) if gate is not None else (None, None)
    w_out, b_out = _linear(mlp.out)
    return Mlp(w_in, b_in, w_gate, b_gate, w_out, b_out, _fused(activation), post)


def _fused(activation: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The kernel that torch has for an activation that is spelled out in Python, where both agree."""
    probe = torch.linspace(-6, 6, 101, dtype=torch.float64)
    fused = functools.partial(F.gelu, approximate="tanh")
    return fused if torch.allclose(activation(probe), fused(probe), rtol=1e-9, atol=1e-12) else activation


def _linear(bridge: Any) -> tuple[Tensor, Tensor | None]:
    """Weight in torch's layout (a view) and bias of a linear layer or a GPT-2 Conv1D."""
    inner = bridge.original_component
    weight = inner.weight.detach()
    bias = None if inner.bias is None else inner.bias.detach()
    return (weight.T if type(inner).__name__ == "Conv1D" else weight), bias


def _readout(bridge: Any) -> Readout:
    bias = getattr(bridge, "b_U", None)
    config = getattr(bridge.original_model, "config", None)
    cap = getattr(config, "final_logit_softcapping", None) or getattr(bridge.cfg, "output_logits_soft_cap", None)
    return Readout(
        norm=_norm(bridge.ln_final, bridge.W_U.shape[0]),
        unembed=bridge.W_U.detach(),
        bias=None if bias is None or not bool(bias.any()) else bias.detach(),
        softcap=_positive(cap),
    )


def _architecture(bridge: Any, blocks: tuple[Block, ...]) -> Architecture:
    first = blocks[0]
    with_mlp = {block.mlp is not None for block in blocks}
    shapes = {(block.attention.weights["q"].shape, block.attention.weights["k"].shape) for block in blocks}
    if len(with_mlp) > 1 or len(shapes) > 1:
        raise UnsupportedModel("expected layers of one shape; got layers that differ in heads or in having an MLP")
    return Architecture(
        n_layers=len(blocks),
        n_heads=first.attention.weights["q"].shape[0],
        n_kv_heads=first.attention.weights["k"].shape[0],
        has_mlp=first.mlp is not None,
        parallel=type(bridge.blocks[0]).__name__.startswith("Parallel") and first.mlp is not None,
    )


def _norm(bridge: Any, width: int) -> Callable[[Tensor], Tensor]:
    """The norm over ``width`` numbers that a module computes, found by trying the known formulas on random ones."""
    if bridge is None:
        return identity_norm
    module = getattr(bridge, "original_component", bridge)
    if isinstance(module, nn.Identity):
        return identity_norm
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    weight = None if weight is None else weight.detach()
    bias = None if bias is None else bias.detach()
    eps = float(getattr(module, "variance_epsilon", getattr(module, "eps", 1e-5)))
    like = weight if weight is not None else torch.zeros(())
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(3, width, generator=generator).to(device=like.device, dtype=like.dtype) + 0.5
    try:
        with torch.no_grad():
            expected = module(probe)
    except RuntimeError as error:
        raise UnsupportedModel(
            f"expected a norm over {width} numbers; {type(module).__name__} is not: {error}"
        ) from error
    scales = [weight] if weight is None else [weight, weight + 1]
    for centered in (True, False):
        for scale in scales:
            candidate = Norm(scale, bias, eps, centered)
            if not centered and bias is not None:
                continue
            if torch.allclose(candidate(probe), expected, rtol=2e-2 if like.dtype.itemsize < 4 else 1e-4, atol=1e-5):
                return candidate
    raise UnsupportedModel(f"expected LayerNorm or RMSNorm; {type(module).__name__} computes something else")


def _post_norm(bridge: Any, width: int) -> Norm | None:
    if bridge is None:
        return None
    norm = _norm(bridge, width)
    if not isinstance(norm, Norm) or norm.centered:
        raise UnsupportedModel("expected an RMSNorm after attention or MLP; a centred norm there is not supported")
    return norm


def _score_scale(inner: Any, d_head: int) -> float:
    if hasattr(inner, "scaling"):
        return float(inner.scaling)
    if hasattr(inner, "scale"):  # TransformerLens's native attention divides by it
        return 1.0 / float(inner.scale)
    if hasattr(inner, "attention_type"):  # GPT-Neo does not scale its scores
        return 1.0
    return d_head**-0.5


def _context(inner: Any, call: dict[str, Any], length: int, model: LensModel) -> Context:
    device, dtype = model.device, model.dtype
    allowed = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    mask = call.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 4:
        seen = mask[0, 0, :length, :length]
        allowed = allowed & (seen if seen.dtype == torch.bool else seen > -1.0)
    if getattr(inner, "attention_type", None) is not None and isinstance(getattr(inner, "bias", None), Tensor):
        allowed = allowed & inner.bias[0, 0, :length, :length].bool()  # GPT-Neo's local attention
    bias = torch.zeros(length, length, device=device, dtype=dtype).masked_fill(~allowed, -math.inf)
    tables = call.get("position_embeddings")
    rotary = getattr(inner, "rotary", None)
    if rotary is not None:
        return Context(bias, Rope(rotary.cos_cached[:length].to(dtype), rotary.sin_cached[:length].to(dtype), True))
    if tables is None:
        return Context(bias, None)
    return Context(bias, Rope(tables[0][0].detach(), tables[1][0].detach(), adjacent=False))


def _detached(tensor: Tensor) -> Tensor:
    return tensor.detach()


def _optional(owner: Any, name: str) -> Tensor | None:
    """A bias, or None where the model has none (the bridge raises for those)."""
    try:
        value = getattr(owner, name)
    except AttributeError:
        return None
    return None if value is None else value.detach()


def _positive(value: float | None) -> float | None:
    return float(value) if value is not None and value > 0 else None


# --- bridges --------------------------------------------------------------------------------------------------------


def _bridge(model: Any) -> Any:
    """Wrap a Hugging Face model. The tokenizer stays out: the bridge would add tokens to it."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    name = type(model).__name__
    try:
        has_bias = getattr(model.get_output_embeddings(), "bias", None) is not None
        bridge = build_bridge_from_module(model, name, hf_config=model.config)
    except Exception as error:  # the adapters of TransformerLens raise whatever they meet
        raise UnsupportedModel(
            f"TransformerLens cannot wrap {name}: {str(error) or type(error).__name__}, where it "
            "expected something else. `wiretrace models` lists the families that work."
        ) from error
    return bridge if has_bias else _without_bias(bridge)


def native_bridge(*, dtype: torch.dtype = torch.float32, **config: Any) -> Any:
    """A random TransformerLens-native model from its configuration, ready for `LensModel.wrap`."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    boot: Any = TransformerBridge.boot_native  # pyright: ignore[reportAttributeAccessIssue]  # attached on import
    return _without_bias(boot(TransformerBridgeConfig(**config), dtype=dtype).eval())


def _without_bias(bridge: Any) -> Any:
    """TransformerLens 3 makes a weight of zeros where an unembedding has no bias, which would be counted and saved."""
    bridge.unembed.original_component.bias = None
    return bridge


def _require_finite(model: nn.Module, name: str) -> None:
    for key, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise InvalidWeights(
                f"expected finite weights; {key} of {name} holds NaN or infinity. The file is damaged, or training "
                "diverged: use another checkpoint."
            )
