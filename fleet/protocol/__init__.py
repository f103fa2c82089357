"""What devices and gateways say to each other: messages, topics, coding of deltas, manifest.

Follows docs/specification/wire.md and ``tinyfleet.cddl``; knows nothing of MQTT or Flower.
"""

from fleet.protocol.manifest import Manifest, PlanEntry
from fleet.protocol.messages import (
    Announce,
    Delta,
    DeviceState,
    Identity,
    Message,
    Reason,
    Status,
    Task,
    reason_name,
    state_name,
)

__all__ = [
    "Announce",
    "Delta",
    "DeviceState",
    "Identity",
    "Manifest",
    "Message",
    "PlanEntry",
    "Reason",
    "Status",
    "Task",
    "reason_name",
    "state_name",
]
