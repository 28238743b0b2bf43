// One JSON object per line: commands come in on stdin, reports go out on stdout.

import { createInterface } from 'node:readline'

/** Tell the test something. */
export function report (what) {
  process.stdout.write(JSON.stringify(what) + '\n')
}

/** Carry out each command of the test; the end of stdin ends the program, so that none outlives its test. */
export function obey (commands) {
  const lines = createInterface({ input: process.stdin })
  lines.on('line', async (line) => {
    const { do: name, ...options } = JSON.parse(line)
    try {
      await commands[name](options)
    } catch (error) {
      report({ fault: `${name}: ${error.message}` })
    }
  })
  lines.on('close', () => process.exit(0))
}
