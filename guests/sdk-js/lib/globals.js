// Globals that packages expect and QuickJS lacks: text codecs, and a console that writes to the processor's log. Imported first by the
// component's entry, so that they exist when the project's modules are evaluated.

import { hasHost, hostOf } from "./host.js";
import { shown } from "./log.js";
import { utf8 } from "./text.js";

if (typeof globalThis.TextEncoder === "undefined") {
  globalThis.TextEncoder = class TextEncoder {
    get encoding() {
      return "utf-8";
    }

    encode(text = "") {
      return utf8.encode(String(text));
    }
  };
}

if (typeof globalThis.TextDecoder === "undefined") {
  globalThis.TextDecoder = class TextDecoder {
    constructor(encoding = "utf-8", { fatal = false, ignoreBOM = false } = {}) {
      if (!/^(utf-?8|unicode-1-1-utf-8)$/i.test(encoding)) throw new RangeError(`there is no decoder for ${encoding} here, only for utf-8`);
      this.encoding = "utf-8";
      this.fatal = fatal;
      this.ignoreBOM = ignoreBOM;
    }

    decode(bytes = new Uint8Array(0)) {
      const view = bytes instanceof ArrayBuffer ? new Uint8Array(bytes) : new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
      const text = utf8.decode(view);
      // Only bytes that are a U+FFFD themselves are encoded to the same bytes again.
      if (this.fatal && text.includes("\ufffd") && !same(utf8.encode(text), view)) throw new TypeError("these bytes are not UTF-8");
      return !this.ignoreBOM && text.startsWith("\ufeff") ? text.slice(1) : text;
    }
  };
}

function same(left, right) {
  return left.length === right.length && left.every((byte, at) => byte === right[at]);
}

if (typeof globalThis.console === "undefined") {
  const line = (level) => (...parts) => {
    // Nothing listens while the component is built.
    if (hasHost("log")) hostOf("log").log(level, parts.map(shown).join(" "));
  };
  globalThis.console = { error: line("error"), warn: line("warn"), info: line("info"), log: line("info"), debug: line("debug") };
}
