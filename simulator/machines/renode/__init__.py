"""Boards in Renode: generated platforms, models of our own, several machines in one process."""
