// The framing of p2pfl's data channel, written from its description in p2pfl/net/webrtc/channel.py alone.

const MORE = 0
const LAST = 1
const CREDIT = 2
const FIN = 3
const FIN_ACK = 4

export const WINDOW = 2 << 20
const OVERHEAD = 32
const CREDIT_STEP = WINDOW / 8
const PIECE = 14 * 1160 - 1
const QUEUE = 256 << 10 // bytes handed to the SCTP stack ahead of its sending

/**
 * Frames over `channel`. `on` holds what to call: frame(bytes, cost), stalled(spent), finished(by), fault(words).
 * A frame counts as taken out when `take(cost)` is called for it.
 */
export class Framing {
  constructor (channel, on) {
    this.channel = channel
    this.on = on
    this.outbound = []
    this.spent = this.credited = 0
    this.pieces = []
    this.cost = 0
    this.arrived = this.taken = this.told = 0
    this.mostAhead = 0 // bytes, as credit counts, that the other end was ever ahead of our credit
    this.longest = 0 // bytes of the longest message that came
    channel.setBufferedAmountLowThreshold(QUEUE / 2)
    channel.onBufferedAmountLow(() => this.pump())
    channel.onMessage((message) => this.receive(message))
  }

  receive (message) {
    if (typeof message === 'string') return this.on.fault('a text message')
    const data = Buffer.from(message)
    this.longest = Math.max(this.longest, data.length)
    const kind = data[0]
    if (kind === MORE || kind === LAST) {
      this.receivePiece(data, kind === LAST)
    } else if (kind === CREDIT && data.length === 9) {
      const credited = Number(data.readBigUInt64BE(1))
      if (credited < this.credited || credited > this.spent) return this.on.fault('credit for nothing')
      this.credited = credited
      this.pump()
    } else if (kind === FIN && data.length === 1) {
      this.channel.sendMessageBinary(Buffer.from([FIN_ACK]))
      this.on.finished('them')
    } else if (kind === FIN_ACK && data.length === 1) {
      this.on.finished('us')
    } else {
      this.on.fault(`a message of type ${kind} with ${data.length} bytes`)
    }
  }

  receivePiece (data, last) {
    const cost = data.length + OVERHEAD
    this.arrived += cost
    this.cost += cost
    this.mostAhead = Math.max(this.mostAhead, this.arrived - this.told)
    if (this.arrived - this.told > WINDOW) this.on.fault(`${this.arrived - this.told} bytes ahead of our credit`)
    this.pieces.push(data.subarray(1))
    if (last) {
      const frame = Buffer.concat(this.pieces)
      const paid = this.cost
      this.pieces = []
      this.cost = 0
      this.on.frame(frame, paid)
    }
  }

  take (cost) {
    this.taken += cost
    if (this.taken - this.told >= CREDIT_STEP) {
      this.told = this.taken
      const message = Buffer.alloc(9, CREDIT)
      message.writeBigUInt64BE(BigInt(this.taken), 1)
      this.channel.sendMessageBinary(message)
    }
  }

  /** Resolves when the last piece has been paid for with credit and handed to the stack. */
  send (frame) {
    return new Promise((resolve) => {
      let start = 0
      for (; start + PIECE < frame.length; start += PIECE) {
        this.outbound.push([MORE, frame.subarray(start, start + PIECE), null])
      }
      this.outbound.push([LAST, frame.subarray(start), resolve])
      this.pump()
    })
  }

  pump () {
    while (this.outbound.length > 0 && this.channel.isOpen() && this.channel.bufferedAmount() < QUEUE) {
      const [kind, piece, sent] = this.outbound[0]
      const cost = piece.length + 1 + OVERHEAD
      if (this.spent + cost - this.credited > WINDOW) return this.on.stalled(this.spent)
      this.outbound.shift()
      this.spent += cost
      this.channel.sendMessageBinary(Buffer.concat([Buffer.from([kind]), piece]))
      if (sent !== null) sent()
    }
  }

  finish () {
    this.channel.sendMessageBinary(Buffer.from([FIN]))
  }
}
