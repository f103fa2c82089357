"""What protects a service's campaigns: the keys that tasks are signed with, and the unmaskers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fleet.campaign import CampaignConfig
from fleet.errors import CampaignError
from fleet.protocol.keys import TaskKeys
from fleet.unmasker.unmasker import Unmasker


@dataclass(frozen=True)
class KeyHolders:
    """Without `keys` tasks aren't signed; `unmaskers` are known by their public keys."""

    keys: TaskKeys | None = None
    unmaskers: Mapping[bytes, Unmasker] = field(default_factory=dict)

    def sealed_for(self, config: CampaignConfig) -> tuple[bytes, ...]:
        """The unmaskers' keys that a campaign's devices seal for: those of the keyring.

        Raises `CampaignError` where a masked campaign has none.
        """
        if config.masking is None:
            return ()
        if self.keys is None:
            raise CampaignError(
                "coding masked: devices mask for those only that a keyring names, and this service "
                "signs no tasks; give it [signing] in its settings (docs/howto/private-campaign.md)"
            )
        found = self.keys.keyring.keyring.unmaskers
        if not found:
            raise CampaignError(
                f"coding masked: keyring {self.keys.keyring.keyring.generation} names no unmasker; "
                "sign one that does with `tinyfleet keys ring`"
            )
        return found
