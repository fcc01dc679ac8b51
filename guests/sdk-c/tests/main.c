/* Tests of the header, run by run.mjs: each exported function traps if something is wrong, after a line in the log. */
#define MILLRACE_IMPLEMENTATION
#include "../millrace.h"

static void expect(bool is_true, const char *what) {
  if (!is_true) mr_fail_(what);
}

/* The argument of an exported function, as the host passes it: `size` messages, whose keys are the first byte of `data`. */
static uint32_t *columns(uint32_t *to, mr_bytes data, uint32_t size) {
  uint32_t *numbers = (uint32_t *)mr_cabi_realloc_(NULL, 0, 8, size * 16);
  memset(to, 0, 19 * 4);
  memset(numbers, 0, size * 16);
  to[3] = (uint32_t)(uintptr_t)data.data;
  to[4] = (uint32_t)data.size;
  for (uint32_t list = 5; list < 17; list += 2) {
    to[list] = (uint32_t)(uintptr_t)numbers;
    to[list + 1] = size;
  }
  return to;
}

static mr_decision drop_with_a_buffer_of_its_own(const mr_failure *failure) {
  char reason[16];
  snprintf(reason, sizeof(reason), "number %u", (unsigned)failure->attempt);
  return mr_decide_drop(reason);
}

MR_EXPORT("a reason to drop is copied") void drop(void) {
  mr_wire_failure_ failures[2] = {{.message = 0, .attempt = 1}, {.message = 1, .attempt = 2}};
  uint32_t arguments[2 + 19] = {(uint32_t)(uintptr_t)failures, 2};
  columns(arguments + 2, mr_text("ab"), 2);
  const uint32_t *list = (const uint32_t *)mr_run_error_handler(arguments, drop_with_a_buffer_of_its_own);
  const mr_wire_decision_ *decisions = (const mr_wire_decision_ *)(uintptr_t)list[0];
  expect(list[1] == 2, "two decisions");
  expect(mr_equal(decisions[0].of.reason, mr_text("number 1")), "the first reason");
  expect(mr_equal(decisions[1].of.reason, mr_text("number 2")), "the second reason");
}

MR_EXPORT("why there was no room is of the call in which there was none") void full(void) {
  uint32_t arguments[19];
  mr_batch *batch = mr_begin_batch(columns(arguments, mr_text("k"), 1));
  mr_message message = mr_message_at(batch, 0);
  expect(mr_state_full()[0] == 0, "no reason before");
  expect(!mr_state_set(&message, mr_text("k"), mr_text("the host says that this is full")), "full");
  expect(strcmp(mr_state_full(), "no room here") == 0, "the host's reason");
  mr_end_batch(batch, "enough");
  mr_begin_batch(columns(arguments, mr_text("k"), 1));
  expect(mr_state_full()[0] == 0, "no reason in the next call");
}

MR_EXPORT("more keys than one call of the host takes are read in several") void many(void) {
  uint32_t count = MR_STATE_KEYS_MAX_ + 5;
  mr_bytes *keys = (mr_bytes *)mr_allocate(count * sizeof(mr_bytes)), *values = (mr_bytes *)mr_allocate(count * sizeof(mr_bytes));
  for (uint32_t index = 0; index < count; index++) keys[index] = mr_format("%u", (unsigned)index);
  mr_state_get_many(keys, count, values);
  /* The host's value of a key is the key. */
  for (uint32_t index = 0; index < count; index++) expect(mr_equal(values[index], keys[index]), "the value of the same place");
}

/* Traps: run.mjs knows. */
MR_EXPORT("keys that together exceed the memory are refused") void overflow(void) {
  mr_bytes keys[3], values[3];
  for (uint32_t index = 0; index < 3; index++) keys[index] = mr_bytes_of("x", 0x60000000);
  mr_state_get_many(keys, 3, values);
}
