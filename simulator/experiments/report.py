"""Placeholder."""

from __future__ import annotations

from pathlib import Path

from simulator.experiments.comparison import Comparison

REPORT = "report.html"


def write_report(comparison: Comparison, out: Path) -> None:
    """To be."""
    del comparison, out
