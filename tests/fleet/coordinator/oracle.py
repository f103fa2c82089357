"""What the weights of a campaign have to be, from its stored rounds and the devices' deltas."""

from __future__ import annotations

import numpy as np

from fleet.aggregation import FedAvg, init
from fleet.campaign import RoundPlan
from fleet.store import Store
from tests.fleet.aggregation.test_mean import MANIFEST, gateway_sums
from tests.fleet.coordinator import small_model
from tests.fleet.coordinator.plain_gateway import device_delta, train_samples

PLAN_NAMES = {plan.id: plan.name for plan in MANIFEST.plans}


def assert_every_delta_counted_once(store: Store, campaign: str) -> None:
    """The stored weights are bit for bit those of adding each device's delta once per round."""
    state = init(MANIFEST.tensors, small_model.blob())
    for record in store.rounds(campaign):
        plan = RoundPlan.from_json(record.plan)
        if record.kind != "train":
            continue
        assert record.result["accepted"] == len(plan.assignments)
        sizes = {one.id: one.delta_values for one in MANIFEST.plans}
        devices = [
            (
                PLAN_NAMES[one.plan],
                train_samples(one.device),
                [int(v) for v in device_delta(one.device, plan.number, sizes[one.plan])],
            )
            for one in plan.assignments
        ]
        state = FedAvg().apply(state, [gateway_sums(devices)])
    stored = np.frombuffer(store.latest_weights(campaign).master, "<f8")
    assert np.array_equal(stored, state.master)
    assert store.latest_weights(campaign).version == state.applied
