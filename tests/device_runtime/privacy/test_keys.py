"""Which keys a device has and follows, over resets, power cuts and forgeries."""

import ctypes
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.protocol import masking
from fleet.protocol.keys import DeviceKeys, SigningKey, exchange_public
from simulator.devices.flash_image import identity_region

from ..host_device import IDENTITY, PLANS
from ..keyed import AUTHORITY, DEVICE_KEYS, TASK_KEY, Keys
from ..storage.conftest import FLASH_FAILED, OK
from ..tiny_round import task_for
from .conftest import DELTA_TOPIC, IDENTITY_AT, KeyedDevice

KEYS = Keys()
SECOND = replace(KEYS, generation=2, unmaskers=(bytes([5]) * 32, bytes([6]) * 32))
STRANGER = SigningKey.generate()
TASK = KEYS.sign(task_for(PLANS[0], bytes(144)))


def keyed(library: ctypes.CDLL, keys: Keys = KEYS) -> KeyedDevice:
    return KeyedDevice(library, keys.region(IDENTITY), keys.fleet, keys.name)


def without_keys(library: ctypes.CDLL, secret: int = 7) -> KeyedDevice:
    region = identity_region(IDENTITY, authority=AUTHORITY.public, keyring=KEYS.signed_keyring)
    return KeyedDevice(library, region, secret=secret)


def keys_in(device: KeyedDevice) -> list[DeviceKeys]:
    """All whole records of kind 2 in the identity region."""
    content, _ = device.content
    heads = [
        at for at in range(0, 2048, 8) if content[at : at + 4] == struct.pack("<BBH", 0x4A, 2, 96)
    ]
    return [DeviceKeys.decode(content[at + 8 : at + 104]) for at in heads]


# --- The device's own -----------------------------------------------------------------------------


@pytest.mark.parametrize("secret", range(1, 9))
def test_a_device_without_keys_makes_some_that_python_takes_for_whole(
    library: ctypes.CDLL, secret: int
) -> None:
    device = without_keys(library, secret)
    (made,) = keys_in(device)
    assert made.enrol("f", "dev1").is_right
    assert device.can_mask(KEYS.keyring.unmaskers_digest)
    before = device.content
    device.boot()
    assert device.content == before


def test_other_secrets_are_other_keys(library: ctypes.CDLL) -> None:
    made = {keys_in(without_keys(library, secret))[0].encode() for secret in range(1, 20)}
    assert len(made) == 19


def test_a_device_with_keys_or_without_authority_makes_none(library: ctypes.CDLL) -> None:
    assert keys_in(keyed(library)) == [DEVICE_KEYS]
    device = KeyedDevice(library, identity_region(IDENTITY, keyring=KEYS.signed_keyring))
    assert keys_in(device) == []
    assert device.generation == 0


def test_without_a_source_of_secrets_there_are_no_keys_and_no_masks(library: ctypes.CDLL) -> None:
    device = without_keys(library, secret=0)
    assert keys_in(device) == []
    assert device.is_signed(TASK.encode())
    assert not device.can_mask(KEYS.keyring.unmaskers_digest)


def test_a_power_cut_at_any_operation_leaves_no_keys_or_all_of_them(library: ctypes.CDLL) -> None:
    region = identity_region(IDENTITY, authority=AUTHORITY.public, keyring=KEYS.signed_keyring)
    made = without_keys(library)
    made.content = b"\xff" * 4096, IDENTITY_AT
    made.content = region, IDENTITY_AT
    made.boot()
    operations = made.flash.operations
    assert operations == 2 + 96 // 4
    for cut in range(1, operations + 1):
        device = without_keys(library, secret=0)
        device.set_secret(cut)
        device.flash.random = cut
        device.boot(operations_to_cut=cut)
        device.boot()
        assert device.can_mask(KEYS.keyring.unmaskers_digest)
        assert device.generation == 1
        assert keys_in(device)[-1].enrol("f", "dev1").is_right
        seal_keys = device.seal_keys(1)
        device.boot()
        assert device.seal_keys(1) == seal_keys, "the same keys for good"


