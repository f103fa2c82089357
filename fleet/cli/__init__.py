"""The `tinyfleet` command.

Exit codes: 0 done, 1 refused or failed (one message on stderr says what and what to do), 2 the
command was called wrongly, 130 interrupted. Each command imports what it needs when it runs, so
that `tinyfleet --help` is quick.
"""

from fleet.cli._app import app, main

__all__ = ["app", "main"]
