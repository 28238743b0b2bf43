"""Identity and peer ids, key file, signed envelopes, sealing for many recipients, TLS certificates, and the public
formats of a transparency log (Merkle proofs, signed notes, checkpoints).

This room knows nothing of what it seals or signs, and decides nothing: membership, freshness and policy are
the callers' questions. Formats byte by byte: docs/cryptography.md.
"""

from __future__ import annotations

from p2pfl.crypto.certificates import (
    CERTIFICATE_LIMIT,
    Certificate,
    certificate_expiry,
    certificate_pem,
    create_certificate,
)
from p2pfl.crypto.checkpoints import (
    Checkpoint,
    epoch_of,
    epoch_origin,
    log_key,
    log_origin,
    open_checkpoint,
    plain_checkpoint,
    sign_checkpoint,
)
from p2pfl.crypto.cosignatures import Cosignature, cosign, open_cosignature, staple
from p2pfl.crypto.digests import DIGEST_BYTES, parse_digest, sha256
from p2pfl.crypto.envelope import (
    DOMAIN,
    ENVELOPE_OVERHEAD,
    Envelope,
    Signer,
    Verify,
    claimed,
    open_envelope,
    sign_envelope,
)
from p2pfl.crypto.identity import SIGNATURE_BYTES, Identity, verify_signature
from p2pfl.crypto.keystore import PassphraseCost, is_sealed, read_key, write_key
from p2pfl.crypto.log_entries import EntryData, entry_data, read_entry_data
from p2pfl.crypto.log_proofs import PROOF_LIMIT, LogProof, read_log_proof
from p2pfl.crypto.merkle import leaf_hash, merkle_root, node_hash, root_of_hashes
from p2pfl.crypto.packing import pack, read_fields, unpack
from p2pfl.crypto.peer_ids import (
    parse_peer_id,
    peer_id_from_public_key,
    peer_id_to_cid,
    public_key_from_peer_id,
)
from p2pfl.crypto.prekeys import CONTENT_KEY_BYTES, PREKEY_BYTES, WRAPPED_BYTES, Prekey, wrap_key
from p2pfl.crypto.sealing import (
    CHUNK,
    SIZE_LIMIT,
    Manifest,
    Opener,
    Sealed,
    ciphertext_size,
    expected_chunks,
    open_all,
    open_all_off_loop,
    seal,
    seal_off_loop,
)

__all__ = [
    "CERTIFICATE_LIMIT",
    "CHUNK",
    "CONTENT_KEY_BYTES",
    "DIGEST_BYTES",
    "DOMAIN",
    "ENVELOPE_OVERHEAD",
    "PREKEY_BYTES",
    "PROOF_LIMIT",
    "SIGNATURE_BYTES",
    "SIZE_LIMIT",
    "WRAPPED_BYTES",
    "Certificate",
    "Checkpoint",
    "Cosignature",
    "EntryData",
    "Envelope",
    "Identity",
    "LogProof",
    "Manifest",
    "Opener",
    "PassphraseCost",
    "Prekey",
    "Sealed",
    "Signer",
    "Verify",
    "certificate_expiry",
    "certificate_pem",
    "ciphertext_size",
    "claimed",
    "cosign",
    "create_certificate",
    "entry_data",
    "epoch_of",
    "epoch_origin",
    "expected_chunks",
    "is_sealed",
    "leaf_hash",
    "log_key",
    "log_origin",
    "merkle_root",
    "node_hash",
    "open_all",
    "open_all_off_loop",
    "open_checkpoint",
    "open_cosignature",
    "open_envelope",
    "pack",
    "parse_digest",
    "parse_peer_id",
    "peer_id_from_public_key",
    "peer_id_to_cid",
    "plain_checkpoint",
    "public_key_from_peer_id",
    "read_entry_data",
    "read_fields",
    "read_key",
    "read_log_proof",
    "root_of_hashes",
    "seal",
    "seal_off_loop",
    "sha256",
    "sign_checkpoint",
    "sign_envelope",
    "staple",
    "unpack",
    "verify_signature",
    "wrap_key",
    "write_key",
]
