"""Owns key derivation: HKDF with SHA-256 (RFC 5869)."""

from __future__ import annotations

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


def hkdf_sha256(key: bytes, *, info: bytes, length: int = 32, salt: bytes = b"") -> bytes:
    """``length`` bytes from a secret ``key``, bound to ``info``.

    PRK = HMAC(salt, key); T(i) = HMAC(PRK, T(i-1) || info || i); output = T(1) || T(2) || ... (RFC 5869 2).
    The keys used here are uniform, so no salt is needed (RFC 5869 3.1); what separates uses is ``info``.
    """
    return HKDF(algorithm=SHA256(), length=length, salt=salt or None, info=info).derive(key)
