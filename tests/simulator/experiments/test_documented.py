"""docs/howto/experiment.md: its commands and Python run as they stand, its tables are complete."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from pyarrow import parquet

from simulator.experiments.config import Evaluation, ExperimentConfig, ModelSource, strategy_kinds

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "howto" / "experiment.md").read_text("utf-8")
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


def in_order(shown: str, text: str) -> bool:
    """Whether every line of ``shown`` begins a line of ``text``, one after the other."""
    lines = iter(text.splitlines())
    return all(any(line.startswith(wanted) for line in lines) for wanted in shown.splitlines())


@pytest.mark.slow
def test_the_page_does_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    blocks = BLOCK.findall(PAGE)
    (tmp_path / "first.yaml").write_text(next(text for kind, text in blocks if kind == "yaml"))
    printed, ran = "", 0
    for kind, text in blocks:
        if kind == "text":
            assert in_order(text, printed), printed
        if kind not in {"sh", "python"}:
            continue
        words = [f"-c{text}"]
        for line in text.splitlines() if kind == "sh" else [""]:
            if kind == "sh":
                words = ["-m", "fleet.cli", *line.split()[1:]]
            done = subprocess.run(
                [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{line or text}\n{done.stderr}"
            printed, ran = done.stdout, ran + 1
    assert ran == 6
    assert (tmp_path / "out" / "both" / "report.html").exists()


def test_every_field_of_the_file_is_on_the_page() -> None:
    fields = {*ExperimentConfig.model_fields} - {"model", "evaluate"}
    fields |= {f"model.{one}" for one in ModelSource.model_fields}
    fields |= {f"evaluate.{one}" for one in Evaluation.model_fields}
    assert {one for one in fields if f"| `{one}` |" not in PAGE} == set()
    assert {one for one in strategy_kinds() if f"`kind: {one}`" not in PAGE} == set()


def test_every_file_and_every_column_is_on_the_page(finished: Path) -> None:
    named = set(re.findall(r"`([^`]+)`", BLOCK.sub("", PAGE)))
    columns = {
        name for path in finished.glob("*.parquet") for name in parquet.read_schema(path).names
    }
    assert columns - named == set()
    there = {path.name for path in finished.iterdir()}
    there = {"plots/*.svg" if one == "plots" else one for one in there}
    there = {"cells/*/" if one == "cells" else "build/" if one == "build" else one for one in there}
    assert there - named == set()


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "experiments").glob("*.yaml")))
def test_examples_are_experiments_and_on_the_page(path: Path) -> None:
    config = ExperimentConfig.read(path)
    assert config.name == path.stem
    assert f"tinyfleet experiment run examples/experiments/{path.name}" in path.read_text("utf-8")
    assert f"[`{path.name}`](../../examples/experiments/{path.name})" in PAGE
