"""Owns the TLS certificates of members: self-signed Ed25519 certificates with a key of their own.

They carry no trust by themselves. A member's signed record names its certificate, and a TLS context takes
exactly the members' certificates as anchors. The key is not the identity key: it lies in the memory of the
process that talks to the network, and it rotates.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from p2pfl.errors import ConfigError, LimitExceeded, MalformedMessage

CERTIFICATE_LIMIT = 2048
"""Bytes of a certificate read at most; ours have about 450."""

PASSWORD_LIMIT = 1023
"""Bytes: OpenSSL's PEM reader, which Python's ssl uses, has a buffer of 1024."""

_COMMON_NAME_LIMIT = 64  # ub-common-name, RFC 5280 appendix A.1
_SUFFIX_BYTES = 8


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its private key."""

    der: bytes
    key_pem: bytes = field(repr=False)  # PKCS #8, encrypted under the password given at creation


def create_certificate(subject: str, *, not_before: int, not_after: int, password: bytes) -> Certificate:
    """A new self-signed certificate with a fresh Ed25519 key.

    ``not_before`` and ``not_after`` are Unix seconds; ``password`` seals the key (1 to 1023 bytes; derive it
    from the identity). The common name is ``subject``, cut to fit, and 16 random digits: OpenSSL picks an
    anchor by subject, and three anchors with equal subjects fail to verify, so every certificate needs a
    subject of its own, a rotated one too. A TLS server shows its certificate to whoever connects: use a
    subject that strangers may read. Raises ConfigError.
    """
    if not subject or not subject.isprintable():
        raise ConfigError("a certificate's subject is empty or has control characters; give a plain name")
    if not_after <= not_before:
        raise ConfigError("a certificate would end before it begins; give a later end")
    if not 1 <= len(password) <= PASSWORD_LIMIT:
        raise ConfigError(f"a certificate key's password has 1 to {PASSWORD_LIMIT} bytes; give such a password")
    suffix = secrets.token_hex(_SUFFIX_BYTES)
    room = _COMMON_NAME_LIMIT - len(suffix) - 1
    short = subject.encode("utf-8")[:room].decode("utf-8", errors="ignore")
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{short} {suffix}")])
    key = Ed25519PrivateKey.generate()
    der = _signed(name, key, not_before, not_after).public_bytes(Encoding.DER)
    sealed = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password))
    return Certificate(der, sealed)


def certificate_pem(der: bytes) -> str:
    """The PEM text of a DER certificate. Raises MalformedMessage or LimitExceeded."""
    return _load(der).public_bytes(Encoding.PEM).decode("ascii")


def certificate_expiry(der: bytes) -> int:
    """The last second of validity, Unix seconds. Raises MalformedMessage or LimitExceeded."""
    return int(_load(der).not_valid_after_utc.timestamp())


def _signed(name: x509.Name, key: Ed25519PrivateKey, not_before: int, not_after: int) -> x509.Certificate:
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    both_ends = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    key_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.fromtimestamp(not_before, UTC))
        .not_valid_after(datetime.fromtimestamp(not_after, UTC))
        # CA:FALSE: a member's stolen certificate key cannot issue certificates that our anchors would accept
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(both_ends, critical=False)
        .add_extension(key_id, critical=False)
        .sign(key, None)
    )


def _load(der: bytes) -> x509.Certificate:
    if len(der) > CERTIFICATE_LIMIT:
        raise LimitExceeded(
            f"a certificate has {len(der)} bytes, more than {CERTIFICATE_LIMIT}; ask its owner for a new member record"
        )
    try:
        return x509.load_der_x509_certificate(der)
    except ValueError as error:
        raise MalformedMessage("a certificate cannot be decoded; ask its owner for a new member record") from error
