// One end of a p2pfl data channel on libdatachannel, a WebRTC stack in C++: commands in, reports out (lines.mjs).

import nodeDataChannel from 'node-datachannel'

import { Framing } from './framing.mjs'
import { obey, report } from './lines.mjs'

const HOST = '127.0.0.1'

let connection, channel, framing
let mode = 'echo' // what becomes of a frame that arrives: sent back, dropped, or held without credit
const held = []
let arrivedBytes = 0

function arrive (frame, cost) {
  arrivedBytes += frame.length
  treat(frame, cost)
}

async function treat (frame, cost) {
  if (mode === 'hold') return held.push([frame, cost])
  if (mode === 'echo') await framing.send(frame)
  framing.take(cost)
  if (mode === 'drop' && frame.length === 0) report({ dropped: arrivedBytes })
}

const colons = (hex) => hex.toUpperCase().match(/../g).join(':')

function toSdp ({ fingerprint, username, password, candidates, message_limit: messageLimit }, setup) {
  const lines = [
    'v=0', 'o=- 1 1 IN IP4 127.0.0.1', 's=-', 't=0 0', 'a=group:BUNDLE 0',
    'm=application 9 UDP/DTLS/SCTP webrtc-datachannel', 'c=IN IP4 0.0.0.0', 'a=mid:0', `a=setup:${setup}`,
    'a=sctp-port:5000', `a=max-message-size:${messageLimit}`, `a=ice-ufrag:${username}`, `a=ice-pwd:${password}`,
    `a=fingerprint:sha-256 ${colons(fingerprint)}`
  ]
  for (const { foundation, host, port, priority, type } of candidates) {
    lines.push(`a=candidate:${foundation} 1 udp ${priority} ${host} ${port} typ ${type}`)
  }
  return [...lines, 'a=end-of-candidates', ''].join('\r\n')
}

function fromSdp (sdp) {
  const value = (name) => sdp.match(new RegExp(`^a=${name}:(.*?)\\r?$`, 'm'))[1]
  const candidates = [...sdp.matchAll(/^a=candidate:(\S+) 1 UDP (\d+) (\S+) (\d+) typ (\S+)/gmi)]
  return {
    fingerprint: value('fingerprint').split(' ')[1].replaceAll(':', '').toLowerCase(),
    username: value('ice-ufrag'),
    password: value('ice-pwd'),
    candidates: candidates.map(([, foundation, priority, host, port, type]) => (
      { foundation, host, port: Number(port), priority: Number(priority), type }
    ))
  }
}

function open () {
  // no server stands in the list: nothing beside the test's own process is contacted
  connection = new nodeDataChannel.PeerConnection('counterpart', { iceServers: [], bindAddress: HOST, disableAutoNegotiation: true })
  connection.onStateChange((state) => report({ state }))
  connection.onGatheringStateChange((state) => {
    if (state === 'complete') report({ local: fromSdp(connection.localDescription().sdp) })
  })
  channel = connection.createDataChannel('p2pfl', { negotiated: true, id: 0 })
  framing = new Framing(channel, {
    frame: arrive,
    stalled: (spent) => report({ stalled: spent }),
    finished: (by) => report({ finished: by }),
    fault: (words) => report({ fault: words })
  })
  channel.onOpen(() => report({ open: channel.maxMessageSize() }))
  channel.onClosed(() => report({ closed: true }))
}

obey({
  offer () {
    open()
    connection.setLocalDescription('offer')
  },
  answer ({ remote }) {
    open()
    connection.setRemoteDescription(toSdp(remote, 'actpass'), 'offer')
    connection.setLocalDescription('answer')
  },
  take_answer ({ remote }) {
    connection.setRemoteDescription(toSdp(remote, 'active'), 'answer')
  },
  mode (options) {
    mode = options.mode
    while (mode !== 'hold' && held.length > 0) treat(...held.shift())
  },
  async pour ({ frames, size }) {
    for (let number = 0; number < frames; number++) await framing.send(Buffer.alloc(size, number))
    report({ poured: frames * size })
  },
  figures () {
    report({ figures: { most_ahead: framing.mostAhead, spent: framing.spent, longest: framing.longest, arrived: arrivedBytes } })
  },
  finish () {
    framing.finish()
  }
})
