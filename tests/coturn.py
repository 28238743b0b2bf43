"""coturn in the NAT lab: STUN, and TURN over udp, tcp and tls, as a child process with a long-term user."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import secrets
import subprocess
import time
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from nat_lab import SERVER_ADDRESSES, SERVERS, NatLab

STUN_PORT, TLS_PORT = 3478, 5349
RELAY_PORTS = (49152, 49407)
START_TIME = 15.0  # seconds coturn may take to open its ports
STOP_TIME = 5.0
POLL = 0.02


class Coturn:
    """coturn in the lab's ``servers``: STUN, and TURN over udp, tcp and tls with one long-term user.

    ``denied``: addresses it relays nothing to, as ``--denied-peer-ip`` takes them.
    """

    username = "hospital"
    realm = "lab.example"
    address = SERVER_ADDRESSES[0]
    host = "turn.lab.example"  # the name in its self-signed certificate

    def __init__(self, lab: NatLab, folder: Path, *, denied: tuple[str, ...] = ()) -> None:
        self._lab = lab
        self._folder = folder / "coturn"
        self._denied = denied
        self._process: subprocess.Popen[bytes] | None = None
        self.password = secrets.token_hex(8)
        self.log_file = self._folder / "log"
        self.certificate = self._folder / "certificate.pem"

    @property
    def stun(self) -> str:
        """Its STUN URI."""
        return f"stun:{self.address}:{STUN_PORT}"

    def turn(self, transport: str = "udp") -> str:
        """Its TURN URI over ``udp``, ``tcp`` or ``tls``."""
        if transport == "tls":
            return f"turns:{self.address}:{TLS_PORT}?transport=tcp"
        return f"turn:{self.address}:{STUN_PORT}?transport={transport}"

    def __enter__(self) -> Coturn:
        self._folder.mkdir()
        self._write_certificate()
        settings = self._folder / "turnserver.conf"
        settings.touch(mode=0o600)
        settings.write_text("\n".join(self._settings()) + "\n")
        with (self._folder / "output").open("wb") as output:
            self._process = subprocess.Popen(
                [*self._lab.inside(SERVERS), "turnserver", "-c", str(settings)],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self._folder, start_new_session=True,
            )  # fmt: skip
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        process = self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_TIME)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_TIME)

    @property
    def stopped(self) -> bool:
        """Whether its process has ended."""
        return self._process is not None and self._process.poll() is not None

    def _settings(self) -> list[str]:
        first, last = RELAY_PORTS
        return [
            *(f"listening-ip={address}" for address in SERVER_ADDRESSES),
            f"relay-ip={self.address}",
            f"listening-port={STUN_PORT}",
            f"tls-listening-port={TLS_PORT}",
            f"min-port={first}",
            f"max-port={last}",
            "lt-cred-mech",
            f"realm={self.realm}",
            f"user={self.username}:{self.password}",
            "total-quota=64",
            "relay-threads=1",
            "no-cli",
            "no-dtls",
            "no-multicast-peers",
            *(f"denied-peer-ip={addresses}" for addresses in self._denied),
            f"cert={self.certificate}",
            f"pkey={self._folder / 'key.pem'}",
            f"userdb={self._folder / 'users.db'}",
            f"pidfile={self._folder / 'pid'}",
            f"log-file={self.log_file}",
            "simple-log",
            "no-stdout-log",
        ]

    def _write_certificate(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.host)])
        now = datetime.datetime.now(datetime.UTC)
        day = datetime.timedelta(days=1)
        names = [x509.DNSName(self.host), x509.IPAddress(ipaddress.IPv4Address(self.address))]
        certificate = (
            x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now - day).not_valid_after(now + day)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(key, SHA256())
        )  # fmt: skip
        self.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
        secret = self._folder / "key.pem"
        secret.touch(mode=0o600)
        secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    def _wait(self) -> None:
        """Until its UDP, TCP and TLS ports are open."""
        assert self._process is not None
        end = time.monotonic() + START_TIME
        wanted = {("udp", STUN_PORT), ("tcp", STUN_PORT), ("tcp", TLS_PORT)}
        while not wanted <= _open_ports(self._process.pid):
            if self._process.poll() is not None or time.monotonic() > end:
                said = (self._folder / "output").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"coturn opened no ports within {START_TIME:.0f} s: {said}")
            time.sleep(POLL)


def _open_ports(pid: int) -> set[tuple[str, int]]:
    """Protocols and ports at the first server address in the process's own network, as the kernel lists them."""
    address = bytes(int(part) for part in SERVER_ADDRESSES[0].split("."))[::-1].hex().upper()
    found = set()
    for protocol in ("udp", "tcp"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/net/{protocol}").read_text().splitlines()[1:]:
                host, port = line.split()[1].split(":")
                if host == address:
                    found.add((protocol, int(port, 16)))
    return found
