"""The codec that zcbor makes of the protocol's CDDL, and where it is kept."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from codegen.emit import zcbor_codec
from codegen.emit.zcbor_codec import generate_codec
from codegen.errors import ToolchainError

CDDL = Path(__file__).parents[3] / "fleet" / "protocol" / "tinyfleet.cddl"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TINYFLEET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "codec"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_codec_is_generated_once_and_is_the_same_from_then_on(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = generate_codec(CDDL, tmp_path / "first")
    assert {path.suffix for path in sources} == {".c"}
    assert all(path.is_file() for path in sources)
    monkeypatch.setattr(zcbor_codec.sys, "executable", "nobody")
    generate_codec(CDDL, tmp_path / "second")
    assert contents(tmp_path / "first") == contents(tmp_path / "second")
    assert len(list(cache.iterdir())) == 1


def test_another_description_is_another_codec(tmp_path: Path) -> None:
    generate_codec(CDDL, tmp_path / "first")
    other = tmp_path / "other.cddl"
    other.write_text(CDDL.read_text().replace("announce = [", "announce = [more: uint,"))
    assert other.read_text() != CDDL.read_text()
    generate_codec(other, tmp_path / "second")
    changed = "tinyfleet_cbor_decode.c"
    assert contents(tmp_path / "first")[changed] != contents(tmp_path / "second")[changed]


def test_what_zcbor_refuses_is_told_with_its_reason_and_nothing_is_kept(
    tmp_path: Path, cache: Path
) -> None:
    wrong = tmp_path / "wrong.cddl"
    wrong.write_text("announce = [\n")
    with pytest.raises(ToolchainError, match=r"zcbor can't generate the codec from wrong\.cddl: "):
        generate_codec(wrong, tmp_path / "out")
    assert not list(cache.iterdir())
    with pytest.raises(ToolchainError, match=r"no protocol description at .*missing\.cddl"):
        generate_codec(tmp_path / "missing.cddl", tmp_path / "out")


def test_a_build_that_was_killed_leaves_no_half_of_a_codec(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def killed(command: list[str], **_: object) -> None:
            Path(command[command.index("--oc") + 1]).write_text("half")
            raise KeyboardInterrupt

        patch.setattr(subprocess, "run", killed)
        with pytest.raises(KeyboardInterrupt):
            generate_codec(CDDL, tmp_path / "first")
    generate_codec(CDDL, tmp_path / "second")
    assert "tinyfleet_cbor.c" not in contents(tmp_path / "second")
