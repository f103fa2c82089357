"""What a service begins with where its store is new and nobody is there to tell it.

In containers the database comes into being after the secrets, and the service is the first that
speaks to it.
"""

from __future__ import annotations

import logging

from fleet.coordinator.settings import BootstrapSettings, first_line
from fleet.store import Audit, Gateways, SqlStore, Tokens

logger = logging.getLogger(__name__)

ADMIN = "admin"
ADMIN_DAYS = 3650.0
ACTION = "service.bootstrap"


def bootstrap(store: SqlStore, settings: BootstrapSettings) -> None:
    """Add what the store lacks; what it has, and what was taken away, stays as it is.

    Raises `ConfigurationError` where the token can't be used.
    """
    with store.writing():
        gateways, audit = Gateways(store), Audit(store)
        known = gateways.sites()
        for gateway, site in settings.gateways.items():
            if gateway not in known:
                gateways.add(gateway, site)
                audit.add(ADMIN, "", ACTION, f"gateway:{gateway}", None, {"site": site}, "")
                logger.info("gateway %s at site %s is new", gateway, site)
        if settings.token_file is not None:
            text = first_line(settings.token_file, "token_file")
            token = Tokens(store).adopt_first(text, ADMIN, "admin", ADMIN_DAYS * 86_400)
            if token is not None:
                after = {"who": token.who, "role": token.role}
                audit.add(ADMIN, "", ACTION, f"token:{token.token}", None, after, "")
                logger.info("the first administrator's token is %s", token.token)