# --- Keyrings -------------------------------------------------------------------------------------


def test_a_newer_keyring_is_followed_and_outlives_a_reset(library: ctypes.CDLL) -> None:
    device = keyed(library)
    assert device.generation == 1
    seal_keys = device.seal_keys(1)
    assert device.take(SECOND.signed_keyring)
    assert device.keep() == OK
    for _ in range(2):
        assert device.generation == 2
        assert device.can_mask(SECOND.keyring.unmaskers_digest)
        assert not device.can_mask(KEYS.keyring.unmaskers_digest)
        assert not set(device.seal_keys(2)) & set(seal_keys)
        device.boot()


def test_older_damaged_and_forged_keyrings_are_left_alone(library: ctypes.CDLL) -> None:
    device = keyed(library, SECOND)
    third = replace(KEYS, generation=3)
    right = third.signed_keyring
    wrong = [
        KEYS.signed_keyring,
        replace(KEYS, generation=2).signed_keyring,
        replace(third, authority=STRANGER).signed_keyring,
        replace(third, authority=TASK_KEY).signed_keyring,
        replace(third, fleet="g").signed_keyring,
        right[:-1],
        right + b"\0",
        b"",
        b"\xff" * 256,
        right[:4] + b"\x02" + right[5:],
        right[:4] + b"\xff" + right[5:],
    ]
    for keyring in wrong:
        assert not device.take(keyring)
    assert device.generation == 2
    assert device.flash.operations == 0
    assert device.take(right)


