"""What can be done with a fleet: every operation with its check of the role and its audit entry.

Nothing here knows of HTTP; the API only translates.
"""

from __future__ import annotations

from fleet.service.accounts import AccountOperations
from fleet.service.base import Actor
from fleet.service.campaigns import CampaignOperations
from fleet.service.models import ModelOperations

__all__ = ["Actor", "Operations"]


class Operations(CampaignOperations, ModelOperations, AccountOperations):
    """The operations of a fleet over its store."""
