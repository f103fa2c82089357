"""C → a bundle for a board: flash layout, toolchains, and what a bundle says of itself."""
