"""The device's parsers stand a minute of fuzzing from the kept corpus."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import run

SECONDS_PER_TARGET = 15


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
    run.fuzz(target, program, tmp_path, SECONDS_PER_TARGET)


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
        "tf_status tf_decode_task(const uint8_t *bytes, size_t length, tf_task *task)\n"
        "{ task->round = bytes[length]; return TF_BAD_INPUT; }\n"
    )
    monkeypatch.setitem(run.SOURCES, "cbor_task", [planted])
    program = run.build("cbor_task", tmp_path / "build", compiler)
    with pytest.raises(run.CrashError, match=r"the input that does it: .*cbor_task-crash-"):
        run.fuzz("cbor_task", program, tmp_path, 5)
