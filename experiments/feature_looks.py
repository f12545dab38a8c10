"""Look at the features of a dictionary: their page, a summary, one feature, a list to pick from, steered text."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from experiments.errors import BadConfig, UnknownName
from experiments.feature_subject import Subject
from experiments.progress_display import Display
from graphs.circuit import visible

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from circuits.features.dictionary import Dictionary
    from circuits.features.examples import Example, FeatureView, Gallery
    from circuits.features.steering import Edit
    from graphs.circuit import Circuit
    from graphs.nodes import Node

PAGE_OF_LIST: Final = 10
"""Features that are listed at a time."""
WORDS: Final = 8
"""Tokens before and after the one that an example is about."""


def gallery(subject: Subject, dictionary: Dictionary, *, examples: int = 10, show: Display) -> Gallery:
    """What is seen of every feature on the subject's prompts."""
    from circuits.features.examples import collect

    with show.steps("Features", unit="prompt") as progress:
        return collect(subject.model, dictionary, subject.prompts, k=examples, progress=progress)


def page_path(dictionary: str) -> Path:
    """Where the page of a dictionary goes: beside its weights, or here for one that ships."""
    path = Path(dictionary)
    if dictionary.startswith("zoo:"):
        return Path(f"features-{dictionary.removeprefix('zoo:').replace('/', '-')}.html")
    return (path if path.is_dir() else path.parent) / "features.html"


def index_of(name: str, seen: Gallery) -> int:
    """The number of a feature, given as one or as a node (``m1.f12``).

    Raises:
        UnknownName: The dictionary has no such feature.
    """
    start = seen.name(0).removesuffix("0")
    number = name.removeprefix(start)
    if number.isdecimal() and int(number) < seen.n_features:
        return int(number)
    raise UnknownName(f"expected a feature from 0 to {seen.n_features - 1}, or {start}0 and so on; got {name!r}.")


# ------------------------------------------------------------------------------------------------------ the summary


def summary(seen: Gallery, *, n: int = 10) -> tuple[Table, Table]:
    """How many features are live, dead and dense, and the n features with the largest logit effects, as tables."""
    from rich.table import Table
    from rich.text import Text

    frequency = seen.frequency
    live, dense = int((frequency > 0).sum()), int((frequency > 0.1).sum())
    lines = [
        ("dictionary", f"{seen.architecture}, {seen.n_features:,} features at {seen.site} of {seen.model}"),
        ("seen on", f"{seen.tally.n_tokens:,} tokens of {len(seen.prompts):,} prompts"),
        ("features", f"{live:,} live, {len(seen.dead):,} dead, {dense:,} dense (active at more than a tenth)"),
        ("active", f"{float(frequency.sum()):.1f} features at a token, on average"),
    ]
    head = Table(show_header=False, box=None, pad_edge=False)
    head.add_column(style="bold", no_wrap=True)
    head.add_column(overflow="fold")
    for name, value in lines:
        head.add_row(Text(name), Text(visible(value)))
    return head, _listing(seen, _strongest(seen, n))


def _strongest(seen: Gallery, n: int) -> list[int]:
    """Live features by largest logit effect times largest activation; by activation where there are no effects."""
    scale = seen.tally.maximum
    if seen.raised is not None and seen.raised.values.shape[1]:
        scale = scale * seen.raised.values[:, 0].abs().double()
    order = scale.argsort(descending=True, stable=True).tolist()
    return [index for index in order if int(seen.tally.active[index])][:n]


def _listing(seen: Gallery, features: Iterable[int]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE, pad_edge=False)
    for column in ("feature", "active", "largest", "strongest at", "raises"):
        grid.add_column(column, no_wrap=True, justify="right" if column in ("active", "largest") else "left")
    for index in features:
        view = seen.feature(index)
        peaks = dict.fromkeys(example.tokens[example.at].strip() for example in view.top)
        raised = (token.strip() for token, _ in view.raised[:4])
        grid.add_row(
            Text(view.name),
            Text(f"{view.frequency:.2%}"),
            Text(f"{view.maximum:.3g}"),
            Text(", ".join(list(peaks)[:5]), overflow="ellipsis"),
            Text(" ".join(raised), overflow="ellipsis"),
        )
    return grid


def described(view: FeatureView) -> list[Text]:
    """One feature, line by line, the tokens of its examples shaded."""
    from rich.text import Text

    head = Text(view.name, style="bold")
    head.append(f"  {view.label}" if view.label else "", style="italic")
    if not view.n_active:
        return [head, Text("dead: active at no token")]
    said = (
        f"active at {view.frequency:.2%} of tokens ({view.n_active:,}), largest activation {view.maximum:.3g}, "
        f"mean {view.mean:.3g}"
    )
    lines = [head, Text(said), Text("raises  " + _pairs(view.raised)), Text("lowers  " + _pairs(view.lowered))]
    lines += [Text.assemble(f"{example.activation:>8.3g}  ", shaded(example, view.maximum)) for example in view.top]
    for example in view.along:
        lines.append(Text.assemble(f"{example.quantile:>8.0%}  ", shaded(example, view.maximum)))
    return lines


