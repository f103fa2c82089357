"""Whatever the API's document allows, and much that it doesn't, is answered as it says."""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import HealthCheck
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from fleet.store import SqlStore
from tests.conftest import examples
from tests.fleet.service.conftest import make_site
from tests.patience import PATIENCE_SECONDS

SITE = make_site(SqlStore())
SCHEMA = schemathesis.openapi.from_dict(SITE.app.openapi())
SCHEMA.app = SITE.app


@SCHEMA.parametrize()
@examples(6, HealthCheck.filter_too_much)
def test_every_answer_is_one_that_the_document_has(case: Any) -> None:
    # No schema says what CEL is, or an address, or that a model is known: 422 is documented.
    excluded = [positive_data_acceptance]
    if case.method == "GET":
        # Parameters of queries that nobody knows are of no matter.
        excluded.append(negative_data_rejection)
    if case.path == "/v1/events":
        # It would never end.
        case.query = {**(case.query or {}), "follow": "false"}
    case.call_and_validate(
        headers=SITE.headers("admin"), excluded_checks=excluded, timeout=PATIENCE_SECONDS
    )
