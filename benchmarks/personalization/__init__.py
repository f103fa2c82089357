"""Models of one's own: tables and the picture of experiments, and the same in float."""
