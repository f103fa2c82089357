"""A search for faults of the whole system: small fleets to which everything happens at once.

The idea is TigerBeetle's simulator. docs/howto/search-for-faults.md says how it is used.
"""
