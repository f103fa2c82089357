"""What operators see in a browser: pages over the API, served on its port.

It talks to the API only, as the commands do. A screen is a module of `screens`, which has an
example of how one is added.
"""

from fleet.dashboard.app import mount

__all__ = ["mount"]
