// Secrets by name. They stay as they are during a call, so each is asked for once per call.

import { currentCall, hostOf, payloadOf } from "./host.js";
import { Unavailable } from "./outcomes.js";
import { utf8 } from "./text.js";

const known = new Map();
let knownIn = -1;

export const secrets = {
  get(name) {
    if (knownIn !== currentCall()) {
      known.clear();
      knownIn = currentCall();
    }
    let value = known.get(name);
    if (value === undefined) {
      value = ask(name);
      known.set(name, value);
    }
    // The next one who asks gets the host's bytes, not what this one made of them.
    return value.slice();
  },
  text: (name) => utf8.decode(secrets.get(name)),
};

function ask(name) {
  try {
    return hostOf("secrets").get(name);
  } catch (error) {
    switch (payloadOf(error)?.tag) {
      case "unavailable":
        throw new Unavailable(`the secret ${name} is unavailable: ${payloadOf(error).val}`);
      case "not-granted":
        throw new Error(`the processor has no grant for the secret ${name}: grant it when you deploy`);
      default:
        throw error;
    }
  }
}
