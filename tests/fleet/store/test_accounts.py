"""Tokens, the audit log and repeated requests, over each database."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, example, given
from hypothesis import strategies as st

from fleet.clock import VirtualClock
from fleet.errors import AccessError, ConfigurationError, ConflictError, NotKnownError, StoreError
from fleet.store import ROLES, Audit, Idempotency, Remembered, SqlStore, Tokens, without_secrets
from fleet.store.appending import append
from fleet.store.tables import audit as audit_table
from fleet.store.tables import tokens as tokens_table
from tests.conftest import examples
from tests.patience import wait_until

NOW = 1_700_000_000.0
DAY = 86_400.0


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def store(
    request: pytest.FixtureRequest, new_database: Callable[[str], str | None]
) -> Iterator[SqlStore]:
    store = SqlStore(new_database(request.param), VirtualClock())
    yield store
    store.close()


def clock_of(store: SqlStore) -> VirtualClock:
    assert isinstance(store.clock, VirtualClock)
    return store.clock


# ---- tokens ------------------------------------------------------------------------------


def test_a_token_says_who_somebody_is_and_its_secret_is_nowhere_in_the_database(
    store: SqlStore,
) -> None:
    issued, text = Tokens(store).issue("ann", "operator", DAY)
    assert (issued.who, issued.role, issued.revoked) == ("ann", "operator", False)
    assert (issued.created, issued.expires) == (NOW, NOW + DAY)
    assert Tokens(store).check(text) == issued
    prefix, name, secret = text.split("_")
    assert (prefix, name) == ("tf", issued.token)
    assert len(bytes.fromhex(secret)) == 32
    with store.reading() as connection:
        (row,) = connection.execute(sa.select(tokens_table))
    assert row.hash == hashlib.sha256(secret.encode()).hexdigest()
    assert secret not in str(row)


def test_every_role_can_be_issued_and_no_two_tokens_are_alike(store: SqlStore) -> None:
    texts = [Tokens(store).issue("ann", role, DAY)[1] for role in ROLES]
    assert [Tokens(store).check(text).role for text in texts] == list(ROLES)
    assert len(set(texts)) == len(ROLES)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"role": "root"}, "no role 'root'; choose one of viewer"),
        ({"role": ""}, "no role"),
        ({"seconds": 0.0}, "0.0 s"),
        ({"seconds": float("inf")}, "inf s"),
        ({"seconds": float("nan")}, "nan s"),
        ({"who": ""}, "say who"),
    ],
)
def test_a_token_that_makes_no_sense_is_not_issued(wrong: dict[str, Any], named: str) -> None:
    store = SqlStore(None, VirtualClock())
    with pytest.raises(ConfigurationError, match=named):
        Tokens(store).issue(**{"who": "ann", "role": "viewer", "seconds": DAY, **wrong})
    assert Tokens(store).list() == ()


def test_a_token_ends_when_its_time_is_over(store: SqlStore) -> None:
    _, text = Tokens(store).issue("ann", "viewer", DAY)
    clock_of(store).sleep(DAY - 1)
    Tokens(store).check(text)
    clock_of(store).sleep(1)
    with pytest.raises(AccessError, match="of ann has expired: ask an admin"):
        Tokens(store).check(text)


def test_a_revoked_token_is_refused_and_stays_in_the_list(store: SqlStore) -> None:
    first, text = Tokens(store).issue("ann", "viewer", DAY)
    clock_of(store).sleep(1)
    second, other = Tokens(store).issue("bob", "admin", DAY)
    Tokens(store).revoke(first.token)
    Tokens(store).revoke(first.token)
    with pytest.raises(AccessError, match="was revoked"):
        Tokens(store).check(text)
    assert Tokens(store).check(other) == second
    assert Tokens(store).list() == (replace(first, revoked=True), second)
    with pytest.raises(NotKnownError, match="no token 'nobody'"):
        Tokens(store).revoke("nobody")


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_of_many_at_once_one_is_the_first(
    new_database: Callable[[str], str | None], kind: str
) -> None:
    url, at_once = new_database(kind), 4
    stores = [SqlStore(url, VirtualClock()) for _ in range(at_once)]
    barrier = threading.Barrier(at_once)
    got: list[object] = []

    def first(store: SqlStore) -> None:
        barrier.wait()
        try:
            got.append(Tokens(store).issue_first("ann", "admin", DAY)[0])
        except ConflictError as error:
            got.append(error)

    threads = [threading.Thread(target=first, args=(one,)) for one in stores]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sum(isinstance(one, ConflictError) for one in got) == at_once - 1
    assert len(Tokens(stores[0]).list()) == 1
    for store in stores:
        store.close()


def test_a_first_one_is_issued_again_when_those_before_are_no_good(store: SqlStore) -> None:
    tokens = Tokens(store)
    tokens.issue("eve", "viewer", DAY)
    tokens.issue_first("ann", "admin", 5)
    with pytest.raises(ConflictError, match="is admin already: ask ann"):
        tokens.issue_first("bob", "admin", DAY)
    clock_of(store).sleep(5)
    second, _ = tokens.issue_first("bob", "admin", DAY)
    tokens.revoke(second.token)
    assert tokens.issue_first("cid", "admin", DAY)[0].who == "cid"


def test_a_secret_of_one_token_does_not_open_another(store: SqlStore) -> None:
    first, text = Tokens(store).issue("ann", "viewer", DAY)
    second, _ = Tokens(store).issue("bob", "admin", DAY)
    with pytest.raises(AccessError, match="nobody has issued"):
        Tokens(store).check(text.replace(first.token, second.token))


@pytest.fixture(scope="module")
def empty() -> Iterator[SqlStore]:
    store = SqlStore(None, VirtualClock())
    yield store
    store.close()


SECRET = "5ec2e7" * 10 + "abcd"


@given(
    st.one_of(
        st.text(),
        st.text(st.sampled_from("tf_0aAé\n")).map(lambda noise: noise + SECRET),
        st.sampled_from(["", "tf_", "tf__", "Tf_" + "0" * 16 + "_", "tf_" + "0" * 15 + "_"]).map(
            lambda start: start + SECRET
        ),
    )
)
@example(f"tf_{'0' * 16}_{SECRET}")
@example(f"tf_{'0' * 16}_{SECRET}\n")
@example(f"tf_{'0' * 16}_{SECRET.upper()}")
@examples(60)
def test_no_text_is_let_in_and_no_error_tells_a_secret(empty: SqlStore, text: str) -> None:
    with pytest.raises(AccessError) as refused:
        Tokens(empty).check(text)
    assert SECRET.lower() not in str(refused.value).lower()


# ---- the audit log -----------------------------------------------------------------------


def test_the_audit_log_is_read_in_pages_and_from_its_end(store: SqlStore) -> None:
    audit = Audit(store)
    for number in range(1, 8):
        who = "ann" if number % 2 else "bob"
        action = "retire" if number > 4 else "add"
        audit.add(who, "operator", action, f"device/{number % 3}", None, {"n": number}, "because")
    first = audit.page(limit=3)
    assert [one.number for one in first] == [1, 2, 3]
    assert [one.number for one in audit.page(after=3)] == [4, 5, 6, 7]
    assert [one.number for one in audit.newest(2)] == [7, 6]
    assert [one.number for one in audit.page(who="bob")] == [2, 4, 6]
    assert [one.number for one in audit.page(object="device/1")] == [1, 4, 7]
    assert [one.number for one in audit.page(after=4, who="ann", action="retire")] == [5, 7]
    assert first[0].at == NOW
    assert (first[0].who, first[0].role, first[0].action) == ("ann", "operator", "add")
    assert (first[0].before, first[0].after, first[0].why) == (None, {"n": 1}, "because")


CHANGES = {
    "sqlite": (
        "UPDATE audit SET who = 'nobody'",
        "DELETE FROM audit",
        "INSERT OR REPLACE INTO audit SELECT number, at, 'nobody', role, action, object, "
        "before, after, why FROM audit",
    ),
    "postgresql": (
        "UPDATE audit SET who = 'nobody'",
        "DELETE FROM audit",
        "INSERT INTO audit SELECT * FROM audit ON CONFLICT (number) DO UPDATE SET who = 'nobody'",
        "TRUNCATE audit",
    ),
}


def test_the_database_itself_refuses_to_change_the_audit_log(store: SqlStore) -> None:
    audit = Audit(store)
    audit.add("ann", "admin", "revoke", "token/1", None, None, "")
    before = audit.page()
    with store.reading() as connection:
        changes = CHANGES[connection.dialect.name]
    for change in changes:
        with pytest.raises(StoreError, match="audit log is append-only"), store.writing() as one:
            one.execute(sa.text(change))
        assert audit.page() == before
    audit.add("ann", "admin", "revoke", "token/2", None, None, "")
    assert len(audit.page()) == 2


def test_secrets_do_not_get_into_the_audit_log(store: SqlStore) -> None:
    _, text = Tokens(store).issue("ann", "viewer", DAY)
    secret = text.rpartition("_")[2]
    before = {"password": secret, "name": "cow", "logins": [{"Hash": secret, "site": "barn"}]}
    after = {"webhook-secret": [secret], "note": f"she has {text} now", "x": {"token": {"a": 1}}}
    Audit(store).add("ann", "admin", "rotate", "login/cow", before, after, f"lost {text}")
    with store.reading() as connection:
        assert secret not in str(connection.execute(sa.select(audit_table)).all())
    (entry,) = Audit(store).page()
    assert entry.before == {
        "password": "(secret)",
        "name": "cow",
        "logins": [{"Hash": "(secret)", "site": "barn"}],
    }
    assert entry.after["note"] == "she has (secret) now"
    assert entry.why == "lost (secret)"


JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
    max_leaves=10,
)


@given(JSON_VALUES, st.sampled_from(["password", "new_password", "SECRET", "api-token", "hash"]))
@examples(60)
def test_what_is_no_secret_stays_as_it_is(value: Any, name: str) -> None:
    assert without_secrets(value) == value
    hidden = without_secrets([{name: value, "site": value}])
    assert hidden == [{name: "(secret)", "site": value}]


@given(value=JSON_VALUES)
@examples(20, HealthCheck.function_scoped_fixture)
def test_any_json_value_comes_back_from_the_audit_log(store: SqlStore, value: Any) -> None:
    Audit(store).add("ann", "admin", "set", "x", value, [value], "")
    (entry,) = Audit(store).newest(1)
    assert (entry.before, entry.after) == (value, [value])


def test_an_entry_is_not_seen_before_those_with_lower_numbers(
    new_database: Callable[[str], str | None],
) -> None:
    """Who follows by numbers would never see one that turns up behind their back."""
    url = new_database("postgres")
    # What a thread reads within its own transaction is its own.
    store, others = (SqlStore(url, VirtualClock()) for _ in range(2))
    audit = Audit(others)
    row = dict.fromkeys(("who", "role", "action", "object", "why"), "slow")
    second = threading.Thread(target=audit.add, args=("ann", "", "", "", None, None, ""))
    waiting = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")

    def waits() -> bool:
        with others.reading() as connection:
            return bool(connection.execute(waiting).scalar())

    with store.writing() as connection:
        append(connection, audit_table, {**row, "at": NOW, "before": "null", "after": "null"})
        second.start()
        wait_until(lambda: waits() or not second.is_alive(), "the second to wait for the first")
        assert audit.page() == ()
    second.join()
    assert [one.who for one in audit.page()] == ["slow", "ann"]
    store.close()
    others.close()


# ---- requests that are sent again --------------------------------------------------------


def test_a_request_that_was_done_is_answered_as_it_was_then(store: SqlStore) -> None:
    requests = Idempotency(store)
    assert requests.begin("ann", "k", "digest") is None
    requests.finish("ann", "k", 201, json.dumps({"id": 7}))
    assert requests.begin("ann", "k", "digest") == Remembered(201, '{"id": 7}')
    assert requests.begin("bob", "k", "another") is None
    with pytest.raises(ConflictError, match="'k' was used for another request: send"):
        requests.begin("ann", "k", "another")


def test_a_request_that_is_being_worked_on_is_not_begun_again_for_a_minute(
    store: SqlStore,
) -> None:
    requests = Idempotency(store)
    assert requests.begin("ann", "k", "digest") is None
    clock_of(store).sleep(59)
    with pytest.raises(ConflictError, match="still being worked on"):
        requests.begin("ann", "k", "digest")
    clock_of(store).sleep(1)
    with pytest.raises(ConflictError, match="another request"):
        requests.begin("ann", "k", "another")
    assert requests.begin("ann", "k", "digest") is None
    with pytest.raises(ConflictError, match="still being worked on"):
        requests.begin("ann", "k", "digest")


def test_of_two_answers_the_first_is_remembered_and_the_other_undone(store: SqlStore) -> None:
    requests = Idempotency(store)
    requests.begin("ann", "k", "digest")
    clock_of(store).sleep(60)
    requests.begin("ann", "k", "digest")
    requests.finish("ann", "k", 200, "first")
    tokens = Tokens(store)

    def slower() -> None:
        with store.writing():
            tokens.issue("ann", "viewer", DAY)
            requests.finish("ann", "k", 200, "second")

    with pytest.raises(ConflictError, match="took too long and was begun again"):
        slower()
    assert tokens.list() == (), "what it did isn't done twice"
    assert requests.begin("ann", "k", "digest") == Remembered(200, "first")


def test_requests_are_forgotten_by_their_age(store: SqlStore) -> None:
    requests = Idempotency(store)
    requests.begin("ann", "old", "digest")
    requests.finish("ann", "old", 200, "done")
    clock_of(store).sleep(DAY)
    requests.begin("ann", "new", "digest")
    requests.finish("ann", "new", 200, "done")
    assert requests.forget_before(NOW + 1) == 1
    assert requests.begin("ann", "old", "another") is None
    assert requests.begin("ann", "new", "digest") == Remembered(200, "done")


@given(st.text(st.characters(codec="ascii", exclude_characters="\0")), st.integers(2, 5))
@examples(15, HealthCheck.function_scoped_fixture)
def test_of_many_at_once_exactly_one_gets_to_do_a_request(
    store: SqlStore, key: str, at_once: int
) -> None:
    requests = Idempotency(store)
    requests.forget_before(NOW + 1)
    barrier = threading.Barrier(at_once)
    got: list[object] = []

    def begin() -> None:
        barrier.wait()
        try:
            got.append(requests.begin("ann", key, "digest"))
        except ConflictError as error:
            got.append(error)

    callers = [threading.Thread(target=begin) for _ in range(at_once)]
    for one in callers:
        one.start()
    for one in callers:
        one.join()
    assert len(got) == at_once
    assert got.count(None) == 1
