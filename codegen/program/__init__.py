"""An int8 graph and an update plan → ordered steps with addresses."""
