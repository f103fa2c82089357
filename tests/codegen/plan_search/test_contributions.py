"""The journal of an analysis: killed runs go on, other inputs begin anew, nothing else is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from codegen.errors import PlanError
from codegen.plan_search.contributions import Journal


def test_results_are_there_in_the_next_run(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "journal.jsonl"
    first = Journal(path, {"model": "a"})
    first.add("one", {"gain": 0.5})
    first.add("two", [1, 2])
    again = Journal(path, {"model": "a"})
    assert "one" in again
    assert (again["one"], again["two"]) == ({"gain": 0.5}, [1, 2])
    assert "three" not in again


def test_half_a_line_of_a_killed_run_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path, {}).add("one", 1)
    whole = path.read_bytes()
    Journal(path, {}).add("two", 2)
    for end in range(len(whole) + 1, len(path.read_bytes())):
        killed = tmp_path / f"killed {end}.jsonl"
        killed.write_bytes(path.read_bytes()[:end])
        resumed = Journal(killed, {})
        assert resumed["one"] == 1
        resumed.add("two", 2)
        assert Journal(killed, {})["two"] == 2


def test_results_of_other_inputs_are_not_used(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path, {"model": "a"}).add("one", 1)
    assert "one" not in Journal(path, {"model": "b"})
    assert "one" not in Journal(path, {"model": "a"})


@pytest.mark.parametrize("content", [b"notes of mine\n", b'{"plans": {}}\n', b"\xff\xfe", b"[1]"])
def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(content)
    with pytest.raises(PlanError, match=r"holds no contributions; choose another --out"):
        Journal(path, {})
    assert path.read_bytes() == content


def test_without_a_file_results_live_as_long_as_the_journal() -> None:
    journal = Journal(None, {})
    journal.add("one", 1)
    assert journal["one"] == 1
