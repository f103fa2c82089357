"""The same examples in every run of ``make test``."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import examples


def test_examples_do_not_depend_on_the_modules_that_are_loaded(
    pytestconfig: pytest.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if pytestconfig.getoption("long"):
        pytest.skip("examples are random with --long")
    drawn: list[int] = []

    @examples(400)
    @given(st.integers())
    def draw(value: int) -> None:
        drawn.append(value)

    draw()
    before = drawn.copy()
    drawn.clear()
    numbers = ", ".join(str(10**9 + i) for i in range(500))
    (tmp_path / "full_of_numbers.py").write_text(f"NUMBERS = [{numbers}]\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("full_of_numbers")
    draw()
    assert drawn == before


def test_there_are_more_examples_with_long_and_no_deadline_in_either() -> None:
    once, long = settings.get_profile("ci"), settings.get_profile("long")
    assert (once.derandomize, once.database, once.deadline) == (True, None, None)
    assert (long.derandomize, long.deadline) == (False, None)
    assert long.max_examples == 10 * once.max_examples


TESTS = """
import pytest
from hypothesis import settings

def test_always():
    pass

@pytest.mark.long
def test_long():
    assert not settings.default.derandomize
"""


@pytest.mark.parametrize(
    ("option", "said"), [([], "1 passed, 1 deselected"), (["--long"], "2 passed")]
)
def test_what_takes_long_is_left_out_unless_asked_for(
    option: list[str], said: str, tmp_path: Path
) -> None:
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = long: takes long\n")
    (tmp_path / "test_some.py").write_text(TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *option, tmp_path],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said in done.stdout, done.stdout + done.stderr
