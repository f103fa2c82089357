"""What can go wrong when sums become weights.

    AggregationError
    ├── BlobError   a weights blob doesn't fit the manifest's tensors
    └── SumError    a gateway's sum doesn't fit its plan, or would leave the exact range
"""


class AggregationError(Exception):
    """Base of everything that aggregation raises."""


class BlobError(AggregationError):
    """A weights blob or master vector doesn't fit the manifest's tensors."""


class SumError(AggregationError):
    """A sum doesn't fit its plan, or is too large to be computed exactly."""
