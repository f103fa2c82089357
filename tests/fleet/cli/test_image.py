"""Identities as files to flash, and what a board makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen.firmware.bundle import Bundle
from codegen.firmware.flash_record import flash_record, identity_records
from fleet.cli._image import enrolment_in, identity_image
from fleet.demo.digits import example_folder
from fleet.errors import ConfigurationError, KeysError, ProtocolError
from fleet.firmware import compile_firmware
from fleet.protocol import Announce, Identity, topics
from fleet.protocol.keys import DeviceKeys, Keyring, SignedKeyring, SigningKey
from fleet.security.provisioning import FleetKeys
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


def fleet_keys() -> FleetKeys:
    authority = SigningKey.generate()
    keyring = Keyring(4, bytes(range(32)), (bytes(range(32, 64)),))
    return FleetKeys(authority.public, SignedKeyring.sign(authority, "barn", keyring))


def test_an_image_has_the_devices_keys_and_whom_it_is_to_believe(bundle: Bundle) -> None:
    fleet, device = fleet_keys(), DeviceKeys.generate()
    image = identity_image(bundle.manifest.flash, COW, "bin", fleet, device)
    assert image == flash_image.identity_region(
        flash_image.Identity("cow-7", "barn", "geheim-ß", 1000, 9600),
        device.encode(),
        fleet.authority,
        fleet.keyring.encode(),
    )
    assert enrolment_in(image) == device.enrol("barn", "cow-7")


def test_a_board_that_made_its_keys_itself_is_enrolled_from_its_flash(
    bundle: Bundle, world: WorldClock
) -> None:
    fleet, flash = fleet_keys(), bundle.manifest.flash
    image = read_intel_hex(identity_image(flash, COW, "hex", fleet))
    machine = UnicornMachine(
        bundle.board, bundle.firmware, clock=world, flash_content=pieces_of(image)
    )
    line = Line(machine, world)
    try:
        line.until(lambda: bool(line.broker.published))
        dump = machine.read_memory(flash.identity.address, flash.identity.bytes)
    finally:
        machine.close()
    assert Announce.decode(line.broker.published[0].payload).keyring == 4
    found = enrolment_in(dump)
    assert (found.fleet, found.device, found.is_right) == ("barn", "cow-7", True)


def test_a_device_is_enrolled_with_the_newest_keys_of_its_flash() -> None:
    first, second = DeviceKeys.generate(), DeviceKeys.generate()
    region = identity_records(COW.encode(), first.encode()) + flash_record(2, second.encode())
    found = enrolment_in(region + b"\xff" * 1000)
    assert found == second.enrol("barn", "cow-7")
    assert found.is_right


@pytest.mark.parametrize(
    ("region", "problem"),
    [
        (b"\xff" * 4096, "no dump of an identity region"),
        (identity_records(COW.encode()), "cow-7 has no keys of its own"),
        (identity_records(COW.encode(), bytes(95)), "96 bytes, not 95"),
        (identity_records(COW.encode(), bytes(range(96))), "signing key is damaged"),
    ],
)
def test_a_dump_without_keys_says_what_is_missing(region: bytes, problem: str) -> None:
    with pytest.raises(KeysError, match=problem):
        enrolment_in(region)


@given(st.data())
def test_any_dump_is_a_right_enrolment_or_named(data: st.DataObject) -> None:
    region = bytearray(identity_records(COW.encode(), DeviceKeys.generate().encode()))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, 8 * len(region) - 1))
        region[at // 8] ^= 1 << at % 8
    tail = data.draw(st.binary(max_size=64))
    forged = flash_record(data.draw(st.integers(1, 2)), data.draw(st.binary(max_size=120)))
    try:
        found = enrolment_in(bytes(region) + forged + tail)
    except (KeysError, ProtocolError):
        return
    assert found.is_right
