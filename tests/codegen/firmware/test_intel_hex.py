"""Intel HEX as its readers see it: one of our own, and binutils'."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen.firmware.intel_hex import intel_hex
from tests.conftest import examples
from tests.intel_hex import read_intel_hex

SPACE = 1 << 32
ADDRESSES = st.one_of(
    st.integers(0, SPACE - 200),
    st.sampled_from([0, 0xFFF8, 0x0800_4000, 0x0800_FFFF, 0x9000_0001, SPACE - 200]),
)


@given(ADDRESSES, st.binary(min_size=1, max_size=200))
def test_what_is_written_is_read_back(address: int, data: bytes) -> None:
    assert read_intel_hex(intel_hex([(address, data)])) == {
        address + offset: byte for offset, byte in enumerate(data)
    }


def test_pieces_keep_their_addresses_whatever_their_order() -> None:
    pieces = [(0x9000_0000, b"outside"), (0x0800_FFFE, b"over"), (0, b"start"), (16, b"")]
    memory = read_intel_hex(intel_hex(pieces))
    for address, data in pieces:
        assert bytes(memory.pop(address + offset) for offset in range(len(data))) == data
    assert not memory


def test_a_file_without_bytes_is_its_end() -> None:
    assert intel_hex([]) == b":00000001FF\n"


@pytest.mark.parametrize("address", [-1, SPACE - 3])
def test_bytes_outside_of_the_address_space_are_refused(address: int) -> None:
    with pytest.raises(ValueError, match="outside of 32-bit"):
        intel_hex([(address, b"four")])


@examples(10)
@given(
    st.sampled_from([0, 0x0800_4000, 0x0800_FFF1, 0x9000_0000, SPACE - 200]),
    st.binary(min_size=1, max_size=200),
)
def test_binutils_reads_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, address: int, data: bytes
) -> None:
    objcopy = shutil.which("arm-none-eabi-objcopy")
    if objcopy is None:
        pytest.skip("arm-none-eabi-objcopy isn't installed")
    folder = tmp_path_factory.mktemp("hex")
    (folder / "image.hex").write_bytes(intel_hex([(address, data)]))
    assert converted(objcopy, folder) == data
    listed = subprocess.run(
        [objcopy.replace("objcopy", "objdump"), "-h", folder / "image.hex"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert f"{address:08x}" in listed.stdout


def converted(objcopy: str, folder: Path) -> bytes:
    """The file as binary; what objcopy can't read it fails for."""
    subprocess.run(
        [objcopy, "-I", "ihex", "-O", "binary", folder / "image.hex", folder / "image.bin"],
        check=True,
    )
    return (folder / "image.bin").read_bytes()
