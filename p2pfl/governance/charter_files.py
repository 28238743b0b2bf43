"""Owns the charter as a text file, which founders mail to each other, sign and merge."""

from __future__ import annotations

import base64

from p2pfl.crypto import SIGNATURE_BYTES
from p2pfl.errors import ConfigError
from p2pfl.governance.charter import DOCUMENT_LIMIT, MAX_MEMBERS, Charter, fingerprint, read_document
from p2pfl.governance.charter_signatures import missing_signatures, with_signatures
from p2pfl.governance.texts import TextForm, decode_base64, from_text, to_text
from p2pfl.governance.topologies import closing_in_words, weights_in_words
from p2pfl.types import PeerId

CHARTER_HEADER = "p2pfl charter v1"
CHARTER_TEXT_LIMIT = 2 * DOCUMENT_LIMIT  # characters; base64 takes 4/3, the rest are readable lines
_WORD = "signature"


def charter_to_text(charter: Charter) -> str:
    """The charter's file: readable lines (for display, never read back), document, one line per signature."""
    words = tuple(
        (_WORD, str(peer_id), base64.b64encode(signature).decode("ascii")) for peer_id, signature in charter.signatures
    )
    return to_text(CHARTER_HEADER, TextForm(tuple(describe_charter(charter)), charter.document, words))


def parse_charter(text: str) -> Charter:
    """The charter in a file, each signature verified; whether it is in force is `check_charter`'s question.

    Raises ConfigError for another kind of file, a damaged one, or a signature that does not hold.
    """
    what = "the charter file"
    form = from_text(text, CHARTER_HEADER, what=what, limit=CHARTER_TEXT_LIMIT, words=MAX_MEMBERS)
    charter = read_document(form.body)
    signatures = [_signature(words, what) for words in form.words]
    if len({peer_id for peer_id, _ in signatures}) != len(signatures):
        raise ConfigError(f"{what} has two signatures of one member; merge the files with `p2pfl charter merge`")
    return with_signatures(charter, signatures)


def describe_charter(charter: Charter) -> list[str]:
    """The charter in plain lines, for the top of its file and for `p2pfl charter show`."""
    missing = {member.peer_id for member in missing_signatures(charter)}
    lines = [
        f"consortium: {charter.name}",
        f"version: {charter.version}",
        f"fingerprint: {fingerprint(charter)}",
        f"quorum: {charter.quorum} of {len(charter.members)}",
        f"topology: {charter.topology.get('kind')}",
        *([f"weights: {weights_in_words(charter.topology)}"] if "weights" in charter.topology else []),
        *([f"closing: {closing_in_words(charter.topology)}"] if "closing" in charter.topology else []),
        *(f"limit: {name} = {value}" for name, value in charter.limits.items()),
    ]
    for member in charter.members:
        state = "NOT SIGNED" if member.peer_id in missing else "signed"
        lines.append(f"member: {member.name}, {member.peer_id}, {state}")
    # foreign text on a line of its own: nothing in it may begin another line
    return ["".join(letter if letter.isprintable() else "?" for letter in line) for line in lines]


def _signature(words: tuple[str, ...], what: str) -> tuple[PeerId, bytes]:
    if len(words) != 3 or words[0] != _WORD:
        raise ConfigError(f"{what} has a line that begins with {words[0][:40]!r}; ask its sender for the file again")
    signature = decode_base64(words[2], what)
    if len(signature) != SIGNATURE_BYTES:
        raise ConfigError(f"{what} has a signature of {len(signature)} bytes; ask its sender for the file again")
    return PeerId(words[1]), signature
