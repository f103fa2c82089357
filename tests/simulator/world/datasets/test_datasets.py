"""Data sets: found by name, whole where they are, explained where they aren't."""

from __future__ import annotations

import csv
import os
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from simulator.errors import WorldError
from simulator.world.datasets import registry
from simulator.world.datasets.dataset import Dataset, Samples, numbered
from simulator.world.datasets.registry import AnyDataset, dataset_kinds
from tests.shared import SHARED
from tests.simulator.world.worlds import config, world

ADAPTER: TypeAdapter[Any] = TypeAdapter(AnyDataset)
DATA = SHARED / "data"
NEEDS_FILES = ("har", "keywords", "flowers")


def dataset(name: str, **settings: Any) -> Dataset:
    found = ADAPTER.validate_python({"name": name, **settings})
    assert isinstance(found, Dataset)
    return found


def real(name: str, **settings: Any) -> Samples:
    folder = os.environ.get("TINYFLEET_DATA") or (str(DATA) if DATA.is_dir() else "")
    if not folder:
        pytest.skip("TINYFLEET_DATA names no folder of data sets")
    return dataset(name, folder=folder, **settings).load(Path())


def test_the_data_sets_that_come_with_tinyfleet_are_found_by_name() -> None:
    assert dataset_kinds() == ["digits", "flowers", "har", "keywords", "npz"]
    for name in ("digits", *NEEDS_FILES):
        found = dataset(name)
        assert found.name == name
        assert found.source


class Constant(Dataset):
    """A data set of somebody else's."""

    source: ClassVar[str] = "nowhere"
    name: Literal["constant"] = "constant"
    value: float = 0.5

    def load(self, folder: Path) -> Samples:
        x = np.full((60, 4, 4, 1), self.value, np.float32)
        return Samples(x, np.arange(60) % 2)


def test_a_data_set_of_somebody_elses_is_found_by_its_entry_point(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entry = EntryPoint("constant", f"{__name__}:Constant", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda **by: EntryPoints([entry]).select(**by))
    made = world(4, data={"dataset": {"name": "constant", "value": 0.25}})
    assert (made.data.log(3).x == 0.25).all()
    assert made.config.model_dump()["data"]["dataset"] == {"name": "constant", "value": 0.25}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("nowhere.at_all:Set", "data set 'own' can't be had from nowhere.at_all:Set: No module"),
        (f"{__name__}:Missing", "data set 'own' can't be had from"),
        (f"{__name__}:numbered", "data set 'own': .*numbered is no Dataset"),
    ],
)
def test_an_entry_point_that_leads_nowhere_is_named(
    value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = EntryPoint("own", value, registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda **by: EntryPoints([entry]).select(**by))
    with pytest.raises(ValidationError, match=said):
        config(data={"dataset": "own"})


def test_an_installation_of_before_there_were_data_sets_is_to_be_renewed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda **by: EntryPoints([]).select(**by))
    with pytest.raises(ValidationError, match=r"no data set 'digits'.* install tinyfleet again"):
        config()


def test_a_sensor_of_a_range_that_nobody_knows_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entry = EntryPoint("constant", f"{__name__}:Constant", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda **by: EntryPoints([entry]).select(**by))
    made = world(4, data={"dataset": "constant", "sensor": {"kind": "image"}})
    with pytest.raises(WorldError, match=r"data\.sensor: all values are 0\.5"):
        made.data.log(0)


