"""`python -m experiments` is the `wiretrace` command."""

from __future__ import annotations

from experiments.cli import app

if __name__ == "__main__":
    app(prog_name="wiretrace")
