"""What a network is: in real numbers, and in the integers of the device."""
