"""From a program to the weights of a transformer that runs it.

Each variable has dimensions of the residual stream to itself, one per symbol, and is written by one node as a one-hot
vector (a mean: as fractions; a count: as 1 / (1 + count)). There is no norm, so what is written stays as it is.

Heads. Scores are SHARPNESS where the selector's predicate holds, 0 where it does not, and SHARPNESS / 2 at position 0;
so the selected keys share the attention equally, and position 0 gets it where nothing is selected. Each other key gets
less than exp(-SHARPNESS / 2) of what a selected one gets: with 200, 4e-44, nothing in float64 and float32. A `Count`
scores position 0 like a selected key and reads whether a position is the first: 1 / (1 + count).

MLPs. A map of symbols has a neuron for each combination, relu(sum of its one-hots - (their number - 1)), which is 1 for
the present combination and 0 for all others: exact. A map of a count has a step from each level to the next, where the
function changes; steps lie between levels, so they are exact up to rounding.

Logits. The unembedding reads the output variables, times LOGIT_SCALE.

With LayerNorm, everything is written a second time with the opposite sign, and each norm's weights undo its division:
see `norms`, which also says for which programs that is exact.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from patching.compiled.language import BOS, POSITIONS, TOKENS, Aggregate, Count, InvalidProgram, Map, Mean, Program
from patching.compiled.norms import SUFFIX, require_exact, written_before
from patching.compiled.wiring import Wiring, lay_out
from patching.errors import InvalidOption
from patching.lens import LensModel, native_bridge

SHARPNESS = 200.0
LOGIT_SCALE = 10.0
MOST_WIDTH = 512
LAYER_NORM_EPS = 1e-5

Head = Aggregate | Mean | Count


@dataclass(frozen=True)
class Layout:
    """Where things stand in a compiled model.

    Attributes:
        wiring: the node of each variable.
        first: the first dimension of each variable in the residual stream.
        d_model: dimensions of all variables; with LayerNorm, the residual stream has twice as many.
        d_head: of every head: for the symbols of its key and one for position 0, and for the symbols of its value.
        d_mlp: of every MLP.
        sharpness: the score of a selected key.
    """

    wiring: Wiring
    first: dict[str, int]
    d_model: int
    d_head: int
    d_mlp: int
    sharpness: float

    def place(self, name: str) -> slice:
        """The dimensions of a variable."""
        return slice(self.first[name], self.first[name] + self.wiring.program.analysis[name].width)


def compile_program(
    program: Program,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    sharpness: float = SHARPNESS,
    width: int = MOST_WIDTH,
    layers: int = 12,
    heads: int = 12,
    layer_norm: bool = False,
) -> LensModel:
    """Build the transformer that runs a program.

    Cost: about 0.1 s of CPU, nearly all of it for building and checking an empty model.

    Args:
        program: to compile.
        dtype: of the weights.
        device: where to put it.
        sharpness: the score of a selected key. With less, heads leak, and the model is that much off its
            specification; but gradients through attention patterns no longer vanish.
        width: the most dimensions that the residual stream may have.
        layers: the most layers.
        heads: the most heads in a layer.
        layer_norm: with a LayerNorm before every reader, and twice the width; the model computes the same.

    Returns:
        A model named `zoo:NAME` (`zoo:NAME_ln` with LayerNorm), whose tokenizer reads tokens separated by spaces.

    Raises:
        InvalidProgram: the program makes no sense or does not fit, or LayerNorm would change it.
        InvalidOption: sharpness is not a positive number.

    Source: tracr, arXiv 2301.05062: the same idea; ours is causal, merges nothing, and has exact maps.

    Example:
        >>> from patching.compiled.programs import PROGRAMS
        >>> model = compile_program(PROGRAMS["previous_token"])
        >>> model.tokenizer.decode(model.logits(torch.tensor([[0, 1, 3, 2]]))[0, -1].argmax())
        'c'
    """
    if not (math.isfinite(sharpness) and sharpness > 0):
        raise InvalidOption(f"expected sharpness to be a positive number; got {sharpness}. {SHARPNESS:g} is exact.")
    wiring = lay_out(program, layers=layers, heads=heads)
    if layer_norm:
        require_exact(program)
    layout = _layout(wiring, width=width, sharpness=sharpness)
    shape = wiring.architecture
    bridge = native_bridge(
        d_model=(1 + layer_norm) * layout.d_model, d_head=layout.d_head, n_layers=shape.n_layers, n_heads=shape.n_heads,
        n_ctx=program.context, d_vocab=len(program.vocabulary), d_mlp=layout.d_mlp, attn_only=not shape.has_mlp,
        act_fn="relu", normalization_type="LN" if layer_norm else None, eps=LAYER_NORM_EPS, dtype=dtype,
    )  # fmt: skip
    with torch.no_grad():
        _set_weights(bridge.original_model, layout)
        if layer_norm:
            _mirror(bridge.original_model, layout)
    name = f"zoo:{program.name}{SUFFIX if layer_norm else ''}"
    return LensModel.wrap(bridge.to(device, print_details=False), tokenizer=tokenizer(program), name=name)


def tokenizer(program: Program) -> Any:
    """A tokenizer of the program's vocabulary: tokens are separated by spaces; `BOS` is not added."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {token: number for number, token in enumerate(program.vocabulary)}
    inner = Tokenizer(models.WordLevel(words, unk_token=BOS))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=BOS, unk_token=BOS)


