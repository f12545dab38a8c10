# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Figures for a paper
#
# One circuit, from the screen to a column of text. Figures are SVG, PDF, PNG or TikZ: text stays text, and colours can
# be told apart by colour-blind readers. Widths are in inches.

# %%
import tempfile
from pathlib import Path

from circuits import acdc, evaluate, tasks, top_edges
from circuits.curves import curve
from graphs import export, plots
from graphs.export.comparison import draw_comparison
from patching import LensModel, MaskedRun, SiteRun, atp, eap_ig, exact, sweep

folder = Path(tempfile.mkdtemp())
model = LensModel.load("zoo:ioi")
run = MaskedRun(model, tasks.ioi.make(model, n=16, seed=0, split="train"))
circuit = acdc.search(run, tau=0.1)
circuit

# %% [markdown]
# For a page, with groups of nodes named after what they do; for a column, the strongest edges alone; for TeX, the same
# picture in TikZ.

# %%
movers = [edge.source for edge in circuit.edges if edge.target.kind == "logits" and edge.source.kind == "head"]
export(circuit, folder / "page.pdf", groups={"writes the answer": movers}, title="zoo:ioi, ACDC")

strongest = top_edges(eap_ig.inputs(run), n=40)
export(strongest, folder / "column.pdf", width=3.3)
export(strongest, folder / "column.tex", width=3.3)
strongest

# %% [markdown]
# Two circuits in one figure: edges of both are solid, those of one alone dashed or dotted.


# %%
class Shown:
    """A figure in a file, as this notebook shows it."""

    def __init__(self, name: str) -> None:
        self.path = folder / name

    def _repr_html_(self) -> str:
        return self.path.read_text(encoding="utf-8")

    def __repr__(self) -> str:
        return self.path.name


draw_comparison(circuit, strongest, folder / "both.svg", names=("ACDC", "EAP-IG"), width=3.3)
Shown("both.svg")

# %% [markdown]
# Estimates against what ablating each edge does.

# %%
scores = {"EAP": atp.scores(run), "EAP-IG": eap_ig.inputs(run)}
true = exact.scores(run)
pairs = {name: list(zip(each.values.tolist(), true.values.tolist(), strict=True)) for name, each in scores.items()}
plots.scatter(pairs, folder / "scatter.svg", axes=("estimated effect", "measured effect"), title="edges of zoo:ioi")
Shown("scatter.svg")

# %% [markdown]
# Faithfulness against size, on names that the search did not see.

# %%
held_out = MaskedRun(model, tasks.ioi.make(model, n=32, seed=1))
lines = {}
for name, each in scores.items():
    found = curve(held_out, each, fractions=(0.01, 0.03, 0.1, 0.3, 1.0), random_rankings=0)
    lines[name] = list(zip(found.fractions, found.faithfulness, strict=True))
plots.faithfulness(lines, folder / "faithfulness.svg", title="zoo:ioi, held-out names")
Shown("faithfulness.svg")

# %% [markdown]
# What patching each head does, as a heat map.

# %%
heads = sweep(SiteRun(model, run.task), "z")
heads.plot(folder / "heatmap.svg", title="every head, noising")
Shown("heatmap.svg")

# %% [markdown]
# What the caption should say, and where the files are.

# %%
print(evaluate(held_out, circuit))
print(", ".join(sorted(path.name for path in folder.iterdir())))
