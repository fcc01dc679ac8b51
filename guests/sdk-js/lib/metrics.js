// The component's own metrics.

import { hostOf, toWide } from "./host.js";

export const metrics = {
  add(name, delta = 1, labels = undefined) {
    if (!(Number.isSafeInteger(delta) && delta >= 0)) {
      throw new RangeError(`a counter cannot grow by ${delta}: give a whole number, 0 or more`);
    }
    hostOf("metrics").add(name, pairs(labels), toWide(delta));
  },
  set: (name, value, labels = undefined) => hostOf("metrics").set(name, pairs(labels), Number(value)),
  observe: (name, value, labels = undefined) => hostOf("metrics").observe(name, pairs(labels), Number(value)),
};

function pairs(labels) {
  return labels === undefined ? [] : Object.entries(labels).map(([name, value]) => [name, String(value)]);
}
