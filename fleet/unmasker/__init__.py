"""The unmasker: adds up the masks of sets of devices, and of nothing else (masking.md).

Another party than the coordinator's can run it. It learns who was in which set, and no values.
"""

from fleet.unmasker.client import RemoteUnmasker
from fleet.unmasker.store import UnmaskerStore
from fleet.unmasker.unmasker import LocalUnmasker, Unmasker

__all__ = ["LocalUnmasker", "RemoteUnmasker", "Unmasker", "UnmaskerStore"]
