"""The command line: `wiretrace`.

Every command is a few lines here and a module beside this one. Imports stand inside the commands, so that help texts
and everything that runs no model answer at once, and so that `wiretrace env` works even when another distribution
stands in the way of the project's own packages.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments import environment
from experiments.features_cli import app as features
from experiments.features_cli import print_feature_circuit
from experiments.terminal import print_tables, sentences, width
from experiments.track_option import follow

if TYPE_CHECKING:
    from experiments.attribute import AttributeConfig, Attributed
    from experiments.config import Config, PatchConfig
    from experiments.patch import Patched
    from experiments.saved_runs import Saved

app = typer.Typer(
    name="wiretrace",
    help="Circuit discovery for transformers: which wires of a model carry a behaviour?\n\n"
    "Begin with `wiretrace discover ioi`, which needs no network.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(features, name="features", rich_help_panel="Run")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"wiretrace {environment.version()}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take the options that come before a command."""


# ----------------------------------------------------------------------------------------------------- running

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace another run that is in the output folder.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted, killed or failed run.")]
TaskName = Annotated[
    str, typer.Argument(help="The behaviour, such as ioi (see `wiretrace tasks`), or a file of your own pairs.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Track = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        callback=follow,
        expose_value=False,
        help="Follow the run with tensorboard, wandb or mlflow too; may be repeated. Nothing leaves this machine "
        "unless that tool is told to.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table: print the run directory alone.")]


@app.command(rich_help_panel="Run")
@sentences
def discover(
    task: TaskName,
    model: Annotated[
        str | None,
        typer.Option(
            help="A model that ships (zoo:ioi), a folder in Hugging Face format, or a hub name (gpt2). "
            "[default: zoo:small if it does the task, else the one made for it]"
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help="acdc, eap_ig_inputs, relp, exact …: `wiretrace methods` lists them, and their cost.")
    ] = "acdc",
    tau: Annotated[
        float | None,
        typer.Option(
            help="For acdc: drop an edge if that raises the damage by less than this, in the unit of the metric. "
            "Larger gives smaller circuits. [default: 0.05]"
        ),
    ] = None,
    n: Annotated[
        int | None, typer.Option(help="For methods that score: how many edges or nodes to take. [default: 300, or all]")
    ] = None,
    selection: Annotated[
        str, typer.Option(help="For methods that score: top, or greedy (from the logits on, so that edges join up).")
    ] = "top",
    signed: Annotated[
        bool, typer.Option("--signed", help="For methods that score: take what helps most, not what matters most.")
    ] = False,
    level: Annotated[
        str | None,
        typer.Option(help="What is decided on or scored: edge, node or neuron. [default: edges if it can]"),
    ] = None,
    positions: Annotated[bool, typer.Option("--positions", help="For acdc: each token position by itself.")] = False,
    curve: Annotated[
        bool, typer.Option("--curve", help="For methods that score: judge circuits of other sizes too (CPR, CMD).")
    ] = False,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", help="Another option of the method, as NAME=VALUE; may be repeated."),
    ] = None,
    ablation: Annotated[
        str,
        typer.Option(
            help="What an ablated edge carries: corrupt, zero, mean, mean-positional, mean-clean, resample, "
            "gaussian-noise, or a file of `wiretrace ablation` (.safetensors)."
        ),
    ] = "corrupt",
    metric: Annotated[
        str | None,
        typer.Option(
            help="What the run is judged by: logit_difference, margin, log_probability, probability, "
            "probability_difference, loss or kl. [default: the task's own]"
        ),
    ] = None,
    prompts: Annotated[int, typer.Option(help="Prompts to search on, of the training split.")] = 32,
    held_out: Annotated[int, typer.Option(help="Prompts to judge the circuit on, none of them searched on.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the prompts, random circuits and resamples.")] = 0,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 or mps. [default: the first GPU, else cpu]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run directory. [default: runs/TASK]")] = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    track: Track = None,
    quiet: Quiet = False,
) -> None:
    """Find the circuit of a task in a model: circuit, figure, graph and report in a run directory.

    The method searches on training-split prompts; what it finds is judged on held-out ones, beside random circuits of
    the same size. Ctrl-C keeps the decisions made so far; `--resume` goes on from there.

    Examples: `wiretrace discover ioi` · `wiretrace discover ioi --tau 0.1 --out runs/small` ·
    `wiretrace discover ioi --model gpt2 --method atp --n 500 --out runs/gpt2`
    """
    from experiments.config import Config, default_model, parse_option
    from experiments.task_files import run_name

    options = dict(parse_option(method, text) for text in option or ()) | ({} if tau is None else {"tau": tau})
    config = Config(
        task=task,
        model=default_model(task) if model is None else model,
        method=method,
        options=options,
        level=level,
        positions=positions,
        n=n,
        selection=selection,
        signed=signed,
        ablation=ablation,
        metric=metric,
        prompts=prompts,
        held_out=held_out,
        seed=seed,
        device=device,
        curve=curve,
    )
    _run(config, out=out or Path("runs") / run_name(task), overwrite=overwrite, resume=resume, quiet=quiet)


