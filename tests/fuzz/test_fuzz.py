"""The device's parsers stand fuzzing from the kept corpus: the same inputs each time, or long."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import run

LONG_SECONDS = 300  # per target


@pytest.fixture(scope="module")
def compiler() -> str:
    try:
        return run.find_compiler()
    except run.FuzzerMissingError as missing:
        pytest.skip(str(missing))


@pytest.mark.slow
@pytest.mark.parametrize("target", sorted(run.SOURCES))
def test_parser_stands_hostile_bytes(target: str, compiler: str, tmp_path: Path) -> None:
    program = run.build(target, tmp_path / "build", compiler)
    run.fuzz(target, program, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("target", sorted(run.SOURCES))
def test_parser_stands_hostile_bytes_for_minutes(
    target: str, compiler: str, tmp_path: Path
) -> None:
    program = run.build(target, tmp_path / "build", compiler)
    run.fuzz(target, program, tmp_path, LONG_SECONDS)


@pytest.mark.slow
def test_inputs_are_the_same_each_time(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(run.RUNS, "delta_decode", 2_000)
    program = run.build("delta_decode", tmp_path / "build", compiler)
    found = []
    for name in ("once", "again"):
        (tmp_path / name).mkdir()
        run.fuzz("delta_decode", program, tmp_path / name)
        corpus = tmp_path / name / "corpus" / "delta_decode"
        found.append({path.name: path.read_bytes() for path in corpus.iterdir()})
    assert found[0] == found[1]
    assert found[0]


def test_every_target_has_a_kept_corpus() -> None:
    for target in run.SOURCES:
        assert any((run.HERE / "corpus" / target).iterdir()), target
        assert (run.HERE / "targets" / f"{target}.c").is_file()


@pytest.mark.slow
def test_crash_is_reported_with_the_input_that_causes_it(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The harness itself can fail: a decoder with a planted overflow is caught."""
    planted = tmp_path / "planted.c"
    planted.write_text(
        '#include "tinyfleet/messages.h"\n'
        "tf_status tf_decode_task(const uint8_t *bytes, size_t length, tf_task *task,\n"
        "                         tf_task_parts *parts)\n"
        "{ task->round = bytes[length]; (void)parts; return TF_BAD_INPUT; }\n"
    )
    monkeypatch.setitem(run.SOURCES, "cbor_task", [planted])
    program = run.build("cbor_task", tmp_path / "build", compiler)
    with pytest.raises(run.CrashError, match=r"the input that does it: .*cbor_task-crash-"):
        run.fuzz("cbor_task", program, tmp_path)
