"""What devices and gateways say to each other: messages, topics, coding of deltas, manifest.

Follows docs/specification/wire.md and ``tinyfleet.cddl``; knows nothing of MQTT or Flower.
"""

from fleet.protocol.manifest import Manifest, PlanEntry
from fleet.protocol.messages import (
    NO_DIGEST,
    Announce,
    Delta,
    Identity,
    Message,
    Receipt,
    Status,
    Task,
)
from fleet.protocol.numbers import (
    Action,
    Coding,
    DeviceState,
    Reason,
    ReceiptResult,
    ResetCause,
    Weighting,
    charge_of,
    number_name,
    reason_name,
    state_name,
)
from fleet.protocol.seeds import device_seed

__all__ = [
    "NO_DIGEST",
    "Action",
    "Announce",
    "Coding",
    "Delta",
    "DeviceState",
    "Identity",
    "Manifest",
    "Message",
    "PlanEntry",
    "Reason",
    "Receipt",
    "ReceiptResult",
    "ResetCause",
    "Status",
    "Task",
    "Weighting",
    "charge_of",
    "device_seed",
    "number_name",
    "reason_name",
    "state_name",
]
