"""Benchmarks are run by hand: what they use may change under them without anybody noticing."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import benchmarks

FOLDER = Path(benchmarks.__file__).parent
NEEDS_TORCH = {"networks"}


NAMES = [
    *sorted(p.stem for p in FOLDER.glob("[a-z]*.py")),
    "dashboard.__main__",
    "privacy.__main__",
    "simulator.__main__",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_finds_all_that_it_imports(name: str) -> None:
    if name in NEEDS_TORCH:
        pytest.importorskip("torch", reason="it exports networks: pip install torch")
    module = importlib.import_module(f"benchmarks.{name}")
    assert callable(module.main)
