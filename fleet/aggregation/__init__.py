"""Gateway sums in, new global weights out: pure functions over explicit state."""

from fleet.aggregation.master import (
    blob_from_master,
    changed_values,
    master_from_blob,
)
from fleet.aggregation.mean import (
    MasterState,
    PlanSum,
    add_plan_sums,
    init,
    plan_sum_from_manifest,
    staleness_scale,
)
from fleet.aggregation.rules import (
    AggregationRule,
    BucketMedian,
    FedAvg,
    Rule,
    ServerAdam,
    ServerMomentum,
    ServerYogi,
    SetMedian,
)

__all__ = [
    "AggregationRule",
    "BucketMedian",
    "FedAvg",
    "MasterState",
    "PlanSum",
    "Rule",
    "ServerAdam",
    "ServerMomentum",
    "ServerYogi",
    "SetMedian",
    "add_plan_sums",
    "blob_from_master",
    "changed_values",
    "init",
    "master_from_blob",
    "plan_sum_from_manifest",
    "staleness_scale",
]
