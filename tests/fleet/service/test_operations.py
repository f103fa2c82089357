"""What can be done as things stand, and what can't."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest

from fleet.errors import (
    ConflictError,
    ModelStoreError,
    NotKnownError,
    StoreError,
    TakenNameError,
)
from fleet.service.operations import Actor
from fleet.service.schema import (
    CampaignToStart,
    DevicesToAdd,
    DeviceToAdd,
    GatewayToAdd,
    TokenToIssue,
    VersionToAdd,
    WebhookToAdd,
)
from tests.fleet.coordinator import small_model
from tests.fleet.service.conftest import Site, campaign

ANN = Actor("ann", "admin")
BOB = Actor("bob", "admin")


def other_weights() -> bytes:
    """Two values differ."""
    blob = bytearray(small_model.blob())
    blob[0] ^= 1
    blob[1] ^= 1
    return bytes(blob)


def with_two_versions(site: Site) -> None:
    weights = base64.b64encode(other_weights()).decode()
    made = site.operations.add_version(ANN, "small", VersionToAdd(weights=weights, parent=1))
    assert (made.version, made.state, made.parent, made.source) == (2, "candidate", 1, "ann")


def test_a_rollout_brings_released_versions_only(site: Site) -> None:
    ops = site.operations
    with_two_versions(site)
    wanted = CampaignToStart(campaign=campaign(kind="rollout", version=2))
    with pytest.raises(ConflictError, match="small:2 is a candidate version: release it first"):
        ops.start_campaign(ANN, wanted)
    ops.release(ANN, "small", 2)
    assert ops.start_campaign(ANN, wanted).base == "small:2"


def test_a_campaign_without_a_model_is_told_which_there_are(site: Site) -> None:
    with pytest.raises(ModelStoreError, match="names none; there are: small"):
        site.operations.start_campaign(ANN, CampaignToStart(campaign=campaign(model="")))


def test_nobody_approves_what_they_began(site: Site) -> None:
    ops = site.operations
    made = ops.start_campaign(ANN, CampaignToStart(campaign=campaign(approval=True))).campaign
    with pytest.raises(ConflictError, match="waits for nobody's approval"):
        ops.act(BOB, made, "approve")
    ops.store.set_state(made, "", "waiting", waiting="begin:all")
    entries = len(ops.audit.newest(1000))
    with pytest.raises(StoreError, match="made by ann: somebody else has to approve it"):
        ops.act(ANN, made, "approve")
    assert len(ops.audit.newest(1000)) == entries
    ops.act(BOB, made, "approve")
    assert ops.campaign(ANN, made).decisions == {"begin:all": "bob"}


def test_what_has_ended_can_be_stopped_again_and_nothing_else(site: Site) -> None:
    ops = site.operations
    made = ops.start_campaign(ANN, CampaignToStart(campaign=campaign())).campaign
    assert ops.act(ANN, made, "pause").wish == "pause"
    assert ops.act(ANN, made, "resume").wish == ""
    assert ops.act(ANN, made, "stop").wish == "stop"
    for action in ("pause", "resume"):
        with pytest.raises(ConflictError, match=r"is being ended \(stop\)"):
            ops.act(ANN, made, action)
    ops.store.end_campaign(made, "", "cancelled")
    assert ops.act(ANN, made, "stop").state == "cancelled"
    for action in ("pause", "resume"):
        with pytest.raises(ConflictError, match=r"has ended \(cancelled\)"):
            ops.act(ANN, made, action)


def test_rolling_back_takes_what_was_made_back_once(site: Site) -> None:
    ops = site.operations
    with_two_versions(site)
    ops.release(ANN, "small", 2)
    made = ops.start_campaign(ANN, CampaignToStart(campaign=campaign(version=1))).campaign
    ops.store.note_made(made, "", "small:2")
    ops.store.end_campaign(made, "", "finished")
    assert ops.act(ANN, made, "roll-back").state == "rolling-back"
    assert ops.models.version("small", 2).state == "withdrawn"
    ops.models.set_state("small", 2, "released")
    assert ops.act(ANN, made, "roll-back").state == "rolling-back"
    ops.store.end_campaign(made, "", "rolled-back")
    assert ops.act(ANN, made, "roll-back").state == "rolling-back", "some may have been away"
    assert ops.models.version("small", 2).state == "released", "it was taken back twice"


def test_the_newest_released_version_is_withdrawn_while_there_is_another(site: Site) -> None:
    ops = site.operations
    with_two_versions(site)
    with pytest.raises(ConflictError, match="has 1 released versions: there is none to go back"):
        ops.withdraw_newest(ANN, "small")
    ops.release(ANN, "small", 2)
    assert ops.withdraw_newest(ANN, "small").version == 1
    assert [one.state for one in ops.models.versions("small")] == ["released", "withdrawn"]


def test_versions_are_compared_by_their_values(site: Site) -> None:
    with_two_versions(site)
    found = site.operations.compare(ANN, "small", 1, 2)
    assert (found.changed_values, found.values) == (2, small_model.manifest("a")["coordinates"])
    assert (found.devices, found.mean_accuracy_first, found.mean_accuracy_second) == (0, None, None)


def test_a_device_in_use_is_not_forgotten(site: Site) -> None:
    ops = site.operations
    with pytest.raises(ConflictError, match="d0 is in use; retire it first"):
        ops.erase_device(ANN, "d0")
    assert ops.retire_device(ANN, "d0").retired
    with pytest.raises(ConflictError, match="d0 is retired: it has no password"):
        ops.rotate_device(ANN, "d0")
    assert [one.hash for one in ops.logins.changes("home", 0) if one.name == "d0"] == [None]
    ops.erase_device(ANN, "d0")
    assert "d0" not in {one.device for one in ops.list_devices(ANN).devices}


def test_a_device_and_a_gateway_never_share_a_name(site: Site) -> None:
    ops = site.operations
    before = ops.logins.changes("home", 0)
    with pytest.raises(TakenNameError, match="d0 is a device's name"):
        ops.add_gateway(ANN, GatewayToAdd(gateway="d0", site="home"))
    with pytest.raises(TakenNameError, match="gw1 is in the registry already"):
        ops.add_gateway(ANN, GatewayToAdd(gateway="gw1", site="home"))
    assert ops.logins.changes("home", 0) == before


def test_a_retired_gateway_has_no_login_and_is_brought_back_with_another(site: Site) -> None:
    ops = site.operations
    with pytest.raises(NotKnownError, match="no gateway gw9"):
        ops.retire_gateway(ANN, "gw9")
    for site_of in ("home", "yard"):  # the second time it is at another site
        first = ops.add_gateway(ANN, GatewayToAdd(gateway="gw2", site=site_of))
        view = ops.retire_gateway(ANN, "gw2")
        assert (view.site, view.retired) == (site_of, True)
        assert [one.hash for one in ops.logins.changes(site_of, 0) if one.name == "gw2"] == [None]
    again = ops.add_gateway(ANN, GatewayToAdd(gateway="gw2", site="home"))
    assert again.password != first.password
    assert [one.retired for one in ops.list_gateways(ANN).gateways if one.gateway == "gw2"] == [
        False
    ]
    entries = ops.audit_page(ANN, object="gateway:gw2").audit
    assert [(one.action, one.before, one.after) for one in entries] == [
        ("gateways.add", None, {"site": "home"}),
        ("gateways.retire", {"site": "home", "retired": False}, {"retired": True}),
        ("gateways.add", {"site": "home", "retired": True}, {"site": "yard"}),
        ("gateways.retire", {"site": "yard", "retired": False}, {"retired": True}),
        ("gateways.add", {"site": "yard", "retired": True}, {"site": "home"}),
    ]
    # Its name stays its own meanwhile.
    ops.retire_gateway(ANN, "gw2")
    with pytest.raises(TakenNameError, match="gw2 is a gateway's name"):
        ops.add_devices(ANN, DevicesToAdd(devices=[DeviceToAdd(device="gw2", site="home")]))


def test_why_never_has_a_token_in_the_audit_log(site: Site) -> None:
    secret = site.tokens["viewer"]
    site.operations.issue_token(
        replace(ANN, why=f"for {secret}"), TokenToIssue(who="x", role="viewer")
    )
    assert site.operations.audit.newest(1)[0].why == "for (secret)"


def test_what_a_webhooks_address_has_behind_its_host_is_not_in_the_audit_log(site: Site) -> None:
    wanted = WebhookToAdd(url="https://hooks.example:8443/T0/s3cret?key=s3cret", events=["gate"])
    site.operations.add_webhook(ANN, wanted)
    (entry,) = site.operations.audit_page(ANN, limit=1000).audit[-1:]
    assert entry.after == {"host": "https://hooks.example:8443", "events": ["gate"]}
