"""Weights by their digests: a campaign's own versions, and those of models."""

from __future__ import annotations

from fleet.campaign import RoundPlan
from fleet.errors import CampaignError
from fleet.store import Models, SqlStore


class Blobs:
    """What the devices of a campaign may be told to begin with."""

    def __init__(self, store: SqlStore, campaign: str) -> None:
        """Of a campaign in this store."""
        self._store = store
        self._models = Models(store)
        self._campaign = campaign

    def get(self, digest: str) -> bytes | None:
        """The weights with this digest; None where nobody has them."""
        own = self._store.weights_with(self._campaign, digest)
        return own.blob if own is not None else self._models.blob_of(digest)

    def has(self, digest: str) -> bool:
        """Whether somebody has the weights with this digest."""
        return self.get(digest) is not None

    def of(self, plan: RoundPlan) -> dict[str, bytes]:
        """The versions that a round's devices begin with, by digest. Raises `CampaignError`."""
        found = {}
        for digest in {one.weights or plan.weights for one in plan.assignments}:
            blob = self.get(digest)
            if blob is None:
                raise CampaignError(f"round {plan.number}: weights {digest[:16]}… aren't known")
            found[digest] = blob
        return found
