"""Devices in virtual time: the firmware's own C, computing and talking as fast as the board would.

docs/design/simulator.md says how a fleet of them runs without a clock of the host.
"""
