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
from fleet.gateway.round_logic import RoundLogic
from fleet.gateway.rounds import StartRequest
from fleet.protocol import Announce
from fleet.protocol.manifest import Manifest
from tests.conftest import examples
from tests.fleet.coordinator import small_model
from tests.fleet.gateway.site import delta_chunks

CONFIG = CampaignConfig(name="test", cohort_share=1.0, over_selection=0.0)
MANIFEST = Manifest.parse(json.dumps(small_model.manifest("a")))
MANIFESTS = {MANIFEST.bundle_id: MANIFEST}
LARGE = MANIFEST.plan("large")


def announce(name: str, samples: int) -> bytes:
    return Announce(name, "a", bytes(32), bytes(32), 1, 90, 9600, samples, 10).encode()


def send(
    logic: RoundLogic, round: StartRequest, name: str, values: NDArray[np.int32], samples: int
) -> tuple[NDArray[np.int64], int]:
    """What the gateway folds into its sum of a device's delta: Σ n·v and n, or zeros."""
    spec = logic.rounds[round.key].spec
    chunks = delta_chunks(spec.task(name, 10.0), values, samples)
    coded = b"".join(chunk.coded for chunk in chunks)
    folded, weight = np.zeros(LARGE.delta_values, np.int64), 0
    for chunk in chunks:
        actions = logic.chunk(name, chunk.encode(), 1.0, None)
        if any(isinstance(one, act.Assemble) for one in actions):
            actions = logic.assembled(round.key, name, coded, 1.0)
        for one in actions:
            if isinstance(one, act.Accept):
                folded, weight = one.values.astype(np.int64) * samples, samples
    return folded, weight


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
    plan = plan_round(CONFIG, 1, RoundKind.TRAIN, devices, MANIFESTS, digest)
    sums: list[PlanSum] = []
    for gateway in plan.gateways():
        fields = start_request(CONFIG, "00" * 8, plan, gateway, MANIFESTS, small_model.blob())
        round = StartRequest.parse(fields)
        logic = RoundLogic("f", gateway, lambda device: True)
        for device in devices:
            logic.announce(device.device, announce(device.device, device.train_samples), 0.0, None)
        logic.start(round, 0.0)
        limits = np.concatenate(
            [np.full(count, bound) for count, bound in fields["plans"][LARGE.id]["bounds"]]
        )
        total, weight = np.zeros(LARGE.delta_values, np.int64), 0
        for name in sorted(round.tasks):
            # It may announce whatever it likes while the round runs.
            logic.announce(name, announce(name, 65535), 0.5, None)
            most = fields["tasks"][name]["train_samples"]
            ends = np.minimum(limits, 2**31 - 1) * data.draw(st.sampled_from([-1, 1]))
            attempts = [
                (np.full(LARGE.delta_values, -(2**31)), 1),
                (ends, 65535),
                (np.clip(ends + np.sign(ends), -(2**31), 2**31 - 1), most),
                (ends, data.draw(st.sampled_from([1, most]))),
            ]
            passed = 0
            for values, samples in attempts:
                folded, share = send(logic, round, name, values.astype(np.int32), samples)
                total, weight, passed = total + folded, weight + share, passed + bool(share)
            assert passed == 1, "the last attempt is what a device can send"
        sums.append(plan_sum_from_manifest(MANIFEST, LARGE, total.astype("<i8").tobytes(), weight))
    _, weights = add_plan_sums(sums, MANIFEST.coordinates)
    assert weights.max() > 0
