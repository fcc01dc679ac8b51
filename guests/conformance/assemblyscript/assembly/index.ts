// The processor of the conformance scenario (../../README.md), in AssemblyScript, without an SDK: the canonical ABI of wit/, by hand.
//
// A list is an address and a length, a record is its fields in order, and what an exported function gets is the address of its arguments. The
// runtime is `stub`: memory is given out and taken back as a whole, when the next call begins.

@external("millrace:broker/log@0.1.1", "log")
declare function hostLog(level: u32, text: usize, length: usize): void;
@external("millrace:broker/config@0.1.1", "get")
declare function hostConfigGet(key: usize, length: usize, result: usize): void;
@external("millrace:broker/state@0.1.1", "add")
declare function hostStateAdd(
  data: usize, dataLength: usize, keys: usize, keysLength: usize, deltas: usize, deltasLength: usize,
  ttlMs: usize, ttlMsLength: usize, messages: usize, messagesLength: usize, result: usize,
): void;
@external("millrace:broker/metrics@0.1.1", "add")
declare function hostMetricsAdd(name: usize, length: usize, labels: usize, count: usize, delta: u64): void;

// Positions in the records of wit/types.wit, in bytes.
const BATCH_DATA = 12, BATCH_OFFSETS = 20, BATCH_KEYS = 44, BATCH_VALUES = 52, BATCH_HEADER_ENDS = 60, BATCH_HEADERS = 68;
const ANSWER_OUTCOMES = 4, ANSWER_DETAILS = 12, ANSWER_DATA = 20, ANSWER_SOURCES = 28, ANSWER_VALUES = 68, ANSWER_HEADER_ENDS = 76, ANSWER_HEADERS = 84;
const ANSWER_BYTES = 104;
const DETAIL_BYTES = 40, DETAIL_CLASS = 24, DETAIL_REASON = 32;

const EMIT: u8 = 1, RETRY: u8 = 2, REJECT: u8 = 3;
const ERROR: u32 = 0, WARN: u32 = 1;
const NONE: u32 = 0xffffffff;
const STATE_KEYS_MAX: usize = 10000;

/** Texts, as bytes in memory that no call takes back. */
class Text {
  constructor(public at: usize, public length: usize) {}
  static of(text: string): Text {
    const length = String.UTF8.byteLength(text);
    const at = heap.alloc(max<usize>(length, 1));
    String.UTF8.encodeUnsafe(changetype<usize>(text), text.length, at);
    return new Text(at, length);
  }
}

const SUFFIX = Text.of("suffix"), COUNT = Text.of("count"), HANDLED = Text.of("handled");
const LANGUAGE = Text.of("language"), ASSEMBLYSCRIPT = Text.of("assemblyscript");
const STATE_FULL = Text.of("state-full"), LATER = Text.of("later"), TOLD_TO_WAIT = Text.of("told to wait");
const BAD = Text.of("bad"), TOLD_TO_REJECT = Text.of("told to reject"), TOLD_TO_TRAP = Text.of("told to trap");
const REJECTED = Text.of("rejected the message at offset ");
const WORD_RETRY = Text.of("retry"), WORD_REJECT = Text.of("reject"), WORD_TRAP = Text.of("trap");

// What the host's functions return, and the answer. An answer without an error.
const result = heap.alloc(16), answer = heap.alloc(ANSWER_BYTES);

// From here on memory belongs to calls.
const start = heap.alloc(1);
let free = start;
let answered = false;

function allocate(size: usize, align: usize): usize {
  const at = (free + align - 1) & ~(align - 1);
  free = at + size;
  const pages = <i32>((free + 0xffff) >>> 16);
  const missing = pages - memory.size();
  // At least twice as much: growing is slow.
  if (missing > 0 && memory.grow(max(missing, memory.size())) < 0 && memory.grow(missing) < 0) unreachable();
  return at;
}

/** Where the host puts what it passes. */
export function cabi_realloc(old: usize, oldSize: usize, align: usize, size: usize): usize {
  if (answered) {
    answered = false;
    free = start;
  }
  if (size == 0) return align;
  const at = allocate(size, align);
  if (oldSize != 0) memory.copy(at, old, min(oldSize, size));
  return at;
}

