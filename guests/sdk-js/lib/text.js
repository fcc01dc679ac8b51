// Bytes and text. QuickJS has no TextDecoder; a loop over bytes costs it 50 ns a byte, a regular expression 25 ns, most built-in functions
// less than 10 ns: so this is made of those. "Binary" is a string with one character, U+0000 to U+00FF, per byte.

/** Texts and spans up to this length are handled character by character: that is quicker than a built-in function's detours. */
const SHORT = 24;
/** Bytes up to which String.fromCharCode takes them as arguments. */
const ARGUMENTS_MAX = 4096;
/** The bits that no ASCII byte has, in each of four bytes. */
const HIGH_BITS = 0x80808080 | 0;

/** A view of a buffer's bytes as numbers of four bytes each, for `isAsciiIn`. */
export function wordsOf(bytes) {
  const { buffer, byteOffset, length } = bytes;
  return byteOffset % 4 === 0 ? new Int32Array(buffer, byteOffset, length >> 2) : undefined;
}

/** Whether the bytes from `start` to `end` are all ASCII. `words` are the same bytes, four at a time. */
export function isAsciiIn(bytes, words, start, end) {
  if (words === undefined || end - start < SHORT) return isAsciiSlowly(bytes, start, end);
  const [first, last] = [(start + 3) >> 2, end >> 2];
  let at = first;
  for (; at + 8 <= last; at += 8) {
    const bits = words[at] | words[at + 1] | words[at + 2] | words[at + 3] | words[at + 4] | words[at + 5] | words[at + 6] | words[at + 7];
    if ((bits & HIGH_BITS) !== 0) return false;
  }
  for (; at < last; at++) {
    if ((words[at] & HIGH_BITS) !== 0) return false;
  }
  return isAsciiSlowly(bytes, start, 4 * first) && isAsciiSlowly(bytes, 4 * last, end);
}

function isAsciiSlowly(bytes, start, end) {
  for (let at = start; at < end; at++) {
    if (bytes[at] > 0x7f) return false;
  }
  return true;
}

function isAsciiBytes(bytes) {
  return isAsciiIn(bytes, wordsOf(bytes), 0, bytes.length);
}

/** Whether all characters are ASCII: then the text is its own binary string. */
export function isAscii(text) {
  if (text.length > SHORT) {
    const bytes = binaryBytes(text);
    return bytes !== undefined && isAsciiBytes(bytes);
  }
  for (let at = 0; at < text.length; at++) {
    if (text.charCodeAt(at) > 0x7f) return false;
  }
  return true;
}

/** Bytes as a binary string. */
export function toBinary(bytes) {
  const { length } = bytes;
  if (canBase64 && length > SHORT) return atob(bytes.toBase64());
  if (length <= ARGUMENTS_MAX) return String.fromCharCode.apply(null, bytes);
  let binary = "";
  for (let start = 0; start < length; start += ARGUMENTS_MAX) {
    binary += String.fromCharCode.apply(null, bytes.subarray(start, start + ARGUMENTS_MAX));
  }
  return binary;
}

/** A binary string as bytes; `undefined` if it has characters beyond U+00FF. */
function binaryBytes(binary) {
  const { length } = binary;
  if (canBase64 && length > SHORT) {
    try {
      return Uint8Array.fromBase64(btoa(binary));
    } catch {
      return undefined;
    }
  }
  const bytes = new Uint8Array(length);
  for (let at = 0; at < length; at++) {
    const code = binary.charCodeAt(at);
    if (code > 0xff) return undefined;
    bytes[at] = code;
  }
  return bytes;
}

/** The bytes of an ASCII text; `undefined` if it is none. */
export function asciiBytes(text) {
  const bytes = binaryBytes(text);
  return bytes !== undefined && isAsciiBytes(bytes) ? bytes : undefined;
}

/** A binary string as bytes. */
export function fromBinary(binary) {
  return binaryBytes(binary);
}

const canBase64 =
  typeof atob === "function" &&
  typeof Uint8Array.fromBase64 === "function" &&
  typeof Uint8Array.prototype.toBase64 === "function";

/** A binary string of UTF-8 as text; bytes that are not UTF-8 become U+FFFD. */
export function binaryToText(binary) {
  try {
    return decodeURIComponent(escape(binary));
  } catch {
    return lossyText(binary);
  }
}

/** Text as a binary string of UTF-8; half a surrogate pair becomes U+FFFD. */
export function textToBinary(text) {
  if (isAscii(text)) return text;
  try {
    return unescape(encodeURIComponent(text));
  } catch {
    return unescape(encodeURIComponent(text.replace(LONE_SURROGATES, "\ufffd")));
  }
}

const LONE_SURROGATES = /[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

/** Well-formed sequences of UTF-8, and anything else: its longest beginning of a sequence, as the Encoding standard says. */
const SEQUENCES =
  /([\0-\x7f]+|(?:[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}|\xed[\x80-\x9f][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2})+)|(?:\xe0[\xa0-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]|\xed[\x80-\x9f]|\xf0[\x90-\xbf][\x80-\xbf]?|[\xf1-\xf3][\x80-\xbf]{1,2}|\xf4[\x80-\x8f][\x80-\xbf]?|[\s\S])/g;

function lossyText(binary) {
  return binary.replace(SEQUENCES, (_, valid) =>
    valid === undefined ? "\ufffd" : decodeURIComponent(escape(valid)),
  );
}

export const utf8 = {
  encode: (text) => asciiBytes(text) ?? fromBinary(textToBinary(text)),
  decode(bytes) {
    const binary = toBinary(bytes);
    return isAsciiBytes(bytes) ? binary : binaryToText(binary);
  },
};

export const latin1 = {
  encode: (text) => {
    const bytes = binaryBytes(text);
    if (bytes === undefined) throw new RangeError("latin1 has only the characters U+0000 to U+00FF");
    return bytes;
  },
  decode: toBinary,
};

/** Text or bytes as bytes. */
export function toBytes(value) {
  return typeof value === "string" ? utf8.encode(value) : value;
}
