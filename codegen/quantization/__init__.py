"""Float graphs → int8 graphs: calibration, equalization, checks, and what it cost."""
