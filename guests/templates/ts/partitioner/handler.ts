// Puts all messages of one region into one partition. The region is the part of the key before the first "-": "eu-4711" is of "eu".

import { partitioner } from "millrace";

export default partitioner((message, partitions) => {
  const [region] = (message.keyText() ?? "").split("-");
  return hash(region) % partitions;
});

/** FNV-1a: short, and the same in every language. */
function hash(text: string): number {
  let hash = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(text)) hash = Math.imul(hash ^ byte, 0x01000193) >>> 0;
  return hash;
}
