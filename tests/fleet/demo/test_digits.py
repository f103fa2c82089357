from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from codegen.importer.model import import_model
from codegen.quantization.calibration_set import load_calibration
from codegen.quantization.quantize import quantize, quantize_input
from fleet.attach.samples import deal_digits, input_codes
from fleet.demo.digits import (
    BOARDS,
    RESOURCES,
    board_of,
    device_names,
    example_folder,
    resources_of,
)
from fleet.demo.orchestrator import DemoSettings, assign_gateways, campaign_config
from fleet.errors import ConfigurationError
from fleet.protocol.manifest import InputEntry, Manifest


def test_every_kind_of_device_meets_every_board_equally_often() -> None:
    kinds = Counter((board_of(index), resources_of(index)) for index in range(24))
    assert len(kinds) == len(BOARDS) * len(RESOURCES)
    assert set(kinds.values()) == {4}


def test_the_same_seed_deals_the_same_samples_and_another_does_not() -> None:
    names = device_names(6)
    first, again, other = deal_digits(names, 1), deal_digits(names, 1), deal_digits(names, 2)
    assert all(np.array_equal(a.x, b.x) for a, b in zip(first, again, strict=True))
    assert all(a.drift == b.drift for a, b in zip(first, again, strict=True))
    assert not all(
        a.x.shape == b.x.shape and np.array_equal(a.x, b.x)
        for a, b in zip(first, other, strict=True)
    )


def test_more_devices_than_digits_allow_are_refused_with_the_option() -> None:
    with pytest.raises(ConfigurationError, match=r"1000.*--devices"):
        deal_digits(device_names(1000), 1)


def test_samples_are_quantized_as_the_compiler_would() -> None:
    example = example_folder()
    graph = quantize(
        import_model(example / "digits.onnx"), load_calibration(example / "calibration.npz")
    )
    source = graph.tensors[graph.input]
    entry = InputEntry(shape=source.shape, scale=source.scale, zero_point=source.zero_point)
    manifest = Manifest.model_construct(model=type("Model", (), {"input": entry})())
    (share,) = deal_digits(["mcu-01"], 1)
    assert np.array_equal(input_codes(manifest, share.x), quantize_input(graph, share.x))


def test_every_device_belongs_to_one_gateway() -> None:
    names = device_names(7)
    sites = assign_gateways(names, ("a", "b"))
    assert sorted(sites["a"] + sites["b"]) == names
    assert abs(len(sites["a"]) - len(sites["b"])) <= 1


def test_a_campaign_goes_on_when_a_few_devices_fail() -> None:
    config = campaign_config(DemoSettings(devices=24, rounds=6, seed=5))
    assert config.seed == 5
    assert 1 <= config.min_devices < 24