@given(st.data())
def test_no_bit_of_a_keyring_can_be_turned_over(library: ctypes.CDLL, data: st.DataObject) -> None:
    device = keyed(library)
    keyring = bytearray(SECOND.signed_keyring)
    bit = data.draw(st.integers(0, 8 * len(keyring) - 1))
    keyring[bit // 8] ^= 1 << bit % 8
    assert not device.take(bytes(keyring))
    assert not device.take(SECOND.signed_keyring[: bit // 8])
    assert device.take(SECOND.signed_keyring)


def test_a_keyring_of_the_identity_counts_where_it_is_newer(library: ctypes.CDLL) -> None:
    device = keyed(library)
    assert device.take(SECOND.signed_keyring)
    assert device.keep() == OK
    device.content = replace(KEYS, generation=5).region(IDENTITY), IDENTITY_AT
    device.boot()
    assert device.generation == 5
    device.content = b"\xff" * 4096, IDENTITY_AT
    device.content = KEYS.region(IDENTITY), IDENTITY_AT
    device.boot()
    assert device.generation == 2


def test_a_device_that_comes_to_another_fleet_forgets_the_keyring_of_the_first(
    library: ctypes.CDLL,
) -> None:
    device = keyed(library)
    assert device.take(replace(SECOND, generation=9).signed_keyring)
    assert device.keep() == OK
    other = replace(KEYS, authority=STRANGER)
    device.content = b"\xff" * 4096, IDENTITY_AT
    device.content = other.region(IDENTITY), IDENTITY_AT
    device.boot()
    assert device.generation == 1
    assert device.take(replace(other, generation=2).signed_keyring)


def test_a_keyring_that_faded_in_the_journal_is_written_again(library: ctypes.CDLL) -> None:
    device = keyed(library)
    assert device.take(SECOND.signed_keyring)
    assert device.keep() == OK
    device.rotate_journal()
    content, at = device.content
    assert content.count(SECOND.signed_keyring) == 2
    device.content = b"\0", at + content.rindex(SECOND.signed_keyring)  # what was carried along
    device.boot()
    assert device.generation == 2
    assert device.keep() == OK
    assert device.flash.operations > 0
    device.boot()
    assert device.keep() == OK
    assert device.flash.operations == 0, "it is there"
    device.rotate_journal()
    device.boot()
    assert device.generation == 2


def test_a_power_cut_while_a_keyring_is_written_leaves_the_one_before_or_it(
    library: ctypes.CDLL,
) -> None:
    device = keyed(library)
    assert device.take(SECOND.signed_keyring)
    assert device.keep() == OK
    third = replace(KEYS, generation=3)
    before = device.content
    assert device.take(third.signed_keyring)
    device.flash.power_on()
    assert device.keep() == OK
    operations = device.flash.operations
    seen = set()
    for cut in range(1, operations + 1):
        device.content = before
        device.boot()
        device.flash.random = cut
        assert device.take(third.signed_keyring)
        device.flash.power_on(operations_to_cut=cut)
        assert device.keep() == FLASH_FAILED
        device.boot()
        assert device.generation in (2, 3)
        seen.add(device.generation)
        if device.take(third.signed_keyring):
            assert device.keep() == OK
        device.boot()
        assert device.generation == 3
    assert 2 in seen


# --- Signed tasks ---------------------------------------------------------------------------------


def test_a_task_is_signed_for_one_device_and_gateway_of_one_fleet_by_the_keyrings_task_key(
    library: ctypes.CDLL,
) -> None:
    assert keyed(library).is_signed(TASK.encode())
    assert keyed(library).is_signed(KEYS.sign(TASK, with_keyring=True).encode())
    unsigned = replace(TASK, signature=b"")
    for other in (
        replace(KEYS, name="dev2"),
        replace(KEYS, fleet="g"),
        replace(KEYS, gateway="north"),
        replace(KEYS, task=STRANGER),
        replace(KEYS, task=AUTHORITY),
    ):
        assert not keyed(library).is_signed(other.sign(TASK).encode())
    assert not keyed(library).is_signed(unsigned.encode())
    assert not KeyedDevice(
        library, identity_region(IDENTITY, authority=AUTHORITY.public)
    ).is_signed(TASK.encode())


def test_the_response_topic_is_signed_with_the_task(library: ctypes.CDLL) -> None:
    device = keyed(library)
    assert KEYS.sign_for(DELTA_TOPIC, TASK) == TASK
    for topic in (b"", b"x", b"x" * 255):
        told = KEYS.sign_for(topic, TASK).encode()
        assert device.is_signed(told, topic)
        assert not device.is_signed(told, DELTA_TOPIC)
        assert not device.is_signed(TASK.encode(), topic)
    for length in (256, 256 + len(DELTA_TOPIC)):
        topic = DELTA_TOPIC.ljust(length, b"x")
        told = KEYS.sign_for(topic, TASK).encode()
        assert not device.is_signed(told, topic), "its length has no byte"


@given(st.data())
def test_no_field_of_a_signed_task_can_be_changed(
    library: ctypes.CDLL, data: st.DataObject
) -> None:
    """But the keyring, which has a signature of its own."""
    device = keyed(library)
    masked = KEYS.masked(TASK, clip=5, norm_share=1, noise_variance=9)
    name = data.draw(st.sampled_from([one for one in vars(masked) if one != "keyring"]))
    value = getattr(masked, name)
    if isinstance(value, bytes):
        bit = data.draw(st.integers(0, 8 * len(value) - 1))
        number = int.from_bytes(value, "big") ^ (1 << bit)
        changed: object = number.to_bytes(len(value), "big")
    else:
        changed = value + 4 if value < 200 else value - 4
    assert device.is_signed(masked.encode())
    assert not device.is_signed(replace(masked, **{name: changed}).encode())
    assert device.is_signed(replace(masked, keyring=b"whatever").encode())


def test_seal_keys_are_those_that_the_unmaskers_have(library: ctypes.CDLL) -> None:
    device = keyed(library, SECOND)
    public = DEVICE_KEYS.exchange_public
    assert device.seal_keys(2) == [
        masking.seal_key(private, public, public, exchange_public(private))
        for private in SECOND.unmaskers
    ]
