"""What machines of the simulator cost, a module for each."""
