"""Attacks on what devices send, and what masks and noise leave of them."""
