"""The wheel: it has the delta decoder built in, or works without."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fleet.protocol import delta_library
from fleet.protocol.delta_coding import encode

ROOT = Path(__file__).resolve().parents[1]
BUILT = "fleet/protocol/_delta_decoder.so"


def build_wheel(folder: Path, *, path: str, without: tuple[str, ...] = ()) -> Path:
    """The wheel of a copy of the sources, with compilers from ``path`` and ``without`` modules."""
    source, blocked = folder / "source", folder / "blocked"
    ignore = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")
    for name in ("codegen", "device_runtime", "fleet", "simulator", "examples"):
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for module in without:
        (blocked / module).mkdir(parents=True)
        (blocked / module / "__init__.py").touch()
        (blocked / module / "__main__.py").write_text("raise SystemExit('blocked')")
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(blocked)}
    environment.pop("CC", None)
    script = "from setuptools import build_meta as b; import sys; b.build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        cwd=source,
        env=environment,
        check=True,
        capture_output=True,
        timeout=300,
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


def assert_decodes(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        library = Path(archive.extract(BUILT, folder))
    values = np.array([5, -3, 0, 100], np.int32)
    assert delta_library.load(library)(encode(values), 4).tolist() == values.tolist()


@pytest.mark.slow
def test_wheel_has_the_decoder_and_says_for_which_platform(tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler (cc) here; install gcc or clang")
    wheel = build_wheel(tmp_path, path=os.environ["PATH"], without=("ziglang",))
    assert wheel.name.startswith("tinyfleet-")
    assert "-py3-none-" in wheel.name
    assert not wheel.name.endswith("-any.whl")
    assert_decodes(wheel, tmp_path)


@pytest.mark.slow
def test_the_wheel_has_what_the_demo_and_the_experiments_need(tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(build_wheel(tmp_path, path=os.environ["PATH"])) as archive:
        archive.extractall(site)
    (site / "examples" / "digits").mkdir(parents=True)  # of another package
    script = (
        "from fleet.demo.digits import example_folder;"
        "from fleet.examples import folder;"
        "print(example_folder());"
        "print((example_folder() / 'digits.onnx').stat().st_size);"
        "print((folder('experiments') / 'digits.yaml').is_file())"
    )
    said = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert Path(said[0]) == site / "fleet" / "_examples" / "digits"
    assert int(said[1]) == (ROOT / "examples" / "digits" / "digits.onnx").stat().st_size
    assert said[2] == "True"


@pytest.mark.slow
def test_without_a_compiler_zig_builds_the_decoder(tmp_path: Path) -> None:
    assert importlib.util.find_spec("ziglang")
    assert_decodes(build_wheel(tmp_path, path=""), tmp_path)


@pytest.mark.slow
def test_without_compiler_and_zig_the_wheel_is_built_without_the_decoder(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, path="", without=("ziglang",))
    with zipfile.ZipFile(wheel) as archive:
        assert BUILT not in archive.namelist()
        assert "device_runtime/codec/delta_decode.c" in archive.namelist()
