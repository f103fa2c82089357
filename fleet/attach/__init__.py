"""Virtual devices beside a deployment's real ones: emulated boards that dial its sites' brokers."""

from fleet.attach.attached import Attached
from fleet.attach.devices import virtual_devices
from simulator.machines.device_spec import Place

__all__ = ["Attached", "Place", "virtual_devices"]
