// Settings of the processor. They stay as they are during a call, so each is asked for once per call.

import { currentCall, hostOf } from "./host.js";

const known = new Map();
let knownIn = -1;

export const config = {
  get(key) {
    if (knownIn !== currentCall()) {
      known.clear();
      knownIn = currentCall();
    }
    let value = known.get(key);
    if (value === undefined) {
      value = hostOf("config").get(key) ?? null;
      known.set(key, value);
    }
    return value;
  },
  all: () => Object.fromEntries(hostOf("config").all()),
};