def _layout(wiring: Wiring, *, width: int, sharpness: float) -> Layout:
    known = wiring.program.analysis
    ends = list(itertools.accumulate((variable.width for variable in known.values()), initial=0))
    if ends[-1] > width:
        largest = max(known.values(), key=lambda variable: variable.width)
        raise InvalidProgram(
            f"expected {wiring.program.name} to fit into {width} dimensions; its variables take {ends[-1]}, "
            f"{largest.name} alone {largest.width}. Allow more, or use fewer symbols."
        )
    heads = [variable.operation for variable in known.values() if isinstance(variable.operation, Head)]
    values = [1 if isinstance(made, Count) else known[made.value].width for made in heads]
    keys = [known[made.select.key].width + 1 for made in heads]
    neurons = [0] * wiring.architecture.n_layers
    for variable in known.values():
        if isinstance(variable.operation, Map):
            neurons[wiring.writers[variable.name].layer or 0] += len(_neurons(wiring.program, variable.operation))
    first = dict(zip(known, ends[:-1], strict=True))
    return Layout(wiring, first, ends[-1], max([2, *keys, *values]), max([1, *neurons]), sharpness)


def _set_weights(parts: Any, layout: Layout) -> None:
    program = layout.wiring.program
    for parameter in parts.parameters():
        parameter.zero_()
    tokens = parts.tok_embed.weight
    for number, symbol in enumerate(program.analysis[TOKENS].symbols):
        tokens[program.vocabulary.index(str(symbol)), layout.first[TOKENS] + number] = 1.0
    parts.pos.weight[:, layout.place(POSITIONS)] = torch.eye(program.context).to(tokens)
    used = [0] * layout.wiring.architecture.n_layers
    for name, variable in program.analysis.items():
        node, operation = layout.wiring.writers[name], variable.operation
        if node.layer is None:
            continue
        layer = parts.layers[node.layer]
        if isinstance(operation, Map):
            used[node.layer] += _set_map(layer.mlp, layout, name, operation, first=used[node.layer])
        elif operation is not None:
            _set_head(layer.attn, layout, name, operation, index=node.index or 0)
    for name, weight in program.output.items():
        for number, symbol in enumerate(program.analysis[name].symbols):
            parts.head.weight[program.vocabulary.index(str(symbol)), layout.first[name] + number] += (
                weight * LOGIT_SCALE
            )


def _mirror(parts: Any, layout: Layout) -> None:
    """Write everything a second time with the opposite sign, and set the norms so that they change nothing."""
    half, shape = layout.d_model, layout.wiring.architecture
    for embedding in (parts.tok_embed, parts.pos):
        embedding.weight[:, half:] = -embedding.weight[:, :half]
    norms = [(parts.ln_out, written_before(layout.wiring, layer=shape.n_layers, mlp=False))]
    for number, layer in enumerate(parts.layers):
        norms.append((layer.ln1, written_before(layout.wiring, layer=number, mlp=False)))
        writers = [layer.attn.o]
        if shape.has_mlp:
            norms.append((layer.ln2, written_before(layout.wiring, layer=number, mlp=True)))
            writers.append(layer.mlp.fc_out)
        for writer in writers:
            weight, bias = _weight_and_bias(writer)
            weight[half:], bias[half:] = -weight[:half], -bias[:half]
    for norm, written in norms:
        inner = getattr(norm, "original_component", norm)
        inner.weight.fill_(
            math.sqrt(written / half + LAYER_NORM_EPS)
        )  # the variance of n pairs of 1 and -1 among zeros
        inner.bias.zero_()