function beginsWith(at: usize, length: u32, word: Text): bool {
  return length != NONE && length >= <u32>word.length && memory.compare(at, word.at, word.length) == 0;
}

/** Writes a number in decimal, and returns its length. */
function writeDecimal(to: usize, number: u64): u32 {
  let digits: u32 = 1;
  for (let left = number / 10; left != 0; left /= 10) digits++;
  for (let at = digits; at > 0; at--) {
    store<u8>(to + at - 1, <u8>(48 + (number % 10)));
    number /= 10;
  }
  return digits;
}

function putList(field: usize, at: usize, length: usize): void {
  store<u32>(answer + field, length == 0 ? 0 : <u32>at);
  store<u32>(answer + field + 4, <u32>length);
}

function fail(detail: usize, message: usize, classAt: usize, classLength: usize, reasonAt: usize, reasonLength: usize): void {
  memory.fill(detail, 0, DETAIL_BYTES);
  store<u32>(detail, <u32>message);
  store<u32>(detail + DETAIL_CLASS, <u32>classAt);
  store<u32>(detail + DETAIL_CLASS, <u32>classLength, 4);
  store<u32>(detail + DETAIL_REASON, <u32>reasonAt);
  store<u32>(detail + DETAIL_REASON, <u32>reasonLength, 4);
}

function logRejected(offset: u64): void {
  const line = allocate(REJECTED.length + 20, 1);
  memory.copy(line, REJECTED.at, REJECTED.length);
  hostLog(WARN, line, REJECTED.length + writeDecimal(line + REJECTED.length, offset));
}

/** Each message adds 1 to the number of its key. Returns the address of the sums; 0 if there is no room, and then the reason is in `result`. */
function addOne(batch: usize, count: usize): usize {
  const given: usize = load<u32>(batch + BATCH_KEYS);
  const keys = allocate(count * 8, 4), messages = allocate(count * 4, 4), sums = allocate(count * 8, 8);
  for (let i: usize = 0; i < count; i++) {
    const absent = load<u32>(given + i * 8, 4) == NONE;
    store<u32>(keys + i * 8, absent ? 0 : load<u32>(given + i * 8));
    store<u32>(keys + i * 8, absent ? 0 : load<u32>(given + i * 8, 4), 4);
    store<u32>(messages + i * 4, <u32>i);
  }
  for (let from: usize = 0; from < count; from += STATE_KEYS_MAX) {
    const some = min(STATE_KEYS_MAX, count - from);
    hostStateAdd(
      load<u32>(batch + BATCH_DATA), load<u32>(batch + BATCH_DATA, 4), keys + from * 8, some * 2, 0, 0, 0, 0, messages + from * 4, some, result,
    );
    if (load<u8>(result) != 0) return 0;
    memory.copy(sums + from * 8, load<u32>(result, 4), some * 8);
  }
  return sums;
}

