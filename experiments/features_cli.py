"""`wiretrace features`: train dictionaries, look at their features, judge, steer and mark them, find circuits of them.

Every command is a few lines here and a module beside this one (`feature_training`, `feature_looks`,
`feature_circuit`). Imports stand inside the commands, so that help texts answer at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.terminal import print_tables, sentences

if TYPE_CHECKING:
    from experiments.feature_circuit import Found

app = typer.Typer(
    name="features",
    help="Sparse dictionaries: train them, look at their features, find circuits of features.\n\n"
    "Begin with `wiretrace features show zoo:ioi/mlp_out1`, which needs no network, or train one: "
    "`wiretrace features train ioi --site mlp_out1 --out dictionaries/mlp1`.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Dictionary = Annotated[
    str,
    typer.Argument(
        metavar="DICTIONARY",
        help="One that ships (zoo:ioi/mlp_out1), a folder that `features train` made, or a dictionary of sae-lens, "
        "circuit-tracer or dictionary_learning.",
    ),
]
Task = Annotated[str | None, typer.Option(help="Prompts of this task. [default: what the dictionary was trained on]")]
Model = Annotated[
    str | None,
    typer.Option(help="As for `wiretrace discover`. [default: what the dictionary was trained on, or ships]"),
]
Text = Annotated[
    Path | None, typer.Option(help="A file of prompts, one on each line, in place of a task's.", dir_okay=False)
]
Prompts = Annotated[int, typer.Option(help="How many of the task's prompts.")]
Seed = Annotated[int, typer.Option(help="Of the prompts.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 or mps. [default: the first GPU, else cpu]")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, and as little else as possible.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is in the output folder.")]


@app.command()
@sentences
def train(
    task: Annotated[str | None, typer.Argument(help="Train on prompts of this task; not with --text.")] = None,
    site: Annotated[
        str,
        typer.Option(help="Where: resid_pre, attn_out, mlp_out or resid_post and the layer, such as mlp_out1."),
    ] = "",
    out: Annotated[Path | None, typer.Option(help="The folder to make.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="As for `wiretrace discover`. [default: that whose dictionaries ship, or as there]"),
    ] = None,
    text: Text = None,
    architecture: Annotated[
        str,
        typer.Option(help="relu, topk, batchtopk, matryoshka, gated, jumprelu, tied, transcoder or skip_transcoder."),
    ] = "topk",
    width: Annotated[int | None, typer.Option(help="Features. [default: 8 for each dimension of the site]")] = None,
    k: Annotated[
        int | None, typer.Option(help="Features that are on at a token, for topk, batchtopk, matryoshka. [default: 8]")
    ] = None,
    sparsity: Annotated[
        float | None, typer.Option(help="Weight of the penalty on active features, for the other architectures.")
    ] = None,
    sweep: Annotated[
        str | None, typer.Option(help="Several values of k or of the sparsity, such as 4,8,16: a folder for each.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Of training, one batch each.")] = 2_000,
    batch: Annotated[int, typer.Option(help="Tokens in a batch.")] = 1_024,
    lr: Annotated[float, typer.Option(help="Adam's learning rate.")] = 1e-3,
    prompts: Prompts = 2_048,
    seed: Annotated[int, typer.Option(help="Of the prompts, the start and the order of tokens.")] = 0,
    budget: Annotated[int, typer.Option(help="Megabytes that stored activations may take.")] = 256,
    device: Device = None,
    overwrite: Overwrite = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted training.")] = False,
    quiet: Quiet = False,
) -> None:
    """Train a dictionary on a model's activations: `wiretrace features train ioi --site mlp_out1 --out mlp1`.

    The folder opens in sae-lens; `training.json` in it holds the course of the training. What the dictionary is worth
    is measured on held-out prompts. Ctrl-C keeps a checkpoint, from which `--resume` goes on to the same weights.

    Examples: `wiretrace features train ioi --site resid_post1 --k 4 --width 256 --out dictionaries/r1` ·
    `wiretrace features train ioi --site mlp_out1 --architecture jumprelu --sweep 0.5,1,2 --out dictionaries/sweep`
    """
    from experiments import feature_training
    from experiments.errors import BadConfig
    from experiments.feature_subject import Asked
    from experiments.progress_display import display

    if not site or out is None:
        raise BadConfig("expected --site, such as mlp_out1, and --out with the folder to make.")
    if (task is None) == (text is None):
        raise BadConfig("expected a task, such as ioi, or --text with a file of prompts, and not both.")
    recipe = feature_training.Recipe(
        site=site,
        architecture=architecture,
        width=width,
        k=k,
        sparsity=sparsity,
        steps=steps,
        batch=batch,
        lr=lr,
        seed=seed,
        budget=budget << 20,
    )
    made = feature_training.train(
        Asked(task=task, model=model, text=text, prompts=prompts, seed=seed, device=device),
        recipe,
        out=out,
        sweep=feature_training.values_of(sweep),
        overwrite=overwrite,
        resume=resume,
        show=display(quiet=quiet),
    )
    if quiet:
        typer.echo("\n".join(str(each.folder) for each in made))
        return
    if sweep is None:
        typer.echo(str(made[0].report))
    else:
        print_tables(feature_training.table(made))
    typer.echo(f"Look at the features: wiretrace features show {made[0].folder}")


@app.command()
@sentences
def show(
    dictionary: Dictionary,
    feature: Annotated[
        list[str] | None, typer.Option("--feature", "-f", help="Describe this one, by number or name; may be repeated.")
    ] = None,
    task: Task = None,
    model: Model = None,
    text: Text = None,
    prompts: Prompts = 512,
    seed: Seed = 0,
    examples: Annotated[int, typer.Option(help="Strongest examples of each feature.")] = 10,
    labels: Annotated[Path | None, typer.Option(help="Labels that were saved from a page.", dir_okay=False)] = None,
    out: Annotated[Path | None, typer.Option(help="The page. [default: features.html in the folder, or here]")] = None,
    title: Annotated[str | None, typer.Option(help="Of the page.")] = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="Write the page, but do not open a browser.")] = False,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Show what makes features active: a page of all of them, and a summary here.

    Examples: `wiretrace features show zoo:ioi/mlp_out1` · `wiretrace features show dictionaries/mlp1 -f 12 -f m1.f40`
    """
    import webbrowser

    from circuits.features import page
    from experiments import feature_looks
    from experiments.feature_subject import Asked, open_dictionary, prepare
    from experiments.progress_display import display

    progress = display(quiet=quiet)
    opened = open_dictionary(dictionary)
    named = {} if labels is None else page.read_labels(labels)
    asked = Asked(task=task, model=model, text=text, prompts=prompts, seed=seed, device=device)
    subject = prepare(asked, known=[opened], show=progress)
    seen = feature_looks.gallery(subject, opened, examples=examples, show=progress)
    if feature:
        for name in feature:
            index = feature_looks.index_of(name, seen)
            print_tables(*feature_looks.described(seen.feature(index, label=named.get(index, ""))), "")
        return
    path = out or feature_looks.page_path(dictionary)
    page.write(seen, path, title=title, labels=named)
    if not quiet:
        print_tables(*feature_looks.summary(seen))
    typer.echo(str(path) if quiet else f"Page: {path}")
    if not no_open:
        webbrowser.open(path.resolve().as_uri())


