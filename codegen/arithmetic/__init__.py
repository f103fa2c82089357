"""Integer constants of layers: what stands for real factors on the device."""
