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
    apply,
    init,
    plan_sum_from_manifest,
)

__all__ = [
    "MasterState",
    "PlanSum",
    "add_plan_sums",
    "apply",
    "blob_from_master",
    "changed_values",
    "init",
    "master_from_blob",
    "plan_sum_from_manifest",
]
