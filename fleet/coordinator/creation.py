"""New campaigns: what has to fit together before one is in the store."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping

from fleet.aggregation import master_from_blob
from fleet.campaign import CampaignConfig
from fleet.campaign.stages import check_gates
from fleet.errors import CampaignError
from fleet.protocol.manifest import Manifest
from fleet.store import Store, WeightsVersion

_NAMED = 3
"""Tensors that a message names."""


def new_campaign(
    store: Store,
    config: CampaignConfig,
    manifests: Mapping[str, str],
    blob: bytes,
    author: str = "",
    base: str = "",
    identifier: str | None = None,
) -> str:
    """Store a new campaign over bundles of one model; returns its id (16 hex digits).

    The `identifier` is drawn by chance where none is given.

    `manifests` are the bundles' manifest.json texts in any keys, `blob` their weights, or those of
    the version `base` (MODEL:NUMBER) of their model.
    Raises `CampaignError` where the bundles don't hold the same model and weights, a plan that the
    configuration names is in none of them, none trains anything in a campaign that does, none has
    what a campaign that personalizes needs, or a gate looks at accuracy that the model lacks.
    """
    parsed = [Manifest.parse(text, f"manifest of {name}") for name, text in manifests.items()]
    if not parsed:
        raise CampaignError("a campaign needs at least one bundle")
    digest = hashlib.sha256(blob).hexdigest()
    for one in parsed:
        _check_published(one, parsed[0])
        if one.model.digest != parsed[0].model.digest:
            raise CampaignError(
                f"bundles {one.bundle_id[:16]} and {parsed[0].bundle_id[:16]} are of different "
                f"models ({one.model.digest[:16]}… and {parsed[0].model.digest[:16]}…): weights of "
                "one mean something else to the other, be it for the values of tensors that are "
                "frozen; compile them from one model with the same calibration"
            )
        if one.tensors != parsed[0].tensors:
            raise CampaignError(
                f"bundles {one.bundle_id[:16]} and {parsed[0].bundle_id[:16]} hold different "
                "tensors: compile them with one version of tinyfleet"
            )
        if not base and one.weights.sha256 != digest:
            raise CampaignError(
                f"bundle {one.bundle_id[:16]} was built with weights {one.weights.sha256[:16]}…, "
                f"not {digest[:16]}…: compile all bundles from one model"
            )
    known = {name for one in parsed for plan in one.plans for name in (plan.id, plan.name)}
    for name in config.plans:
        if name not in known:
            raise CampaignError(f"no bundle has a plan {name}; they have {sorted(known)}")
    if not any(config.manifest(one).plans for one in parsed):
        raise CampaignError(
            "no plan of the bundles has personal tensors; mark some in a plan's file with "
            '"personal": ["head"] and compile the bundles with it (docs/howto/personalize.md)'
        )
    if config.trains and not any(plan.delta_values for one in parsed for plan in one.plans):
        raise CampaignError(
            "the bundles only infer: they were compiled with --loss none; compile them with "
            "another loss, or make a campaign of kind evaluate"
        )
    check_gates(config.stages, parsed[0])
    campaign = identifier or uuid.uuid4().hex[:16]
    master = master_from_blob(parsed[0].tensors, blob)
    store.create_campaign(
        campaign,
        config.model_dump_json(),
        {one.bundle_id: text for one, text in zip(parsed, manifests.values(), strict=True)},
        WeightsVersion(0, digest, blob, master.astype("<f8").tobytes()),
        author,
        base,
    )
    return campaign


def _check_published(one: Manifest, other: Manifest) -> None:
    """Raises `CampaignError` where a version of one bundle's weights isn't all of the other's."""
    tensors = {tensor.name for tensor in one.tensors}
    others = {tensor.name for tensor in other.tensors}
    for has, lacks, extra in ((one, other, tensors - others), (other, one, others - tensors)):
        if not extra:
            continue
        named = ", ".join(sorted(extra)[:_NAMED])
        if len(extra) > _NAMED:
            named += f" and {len(extra) - _NAMED} more"
        raise CampaignError(
            f"bundle {has.bundle_id[:16]} publishes {named}, which bundle {lacks.bundle_id[:16]} "
            "has frozen: compile both with the same plans, or name plans that only other boards "
            "have with --publish"
        )
