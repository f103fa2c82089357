"""What protects a service's campaigns: the keys that tasks are signed with, and the unmaskers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from fleet.campaign import CampaignConfig
from fleet.campaign.privacy import Entropy
from fleet.coordinator.settings import CoordinatorSettings, first_line
from fleet.errors import CampaignError, KeysError
from fleet.protocol.keys import TaskKeys
from fleet.security.key_files import (
    AUTHORITY,
    TASK_SECRET,
    UNMASKER,
    read_key,
    read_keyring,
    read_signing_key,
)
from fleet.unmasker.client import RemoteUnmasker
from fleet.unmasker.unmasker import Unmasker


def task_keys(settings: CoordinatorSettings) -> TaskKeys | None:
    """What a service signs tasks with; None where it signs none.

    `KeysError` where a file can't be used, or devices wouldn't believe the keyring.
    """
    signing = settings.signing
    if signing is None:
        return None
    keyring = read_keyring(signing.keyring)
    if signing.authority is not None:
        authority = read_key(signing.authority, AUTHORITY)
        if not keyring.is_of(authority, settings.fleet):
            raise KeysError(
                f"{signing.keyring} isn't signed for fleet {settings.fleet} by the authority of "
                f"{signing.authority}: devices would decline every task; sign one with "
                f"`tinyfleet keys ring --fleet {settings.fleet}`, or give the authority's own file"
            )
    return TaskKeys(settings.fleet, read_signing_key(signing.key, TASK_SECRET), keyring)


@dataclass(frozen=True)
class KeyHolders:
    """Without `keys` tasks aren't signed; `unmaskers` are known by their public keys; `entropy` is
    where the coordinator's own noise comes from."""

    keys: TaskKeys | None = None
    unmaskers: Mapping[bytes, Unmasker] = field(default_factory=dict)
    entropy: Entropy = os.urandom

    @classmethod
    def of(cls, settings: CoordinatorSettings) -> KeyHolders:
        """Those of a service; `KeysError` or `ConfigurationError` where a file can't be used.

        Files are read once: after a rotation the service is started again.
        """
        return cls(
            task_keys(settings),
            {
                read_key(one.key, UNMASKER): RemoteUnmasker(
                    one.url, first_line(one.token_file, "token_file"), ca=one.ca
                )
                for one in settings.unmaskers
            },
        )

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
