"""Gateway sums in, new global weights out: pure functions over explicit state."""

from fleet.aggregation.errors import AggregationError, BlobError, SumError
from fleet.aggregation.master import (
    TensorSlot,
    blob_from_master,
    changed_values,
    layout_from_manifest,
    master_from_blob,
)
from fleet.aggregation.mean import (
    MasterState,
    PlanSum,
    add_plan_sums,
    apply,
    init,
    plan_sum_from_manifest,
)

__all__ = [
    "AggregationError",
    "BlobError",
    "MasterState",
    "PlanSum",
    "SumError",
    "TensorSlot",
    "add_plan_sums",
    "apply",
    "blob_from_master",
    "changed_values",
    "init",
    "layout_from_manifest",
    "master_from_blob",
    "plan_sum_from_manifest",
]
