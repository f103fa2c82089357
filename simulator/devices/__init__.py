"""What is on a board beside its core: peripherals, flash chips, a modem."""
