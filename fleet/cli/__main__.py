"""``python -m fleet.cli``: the `tinyfleet` command."""

from fleet.cli import main

main()
