"""A process that appends until it is killed; prints the size of each head after its commit returned."""

from __future__ import annotations

import sys
from pathlib import Path

from audit_logs import NOW, delta, owner

from p2pfl.audit import AuditLog, NewEntry


def main() -> None:
    log = AuditLog.open(Path(sys.argv[1]), owner())
    number = 0
    while True:
        number += 1
        content = number.to_bytes(4, "big") * 700
        head = log.append([delta(number, content), NewEntry("mixed", {"round": number})], NOW + number)
        print(head.size, flush=True)


if __name__ == "__main__":
    main()
