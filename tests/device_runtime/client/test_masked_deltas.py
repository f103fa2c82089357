"""A device with keys sends masked deltas: what unmaskers and gateway make of them."""

import ctypes

import numpy as np
import pytest

from fleet.protocol import Announce, Delta, DeviceState, Reason, Task

from ..host_device import IDENTITY, World
from ..keyed import Keys, clipped, coded_of
from ..tiny_round import Weights, expected_values, task_for, train
from .rounds import ALL, BIASES, DATA, FACTORY, decline_of, finish_round, make_world, online

KEYS = Keys()
TASK = task_for(ALL, FACTORY)
VALUES = 68


def learned() -> list[int]:
    """What rice would send."""
    before = Weights.parse(FACTORY)
    return expected_values(before, train(before, DATA, 7, 2, False), False).tolist()


def keyed(library: ctypes.CDLL, keys: Keys = KEYS) -> World:
    return online(make_world(library, region=keys.region(IDENTITY)))


@pytest.fixture
def keyed_world(library: ctypes.CDLL) -> World:
    return keyed(library)


def test_a_masked_delta_unmasks_to_exactly_what_rice_would_have_sent(keyed_world: World) -> None:
    task = KEYS.masked(TASK)
    keyed_world.give(task)
    deltas = finish_round(keyed_world)
    coded = coded_of(deltas)
    assert len(coded) == deltas[0].coded_bytes == 12 + 48 + 2 * VALUES
    assert (deltas[0].coding, deltas[0].weighting) == (1, 1)
    assert KEYS.unmask(task, coded, VALUES).tolist() == learned()
