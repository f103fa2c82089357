"""What gateways accept can always be added up, whatever devices claim and send."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fleet.aggregation.mean import PlanSum, add_plan_sums, plan_sum_from_manifest
from fleet.campaign import CampaignConfig, DeviceInfo, RoundKind, plan_round, start_request
from fleet.gateway import actions as act
from fleet.gateway.instant import Instant
from fleet.gateway.requests import StartRequest
from fleet.gateway.round_logic import RoundLogic
from fleet.gateway.rounds import RoundKey, RoundSpec
from fleet.protocol.manifest import Manifest
from tests.conftest import examples
from tests.fleet.coordinator import small_model
from tests.fleet.gateway.deltas import announcement, delta_chunks

CONFIG = CampaignConfig(name="test", cohort_share=1.0, over_selection=0.0)
MANIFEST = Manifest.parse(json.dumps(small_model.manifest("a")))
MANIFESTS = {MANIFEST.bundle_id: MANIFEST}
LARGE = MANIFEST.plan("large")


NOW = Instant(1.0, 1.0)


class NoStore:
    """Of rounds that have ended nothing is known."""

    def counted(self, key: RoundKey, device: str) -> int | None:
        return None

    def cohort(self, key: RoundKey) -> list[str]:
        return []


def announce(logic: RoundLogic, name: str, samples: int) -> None:
    logic.announce(name, announcement(train_samples=samples).encode(), False, NOW)


def send(
    logic: RoundLogic, spec: RoundSpec, name: str, values: NDArray[np.int32], samples: int
) -> tuple[NDArray[np.int64], int]:
    """What the gateway folds into its sum of a device's delta: Σ n·v and n, or zeros."""
    (delta,) = delta_chunks(spec.task(name, 1, 0), values, samples)
    for one in logic.delta(name, delta.encode(), False, NOW):
        if isinstance(one, act.Accept):
            return one.values.astype(np.int64) * one.weight, one.weight
    return np.zeros(LARGE.delta_values, np.int64), 0


@given(st.data())
@examples(60)
def test_whatever_passes_the_gateways_can_be_added_up(data: st.DataObject) -> None:
    announced = data.draw(st.lists(st.integers(1, 65535), min_size=1, max_size=8))
    devices = [
        DeviceInfo.from_hello(
            f"g{index % 2}", small_model.device_entry(f"d{index}", "a", train_samples=samples)
        )
        for index, samples in enumerate(announced)
    ]
    digest = MANIFEST.weights.sha256
    leases = {one.device: 1 for one in devices}
    plan = plan_round(CONFIG, 1, RoundKind.TRAIN, devices, MANIFESTS, digest, leases)
    sums: list[PlanSum] = []
    for gateway in plan.gateways():
        fields = start_request(
            CONFIG, "00" * 8, plan, gateway, MANIFESTS, {digest: small_model.blob()}
        )
        round = StartRequest.parse(fields)
        logic = RoundLogic("f", gateway, lambda device: True, NoStore(), epoch=1)
        for device in devices:
            announce(logic, device.device, device.train_samples)
        logic.start(round, NOW)
        limits = np.concatenate(
            [np.full(count, bound) for count, bound in fields["plans"][LARGE.id]["bounds"]]
        )
        total, weight = np.zeros(LARGE.delta_values, np.int64), 0
        for name in sorted(round.spec.tasks):
            # It may announce whatever it likes while the round runs.
            announce(logic, name, 65535)
            most = fields["tasks"][0]["devices"][name][1]
            ends = np.minimum(limits, 2**31 - 1) * data.draw(st.sampled_from([-1, 1]))
            attempts = [
                (np.full(LARGE.delta_values, -(2**31)), 1),
                (ends, 65535),
                (np.clip(ends + np.sign(ends), -(2**31), 2**31 - 1), most),
                (ends, data.draw(st.sampled_from([1, most]))),
            ]
            passed = 0
            for values, samples in attempts:
                folded, share = send(logic, round.spec, name, values.astype(np.int32), samples)
                total, weight, passed = total + folded, weight + share, passed + bool(share)
            assert passed == 1, "the last attempt is what a device can send"
        sums.append(plan_sum_from_manifest(MANIFEST, LARGE, total.astype("<i8").tobytes(), weight))
    _, weights = add_plan_sums(sums, MANIFEST.coordinates)
    assert weights.max() > 0
