"""The physical world around the firmware: boards, power, links, samples in flash.

Nothing in here stands in for device code: the machines run the same image that ships.
"""
