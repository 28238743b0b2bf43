"""Owns the key file: the identity's seed at rest, sealed under a passphrase or bare by explicit choice.

Format, all numbers big-endian, SHA-256 over everything before it at the end:
  bare    "p2pflkey" | 01 | 00 | seed 32 | SHA-256 32
  sealed  "p2pflkey" | 01 | 01 | passes u32 | memory u64 | salt 16 | nonce 24 | ciphertext 48 | SHA-256 32
Sealed: key = Argon2id(passphrase in NFC and UTF-8, salt, passes, memory), ciphertext =
XChaCha20-Poly1305(key, nonce, seed, aad = everything before the ciphertext). The SHA-256 is no secret and no
seal; it tells a damaged file from a wrong passphrase.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import unicodedata
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
)
from nacl.exceptions import CryptoError
from nacl.pwhash import argon2id
from nacl.utils import random as random_bytes

from p2pfl.crypto.digests import DIGEST_BYTES
from p2pfl.crypto.identity import Identity
from p2pfl.crypto.key_encodings import KEY_BYTES
from p2pfl.errors import ConfigError, StoreError


@dataclass(frozen=True, slots=True)
class PassphraseCost:
    """What one guess at a passphrase costs: Argon2id passes over ``memory`` bytes."""

    passes: int
    memory: int


MODERATE = PassphraseCost(argon2id.OPSLIMIT_MODERATE, argon2id.MEMLIMIT_MODERATE)
"""libsodium's MODERATE: 3 passes over 256 MiB, about a second. It stands in each file, so it can change."""

HIGHEST = PassphraseCost(argon2id.OPSLIMIT_SENSITIVE * 4, argon2id.MEMLIMIT_SENSITIVE)
"""What a file may ask for at most: 16 passes over 1 GiB (libsodium's SENSITIVE memory). Without a cap a
foreign file could eat all memory before the passphrase is even checked."""

LOWEST = PassphraseCost(argon2id.OPSLIMIT_MIN, argon2id.MEMLIMIT_MIN)
"""What libsodium accepts at least."""

PASSPHRASE_LIMIT = 1024
"""Bytes of a passphrase in UTF-8."""

_MAGIC = b"p2pflkey"
_VERSION = 1
_BARE, _SEALED = 0, 1
_START = struct.Struct(">8sBB")
_SEAL = struct.Struct(">IQ16s24s")
_TAG = 16
_BARE_SIZE = _START.size + KEY_BYTES + DIGEST_BYTES
_SEALED_SIZE = _START.size + _SEAL.size + KEY_BYTES + _TAG + DIGEST_BYTES


def write_key(path: Path, identity: Identity, passphrase: str | None, *, cost: PassphraseCost = MODERATE) -> None:
    """Write a new key file with mode 0600; None as passphrase writes it bare.

    The file appears whole or not at all and is on disk when the call returns. An existing file is never
    replaced. Raises ConfigError (file exists, passphrase empty or too long, cost out of range) or StoreError.
    """
    if passphrase is None:
        content = _START.pack(_MAGIC, _VERSION, _BARE) + identity.seed
    else:
        content = _sealed(identity.seed, passphrase, cost)
    _write_new(path, content + hashlib.sha256(content).digest())


def read_key(path: Path, passphrase: str | None) -> Identity:
    """The identity in a key file; a passphrase given for a bare file is ignored.

    Raises ConfigError: no such file, readable by others, damaged, passphrase missing or wrong; StoreError
    when the disk or the memory refuses. A sealed file takes about a second and 256 MiB: call
    it in a thread.
    """
    content = _read(path)
    body = content[:-DIGEST_BYTES]
    if not _is_sealed(content):
        return Identity.from_seed(body[_START.size :])
    if passphrase is None:
        raise ConfigError(f"key file {path} is sealed; give its passphrase")
    header = body[: _START.size + _SEAL.size]
    passes, memory, salt, nonce = _SEAL.unpack(header[_START.size :])
    key = _stretch(passphrase, salt, PassphraseCost(passes, memory), f"key file {path}")
    try:
        seed = crypto_aead_xchacha20poly1305_ietf_decrypt(body[len(header) :], header, nonce, key)
    except CryptoError:
        raise ConfigError(f"the passphrase does not open key file {path}; type it again") from None
    return Identity.from_seed(seed)


