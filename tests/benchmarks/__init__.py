"""Measurements whose tables the README quotes: `python -m tests.benchmarks.loss_cost` and so on."""
