"""A site's gateway: MQTT on one side, a unix socket for Flower's ClientApp on the other."""
