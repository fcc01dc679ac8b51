// Bytes and text. QuickJS has no TextDecoder, and a loop over bytes costs it 50 times what a built-in function does: all of this is
// made of built-in functions. "Binary" is a string with one character, 0 to 255, per byte.

const MAYBE_NOT_ASCII = /[^\0-\x7f]/;
/** Bytes up to which String.fromCharCode takes them as arguments. */
const ARGUMENTS_MAX = 4096;

/** Whether all characters are ASCII: then the text is its own binary string. */
export function isAscii(text) {
  return !MAYBE_NOT_ASCII.test(text);
}

/** Bytes as a binary string. */
export function toBinary(bytes) {
  const length = bytes.length;
  if (length <= 64 || !canBase64) {
    if (length <= ARGUMENTS_MAX) return String.fromCharCode.apply(null, bytes);
    let binary = "";
    for (let start = 0; start < length; start += ARGUMENTS_MAX) {
      binary += String.fromCharCode.apply(null, bytes.subarray(start, start + ARGUMENTS_MAX));
    }
    return binary;
  }
  return atob(bytes.toBase64());
}

/** A binary string as bytes. */
export function fromBinary(binary) {
  if (canBase64 && binary.length > 16) return Uint8Array.fromBase64(btoa(binary));
  const bytes = new Uint8Array(binary.length);
  for (let at = 0; at < binary.length; at++) bytes[at] = binary.charCodeAt(at);
  return bytes;
}

const canBase64 =
  typeof atob === "function" &&
  typeof Uint8Array.fromBase64 === "function" &&
  typeof Uint8Array.prototype.toBase64 === "function";

/** A binary string of UTF-8 as text; bytes that are not UTF-8 become U+FFFD. */
export function binaryToText(binary) {
  if (isAscii(binary)) return binary;
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
  encode: (text) => fromBinary(textToBinary(text)),
  decode: (bytes) => binaryToText(toBinary(bytes)),
};

export const latin1 = {
  encode: (text) => {
    if (/[^\0-\xff]/.test(text)) throw new RangeError("latin1 has only the characters U+0000 to U+00FF");
    return fromBinary(text);
  },
  decode: toBinary,
};

/** Text or bytes as bytes. */
export function toBytes(value) {
  return typeof value === "string" ? utf8.encode(value) : value;
}
