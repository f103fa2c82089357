"""An MQTT 5 broker without I/O, in virtual time."""
