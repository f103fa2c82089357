"""Differential privacy, as logic: noise, what it costs, how deltas are clipped."""
