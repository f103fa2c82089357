"""What sensors see: the physical world of the demo."""
