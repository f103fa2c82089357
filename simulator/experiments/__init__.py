"""Experiments: fleets in virtual time, and what researchers ask of them.

Below the two seams of time and transport all is what runs live: gateways' logic and stores, round
machine, campaigns' driver, aggregation, and on devices the firmware's own C.
"""
