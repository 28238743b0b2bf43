// Asks for a service type over multicast DNS, as any device in the network may, and reports each answer's records.

import makeMulticastDns from 'multicast-dns'

import { obey, report } from './lines.mjs'

const AGAIN = 1100 // ms between questions; RFC 6762 section 6: a record is sent again after one second at the earliest

obey({
  browse ({ interface: address, service }) {
    // bound to the interface's own address, Linux would hand over no multicast
    const browser = makeMulticastDns({ interface: address, bind: '0.0.0.0' })
    for (const name of ['error', 'warning']) browser.on(name, (error) => report({ fault: error.message }))
    browser.on('response', ({ answers, additionals }) => {
      const records = [...answers, ...additionals]
      if (!records.some(({ type, name }) => type === 'PTR' && name === service)) return
      report({ records: records.map((record) => (
        record.type === 'TXT' ? { ...record, data: record.data.map((text) => text.toString()) } : record
      )) })
    })
    const ask = () => browser.query(service, 'PTR')
    browser.on('ready', ask)
    setInterval(ask, AGAIN)
  }
})
