"""Campaigns of a whole deployment with thousands of devices: what a round takes beside training."""
