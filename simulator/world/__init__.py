"""The world as data: which devices there are, what they see, when they are there, what goes wrong."""
