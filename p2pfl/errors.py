"""The error tree: the type says whose fault it is, the message ends in what to do.

P2PFLError
 ├── LocalError            ours: a bad call, a bad setting, a bad file of our own
 │    ├── ConfigError          a setting, file or argument is wrong; mend it
 │    ├── DataError            a registered dataset cannot be read or does not fit the plan
 │    ├── PlanError            the plan's own code or settings are wrong
 │    └── IllegalStep          a call that the protocol state does not allow (a bug in the caller)
 ├── RemoteError           the other peer's: only these may cost a peer its standing
 │    ├── MalformedMessage     undecodable, wrong fields, wrong types
 │    ├── SignatureRefused     a signature, digest, commitment or ciphertext does not hold
 │    ├── LimitExceeded        larger, more, or later than what was agreed
 │    ├── NotAMember           a valid key that the charter does not name
 │    └── Equivocation         two different signed statements where one is allowed
 ├── LinkError             the world's: no route, refused, silent, closed
 ├── StoreError            the world's: disk full, file damaged, database refuses
 └── Refusal               nobody's fault: a rule says no
      ├── PolicyRefusal        a site, charter or plan rule forbids it
      └── BudgetExhausted      a privacy or resource budget is used up
"""

from __future__ import annotations


class P2PFLError(Exception):
    """Root of all errors this library raises on purpose."""


class LocalError(P2PFLError):
    """Our own fault: a bad call, a bad setting, a bad file."""


class ConfigError(LocalError):
    """A setting, a file or an argument is wrong."""


class DataError(LocalError):
    """A registered dataset cannot be read or does not fit the plan."""


class PlanError(LocalError):
    """The plan's own code or settings are wrong."""


class IllegalStep(LocalError):
    """A local call or event that the protocol state does not allow; nothing has changed."""


class RemoteError(P2PFLError):
    """The other peer misbehaved. ``peer`` names it when it is known."""

    def __init__(self, message: str, *, peer: str | None = None) -> None:
        super().__init__(message)
        self.peer = peer


class MalformedMessage(RemoteError):
    """A message that cannot be decoded or has wrong fields."""


class SignatureRefused(RemoteError):
    """A signature, digest, commitment or ciphertext that does not hold."""


class LimitExceeded(RemoteError):
    """Larger, more, or later than what was agreed."""


class NotAMember(RemoteError):
    """A valid key that the charter does not name."""


class Equivocation(RemoteError):
    """Two different signed statements where only one is allowed."""


class LinkError(P2PFLError):
    """The world between two peers: no route, refused, silent, closed."""


class StoreError(P2PFLError):
    """Disk full, file damaged, database refuses."""


class Refusal(P2PFLError):
    """A rule says no; nobody is at fault."""


class PolicyRefusal(Refusal):
    """A site's, the charter's or the plan's rule forbids it."""


class BudgetExhausted(Refusal):
    """A privacy or resource budget is used up."""
