"""Options of `tinyfleet` that its own commands and those of other packages have in common."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print facts as JSON, for programs.")]
