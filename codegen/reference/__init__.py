"""Slow oracles of what programs compute: in integers, bit for bit, and in real numbers."""