def shaded(example: Example, maximum: float) -> Text:
    """The context of an example, in one line: tokens bolder the stronger the feature is there."""
    from rich.text import Text

    first, last = max(0, example.at - WORDS), example.at + WORDS + 1
    text = Text(no_wrap=True, overflow="ellipsis")
    for place, (token, activation) in enumerate(zip(example.tokens, example.activations, strict=True)):
        if not first <= place < last:
            continue
        share = activation / maximum if maximum else 0.0
        style = (
            "reverse bold" if place == example.at else "bold yellow" if share > 0.5 else "yellow" if share > 0 else ""
        )
        text.append(visible(token), style=style)
    return text


def _pairs(pairs: Sequence[tuple[str, float]]) -> str:
    return ", ".join(f"{visible(token).strip()} {value:+.2g}" for token, value in pairs[:8])


# -------------------------------------------------------------------------------------------------------- steering


def edits(commands: Iterable[tuple[str, Sequence[str]]], positions: str | None) -> list[Edit]:
    """Edits from the words of a command line: ("add", ["12=4"]), ("ablate", ["m1.f3", "all"]).

    Raises:
        BadConfig: A word is not of that form.
        InvalidOption: An edit makes no sense.
    """
    from circuits.features import steering

    where = _positions(positions)
    found: list[Edit] = []
    for kind, words in commands:
        for word in words:
            name, _, number = word.partition("=")
            if kind == "ablate":
                if number:
                    raise BadConfig(f"expected --ablate FEATURE, such as 12; got {word!r}.")
                found.append(steering.ablate(None if name == "all" else _feature(name), positions=where))
                continue
            try:
                value = float(number)
            except ValueError:
                raise BadConfig(f"expected --{kind} FEATURE=NUMBER, such as 12=4; got {word!r}.") from None
            found.append(getattr(steering, kind)(_feature(name), value, positions=where))
    if not found:
        raise BadConfig("expected an edit: --add, --clamp, --scale or --ablate with a feature.")
    return found


def _feature(name: str) -> int | str:
    return int(name) if name.isdecimal() else name


def _positions(text: str | None) -> slice | list[int] | None:
    """Positions such as ``3,4`` or ``5:`` (from 5 on)."""
    if text is None:
        return None
    try:
        if ":" in text:
            first, last = (int(each) if each else None for each in text.split(":"))
            return slice(first, last)
        return [int(each) for each in text.split(",")]
    except ValueError:
        raise BadConfig(f"expected --positions such as 3,4 or 5: (from there on); got {text!r}.") from None


# --------------------------------------------------------------------------------------------------------- picking


