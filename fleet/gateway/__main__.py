"""``python -m fleet.gateway --config FILE``: runs a gateway until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import gc
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from fleet.errors import FleetError
from fleet.gateway.config import GatewaySettings
from fleet.gateway.daemon import Gateway

# Allocations between two looks for garbage in circles, of which a gateway makes next to none; at
# Python's 700 it would look through the rows of ten thousand devices again and again.
ALLOCATIONS = 20_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a gateway; the exit code is 0 after a signal, 1 where it could not go on."""
    parser = argparse.ArgumentParser(
        prog="python -m fleet.gateway", description="The gateway of a site."
    )
    parser.add_argument("--config", type=Path, required=True, help="TOML file")
    options = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    gc.set_threshold(ALLOCATIONS)
    try:
        gateway = Gateway(GatewaySettings.read(options.config))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: gateway.stop())
        gateway.run()
    except FleetError as error:
        print(f"gateway: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