export function process(batch: usize): usize {
  const count: usize = load<u32>(batch + BATCH_OFFSETS, 4);
  const data: usize = load<u32>(batch + BATCH_DATA);
  const dataLength = load<u32>(batch + BATCH_DATA, 4);
  const inputHeaders: usize = load<u32>(batch + BATCH_HEADERS);
  const headerEnds: usize = load<u32>(batch + BATCH_HEADER_ENDS);

  hostConfigGet(SUFFIX.at, SUFFIX.length, result);
  const hasSuffix = load<u8>(result) != 0;
  const suffix: usize = hasSuffix ? <usize>load<u32>(result, 4) : 0;
  const suffixLength: u32 = hasSuffix ? load<u32>(result, 8) : 0;
  const sums = addOne(batch, count);
  const full: usize = load<u32>(result, 8), fullLength: usize = load<u32>(result, 12);

  const outcomes = allocate(count, 1);
  const details = allocate(count * DETAIL_BYTES, 8);
  const sources = allocate(count * 4, 4), values = allocate(count * 8, 4), ends = allocate(count * 4, 4);
  const headers = allocate(<usize>load<u32>(batch + BATCH_HEADERS, 4) * 4 + count * 16, 4);
  const fresh = allocate(COUNT.length + dataLength + <usize>(suffixLength + 20) * count, 1);
  // Every output has this name of a header, so it is in the answer once.
  memory.copy(fresh, COUNT.at, COUNT.length);
  let freshLength = <u32>COUNT.length, detailCount: usize = 0, outputCount: usize = 0, headerCount: usize = 0;

  for (let i: usize = 0; i < count; i++) {
    const valueStart = load<u32>(<usize>load<u32>(batch + BATCH_VALUES) + i * 8);
    const length = load<u32>(<usize>load<u32>(batch + BATCH_VALUES) + i * 8, 4);
    const value = data + valueStart;
    if (sums == 0 && count != 0) {
      store<u8>(outcomes + i, RETRY);
      fail(details + detailCount++ * DETAIL_BYTES, i, STATE_FULL.at, STATE_FULL.length, full, fullLength);
    } else if (beginsWith(value, length, WORD_RETRY)) {
      store<u8>(outcomes + i, RETRY);
      fail(details + detailCount++ * DETAIL_BYTES, i, LATER.at, LATER.length, TOLD_TO_WAIT.at, TOLD_TO_WAIT.length);
    } else if (beginsWith(value, length, WORD_REJECT)) {
      logRejected(load<u64>(<usize>load<u32>(batch + BATCH_OFFSETS) + i * 8));
      store<u8>(outcomes + i, REJECT);
      fail(details + detailCount++ * DETAIL_BYTES, i, BAD.at, BAD.length, TOLD_TO_REJECT.at, TOLD_TO_REJECT.length);
    } else if (beginsWith(value, length, WORD_TRAP)) {
      hostLog(ERROR, TOLD_TO_TRAP.at, TOLD_TO_TRAP.length);
      unreachable();
    } else {
      store<u8>(outcomes + i, EMIT);
      store<u32>(sources + outputCount * 4, <u32>i);
      if (length == NONE) {
        store<u32>(values + outputCount * 8, 0);
        store<u32>(values + outputCount * 8, NONE, 4);
      } else {
        const to = fresh + freshLength;
        for (let j: usize = 0; j < length; j++) {
          const byte = load<u8>(value + j);
          store<u8>(to + j, byte >= 97 && byte <= 122 ? byte - 32 : byte);
        }
        memory.copy(to + length, suffix, suffixLength);
        store<u32>(values + outputCount * 8, dataLength + freshLength);
        store<u32>(values + outputCount * 8, length + suffixLength, 4);
        freshLength += length + suffixLength;
      }
      const first: usize = i == 0 ? 0 : load<u32>(headerEnds + (i - 1) * 4);
      const mine = <usize>load<u32>(headerEnds + i * 4) - first;
      memory.copy(headers + headerCount * 16, inputHeaders + first * 16, mine * 16);
      headerCount += mine;
      const digits = writeDecimal(fresh + freshLength, load<u64>(sums + i * 8));
      const header = headers + headerCount++ * 16;
      store<u32>(header, dataLength);
      store<u32>(header, <u32>COUNT.length, 4);
      store<u32>(header, dataLength + freshLength, 8);
      store<u32>(header, digits, 12);
      freshLength += digits;
      store<u32>(ends + outputCount++ * 4, <u32>headerCount);
    }
  }

  memory.fill(answer, 0, ANSWER_BYTES);
  putList(ANSWER_OUTCOMES, outcomes, count);
  putList(ANSWER_DETAILS, details, detailCount);
  putList(ANSWER_DATA, fresh, freshLength);
  putList(ANSWER_SOURCES, sources, outputCount);
  putList(ANSWER_VALUES, values, outputCount * 2);
  putList(ANSWER_HEADER_ENDS, ends, outputCount);
  putList(ANSWER_HEADERS, headers, headerCount * 4);

  const label = allocate(16, 4);
  store<u32>(label, <u32>LANGUAGE.at);
  store<u32>(label, <u32>LANGUAGE.length, 4);
  store<u32>(label, <u32>ASSEMBLYSCRIPT.at, 8);
  store<u32>(label, <u32>ASSEMBLYSCRIPT.length, 12);
  hostMetricsAdd(HANDLED.at, HANDLED.length, label, 1, count);
  answered = true;
  return answer;
}
