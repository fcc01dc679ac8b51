// Runs the tests of the header in node, with a host of a few lines: node run.mjs core.wasm, built from main.c as a reactor.

import { readFile } from "node:fs/promises";

const { instance, say } = await load(process.argv[2]);
const { memory, cabi_realloc: allocate, _initialize: begin, ...tests } = instance.exports;
begin();

// What traps on purpose, and its last line in the log.
const TRAPS = { "keys that together exceed the memory are refused": "state: the keys and values of one call have more than 2 GiB" };

let [passed, failed] = [0, 0];
for (const [name, run] of Object.entries(tests)) {
  if (typeof run !== "function") continue;
  say.length = 0;
  let trap;
  try {
    run();
  } catch (error) {
    trap = error;
  }
  const wanted = TRAPS[name];
  if (wanted === undefined ? trap === undefined : trap !== undefined && say.at(-1) === wanted) {
    passed++;
  } else {
    failed++;
    console.log(`not ok: ${name}: ${trap ?? "no trap"}: ${say.join(", ") || "nothing in the log"}`);
  }
}
console.log(`${passed} passed, ${failed} failed`);
process.exitCode = failed === 0 && passed > 0 ? 0 : 1;

async function load(path) {
  const say = [];
  const bytes = (start, size) => new Uint8Array(instance.exports.memory.buffer, start, size);
  const text = (start, size) => new TextDecoder().decode(bytes(start, size).slice());
  const numbers = (start, given) => new Uint32Array(instance.exports.memory.buffer, start, given.length).set(given);
  const placed = (given) => {
    const start = instance.exports.cabi_realloc(0, 0, 8, given.length);
    bytes(start, given.length).set(given);
    return start;
  };
  const host = {
    "millrace:broker/log@0.1.1": { log: (level, start, size) => say.push(text(start, size)) },
    "millrace:broker/state@0.1.1": {
      // Every key's value is the key itself.
      get(data, size, keys, count, result) {
        if (count > 20_000) throw new Error("more than 10,000 keys in one call");
        const spans = new Uint8Array(bytes(keys, count * 4));
        const found = [placed(bytes(data, size).slice()), size, placed(spans), count];
        numbers(result, found);
      },
      set: (...given) => {
        const why = new TextEncoder().encode("no room here");
        numbers(given.at(-1), [1, 0, placed(why), why.length]);
      },
    },
  };
  // What else the header may import is not called by the tests.
  const missing = (module) => new Proxy({}, { get: (_, name) => () => { throw new Error(`${module} ${String(name)} was called`); } });
  const imports = new Proxy(host, { get: (known, module) => known[module] ?? missing(module) });
  const { instance } = await WebAssembly.instantiate(await readFile(path), imports);
  return { instance, say };
}
