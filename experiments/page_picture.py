"""The picture of the interactive page in the docs, docs/page.png: ``python -m experiments.page_picture --help``.

The page shows a circuit of the IOI task with the task's first prompt and the attention of the circuit's heads on it;
a headless Chromium photographs it.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

from circuits import acdc, tasks
from experiments.view import attention, prompt
from graphs import Circuit
from graphs.export import html
from patching import LensModel, MaskedRun

TITLE = "Who is given it? Indirect object identification in a three-layer model"

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync "
    "--hide-scrollbars --virtual-time-budget=2000"
)


def photograph(page: Path, picture: Path, *, chosen: str, browser: str, wide: int = 1280, high: int = 800) -> None:
    """Write a PNG of the page with one node selected.

    Args:
        page: The page's file.
        picture: The PNG to write.
        chosen: The node's name.
        browser: The command of a Chromium.
        wide: Width of the window, in pixels.
        high: Height likewise.
    """
    with tempfile.TemporaryDirectory() as profile:
        look = [f"--window-size={wide},{high}", f"--user-data-dir={profile}", f"--screenshot={picture.resolve()}"]
        address = f"{page.resolve().as_uri()}#{chosen}"
        subprocess.run([browser, *FLAGS.split(), *look, address], check=True, capture_output=True, timeout=120)


def main() -> None:
    """Make the circuit (or read it), its page and the picture of the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":")[0])
    parser.add_argument(
        "--circuit", type=Path, default=None, help="a circuit file of zoo:ioi; by default ACDC finds one"
    )
    parser.add_argument("--chosen", default="a2.h5", help="the node that is selected")
    parser.add_argument("--page", type=Path, default=None, help="keep the page here")
    parser.add_argument("--out", type=Path, default=Path("docs/page.png"))
    options = parser.parse_args()
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        parser.error("needs Chromium: install chromium, or put it on the PATH")
    model = LensModel.load("zoo:ioi")
    task = tasks.load("ioi").make(model, n=32, seed=0, split="train")
    circuit = (
        acdc.search(MaskedRun(model, task), tau=0.05) if options.circuit is None else Circuit.load(options.circuit)
    )
    with tempfile.TemporaryDirectory() as folder:
        page = options.page or Path(folder) / "page.html"
        html.write(circuit, page, title=TITLE, prompt=prompt(model, task), attention=attention(model, task))
        photograph(page, options.out, chosen=options.chosen, browser=browser)


if __name__ == "__main__":
    main()
