/* {{name}}: waits longer after each failure of a busy service, gives rejected messages up at once, and drops those of tests. */
#define MILLRACE_IMPLEMENTATION
#include "millrace.h"

#define DELAY_FIRST_MS 100u
#define DELAY_MAX_MS 60000u

/* The delay after an attempt: it doubles with each one, up to a maximum. */
static uint64_t delay(uint32_t attempt) {
  uint64_t ms = DELAY_FIRST_MS;
  while (attempt > 1 && ms < DELAY_MAX_MS) {
    ms *= 2;
    attempt--;
  }
  return ms < DELAY_MAX_MS ? ms : DELAY_MAX_MS;
}

static mr_decision handle(const mr_failure *failure) {
  if (mr_equal(failure->class_name, mr_text("busy"))) return mr_decide_retry_after(delay(failure->attempt));
  if (mr_equal(failure->class_name, mr_text("test-order"))) return mr_decide_drop("made by a test");
  if (failure->cause == MR_BY_REJECT) return mr_decide_dead_letter();
  return mr_decide_policy();
}

MR_ERROR_HANDLER(handle)
