"""The world as data: which devices there are, what they see, and what goes wrong with them."""
