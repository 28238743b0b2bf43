// Peer ids as js-libp2p makes and reads them. In: seeds (hex) and texts; out: ids of the seeds, keys in the texts.

import { generateKeyPairFromSeed } from '@libp2p/crypto/keys'
import { peerIdFromCID, peerIdFromPrivateKey, peerIdFromString } from '@libp2p/peer-id'
import { CID } from 'multiformats/cid'

import { obey, report } from './lines.mjs'

const hex = (bytes) => Buffer.from(bytes).toString('hex')

obey({
  async make ({ seeds, message }) {
    const made = []
    for (const seed of seeds) {
      const key = await generateKeyPairFromSeed('Ed25519', Buffer.from(seed, 'hex'))
      const peer = peerIdFromPrivateKey(key)
      const signature = hex(await key.sign(Buffer.from(message)))
      made.push({ text: peer.toString(), cid: peer.toCID().toString(), key: hex(key.publicKey.raw), signature })
    }
    report({ made })
  },
  read ({ texts, cids }) {
    const read = [...texts.map((text) => peerIdFromString(text)), ...cids.map((cid) => peerIdFromCID(CID.parse(cid)))]
    report({ read: read.map((peer) => ({ type: peer.type, key: hex(peer.publicKey.raw) })) })
  }
})
