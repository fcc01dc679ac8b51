/* The processor of the conformance scenario (../README.md), in C. */
#define MILLRACE_IMPLEMENTATION
#include "millrace.h"

/* The value in upper case, and the suffix. */
static void answer_value(mr_output *output, mr_bytes value, mr_bytes suffix) {
  uint8_t *to = mr_new_value(output, value.size + suffix.size);
  for (size_t at = 0; at < value.size; at++) {
    uint8_t byte = value.data[at];
    to[at] = byte >= 'a' && byte <= 'z' ? byte - 32 : byte;
  }
  if (suffix.size != 0) memcpy(to + value.size, suffix.data, suffix.size);
}

/* A number in decimal. */
static mr_bytes decimal(int64_t number, char text[20]) {
  char *end = text + 20, *at = end;
  uint64_t left = (uint64_t)number;
  do {
    *--at = (char)('0' + left % 10);
    left /= 10;
  } while (left != 0);
  return mr_bytes_of(at, (size_t)(end - at));
}

static mr_outcome answer(const mr_message *message, mr_output *output, mr_bytes suffix, int64_t count) {
  char text[20];
  if (mr_begins_with(message->value, "retry")) return mr_retry(output, "later", "told to wait");
  if (mr_begins_with(message->value, "reject")) {
    mr_logf(MR_WARN, "rejected the message at offset %llu", (unsigned long long)message->offset);
    return mr_reject(output, "bad", "told to reject");
  }
  if (mr_begins_with(message->value, "trap")) {
    mr_log(MR_ERROR, mr_text("told to trap"));
    __builtin_trap();
  }
  if (!mr_is_absent(message->value)) answer_value(output, message->value, suffix);
  mr_add_header(output, "count", decimal(count, text));
  return MR_EMIT;
}

static const char *process(mr_batch *batch) {
  uint32_t size = mr_batch_size(batch);
  mr_bytes suffix = mr_config("suffix");
  int64_t *counts = (int64_t *)mr_allocate(size * sizeof(int64_t));
  bool has_room = mr_state_add_keys(batch, NULL, counts);
  mr_label language = {"language", "c"};

  for (uint32_t index = 0; index < size; index++) {
    mr_message message = mr_message_at(batch, index);
    mr_output *output = mr_answer_output(batch);
    if (has_room)
      mr_answer(batch, answer(&message, output, suffix, counts[index]));
    else
      mr_answer(batch, mr_retry(output, "state-full", mr_state_full()));
  }
  mr_counter_add("handled", &language, 1, size);
  return NULL;
}

MR_BATCH_PROCESSOR(process)
