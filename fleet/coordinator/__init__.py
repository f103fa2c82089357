"""Drives a stored campaign through Flower; nothing is imported here, ClientApps are short."""
