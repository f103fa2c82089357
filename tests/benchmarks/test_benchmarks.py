"""Benchmarks are run by hand: what they use may change under them without anybody noticing."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

import benchmarks

FOLDER = Path(benchmarks.__file__).parent
NEEDS_TORCH = {
    *("accuracy.__main__", "networks", "personalization.floats", "simulator.flower_engine"),
}
NAMES = sorted(
    ".".join(path.relative_to(FOLDER).with_suffix("").parts)
    for path in FOLDER.rglob("*.py")
    if "\ndef main(" in path.read_text("utf-8")
)


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_finds_all_that_it_imports_and_says_how_it_is_used(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name in NEEDS_TORCH:
        pytest.importorskip("torch", reason="it trains or exports networks: pip install torch")
    module = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as left:
        module.main()
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")
