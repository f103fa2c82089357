from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def load(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


docs, files = load("check_docs"), load("check_files")


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    (tmp_path / "other.md").write_text("# A `code` heading: with, marks\n\n# Twice\n\n# Twice\n")
    return tmp_path / "page.md"


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("[x](other.md)", 0),
        ("[x](other.md#a-code-heading-with-marks)", 0),
        ("[x](other.md#twice-1)", 0),
        ("[x](https://example.org/gone)", 0),
        ("`[x](gone.md)`", 0),
        ("```\n[x](gone.md)\n```", 0),
        ("[x](gone.md)", 1),
        ("![x](gone.png)", 1),
        ("[x](other.md#twice-2)", 1),
        ("[x](#gone)", 1),
        ("[x](../outside.md)", 1),
    ],
)
def test_links_lead_to_files_and_headings(page: Path, text: str, problems: int) -> None:
    page.write_text(text + "\n")
    assert len(list(docs.violations(page))) == problems


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("make demo && make test", None),
        ("make coffee", "make coffee"),
        ("scripts/setup dev", None),
        ("scripts/gone", "scripts/gone"),
        (".venv/bin/tinyfleet measure BUNDLE --plan ID --json", None),
        ("tinyfleet measure BUNDLE --planet ID", "--planet"),
        ("tinyfleet fly", "tinyfleet fly"),
        ("tinyfleet ca issue ca broker --host x", ""),
        ("tinyfleet ca issue ca broker --fleet x", "tinyfleet ca --fleet"),
    ],
)
def test_commands_in_code_exist(text: str, problem: str | None) -> None:
    found = list(docs.broken_commands(text))
    assert (problem in found[0]) if problem else found == []


def test_long_files_and_paths_of_one_machine_are_found(tmp_path: Path) -> None:
    source = tmp_path / "long.py"
    source.write_text("x = 1\n" * 601 + 'home = "/' + 'home/somebody/x"\n')
    found = files.violations(source, "long.py")
    assert ["602 lines" in found[0], "one machine" in found[1]] == [True, True]
    source.write_text('path = "/usr/share/doc"\n')
    assert files.violations(source, "long.py") == []


def test_sessions_of_onnxruntime_are_made_by_the_oracle_only(tmp_path: Path) -> None:
    text = "import onnxruntime\n\nsession = onnxruntime.Inference" + "Session(b'')\n"
    for name, problems in (("test_models.py", 1), ("onnxruntime_oracle.py", 0), ("page.md", 0)):
        (tmp_path / name).write_text(text)
        found = files.violations(tmp_path / name, name)
        assert len(found) == problems, name
    (tmp_path / "test_models.py").write_text(text)
    assert (
        "use session() or run() of onnxruntime_oracle.py"
        in files.violations(tmp_path / "test_models.py", "tests/test_models.py")[0]
    )


def test_the_number_of_examples_is_said_where_both_kinds_of_runs_see_it(tmp_path: Path) -> None:
    test = tmp_path / "test_some.py"
    test.write_text("@settings(max_examples=9)\n@given(st.integers())\ndef test_x(x): ...\n")
    assert "use @examples(60) of tests/conftest.py" in files.violations(test, "test_some.py")[0]
    test.write_text("@examples(9)\n@given(st.integers())\ndef test_x(x): ...\n")
    assert files.violations(test, "test_some.py") == []
