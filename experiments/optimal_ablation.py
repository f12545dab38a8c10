"""Train the constants of an optimal ablation into a file, which `--ablation FILE` then uses: `wiretrace ablation`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from circuits import tasks
from experiments.config import Config
from experiments.discover import HELD_OUT_SPLIT, SEARCH_SPLIT, enough_memory, load_model, stoppable
from experiments.errors import BadConfig
from experiments.progress_display import Display, Silence


@dataclass(frozen=True)
class Trained:
    """What ablating single nodes does, as a mean over nodes and held-out prompts, in the metric's unit.

    Attributes:
        path: Where the constants are.
        metric: Its name.
        damage: Ablation to mean damage: the trained one beside others.
    """

    path: Path
    metric: str
    damage: dict[str, float]

    def __str__(self) -> str:
        lines = [f"{self.path}: one constant per node. Mean damage of ablating one node ({self.metric}, held out):"]
        lines += [f"  {name:<12}{value:.4f}" for name, value in self.damage.items()]
        return "\n".join([*lines, f"Use it with: wiretrace discover TASK --ablation {self.path}"])


def train(config: Config, path: Path, *, steps: int, show: Display | None = None) -> Trained:
    """Train on training-split prompts, judge on held-out ones, write the file.

    Raises:
        WiretraceError: The model or task is not what it has to be, or the file cannot be written.
    """
    from patching import MaskedRun, optimal

    show = show or Silence()
    if not path.absolute().parent.is_dir():
        raise BadConfig(f"expected --out in a folder that is there; {path.parent} is not. Make it first.")
    with stoppable(), enough_memory():
        show.say(f"Loading {config.model} …")
        model = load_model(config)
        made = tasks.load(config.task)
        metric = config.metric or "kl"
        task = made.make(model, n=config.prompts, seed=config.seed, split=SEARCH_SPLIT)
        with show.steps("train", unit="step") as progress:
            run = MaskedRun(model, task, metric=metric)
            ablation = optimal.train(run, steps=steps, seed=config.seed, progress=progress)
        held_out = made.make(model, n=config.held_out, seed=config.seed, split=HELD_OUT_SPLIT)
        others = {"optimal": ablation, "zero": "zero", "mean-clean": "mean-clean", "corrupt": "corrupt"}
        damage = {
            name: float(optimal.damages(MaskedRun(model, held_out, ablation=each, metric=metric)).mean())
            for name, each in others.items()
        }
        optimal.save(ablation, path)
    return Trained(path, metric, damage)
