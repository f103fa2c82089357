"""Which devices come of names, data and a seed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codegen.firmware.bundle import Bundle
from fleet.attach import virtual_devices
from fleet.errors import ConfigurationError
from fleet.protocol.keys import DeviceKeys, Keyring, SignedKeyring, SigningKey
from fleet.protocol.manifest import Manifest
from fleet.security.provisioning import FleetKeys
from simulator.devices.flash_image import held_out_mask
from simulator.errors import FleetError
from simulator.machines.device_spec import DeviceSpec

NAMES = ["ant", "bee", "cow"]
PASSWORDS = dict.fromkeys(NAMES, "moo")

Make = Callable[..., list[DeviceSpec]]


@pytest.fixture
def make(digits: Bundle) -> Make:
    def make(names: list[str] = NAMES, **options: Any) -> list[DeviceSpec]:
        return virtual_devices(
            names, PASSWORDS, {"stm32f407": digits.path}, "barn", machine="host", **options
        )

    return make


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def save(**arrays: Any) -> Path:
        np.savez(tmp_path / "data.npz", **arrays)
        return tmp_path / "data.npz"

    return save


def numbered(count: int) -> dict[str, Any]:
    """Samples that tell who they are: the first pixel is their number, as a code."""
    x = np.zeros((count, 8, 8, 1), np.int8)
    x[:, 0, 0, 0] = np.arange(count)
    return {"x": x, "y": np.arange(count) % 10}


def numbers(spec: DeviceSpec) -> list[int]:
    return spec.samples[:, 0, 0, 0].tolist()


def labels(specs: list[DeviceSpec]) -> list[list[int]]:
    return [spec.labels.tolist() for spec in specs]


def test_devices_get_digits_without_a_file_and_the_same_ones_for_the_same_seed(make: Make) -> None:
    first, again, other = make(seed=1), make(seed=1), make(seed=2)
    assert [spec.device for spec in first] == NAMES
    assert all(spec.samples.shape[1:] == (8, 8, 1) and len(spec.labels) > 9 for spec in first)
    for one, same in zip(first, again, strict=True):
        assert np.array_equal(one.samples, same.samples)
        assert (one.seed, one.labels.tolist()) == (same.seed, same.labels.tolist())
    assert labels(first) != labels(other)
    assert len({spec.seed for spec in (*first, *other)}) == 6


def test_devices_of_a_private_fleet_have_keys_of_their_own_and_believe_its_authority(
    digits: Bundle,
) -> None:
    authority = SigningKey.generate()
    ring = SignedKeyring.sign(authority, "barn", Keyring(1, bytes(range(32))))
    keys = {name: DeviceKeys.generate() for name in NAMES}
    specs = virtual_devices(
        *(NAMES, PASSWORDS, {"stm32f407": digits.path}, "barn"),
        fleet_keys=FleetKeys(authority.public, ring),
        device_keys=keys,
    )
    assert [spec.keys for spec in specs] == [keys[name].encode() for name in NAMES]
    assert {(spec.authority, spec.keyring) for spec in specs} == {(authority.public, ring.encode())}


def test_boards_bundles_are_given_in_turn(digits: Bundle, tmp_path: Path) -> None:
    shutil.copytree(digits.path, tmp_path / "other")
    bundles = {"stm32f746": tmp_path / "other", "stm32f407": digits.path}
    specs = virtual_devices(NAMES, PASSWORDS, bundles, "barn")
    assert [spec.bundle for spec in specs] == [tmp_path / "other", digits.path, tmp_path / "other"]
    assert {(spec.machine, spec.fleet, spec.password) for spec in specs} == {
        ("unicorn", "barn", "moo")
    }


def test_samples_of_a_file_are_dealt_evenly_and_each_to_one_device(
    make: Make, save: Callable[..., Path]
) -> None:
    path = save(**numbered(100))
    specs = make(data=path, seed=1)
    assert sorted(len(spec.labels) for spec in specs) == [33, 33, 34]
    assert sorted(number for spec in specs for number in numbers(spec)) == list(range(100))
    assert all([number % 10 for number in numbers(s)] == s.labels.tolist() for s in specs)
    assert [numbers(s) for s in specs] == [numbers(s) for s in make(data=path, seed=1)]
    assert [numbers(s) for s in specs] != [numbers(s) for s in make(data=path, seed=2)]


@pytest.mark.parametrize(
    "owner", [np.array(["cow", "ant", "stranger", "bee"]), np.array([2, 0, 3, 1])]
)
def test_samples_that_have_an_owner_go_there_in_their_order(
    make: Make, save: Callable[..., Path], owner: Any
) -> None:
    specs = make(data=save(**numbered(20), device=np.tile(owner, 5)))
    assert [numbers(spec) for spec in specs] == [
        [1, 5, 9, 13, 17],
        [3, 7, 11, 15, 19],
        [0, 4, 8, 12, 16],
    ]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_real_values_become_codes_of_the_models_input(
    make: Make, save: Callable[..., Path], digits: Bundle, dtype: type
) -> None:
    entry = Manifest.read(digits.path).model.input
    x = np.tile(np.array([0, 1, 100], dtype).reshape(3, 1, 1, 1), (1, 8, 8, 1))
    (spec,) = make(["ant"], data=save(x=x, y=np.zeros(3, int), device=np.zeros(3, int)))
    one = round(1 / entry.scale) + entry.zero_point
    assert numbers(spec) == [entry.zero_point, min(one, 127), 127]


def test_labels_are_shuffled_where_it_is_asked_for_and_nowhere_else(make: Make) -> None:
    right = make(seed=3)
    spoilt = make(seed=3, shuffle_training_labels=["ant"], shuffle_held_out_labels=["bee"])
    assert labels(spoilt) == labels(
        make(seed=3, shuffle_training_labels=["ant"], shuffle_held_out_labels=["bee"])
    )
    for before, after, shuffles_held_out in zip(right, spoilt, (False, True, None), strict=True):
        assert np.array_equal(before.samples, after.samples)
        wrong = before.labels != after.labels
        held_out = held_out_mask(len(wrong))
        if shuffles_held_out is None:
            assert not wrong.any()
            continue
        concerned = held_out if shuffles_held_out else ~held_out
        assert wrong[concerned].sum() > concerned.sum() // 3
        assert not wrong[~concerned].any()
        assert sorted(before.labels[concerned]) == sorted(after.labels[concerned])


def test_a_device_is_spoilt_alike_whoever_else_there_is(
    make: Make, save: Callable[..., Path]
) -> None:
    path = save(**numbered(60), device=np.arange(60) % 3)
    (alone,) = make(["ant"], data=path, shuffle_training_labels=["ant"])
    assert labels(make(data=path, shuffle_training_labels=["ant"]))[0] == alone.labels.tolist()


def test_a_model_that_takes_no_digits_asks_for_data_of_its_shape(
    digits: Bundle, tmp_path: Path
) -> None:
    manifest = json.loads((digits.path / "manifest.json").read_text())
    manifest["model"]["input"]["shape"] = [49, 10, 1]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigurationError, match=r"--data, with x \(n, 49, 10, 1\) and y .* 0 … 9"):
        virtual_devices(NAMES, PASSWORDS, {"stm32f407": tmp_path}, "barn")


def test_a_model_whose_labels_play_no_part_asks_for_none(
    digits: Bundle, save: Callable[..., Path], tmp_path: Path
) -> None:
    manifest = json.loads((digits.path / "manifest.json").read_text())
    manifest["model"]["loss"] = "mse"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    bundles = {"stm32f407": tmp_path}
    with pytest.raises(ConfigurationError, match=r"with x \(n, 8, 8, 1\)$"):
        virtual_devices(NAMES, PASSWORDS, bundles, "barn")
    unlabelled = save(x=numbered(9)["x"])
    made = virtual_devices(NAMES, PASSWORDS, bundles, "barn", machine="host", data=unlabelled)
    assert labels(made) == [[0, 0, 0]] * 3


@pytest.mark.parametrize("has_file", [False, True])
def test_a_model_that_trains_for_targets_asks_for_no_file_that_would_be_refused(
    digits: Bundle, save: Callable[..., Path], has_file: bool, tmp_path: Path
) -> None:
    manifest = json.loads((digits.path / "manifest.json").read_text())
    manifest["model"] |= {"loss": "mse", "target_scale": 0.5}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    data = save(**numbered(9)) if has_file else None
    with pytest.raises(ConfigurationError, match=r"trained for targets.* measure --data"):
        virtual_devices(NAMES, PASSWORDS, {"stm32f407": tmp_path}, "barn", data=data)


X, Y = numbered(9).values()


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": X}, "no array y"),
        ({"y": Y}, "no array x"),
        ({"x": X, "y": Y[:8]}, r"y has shape \(8,\)"),
        ({"x": X, "y": Y.astype(float)}, "integers are wanted"),
        ({"x": X, "y": Y + 2}, r"labels of y are .* … 10, .* classes 0 … 9"),
        ({"x": X, "y": Y - 1}, "labels of y are -1"),
        ({"x": X[..., 0], "y": Y}, "x has 3 axes"),
        ({"x": X > 0, "y": Y}, "of bool"),
        ({"x": X * np.float32("nan"), "y": Y}, "finite"),
        ({"x": X[:, :7], "y": Y}, r"shape \(7, 8, 1\), the model of .* takes \(8, 8, 1\)"),
        ({"x": X, "y": Y, "device": Y[:3]}, r"device has shape \(3,\)"),
        ({"x": X, "y": Y, "device": Y * 0.5}, "names or numbers"),
        ({"x": X, "y": Y, "device": np.array(["ant"] * 9)}, "0 samples for device bee"),
        ({"x": X[:8], "y": Y[:8]}, "2 samples for device cow, 3 are wanted"),
        ({"x": X, "y": Y, "device": np.array([{}] * 9, object)}, "can't be read as NPZ"),
    ],
)
def test_a_file_that_cannot_be_used_says_what_is_wrong_with_it(
    make: Make, save: Callable[..., Path], arrays: dict[str, Any], said: str
) -> None:
    path = save(**arrays)
    with pytest.raises(ConfigurationError, match=rf"{path}.*{said}"):
        make(data=path)


@pytest.mark.parametrize("content", [None, b"", b"PK\3\4nonsense", b"nonsense", b"\x93NUMPY\1\0"])
def test_a_file_that_is_no_npz_is_refused(
    make: Make, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "data.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"data\.npz.*can't be read"):
        make(data=path)


def test_a_single_array_is_no_npz(make: Make, tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", X)
    with pytest.raises(ConfigurationError, match=r"data\.npy.*can't be read"):
        make(data=tmp_path / "data.npy")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"names": []}, "at least one"),
        ({"names": ["ant", "ant"]}, "a name of its own"),
        ({"names": ["ant", "dog"]}, "without a password: dog"),
        ({"shuffle_held_out_labels": ["dog"]}, "dog can't be shuffled"),
    ],
)
def test_names_that_do_not_fit_together_are_refused(
    make: Make, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        make(**options)


def test_an_unknown_machine_and_no_bundle_at_all_are_refused(digits: Bundle) -> None:
    with pytest.raises(FleetError, match="no machine 'abacus'"):
        virtual_devices(NAMES, PASSWORDS, {"stm32f407": digits.path}, "barn", machine="abacus")
    with pytest.raises(ConfigurationError, match="at least one board"):
        virtual_devices(NAMES, PASSWORDS, {}, "barn")
