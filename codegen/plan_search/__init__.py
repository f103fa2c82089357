"""Finding update plans: contributions of what could be trained, and a search within limits."""
