"""The page of operators says what the importer's table says."""

from pathlib import Path

from codegen.importer.handlers import HANDLERS, REMEDIES
from codegen.importer.operator_page import PAGE, page
from codegen.operators import OPERATORS

ROOT = Path(__file__).parents[3]


def test_the_page_of_operators_is_that_of_the_table() -> None:
    written = (ROOT / PAGE).read_text("utf-8")
    assert written == page(), "python -m codegen.importer.operator_page writes the page anew"


def test_an_operator_is_read_in_one_way_or_refused() -> None:
    assert not HANDLERS.keys() & REMEDIES.keys()
    for operator in OPERATORS:
        for name, handler in operator.handlers.items():
            assert HANDLERS[name] is handler, name
