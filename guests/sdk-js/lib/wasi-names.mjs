// componentize-qjs runs a component once while it builds it, with the real `wasi:io` and `wasi:clocks` and a stand-in for everything that
// it does not know, such as `wasi:http`. A stand-in does not share the streams of the real `wasi:io`, so such a component is refused. Under
// other names `wasi:io` and `wasi:clocks` are stand-ins as well, which do share them. So a component that answers HTTP is built with those
// other names, and gets the right ones afterwards. Both have the same length, and the version differs from that of what QuickJS imports
// itself: a component cannot import one name twice. Hosts take every 0.2.

import { cp, mkdtemp, readFile, readdir, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

const PACKAGES = ["io", "clocks"];
const [REAL, OTHER] = ["wasi", "host"];
const [VERSION_REAL, VERSION_OTHER] = ["0.2.12", "0.2.11"];
/** The section of a component with its imports. */
const IMPORTS = 10;

/** A copy of the folder of WIT in which the packages have the other names. */
export async function renamed(wit) {
  const folder = await mkdtemp(join(tmpdir(), "millrace-wit-"));
  await cp(wit, folder, { recursive: true });
  for (const name of await readdir(folder, { recursive: true })) {
    if (!name.endsWith(".wit")) continue;
    const path = join(folder, name);
    let text = await readFile(path, "utf8");
    for (const one of PACKAGES) {
      const versioned = new RegExp(`\\b${REAL}:${one}((?:/[a-z-]+)?)@${VERSION_REAL.replaceAll(".", "\\.")}`, "g");
      text = text.replaceAll(versioned, `${OTHER}:${one}$1@${VERSION_OTHER}`);
    }
    await writeFile(path, text);
  }
  return folder;
}

/** The component with the right names of its imports. */
export function restored(component) {
  const bytes = Buffer.from(component);
  // Eight bytes are the magic number and the version; then each section has a number, a length and its content.
  for (let at = 8; at < bytes.length; ) {
    const id = bytes[at];
    const [length, start] = leb128(bytes, at + 1);
    if (id === IMPORTS) restore(bytes.subarray(start, start + length));
    at = start + length;
  }
  return bytes;
}

function restore(section) {
  for (const one of PACKAGES) {
    const other = `${OTHER}:${one}/`;
    for (let at = section.indexOf(other); at >= 0; at = section.indexOf(other, at + 1)) section.write(REAL, at, "latin1");
  }
}

/** A number, and where it ends. */
function leb128(bytes, at) {
  let number = 0;
  for (let shift = 0; ; shift += 7) {
    const byte = bytes[at++];
    number += (byte & 0x7f) * 2 ** shift;
    if (byte < 0x80) return [number, at];
  }
}
