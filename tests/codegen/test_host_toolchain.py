"""Libraries for this machine: cached by content, with warnings as errors, by whatever compiler."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from codegen.errors import ToolchainError
from codegen.host_toolchain import Source, _clear, _prune, host_toolchain

pytestmark = pytest.mark.usefixtures("own_cache")


def test_warnings_are_errors_except_in_code_that_is_not_ours(tmp_path: Path) -> None:
    source = tmp_path / "sloppy.c"
    source.write_text("int sloppy(int used, int unused) { return used; }\n")
    host = host_toolchain()
    with pytest.raises(ToolchainError, match="unused"):
        host.build_host([source], include_dirs=[], output=tmp_path / "a.so")
    lenient = Source(source, warnings=False)
    host.build_host([lenient], include_dirs=[], output=tmp_path / "b.so")


def test_a_second_build_only_links_until_a_header_changes(tmp_path: Path) -> None:
    (tmp_path / "inner.h").write_text("#define VALUE 41\n")
    (tmp_path / "outer.h").write_text('#include "inner.h"\n')
    source = tmp_path / "unit.c"
    source.write_text('#include "outer.h"\nint value(void);\nint value(void){return VALUE;}\n')
    host = host_toolchain()

    def build(name: str) -> tuple[int, int]:
        result = host.build_host([source], include_dirs=[tmp_path], output=tmp_path / name)
        library = ctypes.CDLL(str(result.output))
        return result.compiled, library.value()

    assert build("first.so") == (1, 41)
    assert build("second.so") == (0, 41)
    (tmp_path / "inner.h").write_text("#define VALUE 42\n")
    assert build("third.so") == (1, 42)


def test_a_definition_of_ours_counts_where_a_file_or_its_header_names_it(tmp_path: Path) -> None:
    (tmp_path / "inner.h").write_text("#define VALUE TF_OF_HEADER\n")
    source = tmp_path / "unit.c"
    source.write_text(
        '#include <assert.h>\n#include "inner.h"\nint value(void);\n'
        "int value(void) { return VALUE + TF_OF_SOURCE; }\n"
    )

    def build(**defines: int) -> tuple[int, int]:
        output = tmp_path / f"{'-'.join(map(str, defines.values()))}.so"
        result = host_toolchain().build_host(
            [source], include_dirs=[tmp_path], output=output, defines=defines
        )
        return result.compiled, ctypes.CDLL(str(output)).value()

    assert build(TF_OF_HEADER=1, TF_OF_SOURCE=10, TF_OF_NOBODY=0) == (1, 11)
    assert build(TF_OF_HEADER=1, TF_OF_SOURCE=10, TF_OF_NOBODY=1) == (0, 11)
    assert build(TF_OF_HEADER=1, TF_OF_SOURCE=10) == (0, 11)
    assert build(TF_OF_HEADER=2, TF_OF_SOURCE=10) == (1, 12)
    assert build(TF_OF_HEADER=2, TF_OF_SOURCE=20) == (1, 22)
    # A system's headers aren't read, so that others' names always count.
    assert build(TF_OF_HEADER=2, TF_OF_SOURCE=20, NDEBUG=1) == (1, 22)


def test_what_another_build_uses_while_the_cache_is_pruned_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = [tmp_path / f"{age}.o" for age in range(6)]
    for age, item in enumerate(objects):
        item.touch()
        os.utime(item, (age, age))
    unlink = Path.unlink

    def unlink_while_another_builds(path: Path) -> None:
        unlink(path)
        os.utime(objects[2])

    monkeypatch.setattr(Path, "unlink", unlink_while_another_builds)
    _prune(tmp_path, "*.o", 4)
    assert [item.exists() for item in objects] == [False, False, True, False, True, True]


def test_folders_of_killed_builds_are_cleared_and_those_at_work_are_not(tmp_path: Path) -> None:
    killed, working = tmp_path / "killed", tmp_path / "working"
    for folder in (killed, working):
        folder.mkdir()
        (folder / "unit.o").touch()
    os.utime(killed, (0, 0))
    _clear([killed, working, tmp_path / "cleared by another build"])
    assert list(tmp_path.iterdir()) == [working]


def test_zig_stands_in_for_a_missing_host_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    source = tmp_path / "unit.c"
    source.write_text("int triple(int x);\nint triple(int x) { return 3 * x; }\n")
    built = host_toolchain().build_host([source], include_dirs=[], output=tmp_path / "unit.so")
    library = ctypes.CDLL(str(built.output))
    assert library.triple(14) == 42


def test_a_library_is_linked_once_until_one_of_its_headers_changes(tmp_path: Path) -> None:
    header, source = tmp_path / "value.h", tmp_path / "unit.c"
    header.write_text("#define VALUE 41\n")
    source.write_text('#include "value.h"\nint value(void);\nint value(void){return VALUE;}\n')

    def library() -> Path:
        return host_toolchain().library([source], include_dirs=[tmp_path])

    first = library()
    written = first.stat().st_ino
    assert ctypes.CDLL(str(first)).value() == 41
    assert library() == first
    assert first.stat().st_ino == written
    header.write_text("#define VALUE 42\n")
    assert ctypes.CDLL(str(library())).value() == 42
