"""What can go wrong between a device and a finished campaign.

    FleetError
    ├── ProtocolError       a message, topic or coded delta isn't what the specification says
    │   └── CodingError     the coded values of a delta
    ├── ManifestError       a bundle's manifest.json can't be used
    ├── ConfigurationError  a configuration file or option is wrong
    ├── BrokerError         the MQTT broker can't be found, started or reached
    │   └── BrokerRefusedError  the broker refuses the login
    ├── GatewayError        the gateway can't be reached, or refuses a request
    │   └── AnswerError     its answer isn't what the specification says
    ├── StoreError          a store can't be used, or what it holds doesn't allow this
    │   └── StoreAwayError  its database can't be reached or written at the moment
    ├── NotKnownError       nothing of this name is known
    │   ├── UnknownCampaignError    a StoreError as well
    │   ├── UnknownDeviceError      a RegistryError as well
    │   └── UnknownModelError       a ModelStoreError as well
    ├── BackupError         a backup is damaged, is none, or can't be restored here
    ├── CertificateError    a certificate authority can't be used, or asked for what it can't give
    ├── KeysError           a key, a keyring or an enrolment can't be used
    ├── MaskError           a masked delta or the request for its masks isn't what masking.md says
    │   └── MaskRefusedError    an unmasker refuses a request, of whatever kind
    ├── UnmaskerError       an unmasker can't be reached, or lets nobody in with this token
    ├── RegistryError       a device or a filter of devices is wrong, or isn't known
    ├── ModelStoreError     a model or a version of it isn't known, or doesn't fit
    ├── AccessError         a token isn't valid, or its role may not do this
    │   └── UnknownTokenError   the service knows no such token, or knows it no more
    ├── ConflictError       it can't be done as things stand, or was asked for otherwise before
    │   └── TakenNameError          a RegistryError as well
    ├── ServiceError        the coordinator's service can't be reached, or refuses
    ├── AggregationError    sums of a round don't fit the model or each other
    ├── CampaignError       a campaign's description or a step of it is wrong
    │   ├── LeasedError     other campaigns have all devices that a round could ask
    │   └── BudgetSpentError    too few devices have privacy left to spend on a round
    └── FlowerError         Flower's processes can't be started or reached

Every message names the thing and says what to do about it.
"""

from collections.abc import Sequence


class FleetError(Exception):
    """Base of everything that fleet raises for bad input and failing peers."""


class ProtocolError(FleetError):
    """A message isn't what the specification says; names the message and the field."""

    def __init__(self, message: str, field: str, problem: str) -> None:
        """Keep which ``message`` and ``field`` it is; ``problem`` says what is wrong with it."""
        self.message = message
        self.field = field
        self.problem = problem
        super().__init__(f"{message}.{field}: {problem}" if field else f"{message}: {problem}")


class CodingError(ProtocolError):
    """The coded values of a delta aren't in the one form that the specification allows."""

    def __init__(self, problem: str) -> None:
        """``problem`` says what is wrong with the bytes."""
        super().__init__("delta", "coded", problem)


class ManifestError(FleetError):
    """A bundle's manifest.json can't be used."""


class ConfigurationError(FleetError):
    """A configuration file or option is wrong."""


class BrokerError(FleetError):
    """The MQTT broker can't be found, started or reached."""


class BrokerRefusedError(BrokerError):
    """The broker refuses the login."""


class GatewayError(FleetError):
    """The gateway can't be reached, or refuses a request."""


class AnswerError(GatewayError):
    """A gateway's answer isn't what the specification says."""


class NotKnownError(FleetError):
    """Nothing of this name is known; devices, models and campaigns have classes of their own."""


class ConflictError(FleetError):
    """It can't be done as things stand, or was asked for otherwise before."""


class StoreError(FleetError):
    """A store can't be used, or what it holds doesn't allow this."""


class StoreAwayError(StoreError):
    """A store's database can't be reached or written at the moment."""


class UnknownCampaignError(StoreError, NotKnownError):
    """A store has no such campaign, or no such round of it."""


class BackupError(FleetError):
    """A backup is damaged, is none, or can't be restored here."""


class CertificateError(FleetError):
    """A certificate authority can't be used, or was asked for what it can't give."""


class KeysError(FleetError):
    """A key, a keyring or an enrolment can't be used."""


class MaskError(FleetError):
    """A masked delta or the request for its masks isn't what masking.md says."""


class MaskRefusedError(MaskError):
    """An unmasker refuses a request, and will do so again; a device may be enrolled meanwhile."""

    def __init__(self, kind: str, detail: str, devices: Sequence[str] = ()) -> None:
        """``kind`` is one of masking.md's, ``devices`` are those that are the reason."""
        self.kind = kind
        self.detail = detail
        self.devices = tuple(devices)
        super().__init__(f"the unmasker refuses ({kind}): {detail}")


class UnmaskerError(FleetError):
    """An unmasker can't be reached, or lets nobody in with this token; ask again."""


class RegistryError(FleetError):
    """A device or a filter of devices is wrong, or isn't known."""


class UnknownDeviceError(RegistryError, NotKnownError):
    """The registry has no such device."""


class UnknownGatewayError(RegistryError, NotKnownError):
    """The registry has no gateway of this name."""


class TakenNameError(RegistryError, ConflictError):
    """The registry has a device or a gateway of this name already."""


class ModelStoreError(FleetError):
    """A model or a version of it isn't known, or doesn't fit."""


class UnknownModelError(ModelStoreError, NotKnownError):
    """There is no such model, or no such version of it."""


class AccessError(FleetError):
    """A token isn't valid, or its role may not do this."""


class UnknownTokenError(AccessError):
    """The service knows no such token: it was never issued, has expired or was revoked."""


class ServiceError(FleetError):
    """The coordinator's service can't be reached, or refuses."""

    def __init__(self, problem: str, status: int | None = None) -> None:
        """``status`` is the HTTP status that it refuses with; None where it gave no answer."""
        self.status = status
        super().__init__(problem)


class AggregationError(FleetError):
    """The sums of a round don't fit the model or each other."""


class CampaignError(FleetError):
    """A campaign's description, or a step of it, is wrong."""


class LeasedError(CampaignError):
    """Other campaigns have all devices that a round could ask."""


class BudgetSpentError(CampaignError):
    """Too few devices have privacy left to spend on a round; no later one will have more."""

    def __init__(self, number: int, left: int, spent: int) -> None:
        """So many have some ``left`` for round ``number``, and so many don't."""
        super().__init__(
            f"round {number}: {left} devices with privacy budget left are too few to hide in each "
            f"other, and {spent} have spent theirs (privacy-budget-spent); a campaign with more "
            "privacy.budget_epsilon, or with other devices, could go on"
        )


class FlowerError(FleetError):
    """Flower's processes can't be started or reached."""
