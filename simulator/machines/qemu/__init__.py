"""Boards of Arm in QEMU."""
