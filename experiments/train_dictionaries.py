"""Train the dictionaries that ship for `zoo:ioi`, one for each site of the model.

    python -m experiments.train_dictionaries --out circuits/features/zoo/ioi

Activations come from the prompts of the IOI task, clean and corrupt, training pairs and templates alone; what stands
in a card is measured on held-out pairs. Every random number has a seed: on one machine, under one version of PyTorch,
the weights come out the same bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphs.atomic import write_text
from graphs.errors import WiretraceError, WriteFailed

if TYPE_CHECKING:
    from torch import Tensor

    from circuits.features.dictionary import Dictionary
    from patching.lens import LensModel

MODEL = "zoo:ioi"
LAYERS = 3
SITES: tuple[str, ...] = (
    "resid_pre0",
    *(f"{kind}{layer}" for layer in range(LAYERS) for kind in ("attn_out", "mlp_out", "resid_post")),
)
"""Every site that a feature circuit of the model reads."""
K = {"resid_pre": 4, "attn_out": 16, "mlp_out": 8, "resid_post": 16}
"""Features that are on, by kind of site. Embeddings carry a token and a position, eight heads and the stream most."""
HELD_OUT_SEED = 2**31 + 7
"""Seed of the prompts that cards are measured on."""


class OutputExists(WiretraceError):
    """The output folder holds something already."""


@dataclass(frozen=True)
class Plan:
    """Everything that decides the weights, apart from library versions.

    Attributes:
        architecture: of every dictionary.
        n_features: of every dictionary; the model is 64 wide.
        prompts: drawn from the task's training split; each gives a clean and a corrupt one.
        held_out: prompts of the held-out split that cards are measured on.
        steps: updates of each dictionary.
        batch: tokens in an update.
        lr: at its peak.
        dead_after: tokens without firing after which a feature is dead.
        seed: of prompts, batches and starting weights.
        threads: PyTorch's, since sums depend on how they are split.
    """

    architecture: str = "topk"
    n_features: int = 256
    prompts: int = 4000
    held_out: int = 500
    steps: int = 3000
    batch: int = 512
    lr: float = 2e-3
    dead_after: int = 100_000
    seed: int = 0
    threads: int = 1


def k_of(site: str) -> int:
    """Features that are on at a site."""
    return K[site[:-1]]


def gather(model: LensModel, sites: tuple[str, ...], plan: Plan) -> dict[str, Tensor]:
    """Activations to train on, of all sites from the same forwards."""
    from circuits.features.activations import Prompts, collect
    from circuits.tasks import ioi

    task = ioi.make(model, n=plan.prompts, seed=plan.seed, split="train")
    return collect(model, Prompts.from_task(task, corrupt=True), sites)


def fit(site: str, activations: Tensor, plan: Plan) -> tuple[Dictionary, dict[str, Any]]:
    """Train the dictionary of one site.

    Args:
        site: where.
        activations: from `gather`.
        plan: the rest.

    Returns:
        The dictionary, and how the training went, as plain data.
    """
    from circuits.features.activation_buffer import ShuffledRows
    from circuits.features.dictionary import create
    from circuits.features.training import Recipe, train

    dictionary = create(
        plan.architecture,
        d_in=activations.shape[1],
        n_features=plan.n_features,
        seed=plan.seed,
        site=site,
        k=k_of(site),
    )
    batches = ShuffledRows(activations, batch=plan.batch, seed=plan.seed)
    began = time.process_time()
    training = train(dictionary, batches, steps=plan.steps, lr=plan.lr, recipe=Recipe(dead_after=plan.dead_after))
    used = time.process_time() - began
    last = training.last
    about = {
        "tokens_at_hand": len(activations),
        "tokens_trained_on": training.tokens,
        "scale": training.scales[0],
        "seconds": round(training.seconds, 1),
        "cpu_seconds": round(used, 1),
        "last_batch": {"explained_variance": last.explained_variance, "l0": last.l0, "dead": last.dead},
    }
    return training.dictionary, about


def judge(model: LensModel, dictionary: Dictionary, *, prompts: int, seed: int = HELD_OUT_SEED) -> dict[str, Any]:
    """Measure a dictionary on held-out pairs of names, in all templates.

    Args:
        model: the model.
        dictionary: knows its site.
        prompts: how many.
        seed: of the prompts.

    Returns:
        Tokens, L0, explained variance and dead features; and KL and cross-entropy recovered when the reconstruction
        takes the activation's place, against the site's mean.
    """
    from circuits.features.activations import Prompts, collect
    from circuits.features.loss_recovered import measure
    from circuits.features.metrics import report
    from circuits.tasks import ioi

    assert dictionary.site is not None
    task = ioi.make(model, n=prompts, seed=seed, split="held-out")
    rows = collect(model, Prompts.from_task(task), [dictionary.site])[dictionary.site]
    judged, recovered = report(dictionary, rows), measure(model, dictionary, task)
    return {
        "split": "held-out",
        "prompts": prompts,
        "seed": seed,
        "tokens": judged.tokens,
        "l0": judged.l0,
        "explained_variance": judged.explained_variance,
        "dead": judged.dead,
        "kl": recovered.kl_dictionary,
        "kl_recovered_mean": recovered.kl_recovered_mean,
        "kl_recovered_zero": recovered.kl_recovered,
        "loss_recovered_mean": recovered.loss_recovered_mean,
    }


def make(
    out: Path, *, sites: tuple[str, ...] = SITES, plan: Plan | None = None, force: bool = False
) -> list[dict[str, Any]]:
    """Train, measure and save dictionaries, each in a folder of its own with its card.

    Args:
        out: the folder of the model; made if it is not there.
        sites: for which sites.
        plan: how.
        force: replace dictionaries that are there.

    Returns:
        The cards.

    Raises:
        OutputExists: a dictionary is there, and ``force`` is not given.
        WriteFailed: the folder cannot be written.
    """
    import torch

    from circuits.features.shipped import CARD
    from patching.lens import LensModel

    plan = plan or Plan()
    there = [site for site in sites if (out / site).exists()]
    if there and not force:
        raise OutputExists(
            f"expected no dictionaries in {out}; {', '.join(there)} are there. Give --force to replace them."
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteFailed(f"cannot make the folder {out}: {error.strerror}. Choose another.") from error
    before = torch.get_num_threads()
    torch.set_num_threads(plan.threads)
    try:
        model = LensModel.load(MODEL, device="cpu")
        activations = gather(model, sites, plan)
        cards = []
        for site in sites:
            dictionary, about = fit(site, activations.pop(site), plan)
            dictionary.metadata |= {"model": MODEL, "task": "ioi", "n_features": plan.n_features, "k": k_of(site)}
            dictionary.save(out / site)
            cards.append(card(site, out / site, plan, about, judge(model, dictionary, prompts=plan.held_out)))
            write_text(out / site / CARD, json.dumps(cards[-1], indent=2, allow_nan=False) + "\n")
            said = cards[-1]["held_out"]
            typer.echo(
                f"{site:12} {about['cpu_seconds']:6.1f} CPU s  EV {said['explained_variance']:.4f}  "
                f"L0 {said['l0']:5.2f}  dead {said['dead']:.3f}  KL recovered {said['kl_recovered_mean']:.4f}"
            )
    finally:
        torch.set_num_threads(before)
    return cards


def card(site: str, folder: Path, plan: Plan, about: dict[str, Any], held_out: dict[str, Any]) -> dict[str, Any]:
    """What is known of a dictionary, as plain data."""
    from circuits.features.shipped import WEIGHTS
    from patching.model_sources import ZOO

    return {
        "schema": "wiretrace-dictionary-card/1",
        "model": MODEL,
        "model_weights_sha256": _sha256(ZOO / MODEL.removeprefix("zoo:") / "model.safetensors"),
        "site": site,
        "k": k_of(site),
        "plan": asdict(plan),
        "training": about,
        "held_out": held_out,
        "versions": {name: version(name) for name in ("torch", "safetensors")},
        "device": f"CPU ({platform.machine()}), {plan.threads} thread{'s' * (plan.threads > 1)}",
        "weights_sha256": _sha256(folder / WEIGHTS),
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder of the model's dictionaries.")],
    site: Annotated[list[str] | None, typer.Option(help="Only this site; may be given several times.")] = None,
    steps: Annotated[int, typer.Option(help="Updates of each dictionary.")] = Plan.steps,
    prompts: Annotated[int, typer.Option(help="Prompts to train on.")] = Plan.prompts,
    force: Annotated[bool, typer.Option(help="Replace dictionaries that are there.")] = False,
) -> None:
    """Train the dictionaries that ship for zoo:ioi."""
    chosen = tuple(site) if site else SITES
    unknown = [name for name in chosen if name not in SITES]
    if unknown:
        raise typer.BadParameter(f"expected sites out of {', '.join(SITES)}; got {', '.join(unknown)}")
    began = time.perf_counter()
    try:
        make(out, sites=chosen, plan=replace(Plan(), steps=steps, prompts=prompts), force=force)
    except WiretraceError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    typer.echo(f"{len(chosen)} dictionaries in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    app()
