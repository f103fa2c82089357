"""Webhooks and up to where they have been told of events, over each database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import sqlalchemy as sa
from hypothesis import example, given
from hypothesis import strategies as st

from fleet.clock import VirtualClock
from fleet.errors import ConfigurationError, NotKnownError
from fleet.store import Events, SqlStore, Webhooks
from fleet.store.tables import webhooks as webhooks_table
from tests.conftest import examples

NOW = 1_700_000_000.0


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def store(
    request: pytest.FixtureRequest, new_database: Callable[[str], str | None]
) -> Iterator[SqlStore]:
    store = SqlStore(new_database(request.param), VirtualClock())
    yield store
    store.close()


def test_a_webhook_is_told_of_what_happens_from_now_on(store: SqlStore) -> None:
    webhooks = Webhooks(store)
    Events(store).add("state", "c", {})
    added, secret = webhooks.add("https://example.com/hook", ["state", "gate", "state"])
    assert added.events == ("gate", "state")
    assert added.cursor == 1
    assert webhooks.list() == (added,)
    assert webhooks.due(NOW) == ()
    Events(store).add("state", "c", {})
    assert webhooks.due(NOW) == ((added, secret),)


def test_a_secret_is_stored_to_sign_with_and_shown_once(store: SqlStore) -> None:
    (one, secret), (other, another) = (Webhooks(store).add(f"http://h/{n}") for n in "ab")
    assert len(bytes.fromhex(secret)) == 32
    assert secret != another
    assert secret not in str(Webhooks(store).list())
    with store.reading() as connection:
        kept = dict(
            connection.execute(sa.select(webhooks_table.c.webhook, webhooks_table.c.secret)).all()
        )
    assert kept == {one.webhook: secret, other.webhook: another}


def test_a_webhook_that_fails_waits_and_one_that_works_does_not(store: SqlStore) -> None:
    webhooks = Webhooks(store)
    one, _ = webhooks.add("http://one")
    other, _ = webhooks.add("http://two")
    Events(store).add("state", "c", {})
    webhooks.failed(one.webhook, "it answers 500", NOW + 5)
    webhooks.failed(one.webhook, "it answers 503", NOW + 10)
    failed = replace(one, failures=2, not_before=NOW + 10, problem="it answers 503")
    assert webhooks.list() == (failed, other)
    assert [found for found, _ in webhooks.due(NOW + 9)] == [other]
    assert [found for found, _ in webhooks.due(NOW + 10)] == [other, failed]
    assert webhooks.delivered(one.webhook, 1)
    assert webhooks.list() == (replace(one, cursor=1), other)
    assert [found for found, _ in webhooks.due(NOW)] == [other]


def test_a_removed_webhook_is_gone_whoever_still_sends_to_it(store: SqlStore) -> None:
    webhooks = Webhooks(store)
    one, _ = webhooks.add("http://one")
    webhooks.remove(one.webhook)
    assert not webhooks.delivered(one.webhook, 7)
    webhooks.failed(one.webhook, "it answers 500", NOW)
    assert webhooks.list() == ()
    with pytest.raises(NotKnownError, match="no webhook"):
        webhooks.remove(one.webhook)


@pytest.fixture(scope="module")
def in_memory() -> Iterator[Webhooks]:
    store = SqlStore(None, VirtualClock())
    yield Webhooks(store)
    store.close()


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("", "write https://HOST/PATH"),
        ("ftp://example.com", "write https://HOST/PATH"),
        ("file:///etc/passwd", "write https://HOST/PATH"),
        ("example.com/hook", "write https://HOST/PATH"),
        ("https://", "write https://HOST/PATH"),
        ("https://:443/x", "write https://HOST/PATH"),
        ("https://example.com:0", "write https://HOST/PATH"),
        ("https://example.com:99999", "write https://HOST/PATH"),
        ("https://[::1", "write https://HOST/PATH"),
        ("https://example.com/a b", "ASCII"),
        ("https://example.com/\r\nX: y", "ASCII"),
        ("https://exämple.com/", "xn--"),
        ("https://ann:pw@example.com/", "before the @"),
        ("https://example.com/#part", "behind the #"),
        ("https://example.com/" + "x" * 2000, "2000 characters"),
    ],
)
def test_an_address_that_nothing_can_be_sent_to_is_refused(
    in_memory: Webhooks, url: str, named: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"can't have the address .*{named}"):
        in_memory.add(url)
    assert in_memory.list() == ()


@pytest.mark.parametrize("kind", ["", "State", "a b", "state\n", "x" * 65])
def test_a_kind_that_no_event_has_is_refused(in_memory: Webhooks, kind: str) -> None:
    with pytest.raises(ConfigurationError, match="is no kind of event"):
        in_memory.add("https://example.com", ["gate", kind])


@given(st.one_of(st.text(), st.text(st.sampled_from("htps:/@[]#%.a1\\? ")).map("http://".__add__)))
@example("http://[::1%25eth0]/")
@example("http://[v1.a]/")
@examples(200)
def test_any_text_is_an_address_or_refused_by_its_own_error(in_memory: Webhooks, url: str) -> None:
    try:
        added, _ = in_memory.add(url)
    except ConfigurationError:
        return
    in_memory.remove(added.webhook)
    assert added.url.lower().startswith(("http://", "https://"))
