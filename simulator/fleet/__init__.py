"""Many machines over a few worker processes."""
