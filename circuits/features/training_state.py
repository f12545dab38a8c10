"""What a training is made of between two steps, and the file that it can go on from.

A checkpoint holds everything that the next step depends on (weights, Adam's moments, how long each feature has been
silent, the history) and what the training was asked for. It is one safetensors file, written whole or not at all;
a training that goes on from it ends with the same numbers, bit for bit, as one that was never stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from circuits.features.dictionary import Dictionary
from graphs.atomic import write_bytes
from patching.errors import InvalidOption, InvalidWeights

SCHEMA = "wiretrace-dictionary-training/1"


@dataclass(frozen=True)
class Record:
    """How a training stood at one step, measured on that step's batch before its update.

    Attributes:
        step: from 1.
        loss: what was minimised.
        squared_error: mean of ``||y - x_hat||²``, in units of the training (inputs scaled).
        penalty, auxiliary: the other terms of the loss, weighted.
        l0: features that were on, on average.
        explained_variance: ``1 - Σ||y - x_hat||² / Σ||y - mean y||²``.
        dead: share of the features that have long been silent.
    """

    step: int
    loss: float
    squared_error: float
    penalty: float
    auxiliary: float
    l0: float
    explained_variance: float
    dead: float

    def __str__(self) -> str:
        """In one line."""
        return (
            f"step {self.step:,}: loss {self.loss:.4g}, L0 {self.l0:.2f}, explained variance "
            f"{self.explained_variance:.3f}, dead {self.dead:.1%}"
        )


@dataclass
class State:
    """A training between two steps.

    Attributes:
        dictionary: what is trained, in units of the training.
        optimizer: Adam over its weights.
        silent: tokens since each feature last fired.
        step: steps done.
        history: what was recorded.
    """

    dictionary: Dictionary
    optimizer: torch.optim.Adam
    silent: Int[Tensor, " feature"]
    step: int = 0
    history: list[Record] = field(default_factory=list)

    @classmethod
    def start(cls, dictionary: Dictionary, lr: float) -> State:
        """A training that has not begun."""
        weights = [weight for weight in dictionary.parameters() if weight.requires_grad]
        optimizer = torch.optim.Adam(weights, lr=lr, betas=(0.9, 0.999), fused=True)
        silent = torch.zeros(dictionary.n_features, dtype=torch.long, device=dictionary.W_dec.device)
        return cls(dictionary, optimizer, silent)

    def _moments(self) -> dict[str, Tensor]:
        names = {id(weight): name for name, weight in self.dictionary.named_parameters()}
        return {
            f"adam.{names[id(weight)]}.{key}": value
            for weight, moments in self.optimizer.state.items()
            for key, value in moments.items()
        }

    def save(self, path: str | Path, asked: Mapping[str, Any]) -> None:
        """Write a checkpoint.

        Args:
            path: the file; one that is there is replaced.
            asked: all that decides what the training comes to, as plain data.

        Raises:
            WriteFailed: the system refuses; what stood there before still does.
        """
        from safetensors.torch import save

        tensors = {f"dictionary.{name}": value for name, value in self.dictionary.state_dict().items()}
        tensors |= self._moments()
        tensors["silent"] = self.silent
        rows = [list(vars(record).values()) for record in self.history]
        tensors["history"] = torch.tensor(rows, dtype=torch.float64).reshape(-1, len(Record.__annotations__))
        plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        metadata = {"schema": SCHEMA, "step": str(self.step), "asked": json.dumps(dict(asked), sort_keys=True)}
        write_bytes(path, save(plain, metadata=metadata))

    def restore(self, path: str | Path, asked: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            InvalidWeights: the file is no checkpoint, or not whole.
            InvalidOption: it is of a training that was asked for something else.
        """
        tensors, metadata = _read(Path(path))
        before, now = json.loads(metadata["asked"]), json.loads(json.dumps(dict(asked)))
        other = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
        if other:
            changes = "; ".join(f"{key} was {before.get(key)!r} and is {now.get(key)!r}" for key in other)
            raise InvalidOption(
                f"expected the training that {path} was written by; {changes}. Give the same arguments to go on with "
                "it, or another checkpoint to start anew."
            )
        own = {name.removeprefix("dictionary."): value for name, value in tensors.items() if "dictionary." in name}
        self.dictionary.load_state_dict(own)
        self.step = int(metadata["step"])
        self.silent = tensors["silent"].to(self.silent.device)
        self.history = [Record(int(row[0]), *row[1:]) for row in tensors["history"].tolist()]
        for name, weight in self.dictionary.named_parameters():
            keys = ("step", "exp_avg", "exp_avg_sq")
            moments = {key: tensors[f"adam.{name}.{key}"] for key in keys if f"adam.{name}.{key}" in tensors}
            if moments:
                self.optimizer.state[weight] = {key: value.to(weight.device) for key, value in moments.items()}

    def forget(self, features: Int[Tensor, " dead"]) -> None:
        """Set Adam's moments of some features to 0, as those of new ones."""
        count = self.dictionary.n_features
        for name, weight in self.dictionary.named_parameters():
            axis = 1 if name == "W_enc" else 0
            if weight not in self.optimizer.state or weight.shape[axis] != count or name in ("b_dec", "W_skip"):
                continue
            for key in ("exp_avg", "exp_avg_sq"):
                self.optimizer.state[weight][key].index_fill_(axis, features, 0.0)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # not a dict
    except (SafetensorError, OSError) as error:
        raise InvalidWeights(
            f"expected a checkpoint of a training; {path} cannot be read ({error}). It is damaged, or of something "
            "else: delete it to start anew."
        ) from error
    if metadata.get("schema") != SCHEMA:
        raise InvalidWeights(
            f"expected a checkpoint with schema {SCHEMA}; {path} has {metadata.get('schema')!r}. Give another path."
        )
    return tensors, metadata


def fingerprint(*tensors: Tensor) -> str:
    """A hash of the values of tensors, to tell whether they are the same as before."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
