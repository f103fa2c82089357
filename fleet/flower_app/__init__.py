"""The Flower app: `flwr run` on this folder, or the coordinator, submits it."""
