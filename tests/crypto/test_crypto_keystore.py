"""The key file: written once, read back, refused when it is not what it should be."""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
import stat
import threading
from pathlib import Path

import pytest
from nacl.pwhash import argon2id

from p2pfl.crypto import Identity, PassphraseCost, is_sealed, keystore, read_key, write_key
from p2pfl.crypto.keystore import HIGHEST, LOWEST, MODERATE, PASSPHRASE_LIMIT
from p2pfl.errors import ConfigError, StoreError

IDENTITY = Identity.from_seed(bytes(range(32)))
PASSPHRASE = "three ravens"
COST_FIELDS = range(10, 22)  # passes u32, memory u64


def sealed_file(path: Path, passphrase: str = PASSPHRASE) -> Path:
    write_key(path, IDENTITY, passphrase, cost=LOWEST)
    return path


def rewritten(path: Path, body: bytes) -> Path:
    """The file with another content and a checksum that fits it: what an attacker would leave."""
    path.write_bytes(body + hashlib.sha256(body).digest())
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE, "é" * (PASSPHRASE_LIMIT // 2)])
def test_round_trip(tmp_path: Path, passphrase: str | None) -> None:
    path = tmp_path / "key"
    write_key(path, IDENTITY, passphrase, cost=LOWEST)
    assert read_key(path, passphrase).seed == IDENTITY.seed
    assert is_sealed(path) == (passphrase is not None)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]
    assert (IDENTITY.seed in path.read_bytes()) == (passphrase is None)


def test_the_default_cost_is_libsodiums_moderate_and_stands_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_key(path, IDENTITY, PASSPHRASE)
    assert path.read_bytes()[10:22] == (3).to_bytes(4, "big") + (256 << 20).to_bytes(8, "big")
    assert PassphraseCost(3, 256 << 20) == MODERATE
    assert read_key(path, PASSPHRASE).peer_id == IDENTITY.peer_id


def test_the_mode_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_key(tmp_path / "key", IDENTITY, None)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_the_formats_are_the_documented_ones(tmp_path: Path) -> None:
    write_key(tmp_path / "bare", IDENTITY, None)
    body = b"p2pflkey\x01\x00" + IDENTITY.seed
    assert (tmp_path / "bare").read_bytes() == body + hashlib.sha256(body).digest()
    content = sealed_file(tmp_path / "sealed").read_bytes()
    assert content[:10] == b"p2pflkey\x01\x01"
    assert len(content) == 10 + 4 + 8 + 16 + 24 + 48 + 32
    assert hashlib.sha256(content[:-32]).digest() == content[-32:]


def test_a_bare_file_ignores_a_passphrase(tmp_path: Path) -> None:
    write_key(tmp_path / "key", IDENTITY, None)
    assert read_key(tmp_path / "key", "whatever").seed == IDENTITY.seed


def test_one_passphrase_in_two_unicode_spellings(tmp_path: Path) -> None:
    path = sealed_file(tmp_path / "key", "Am\u00e9lie")
    assert read_key(path, "Ame\u0301lie").seed == IDENTITY.seed


@pytest.mark.parametrize(
    ("passphrase", "reason"),
    [
        (None, "sealed; give its passphrase"),
        ("three raven", "does not open"),
        ("Three ravens", "does not open"),
        ("three ravens ", "does not open"),
        ("", "1 to 1024 bytes"),
        ("x" * (PASSPHRASE_LIMIT + 1), "1 to 1024 bytes"),
        ("\ud800", "not valid text"),
    ],
)
def test_wrong_and_missing_passphrases(tmp_path: Path, passphrase: str | None, reason: str) -> None:
    path = sealed_file(tmp_path / "key")
    with pytest.raises(ConfigError, match=reason) as caught:
        read_key(path, passphrase)
    assert IDENTITY.seed.hex() not in str(caught.value)
    assert not passphrase or passphrase not in str(caught.value)


@pytest.mark.parametrize("passphrase", ["", "x" * (PASSPHRASE_LIMIT + 1)])
def test_passphrases_that_are_not_taken(tmp_path: Path, passphrase: str) -> None:
    with pytest.raises(ConfigError, match="choose another"):
        write_key(tmp_path / "key", IDENTITY, passphrase, cost=LOWEST)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_never_replaced(tmp_path: Path) -> None:
    path = sealed_file(tmp_path / "key")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="never replaced"):
        write_key(path, Identity.generate(), None)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_to_nowhere_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="never replaced"):
        write_key(tmp_path / "key", IDENTITY, None)
    assert not (tmp_path / "elsewhere").exists()


def test_of_many_writers_one_wins_and_the_file_is_its(tmp_path: Path) -> None:
    identities = [Identity.generate() for _ in range(8)]
    outcomes: dict[int, bool] = {}
    gate = threading.Barrier(len(identities), timeout=30)

    def write(number: int) -> None:
        gate.wait()
        try:
            write_key(tmp_path / "key", identities[number], None)
            outcomes[number] = True
        except ConfigError:
            outcomes[number] = False

    threads = [threading.Thread(target=write, args=(number,)) for number in range(len(identities))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    winners = [number for number, won in outcomes.items() if won]
    assert len(outcomes) == len(identities)
    assert len(winners) == 1
    assert read_key(tmp_path / "key", None).seed == identities[winners[0]].seed


def test_file_and_folder_are_synced_before_the_call_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[str] = []
    original = os.fsync

    def watched(descriptor: int) -> None:
        kinds.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        original(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    write_key(tmp_path / "key", IDENTITY, None)
    assert kinds == ["file", "folder"]


@pytest.mark.parametrize("step", ["fsync", "link"])
def test_a_failing_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(StoreError, match="No space left"):
        write_key(tmp_path / "key", IDENTITY, None)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be written"):
        write_key(tmp_path / "no" / "key", IDENTITY, None)


@pytest.mark.skipif(os.name != "posix", reason="file modes exist on POSIX systems only")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610, 0o777])
def test_a_file_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = sealed_file(tmp_path / "key")
    path.chmod(mode)
    for call in (lambda: read_key(path, PASSPHRASE), lambda: is_sealed(path)):
        with pytest.raises(ConfigError, match="chmod 600"):
            call()


