"""The same rounds as a Flower `Strategy`, for people who know Flower.

`flwr run` on the app with `mode="strategy"` runs Flower's own loop, `Strategy.start`. Each
gateway gets one message per round, whose ClientApp waits at the gateway for the round's end,
so a SuperNode is busy for as long; campaigns don't do that, and resume after a crash, which
`Strategy.start` doesn't.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import cbor2
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fleet.campaign import (
    CampaignConfig,
    RoundKind,
    RoundOutcome,
    RoundPlan,
    Step,
    start_request,
)
from fleet.campaign.answers import CollectAnswer
from fleet.coordinator.closing import close_round, parts_of_gateway
from fleet.coordinator.creation import new_campaign
from fleet.coordinator.driver import CampaignDriver
from fleet.coordinator.flower_adapter import GridTransport
from fleet.coordinator.gateway_call import RECORD
from fleet.coordinator.key_holders import KeyHolders
from fleet.coordinator.transport import read_replies
from fleet.errors import AnswerError, CampaignError
from fleet.protocol.manifest import Manifest
from fleet.store import SqlStore, WeightsVersion

logger = logging.getLogger(__name__)

MASTER = "master"


class TinyfleetStrategy(Strategy):
    """Sends sparse tasks to gateways and averages their integer sums exactly.

    The arrays of Flower's loop are one float64 vector, `master`: the weights in integer
    steps. Rounds, reports and versions go into the store, as those of a campaign do.
    """

    def __init__(
        self, store: SqlStore, campaign: str, protection: KeyHolders | None = None
    ) -> None:
        """`campaign` is in the store and belongs to this strategy from now on; `protection` has
        what tasks are signed with."""
        self._store = store
        self._holders = protection or KeyHolders()
        self._campaign = campaign
        self._driver = f"strategy-{uuid.uuid4().hex}"
        record = store.claim(campaign, self._driver)
        self._config = CampaignConfig.parse(record.config)
        self._manifests = {
            bundle: Manifest.parse(text) for bundle, text in store.manifests(campaign).items()
        }
        if self._config.asynchronous:
            raise CampaignError(
                "asynchronous: a strategy of Flower has whole rounds; use `tinyfleet serve`"
            )
        if self._config.kind == "personalize":
            raise CampaignError(
                "personalize: a strategy of Flower has no rounds in which devices choose; use "
                "`tinyfleet serve`"
            )
        if self._config.masking is not None:
            raise CampaignError(
                "coding masked: a strategy of Flower asks no unmasker; use `tinyfleet serve`"
            )
        self._plan: RoundPlan | None = None
        self._version: WeightsVersion = store.latest_weights(campaign)

    def initial_arrays(self) -> ArrayRecord:
        """The newest weights of the campaign, for `start`."""
        return self._arrays()

    def _arrays(self) -> ArrayRecord:
        master = np.frombuffer(self._version.master, "<f8").copy()
        return ArrayRecord({MASTER: Array(master)})

    def summary(self) -> None:
        """Log what is going to happen."""
        logger.info(
            "campaign %s: %d bundles, %d coordinates",
            self._campaign,
            len(self._manifests),
            next(iter(self._manifests.values())).coordinates,
            extra={"campaign": self._campaign},
        )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One `train.sync` per gateway, which answers when its round is closed."""
        transport = GridTransport(grid)
        planner = CampaignDriver(
            self._store,
            self._campaign,
            transport,
            driver=self._driver,
            protection=self._holders,
        ).planner
        step = Step(server_round, RoundKind.TRAIN, 0, server_round)
        members = planner.wait_for_devices(step)
        if members is None:
            return []
        nodes = transport.nodes()
        plan = planner.plan(step, self._version.sha256, members)
        self._store.begin_round(
            self._campaign, self._driver, server_round, plan.kind.value, plan.to_json()
        )
        self._plan = plan
        messages = []
        for gateway in plan.gateways():
            fields = start_request(
                self._config,
                self._campaign,
                plan,
                gateway,
                self._manifests,
                {self._version.sha256: self._version.blob},
                self._holders.keys,
            )
            wait = plan.seconds(self._config.deadline_seconds) + 5.0
            # One message is all of a gateway's round here.
            payload = cbor2.dumps({"starts": [fields], "wait_seconds": wait, "all_pages": True})
            messages.append(
                Message(
                    RecordDict({RECORD: ConfigRecord({"payload": payload})}),
                    dst_node_id=nodes[gateway],
                    message_type="train.sync",
                    ttl=wait + self._config.gateway_grace_seconds,
                )
            )
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """New master weights, and what the round's result has as figures."""
        if self._plan is None:
            return None, None
        answers: dict[str, CollectAnswer] = {}
        for message in replies:
            if message.has_error():
                logger.warning("a gateway failed: %s", message.error.reason)
                continue
            payload = message.content.config_records[RECORD]["payload"]
            data = cbor2.loads(payload) if isinstance(payload, bytes) else {}
            gateway = str(data.get("gateway"))
            read = read_replies(gateway, data)
            answer = next((one.collected for one in read if one.collected), None)
            if answer is None or answer.state != "closed" or answer.more:
                errors = [one.error for one in read if one.error] or [str(data.get("error"))]
                said = errors[0] or (answer and answer.state)
                about = {"campaign": self._campaign, "gateway": gateway}
                logger.warning("gateway %s is left out: %s", gateway, said, extra=about)
                continue
            try:
                parts_of_gateway(self._config, self._manifests, self._plan, gateway, answer)
            except AnswerError as error:
                about = {"campaign": self._campaign, "gateway": gateway}
                logger.warning("gateway %s is left out: %s", gateway, error, extra=about)
                continue
            answers[gateway] = answer
        lost = {
            gateway: "no usable answer"
            for gateway in self._plan.gateways()
            if gateway not in answers
        }
        outcome = RoundOutcome(answers, lost, cancelled=False)
        result = close_round(
            self._store,
            self._campaign,
            self._driver,
            self._config,
            self._manifests,
            self._plan,
            outcome,
            self._version,
        )
        self._version = self._store.latest_weights(self._campaign)
        return self._arrays(), MetricRecord(_figures(result))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Nothing: devices score themselves before and after they train."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Nothing, see `configure_evaluate`."""
        return None

    def finish(self) -> None:
        """Mark the campaign as finished in the store."""
        self._store.end_campaign(self._campaign, self._driver, "finished")


def _figures(result: Mapping[str, Any]) -> dict[str, int | float | list[int] | list[float]]:
    names = (
        "accepted",
        "late",
        "duplicate",
        "asked",
        "changed_values",
        "median_accuracy_before",
        "median_accuracy_after",
    )
    return {name: result[name] for name in names if isinstance(result.get(name), int | float)}


def run_strategy(
    grid: Grid,
    store: SqlStore,
    campaign: str,
    rounds: int,
    protection: KeyHolders | None = None,
) -> Result:
    """Run `Strategy.start` over the bundles and configuration of a stored campaign.

    `protection` has what tasks are signed with. The rounds go into a campaign of their own, a copy
    of the one named, so that a campaign can be tried in both ways.
    """
    config = CampaignConfig.parse(store.campaign(campaign).config)
    copy = new_campaign(
        store,
        config.model_copy(update={"rounds": rounds}),
        store.manifests(campaign),
        store.weights(campaign, 0).blob,
    )
    strategy = TinyfleetStrategy(store, copy, protection)
    result = strategy.start(grid, strategy.initial_arrays(), num_rounds=rounds)
    strategy.finish()
    logger.info("the rounds are in the store as campaign %s", copy, extra={"campaign": copy})
    return result