def is_sealed(path: Path) -> bool:
    """Whether the key file needs a passphrase. Raises what ``read_key`` raises."""
    return _is_sealed(_read(path))


def _is_sealed(content: bytes) -> bool:
    return content[_START.size - 1] == _SEALED


def _sealed(seed: bytes, passphrase: str, cost: PassphraseCost) -> bytes:
    salt, nonce = random_bytes(argon2id.SALTBYTES), random_bytes(24)
    header = _START.pack(_MAGIC, _VERSION, _SEALED) + _SEAL.pack(cost.passes, cost.memory, salt, nonce)
    key = _stretch(passphrase, salt, cost, "a new key file")
    return header + crypto_aead_xchacha20poly1305_ietf_encrypt(seed, header, nonce, key)


def _stretch(passphrase: str, salt: bytes, cost: PassphraseCost, what: str) -> bytes:
    if not (LOWEST.passes <= cost.passes <= HIGHEST.passes and LOWEST.memory <= cost.memory <= HIGHEST.memory):
        raise ConfigError(
            f"{what} asks for {cost.passes} passes over {cost.memory} bytes, outside what is allowed; "
            "restore it from a backup"
        )
    try:
        # one passphrase typed on two keyboards must give the same bytes (RFC 8265 uses NFC too)
        secret = unicodedata.normalize("NFC", passphrase).encode("utf-8")
    except UnicodeEncodeError:
        raise ConfigError(f"the passphrase for {what} is not valid text; type it again") from None
    if not 1 <= len(secret) <= PASSPHRASE_LIMIT:
        raise ConfigError(f"the passphrase for {what} must have 1 to {PASSPHRASE_LIMIT} bytes; choose another")
    try:
        return argon2id.kdf(32, secret, salt, opslimit=cost.passes, memlimit=cost.memory)
    except (CryptoError, MemoryError):
        mebibytes = cost.memory >> 20
        raise StoreError(f"no {mebibytes} MiB of memory to open {what}; free some memory and try again") from None


def _read(path: Path) -> bytes:
    try:
        # non-blocking, so that a pipe left at this path cannot make us wait
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError:
        raise ConfigError(f"there is no key file {path}; make one with p2pfl init") from None
    except OSError as error:
        raise ConfigError(f"key file {path} cannot be opened ({error.strerror}); check its owner") from error
    try:
        _check_file(path, os.fstat(descriptor))
        content = os.read(descriptor, _SEALED_SIZE + 1)
    except OSError as error:
        raise StoreError(f"key file {path} cannot be read ({error.strerror}); check the disk") from error
    finally:
        os.close(descriptor)
    _check_format(path, content)
    return content


def _check_file(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"{path} is not a file; give the path of a key file")
    if os.name == "posix" and status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise ConfigError(f"key file {path} has mode {mode:04o}, open to others; run chmod 600 {path}")


def _check_format(path: Path, content: bytes) -> None:
    if len(content) < _START.size or content[: len(_MAGIC)] != _MAGIC:
        raise ConfigError(f"{path} is not a p2pfl key file; give the right path or restore it from a backup")
    _, version, form = _START.unpack(content[: _START.size])
    if version != _VERSION:
        raise ConfigError(f"key file {path} has format {version}, this version reads {_VERSION}; update p2pfl")
    whole = len(content) == {_BARE: _BARE_SIZE, _SEALED: _SEALED_SIZE}.get(form)
    if not whole or hashlib.sha256(content[:-DIGEST_BYTES]).digest() != content[-DIGEST_BYTES:]:
        raise ConfigError(f"key file {path} is damaged; restore it from a backup")


def _write_new(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{random_bytes(8).hex()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            # link, unlike rename, fails when the name is taken: an identity is never overwritten, not even
            # by two processes at once
            os.link(temporary, path)
        finally:
            with suppress(OSError):
                os.unlink(temporary)
        _sync_folder(path.parent)
    except FileExistsError:
        raise ConfigError(f"key file {path} exists and is never replaced; choose another folder") from None
    except OSError as error:
        raise StoreError(
            f"key file {path} cannot be written ({error.strerror}); choose a writable folder on a local disk"
        ) from error


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
