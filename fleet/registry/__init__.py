"""What the coordinator knows of devices, and how operators say which of them they mean."""

from fleet.registry.filters import Filter
from fleet.registry.records import Device, NewDevice, Observed

__all__ = ["Device", "Filter", "NewDevice", "Observed"]
