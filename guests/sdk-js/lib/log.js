// Lines of the processor's log.

import { hostOf } from "./host.js";

function line(level) {
  return (...parts) => hostOf("log").log(level, parts.map(shown).join(" "));
}

/** As text; objects as JSON. */
export function shown(part) {
  if (typeof part === "string") return part;
  if (part instanceof Error) return part.stack ? `${part}\n${part.stack}` : String(part);
  if (typeof part === "object" && part !== null) {
    try {
      return JSON.stringify(part);
    } catch {
      return String(part);
    }
  }
  return String(part);
}

export const log = { error: line("error"), warn: line("warn"), info: line("info"), debug: line("debug") };
