"""No two answers about overlapping sets of a round, whatever is asked in which order, or killed."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fleet.errors import MaskRefusedError
from fleet.protocol.mask_requests import MaskRequest
from fleet.protocol.masking import Words
from fleet.unmasker import LocalUnmasker, UnmaskerStore
from fleet.unmasker import unmasker as unmasker_module
from tests.conftest import examples
from tests.fleet.unmasker.herd import FLEET, PARAMETERS, PRIVATE, PUBLIC, Cow, asked, blank

HERD = [Cow(f"cow-{number}") for number in range(7)]
LEAST = 2


def opened(path: Path) -> LocalUnmasker:
    return LocalUnmasker(PRIVATE, FLEET, UnmaskerStore(path), LEAST)


@contextmanager
def fresh(path: Path) -> Iterator[LocalUnmasker]:
    unmasker = opened(path)
    if not unmasker.store.devices():
        unmasker.store.enrol([cow.enrolment() for cow in HERD], FLEET, 0.0)
    try:
        yield unmasker
    finally:
        unmasker.store.close()


def asked_of(unmasker: LocalUnmasker, request: MaskRequest) -> tuple[str, Words | None]:
    """Its answer, or the kind of its refusal."""
    try:
        return "answer", unmasker.masks(request)
    except MaskRefusedError as error:
        return error.kind, None


@dataclass
class Answers:
    """All that an unmasker has ever told."""

    given: list[tuple[MaskRequest, Words]] = field(default_factory=list)

    def add(self, request: MaskRequest, masks: Words) -> None:
        """Raises where it is another answer about a set with one of these devices."""
        names = {one.device for one in request.members}
        for other, told in self.given:
            if (other.campaign, other.round) != (request.campaign, request.round):
                continue
            if names & {one.device for one in other.members}:
                assert other == request
                assert np.array_equal(told, masks)
        self.given.append((request, masks))


CAMPAIGNS = (bytes(8), b"campaign")
PLANS = (bytes(32), bytes(range(32)))
SOME = st.sets(st.sampled_from(HERD), min_size=1).map(
    lambda found: sorted(found, key=lambda c: c.name)
)
WHAT = st.builds(
    lambda campaign, number, plan, noise: blank(
        campaign=campaign,
        round=number,
        plan=plan,
        parameters=replace(PARAMETERS, noise_variance=noise),
    ),
    *(
        st.sampled_from(CAMPAIGNS),
        st.integers(1, 2),
        st.sampled_from(PLANS),
        st.sampled_from((0, 9)),
    ),
)


class AskedInAnyOrder(RuleBasedStateMachine):
    """A coordinator that tries what it can against a model of what it may get."""

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name, "unmasker.sqlite")
        self.unmasker = opened(self.path)
        self.unmasker.store.enrol([cow.enrolment() for cow in HERD], FLEET, 0.0)
        self.answers = Answers()
        self.taken: dict[tuple[bytes, int, str], bytes] = {}
        self.revoked: set[str] = set()
        self.sent: list[MaskRequest] = []

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.unmasker.store.close()
            self.folder.cleanup()

    def wanted(self, request: MaskRequest, broken: bool) -> str:
        names = [one.device for one in request.members]
        keys = [(request.campaign, request.round, name) for name in names]
        if len(names) < max(LEAST, request.parameters.least_devices):
            return "too-few"
        before = {self.taken.get(key) for key in keys}
        if before == {request.digest()}:
            return "answer"
        if before != {None}:
            return "overlap"
        if self.revoked & set(names):
            return "unknown-device"
        return "broken-seal" if broken else "answer"

    def ask(self, request: MaskRequest, broken: bool = False) -> None:
        wanted = self.wanted(request, broken)
        kind, masks = asked_of(self.unmasker, request)
        assert kind == wanted
        if masks is None:
            return
        self.answers.add(request, masks)
        for one in request.members:
            self.taken[request.campaign, request.round, one.device] = request.digest()

    @rule(cows=SOME, of=WHAT, time=st.integers(0, 1))
    def a_set(self, cows: list[Cow], of: MaskRequest, time: int) -> None:
        request, _ = asked(cows, of, PUBLIC, time)
        self.sent.append(request)
        self.ask(request)

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def one_of_before(self, data: st.DataObject) -> None:
        self.ask(data.draw(st.sampled_from(self.sent)))

    @precondition(lambda self: self.answers.given)
    @rule(data=st.data())
    def less_one_or_with_another(self, data: st.DataObject) -> None:
        """The oldest attack: the sums of S and of S without i give i away."""
        request, _ = data.draw(st.sampled_from(self.answers.given))
        members = list(request.members)
        at = data.draw(st.integers(0, len(members) - 1))
        self.ask(
            replace(request, members=(*members[:at], *members[at + 1 :]))
            if len(members) > 1
            else request
        )
        names = {one.device for one in members}
        others = [cow for cow in HERD if cow.name not in names]
        if others:
            more, _ = asked([data.draw(st.sampled_from(others))], request, PUBLIC)
            both = sorted((*members, *more.members), key=lambda one: one.device)
            self.ask(replace(request, members=tuple(both)))

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def seals_of_elsewhere(self, data: st.DataObject) -> None:
        """Of another round, other parameters, or turned among devices."""
        request = data.draw(st.sampled_from(self.sent))
        other = data.draw(WHAT)
        if (other.campaign, other.round, other.plan, other.parameters) != (
            *(request.campaign, request.round, request.plan, request.parameters),
        ):
            self.ask(replace(other, members=request.members), broken=True)
        if len(request.members) > 1:
            first, second, *rest = request.members
            turned = (replace(first, seal=second.seal), replace(second, seal=first.seal), *rest)
            self.ask(replace(request, members=turned), broken=True)

    @rule(cow=st.sampled_from(HERD))
    def revoke(self, cow: Cow) -> None:
        self.unmasker.store.revoke(cow.name, 1.0)
        self.revoked.add(cow.name)

    @rule(cow=st.sampled_from(HERD))
    def enrol(self, cow: Cow) -> None:
        self.unmasker.store.enrol([cow.enrolment()], FLEET, 2.0, replace=True)
        self.revoked.discard(cow.name)

    @rule()
    def start_again(self) -> None:
        self.unmasker.store.close()
        self.unmasker = opened(self.path)

    @invariant()
    def what_is_recorded_is_what_was_told(self) -> None:
        if not hasattr(self, "unmasker"):
            return
        told = {
            (one.campaign, one.round, member.device)
            for one, _ in self.answers.given
            for member in one.members
        }
        sets = self.unmasker.store.sets()
        assert {(one.campaign, one.round, name) for one in sets for name in one.devices} == told


def test_no_order_of_requests_gets_two_answers_about_one_device_of_a_round() -> None:
    run_state_machine_as_test(AskedInAnyOrder, settings=examples(20))


def told_elsewhere(path: Path, request: MaskRequest) -> tuple[str, Words | None]:
    """The same of an unmasker of its own, in whatever process this is."""
    with fresh(path) as unmasker:
        return asked_of(unmasker, request)


def test_of_overlapping_sets_asked_at_once_of_two_processes_one_is_answered(tmp_path: Path) -> None:
    path = tmp_path / "unmasker.sqlite"
    with fresh(path):
        pass
    requests = 4 * [asked([HERD[0], HERD[at]], blank(), PUBLIC)[0] for at in range(1, 7)]
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        told = list(pool.map(told_elsewhere, [path] * len(requests), requests))
    answers = Answers()
    for request, (kind, masks) in zip(requests, told, strict=True):
        assert kind == ("overlap" if masks is None else "answer")
        if masks is not None:
            answers.add(request, masks)
    assert len(answers.given) == 4, "the one that was first, as often as it is asked"
    assert len({request for request, _ in answers.given}) == 1


def crashed(path: Path, to: Path) -> Path:
    """The files of a store as a process leaves them that is killed now."""
    to.mkdir(exist_ok=True)
    for one in path.parent.glob(path.name + "*"):
        if not one.name.endswith("-shm"):  # memory that the processes share
            shutil.copy(one, to / one.name)
    return to / path.name


def test_a_set_is_on_disk_before_its_masks_are_added_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "unmasker.sqlite"
    request, _ = asked(HERD[:4], blank(), PUBLIC)
    snapshots: list[Path] = []
    add_up = unmasker_module.sum_of_streams

    def watched(seeds: list[bytes], values: int, bits: int) -> Words:
        snapshots.append(crashed(path, tmp_path / f"killed-{len(snapshots)}"))
        return add_up(seeds, values, bits)

    monkeypatch.setattr(unmasker_module, "sum_of_streams", watched)
    with fresh(path) as unmasker:
        answer = unmasker.masks(request)
    (snapshot,) = snapshots
    with fresh(snapshot) as unmasker:
        with pytest.raises(MaskRefusedError, match="overlap"):
            unmasker.masks(asked(HERD[1:5], blank(), PUBLIC)[0])
        assert np.array_equal(unmasker.masks(request), answer)


def test_killed_at_any_statement_it_has_a_set_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "unmasker.sqlite"
    request, _ = asked(HERD[:4], blank(), PUBLIC)
    snapshots: list[tuple[str, Path]] = []
    with fresh(path) as unmasker:
        db = unmasker.store._db
        assert db.execute("PRAGMA synchronous").fetchone() == (2,), (
            "FULL: a power cut loses nothing"
        )

        def look(statement: str) -> None:
            snapshots.append((statement, crashed(path, tmp_path / f"killed-{len(snapshots)}")))

        db.set_trace_callback(look)
        answer = unmasker.masks(request)
        db.set_trace_callback(None)
    statements = [statement for statement, _ in snapshots]
    assert sum("INSERT INTO members" in one for one in statements) == 4
    assert statements[-1] == "COMMIT"
    for _, snapshot in snapshots:
        with fresh(snapshot) as unmasker:
            assert unmasker.store.sets() == [], "nothing was told yet"
            # What was begun leaves nothing behind: another set may be first.
            other, _ = asked(HERD[2:], blank(), PUBLIC)
            unmasker.masks(other)
            with pytest.raises(MaskRefusedError, match="overlap"):
                unmasker.masks(request)
    with fresh(path) as unmasker:
        assert np.array_equal(unmasker.masks(request), answer)


_KILLED = """
import os, signal, sys
from pathlib import Path
from fleet.unmasker import unmasker
from tests.fleet.unmasker import herd, test_once
def kill(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "before":
    unmasker.UnmaskerStore.record = kill
else:
    unmasker.sum_of_streams = kill
request, _ = herd.asked(test_once.HERD[:4], herd.blank(), herd.PUBLIC)
test_once.opened(Path(sys.argv[1])).masks(request)
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_process_killed_before_and_after_the_record_answers_one_set_in_the_end(
    tmp_path: Path, when: str
) -> None:
    path = tmp_path / "unmasker.sqlite"
    with fresh(path):
        pass
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(path), when], check=False)
    assert killed.returncode == -signal.SIGKILL
    answers = Answers()
    requests = [asked(cows, blank(), PUBLIC)[0] for cows in (HERD[:3], HERD[:4], HERD[:5])]
    with fresh(path) as unmasker:
        for request in (*requests, *requests):
            kind, masks = asked_of(unmasker, request)
            assert kind == ("overlap" if masks is None else "answer")
            if masks is not None:
                answers.add(request, masks)
    # The set that was recorded, or the first that was asked for where none was.
    assert {request for request, _ in answers.given} == {requests[when == "after"]}
    assert len(answers.given) == 2