def test_things_that_are_no_key_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no key file"):
        read_key(tmp_path / "missing", None)
    with pytest.raises(ConfigError, match="not a file"):
        read_key(tmp_path, None)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(ConfigError, match="not a file"):
        read_key(tmp_path / "pipe", None)
    for content in (b"", b"p2pfl", b"-----BEGIN PRIVATE KEY-----", bytes(1000)):
        path = tmp_path / "other"
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(ConfigError, match="not a p2pfl key file"):
            read_key(path, None)


def test_a_later_format_is_told_apart_from_damage(tmp_path: Path) -> None:
    path = rewritten(tmp_path / "key", b"p2pflkey\x02\x00" + bytes(32))
    with pytest.raises(ConfigError, match="update p2pfl"):
        read_key(path, None)


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
def test_every_changed_bit_and_every_truncation_is_refused(tmp_path: Path, passphrase: str | None) -> None:
    path = tmp_path / "key"
    write_key(path, IDENTITY, passphrase, cost=LOWEST)
    content = path.read_bytes()
    changed = [bytes(_flip(content, place)) for place in range(8 * len(content))]
    changed += [content[:length] for length in range(len(content))] + [content + b"\x00"]
    for bad in changed:
        path.write_bytes(bad)
        with pytest.raises(ConfigError):
            read_key(path, PASSPHRASE)


def test_a_wrong_passphrase_is_told_apart_from_damage(tmp_path: Path) -> None:
    path = sealed_file(tmp_path / "key")
    path.write_bytes(bytes(_flip(path.read_bytes(), 8 * 70)))
    with pytest.raises(ConfigError, match="damaged"):
        read_key(path, PASSPHRASE)


def test_every_changed_bit_under_a_fitting_checksum_is_refused(tmp_path: Path) -> None:
    """The cipher authenticates the header too: an attacker who mends the checksum gains nothing."""
    path = sealed_file(tmp_path / "key")
    body = path.read_bytes()[:-32]
    for place in range(8 * len(body)):
        if place // 8 in COST_FIELDS:
            continue  # those are in the next two tests, without using the memory that they ask for
        with pytest.raises(ConfigError):
            read_key(rewritten(path, bytes(_flip(body, place))), PASSPHRASE)


def test_a_changed_cost_is_refused_even_when_it_is_allowed(tmp_path: Path) -> None:
    path = sealed_file(tmp_path / "key")
    body = bytearray(path.read_bytes()[:-32])
    body[13] += 1  # passes
    with pytest.raises(ConfigError, match="does not open"):
        read_key(rewritten(path, bytes(body)), PASSPHRASE)
    # memory that rounds to the same KiB gives the same key: only the associated data can notice it
    body[13] -= 1
    body[21] += 1
    with pytest.raises(ConfigError, match="does not open"):
        read_key(rewritten(path, bytes(body)), PASSPHRASE)


@pytest.mark.parametrize(
    "cost",
    [
        PassphraseCost(HIGHEST.passes + 1, LOWEST.memory),
        PassphraseCost(LOWEST.passes, HIGHEST.memory + 1),
        PassphraseCost(2**32 - 1, 2**64 - 1),
        PassphraseCost(LOWEST.passes - 1, LOWEST.memory),
        PassphraseCost(LOWEST.passes, LOWEST.memory - 1),
    ],
)
def test_a_hostile_cost_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cost: PassphraseCost
) -> None:
    path = sealed_file(tmp_path / "key")
    body = bytearray(path.read_bytes()[:-32])
    body[10:22] = cost.passes.to_bytes(4, "big") + cost.memory.to_bytes(8, "big")
    rewritten(path, bytes(body))

    def never(*arguments: object, **named: object) -> bytes:
        pytest.fail("Argon2id ran")

    monkeypatch.setattr(argon2id, "kdf", never)
    with pytest.raises(ConfigError, match="outside what is allowed"):
        read_key(path, PASSPHRASE)
    with pytest.raises(ConfigError, match="outside what is allowed"):
        write_key(tmp_path / "new", IDENTITY, PASSPHRASE, cost=cost)


def test_too_little_memory_is_the_worlds_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sealed_file(tmp_path / "key")

    def refuse(*arguments: object, **named: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr(keystore.argon2id, "kdf", refuse)
    with pytest.raises(StoreError, match="memory"):
        read_key(path, PASSPHRASE)


def test_the_sealing_key_is_argon2id_of_the_passphrase(tmp_path: Path) -> None:
    content = sealed_file(tmp_path / "key").read_bytes()
    header, ciphertext = content[:62], content[62:-32]
    key = argon2id.kdf(32, PASSPHRASE.encode(), content[22:38], opslimit=LOWEST.passes, memlimit=LOWEST.memory)
    opened = keystore.crypto_aead_xchacha20poly1305_ietf_decrypt(ciphertext, header, content[38:62], key)
    assert hmac.compare_digest(opened, IDENTITY.seed)


def _flip(data: bytes, place: int) -> bytearray:
    changed = bytearray(data)
    changed[place // 8] ^= 1 << place % 8
    return changed
