"""An unmasker's folder: rotation and loss of its key and token, and what `show` points at."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fleet.errors import ConfigurationError, KeysError, MaskRefusedError
from fleet.security import key_files
from fleet.security.listening import ListenSettings
from fleet.security.tokens import secret_hash
from fleet.unmasker import folder as unmaskers
from fleet.unmasker.folder import UnmaskerSettings
from fleet.unmasker.logic import near_sets
from fleet.unmasker.store import AnsweredSet
from tests.fleet.unmasker.herd import FLEET, Cow, asked, blank, unmasked

COWS = [Cow(f"cow-{number}") for number in range(5)]
SETTINGS = UnmaskerSettings(fleet=FLEET, least_devices=3, listen=ListenSettings(port=18_091))


def test_an_unmasker_comes_back_from_its_folder_and_isnt_made_twice(tmp_path: Path) -> None:
    public = unmaskers.make(tmp_path, SETTINGS)
    facts = unmaskers.open_unmasker(tmp_path).facts()
    assert (facts.key, facts.fleet, facts.least_devices, facts.devices) == (public, FLEET, 3, 0)
    assert UnmaskerSettings.read(tmp_path) == SETTINGS
    with pytest.raises(KeysError, match="is there already"):
        unmaskers.make(tmp_path, SETTINGS)
    assert {one.name for one in tmp_path.iterdir() if one.stat().st_mode & 0o077 == 0} == {
        *("token", "unmasker.key")
    }


def test_after_a_rotation_old_seals_are_broken_and_what_was_answered_is_still_known(
    tmp_path: Path,
) -> None:
    old = unmaskers.make(tmp_path, SETTINGS)
    before = unmaskers.open_unmasker(tmp_path)
    before.store.enrol([cow.enrolment() for cow in COWS], FLEET, 0.0)
    done, _ = asked(COWS[:4], blank(), old)
    before.masks(done)
    new = key_files.make_unmasker_key(tmp_path, replace=True)
    after = unmaskers.open_unmasker(tmp_path)
    # A round that was under way: its devices have sealed for the key that is gone.
    with pytest.raises(MaskRefusedError, match="broken-seal"):
        after.masks(asked(COWS, blank(round=2), old)[0])
    after.masks(asked(COWS, blank(round=2), new)[0])
    # Devices that made their delta again for the new key aren't unmasked twice.
    with pytest.raises(MaskRefusedError, match="overlap"):
        after.masks(asked(COWS[1:], blank(), new)[0])


def test_a_store_put_back_from_a_copy_forgets_sets_so_it_needs_a_new_key(tmp_path: Path) -> None:
    """What the page on keys says: a restored store is used with a new key only."""
    home, copy = tmp_path / "unmasker", tmp_path / "copy"
    old = unmaskers.make(home, SETTINGS)
    unmasker = unmaskers.open_unmasker(home)
    unmasker.store.enrol([cow.enrolment() for cow in COWS], FLEET, 0.0)
    unmasker.store.close()
    shutil.copytree(home, copy)
    unmasker = unmaskers.open_unmasker(home)
    unmasker.masks(asked(COWS[:4], blank(), old)[0])
    unmasker.store.close()
    key_files.make_unmasker_key(copy, replace=True)
    restored = unmaskers.open_unmasker(copy)
    # All that was sealed before is for a key that is gone: no second set of it can be told.
    for cows in (COWS[:3], COWS[:4], COWS):
        with pytest.raises(MaskRefusedError, match="broken-seal"):
            restored.masks(asked(cows, blank(), old)[0])


def test_a_new_token_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    unmaskers.make(tmp_path, SETTINGS)
    first = (tmp_path / "token").read_text().strip()
    unmaskers.renew_token(tmp_path)
    second = (tmp_path / "token").read_text().strip()
    assert first != second
    known = unmaskers.open_unmasker(tmp_path).store.token_hash()
    assert known == secret_hash(second)


def test_a_device_with_new_keys_is_answered_for_after_it_was_enrolled_again(tmp_path: Path) -> None:
    public = unmaskers.make(tmp_path, SETTINGS)
    unmasker = unmaskers.open_unmasker(tmp_path)
    others = [replace(cow, name=f"old-{cow.name}").keys for cow in COWS]
    stale = [keys.enrol(FLEET, cow.name) for keys, cow in zip(others, COWS, strict=True)]
    unmasker.store.enrol(stale, FLEET, 0.0)
    request, total = asked(COWS, blank(), public)
    with pytest.raises(MaskRefusedError, match="broken-seal"):
        unmasker.masks(request)
    unmasker.store.enrol([cow.enrolment() for cow in COWS], FLEET, 1.0, replace=True)
    found = unmasked(total, unmasker.masks(request), request.parameters.bits)
    assert found.tolist() == sum(cow.values(request).astype(np.int64) for cow in COWS).tolist()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "fleet: Field required"),
        ('fleet = "barn"\nleast_devices = 1\n', "least_devices"),
        ('fleet = "barn"\n[listen]\nhost = "0.0.0.0"\n', "in the clear"),
        ('fleet = "barn"\nmore = 1\n', "more"),
        ("fleet = ", "no unmasker's"),
    ],
)
def test_settings_that_cant_be_used_are_named(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "unmasker.toml").write_text(text)
    with pytest.raises(ConfigurationError, match=problem):
        UnmaskerSettings.read(tmp_path)


def test_sets_of_neighbouring_rounds_that_differ_by_few_are_pointed_at() -> None:
    def of(number: int, names: str, plan: bytes = b"p", campaign: bytes = b"c") -> AnsweredSet:
        return AnsweredSet(campaign, number, plan, tuple(names), float(number))

    sets = [
        *(of(1, "abcdef"), of(2, "abcdef"), of(3, "abcdeg"), of(5, "abcde")),
        # Another plan's or campaign's sum, or one of other devices, is no neighbour.
        *(of(6, "abcd", plan=b"q"), of(6, "abcd", campaign=b"d"), of(6, "vwxyz")),
    ]
    near = near_sets(sets, fewer_than=3)
    assert [(one.earlier.round, one.later.round, one.devices) for one in near] == [
        *((2, 3, ("f", "g")), (3, 5, ("g",))),
    ]
