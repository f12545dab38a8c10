"""Measurements, each a ratio taken in one process on one machine: `python -m experiments.benchmarks`."""
