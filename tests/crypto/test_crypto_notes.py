"""Signed notes, checkpoints, cosignatures and log proofs: published vectors, every malformed form, every flipped bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from p2pfl.crypto import Identity, LogProof, open_checkpoint, read_log_proof, sha256
from p2pfl.crypto.base64_text import from_base64, to_base64
from p2pfl.crypto.checkpoints import Checkpoint, log_key, log_origin, read_checkpoint, sign_checkpoint
from p2pfl.crypto.log_entries import DATA_LIMIT, EntryData, entry_data, read_entry_data
from p2pfl.crypto.merkle import leaf_hash, root_of_hashes
from p2pfl.crypto.notes import (
    COSIGNATURE,
    ED25519,
    MAX_SIGNATURES,
    NOTE_LIMIT,
    Note,
    NoteKey,
    check_note,
    cosign_note,
    cosignature_time,
    cosigned_bytes,
    is_key_name,
    read_note,
    read_note_key,
    sign_note,
)
from p2pfl.crypto.proofs import inclusion_proof
from p2pfl.errors import IllegalStep, LimitExceeded, MalformedMessage, RemoteError, SignatureRefused

FOLDER = Path(__file__).parents[1] / "vectors"
NOTES: dict[str, Any] = json.loads((FOLDER / "signed_note.json").read_text())
COSIGNED: dict[str, Any] = json.loads((FOLDER / "tlog_cosignature.json").read_text())
OWNER = Identity.from_seed(bytes(range(32)))
ORIGIN = log_origin("Coeurs de Normandie", OWNER.peer_id)


def keys_of(case: dict[str, Any]) -> list[NoteKey]:
    return [read_note_key(text) for text in case.get("verifier_keys") or [case["verifier_key"]]]


@pytest.mark.parametrize("case", NOTES["valid"], ids=lambda case: case["name"])
def test_published_notes_verify_and_are_spelled_as_published(case: dict[str, Any]) -> None:
    keys = keys_of(case)
    note = read_note(case["note"].encode())
    assert check_note(note, keys) == tuple(keys)
    assert note.encode() == case["note"].encode()
    assert [key.text for key in keys] == (case.get("verifier_keys") or [case["verifier_key"]])
    assert [check_note(note, [key]) for key in keys] == [(key,) for key in keys], "one known key is enough"
    for key, seed in zip(keys, case.get("seeds_hex", [case[k] for k in ("seed_hex",) if k in case]), strict=False):
        assert sign_note(note.text, key.name, Identity.from_seed(bytes.fromhex(seed))) in note.signatures
    if "tree_size" in case:
        assert read_checkpoint(note.text).size == case["tree_size"]
        assert read_checkpoint(note.text).text == note.text


def test_a_note_may_have_blank_lines_in_its_text() -> None:
    (case,) = NOTES["syntax_only"]
    note = read_note(case["note"].encode())
    assert note.text.count("\n\n") == 1
    assert note.encode() == case["note"].encode()


@pytest.mark.parametrize("case", NOTES["must_reject"]["cases"], ids=lambda case: case["reason"])
def test_published_bad_notes_are_refused(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["note_hex"]) if "note_hex" in case else case["note"].encode()
    with pytest.raises(RemoteError):
        check_note(read_note(data), [read_note_key(NOTES["must_reject"]["verifier_key"])])


@pytest.mark.parametrize("case", NOTES["must_reject_verifier_key"], ids=lambda case: case["reason"])
def test_published_bad_verifier_keys_are_refused(case: dict[str, Any]) -> None:
    with pytest.raises(MalformedMessage):
        read_note_key(case["key"])


@pytest.mark.parametrize("case", COSIGNED["cosignatures"], ids=lambda case: case["verifier_key"].split("+")[0])
def test_published_cosignatures_verify_and_are_reproduced(case: dict[str, Any]) -> None:
    key, note, derived = read_note_key(case["verifier_key"]), read_note(case["note"].encode()), case["derived"]
    assert check_note(note, [key]) == (key,)
    (line,) = (item for item in note.signatures if item.name == key.name)
    assert cosignature_time(line) == derived["timestamp"]
    assert cosigned_bytes(note.text, derived["timestamp"]).decode() == derived["signed_message"]
    assert line.value.hex() == derived["timestamped_signature_hex"]
    witness = Identity.from_seed(bytes.fromhex(case["seed_hex"]))
    assert cosign_note(note.text, key.name, witness, derived["timestamp"]) == line
    for changed in (line.value[:-1], bytes([line.value[0] ^ 1]) + line.value[1:]):
        lines = tuple(replace(item, value=changed) if item is line else item for item in note.signatures)
        with pytest.raises(SignatureRefused):
            check_note(Note(note.text, lines), [key])


def test_the_published_layout_and_witness_requests_have_sound_checkpoints() -> None:
    note = read_note(COSIGNED["layout_example"]["note"].encode())
    assert cosignature_time(note.signatures[1]) == COSIGNED["layout_example"]["timestamp"]
    requests = COSIGNED["witness_requests"]
    key = read_note_key(requests["log_verifier_key"])
    for request in requests["requests"]:
        checkpoint = read_note(request["request"].partition("\n\n")[2].encode())
        assert check_note(checkpoint, [key]) == (key,)
        found = read_checkpoint(checkpoint.text)
        assert (found.origin, found.size) == (requests["origin"], request["new_size"])


def test_a_known_key_that_fails_spoils_the_note_and_unknown_ones_do_not() -> None:
    text, other = "text\n", Identity.from_seed(bytes(32))
    good, foreign = sign_note(text, "owner", OWNER), sign_note("else\n", "other", other)
    keys = [NoteKey("owner", ED25519, OWNER.public_key), NoteKey("other", ED25519, other.public_key)]
    note = Note(text, (foreign, good))
    assert check_note(note, keys[:1]) == (keys[0],)
    with pytest.raises(SignatureRefused):
        check_note(note, keys)
    with pytest.raises(SignatureRefused, match="no signature of a key that counts"):
        check_note(note, [])
    assert check_note(Note(text, (good, good)), keys) == (keys[0],), "said twice is said once"
    # the same key for another purpose has another id, and its lines say nothing here
    with pytest.raises(SignatureRefused, match="no signature of a key that counts"):
        check_note(Note(text, (good,)), [NoteKey("owner", COSIGNATURE, OWNER.public_key)])


MALFORMED = {
    "empty": b"",
    "only newlines": b"\n\n\n",
    "carriage return": b"text\r\n\n\xe2\x80\x94 a AAAAAAA=\n",
    "name with a plus": "text\n\n— a+b AAAAAAA=\n".encode(),
    "name with a foreign blank": "text\n\n— a\u3000b AAAAAAA=\n".encode(),
    "no name": "text\n\n—  AAAAAAA=\n".encode(),
    "hyphen for the dash": b"text\n\n- a AAAAAAA=\n",
    "no signature behind the id": "text\n\n— a AAAAAA==\n".encode(),
    "stray bits in base64": "text\n\n— a AAAAAAB=\n".encode(),
    "base64 without padding": "text\n\n— a AAAAAAA\n".encode(),
    "base64 for addresses": "text\n\n— a AAAAAA-=\n".encode(),
    "a word too many": "text\n\n— a AAAAAAA= b\n".encode(),
}


@pytest.mark.parametrize("name", list(MALFORMED))
def test_malformed_notes_are_refused(name: str) -> None:
    with pytest.raises(MalformedMessage, match="signed note cannot be read"):
        read_note(MALFORMED[name])


def test_caps_and_names() -> None:
    line = "— a AAAAAAA=\n"
    assert len(read_note(("text\n\n" + line * MAX_SIGNATURES).encode()).signatures) == MAX_SIGNATURES
    with pytest.raises(LimitExceeded):
        read_note(("text\n\n" + line * (MAX_SIGNATURES + 1)).encode())
    with pytest.raises(LimitExceeded):
        read_note(b"x" * NOTE_LIMIT + b"\n\n" + line.encode())
    assert not any(is_key_name(name) for name in ("", "a b", "a+b", "a\u00a0b", "a\nb", "a\x01b"))
    for text, name in (("no newline", "a"), ("control\x01\n", "a"), ("text\n", "a b")):
        with pytest.raises(IllegalStep):
            sign_note(text, name, OWNER)
    assert from_base64("YQ==") == b"a" and from_base64("YR==") is None and from_base64("é") is None


def test_the_origin_holds_the_consortium_and_the_peer_and_is_a_key_name() -> None:
    assert log_origin("", OWNER.peer_id) == f"p2pfl/{OWNER.peer_id}"
    assert f"p2pfl/Coeurs%20de%20Normandie/{OWNER.peer_id}" == ORIGIN
    names = ("a+b", "a/b", "Cœurs", "a%20b", "-", "\N{IDEOGRAPHIC SPACE}")
    assert len({log_origin(name, OWNER.peer_id) for name in names}) == len(names)
    assert all(is_key_name(log_origin(name, OWNER.peer_id)) for name in names)
    assert read_note_key(log_key(ORIGIN, OWNER.peer_id).text) == log_key(ORIGIN, OWNER.peer_id)


CHECKPOINTS = {
    "two lines": f"{ORIGIN}\n5\n",
    "no origin": f"\n5\n{to_base64(bytes(32))}\n",
    "leading zero": f"{ORIGIN}\n05\n{to_base64(bytes(32))}\n",
    "sign": f"{ORIGIN}\n+5\n{to_base64(bytes(32))}\n",
    "other digits": f"{ORIGIN}\n\u0665\n{to_base64(bytes(32))}\n",
    "beyond 63 bits": f"{ORIGIN}\n{2**63}\n{to_base64(bytes(32))}\n",
    "short root": f"{ORIGIN}\n5\n{to_base64(bytes(31))}\n",
    "root in hexadecimal": f"{ORIGIN}\n5\n{'00' * 32}\n",
    "blank extension": f"{ORIGIN}\n5\n{to_base64(bytes(32))}\n\nmore\n",
    "extension line": f"{ORIGIN}\n5\n{to_base64(bytes(32))}\nmore\n",
    "another origin": f"{ORIGIN}x\n5\n{to_base64(bytes(32))}\n",
}


@pytest.mark.parametrize("name", list(CHECKPOINTS))
def test_what_is_no_checkpoint_of_ours_is_refused_although_it_is_signed(name: str) -> None:
    text = CHECKPOINTS[name]
    data = Note(text, (sign_note(text, ORIGIN, OWNER),)).encode()
    with pytest.raises(RemoteError):
        open_checkpoint(data, ORIGIN, OWNER.peer_id)


def flips(data: bytes) -> list[bytes]:
    return [bytes([*data[:at], data[at] ^ (1 << bit), *data[at + 1 :]]) for at in range(len(data)) for bit in range(8)]


def test_no_flipped_bit_of_a_checkpoint_passes() -> None:
    data = sign_checkpoint(OWNER, Checkpoint(ORIGIN, 5, bytes(range(32))))
    assert open_checkpoint(data, ORIGIN, OWNER.peer_id) == Checkpoint(ORIGIN, 5, bytes(range(32)))
    for changed in flips(data):
        with pytest.raises(RemoteError):
            open_checkpoint(changed, ORIGIN, OWNER.peer_id)
    with pytest.raises(SignatureRefused):
        open_checkpoint(data, log_origin("Others", OWNER.peer_id), OWNER.peer_id)
    with pytest.raises(SignatureRefused):
        open_checkpoint(data, ORIGIN, Identity.from_seed(bytes(32)).peer_id)


def small_proof(index: int = 2) -> LogProof:
    entries = [entry_data(place, 7, place, "mixed", b"\x80", bytes(32)) for place in range(5)]
    leaves = [leaf_hash(data) for data in entries]
    note = sign_checkpoint(OWNER, Checkpoint(ORIGIN, 5, root_of_hashes(leaves)))
    path = inclusion_proof(index, 5, lambda level, place: root_of_hashes(leaves[place << level : (place + 1) << level]))
    return LogProof(entries[index], index, path, note)


def test_a_log_proof_is_one_text_and_no_flipped_bit_of_it_passes() -> None:
    proof = small_proof()
    data = proof.encode()
    assert read_log_proof(data) == proof
    entry, checkpoint = read_log_proof(data).open(ORIGIN, OWNER.peer_id)
    assert entry == EntryData(2, 7, 2, "mixed", b"\x80", bytes(32))
    assert checkpoint.size == 5
    for changed in flips(data):
        with pytest.raises(RemoteError):
            read_log_proof(changed).open(ORIGIN, OWNER.peer_id)


def test_an_entry_that_says_another_place_than_its_own_is_refused() -> None:
    data = entry_data(1, 7, 1, "mixed", b"\x80", bytes(32))
    note = sign_checkpoint(OWNER, Checkpoint(ORIGIN, 1, leaf_hash(data)))
    with pytest.raises(SignatureRefused, match="another place"):
        LogProof(data, 0, (), note).open(ORIGIN, OWNER.peer_id)


def altered(text: str) -> list[str]:
    lines = text.split("\n")
    without = [[*lines[:at], *lines[at + 1 :]] for at in range(6)]
    return ["\n".join(item) for item in (*without, ["x", *lines], lines[::-1], [lines[0], *lines])]


@pytest.mark.parametrize("place", range(9))
def test_a_log_proof_with_a_line_more_or_less_is_refused(place: int) -> None:
    changed = altered(small_proof().encode().decode())[place]
    with pytest.raises(RemoteError):
        read_log_proof(changed.encode()).open(ORIGIN, OWNER.peer_id)


def test_entry_data_is_taken_apart_only_if_its_lengths_fit() -> None:
    data = entry_data(3, 5, 1, "delta_sent", b"body", bytes(range(32)))
    assert read_entry_data(data) == EntryData(3, 5, 1, "delta_sent", b"body", bytes(range(32)))
    for cut in range(len(data)):
        with pytest.raises(MalformedMessage):
            read_entry_data(data[:cut])
    with pytest.raises(MalformedMessage):
        read_entry_data(data + b"x")
    with pytest.raises(LimitExceeded):
        read_entry_data(bytes(DATA_LIMIT + 1))
    assert sha256(b"\x00" + data) == leaf_hash(data).hex()