@app.command()
@sentences
def metrics(
    dictionary: Dictionary,
    task: Task = None,
    model: Model = None,
    text: Text = None,
    prompts: Prompts = 512,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Write the numbers as JSON, too.")] = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Judge a dictionary on held-out prompts: L0, explained variance, dead features, predictions recovered.

    Example: `wiretrace features metrics dictionaries/mlp1 --out mlp1.json`
    """
    from experiments import feature_training
    from experiments.feature_subject import Asked, open_dictionary, prepare
    from experiments.progress_display import display

    progress = display(quiet=quiet)
    opened = open_dictionary(dictionary)
    asked = Asked(task=task, model=model, text=text, prompts=prompts, seed=seed, device=device, held_out=True)
    report = feature_training.judge(prepare(asked, known=[opened], show=progress), opened, show=progress)
    typer.echo(str(report))
    if out is not None:
        feature_training.write_report(report, out)


@app.command()
@sentences
def circuit(
    task: Annotated[str, typer.Argument(help="The behaviour, such as ioi. `wiretrace tasks` lists them.")],
    dictionary: Annotated[
        list[str] | None,
        typer.Option(
            "--dictionary",
            "-d",
            help="A dictionary, once for each site; zoo:ioi for all that ship. [default: those of the task's model]",
        ),
    ] = None,
    node_threshold: Annotated[
        float, typer.Option(help="Nodes must have a larger absolute effect, in the unit of the metric.")
    ] = 0.01,
    edge_threshold: Annotated[float, typer.Option(help="Likewise edges.")] = 0.05,
    effects: Annotated[
        str, typer.Option(help="Of nodes: ig (integrated gradients), atp (one gradient) or exact (every one is run).")
    ] = "ig",
    edges: Annotated[
        str, typer.Option(help="ig, or clean: the published rule, blind to features that are off in the clean run.")
    ] = "ig",
    steps: Annotated[int, typer.Option(help="Of integrated gradients.")] = 10,
    positions: Annotated[
        bool, typer.Option("--positions", help="A node for each token position; for prompts that are aligned.")
    ] = False,
    ablation: Annotated[str, typer.Option(help="What patches carry: corrupt or zero.")] = "corrupt",
    metric: Annotated[str | None, typer.Option(help="As for discover. [default: the task's own]")] = None,
    curve: Annotated[
        bool, typer.Option("--curve", help="Judge circuits of growing size too, beside circuits of neurons: a figure.")
    ] = False,
    model: Model = None,
    prompts: Prompts = 32,
    seed: Seed = 0,
    device: Device = None,
    out: Annotated[Path | None, typer.Option(help="The run directory. [default: runs/TASK-features]")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Find the circuit of features that carries a behaviour: circuit, figure, page and report in a run directory.

    Examples: `wiretrace features circuit ioi` ·
    `wiretrace features circuit ioi -d dictionaries/mlp1 -d dictionaries/r1 --node-threshold 0.02`
    """
    from experiments import feature_circuit
    from experiments.feature_subject import Asked, default_subject
    from experiments.progress_display import display
    from experiments.task_files import run_name

    found = feature_circuit.search(
        Asked(task=task, model=model, prompts=prompts, seed=seed, device=device),
        feature_circuit.Search(
            node_threshold,
            edge_threshold,
            effects,
            edges,
            steps,
            positions=positions,
            ablation=ablation,
            metric=metric,
            curve=curve,
        ),
        dictionary or [model or default_subject(task)],
        out=out or Path("runs") / f"{run_name(task)}-features",
        overwrite=overwrite,
        show=display(quiet=quiet),
    )
    if quiet:
        typer.echo(str(found.folder))
    else:
        print_feature_circuit(found)


def print_feature_circuit(found: Found) -> None:
    """Print what a run found, and its strongest nodes."""
    from experiments import feature_circuit

    for name, said in feature_circuit.lines(found):
        typer.echo(f"{name:<14}{said}")
    for name, effect in feature_circuit.strongest(found):
        typer.echo(f"  {name:<20}{effect:+.4f}")
    typer.echo(f"Run: {found.folder}")


@app.command()
@sentences
def pick(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE", help="A run of `features circuit`, or a file of features that was listed before."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The file of marks to write. [default: SOURCE, or picked.tsv in the run]")
    ] = None,
    mark: Annotated[
        list[str] | None,
        typer.Option("--mark", help="Mark these without asking: 3, 5-7 or m0.f7; may be repeated."),
    ] = None,
    n: Annotated[int, typer.Option(help="Features of a circuit to list.")] = 50,
    prompts: Prompts = 512,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Mark features that have nothing to do with the task, in a list with what they respond to.

    The file says which are marked, for `circuits.features.shift` to take out; any editor opens it, too.

    Examples: `wiretrace features pick runs/ioi-features` · `wiretrace features pick picked.tsv --mark 2 --mark 5-7`
    """
    from experiments import feature_looks
    from experiments.progress_display import display

    path = out or (source / "picked.tsv" if source.is_dir() else source)
    if source.is_dir():
        feature_looks.list_run(source, path, n=n, prompts=prompts, device=device, show=display(quiet=quiet))
    picking = feature_looks.Picking(path if source.is_dir() else source)
    if mark:
        picking.toggle(" ".join(mark))
    elif not feature_looks.pick(
        picking, ask=lambda text: typer.prompt(text, default="", show_default=False), tell=print_tables
    ):
        typer.echo("No mark was changed.")
        return
    picking.write(path)
    typer.echo(str(path) if quiet else f"{len(picking.marked)} of {len(picking.names)} features are marked: {path}")


@app.command()
@sentences
def steer(
    dictionary: Dictionary,
    prompt: Annotated[str, typer.Option(help="The text to go on from.")],
    add: Annotated[list[str] | None, typer.Option(help="FEATURE=NUMBER: add to its activation; repeatable.")] = None,
    clamp: Annotated[list[str] | None, typer.Option(help="FEATURE=NUMBER: set its activation; repeatable.")] = None,
    scale: Annotated[
        list[str] | None, typer.Option(help="FEATURE=NUMBER: multiply its activation; repeatable.")
    ] = None,
    ablate: Annotated[
        list[str] | None, typer.Option(help="FEATURE, an error term (m1.err), or all: set to 0; repeatable.")
    ] = None,
    positions: Annotated[
        str | None, typer.Option(help="Only at these token positions, such as 3,4, or 5: from there on.")
    ] = None,
    n: Annotated[int, typer.Option("--n", help="Tokens to write at most.")] = 10,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Sample among so many of the likeliest tokens.")] = None,
    seed: Annotated[int, typer.Option(help="Of the sampling; both texts take the same draws.")] = 0,
    model: Model = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Let a model write with features changed, beside what it writes without.

    Example: `wiretrace features steer dictionaries/r1 --prompt "When Mary and John went to the store, John gave a
    drink to" --clamp 12=6 --ablate 40 --n 3`
    """
    from circuits.features.generation import compare
    from experiments import feature_looks
    from experiments.feature_subject import model_for, open_dictionary
    from experiments.progress_display import display

    changes = feature_looks.edits(
        [("add", add or ()), ("clamp", clamp or ()), ("scale", scale or ()), ("ablate", ablate or ())], positions
    )
    progress = display(quiet=quiet)
    opened = open_dictionary(dictionary)
    loaded = model_for(opened, model=model, device=device, show=progress)
    with progress.steps("Writing", unit="token") as follow:
        seen = compare(
            loaded,
            prompt,
            edits=changes,
            dictionaries=[opened],
            n=n,
            temperature=temperature,
            top_k=top_k,
            seed=seed,
            progress=follow,
        )
    typer.echo(seen.after.text if quiet else str(seen))
