"""Who is in which stage, and what gates make of a stage's rounds."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fleet.campaign import CampaignConfig, deal_stages
from fleet.campaign.config import Stage
from fleet.campaign.gates import DeviceScore, FailureGate, Outcome, ScoreGate, Verdict
from fleet.campaign.stages import (
    NO_REPORT,
    evidence_of,
    failed_early,
    failures,
    judge_stage,
    paired_scores,
    together,
)

NAMES = st.text("abcdef", min_size=1, max_size=5)
FLEETS = st.dictionaries(NAMES, st.sampled_from(["g1/a", "g1/b", "g2/a"]), max_size=60)
SHARES = st.lists(st.floats(0.01, 1.0), min_size=1, max_size=4).map(sorted)
SEEDS = st.integers(0, 2**32 - 1)


def config(shares: Sequence[float], seed: int = 0) -> CampaignConfig:
    stages = tuple(Stage(name=f"s{index}", share=one) for index, one in enumerate(shares))
    return CampaignConfig(name="test", seed=seed, stages=stages)


def size(share: float, devices: int) -> int:
    return math.ceil(share * devices - 1e-9)


def up_to(dealt: dict[str, int], stage: int) -> set[str]:
    return {name for name, first in dealt.items() if first <= stage}


# ---- dealing -----------------------------------------------------------------------------


@given(FLEETS, SHARES, SEEDS)
def test_stages_have_their_shares_and_each_holds_those_before(
    strata: dict[str, str], shares: list[float], seed: int
) -> None:
    dealt = deal_stages(config(shares, seed), strata, {})
    assert dealt.keys() <= strata.keys()
    for stage, share in enumerate(shares):
        assert len(up_to(dealt, stage)) == size(share, len(strata))


@given(FLEETS, SHARES, SEEDS)
def test_a_stage_has_its_share_of_every_stratum_within_one(
    strata: dict[str, str], shares: list[float], seed: int
) -> None:
    dealt = deal_stages(config(shares, seed), strata, {})
    members = Counter(strata.values())
    for stage in range(len(shares)):
        names = up_to(dealt, stage)
        reached = Counter(strata[name] for name in names)
        for stratum, count in members.items():
            fair = count * len(names) / len(strata)
            assert abs(reached[stratum] - fair) <= 1


@given(FLEETS, SHARES, SEEDS)
def test_stages_do_not_depend_on_the_order_in_which_devices_are_known(
    strata: dict[str, str], shares: list[float], seed: int
) -> None:
    shuffled = list(strata.items())
    random.Random(seed).shuffle(shuffled)
    of = config(shares, seed)
    assert deal_stages(of, dict(shuffled), {}) == deal_stages(of, strata, {})


@given(FLEETS, FLEETS, SHARES, SEEDS)
def test_known_members_keep_their_stage_and_joiners_bring_stages_to_their_share(
    first: dict[str, str], joining: dict[str, str], shares: list[float], seed: int
) -> None:
    of = config(shares, seed)
    known = deal_stages(of, first, {})
    everybody = {**joining, **first}
    dealt = deal_stages(of, everybody, known)
    assert {name: dealt[name] for name in known} == known
    for stage, share in enumerate(shares):
        # Whoever came since fills the stages before, though this one may be full already.
        over = len(up_to(dealt, stage)) - size(share, len(everybody))
        assert 0 <= over <= stage
    assert deal_stages(of, everybody, dealt) == dealt


@given(FLEETS, SHARES, SEEDS)
@example({"ad": "g1/a", "d": "g1/a", "e": "g1/a"}, [0.3, 0.5], 0)
def test_a_stage_keeps_those_that_are_left_where_others_leave(
    strata: dict[str, str], shares: list[float], seed: int
) -> None:
    of = config(shares, seed)
    known = deal_stages(of, strata, {})
    left = {name: stratum for name, stratum in strata.items() if name > "c"}
    dealt = deal_stages(of, left, known)
    assert dealt.keys() <= left.keys()
    assert all(dealt[name] == known[name] for name in dealt.keys() & known.keys())
    # Nobody who is there already comes into an earlier stage, since it hasn't the scores of before.
    assert up_to(dealt, 0) >= up_to(known, 0) & left.keys()
    # Whoever fills an earlier stage comes on top of those that stay in later ones.
    over = len(dealt) - max(len(known.keys() & left.keys()), size(shares[-1], len(left)))
    assert 0 <= over < len(shares)


def test_numbers_of_devices_and_shares_may_follow_each_other() -> None:
    strata = {f"d{number}": "g/a" for number in range(10)}
    stages = (Stage(name="a", devices=3), Stage(name="b", share=0.2), Stage(name="c", devices=99))
    dealt = deal_stages(CampaignConfig(name="test", stages=stages), strata, {})
    assert Counter(dealt.values()) == {0: 3, 2: 7}


def test_seeds_draw_different_canaries() -> None:
    strata = {f"d{number}": "g/a" for number in range(40)}
    drawn = {frozenset(up_to(deal_stages(config([0.1], seed), strata, {}), 0)) for seed in range(9)}
    assert len(drawn) > 5


# ---- scores ------------------------------------------------------------------------------


def report(device: str, held_out: int | None, correct: int) -> dict[str, Any]:
    return {"device": device, "held_out": held_out, "correct_before": correct}


def test_scores_are_of_devices_that_report_in_both_rounds() -> None:
    before = [report("a", 10, 9), report("b", 10, 9), report("c", 0, 0), report("d", 10, 1)]
    after = [report("a", 10, 7), report("c", 10, 9), report("d", 0, 0), report("e", 10, 9)]
    after.append(report("f", None, 0))
    assert paired_scores(before, after, {"a": {"board": "x"}}) == [
        DeviceScore("a", 10, 9, 7, {"board": "x"})
    ]


def test_a_device_that_logged_samples_meanwhile_counts_with_its_share() -> None:
    (found,) = paired_scores([report("a", 10, 5)], [report("a", 20, 12)], {})
    assert (found.held_out, found.correct_before, found.correct_after) == (20, 10, 12)
    assert found.change == pytest.approx(0.1)


# ---- failures ----------------------------------------------------------------------------


def result(asked: int, accepted: int, wanted: int | None = None, **fields: Any) -> dict[str, Any]:
    """A round's result, in which those that aren't named were silent."""
    named: dict[str, str] = fields.pop("failed", {})
    silent = asked - accepted - len(named)
    failed = {**{f"silent-{number}": NO_REPORT for number in range(silent)}, **named}
    return {
        "asked": asked,
        "accepted": accepted,
        "wanted": asked if wanted is None else wanted,
        "failed": failed,
        **fields,
    }


def test_failures_are_counted_by_reason_and_silence_is_one() -> None:
    found = result(10, 6, failed={"a": "crc", "b": "score dropped"}, declined={"score dropped": 1})
    assert failures(found) == {"crc": 1, "score dropped": 1, NO_REPORT: 2}
    assert failures(result(5, 5)) == {}


def test_silence_is_no_failure_where_as_many_delivered_as_were_wanted() -> None:
    assert failures(result(10, 5, wanted=5)) == {}
    assert failures(result(10, 5, wanted=5, failed={"a": "crc"})) == {"crc": 1}
    assert failures(result(10, 4, wanted=5)) == {NO_REPORT: 6}


def test_devices_that_declined_and_are_too_many_to_be_named_count_with_their_reason() -> None:
    found = result(1000, 100, failed={"a": "flash"}, declined={"flash": 700, "battery": 100})
    assert failures(found) == {"flash": 700, "battery": 100, NO_REPORT: 100}


@given(
    st.integers(0, 50),
    st.integers(0, 50),
    st.integers(0, 50),
    st.dictionaries(st.sampled_from(["crc", "flash", NO_REPORT]), st.integers(0, 2**63 - 1)),
)
def test_whatever_gateways_count_no_more_fail_than_were_asked(
    accepted: int, silent: int, wanted: int, declined: dict[str, int]
) -> None:
    found = result(accepted + silent, accepted, wanted, declined=declined)
    assert sum(failures(found).values()) <= silent
    stage = Stage(name="s", share=1.0, gates=(FailureGate(),))
    (verdict,) = judge_stage(stage, evidence_of(found))
    assert (failed_early(stage, evidence_of(found)) is None) is (
        verdict.outcome is not Outcome.FAIL
    )


# ---- verdicts ----------------------------------------------------------------------------


def scores(devices: int, before: int, after: int) -> list[DeviceScore]:
    return [DeviceScore(f"d{number}", 1000, before, after, {}) for number in range(devices)]


def test_each_gate_of_a_stage_has_its_verdict() -> None:
    stage = Stage(name="s", share=1.0, gates=(ScoreGate(), FailureGate(most=0.3), ScoreGate()))
    verdicts = judge_stage(stage, evidence_of(result(50, 49), scores(50, 900, 500)))
    assert [one.outcome for one in verdicts] == [Outcome.FAIL, Outcome.PASS, Outcome.FAIL]
    assert judge_stage(Stage(name="s", share=1.0), evidence_of(result(1, 0))) == []


def test_only_failures_that_a_gate_counts_end_a_stage_early() -> None:
    found = result(20, 5, failed={"a": "flash"})
    strict = FailureGate(most=0.1)
    of_flash = FailureGate(most=0.1, classes=("flash",))
    assert (
        failed_early(Stage(name="s", share=1.0, gates=(ScoreGate(), of_flash)), evidence_of(found))
        is None
    )
    verdict = failed_early(Stage(name="s", share=1.0, gates=(of_flash, strict)), evidence_of(found))
    assert verdict is not None
    assert "15 of 20 devices failed (flash 1, no-report 14)" in verdict.reason


def test_stragglers_do_not_dilute_the_share_of_those_that_failed() -> None:
    found = result(100, 10, wanted=10, failed={f"d{number}": "crc" for number in range(10)})
    verdict = failed_early(
        Stage(name="s", share=1.0, gates=(FailureGate(most=0.15),)), evidence_of(found)
    )
    assert verdict is not None
    assert "10 of 20 devices failed" in verdict.reason


@pytest.mark.parametrize("outcomes", list(itertools.product(Outcome, repeat=2)))
def test_the_worst_verdict_is_that_of_all(outcomes: tuple[Outcome, ...]) -> None:
    worst = [Outcome.FAIL, Outcome.TOO_LITTLE_EVIDENCE, Outcome.PASS]
    verdicts = [Verdict(one, "", ()) for one in outcomes]
    assert together(verdicts) is min(outcomes, key=worst.index)
    assert together([]) is Outcome.PASS
