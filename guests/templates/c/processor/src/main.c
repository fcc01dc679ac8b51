/* {{name}}: greets whoever a message names, and counts in state how often. */
#define MILLRACE_IMPLEMENTATION
#include "millrace.h"

static mr_outcome process(const mr_message *message, mr_output *output) {
  mr_bytes greeting = mr_config("greeting");
  int64_t times;

  if (mr_is_absent(message->value)) return mr_reject(output, "no-value", "there is nobody to greet");
  if (!mr_state_add(message, message->value, 1, &times)) return mr_retry(output, "state-full", mr_state_full());

  mr_append_value(output, mr_is_absent(greeting) ? mr_text("hello") : greeting);
  mr_append_value(output, mr_text(", "));
  mr_append_value(output, message->value);
  mr_add_header(output, "times", mr_format("%lld", (long long)times));
  return MR_EMIT;
}

MR_PROCESSOR(process)
