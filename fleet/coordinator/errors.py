"""What can go wrong between a campaign and the gateways.

    CoordinatorError
    ├── ProcessStartError   a Flower process did not come up; names its log file
    ├── ControlError        the SuperLink's control interface refused or is unreachable
    ├── GatewayReplyError   a gateway answered with something that makes no sense
    └── CampaignFailedError the campaign can't be finished; says why

Every message names the thing and says what to do about it.
"""


class CoordinatorError(Exception):
    """Base of everything that the coordinator raises."""


class ProcessStartError(CoordinatorError):
    """A Flower process did not come up."""


class ControlError(CoordinatorError):
    """The SuperLink's control interface refused a request or is unreachable."""


class GatewayReplyError(CoordinatorError):
    """A gateway's answer is malformed or contradicts the round it is about."""


class CampaignFailedError(CoordinatorError):
    """The campaign can't be finished."""