@app.command(rich_help_panel="Run")
@sentences
def patch(
    task: TaskName,
    model: Annotated[
        str | None,
        typer.Option(
            help="A model that ships (zoo:ioi), a folder in Hugging Face format, or a hub name (gpt2). "
            "[default: zoo:small if it does the task, else the one made for it]"
        ),
    ] = None,
    kind: Annotated[
        str,
        typer.Option(
            help="What is patched: resid_pre, q, k, v, pattern, z, attn_out, resid_mid, neurons, mlp_out or "
            "resid_post. `wiretrace methods` says what each is."
        ),
    ] = "z",
    method: Annotated[
        str,
        typer.Option(
            help="exact (every patch is run), or an estimate: atp, atp_star, relp, ig_inputs, ig_activations or "
            "conductance."
        ),
    ] = "exact",
    direction: Annotated[
        str,
        typer.Option(help="noising (ablated values into the clean run) or denoising (clean values into the ablated)."),
    ] = "noising",
    ablation: Annotated[
        str,
        typer.Option(
            help="Where ablated values come from: corrupt, zero, mean, mean-positional, mean-clean, resample or "
            "gaussian-noise."
        ),
    ] = "corrupt",
    metric: Annotated[
        str | None,
        typer.Option(
            help="What the run is judged by: logit_difference, margin, log_probability, probability, "
            "probability_difference, loss or kl. [default: the task's own]"
        ),
    ] = None,
    positions: Annotated[
        bool, typer.Option("--positions", help="Each position by itself; a layer's heads are then patched together.")
    ] = False,
    window: Annotated[
        int, typer.Option(help="Layers patched together, around each; a layer's heads are then patched together.")
    ] = 1,
    to: Annotated[
        str | None,
        typer.Option(
            help="Path patching: readers that alone get each head's value, directly or by way of MLPs, such as "
            "'a2.h5<q>' or 'logits'; several with commas."
        ),
    ] = None,
    no_qk_fix: Annotated[
        bool, typer.Option("--no-qk-fix", help="For atp_star: queries and keys to first order too.")
    ] = False,
    no_grad_drop: Annotated[
        bool, typer.Option("--no-grad-drop", help="For atp_star: one gradient, so that effects keep their sign.")
    ] = False,
    prompts: Annotated[int, typer.Option("--prompts", "--n", help="Prompts, of the training split.")] = 32,
    seed: Annotated[int, typer.Option(help="Of the prompts.")] = 0,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 or mps. [default: the first GPU, else cpu]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run directory. [default: runs/TASK-patch-KIND]")] = None,
    overwrite: Overwrite = False,
    track: Track = None,
    quiet: Quiet = False,
) -> None:
    """Patch every head or layer in turn and see what that does: effects, heat map and report in a run directory.

    Examples: `wiretrace patch ioi` · `wiretrace patch ioi --kind resid_pre --positions` ·
    `wiretrace patch ioi --kind q --method atp_star --out runs/queries` ·
    `wiretrace patch ioi --to 'a2.h5<q>' --out runs/path`
    """
    from experiments.config import PatchConfig, default_model
    from experiments.task_files import run_name

    config = PatchConfig(
        task=task,
        model=default_model(task) if model is None else model,
        kind=kind,
        method=method,
        direction=direction,
        ablation=ablation,
        metric=metric,
        positions=positions,
        window=window,
        to=to,
        qk_fix=not no_qk_fix,
        grad_drop=not no_grad_drop,
        prompts=prompts,
        seed=seed,
        device=device,
    )
    _patch(config, out=out or Path("runs") / f"{run_name(task)}-patch-{kind}", overwrite=overwrite, quiet=quiet)


