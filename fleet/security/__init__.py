"""Keys and certificates of a fleet."""

from fleet.security.certificates import Authority, Certificate

__all__ = ["Authority", "Certificate"]
