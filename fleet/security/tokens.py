"""Tokens by which services know who asks.

A service stores the SHA-256 of a secret only. Passwords need a slow hash since people choose them;
these are 256 random bits, which nobody guesses, however fast the hash is.
"""

from __future__ import annotations

import hashlib
import secrets


def new_token() -> str:
    """The text of a token, `tf_ID_SECRET`, that nobody has issued yet."""
    return f"tf_{secrets.token_hex(8)}_{secrets.token_hex(32)}"


def secret_hash(secret: str) -> str:
    """What is stored instead of a secret, in hex."""
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()
