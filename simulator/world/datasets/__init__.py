"""Data sets by name, as entry points of the group `tinyfleet.datasets`."""
