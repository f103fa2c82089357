"""Ways of running the firmware: emulated boards and host code, and what they count."""
