"""Fleets of devices that learn together: protocol, gateways, aggregation, campaigns, commands."""
