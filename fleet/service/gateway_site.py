"""A gateway with its SuperNode: what runs at a site."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from fleet.coordinator.gateway_keys import check_key
from fleet.coordinator.superlink import supernode_of, trusting
from fleet.errors import ConfigurationError, FleetError
from fleet.gateway.config import GatewaySettings
from fleet.gateway.daemon import Gateway

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
RESTART_SECONDS = 10.0
"""A SuperNode that was killed isn't let in again before its SuperLink has noticed: there is no
hurry."""


class GatewaySite:
    """The gateway's daemon in this process, and a SuperNode beside it that is kept running."""

    def __init__(self, path: Path) -> None:
        """`path` is the gateway's configuration. Nothing is started yet."""
        settings = GatewaySettings.read(path)
        if not settings.superlink:
            raise ConfigurationError(
                f"{path}: superlink is missing: the HOST:PORT that the coordinator's SuperLink "
                "listens on"
            )
        self.gateway = settings.gateway
        if settings.superlink_ca is not None:
            trusting(settings.superlink_ca)
        if settings.superlink_key is not None:
            check_key(settings.superlink_key)
        self._gateway = Gateway(settings)
        self._node = supernode_of(settings)
        self._stopping = threading.Event()

    def run(self) -> None:
        """Until `stop`; raises what makes it impossible to go on."""
        keeper = threading.Thread(target=self._keep_node, name="supernode", daemon=True)
        keeper.start()
        try:
            self._gateway.run()
        finally:
            self._stopping.set()
            keeper.join()

    def stop(self) -> None:
        """End `run` soon; safe from signal handlers."""
        self._stopping.set()
        self._gateway.stop()

    def _keep_node(self) -> None:
        wait = 0.0
        while not self._stopping.wait(wait):
            try:
                if not self._node.alive():
                    self._node.start()
                    logger.info("SuperNode runs, its log is %s", self._node.log_file)
                    wait = RESTART_SECONDS
                else:
                    wait = LOOK_SECONDS
            except FleetError as error:
                logger.error("%s", error)
                wait = RESTART_SECONDS
        self._node.stop()
