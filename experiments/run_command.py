"""The command `wiretrace run`: one run, many, methods against a known circuit; or only a look at what would be done."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from experiments import config_file, tracking
from experiments.config_file import KNOWN_CIRCUIT
from experiments.errors import BadConfig, FolderTaken
from experiments.progress_display import display
from experiments.run_config import Asked, Done, carry_out, one_piece, pieces
from experiments.store.naming import folder_name
from experiments.sweep import ROOT, is_sweep

if TYPE_CHECKING:
    from experiments.config_file import AnyConfig


@dataclass(frozen=True)
class How:
    """What the command line says beside what to run.

    Attributes:
        dry_run: Only look.
        slurm: Only write a script.
        unit: Only one piece.
        overwrite, resume: As for `wiretrace discover`.
        quiet: Print folders alone.
    """

    dry_run: bool = False
    slurm: Path | None = None
    unit: int | None = None
    overwrite: bool = False
    resume: bool = False
    quiet: bool = False

    def check(self, asked: Asked) -> None:
        """Refuse what contradicts itself, and what would silently do nothing.

        Raises:
            BadConfig: There is such a thing.
        """
        chosen = {"--dry-run": self.dry_run, "--slurm": self.slurm is not None, "--unit": self.unit is not None}
        instead = [name for name, given in chosen.items() if given]
        if len(instead) > 1:
            raise BadConfig("expected one of --dry-run, --slurm and --unit.")
        if instead and self.overwrite:
            raise BadConfig(f"expected no --overwrite with {instead[0]}, which replaces nothing.")
        if instead and instead[0] != "--dry-run" and asked.elsewhere:
            raise BadConfig(
                f"expected no --executor, --workers, --ray-address or --retries with {instead[0]}: SLURM sees to the "
                "pieces of work, and each is done in a process of its own."
            )


def run(asked: Asked, how: How) -> AnyConfig | None:
    """Do what is asked; a config that is to be made here, as a single run, is given back instead.

    Raises:
        WiretraceError: Something is wrong; the message says what, and what to do.
        Interrupted: Ctrl-C or SIGTERM.
        typer.Exit: With 1, if runs failed.
    """
    how.check(asked)
    settings = asked.settings()
    if settings.get("schema") == KNOWN_CIRCUIT:
        _known_circuit(asked, settings, how)
        return None
    if how.dry_run:
        _look(asked, how)
    elif how.slurm is not None:
        _write_script(asked, how.slurm)
    elif how.unit is not None:
        did = one_piece(asked, how.unit)
        typer.echo(f"Piece {how.unit}: {'done' if did else 'was done before'}.")
    elif is_sweep(settings) or asked.elsewhere:
        _many(asked, how)
    else:
        return config_file.build(settings)
    return None


def folder_of(asked: Asked, config: AnyConfig) -> Path:
    """The run directory of a single run."""
    return asked.out or ROOT / folder_name(config_file.settings_of(config))


def _many(asked: Asked, how: How) -> None:
    if how.overwrite and how.resume:
        raise BadConfig("expected --overwrite (start again) or --resume (go on), not both.")
    done = carry_out(asked, overwrite=how.overwrite, show=display(quiet=how.quiet))
    if how.quiet:
        typer.echo("\n".join(str(each.folder) for each in done.planned))
    else:
        typer.echo(done.table(width=_width()))
        if len(done.planned) > 1:
            typer.echo(f"Report: {asked.report_command()}")
    if done.failed:
        _say_failed(done, asked)
        raise typer.Exit(1)


def _say_failed(done: Done, asked: Asked) -> None:
    typer.echo(f"{len(done.failed):,} of {len(done.planned):,} runs failed:", err=True)
    for label, error in done.failed.items():
        typer.echo(f"  {label}: {error}", err=True)
    typer.echo(f"Once that is put right, go on with: {asked.command()}", err=True)


def _look(asked: Asked, how: How) -> None:
    from experiments import dry_run
    from experiments.terminal import print_tables

    found = dry_run.look(asked.planned(), root=asked.root, show=display(quiet=how.quiet))
    if not how.quiet:
        print_tables(dry_run.table(found))
    typer.echo(str(found))


def _write_script(asked: Asked, path: Path) -> None:
    from experiments.executors import slurm
    from graphs.atomic import write_text

    planned = asked.planned()
    out = asked.root if is_sweep(asked.settings()) else planned[0].folder
    words = shlex.split(Asked(asked.path.absolute(), asked.changes, out.absolute()).command())
    words += [word for name in tracking.asked() for word in ("--track", name)]
    stages = pieces(planned)
    write_text(path, slurm.script(stages, words))
    typer.echo(f"{path}: {sum(map(len, stages)):,} pieces of work. Submit them with: bash {shlex.quote(str(path))}")


def _known_circuit(asked: Asked, settings: dict[str, Any], how: How) -> None:
    from experiments import known_circuits

    if how.slurm is not None or how.unit is not None or asked.elsewhere:
        raise BadConfig(
            "expected a config of runs for --slurm, --unit, --executor, --workers, --ray-address and --retries; this "
            "one is made in one piece."
        )
    loaded = known_circuits.KnownCircuit.from_dict({key: each for key, each in settings.items() if key != "schema"})
    if how.dry_run:
        typer.echo(known_circuits.outlook(loaded))
        return
    out = asked.out or ROOT / folder_name(settings)
    if out.exists() and any(out.iterdir()) and not how.overwrite:
        raise FolderTaken(f"{out} is not empty. Choose another --out, or replace what is there with --overwrite.")
    rows = known_circuits.compare(loaded, show=display(quiet=how.quiet))
    known_circuits.write(loaded, rows, out)
    table = known_circuits.table({asked.path.stem: rows})
    typer.echo(str(out) if how.quiet else f"{table}Numbers and ROC curves: {out}")


def _width() -> int | None:
    """The terminal's width; None for a file, which is as wide as it needs."""
    import shutil

    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