@pytest.mark.parametrize("name", NEEDS_FILES)
def test_data_that_are_absent_are_explained(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TINYFLEET_DATA", raising=False)
    with pytest.raises(WorldError, match=rf"data set {name}: no folder .* comes from .*TINYFLEET"):
        dataset(name).load(Path())
    with pytest.raises(WorldError, match=rf"{tmp_path}.*npz is missing. It comes from"):
        dataset(name, folder=str(tmp_path)).load(Path())
    monkeypatch.setenv("TINYFLEET_DATA", str(tmp_path))
    with pytest.raises(WorldError, match=rf"{tmp_path}.*npz is missing"):
        dataset(name).load(Path())


@pytest.mark.parametrize(
    ("name", "file"),
    [("har", "har_uci_hapt"), ("keywords", "kws_arabic_mfcc"), ("flowers", "flowers96")],
)
@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x05\x06" + bytes(18)])
def test_files_that_are_damaged_or_others_are_refused(
    name: str, file: str, content: bytes, tmp_path: Path
) -> None:
    (tmp_path / f"{file}.npz").write_bytes(content)
    with pytest.raises(WorldError, match=f"data set {name}: .*{file}.npz"):
        dataset(name, folder=str(tmp_path)).load(Path())


def test_the_activities_are_whole() -> None:
    found = real("har")
    assert found.x.shape == (10411, 128, 1, 6)
    assert found.subjects is not None
    assert found.lab is not None
    assert found.held_out is None
    assert np.bincount(found.y).tolist() == [1722, 1544, 1407, 1801, 1979, 1958]
    assert len(np.unique(found.subjects[found.lab])) == 21
    assert sorted(set(found.subjects[~found.lab].tolist())) == [2, 4, 9, 10, 12, 13, 18, 20, 24]
    still = found.x[found.y >= 3][..., :3]  # sitting, standing, lying: gravity only
    assert np.linalg.norm(still, axis=3).mean() == pytest.approx(1.02, abs=0.02)


@pytest.mark.parametrize("overlapping", [True, False])
def test_windows_of_activities_share_values_only_where_they_may(overlapping: bool) -> None:
    found = real("har", overlapping=overlapping)
    shared = (found.x[:-1, 64:] == found.x[1:, :64]).all(axis=(1, 2, 3))
    assert shared.mean() > 0.9 if overlapping else not shared.any()
    assert len(found) == (10411 if overlapping else 5409)
    assert np.bincount(found.y, minlength=6).all()
    assert len(np.unique(found.subjects)) == 30


def test_the_keywords_are_whole_or_some() -> None:
    found = real("keywords")
    assert found.x.shape == (12_000, 49, 10, 1)
    assert found.subjects is not None
    assert found.lab is not None
    assert found.held_out is not None
    groups = [found.lab, found.held_out, ~found.lab & ~found.held_out]
    assert [len(np.unique(found.subjects[one])) for one in groups] == [18, 6, 6]
    some = real("keywords", keywords=["yes", "no", "up"])
    assert np.bincount(some.y).tolist() == [300, 300, 300]
    codes = found.x * 32
    np.testing.assert_array_equal(codes, np.rint(codes))
    with pytest.raises(WorldError, match=r"no keyword 'maybe'; there are .*yes"):
        real("keywords", keywords=["maybe"])


def test_the_photos_are_whole_and_no_photographer_is_on_both_sides() -> None:
    found = real("flowers", side=96)
    assert (found.x.shape, found.x.dtype) == ((701, 96, 96, 3), np.int8)
    assert found.subjects is not None
    assert found.held_out is not None
    assert found.held_out.sum() == 201
    seen, unseen = (set(found.subjects[one].tolist()) for one in (~found.held_out, found.held_out))
    assert (len(seen), len(unseen)) == (237, 137)
    assert not seen & unseen


def test_photos_are_enlarged_as_by_others(tmp_path: Path) -> None:
    photos = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3)).astype(np.uint8)
    np.savez(
        tmp_path / "flowers96.npz",
        x_train=photos[:2],
        y_train=np.array([0, 1]),
        x_test=photos[2:],
        y_test=np.array([4]),
    )
    with (tmp_path / "flowers96_attribution.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["split", "index", "author"])
        rows.writerows([["test", 0, "Ann"], ["train", 1, "Zoe"], ["train", 0, "Bob"]])
    found = dataset("flowers", folder=str(tmp_path)).load(Path())
    assert found.x.shape == (3, 128, 128, 3)
    assert found.subjects is not None
    assert found.subjects.tolist() == [1, 2, 0]
    # Bilinear, pixels as areas: position (i + 0.5) * 96 / 128 - 0.5, by hand for two pixels.
    row = photos[0, :, :, 1].astype(np.float64)
    at = (np.array([10, 77]) + 0.5) * 0.75 - 0.5
    low, part = np.floor(at).astype(int), at - np.floor(at)
    top = row[low[0], low] * (1 - part) + row[low[0], low + 1] * part
    below = row[low[0] + 1, low] * (1 - part) + row[low[0] + 1, low + 1] * part
    expected = top * (1 - part[0]) + below * part[0] - 128
    np.testing.assert_allclose(found.x[0, 10, [10, 77], 1], expected, atol=1.0)


def test_ones_own_samples_are_taken_as_they_are(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(9, 4, 3, 2))
    subject = np.array(["b", "a", "c"] * 3)
    np.savez(tmp_path / "own.npz", x=x, y=np.arange(9), subject=subject)
    found = dataset("npz", path="own.npz", full_scale=[-4, 4]).load(tmp_path)
    np.testing.assert_array_equal(found.x, x.astype(np.float32))
    assert found.y.tolist() == list(range(9))
    assert found.subjects is not None
    assert found.subjects.tolist() == [1, 0, 2] * 3
    assert found.scale == (-4.0, 4.0)
    assert dataset("npz", path="own.npz").load(tmp_path).scale == (found.x.min(), found.x.max())


X, Y = np.zeros((4, 2, 2, 1), np.float32), np.zeros(4, np.int64)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": X}, "has the arrays x; it needs x and y"),
        ({"x": X, "y": Y, "user": Y}, "arrays user, x, y; it needs"),
        ({"x": X[..., 0], "y": Y}, r"x is float32 of shape \(4, 2, 2\)"),
        ({"x": X.astype(np.uint8), "y": Y}, "x is uint8"),
        ({"x": X * np.nan, "y": Y}, "NaN"),
        ({"x": X[:0], "y": Y[:0]}, "x is empty"),
        ({"x": X, "y": Y[:3]}, r"y is int64 of shape \(3,\); give one int64"),
        ({"x": X, "y": Y - 1}, "y has label -1"),
        ({"x": X, "y": Y.astype(np.float64)}, "y has float64"),
        ({"x": X, "y": Y, "subject": Y.astype(np.float64)}, "subject has float64"),
        ({"x": X, "y": Y, "subject": Y[:2]}, r"subjects is int64 of shape \(2,\)"),
        ({"x": X, "y": np.array([None] * 4)}, "not a readable .npz"),
    ],
    ids=str,
)
def test_a_file_of_ones_own_that_is_wrong_is_refused_with_what_to_do(
    arrays: dict[str, Any], said: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(WorldError, match=said):
        dataset("npz", path="own.npz").load(tmp_path)


def test_a_file_of_ones_own_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorldError, match=r"data\.dataset\.path: .*own\.npz: no such file; write"):
        dataset("npz", path="own.npz").load(tmp_path)


def test_another_label_subject_or_type_makes_another_digest() -> None:
    x, y = np.zeros((4, 2, 2, 1), np.int8), np.arange(4)
    others = [
        Samples(x, y),
        Samples(x, y[::-1].copy()),
        Samples(x, y, subjects=y),
        Samples(x.reshape(4, 4, 1, 1), y),
        Samples(x.astype(np.float32), y),
        Samples(x + np.int8(1), y),
    ]
    assert len({one.digest for one in others}) == len(others)
    assert Samples(x.copy(), y.copy()).digest == others[0].digest


def test_names_are_numbered_in_their_order() -> None:
    assert numbered(np.array(["b", "a", "b"])).tolist() == [1, 0, 1]