def _set_head(attention: Any, layout: Layout, name: str, made: Head, *, index: int) -> None:
    """Queries and keys for the selector, values and output for what is copied."""
    known, width = layout.wiring.program.analysis, layout.d_head
    rows = slice(index * width, (index + 1) * width)
    query, query_bias = (part[rows] for part in _weight_and_bias(attention.q))
    key, value = (_weight_and_bias(part)[0][rows] for part in (attention.k, attention.v))
    out = _weight_and_bias(attention.o)[0][:, rows]
    keys = known[made.select.key]
    key[: keys.width, layout.place(keys.name)] = torch.eye(keys.width).to(key)
    key[keys.width, layout.first[POSITIONS]] = 1.0
    scale = layout.sharpness * width**0.5
    default = 1.0 if isinstance(made, Count) else 0.5
    queries = [None] if made.select.query is None else known[made.select.query].symbols
    for number, symbol in enumerate(queries):
        chosen = [float(bool(made.select.predicate(symbol, each))) for each in keys.symbols]
        first = default - chosen[keys.symbols.index(keys.at_bos)]  # what its own symbol adds at position 0 is undone
        scores = torch.tensor([*chosen, first]).to(query) * scale
        if made.select.query is None:
            query_bias[: keys.width + 1] = scores
        else:
            query[: keys.width + 1, layout.first[made.select.query] + number] = scores
    place = layout.place(name)
    if isinstance(made, Count):
        value[0, layout.first[POSITIONS]] = 1.0
    else:
        value[: known[name].width, layout.place(made.value)] = torch.eye(known[name].width).to(value)
    out[place, : known[name].width] = torch.eye(known[name].width).to(out)


@dataclass(frozen=True)
class _Neuron:
    """relu(weights · inputs + bias), written with a weight for each symbol of the map's variable."""

    weights: dict[tuple[str, int], float]
    bias: float
    writes: dict[Any, float]


def _neurons(program: Program, made: Map) -> list[_Neuron]:
    used = [program.analysis[name] for name in made.of]
    if used[0].kind == "count":
        return _steps(program, made)
    neurons = []
    for row in itertools.product(*(enumerate(variable.symbols) for variable in used)):
        weights: dict[tuple[str, int], float] = {}
        for variable, (number, _) in zip(used, row, strict=True):
            weights[variable.name, number] = weights.get((variable.name, number), 0.0) + 1.0
        result = made.by(*(symbol for _, symbol in row))
        neurons.append(_Neuron(weights, 1.0 - len(used), {result: 1.0}))
    return neurons


def _steps(program: Program, made: Map) -> list[_Neuron]:
    """Two neurons for each count at which the function's value changes; they make a step from 0 to 1.

    The level falls from 1 / c to 1 / (1 + c) as the count goes from c - 1 to c; the step takes the middle half of it.
    """
    name, neurons = made.of[0], []
    for count in range(1, program.context):
        before, after = made.by(count - 1), made.by(count)
        if before == after:
            continue
        low, high = 1.0 / (1 + count), 1.0 / count
        steep = 2.0 / (high - low)
        top = high - (high - low) / 4
        for offset, sign in ((0.0, 1.0), (1.0, -1.0)):
            neurons.append(_Neuron({(name, 0): -steep}, steep * top - offset, {after: sign, before: -sign}))
    return neurons


def _set_map(part: Any, layout: Layout, name: str, made: Map, *, first: int) -> int:
    """Set the neurons of one map, from neuron `first` on; returns how many there are."""
    program = layout.wiring.program
    symbols = program.analysis[name].symbols
    (into, bias), (out, out_bias) = (_weight_and_bias(linear) for linear in (part.fc_in, part.fc_out))
    neurons = _neurons(program, made)
    for number, neuron in enumerate(neurons, start=first):
        for (source, place), weight in neuron.weights.items():
            into[number, layout.first[source] + place] = weight
        bias[number] = neuron.bias
        for symbol, weight in neuron.writes.items():
            out[layout.first[name] + symbols.index(symbol), number] += weight
    if program.analysis[made.of[0]].kind == "count":
        out_bias[layout.first[name] + symbols.index(made.by(0))] = 1.0
    return len(neurons)


def _weight_and_bias(linear: nn.Module) -> tuple[Tensor, Tensor]:
    inner = getattr(linear, "original_component", linear)
    weight, bias = inner.weight, inner.bias
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    return weight, bias