class Picking:
    """A file of features to mark (`circuits.features.shift_selection`), as a person works through it.

    Args:
        path: The file.

    Attributes:
        names: Of the listed features, in order.
        marked: Those that are marked.

    Raises:
        BadFile: The file is not of that form.
    """

    def __init__(self, path: Path) -> None:
        from circuits.features import shift_selection
        from graphs.atomic import read_text

        selection = shift_selection.read(path)
        self.names = [str(node) for node in selection.listed]
        self.marked = {str(node) for node in selection.marked}
        text = read_text(path, limit=shift_selection.LONGEST)
        self._comments = [line for line in text.splitlines() if line.lstrip().startswith("#")]
        lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        delimiter = next((mark for mark in "\t;," if mark in lines[0]), "\t")
        self._header, *self._rows = csv.reader(lines, delimiter=delimiter)
        self._columns = {name.strip().lower(): place for place, name in enumerate(self._header)}

    def toggle(self, words: str) -> list[str]:
        """Mark features, or take marks away: numbers from 1 (``3``), ranges (``5-7``) and names (``m0.f7``).

        Raises:
            UnknownName: One of the words is none of the listed features; nothing is changed then.
        """
        chosen: list[str] = []
        for word in words.replace(",", " ").split():
            chosen += self._meant(word)
        for name in chosen:
            self.marked ^= {name}
        return chosen

    def _meant(self, word: str) -> list[str]:
        if word in self.names:
            return [word]
        first, _, last = word.partition("-")
        if first.isdecimal() and (last.isdecimal() or not last):
            low, high = int(first), int(last or first)
            if 1 <= low <= high <= len(self.names):
                return self.names[low - 1 : high]
        raise UnknownName(
            f"expected a number from 1 to {len(self.names)}, a range such as 2-4, or a feature of the list; got "
            f"{word!r}."
        )

    def page(self, start: int) -> Table:
        """Some features as a table."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        grid = Table(box=box.SIMPLE, pad_edge=False)
        for column in ("", "", "feature", "effect", "active"):
            grid.add_column(column, no_wrap=True, justify="right" if column in ("effect", "active") else "left")
        grid.add_column("examples", overflow="fold")
        for place in range(start, min(start + PAGE_OF_LIST, len(self.names))):
            mark = "x" if self.names[place] in self.marked else ""
            cells = [self._cell(place, column) for column in ("effect", "active")]
            examples = "\n".join(self._cell(place, "examples").split(" │ ")[:3])
            grid.add_row(
                str(place + 1), Text(mark, style="bold red"), self.names[place], *cells, _highlighted(examples)
            )
        return grid

    def _cell(self, place: int, column: str) -> str:
        row, at = self._rows[place], self._columns.get(column)
        return visible(row[at]) if at is not None and at < len(row) else ""

    def write(self, path: Path) -> None:
        """Write the file with the marks as they are now.

        Raises:
            WriteFailed: The system refuses.
        """
        from graphs.atomic import write_text

        out = io.StringIO()
        out.writelines(f"{line}\n" for line in self._comments)
        writer = csv.writer(out, delimiter="\t", lineterminator="\n")
        writer.writerow(self._header)
        at = self._columns["remove"]
        for name, row in zip(self.names, self._rows, strict=True):
            writer.writerow([*row[:at], "x" if name in self.marked else "", *row[at + 1 :]])
        write_text(path, out.getvalue())


def pick(picking: Picking, *, ask: Callable[[str], str], tell: Callable[[object], None]) -> bool:
    """Go through a list with somebody; whether the marks shall be written.

    Args:
        picking: The list.
        ask: Shows a prompt and gives back what was typed.
        tell: Shows a table or a sentence.
    """
    start, last = 0, max(0, (len(picking.names) - 1) // PAGE_OF_LIST * PAGE_OF_LIST)
    tell(picking.page(start))
    while True:
        typed = ask(f"Mark (such as 2 5-7), n next, b back, s save, q quit [{len(picking.marked)} marked]").strip()
        if typed in ("q", "quit"):
            return False
        if typed in ("s", "save"):
            return True
        try:
            if typed in ("", "n"):
                if start == last:
                    tell("That was the last page: s saves.")
                    continue
                start += PAGE_OF_LIST
            elif typed == "b":
                start = max(0, start - PAGE_OF_LIST)
            else:
                picking.toggle(typed)
        except UnknownName as error:
            tell(str(error))
            continue
        tell(picking.page(start))


def _highlighted(text: str) -> Text:
    """The marked tokens («…») of examples stand out."""
    from rich.text import Text

    shown = Text(text)
    shown.highlight_regex("«[^»]*»", style="bold yellow")
    return shown


def list_run(folder: Path, path: Path, *, n: int, prompts: int, device: str | None, show: Display) -> None:
    """Write a file to mark features in, of a run of `features circuit` with its own dictionaries and task.

    Raises:
        BadRun: The folder is no such run.
        WiretraceError: Its model or dictionaries are not there any more.
    """
    from experiments import feature_circuit
    from experiments.feature_subject import Asked, open_dictionaries, prepare

    found = feature_circuit.saved(folder)
    opened = list(open_dictionaries(found.asked["dictionaries"]).values())
    asked = Asked(task=found.asked["task"], model=found.asked["model"], prompts=prompts, device=device)
    subject = prepare(asked, known=opened, show=show)
    galleries = {str(each.site): gallery(subject, each, show=show) for each in opened}
    list_circuit(found.circuit, galleries, path, n=n, task=found.asked["task"])


def list_circuit(
    circuit: Circuit, galleries: Mapping[str, Gallery], path: Path, *, n: int, examples: int = 3, task: str
) -> None:
    """Write a file to mark the features of a circuit in, the largest effects first.

    Args:
        circuit: With scores of its nodes; features at several positions count together.
        galleries: By site.
        path: The file.
        n: How many features at most.
        examples: Of each.
        task: For the line that says what to do.

    Marks that are in the file already stay.

    Raises:
        BadConfig: The circuit has no features with scores.
    """
    from circuits.features import shift_selection

    effects: dict[Node, float] = {}
    for node, effect in circuit.node_scores.items():
        if node.site is not None and not node.is_error:
            effects[node.everywhere()] = effects.get(node.everywhere(), 0.0) + effect
    if not effects:
        raise BadConfig("expected a circuit of features with their effects, as `wiretrace features circuit` finds it.")
    by_name = {seen.name(0).rpartition(".")[0]: seen for seen in galleries.values()}
    rows = []
    for node in sorted(effects, key=lambda each: (-abs(effects[each]), str(each)))[:n]:
        seen = by_name.get(str(node).rpartition(".")[0])
        if seen is None:
            rows.append(shift_selection.Line(node, effects[node], None, ()))
            continue
        view = seen.feature(node.index or 0)
        rows.append(shift_selection.Line(node, effects[node], view.frequency, view.top[:examples]))
    marked = shift_selection.read(path).marked if path.is_file() else ()
    shift_selection.write(path, rows, task=task, marked=marked)
