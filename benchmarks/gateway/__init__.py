"""Thousands of connected devices at one gateway: how fast, at what cost, and is nothing lost."""
