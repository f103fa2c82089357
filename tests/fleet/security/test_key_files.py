"""Files of keys: each is taken for what it is, damage is named, secrets are their owner's."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import KeysError
from fleet.protocol.keys import DeviceKeys, Keyring, SignedKeyring, SigningKey, exchange_public
from fleet.security import key_files


def test_keys_come_back_and_secrets_are_for_their_owner_only(tmp_path: Path) -> None:
    authority = key_files.make_signing_key(
        tmp_path, key_files.AUTHORITY_KEY, key_files.AUTHORITY_PUBLIC
    )
    task = key_files.make_signing_key(tmp_path, key_files.TASK_KEY, key_files.TASK_PUBLIC)
    unmasker = key_files.make_unmasker_key(tmp_path)
    kinds = {
        "authority.key": (key_files.AUTHORITY_SECRET, authority.secret),
        "authority.pub": (key_files.AUTHORITY, authority.public),
        "task.key": (key_files.TASK_SECRET, task.secret),
        "task.pub": (key_files.TASK, task.public),
        "unmasker.pub": (key_files.UNMASKER, unmasker),
    }
    for name, (kind, key) in kinds.items():
        assert key_files.read_key(tmp_path / name, kind) == key
    private = key_files.read_key(tmp_path / "unmasker.key", key_files.UNMASKER_SECRET)
    assert exchange_public(private) == unmasker
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert {name for name, mode in modes.items() if mode == 0o600} == {
        *("authority.key", "task.key", "unmasker.key")
    }


def test_a_key_is_never_taken_for_another_nor_written_over(tmp_path: Path) -> None:
    key_files.make_signing_key(tmp_path, key_files.TASK_KEY, key_files.TASK_PUBLIC)
    with pytest.raises(KeysError, match=r"task\.key is a tinyfleet task key; a tinyfleet auth"):
        key_files.read_signing_key(tmp_path / "task.key", key_files.AUTHORITY_SECRET)
    with pytest.raises(KeysError, match=r"task\.key is there already"):
        key_files.make_signing_key(tmp_path, key_files.TASK_KEY, key_files.TASK_PUBLIC)
    with pytest.raises(KeysError, match="tinyfleet unmasker init"):
        key_files.read_key(tmp_path / "unmasker.pub", key_files.UNMASKER)


def test_halves_of_two_signing_keys_are_no_key(tmp_path: Path) -> None:
    one, other = SigningKey.generate(), SigningKey.generate()
    path = tmp_path / "task.key"
    key_files.write_key(path, key_files.TASK_SECRET, one.secret[:32] + other.public)
    with pytest.raises(KeysError, match="don't fit each other"):
        key_files.read_signing_key(path, key_files.TASK_SECRET)


def test_a_keyring_comes_back_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    ring = SignedKeyring.sign(SigningKey.generate(), "barn", Keyring(3, bytes(32), (bytes(32),)))
    path = tmp_path / "keyring"
    key_files.write_keyring(path, ring)
    assert key_files.read_keyring(path) == ring
    lines = path.read_text().splitlines()
    for text in (lines[0], f"{lines[0]}\n{lines[1][:-2]}\n", f"{lines[0]}\n{lines[1][:-1]}z\n"):
        path.write_text(text)
        with pytest.raises(KeysError, match="is damaged"):
            key_files.read_keyring(path)


def test_enrolments_come_back_and_a_device_that_is_enrolled_again_has_its_new_keys(
    tmp_path: Path,
) -> None:
    path = tmp_path / "enrolments.csv"
    first = [DeviceKeys.generate().enrol("barn", name) for name in ("cow", "bull")]
    key_files.add_enrolments(path, first)
    assert key_files.read_enrolments(path) == sorted(first, key=lambda one: one.device)
    again = DeviceKeys.generate().enrol("barn", "cow")
    key_files.add_enrolments(path, [again])
    assert key_files.read_enrolments(path) == [first[1], again]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda text: text.replace("cow", "calf"), "line 2: device calf hasn't signed it"),
        (lambda text: text.replace("fleet,", "herd,"), "line 1: isn't fleet,device"),
        (lambda text: text + text.splitlines()[1] + "\n", "line 3: device cow is there twice"),
        (lambda text: text.replace("cow", "c/w"), "line 2: .*no name"),
        (lambda text: text[:-3] + "\n", "line 2: signature isn't 64 bytes"),
        (lambda text: text + "barn\n", "line 3: 1 columns"),
        (lambda text: "", "line 1"),
    ],
)
def test_an_enrolment_that_isnt_right_is_named_with_its_line(
    tmp_path: Path, change: Callable[[str], str], problem: str
) -> None:
    path = tmp_path / "enrolments.csv"
    key_files.write_enrolments(path, [DeviceKeys.generate().enrol("barn", "cow")])
    path.write_text(change(path.read_text()))
    with pytest.raises(KeysError, match=problem):
        key_files.read_enrolments(path)


def problem_of(read: Callable[[Path], object], path: Path) -> str:
    """What is said of the file; its path where nothing is."""
    try:
        read(path)
    except KeysError as error:
        return str(error)
    return str(path)


ENROLMENT = DeviceKeys.generate().enrol("barn", "cow")


@given(st.data())
def test_whatever_a_file_holds_it_is_read_or_named(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        key_files.write_enrolments(path, [ENROLMENT])
        whole = path.read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        path.write_bytes(whole[:cut] + data.draw(st.binary(max_size=80)))
        for read in (
            key_files.read_enrolments,
            key_files.read_keyring,
            lambda path: key_files.read_signing_key(path, key_files.TASK_SECRET),
        ):
            assert str(path) in problem_of(read, path)


@given(st.binary(max_size=200))
def test_whatever_is_below_a_keyrings_first_line_it_is_read_or_named(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "keyring")
        path.write_bytes(b"tinyfleet keyring\n" + data.hex().encode() + b"\n")
        assert str(path) in problem_of(key_files.read_keyring, path)
