"""An unmasker's store on disks that are full, and files that are none of its."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from fleet.errors import MaskRefusedError, StoreError
from fleet.unmasker import LocalUnmasker, UnmaskerStore
from tests.fleet.unmasker.herd import FLEET, PRIVATE, PUBLIC, Cow, asked, blank
from tests.small_disk import small_disk

COWS = [Cow(f"cow-{number}") for number in range(40)]


def test_where_a_set_cant_be_kept_its_masks_arent_told(tmp_path: Path) -> None:
    with small_disk(tmp_path) as disk:
        store = UnmaskerStore(tmp_path / "unmasker.sqlite")
        store.enrol([cow.enrolment() for cow in COWS], FLEET, 0.0)
        unmasker = LocalUnmasker(PRIVATE, FLEET, store)
        disk.fill()
        told = []
        with pytest.raises(StoreError, match="check its rights and the free space"):  # noqa: PT012
            for number in range(1000):
                told.append(number)
                unmasker.masks(asked(COWS, blank(round=number), PUBLIC)[0])
        refused = told.pop()
        assert [one.round for one in store.sets()] == told
        disk.free()
        # What wasn't told is as if it had never been asked for.
        fewer, _ = asked(COWS[1:], blank(round=refused), PUBLIC)
        masks = unmasker.masks(fewer)
        assert np.array_equal(unmasker.masks(fewer), masks)
        with pytest.raises(MaskRefusedError, match="overlap"):
            unmasker.masks(asked(COWS, blank(round=refused), PUBLIC)[0])
        store.close()


def test_files_that_are_no_store_or_a_later_ones_are_named(tmp_path: Path) -> None:
    path = tmp_path / "unmasker.sqlite"
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(StoreError, match=r"unmasker\.sqlite: can't be used"):
        UnmaskerStore(path)
    path.unlink()
    UnmaskerStore(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 2")
    with pytest.raises(StoreError, match="is of version 2, this unmasker reads 1"):
        UnmaskerStore(path)
    with pytest.raises(StoreError, match="can't be used"):
        UnmaskerStore(tmp_path / "unmasker.sqlite" / "below")
