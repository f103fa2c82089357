"""Where the firmware's cryptography comes from, and what is said where it can't be had."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from codegen.emit import monocypher
from codegen.errors import ToolchainError


@pytest.fixture
def archive() -> Path:
    """The real one, which setup has fetched."""
    return monocypher.fetch_monocypher()


@pytest.fixture
def cache(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with nothing in it."""
    monkeypatch.delenv(monocypher.ENVIRONMENT, raising=False)
    monkeypatch.setenv("TINYFLEET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_source_and_header_are_written_and_compiled_small(archive: Path, tmp_path: Path) -> None:
    source = monocypher.write_monocypher(tmp_path / "src")
    assert sorted(path.name for path in source.path.parent.iterdir()) == sorted(monocypher.FILES)
    assert b"crypto_eddsa_check(" in source.path.read_bytes()
    assert (source.optimize, source.warnings) == ("-Os", False)
    assert "-DBLAKE2_NO_UNROLLING" in source.flags


def test_the_package_is_fetched_once(
    archive: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        folder = Path(command[command.index("--dest") + 1])
        asked.append(Path(command[command.index("--requirement") + 1]).read_text())
        shutil.copy(archive, folder / monocypher.ARCHIVE)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    kept = monocypher.fetch_monocypher()
    assert kept.is_relative_to(cache)
    assert monocypher.fetch_monocypher() == kept
    assert asked == [f"pymonocypher=={monocypher.VERSION} --hash=sha256:{monocypher.SHA256}\n"]
    assert [path.name for path in kept.parent.iterdir()] == [monocypher.ARCHIVE]


def test_without_an_index_the_page_is_named_and_nothing_is_left(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ToolchainError, match=r"can't fetch .*build-without-internet\.md"):
        monocypher.fetch_monocypher()
    assert list((cache / "sources").iterdir()) == []


def test_an_archive_can_be_named(
    archive: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = shutil.copy(archive, tmp_path / "elsewhere.tar.gz")
    monkeypatch.setenv(monocypher.ENVIRONMENT, str(named))
    assert monocypher.fetch_monocypher() == named
    monkeypatch.setenv(monocypher.ENVIRONMENT, str(tmp_path / "none"))
    with pytest.raises(ToolchainError, match=r"TINYFLEET_MONOCYPHER names .*none"):
        monocypher.fetch_monocypher()


def test_another_archive_is_refused(
    archive: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = tmp_path / "changed.tar.gz"
    changed.write_bytes(archive.read_bytes() + b"\0")
    monkeypatch.setenv(monocypher.ENVIRONMENT, str(changed))
    with pytest.raises(ToolchainError, match="isn't the pymonocypher-"):
        monocypher.write_monocypher(tmp_path / "src")


def test_the_page_names_what_is_wanted() -> None:
    page = Path(__file__).parents[3] / "docs" / "howto" / "build-without-internet.md"
    text = page.read_text(encoding="utf-8")
    for word in (monocypher.ARCHIVE, monocypher.SHA256, monocypher.ENVIRONMENT, monocypher.VERSION):
        assert word in text
