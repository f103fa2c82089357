"""Identities as files to flash, and what a board makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

import pytest

from codegen.firmware.bundle import Bundle
from fleet.cli._image import identity_image
from fleet.demo.digits import example_folder
from fleet.errors import ConfigurationError, ProtocolError
from fleet.firmware import compile_firmware
from fleet.protocol import Announce, Identity, topics
from simulator.devices import flash_image
from simulator.machines.unicorn import UnicornMachine
from tests.intel_hex import read_intel_hex
from tests.simulator.conftest import WorldClock
from tests.simulator.line import Line

COW = Identity("cow-7", "barn", "geheim-ß", 1000, 9600)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    example = example_folder()
    return compile_firmware(
        example / "digits.onnx",
        "stm32f407",
        [],
        example / "calibration.npz",
        tmp_path_factory.mktemp("bundle") / "digits",
    )


def pieces_of(memory: Mapping[int, int]) -> list[tuple[int, bytes]]:
    """(address, bytes) of each run, as a programmer writes them."""
    runs = groupby(enumerate(sorted(memory)), key=lambda entry: entry[1] - entry[0])
    addresses = [[address for _, address in run] for _, run in runs]
    return [(run[0], bytes(memory[address] for address in run)) for run in addresses]


def test_hex_and_bin_hold_what_the_simulator_writes_to_a_board(bundle: Bundle) -> None:
    flash = bundle.manifest.flash
    record = identity_image(flash, COW, "bin")
    assert record == flash_image.identity_region(
        flash_image.Identity("cow-7", "barn", "geheim-ß", 1000, 9600)
    )
    assert pieces_of(read_intel_hex(identity_image(flash, COW, "hex"))) == [
        (flash.identity.address, record)
    ]


def test_a_board_that_was_flashed_with_firmware_and_image_says_that_name(
    bundle: Bundle, world: WorldClock
) -> None:
    image = read_intel_hex(identity_image(bundle.manifest.flash, COW, "hex"))
    machine = UnicornMachine(
        bundle.board, bundle.firmware, clock=world, flash_content=pieces_of(image)
    )
    line = Line(machine, world)
    try:
        line.until(lambda: bool(line.broker.published))
    finally:
        machine.close()
    first = line.broker.published[0]
    assert first.topic == topics.announce("barn", "cow-7")
    assert Announce.decode(first.payload).bundle.hex() == bundle.manifest.bundle_id


@pytest.fixture
def world() -> WorldClock:
    return WorldClock()


def test_an_identity_that_no_device_would_take_is_never_written() -> None:
    with pytest.raises(ProtocolError, match=r"identity\.password: has 0 bytes"):
        Identity("cow-7", "barn", "", 0, 115_200)


def test_a_region_that_is_too_small_is_named_with_both_sizes(bundle: Bundle) -> None:
    flash = bundle.manifest.flash
    small = flash.model_copy(update={"identity": flash.identity.model_copy(update={"bytes": 32})})
    with pytest.raises(ConfigurationError, match=r"cow-7 has \d+ bytes, .* only 32"):
        identity_image(small, COW, "hex")
