"""Members' certificates: their fields, and what Python's ssl makes of them as each other's only anchors."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from p2pfl.crypto import (
    CERTIFICATE_LIMIT,
    Certificate,
    certificate_expiry,
    certificate_pem,
    create_certificate,
)
from p2pfl.errors import ConfigError, LimitExceeded, MalformedMessage

# wide enough that the clock of the machine does not matter: November 2023 to October 2096
BEGIN, END = 1_700_000_000, 4_000_000_000
PASSWORD = b"\x00binary\xff"


def made(subject: str = "hospital", begin: int = BEGIN, end: int = END) -> Certificate:
    return create_certificate(subject, not_before=begin, not_after=end, password=PASSWORD)


def context(folder: Path, own: Certificate, anchors: list[bytes], *, server: bool) -> ssl.SSLContext:
    (folder / "certificate.pem").write_text(certificate_pem(own.der))
    (folder / "key.pem").write_bytes(own.key_pem)
    built = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    built.minimum_version = ssl.TLSVersion.TLSv1_3
    built.check_hostname = False
    built.verify_mode = ssl.CERT_REQUIRED
    built.load_cert_chain(folder / "certificate.pem", folder / "key.pem", password=PASSWORD)
    built.load_verify_locations(cadata=b"".join(anchors))
    return built


def handshake(
    folder: Path,
    client: Certificate,
    server: Certificate,
    client_trusts: list[bytes],
    server_trusts: list[bytes],
) -> tuple[bytes | None, bytes | None]:
    """The other's certificate as the client and as the server saw it, after one byte both ways."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    dialler = context(folder, client, client_trusts, server=False).wrap_bio(to_client, to_server)
    listener = context(folder, server, server_trusts, server=True).wrap_bio(to_server, to_client, server_side=True)
    done: set[ssl.SSLObject] = set()
    for _ in range(6):  # a TLS 1.3 handshake takes two flights and a half
        for end in (dialler, listener):
            if end in done:
                continue
            try:
                end.do_handshake()
                done.add(end)
            except ssl.SSLWantReadError:
                pass
    assert done == {dialler, listener}
    assert dialler.version() == listener.version() == "TLSv1.3"
    for sender, receiver in ((dialler, listener), (listener, dialler)):
        sender.write(b"x")
        assert receiver.read(1) == b"x"
    return dialler.getpeercert(True), listener.getpeercert(True)


@pytest.mark.parametrize("members", [2, 3])
def test_members_are_each_others_only_anchors(tmp_path: Path, members: int) -> None:
    certificates = [made("one name for all") for _ in range(members)]
    anchors = [certificate.der for certificate in certificates]
    for client in certificates:
        for server in certificates:
            if client is not server:
                seen = handshake(tmp_path, client, server, anchors, anchors)
                assert seen == (server.der, client.der)


def test_a_rotated_certificate_works_beside_the_old_one(tmp_path: Path) -> None:
    old, new, other = made("lille"), made("lille"), made("rouen")
    anchors = [old.der, new.der, other.der]
    for own in (old, new):
        assert handshake(tmp_path, own, other, anchors, anchors) == (other.der, own.der)
        assert handshake(tmp_path, other, own, anchors, anchors) == (own.der, other.der)


@pytest.mark.parametrize("stranger", ["client", "server"])
def test_a_stranger_fails_in_the_handshake(tmp_path: Path, stranger: str) -> None:
    client, server, member = made(), made(), made()
    client_trusts = [client.der, member.der] if stranger == "server" else [client.der, server.der]
    server_trusts = [server.der, member.der] if stranger == "client" else [client.der, server.der]
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path, client, server, client_trusts, server_trusts)


@pytest.mark.parametrize(("begin", "end"), [(BEGIN - 1000, BEGIN), (END, END + 1000)])
def test_an_anchor_outside_its_time_is_refused(tmp_path: Path, begin: int, end: int) -> None:
    client, server = made(begin=begin, end=end), made()
    anchors = [client.der, server.der]
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path, client, server, anchors, anchors)


def test_a_members_certificate_key_cannot_issue_others(tmp_path: Path) -> None:
    """CA:FALSE: a stolen certificate key must not make new members."""
    member, server = made("member"), made("server")
    issuer = x509.load_der_x509_certificate(member.der)
    issuer_key = load_pem_private_key(member.key_pem, PASSWORD)
    assert isinstance(issuer_key, Ed25519PrivateKey)
    key = Ed25519PrivateKey.generate()
    issued = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "intruder")]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(5)
        .not_valid_before(datetime.fromtimestamp(BEGIN, UTC))
        .not_valid_after(datetime.fromtimestamp(END, UTC))
        .sign(issuer_key, None)
    )
    plain = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    intruder = Certificate(issued.public_bytes(Encoding.DER), plain)
    anchors = [member.der, server.der]
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path, intruder, server, anchors, anchors)


def test_the_fields_of_a_certificate() -> None:
    first, second = (x509.load_der_x509_certificate(made("Lille").der) for _ in range(2))
    assert isinstance(first.public_key(), Ed25519PublicKey)
    assert first.subject == first.issuer != second.subject
    assert first.public_key() != second.public_key()
    assert first.serial_number != second.serial_number
    basic = first.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = first.extensions.get_extension_for_class(x509.KeyUsage)
    assert basic.critical and not basic.value.ca
    assert usage.critical and usage.value.digital_signature and not usage.value.key_cert_sign
    name = first.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    assert str(name).startswith("Lille ") and len(name) == len("Lille ") + 16
    first.verify_directly_issued_by(first)


@pytest.mark.parametrize("subject", ["x", "é" * 60, "Hôpital " * 20, "病院" * 30])
def test_long_subjects_are_cut_to_what_x509_allows(subject: str) -> None:
    loaded = x509.load_der_x509_certificate(made(subject).der)
    name = loaded.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    assert isinstance(name, str)
    assert len(name.encode()) <= 64
    assert subject.startswith(name[:-17])


def test_expiry_and_pem_text() -> None:
    certificate = made()
    assert certificate_expiry(certificate.der) == END
    text = certificate_pem(certificate.der)
    assert ssl.PEM_cert_to_DER_cert(text) == certificate.der
    assert len(certificate.der) < CERTIFICATE_LIMIT


def test_the_private_key_is_sealed_and_not_shown() -> None:
    certificate = made()
    assert certificate.key_pem.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert "PRIVATE" not in repr(certificate)
    with pytest.raises(ValueError):
        load_pem_private_key(certificate.key_pem, b"another password")


@pytest.mark.parametrize(
    ("subject", "begin", "end", "password"),
    [
        ("", BEGIN, END, PASSWORD),
        ("a\nb", BEGIN, END, PASSWORD),
        ("a", END, BEGIN, PASSWORD),
        ("a", BEGIN, BEGIN, PASSWORD),
        ("a", BEGIN, END, b""),
        ("a", BEGIN, END, bytes(1024)),
    ],
)
def test_bad_arguments(subject: str, begin: int, end: int, password: bytes) -> None:
    with pytest.raises(ConfigError):
        create_certificate(subject, not_before=begin, not_after=end, password=password)


def test_certificates_that_cannot_be_read() -> None:
    der = made().der
    for bad in (b"", b"\x30", der[:-1], der + b"\x00", certificate_pem(der).encode()):
        for read in (certificate_pem, certificate_expiry):
            with pytest.raises(MalformedMessage):
                read(bad)
    with pytest.raises(LimitExceeded):
        certificate_expiry(bytes(CERTIFICATE_LIMIT + 1))
