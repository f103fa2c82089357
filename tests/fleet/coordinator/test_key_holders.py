"""Whose keys tasks go out with: whether devices would believe them, and who is told where not."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import cbor2
import pytest
from flwr.app import ConfigRecord
from flwr.supercore.task_identity import TaskIdentity

from fleet.coordinator import strategy as strategies
from fleet.coordinator.key_holders import task_keys
from fleet.coordinator.listener import Listener
from fleet.coordinator.settings import CoordinatorSettings, SigningSettings
from fleet.coordinator.strategy import TinyfleetStrategy
from fleet.errors import KeysError
from fleet.protocol.keys import SIGNATURE_BYTES, Keyring, SignedKeyring, TaskKeys
from fleet.security import key_files
from tests.fleet.coordinator.masked_site import MaskedSite, SiteTransport, masked_campaign
from tests.fleet.gateway.deltas import GATEWAY


@pytest.fixture
def settings(tmp_path: Path) -> CoordinatorSettings:
    authority = key_files.make_signing_key(
        tmp_path, key_files.AUTHORITY_KEY, key_files.AUTHORITY_PUBLIC
    )
    task = key_files.make_signing_key(tmp_path, key_files.TASK_KEY, key_files.TASK_PUBLIC)
    ring = SignedKeyring.sign(authority, "barn", Keyring(1, task.public))
    key_files.write_keyring(tmp_path / key_files.KEYRING, ring)
    return CoordinatorSettings(
        fleet="barn",
        signing=SigningSettings(
            key=tmp_path / key_files.TASK_KEY,
            keyring=tmp_path / key_files.KEYRING,
            authority=tmp_path / key_files.AUTHORITY_PUBLIC,
        ),
    )


def test_a_keyring_that_devices_would_not_believe_is_refused_at_the_start(
    settings: CoordinatorSettings, tmp_path: Path
) -> None:
    keys = task_keys(settings)
    assert keys is not None
    with pytest.raises(KeysError, match=r"isn't signed for fleet bergen .* keys ring --fleet"):
        task_keys(settings.model_copy(update={"fleet": "bergen"}))
    key_files.make_signing_key(
        tmp_path / "other", key_files.AUTHORITY_KEY, key_files.AUTHORITY_PUBLIC
    )
    assert settings.signing is not None
    other = tmp_path / "other" / key_files.AUTHORITY_PUBLIC
    signing = settings.signing.model_copy(update={"authority": other})
    with pytest.raises(KeysError, match=r"by the authority of .*other"):
        task_keys(settings.model_copy(update={"signing": signing}))
    unchecked = settings.signing.model_copy(update={"authority": None})
    assert task_keys(settings.model_copy(update={"signing": unchecked})) == keys


@pytest.mark.parametrize(
    ("generation", "said"),
    [(None, "keyring 1 of its authority, and tasks go out with none"), (1, ""), (2, "")],
)
def test_it_is_said_once_that_devices_follow_a_newer_keyring_than_tasks_go_out_with(
    tmp_path: Path, generation: int | None, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    site = MaskedSite(tmp_path, seed=1, devices=4)
    site.clock.sleep(30)
    held = site.holders.keys
    assert held is not None
    keys = None
    if generation is not None:
        ring = Keyring(generation, site.task_key.public)
        signed = SignedKeyring.sign(site.authority, held.fleet, ring)
        keys = TaskKeys(held.fleet, site.task_key, signed)
    with (
        masked_campaign(site) as (store, campaign),
        caplog.at_level(logging.WARNING, "fleet.coordinator.listener"),
    ):
        listener = Listener(store, campaign, "", SiteTransport(site), site.clock, keys)
        listener.receive()
        listener.ask_for_news()
        listener.receive()
    assert len(listener.devices()) == 4
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == bool(said)
    assert all(said in one for one in told)
    site.close()


class _NodesTransport(SiteTransport):
    def nodes(self) -> dict[str, int]:
        return {GATEWAY: 1}


def test_the_tasks_of_a_flower_strategy_are_signed_where_there_are_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = MaskedSite(tmp_path, seed=1, devices=4)
    site.clock.sleep(30)
    # Messages are made in a process that Flower has started.
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    monkeypatch.setattr(strategies, "GridTransport", lambda grid: _NodesTransport(site))
    keys = site.holders.keys
    assert keys is not None
    plain = {"coding": "rice", "masking": None, "aggregation": {"rule": "fedavg"}}
    with masked_campaign(site, **plain) as (store, campaign):
        strategy = TinyfleetStrategy(store, campaign, site.holders)
        arrays = strategy.initial_arrays()
        grid: Any = None  # the site is asked in its place
        (message,) = strategy.configure_train(1, arrays, ConfigRecord(), grid)
        payload = message.content.config_records["tinyfleet"]["payload"]
        assert isinstance(payload, bytes)
        (start,) = cbor2.loads(payload)["starts"]
        assert start["keyring"] == keys.keyring.encode()
        signatures = [of[3] for task in start["tasks"] for of in task["devices"].values()]
        assert [len(one) for one in signatures] == [SIGNATURE_BYTES] * 4
    site.close()
