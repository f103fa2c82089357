"""Programs → C."""