@app.command(rich_help_panel="Run")
@sentences
def ablation(
    task: TaskName,
    out: Annotated[Path, typer.Option(help="The file of constants to write, ending in .safetensors.")],
    model: Annotated[str | None, typer.Option(help="As for discover, and so is the default.")] = None,
    metric: Annotated[str, typer.Option(help="What ablating a node should change least.")] = "kl",
    steps: Annotated[int, typer.Option(help="Of training.")] = 200,
    prompts: Annotated[int, typer.Option(help="Prompts to train on, of the training split.")] = 32,
    held_out: Annotated[int, typer.Option(help="Prompts to judge the constants on.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the prompts and the training.")] = 0,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 or mps. [default: the first GPU, else cpu]")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Train the constants of an optimal ablation: `wiretrace ablation ioi --out optimal.safetensors`.

    Ablating a node to its constant harms the model least of all constants. `wiretrace discover ioi --ablation
    optimal.safetensors` and `wiretrace evaluate` then use it.
    """
    from experiments.config import Config, default_model, is_constants
    from experiments.errors import BadConfig
    from experiments.optimal_ablation import train
    from experiments.progress_display import display

    if not is_constants(str(out)):
        raise BadConfig(f"expected --out to end in .safetensors; got {out}.")
    config = Config(
        task=task,
        model=default_model(task) if model is None else model,
        method="random",
        metric=metric,
        prompts=prompts,
        held_out=held_out,
        seed=seed,
        device=device,
    )
    typer.echo(str(train(config, out, steps=steps, show=display(quiet=quiet))))


@app.command(rich_help_panel="Run")
@sentences
def attribute(
    task: TaskName,
    model: Annotated[str | None, typer.Option(help="As for discover, and so is the default.")] = None,
    components: Annotated[
        str,
        typer.Option(
            help="What is ablated, with commas: input, heads, mlps, neurons, features, or single ones such as a2.h5."
        ),
    ] = "heads,mlps",
    dictionaries: Annotated[
        str | None, typer.Option(help="For features: folders of dictionaries, with commas (`wiretrace features`).")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Random ablations. [default: ten for each component, from 1,000 to 20,000]")
    ] = None,
    stop: Annotated[
        float | None,
        typer.Option(help="Add ablations until the held-out correlation rises by less than this, such as 0.005."),
    ] = None,
    keep: Annotated[float, typer.Option(help="Probability that a component is kept.")] = 0.9,
    masks: Annotated[
        str, typer.Option(help="bernoulli (independent), or subset (equally many ablated every time).")
    ] = "bernoulli",
    estimator: Annotated[
        str,
        typer.Option(
            help="auto, normal_equations, ridge, lasso, elastic_net, conjugate_gradients or difference_of_means."
        ),
    ] = "auto",
    ablation: Annotated[
        str,
        typer.Option(
            help="What an ablated component writes: corrupt, zero, mean, mean-positional, mean-clean, resample or "
            "gaussian-noise."
        ),
    ] = "corrupt",
    metric: Annotated[
        str | None, typer.Option(help="What is attributed, as for discover. [default: the task's own]")
    ] = None,
    interactions: Annotated[
        bool, typer.Option("--interactions", help="Fit pairs of the strongest components too.")
    ] = False,
    prompts: Annotated[int, typer.Option(help="Prompts, of the training split.")] = 32,
    held_out: Annotated[int, typer.Option(help="Held-out ablations to judge the weights on, for each share.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the prompts and the ablations.")] = 0,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 or mps. [default: the first GPU, else cpu]")
    ] = None,
    shards: Annotated[
        str | None,
        typer.Option(
            help="Compute only these shards of 256 ablations, FIRST:LAST with LAST left out, into --out, beside other "
            "processes that do the same; then run the command without it."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run directory. [default: runs/TASK-attribute]")] = None,
    overwrite: Overwrite = False,
    track: Track = None,
    quiet: Quiet = False,
) -> None:
    """Attribute outputs to components by random ablation (COAR): weights, figures and report in a run directory.

    An interrupted run goes on when the command is given again.

    Examples: `wiretrace attribute ioi` · `wiretrace attribute ioi --components neurons --ablation zero` ·
    `wiretrace attribute ioi --stop 0.005 --interactions --out runs/pairs`
    """
    from experiments.attribute import AttributeConfig, compute_shards
    from experiments.config import default_model
    from experiments.progress_display import display
    from experiments.task_files import run_name

    config = AttributeConfig(
        task=task,
        model=default_model(task) if model is None else model,
        components=components,
        dictionaries=dictionaries,
        samples=samples,
        stop=stop,
        keep=keep,
        masks=masks,
        estimator=estimator,
        ablation=ablation,
        metric=metric,
        interactions=interactions,
        prompts=prompts,
        held_out=held_out,
        seed=seed,
        device=device,
    )
    folder = out or Path("runs") / f"{run_name(task)}-attribute"
    if shards is None:
        _attribute(config, out=folder, overwrite=overwrite, quiet=quiet)
        return
    numbers = _shard_numbers(shards)
    total = compute_shards(config, numbers, out=folder, show=display(quiet=quiet))
    typer.echo(f"Shards {numbers.start} to {numbers.stop - 1} of {total} are in {folder}.")


@app.command(rich_help_panel="Run")
@sentences
def edit(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory of `wiretrace attribute`.")],
    targets: Annotated[
        str,
        typer.Option(help="Prompts to change: numbers with commas, wrong (metric below 0), lowest:N or highest:N."),
    ] = "lowest:1",
    direction: Annotated[str, typer.Option(help="raise or lower the targets' output.")] = "raise",
    most: Annotated[int | None, typer.Option(help="The most components to ablate. [default: 100, or all]")] = None,
    max_damage: Annotated[
        float | None,
        typer.Option(help="How much worse other prompts may become on average. [default: 5 % of their metric]"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The file of the edit. [default: RUN/edit.json]")] = None,
    quiet: Quiet = False,
) -> None:
    """Edit a model by what was attributed: which components to ablate so that some prompts change and others do not.

    The attribution must be one with constants for replacements: `wiretrace attribute ioi --components neurons
    --ablation zero`. In Python, `Edit.load(file)` then runs, applies and undoes it.
    """
    from experiments.edit import edit as make_edit
    from experiments.edit import table
    from experiments.progress_display import display

    made = make_edit(
        folder,
        targets=targets,
        direction=direction,
        out=folder / "edit.json" if out is None else out,
        most=most,
        max_damage=max_damage,
        show=display(quiet=quiet),
    )
    if quiet:
        typer.echo(str(made.out))
    else:
        print_tables(*table(made))


def _shard_numbers(text: str) -> range:
    from experiments.errors import BadConfig

    first, _, last = text.partition(":")
    if not first.isdigit() or not last.isdigit() or int(first) >= int(last):
        raise BadConfig(f"expected shards as FIRST:LAST, such as 0:4 for 0 to 3; got {text!r}.")
    return range(int(first), int(last))


def _attribute(config: AttributeConfig, *, out: Path, overwrite: bool, quiet: bool) -> None:
    from experiments.attribute import attribute as attribute_into
    from experiments.progress_display import display

    made = attribute_into(config, out=out, overwrite=overwrite, show=display(quiet=quiet))
    if quiet:
        typer.echo(str(made.folder))
    else:
        _print_attributed(made)


@app.command(rich_help_panel="Run")
@sentences
def run(
    config: Annotated[Path, typer.Argument(help="A TOML file, such as the config.toml of a run, or of many.")],
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a value: seed=3, method=atp, options.tau=0.02; may be repeated."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The run directory; of many runs the folder above. [default: runs, with a name for each]"),
    ] = None,
    executor: Annotated[
        str, typer.Option(help="Where: process (here), workers (local processes) or ray (a cluster).")
    ] = "process",
    workers: Annotated[
        int | None, typer.Option(help="How many processes. [default: one per GPU, else per core]")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster, such as auto or 10.0.0.1:6379. [default: one made here]")
    ] = None,
    retries: Annotated[
        int | None, typer.Option(help="How often a piece of work is tried again when its worker is lost.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run and what it costs.")] = False,
    slurm: Annotated[
        Path | None, typer.Option(help="Run nothing: write a script for SLURM that does it as a job array.")
    ] = None,
    unit: Annotated[
        int | None, typer.Option(help="Do this piece of work alone, as a task of a job array does.")
    ] = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    track: Track = None,
    quiet: Quiet = False,
) -> None:
    """Make a run from its config file, or all runs of a sweep: `wiretrace run runs/ioi/config.toml --out runs/again`.

    A config with a table [sweep] is many runs, one folder each; finished ones are skipped, unfinished ones go on. A
    config that holds methods against a known circuit gives a table, ROC curves and numbers. See docs/experiments.md.

    Examples: `wiretrace run experiments/configs/ioi_methods.toml --dry-run` ·
    `wiretrace run sweep.toml --set options.steps=20 --executor workers --workers 2`
    """
    from experiments import run_command
    from experiments.run_config import Asked

    asked = Asked(config, tuple(change or ()), out, executor, workers, ray_address, retries)
    how = run_command.How(dry_run=dry_run, slurm=slurm, unit=unit, overwrite=overwrite, resume=resume, quiet=quiet)
    made = run_command.run(asked, how)
    if made is not None:
        _make(made, out=run_command.folder_of(asked, made), overwrite=overwrite, resume=resume, quiet=quiet)


def _make(
    config: Config | PatchConfig | AttributeConfig, *, out: Path, overwrite: bool, resume: bool, quiet: bool
) -> None:
    """Make one run here, and print what it found."""
    from experiments.config import Config, PatchConfig

    if isinstance(config, Config):
        _run(config, out=out, overwrite=overwrite, resume=resume, quiet=quiet)
    elif isinstance(config, PatchConfig):
        _patch(config, out=out, overwrite=overwrite, quiet=quiet)
    else:
        _attribute(config, out=out, overwrite=overwrite, quiet=quiet)


def _run(config: Config, *, out: Path, overwrite: bool, resume: bool, quiet: bool) -> None:
    from experiments.discover import discover
    from experiments.progress_display import display

    made = discover(config, out=out, overwrite=overwrite, resume=resume, show=display(quiet=quiet))
    if quiet:
        typer.echo(str(made.folder))
    else:
        _print_run(made)


def _patch(config: PatchConfig, *, out: Path, overwrite: bool, quiet: bool) -> None:
    from experiments.patch import patch
    from experiments.progress_display import display

    made = patch(config, out=out, overwrite=overwrite, show=display(quiet=quiet))
    if quiet:
        typer.echo(str(made.folder))
    else:
        _print_patched(made)


# ------------------------------------------------------------------------------------------------- looking at runs


@app.command(rich_help_panel="Look")
@sentences
def runs(
    root: Annotated[Path, typer.Argument(help="The folder with the runs.")] = Path("runs"),
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="Only runs with this value: task=ioi, method=acdc,atp, seed!=0, faithfulness>0.9; repeatable."
        ),
    ] = None,
    state: Annotated[
        str | None, typer.Option(help="Only these: finished, running, interrupted, failed or damaged.")
    ] = None,
    sort: Annotated[str | None, typer.Option(help="A column, such as faithfulness: largest first.")] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="Smallest first.")] = False,
    limit: Annotated[int | None, typer.Option(help="The most runs.")] = None,
    columns: Annotated[
        str | None, typer.Option(help="Which to show, with commas, or all. [default: those that tell the runs apart]")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON, with all columns.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="As CSV, with all columns.")] = False,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Make the index anew from the directories.")] = False,
) -> None:
    """List runs with their settings and results: `wiretrace runs runs --where task=ioi --sort faithfulness`."""
    from experiments import runs_command

    form = runs_command.form_of(json=json, csv=csv)
    runs_command.runs(
        root,
        where=where or (),
        state=state,
        sort=sort,
        reverse=reverse,
        limit=limit,
        shown=columns,
        form=form,
        rebuild=rebuild,
    )


@app.command(rich_help_panel="Look")
@sentences
def show(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, such as runs/ioi.")],
    log: Annotated[bool, typer.Option("--log", help="Print what happened when, instead.")] = False,
) -> None:
    """Print what a run found, and its strongest edges, or the largest effects or weights."""
    from experiments import attribute, feature_circuit, patch, run_log
    from experiments.saved_runs import saved
    from graphs.circuit import visible

    if log:
        typer.echo("\n".join(map(str, run_log.of(folder))))
        return
    if patch.is_patched(folder):
        _print_patched(patch.saved(folder))
        return
    if attribute.is_attributed(folder):
        _print_attributed(attribute.saved(folder))
        return
    if feature_circuit.is_feature_circuit(folder):
        print_feature_circuit(feature_circuit.saved(folder))
        return
    made = saved(folder)
    _print_run(made)
    for row in made.report["strongest"]:
        effect = "" if row["effect"] is None else f"{row['effect']:+.4f}"
        typer.echo(f"  {visible(row['edge']):<24}{effect}")


@app.command(rich_help_panel="Look")
@sentences
def export(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, or a circuit file.")],
    to: Annotated[
        str | None,
        typer.Option(
            help="json, graphml, gexf, dot, cytoscape, node-link, csv, tikz, neuronpedia, mib, html, svg, pdf or png."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The file to write. [default: beside the circuit, under its name]")
    ] = None,
    title: Annotated[str | None, typer.Option(help="For figures, tikz and html.")] = None,
    width: Annotated[float | None, typer.Option(help="For figures and tikz: inches, such as 3.3 for a column.")] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(help="For figures, tikz, html: a role, such as movers=a9.h6,a9.h9; may be repeated."),
    ] = None,
    graphviz: Annotated[
        bool, typer.Option("--graphviz", help="For figures: let Graphviz's dot lay it out, where it is installed.")
    ] = False,
    d_model: Annotated[int | None, typer.Option(help="For mib: the width of the model's residual stream.")] = None,
) -> None:
    """Write a circuit in another format: `wiretrace export runs/ioi --to pdf`.

    Circuit files in other formats are read too: `wiretrace export circuit.gexf --to cytoscape`.
    """
    from experiments.saved_runs import circuit_at, export_path, roles
    from graphs.export import export as write

    path, name = export_path(source, to=to, out=out)
    if graphviz:
        from graphs.export.graphviz import draw

        draw(circuit_at(source), path)
        typer.echo(str(path))
        return
    given = {"title": title, "width": width, "groups": roles(group) if group else None, "d_model": d_model}
    write(
        circuit_at(source), path, format=name, **{option: value for option, value in given.items() if value is not None}
    )
    typer.echo(str(path))


@app.command(rich_help_panel="Look")
@sentences
def evaluate(
    circuit: Annotated[Path, typer.Argument(help="A run directory, or the file of a circuit.")],
    task: Annotated[str | None, typer.Option(help="The behaviour. [default: that of the run]")] = None,
    model: Annotated[str | None, typer.Option(help="As for discover. [default: that of the run]")] = None,
    ablation: Annotated[str | None, typer.Option(help="As for discover. [default: that of the run]")] = None,
    metric: Annotated[str | None, typer.Option(help="As for discover. [default: that of the run]")] = None,
    prompts: Annotated[int | None, typer.Option(help="Held-out prompts. [default: as many as the run had]")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the prompts, resamples and random circuits.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 or mps.")] = None,
    minimality: Annotated[bool, typer.Option("--minimality", help="Take out each edge alone, too.")] = False,
    knockout: Annotated[
        bool, typer.Option("--knockout", help="Take its edges out of the whole model one after the other, too.")
    ] = False,
    tests: Annotated[
        bool, typer.Option("--tests", help="Test equivalence, independence, minimality, sufficiency and necessity.")
    ] = False,
    curve: Annotated[
        bool, typer.Option("--curve", help="Judge other sizes from the run's scores, with CPR and CMD.")
    ] = False,
    truth: Annotated[
        str | None,
        typer.Option(help="The true circuit, a run, a file or a name such as ioi: what was found of it."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write everything as JSON, too.")] = None,
    figure: Annotated[Path | None, typer.Option(help="With --curve: draw it, as .svg, .pdf or .png.")] = None,
    quiet: Quiet = False,
) -> None:
    """Judge a circuit on held-out prompts, beside random ones: faithfulness, completeness, tests, curves.

    Examples: `wiretrace evaluate runs/ioi --tests` · `wiretrace evaluate runs/atp --curve --figure curve.svg` ·
    `wiretrace evaluate theirs.json --task ioi --model gpt2`
    """
    from experiments import judge
    from experiments.progress_display import display

    config = judge.settings_of(
        circuit, task=task, model=model, ablation=ablation, metric=metric, held_out=prompts, seed=seed, device=device
    )
    asked = {"minimality": minimality, "knockout": knockout, "tests": tests, "curve": curve}
    found = judge.judge(circuit, config, **asked, true=truth, show=display(quiet=quiet))
    typer.echo(str(found))
    if out is not None:
        found.write(out)
    if figure is not None:
        judge.figure(found, figure)


@app.command(rich_help_panel="Look")
@sentences
def stability(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, finished or not.")],
    resamples: Annotated[int, typer.Option(help="How many draws of the prompts.")] = 20,
    threshold: Annotated[
        float | None,
        typer.Option(help="Stability selection: draw halves, keep edges found in this share of them."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write everything as JSON, too.")] = None,
    quiet: Quiet = False,
) -> None:
    """Run a run's method again on resampled prompts: which edges come up how often, and how far circuits agree.

    Examples: `wiretrace stability runs/ioi` · `wiretrace stability runs/ioi --threshold 0.8 --resamples 50`
    """
    from experiments import stability_run
    from experiments.judge import settings_of
    from experiments.progress_display import display

    found = stability_run.resample(
        settings_of(folder), resamples=resamples, threshold=threshold, show=display(quiet=quiet)
    )
    typer.echo(str(found))
    most = sorted(found.frequencies.items(), key=lambda item: -item[1])[:20]
    typer.echo("\n".join(f"  {edge!s:<24}{share:.0%}" for edge, share in most))
    if out is not None:
        stability_run.write(found, out)


@app.command(rich_help_panel="Look")
@sentences
def trace(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The run directory of a search, finished or not.")],
    out: Annotated[
        Path | None, typer.Option(help="The figure to write: .svg, .pdf or .png. [default: trace.svg in the run]")
    ] = None,
    upto: Annotated[int | None, typer.Option(help="Only the first decisions, to replay the search.")] = None,
) -> None:
    """Draw the course of a search, decision by decision: `wiretrace trace runs/ioi --upto 100 --out start.png`."""
    from experiments.saved_runs import course
    from graphs.trace import draw

    steps, settings = course(folder)
    path = out or folder / "trace.svg"
    tau = settings.options.get("tau")
    known = float(tau) if isinstance(tau, int | float) else None
    draw(
        steps,
        path,
        upto=upto,
        tau=known,
        unit=settings.metric or "the metric",
        title=f"{settings.task}, {settings.model}",
    )
    typer.echo(str(path))


@app.command(rich_help_panel="Look")
@sentences
def view(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, or a circuit file.")],
    other: Annotated[Path | None, typer.Option(help="Another, to be told apart from the first.")] = None,
    out: Annotated[Path | None, typer.Option(help="The page. [default: circuit.html, beside the circuit]")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Without an example prompt, so without the model.")] = False,
    no_open: Annotated[bool, typer.Option("--no-open", help="Write the page, but do not open a browser.")] = False,
    quiet: Quiet = False,
) -> None:
    """Write the interactive page of a circuit and open it: `wiretrace view runs/ioi --other runs/ioi-eap`."""
    import webbrowser

    from experiments.progress_display import display
    from experiments.view import page

    path = page(source, out=out, other=other, plain=plain, show=display(quiet=quiet))
    typer.echo(str(path))
    if not no_open:
        webbrowser.open(path.resolve().as_uri())


@app.command(rich_help_panel="Look")
@sentences
def compare(
    sources: Annotated[list[Path], typer.Argument(metavar="RUN RUN ...", help="Run directories, or circuit files.")],
    out: Annotated[Path | None, typer.Option(help="Draw two in one figure, too: .svg, .pdf or .png.")] = None,
    width: Annotated[float | None, typer.Option(help="Of that figure, in inches, such as 3.3 for a column.")] = None,
) -> None:
    """Say how runs differ and what their circuits share: `wiretrace compare runs/a runs/b --out both.svg`."""
    from experiments.compare_runs import compare as compared
    from experiments.errors import BadConfig
    from experiments.saved_runs import circuit_at

    if out is not None and len(sources) != 2:
        raise BadConfig(f"expected two runs or circuits for --out; got {len(sources)}.")
    typer.echo(compared(sources))
    if out is not None:
        from graphs.export.comparison import draw_comparison

        draw_comparison(circuit_at(sources[0]), circuit_at(sources[1]), out, width=width)
        typer.echo(f"\nFigure: {out}")


@app.command(rich_help_panel="Look")
@sentences
def report(
    source: Annotated[Path, typer.Argument(help="A folder with runs, or the config of a sweep.")],
    out: Annotated[Path, typer.Option(help="The page: .html (one file), or .md (figures beside it).")],
    root: Annotated[Path | None, typer.Option(help="For a config: the folder of its runs. [default: runs]")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="For a config: as given to `wiretrace run`; may be repeated.")
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="Only runs with this value, as for `wiretrace runs`; repeatable.")
    ] = None,
) -> None:
    """Make one page over many runs, with tables and curves: `wiretrace report runs --out runs.html`."""
    from experiments.report_command import report as make_report

    files = make_report(source, out=out, root=root, changes=change or (), where=where or ())
    typer.echo("\n".join(map(str, files)))


@app.command(rich_help_panel="Look")
@sentences
def paths(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, or a circuit file.")],
    k: Annotated[int, typer.Option("--k", "-k", help="How many at most.")] = 10,
    by: Annotated[
        str, typer.Option(help="bottleneck (the smallest importance on the path) or product (of all of them).")
    ] = "bottleneck",
) -> None:
    """List the best paths of a circuit from the input to the logits: `wiretrace paths runs/ioi --k 5 --by product`."""
    from experiments.saved_runs import circuit_at
    from graphs.paths import paths as ranked

    circuit = circuit_at(source)
    found = ranked(circuit, k=k, by=by)  # pyright: ignore[reportArgumentType]  # refused there, with the choices
    width = max((len(path.route) for path in found), default=0)
    for path in found:
        typer.echo(f"{path.route:<{width}}  {path.value:.3g}")
    if not found:
        typer.echo("No path leads from the input to the logits.")
    elif not circuit.scores:
        typer.echo("Note: the circuit has no scores, so each edge counts 1 and the shortest paths come first.")


# -------------------------------------------------------------------------------------------------- what there is


@app.command(rich_help_panel="What there is")
@sentences
def models(json: AsJson = False) -> None:
    """List the models that ship: size, accuracy, whether the truth is known, and who made them; and families."""
    from experiments import listings

    if json:
        typer.echo(listings.to_json(listings.model_rows()))
        return
    print_tables(*listings.models(width=width()))
    typer.echo(listings.families())


@app.command(rich_help_panel="What there is")
@sentences
def tasks(
    template: Annotated[
        Path | None, typer.Option(help="Write a file of pairs of your own to begin with: .json, .jsonl or .csv.")
    ] = None,
    check: Annotated[Path | None, typer.Option(help="Check a file of your own pairs, and say what is in it.")] = None,
    model: Annotated[str | None, typer.Option(help="For --check: a model, whose tokens and accuracy count.")] = None,
    json: AsJson = False,
) -> None:
    """List the tasks; or write a file of your own pairs to begin with, or check one.

    Examples: `wiretrace tasks` · `wiretrace tasks --template my_task.json` ·
    `wiretrace tasks --check my_task.json --model zoo:ioi`
    """
    from experiments import listings, task_files

    if (template, check, model) != (None, None, None):
        task_files.command(template=template, check=check, model=model, json=json)
    elif json:
        typer.echo(listings.to_json(listings.task_rows()))
    else:
        print_tables(*listings.task_tables(width=width()))


@app.command(rich_help_panel="What there is")
@sentences
def methods() -> None:
    """List the methods, metrics, ablations, and what can be patched."""
    from experiments import listings

    print_tables(listings.method_table(), *map(listings.choices, listings.CHOICES))


@app.command(rich_help_panel="What there is")
@sentences
def env() -> None:
    """Print versions, devices, and which distribution owns each import name."""
    found = environment.ownership()
    print_tables(*environment.tables(found))
    typer.echo(environment.verdict(found))


def _print_run(made: Saved) -> None:
    from experiments import report
    from graphs.circuit import visible

    print_tables(report.table(made.report, folder=made.folder, files=made.files))
    for note in made.report["notes"]:
        typer.echo(f"Note: {visible(note)}")
    typer.echo(f"Figure: {made.folder / 'circuit.svg'}")
    if "circuit.html" in made.files:
        typer.echo(f"Interactive page: {made.folder / 'circuit.html'}")


def _print_patched(made: Patched) -> None:
    from experiments import patch

    head, largest = patch.table(made)
    print_tables(head, largest)
    for note in patch.notes(made.config, made.effects):
        typer.echo(f"Note: {note}")
    typer.echo(f"Figure: {made.folder / 'heatmap.svg'}")


def _print_attributed(made: Attributed) -> None:
    from experiments.attribute import table

    print_tables(*table(made))
    typer.echo(f"Figures: {made.folder / 'weights.svg'}, {made.folder / 'correlation.svg'}")
