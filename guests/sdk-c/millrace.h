/* Write Millrace modules in C or C++: one header, without a generator or a library.
 *
 *     #define MILLRACE_IMPLEMENTATION // in exactly one source file
 *     #include "millrace.h"
 *
 *     static mr_outcome process(const mr_message *message, mr_output *output) {
 *       if (mr_is_absent(message->value)) return mr_reject(output, "no-value", "there is nobody to greet");
 *       mr_append_value(output, mr_text("hello, "));
 *       mr_append_value(output, message->value);
 *       return MR_EMIT;
 *     }
 *
 *     MR_PROCESSOR(process)
 *
 * The host passes messages in batches, in columns (wit/types.wit), which this header hides. Keys, values and headers are read where the host put them, without a copy.
 * An output starts as a copy of its message and states only the differences: unchanged parts, and slices of the input, are not copied.
 *
 * Everything that a function here returns, and everything that belongs to a message, lives until the call of the module ends. Nothing needs to be freed. Keep what
 * you need longer in memory of your own, or in state.
 *
 * `abort()`, `__builtin_trap()` and a failed `assert` are a trap: the host finds the failing message, tries it again, and finally makes it a dead letter. What the
 * module printed to standard error before becomes part of the explanation.
 *
 * Build it as a reactor for wasm32-wasi, for example: clang --target=wasm32-wasi -mexec-model=reactor -O2 -msimd128 -o core.wasm main.c
 */
#ifndef MILLRACE_H
#define MILLRACE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---------------------------------------------------------------------------------------------------------------- Bytes */

/* Some bytes that belong to somebody else. `data` is NULL if they are absent, which is not the same as empty. */
typedef struct mr_bytes {
  const uint8_t *data;
  size_t size;
} mr_bytes;

/* Whether there are no bytes at all: a message without a key, a key without a value. */
static inline bool mr_is_absent(mr_bytes bytes) { return bytes.data == NULL; }

/* Bytes of any memory. */
static inline mr_bytes mr_bytes_of(const void *data, size_t size) {
  mr_bytes bytes;
  bytes.data = (const uint8_t *)data;
  bytes.size = size;
  return bytes;
}

/* The bytes of a C string, without the zero at its end. */
static inline mr_bytes mr_text(const char *text) { return mr_bytes_of(text, strlen(text)); }

/* No bytes at all. */
static inline mr_bytes mr_absent(void) { return mr_bytes_of(NULL, 0); }

/* Absent bytes equal only absent ones. */
static inline bool mr_equal(mr_bytes a, mr_bytes b) {
  if (a.data == NULL || b.data == NULL) return a.data == b.data;
  return a.size == b.size && memcmp(a.data, b.data, a.size) == 0;
}

/* Whether the bytes begin with this text; absent ones only with "". */
static inline bool mr_begins_with(mr_bytes bytes, const char *text) {
  size_t size = strlen(text);
  return bytes.size >= size && memcmp(bytes.data, text, size) == 0;
}

/* The text of a format, as printf's; in memory of the call. */
mr_bytes mr_format(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Memory that lives until the call ends, aligned to 8 bytes. Traps if there is none left. */
void *mr_allocate(size_t size);

/* ------------------------------------------------------------------------------------------------------------- Messages */

typedef struct mr_batch mr_batch;

typedef struct mr_message {
  mr_bytes key;
  mr_bytes value;
  uint64_t offset;
  /* Milliseconds since the Unix epoch. */
  uint64_t timestamp;
  /* Which attempt this is, from 1, including attempts of earlier revisions. */
  uint32_t attempt;
  /* Its position in the batch, from 0. */
  uint32_t index;
  uint32_t header_count;
  uint32_t first_header;
  const mr_batch *batch;
} mr_message;

typedef struct mr_header {
  mr_bytes name;
  mr_bytes value;
} mr_header;

/* The number of messages. */
uint32_t mr_batch_size(const mr_batch *batch);

/* The topic that the messages come from, and the partition. */
mr_bytes mr_topic(const mr_batch *batch);
uint32_t mr_partition(const mr_batch *batch);

/* The message with this index; traps if there is none. */
mr_message mr_message_at(const mr_batch *batch, uint32_t index);

/* The message's header with this index, which is below `header_count`; traps if it is not. */
mr_header mr_header_at(const mr_message *message, uint32_t index);

/* The value of the message's last header with this name; absent if there is none. */
mr_bytes mr_header_value(const mr_message *message, const char *name);

/* ------------------------------------------------------------------------------------------------- Outputs and outcomes */

/* An output that is being written. It starts as a copy of its message. */
typedef struct mr_output mr_output;

typedef enum mr_outcome {
  MR_ACK = 0,  /* done, without outputs */
  MR_EMIT = 1, /* done; send the outputs */
  MR_RETRY = 2,
  MR_REJECT = 3,
  MR_UNAVAILABLE = 4
} mr_outcome;

/* Try the message again later, after the delay of the processor's policy. `class_name` is a short word by which failures are grouped,
 * `reason` an explanation for people. Both are copied. */
mr_outcome mr_retry(mr_output *output, const char *class_name, const char *reason);
mr_outcome mr_retry_after(mr_output *output, uint64_t delay_ms, const char *class_name, const char *reason);

/* Give the message up: it becomes a dead letter. */
mr_outcome mr_reject(mr_output *output, const char *class_name, const char *reason);

/* Something that the processor needs is down: the host tries the whole batch again later, without spending attempts. */
mr_outcome mr_unavailable(mr_output *output, const char *reason);

/* Replaces key or value. Absent bytes remove it. Bytes of the input are not copied. */
void mr_set_key(mr_output *output, mr_bytes key);
void mr_set_value(mr_output *output, mr_bytes value);

/* Replaces the value by `size` bytes that the caller writes to the returned memory, before any other call on outputs. The fastest way. */
uint8_t *mr_new_value(mr_output *output, size_t size);

/* Appends to the value that this output has been given; the first time it replaces the message's value. */
void mr_append_value(mr_output *output, mr_bytes bytes);

/* Adds a header to those that the output has, which are at first the message's. */
void mr_add_header(mr_output *output, const char *name, mr_bytes value);
/* Removes all headers that the output has so far. */
void mr_remove_headers(mr_output *output);

/* Sends the output to this topic instead of the default one. The processor needs a grant for it. */
void mr_set_topic(mr_output *output, const char *topic);

/* Sends the output to this partition instead of letting the topic's partitioner choose. */
void mr_set_partition(mr_output *output, uint32_t partition);

/* Replaces the timestamp, in milliseconds since the Unix epoch. */
void mr_set_timestamp(mr_output *output, uint64_t timestamp);
/* Delays the output until this time, in milliseconds since the Unix epoch; a time in the past means at once. */
void mr_deliver_at(mr_output *output, uint64_t time);

/* Keeps this output and begins a further one, which again starts as a copy of the message. */
void mr_next_output(mr_output *output);

/* Answers a batch. `mr_answer_output` begins the outputs of the next message, `mr_answer` sets its outcome; it traps if all messages have theirs. */
mr_output *mr_answer_output(mr_batch *batch);
void mr_answer(mr_batch *batch, mr_outcome outcome);

/* ---------------------------------------------------------------------------------------------------------------- State */

/* Keys and values of the processor, in the partition that its batch comes from. Writes belong to the message that they name, are committed with its
 * outputs, and discarded if it fails. A key or a value beyond its bound is a trap.
 *
 * Functions that return false had no room and changed nothing; `mr_state_full` says why. Each of them is one call of the host, so use the ones that take many keys
 * for whole batches. With more than 10,000 keys they call the host for each 10,000: if a later one of these calls finds no room, what earlier ones wrote stays, each for its
 * message. Retry or reject the messages, and their writes are discarded. */

/* The value of a key; absent if it has none. */
mr_bytes mr_state_get(mr_bytes key);
/* The values of `count` keys, in their order. */
void mr_state_get_many(const mr_bytes *keys, uint32_t count, mr_bytes *values);

/* Sets a key on behalf of this message. */
bool mr_state_set(const mr_message *message, mr_bytes key, mr_bytes value);
/* The value expires after this many milliseconds. */
bool mr_state_set_for(const mr_message *message, mr_bytes key, mr_bytes value, uint64_t ttl_ms);
/* Removes a key on behalf of this message. */
bool mr_state_delete(const mr_message *message, mr_bytes key);

/* Adds to the number of a key and returns the sum in `sum` (may be NULL). An absent key counts as 0; a value that does not have eight bytes is a trap. */
bool mr_state_add(const mr_message *message, mr_bytes key, int64_t delta, int64_t *sum);

/* Each message of the batch adds to the number of its own key, or of the empty key if it has none: 1, or its number in `deltas`. `sums` has room for
 * one sum per message; if it returns false, they mean nothing. */
bool mr_state_add_keys(const mr_batch *batch, const int64_t *deltas, int64_t *sums);

typedef struct mr_entry {
  mr_bytes key;
  mr_bytes value;
} mr_entry;

/* The entries whose keys begin with `prefix` and come after `after` (absent: from the first), in ascending order of keys: at most `max`, or fewer if they
 * have many bytes. None is the end. */
uint32_t mr_state_scan(mr_bytes prefix, mr_bytes after, uint32_t max, const mr_entry **entries);

/* Why the last write of this call that had no room had none; empty if all had. */
const char *mr_state_full(void);

/* ---------------------------------------------------------------------------------- Log, configuration, secrets, metrics */

typedef enum mr_level { MR_ERROR = 0, MR_WARN = 1, MR_INFO = 2, MR_DEBUG = 3 } mr_level;

/* Writes a line to the processor's log. */
void mr_log(mr_level level, mr_bytes line);
/* The same with a format, as printf's. */
void mr_logf(mr_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* A setting of the processor; absent if the key has no value. */
mr_bytes mr_config(const char *key);
/* All settings, in ascending order of keys. */
uint32_t mr_config_all(const mr_entry **entries);

typedef enum mr_secret_status { MR_SECRET_FOUND, MR_SECRET_NOT_GRANTED, MR_SECRET_UNAVAILABLE } mr_secret_status;

/* The bytes of a secret. If it is not found, `value` is the reason. Unavailable is an outage: answer with `mr_unavailable`. */
mr_secret_status mr_secret(const char *name, mr_bytes *value);

typedef struct mr_label {
  const char *name;
  const char *value;
} mr_label;

/* The module's own metrics. Names have 1 to 60 of the characters a-z, 0-9 and _, and begin with a letter; a wrong one is a trap. This adds to a counter. */
void mr_counter_add(const char *name, const mr_label *labels, uint32_t count, uint64_t delta);
/* Sets a gauge. */
void mr_gauge_set(const char *name, const mr_label *labels, uint32_t count, double value);
/* Records a value in a histogram. */
void mr_histogram_observe(const char *name, const mr_label *labels, uint32_t count, double value);

/* --------------------------------------------------------------------------------------------- Failures, for error handlers */

typedef enum mr_cause { MR_BY_RETRY, MR_BY_REJECT, MR_BY_TRAP, MR_BY_TIMEOUT, MR_BY_MEMORY, MR_BY_BAD_ANSWER } mr_cause;

typedef struct mr_failure {
  mr_message message;
  uint32_t revision;
  /* The number of attempts so far, under all revisions, including this one. */
  uint32_t attempt;
  /* Milliseconds since the Unix epoch. */
  uint64_t first_failed_at;
  mr_cause cause;
  mr_bytes class_name;
  mr_bytes reason;
} mr_failure;

/* What the host does with a failed message; made by one of the four functions below. It lives until the call ends. */
typedef struct mr_decision {
  uint8_t kind;
  uint64_t delay_ms;
  mr_bytes reason;
} mr_decision;

static inline mr_decision mr_decide(uint8_t kind, uint64_t delay_ms, mr_bytes reason) {
  mr_decision decision;
  decision.kind = kind;
  decision.delay_ms = delay_ms;
  decision.reason = reason;
  return decision;
}
/* Try again after this time. */
static inline mr_decision mr_decide_retry_after(uint64_t delay_ms) { return mr_decide(0, delay_ms, mr_absent()); }
/* Give it up: it becomes a dead letter. */
static inline mr_decision mr_decide_dead_letter(void) { return mr_decide(1, 0, mr_absent()); }
/* Drop it; the host counts it and logs the reason, which is copied. */
mr_decision mr_decide_drop(const char *reason);
/* Do what the processor's retry policy says. */
static inline mr_decision mr_decide_policy(void) { return mr_decide(3, 0, mr_absent()); }

/* ------------------------------------------------------------------------------------------------------ Routes: HTTP */

/* A request. Its body was read as a whole; one of more than 1 MiB was answered with 413. */
typedef struct mr_request {
  /* Such as GET. */
  mr_bytes method;
  /* Path and query, as they were sent. */
  mr_bytes target;
  /* The path, which begins with that of the route. */
  mr_bytes path;
  /* The query, without its question mark; absent if there is none. */
  mr_bytes query;
  mr_bytes body;
  uint32_t header_count;
  const mr_header *headers;
} mr_request;

/* The value of the first header with this name, in any spelling; absent if there is none. */
mr_bytes mr_request_header(const mr_request *request, const char *name);

/* The part of the path after its last slash. */
mr_bytes mr_request_last(const mr_request *request);

/* An answer that is being written. It starts as 200 without headers and body. */
typedef struct mr_response mr_response;

void mr_set_status(mr_response *response, uint32_t status);
void mr_set_body(mr_response *response, mr_bytes body);
void mr_response_header(mr_response *response, const char *name, mr_bytes value);

/* Status, type and body at once: plain text, or JSON as text. */
void mr_respond_text(mr_response *response, uint32_t status, mr_bytes text);
void mr_respond_json(mr_response *response, uint32_t status, mr_bytes json);

/* A text as a string of JSON, with its quotation marks; in memory of the call. */
mr_bytes mr_json_string(mr_bytes text);

/* Messages that a route sends while it answers a request. Each call is one commit: when it returns, all of its messages are stored, or none is. */
typedef struct mr_outgoing {
  mr_bytes key;
  mr_bytes value;
  const mr_header *headers;
  uint32_t header_count;
  /* Instead of leaving it to the topic's partitioner. */
  bool has_partition;
  uint32_t partition;
  /* Milliseconds since the Unix epoch; 0 is now, and at once. */
  uint64_t timestamp;
  uint64_t deliver_at;
} mr_outgoing;

/* The offset of a message that is delivered later. */
#define MR_LATER UINT64_MAX

/* Where sent messages are, in their order. */
typedef struct mr_sent {
  uint32_t count;
  const uint32_t *partitions;
  const uint64_t *offsets;
  /* Whether an earlier call with the same key sent them, and this one did nothing. */
  bool repeated;
} mr_sent;

typedef enum mr_send_status {
  MR_SENT,
  MR_SEND_NOT_GRANTED, /* the route is not granted this topic */
  MR_SEND_REFUSED,     /* the topic does not take these messages; to repeat the call does not help */
  MR_SEND_KEY_REUSED,  /* the key was used before, for other messages */
  MR_SEND_UNAVAILABLE  /* the host cannot store messages now; a later call may succeed */
} mr_send_status;

mr_send_status mr_send(const char *topic, const mr_outgoing *messages, uint32_t count, mr_sent *sent);

/* Like `mr_send`, once: a repeat with the same key, by any request to this route, returns the first places. */
mr_send_status mr_send_once(const char *topic, mr_bytes key, const mr_outgoing *messages, uint32_t count, mr_sent *sent);

/* Waits until a processor has settled messages of a topic; `settled` is false if it has not within this many milliseconds. */
mr_send_status mr_settled(const char *processor, const char *topic, const mr_sent *sent, uint64_t ms, bool *settled);

/* Why the last call did not send. */
const char *mr_send_error(void);

/* The state of a processor, which a route reads as it is committed. `topic` is NULL if the processor reads only one. */
typedef struct mr_view {
  const char *processor;
  const char *topic;
} mr_view;

typedef enum mr_view_status {
  MR_VIEWED,
  MR_VIEW_NOT_GRANTED, /* the route is not granted this processor's state */
  MR_VIEW_REFUSED,     /* there is no such processor, topic or partition, or the call exceeds a bound */
  MR_VIEW_UNAVAILABLE  /* a later call may succeed */
} mr_view_status;

mr_view_status mr_view_partitions(const mr_view *view, uint32_t *partitions);

/* The value of a key in the partition that messages with this key go to; absent if it has none. */
mr_view_status mr_view_get(const mr_view *view, mr_bytes key, mr_bytes *value);

/* The values of `count` keys, in their order, in one partition; if `partition` is NULL, each in that of messages with this key. */
mr_view_status mr_view_get_many(const mr_view *view, const uint32_t *partition, const mr_bytes *keys, uint32_t count, mr_bytes *values);

typedef struct mr_entries {
  uint32_t count;
  const mr_entry *entries;
  /* Whether there may be more after the last one. */
  bool has_more;
} mr_entries;

/* Entries of a partition whose keys begin with `prefix` and come after `after` (absent: from the first). */
mr_view_status mr_view_scan(const mr_view *view, uint32_t partition, mr_bytes prefix, mr_bytes after, uint32_t max, mr_entries *entries);

/* Why the last view could not be read. */
const char *mr_view_error(void);

/* ------------------------------------------------------------------------------------------------------ What is exported */

typedef mr_outcome (*mr_process_message)(const mr_message *message, mr_output *output);
/* Returns NULL, or why the batch cannot be processed now. */
typedef const char *(*mr_process_batch)(mr_batch *batch);
typedef uint32_t (*mr_choose_partition)(const mr_message *message, uint32_t partitions);
typedef mr_decision (*mr_handle_failure)(const mr_failure *failure);
typedef void (*mr_answer_request)(const mr_request *request, mr_response *response);

#define MR_EXPORT(name) __attribute__((export_name(name), used))

/* Exports a function of one message: mr_outcome process(const mr_message *message, mr_output *output). */
#define MR_PROCESSOR(process)                                                                                                            \
  MR_EXPORT("millrace:broker/message-processor@0.1.1#process") void *mr_exported_process(const uint32_t *arguments) {                    \
    mr_batch *batch = mr_begin_batch(arguments);                                                                                         \
    uint32_t size = mr_batch_size(batch);                                                                                                \
    for (uint32_t index = 0; index < size; index++) {                                                                                    \
      mr_message message = mr_message_at(batch, index);                                                                                  \
      mr_output *output = mr_answer_output(batch);                                                                                       \
      mr_answer(batch, process(&message, output));                                                                                       \
      if (batch->unavailable != NULL) break;                                                                                             \
    }                                                                                                                                    \
    return mr_end_batch(batch, NULL);                                                                                                    \
  }

/* Exports a function of a batch, for work that is cheaper once per batch: const char *process(mr_batch *batch). It calls `mr_answer` once for each message,
 * in order, and returns NULL; or returns why the batch cannot be processed now. */
#define MR_BATCH_PROCESSOR(process)                                                                                                      \
  MR_EXPORT("millrace:broker/message-processor@0.1.1#process") void *mr_exported_process(const uint32_t *arguments) {                    \
    mr_batch *batch = mr_begin_batch(arguments);                                                                                         \
    return mr_end_batch(batch, process(batch));                                                                                          \
  }

/* Exports a topic's partitioner: uint32_t choose(const mr_message *message, uint32_t partitions). The result is below `partitions`. */
#define MR_PARTITIONER(choose)                                                                                                           \
  MR_EXPORT("millrace:broker/partitioner@0.1.1#assign") void *mr_exported_assign(const uint32_t *arguments) {                            \
    return mr_run_partitioner(arguments, choose);                                                                                        \
  }

/* Exports a processor's error handler: mr_decision handle(const mr_failure *failure). */
#define MR_ERROR_HANDLER(handle)                                                                                                         \
  MR_EXPORT("millrace:broker/error-handler@0.1.1#handle") void *mr_exported_handle(const uint32_t *arguments) {                          \
    return mr_run_error_handler(arguments, handle);                                                                                      \
  }

/* Exports a function that answers the HTTP requests of a route: void answer(const mr_request *request, mr_response *response). */
#define MR_HTTP(answer)                                                                                                                  \
  MR_EXPORT("wasi:http/incoming-handler@0.2.12#handle") void mr_exported_http(uint32_t request, uint32_t out) {                          \
    mr_run_http(request, out, answer);                                                                                                   \
  }

/* ------------------------------------------------------------------------------------- Inside; only the macros above use it */

mr_batch *mr_begin_batch(const uint32_t *arguments);
void *mr_end_batch(mr_batch *batch, const char *unavailable);
void *mr_run_partitioner(const uint32_t *arguments, mr_choose_partition choose);
void *mr_run_error_handler(const uint32_t *arguments, mr_handle_failure handle);
void mr_run_http(uint32_t request, uint32_t out, mr_answer_request answer);

/* A start and a length, as in the contract. */
typedef struct mr_span_ {
  uint32_t start;
  uint32_t length;
} mr_span_;

/* A list that grows in the memory of the call. */
typedef struct mr_list_ {
  void *items;
  uint32_t count;
  uint32_t room;
} mr_list_;

struct mr_output {
  mr_batch *batch;
  uint32_t source;
  bool has_key, has_value, has_headers;
  mr_span_ key, value;
  /* A range of `batch->headers_written`, in headers. */
  uint32_t headers_start, headers_end;
  uint32_t topic, partition;
  uint64_t times[2];
};

struct mr_batch {
  /* As in wit/types.wit. */
  mr_bytes topic;
  uint32_t partition;
  mr_bytes data;
  uint32_t size;
  const uint64_t *offsets;
  const uint64_t *timestamps;
  const uint32_t *attempts;
  const mr_span_ *keys;
  const mr_span_ *values;
  const uint32_t *header_ends;
  const mr_span_ *headers; /* two spans each */

  /* The answer so far. Columns stay empty until an output differs from its message. */
  mr_list_ outcomes, details, answer_data, sources, topic_names, topics, partitions, answer_keys, answer_values, answer_header_ends,
      answer_headers, times;
  /* Headers of outputs, two spans each, in the order of writing. */
  mr_list_ headers_written;
  mr_output output;
  /* Of the outcome that is about to be set. */
  uint64_t delay_ms;
  bool has_delay;
  mr_bytes class_name, reason;
  const char *unavailable;
};

#define MR_NONE_ UINT32_MAX

#ifdef __cplusplus
}
#endif
#endif /* MILLRACE_H */

/* ===================================================================================================== The implementation */

#ifdef MILLRACE_IMPLEMENTATION
#ifndef MILLRACE_IMPLEMENTED
#define MILLRACE_IMPLEMENTED

#include <stdio.h>
#include <stdlib.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---------------------------------------------------------------------------------------------------------------- Memory */

/* Memory of one call: blocks in which allocations only move a position forward. The next call begins where this one began. */
#define MR_BLOCK_BYTES_ ((size_t)64 << 10)

typedef struct mr_block_ {
  struct mr_block_ *before;
  size_t size;
} mr_block_;

static mr_block_ *mr_block_last_;
static uint8_t *mr_free_, *mr_free_end_;
static size_t mr_block_bytes_sum_;
/* Whether the answer is complete: then the next allocation is that of a new call. */
static bool mr_answered_;
/* What `mr_state_full` returns, in memory of the call. */
static const char *mr_full_ = "";

/* Writes the reason where the host finds it, and traps. */
__attribute__((noreturn)) static void mr_fail_(const char *why) {
  mr_log(MR_ERROR, mr_text(why));
  __builtin_trap();
}

static void mr_add_block_(size_t size) {
  mr_block_ *block;
  if (size < MR_BLOCK_BYTES_) size = MR_BLOCK_BYTES_;
  block = (mr_block_ *)malloc(sizeof(mr_block_) + 16 + size);
  /* Within cabi_realloc nothing can be logged; the host sees what the trap was about by the memory that is used. */
  if (block == NULL) __builtin_trap();
  block->before = mr_block_last_;
  block->size = size;
  mr_block_last_ = block;
  mr_block_bytes_sum_ += size;
  mr_free_ = (uint8_t *)(((uintptr_t)(block + 1) + 15) & ~(uintptr_t)15);
  mr_free_end_ = mr_free_ + size;
}

/* Many blocks become one, so that calls of the same size need no further ones. */
static void mr_reset_memory_(void) {
  mr_block_ *block = mr_block_last_;
  size_t sum = mr_block_bytes_sum_;
  mr_answered_ = false;
  mr_full_ = "";
  if (block == NULL) return;
  if (block->before == NULL) {
    mr_free_ = (uint8_t *)(((uintptr_t)(block + 1) + 15) & ~(uintptr_t)15);
    return;
  }
  while (block != NULL) {
    mr_block_ *before = block->before;
    free(block);
    block = before;
  }
  mr_block_last_ = NULL;
  mr_block_bytes_sum_ = 0;
  mr_add_block_(sum);
}

static inline void *mr_allocate_aligned_(size_t size, size_t align) {
  uintptr_t at = ((uintptr_t)mr_free_ + align - 1) & ~(uintptr_t)(align - 1);
  if (mr_free_ == NULL || size > (uintptr_t)mr_free_end_ - at || at > (uintptr_t)mr_free_end_) {
    size_t doubled = mr_block_last_ ? mr_block_last_->size * 2 : 0;
    if (size > SIZE_MAX / 2) __builtin_trap();
    mr_add_block_(size > doubled ? size : doubled);
    at = (uintptr_t)mr_free_;
  }
  mr_free_ = (uint8_t *)at + size;
  return (void *)at;
}

void *mr_allocate(size_t size) { return mr_allocate_aligned_(size, 8); }

/* Where the host puts what it passes. */
__attribute__((export_name("cabi_realloc"), used)) void *mr_cabi_realloc_(void *old, size_t old_size, size_t align, size_t size) {
  void *memory;
  if (mr_answered_) mr_reset_memory_();
  if (size == 0) return (void *)align;
  memory = mr_allocate_aligned_(size, align);
  if (old_size != 0) memcpy(memory, old, old_size < size ? old_size : size);
  return memory;
}

/* Makes room for `more` items. */
static void mr_list_grow_(mr_list_ *list, size_t item_size, uint32_t more) {
  size_t wanted = (size_t)list->count + more, room = (size_t)list->room * 2;
  void *items;
  if (room < wanted) room = wanted;
  if (room > SIZE_MAX / 2 / item_size) __builtin_trap();
  /* The last allocation grows where it is, if there is room. */
  if (list->items != NULL && (uint8_t *)list->items + list->room * item_size == mr_free_ &&
      (size_t)(mr_free_end_ - (uint8_t *)list->items) >= room * item_size) {
    mr_free_ = (uint8_t *)list->items + room * item_size;
    list->room = (uint32_t)room;
    return;
  }
  items = mr_allocate(room * item_size);
  if (list->count != 0) memcpy(items, list->items, list->count * item_size);
  list->items = items;
  list->room = (uint32_t)room;
}

static inline void *mr_list_add_(mr_list_ *list, size_t item_size, uint32_t more, uint32_t first_room) {
  void *at;
  if (list->room - list->count < more) mr_list_grow_(list, item_size, list->items == NULL && more < first_room ? first_room : more);
  at = (uint8_t *)list->items + list->count * item_size;
  list->count += more;
  return at;
}

static inline void mr_push_u32_(mr_list_ *list, uint32_t number, uint32_t first_room) {
  *(uint32_t *)mr_list_add_(list, 4, 1, first_room) = number;
}

static inline void mr_push_span_(mr_list_ *list, mr_span_ span, uint32_t first_room) {
  *(mr_span_ *)mr_list_add_(list, 8, 1, first_room) = span;
}

/* Short copies are not worth a call: two pieces that may overlap. */
static inline void mr_copy_(uint8_t *to, const uint8_t *from, size_t size) {
  if (size > 32) {
    memcpy(to, from, size);
  } else if (size >= 16) {
    memcpy(to, from, 16);
    memcpy(to + size - 16, from + size - 16, 16);
  } else if (size >= 8) {
    memcpy(to, from, 8);
    memcpy(to + size - 8, from + size - 8, 8);
  } else if (size >= 4) {
    memcpy(to, from, 4);
    memcpy(to + size - 4, from + size - 4, 4);
  } else if (size != 0) {
    to[0] = from[0];
    to[size / 2] = from[size / 2];
    to[size - 1] = from[size - 1];
  }
}

/* The contract's strings are UTF-8; other bytes become question marks. */
static mr_bytes mr_utf8_(mr_bytes text) {
  uint8_t *copy = NULL;
  size_t at = 0;
  while (at < text.size) {
    const uint8_t *c = text.data + at;
    size_t left = text.size - at, length = 0;
    if (c[0] < 0x80) length = 1;
    else if (c[0] >= 0xc2 && c[0] < 0xe0 && left > 1 && (c[1] & 0xc0) == 0x80) length = 2;
    else if (c[0] >= 0xe0 && c[0] < 0xf0 && left > 2 && (c[1] & 0xc0) == 0x80 && (c[2] & 0xc0) == 0x80 &&
             !(c[0] == 0xe0 && c[1] < 0xa0) && !(c[0] == 0xed && c[1] >= 0xa0))
      length = 3;
    else if (c[0] >= 0xf0 && c[0] < 0xf5 && left > 3 && (c[1] & 0xc0) == 0x80 && (c[2] & 0xc0) == 0x80 && (c[3] & 0xc0) == 0x80 &&
             !(c[0] == 0xf0 && c[1] < 0x90) && !(c[0] == 0xf4 && c[1] >= 0x90))
      length = 4;
    if (length == 0) {
      if (copy == NULL) {
        copy = (uint8_t *)mr_allocate(text.size);
        memcpy(copy, text.data, text.size);
        text.data = copy;
      }
      copy[at] = '?';
      length = 1;
    }
    at += length;
  }
  return text;
}

static char *mr_c_string_(mr_bytes text) {
  char *copy = (char *)mr_allocate(text.size + 1);
  memcpy(copy, text.data, text.size);
  copy[text.size] = 0;
  return copy;
}

static mr_bytes mr_format_list_(const char *format, va_list arguments) {
  va_list again;
  int size;
  char *text;
  va_copy(again, arguments);
  size = vsnprintf(NULL, 0, format, again);
  va_end(again);
  if (size < 0) return mr_text("(a text that cannot be formatted)");
  text = (char *)mr_allocate((size_t)size + 1);
  vsnprintf(text, (size_t)size + 1, format, arguments);
  return mr_bytes_of(text, (size_t)size);
}

mr_bytes mr_format(const char *format, ...) {
  mr_bytes text;
  va_list arguments;
  va_start(arguments, format);
  text = mr_format_list_(format, arguments);
  va_end(arguments);
  return text;
}

/* --------------------------------------------------------------------------------------------------------------- Messages */

uint32_t mr_batch_size(const mr_batch *batch) { return batch->size; }
mr_bytes mr_topic(const mr_batch *batch) { return batch->topic; }
uint32_t mr_partition(const mr_batch *batch) { return batch->partition; }

static inline mr_bytes mr_span_bytes_(const uint8_t *data, mr_span_ span) {
  return span.length == MR_NONE_ ? mr_absent() : mr_bytes_of(data + span.start, span.length);
}

mr_message mr_message_at(const mr_batch *batch, uint32_t index) {
  mr_message message;
  if (index >= batch->size) mr_fail_("mr_message_at: the batch has fewer messages");
  message.key = mr_span_bytes_(batch->data.data, batch->keys[index]);
  message.value = mr_span_bytes_(batch->data.data, batch->values[index]);
  message.offset = batch->offsets[index];
  message.timestamp = batch->timestamps[index];
  message.attempt = batch->attempts[index];
  message.index = index;
  message.first_header = index == 0 ? 0 : batch->header_ends[index - 1];
  message.header_count = batch->header_ends[index] - message.first_header;
  message.batch = batch;
  return message;
}

mr_header mr_header_at(const mr_message *message, uint32_t index) {
  mr_header header;
  const mr_span_ *spans;
  if (index >= message->header_count) mr_fail_("mr_header_at: the message has fewer headers");
  spans = message->batch->headers + ((size_t)message->first_header + index) * 2;
  header.name = mr_span_bytes_(message->batch->data.data, spans[0]);
  header.value = mr_span_bytes_(message->batch->data.data, spans[1]);
  return header;
}

mr_bytes mr_header_value(const mr_message *message, const char *name) {
  mr_bytes wanted = mr_text(name);
  for (uint32_t index = message->header_count; index > 0; index--) {
    mr_header header = mr_header_at(message, index - 1);
    if (mr_equal(header.name, wanted)) return header.value;
  }
  return mr_absent();
}

static mr_batch *mr_read_batch_(const uint32_t *columns) {
  mr_batch *batch = (mr_batch *)mr_allocate(sizeof(mr_batch));
  memset(batch, 0, sizeof(*batch));
  batch->topic = mr_bytes_of((const void *)(uintptr_t)columns[0], columns[1]);
  batch->partition = columns[2];
  batch->data = mr_bytes_of((const void *)(uintptr_t)columns[3], columns[4]);
  batch->offsets = (const uint64_t *)(uintptr_t)columns[5];
  batch->size = columns[6];
  batch->timestamps = (const uint64_t *)(uintptr_t)columns[7];
  batch->attempts = (const uint32_t *)(uintptr_t)columns[9];
  batch->keys = (const mr_span_ *)(uintptr_t)columns[11];
  batch->values = (const mr_span_ *)(uintptr_t)columns[13];
  batch->header_ends = (const uint32_t *)(uintptr_t)columns[15];
  batch->headers = (const mr_span_ *)(uintptr_t)columns[17];
  return batch;
}

/* ---------------------------------------------------------------------------------------------------------------- Outputs */

/* Room for `size` more bytes of the answer; `span` says where they are. */
static inline uint8_t *mr_answer_bytes_(mr_batch *batch, size_t size, mr_span_ *span) {
  /* Most handlers return about as many bytes as they get. */
  span->start = (uint32_t)batch->data.size + batch->answer_data.count;
  span->length = (uint32_t)size;
  if (size > UINT32_MAX / 2) __builtin_trap();
  return (uint8_t *)mr_list_add_(&batch->answer_data, 1, (uint32_t)size, (uint32_t)batch->data.size + 16 * batch->size);
}

/* A span of these bytes: of the input if they are part of it, otherwise of a copy. */
static inline mr_span_ mr_place_(mr_batch *batch, mr_bytes bytes) {
  mr_span_ span;
  if (bytes.data == NULL) {
    span.start = 0;
    span.length = MR_NONE_;
  } else if (bytes.size == 0) {
    span.start = span.length = 0;
  } else if ((uintptr_t)bytes.data - (uintptr_t)batch->data.data < batch->data.size) {
    span.start = (uint32_t)((uintptr_t)bytes.data - (uintptr_t)batch->data.data);
    span.length = (uint32_t)bytes.size;
  } else if ((uintptr_t)bytes.data - (uintptr_t)batch->answer_data.items < batch->answer_data.count) {
    /* Growing may move the bytes while they are copied; but they are in the answer already. */
    span.start = (uint32_t)(batch->data.size + ((uintptr_t)bytes.data - (uintptr_t)batch->answer_data.items));
    span.length = (uint32_t)bytes.size;
  } else {
    mr_copy_(mr_answer_bytes_(batch, bytes.size, &span), bytes.data, bytes.size);
  }
  return span;
}

static inline void mr_begin_output_(mr_batch *batch) {
  mr_output *output = &batch->output;
  output->has_key = output->has_value = output->has_headers = false;
  output->topic = output->partition = MR_NONE_;
  output->times[0] = output->times[1] = UINT64_MAX;
}

mr_output *mr_answer_output(mr_batch *batch) {
  batch->output.batch = batch;
  batch->output.source = batch->outcomes.count;
  mr_begin_output_(batch);
  return &batch->output;
}

void mr_set_key(mr_output *output, mr_bytes key) {
  output->key = mr_place_(output->batch, key);
  output->has_key = true;
}

void mr_set_value(mr_output *output, mr_bytes value) {
  output->value = mr_place_(output->batch, value);
  output->has_value = true;
}

uint8_t *mr_new_value(mr_output *output, size_t size) {
  output->has_value = true;
  return mr_answer_bytes_(output->batch, size, &output->value);
}

void mr_append_value(mr_output *output, mr_bytes bytes) {
  mr_batch *batch = output->batch;
  uint32_t end = (uint32_t)batch->data.size + batch->answer_data.count;
  mr_span_ more, whole;
  if (bytes.data == NULL) return;
  if (!output->has_value || output->value.length == MR_NONE_) {
    whole.start = end;
    whole.length = 0;
  } else if (output->value.length != 0 && output->value.start + output->value.length == end && output->value.start >= batch->data.size) {
    whole = output->value;
  } else {
    /* What there is so far moves to the end, where it can grow. */
    mr_bytes so_far = mr_bytes_of(batch->data.data + output->value.start, output->value.length);
    if (output->value.start >= batch->data.size)
      so_far.data = (const uint8_t *)batch->answer_data.items + (output->value.start - batch->data.size);
    size_t back = (const uint8_t *)batch->answer_data.items + batch->answer_data.count - so_far.data;
    bool in_answer = output->value.start >= batch->data.size;
    uint8_t *to = mr_answer_bytes_(batch, so_far.size, &whole);
    if (in_answer) so_far.data = to - back;
    mr_copy_(to, so_far.data, so_far.size);
  }
  {
    bool in_answer = (uintptr_t)bytes.data - (uintptr_t)batch->answer_data.items < batch->answer_data.count;
    size_t from = (uintptr_t)bytes.data - (uintptr_t)batch->answer_data.items;
    uint8_t *to = mr_answer_bytes_(batch, bytes.size, &more);
    if (in_answer) bytes.data = (const uint8_t *)batch->answer_data.items + from;
    mr_copy_(to, bytes.data, bytes.size);
  }
  whole.length += more.length;
  output->value = whole;
  output->has_value = true;
}

/* Moves the output's headers to the end of those written, where they can grow. */
static void mr_open_headers_(mr_output *output) {
  mr_batch *batch = output->batch;
  mr_list_ *written = &batch->headers_written;
  uint32_t first, count;
  const mr_span_ *from;
  mr_span_ *to;
  if (output->has_headers && output->headers_end == written->count) return;
  if (output->has_headers) {
    first = output->headers_start;
    count = output->headers_end - first;
  } else {
    first = output->source == 0 ? 0 : batch->header_ends[output->source - 1];
    count = batch->header_ends[output->source] - first;
  }
  if (count != 0) {
    to = (mr_span_ *)mr_list_add_(written, 16, count, batch->size * 2);
    from = output->has_headers ? (const mr_span_ *)written->items : batch->headers;
    memcpy(to, from + (size_t)first * 2, (size_t)count * 16);
  }
  output->headers_start = written->count - count;
  output->headers_end = written->count;
  output->has_headers = true;
}

void mr_add_header(mr_output *output, const char *name, mr_bytes value) {
  mr_batch *batch = output->batch;
  mr_span_ *to;
  mr_span_ name_span = mr_place_(batch, mr_text(name));
  mr_span_ value_span = mr_place_(batch, value);
  mr_open_headers_(output);
  to = (mr_span_ *)mr_list_add_(&batch->headers_written, 16, 1, batch->size * 2);
  to[0] = name_span;
  to[1] = value_span;
  output->headers_end = batch->headers_written.count;
}

void mr_remove_headers(mr_output *output) {
  output->headers_start = output->headers_end = output->batch->headers_written.count;
  output->has_headers = true;
}

void mr_set_topic(mr_output *output, const char *topic) {
  mr_batch *batch = output->batch;
  mr_bytes name = mr_text(topic);
  mr_bytes *known = (mr_bytes *)batch->topic_names.items;
  mr_bytes *added;
  uint8_t *copy;
  /* There are few topics, and usually it is the last one again. */
  for (uint32_t index = batch->topic_names.count; index > 0; index--) {
    if (mr_equal(known[index - 1], name)) {
      output->topic = index - 1;
      return;
    }
  }
  copy = (uint8_t *)mr_allocate(name.size + 1);
  memcpy(copy, name.data, name.size);
  added = (mr_bytes *)mr_list_add_(&batch->topic_names, sizeof(mr_bytes), 1, 4);
  *added = mr_utf8_(mr_bytes_of(copy, name.size));
  output->topic = batch->topic_names.count - 1;
}

void mr_set_partition(mr_output *output, uint32_t partition) { output->partition = partition; }
void mr_set_timestamp(mr_output *output, uint64_t timestamp) { output->times[0] = timestamp; }
void mr_deliver_at(mr_output *output, uint64_t time) { output->times[1] = time; }

/* A column of spans. Before the first one that differs from the input, those of the earlier outputs are added. */
static inline void mr_add_span_(mr_batch *batch, mr_list_ *column, bool given, mr_span_ span, uint32_t source, const mr_span_ *input) {
  if (!given) {
    if (column->count != 0) mr_push_span_(column, input[source], batch->size);
    return;
  }
  if (column->count == 0) {
    const uint32_t *sources = (const uint32_t *)batch->sources.items;
    for (uint32_t index = 0; index < batch->sources.count; index++) mr_push_span_(column, input[sources[index]], batch->size);
  }
  mr_push_span_(column, span, batch->size);
}

static inline void mr_add_number_(mr_batch *batch, mr_list_ *column, uint32_t given) {
  if (given == MR_NONE_ && column->count == 0) return;
  while (column->count < batch->sources.count) mr_push_u32_(column, MR_NONE_, batch->size);
  mr_push_u32_(column, given, batch->size);
}

static inline void mr_add_headers_(mr_batch *batch, const mr_span_ *from, uint32_t count) {
  mr_span_ *to = (mr_span_ *)mr_list_add_(&batch->answer_headers, 16, count, batch->size * 2);
  for (uint32_t index = 0; index < count * 2; index++) to[index] = from[index];
  mr_push_u32_(&batch->answer_header_ends, batch->answer_headers.count, batch->size);
}

static inline void mr_keep_headers_(mr_batch *batch, uint32_t source) {
  uint32_t first = source == 0 ? 0 : batch->header_ends[source - 1];
  mr_add_headers_(batch, batch->headers + (size_t)first * 2, batch->header_ends[source] - first);
}

static inline void mr_keep_output_(mr_output *output) {
  mr_batch *batch = output->batch;
  uint32_t source = output->source;
  mr_add_span_(batch, &batch->answer_keys, output->has_key, output->key, source, batch->keys);
  mr_add_span_(batch, &batch->answer_values, output->has_value, output->value, source, batch->values);
  mr_add_number_(batch, &batch->topics, output->topic);
  mr_add_number_(batch, &batch->partitions, output->partition);
  if (output->has_headers || batch->answer_header_ends.count != 0) {
    while (batch->answer_header_ends.count < batch->sources.count)
      mr_keep_headers_(batch, ((const uint32_t *)batch->sources.items)[batch->answer_header_ends.count]);
    if (output->has_headers)
      mr_add_headers_(batch, (const mr_span_ *)batch->headers_written.items + (size_t)output->headers_start * 2,
                      output->headers_end - output->headers_start);
    else
      mr_keep_headers_(batch, source);
  }
  if (output->times[0] != UINT64_MAX || output->times[1] != UINT64_MAX || batch->times.count != 0) {
    uint64_t *times;
    while (batch->times.count < batch->sources.count * 2)
      *(uint64_t *)mr_list_add_(&batch->times, 8, 1, batch->size * 2) = UINT64_MAX;
    times = (uint64_t *)mr_list_add_(&batch->times, 8, 2, batch->size * 2);
    times[0] = output->times[0];
    times[1] = output->times[1];
  }
  mr_push_u32_(&batch->sources, source, batch->size);
}

void mr_next_output(mr_output *output) {
  mr_keep_output_(output);
  mr_begin_output_(output->batch);
}

/* ---------------------------------------------------------------------------------------------------------------- Outcomes */

static mr_bytes mr_copy_text_(const char *text) {
  mr_bytes bytes = mr_text(text);
  uint8_t *copy = (uint8_t *)mr_allocate(bytes.size + 1);
  memcpy(copy, bytes.data, bytes.size);
  return mr_utf8_(mr_bytes_of(copy, bytes.size));
}

static mr_outcome mr_fail_message_(mr_output *output, mr_outcome outcome, const char *class_name, const char *reason) {
  output->batch->has_delay = false;
  output->batch->class_name = mr_copy_text_(class_name);
  output->batch->reason = mr_copy_text_(reason);
  return outcome;
}

mr_outcome mr_retry(mr_output *output, const char *class_name, const char *reason) {
  return mr_fail_message_(output, MR_RETRY, class_name, reason);
}

mr_outcome mr_retry_after(mr_output *output, uint64_t delay_ms, const char *class_name, const char *reason) {
  mr_fail_message_(output, MR_RETRY, class_name, reason);
  output->batch->has_delay = true;
  output->batch->delay_ms = delay_ms;
  return MR_RETRY;
}

mr_outcome mr_reject(mr_output *output, const char *class_name, const char *reason) {
  return mr_fail_message_(output, MR_REJECT, class_name, reason);
}

mr_outcome mr_unavailable(mr_output *output, const char *reason) {
  output->batch->unavailable = mr_c_string_(mr_text(reason));
  return MR_UNAVAILABLE;
}

/* A detail of the answer, as in the contract. */
typedef struct mr_detail_ {
  uint32_t message;
  struct {
    uint8_t is_some;
    uint64_t ms;
  } delay;
  mr_bytes class_name, reason;
} mr_detail_;

void mr_answer(mr_batch *batch, mr_outcome outcome) {
  mr_output *output = &batch->output;
  uint32_t message = batch->outcomes.count;
  if (outcome == MR_UNAVAILABLE) return;
  if (message >= batch->size) mr_fail_("mr_answer: all messages of the batch have their outcome");
  if (output->batch != batch || output->source != message) mr_answer_output(batch);
  if (outcome == MR_EMIT) {
    mr_keep_output_(output);
  } else if (batch->sources.count != 0 && ((const uint32_t *)batch->sources.items)[batch->sources.count - 1] == message) {
    mr_fail_("mr_answer: outputs were kept with mr_next_output, so the outcome must be MR_EMIT");
  } else if (outcome != MR_ACK) {
    mr_detail_ *detail = (mr_detail_ *)mr_list_add_(&batch->details, sizeof(mr_detail_), 1, 8);
    memset(detail, 0, sizeof(*detail));
    detail->message = message;
    detail->delay.is_some = batch->has_delay;
    detail->delay.ms = batch->has_delay ? batch->delay_ms : 0;
    detail->class_name = batch->class_name;
    detail->reason = batch->reason;
    if (detail->class_name.data == NULL) mr_fail_("mr_answer: return mr_retry(…) or mr_reject(…), not the bare constant");
    batch->class_name = batch->reason = mr_absent();
  }
  *(uint8_t *)mr_list_add_(&batch->outcomes, 1, 1, batch->size) = (uint8_t)outcome;
}

mr_batch *mr_begin_batch(const uint32_t *arguments) { return mr_read_batch_(arguments); }

void *mr_end_batch(mr_batch *batch, const char *unavailable) {
  uint32_t *result = (uint32_t *)mr_allocate(104);
  const mr_list_ *lists[12];
  if (unavailable == NULL) unavailable = batch->unavailable;
  memset(result, 0, 104);
  mr_answered_ = true;
  if (unavailable != NULL) {
    mr_bytes reason = mr_copy_text_(unavailable);
    result[0] = 1;
    result[2] = (uint32_t)(uintptr_t)reason.data;
    result[3] = (uint32_t)reason.size;
    return result;
  }
  if (batch->outcomes.count != batch->size) mr_fail_("the function of the batch did not call mr_answer for each message");
  lists[0] = &batch->outcomes, lists[1] = &batch->details, lists[2] = &batch->answer_data, lists[3] = &batch->sources;
  lists[4] = &batch->topic_names, lists[5] = &batch->topics, lists[6] = &batch->partitions, lists[7] = &batch->answer_keys;
  lists[8] = &batch->answer_values, lists[9] = &batch->answer_header_ends, lists[10] = &batch->answer_headers, lists[11] = &batch->times;
  for (uint32_t index = 0; index < 12; index++) {
    result[1 + index * 2] = (uint32_t)(uintptr_t)lists[index]->items;
    result[2 + index * 2] = lists[index]->count;
  }
  /* Spans are two numbers each, and a header has two spans. */
  result[16] *= 2;
  result[18] *= 2;
  result[22] *= 4;
  return result;
}

/* ------------------------------------------------------------------------------------------- Partitioners and error handlers */

static void *mr_result_list_(const void *items, uint32_t count) {
  uint32_t *result = (uint32_t *)mr_allocate(8);
  result[0] = count == 0 ? 0 : (uint32_t)(uintptr_t)items;
  result[1] = count;
  mr_answered_ = true;
  return result;
}

void *mr_run_partitioner(const uint32_t *arguments, mr_choose_partition choose) {
  uint32_t partitions = arguments[0];
  mr_batch *batch = mr_read_batch_(arguments + 1);
  uint32_t *chosen = (uint32_t *)mr_allocate((size_t)batch->size * 4);
  for (uint32_t index = 0; index < batch->size; index++) {
    mr_message message = mr_message_at(batch, index);
    chosen[index] = choose(&message, partitions);
  }
  return mr_result_list_(chosen, batch->size);
}

/* As in the contract. */
typedef struct mr_wire_failure_ {
  uint32_t message, revision, attempt;
  uint64_t first_failed_at;
  uint8_t cause;
  mr_bytes class_name, reason;
} mr_wire_failure_;

typedef struct mr_wire_decision_ {
  uint8_t kind;
  union {
    uint64_t delay_ms;
    mr_bytes reason;
  } of;
} mr_wire_decision_;

mr_decision mr_decide_drop(const char *reason) { return mr_decide(2, 0, mr_copy_text_(reason)); }

void *mr_run_error_handler(const uint32_t *arguments, mr_handle_failure handle) {
  const mr_wire_failure_ *failures = (const mr_wire_failure_ *)(uintptr_t)arguments[0];
  uint32_t count = arguments[1];
  mr_batch *batch = mr_read_batch_(arguments + 2);
  mr_wire_decision_ *decisions = (mr_wire_decision_ *)mr_allocate((size_t)count * sizeof(mr_wire_decision_));
  for (uint32_t index = 0; index < count; index++) {
    mr_failure failure;
    mr_decision decision;
    failure.message = mr_message_at(batch, failures[index].message);
    failure.revision = failures[index].revision;
    failure.attempt = failures[index].attempt;
    failure.first_failed_at = failures[index].first_failed_at;
    failure.cause = (mr_cause)failures[index].cause;
    failure.class_name = failures[index].class_name;
    failure.reason = failures[index].reason;
    decision = handle(&failure);
    decisions[index].kind = decision.kind;
    decisions[index].of.delay_ms = decision.delay_ms;
    if (decision.kind == 2) decisions[index].of.reason = mr_utf8_(decision.reason);
  }
  return mr_result_list_(decisions, count);
}

/* ------------------------------------------------------------------------------------------------------------------- State */

#define MR_IMPORT(module, name) __attribute__((import_module("millrace:broker/" module "@0.1.1"), import_name(name)))

MR_IMPORT("state", "get")
void mr_host_state_get_(const uint8_t *data, size_t size, const mr_span_ *keys, size_t numbers, void *result);
MR_IMPORT("state", "set")
void mr_host_state_set_(const uint8_t *data, size_t size, const mr_span_ *keys, size_t key_numbers, const mr_span_ *values,
                        size_t value_numbers, const uint64_t *ttl_ms, size_t ttls, const uint32_t *messages, size_t message_count,
                        void *result);
MR_IMPORT("state", "add")
void mr_host_state_add_(const uint8_t *data, size_t size, const mr_span_ *keys, size_t key_numbers, const int64_t *deltas,
                        size_t delta_count, const uint64_t *ttl_ms, size_t ttls, const uint32_t *messages, size_t message_count,
                        void *result);
MR_IMPORT("state", "scan")
void mr_host_state_scan_(const uint8_t *prefix, size_t prefix_size, int32_t has_after, const uint8_t *after, size_t after_size,
                         uint32_t max, void *result);

const char *mr_state_full(void) { return mr_full_; }

/* Bytes of list arguments that are empty may be anywhere, but not at NULL plus something. */
static mr_bytes mr_present_(mr_bytes bytes) { return bytes.data == NULL ? mr_text("") : bytes; }

typedef struct mr_values_ {
  const uint8_t *data;
  size_t size;
  const mr_span_ *values;
  size_t numbers;
} mr_values_;

mr_bytes mr_state_get(mr_bytes key) {
  mr_values_ found;
  mr_span_ span;
  key = mr_present_(key);
  span.start = 0;
  span.length = (uint32_t)key.size;
  mr_host_state_get_(key.data, key.size, &span, 2, &found);
  return mr_span_bytes_(found.data, found.values[0]);
}

/* Keys of one call on state. */
#define MR_STATE_KEYS_MAX_ 10000u

/* The size of two pieces of memory. The same piece may come many times, so a sum may be more than there is memory. */
static size_t mr_sum_(size_t size, size_t more) {
  if (more > SIZE_MAX / 2 || size > SIZE_MAX / 2 - more) mr_fail_("state: the keys and values of one call have more than 2 GiB");
  return size + more;
}

static void mr_state_get_some_(const mr_bytes *keys, uint32_t count, mr_bytes *values) {
  mr_values_ found;
  size_t size = 0;
  uint8_t *data;
  mr_span_ *spans = (mr_span_ *)mr_allocate((size_t)count * 8);
  for (uint32_t index = 0; index < count; index++) size = mr_sum_(size, keys[index].size);
  data = (uint8_t *)mr_allocate(size);
  size = 0;
  for (uint32_t index = 0; index < count; index++) {
    spans[index].start = (uint32_t)size;
    spans[index].length = (uint32_t)keys[index].size;
    mr_copy_(data + size, keys[index].data, keys[index].size);
    size += keys[index].size;
  }
  mr_host_state_get_(data, size, spans, (size_t)count * 2, &found);
  for (uint32_t index = 0; index < count; index++) values[index] = mr_span_bytes_(found.data, found.values[index]);
}

void mr_state_get_many(const mr_bytes *keys, uint32_t count, mr_bytes *values) {
  for (uint32_t start = 0; start < count; start += MR_STATE_KEYS_MAX_) {
    uint32_t some = count - start < MR_STATE_KEYS_MAX_ ? count - start : MR_STATE_KEYS_MAX_;
    mr_state_get_some_(keys + start, some, values + start);
  }
}

/* An answer whose error is `full`: whether it is that. */
static bool mr_is_full_(const uint32_t *result) {
  if ((result[0] & 0xff) == 0) return false;
  mr_full_ = mr_c_string_(mr_bytes_of((const void *)(uintptr_t)result[2], result[3]));
  return true;
}

static bool mr_state_write_(const mr_message *message, mr_bytes key, mr_bytes value, const uint64_t *ttl_ms) {
  uint32_t result[4];
  mr_span_ spans[2];
  size_t size = mr_sum_(key.size, value.size);
  uint8_t *data = (uint8_t *)mr_allocate(size);
  mr_copy_(data, key.data, key.size);
  mr_copy_(data + key.size, value.data, value.size);
  spans[0].start = 0;
  spans[0].length = (uint32_t)key.size;
  spans[1].start = (uint32_t)key.size;
  spans[1].length = value.data == NULL ? MR_NONE_ : (uint32_t)value.size;
  mr_host_state_set_(data, size, &spans[0], 2, &spans[1], 2, ttl_ms, ttl_ms != NULL, &message->index, 1, result);
  return !mr_is_full_(result);
}

bool mr_state_set(const mr_message *message, mr_bytes key, mr_bytes value) {
  return mr_state_write_(message, key, mr_present_(value), NULL);
}

bool mr_state_set_for(const mr_message *message, mr_bytes key, mr_bytes value, uint64_t ttl_ms) {
  return mr_state_write_(message, key, mr_present_(value), &ttl_ms);
}

bool mr_state_delete(const mr_message *message, mr_bytes key) { return mr_state_write_(message, key, mr_absent(), NULL); }

bool mr_state_add(const mr_message *message, mr_bytes key, int64_t delta, int64_t *sum) {
  uint32_t result[4];
  mr_span_ span;
  key = mr_present_(key);
  span.start = 0;
  span.length = (uint32_t)key.size;
  mr_host_state_add_(key.data, key.size, &span, 2, &delta, 1, NULL, 0, &message->index, 1, result);
  if (mr_is_full_(result)) return false;
  if (sum != NULL) *sum = *(const int64_t *)(uintptr_t)result[1];
  return true;
}

bool mr_state_add_keys(const mr_batch *batch, const int64_t *deltas, int64_t *sums) {
  uint32_t result[4];
  uint32_t size = batch->size;
  mr_span_ *keys = (mr_span_ *)mr_allocate((size_t)size * 8);
  uint32_t *messages = (uint32_t *)mr_allocate((size_t)size * 4);
  mr_bytes data = mr_present_(batch->data);
  for (uint32_t index = 0; index < size; index++) {
    keys[index] = batch->keys[index];
    if (keys[index].length == MR_NONE_) keys[index].start = keys[index].length = 0;
    messages[index] = index;
  }
  for (uint32_t start = 0; start < size; start += MR_STATE_KEYS_MAX_) {
    uint32_t count = size - start < MR_STATE_KEYS_MAX_ ? size - start : MR_STATE_KEYS_MAX_;
    mr_host_state_add_(data.data, data.size, keys + start, (size_t)count * 2, deltas == NULL ? NULL : deltas + start,
                       deltas == NULL ? 0 : count, NULL, 0, messages + start, count, result);
    if (mr_is_full_(result)) return false;
    memcpy(sums + start, (const void *)(uintptr_t)result[1], (size_t)count * 8);
  }
  return true;
}

uint32_t mr_state_scan(mr_bytes prefix, mr_bytes after, uint32_t max, const mr_entry **entries) {
  struct {
    const uint8_t *data;
    size_t size;
    const mr_span_ *keys;
    size_t key_numbers;
    const mr_span_ *values;
    size_t value_numbers;
  } found;
  uint32_t count;
  mr_entry *read;
  prefix = mr_present_(prefix);
  mr_host_state_scan_(prefix.data, prefix.size, after.data != NULL, after.data, after.size, max, &found);
  count = (uint32_t)(found.key_numbers / 2);
  read = (mr_entry *)mr_allocate((size_t)count * sizeof(mr_entry));
  for (uint32_t index = 0; index < count; index++) {
    read[index].key = mr_span_bytes_(found.data, found.keys[index]);
    read[index].value = mr_span_bytes_(found.data, found.values[index]);
  }
  *entries = read;
  return count;
}

/* ------------------------------------------------------------------------------------ Log, configuration, secrets, metrics */

MR_IMPORT("log", "log") void mr_host_log_(uint32_t level, const uint8_t *text, size_t size);
MR_IMPORT("config", "get") void mr_host_config_get_(const uint8_t *key, size_t size, void *result);
MR_IMPORT("config", "all") void mr_host_config_all_(void *result);
MR_IMPORT("secrets", "get") void mr_host_secrets_get_(const uint8_t *name, size_t size, void *result);
MR_IMPORT("metrics", "add")
void mr_host_metrics_add_(const uint8_t *name, size_t size, const mr_entry *labels, size_t count, uint64_t delta);
MR_IMPORT("metrics", "set")
void mr_host_metrics_set_(const uint8_t *name, size_t size, const mr_entry *labels, size_t count, double value);
MR_IMPORT("metrics", "observe")
void mr_host_metrics_observe_(const uint8_t *name, size_t size, const mr_entry *labels, size_t count, double value);

void mr_log(mr_level level, mr_bytes line) {
  line = mr_utf8_(mr_present_(line));
  mr_host_log_((uint32_t)level, line.data, line.size);
}

void mr_logf(mr_level level, const char *format, ...) {
  mr_bytes line;
  va_list arguments;
  va_start(arguments, format);
  line = mr_format_list_(format, arguments);
  va_end(arguments);
  mr_log(level, line);
}

mr_bytes mr_config(const char *key) {
  struct {
    uint8_t found;
    mr_bytes value;
  } result;
  mr_bytes name = mr_utf8_(mr_text(key));
  mr_host_config_get_(name.data, name.size, &result);
  return result.found ? mr_present_(result.value) : mr_absent();
}

uint32_t mr_config_all(const mr_entry **entries) {
  struct {
    const mr_entry *entries;
    uint32_t count;
  } result;
  mr_host_config_all_(&result);
  *entries = result.entries;
  return result.count;
}

mr_secret_status mr_secret(const char *name, mr_bytes *value) {
  uint32_t result[4];
  mr_bytes wanted = mr_utf8_(mr_text(name));
  mr_host_secrets_get_(wanted.data, wanted.size, result);
  if ((result[0] & 0xff) == 0) {
    *value = mr_present_(mr_bytes_of((const void *)(uintptr_t)result[1], result[2]));
    return MR_SECRET_FOUND;
  }
  *value = mr_bytes_of((const void *)(uintptr_t)result[2], result[3]);
  return (result[1] & 0xff) == 0 ? MR_SECRET_NOT_GRANTED : MR_SECRET_UNAVAILABLE;
}

/* A name and its labels, as the contract has them: a label is two byte strings, like an entry. */
static const mr_entry *mr_labels_(const mr_label *labels, uint32_t count) {
  mr_entry *entries = (mr_entry *)mr_allocate((size_t)count * sizeof(mr_entry));
  for (uint32_t index = 0; index < count; index++) {
    entries[index].key = mr_utf8_(mr_text(labels[index].name));
    entries[index].value = mr_utf8_(mr_text(labels[index].value));
  }
  return entries;
}

void mr_counter_add(const char *name, const mr_label *labels, uint32_t count, uint64_t delta) {
  mr_bytes text = mr_utf8_(mr_text(name));
  mr_host_metrics_add_(text.data, text.size, mr_labels_(labels, count), count, delta);
}

void mr_gauge_set(const char *name, const mr_label *labels, uint32_t count, double value) {
  mr_bytes text = mr_utf8_(mr_text(name));
  mr_host_metrics_set_(text.data, text.size, mr_labels_(labels, count), count, value);
}

void mr_histogram_observe(const char *name, const mr_label *labels, uint32_t count, double value) {
  mr_bytes text = mr_utf8_(mr_text(name));
  mr_host_metrics_observe_(text.data, text.size, mr_labels_(labels, count), count, value);
}

/* -------------------------------------------------------------------------------------------------------- Routes: HTTP */

/* The parts of WASI that a route needs. A number is the handle of a resource. An instance answers one request, so that nothing is dropped but what must be
 * before something else can be done. */
#define MR_WASI_(module, name) __attribute__((import_module("wasi:" module "@0.2.12"), import_name(name)))

MR_WASI_("http/types", "[method]incoming-request.method") void mr_wasi_method_(uint32_t request, void *result);
MR_WASI_("http/types", "[method]incoming-request.path-with-query") void mr_wasi_target_(uint32_t request, void *result);
MR_WASI_("http/types", "[method]incoming-request.headers") uint32_t mr_wasi_headers_(uint32_t request);
MR_WASI_("http/types", "[method]fields.entries") void mr_wasi_entries_(uint32_t fields, void *result);
MR_WASI_("http/types", "[method]incoming-request.consume") void mr_wasi_consume_(uint32_t request, void *result);
MR_WASI_("http/types", "[method]incoming-body.stream") void mr_wasi_stream_(uint32_t body, void *result);
MR_WASI_("io/streams", "[method]input-stream.blocking-read") void mr_wasi_read_(uint32_t stream, uint64_t size, void *result);
MR_WASI_("http/types", "[constructor]fields") uint32_t mr_wasi_fields_(void);
MR_WASI_("http/types", "[method]fields.append")
void mr_wasi_append_(uint32_t fields, const uint8_t *name, size_t name_size, const uint8_t *value, size_t value_size, void *result);
MR_WASI_("http/types", "[constructor]outgoing-response") uint32_t mr_wasi_response_(uint32_t fields);
MR_WASI_("http/types", "[method]outgoing-response.set-status-code") uint32_t mr_wasi_set_status_(uint32_t response, uint32_t status);
MR_WASI_("http/types", "[method]outgoing-response.body") void mr_wasi_body_(uint32_t response, void *result);
MR_WASI_("http/types", "[static]response-outparam.set")
void mr_wasi_set_(uint32_t out, uint32_t is_error, uint32_t response, uint32_t p3, uint64_t p4, uint32_t p5, uint32_t p6, uint32_t p7,
                  uint32_t p8); /* the others are of errors */
MR_WASI_("http/types", "[method]outgoing-body.write") void mr_wasi_write_(uint32_t body, void *result);
MR_WASI_("io/streams", "[method]output-stream.blocking-write-and-flush")
void mr_wasi_flush_(uint32_t stream, const uint8_t *data, size_t size, void *result);
MR_WASI_("io/streams", "[resource-drop]output-stream") void mr_wasi_drop_stream_(uint32_t stream);
MR_WASI_("http/types", "[static]outgoing-body.finish")
void mr_wasi_finish_(uint32_t body, uint32_t has_trailers, uint32_t trailers, void *result);

/* Bytes of a request's body; a larger one is answered with 413. */
#define MR_BODY_BYTES_MAX_ ((size_t)1 << 20)
/* Bytes that are read at a time. */
#define MR_READ_BYTES_ ((uint64_t)64 << 10)
/* Bytes that are written at a time, which WASI sets. */
#define MR_WRITE_BYTES_ ((size_t)4 << 10)

struct mr_response {
  uint32_t status;
  mr_bytes body;
  /* Of mr_header. */
  mr_list_ headers;
};

void mr_set_status(mr_response *response, uint32_t status) { response->status = status; }
void mr_set_body(mr_response *response, mr_bytes body) { response->body = body; }

void mr_response_header(mr_response *response, const char *name, mr_bytes value) {
  mr_header *header = (mr_header *)mr_list_add_(&response->headers, sizeof(mr_header), 1, 4);
  header->name = mr_text(name);
  header->value = mr_present_(value);
}

static void mr_respond_(mr_response *response, uint32_t status, const char *type, mr_bytes body) {
  response->status = status;
  response->body = body;
  mr_response_header(response, "content-type", mr_text(type));
}

void mr_respond_text(mr_response *response, uint32_t status, mr_bytes text) {
  mr_respond_(response, status, "text/plain; charset=utf-8", text);
}

void mr_respond_json(mr_response *response, uint32_t status, mr_bytes json) { mr_respond_(response, status, "application/json", json); }

mr_bytes mr_json_string(mr_bytes text) {
  static const char digits[] = "0123456789abcdef";
  mr_list_ written;
  memset(&written, 0, sizeof(written));
  text = mr_utf8_(mr_present_(text));
  *(uint8_t *)mr_list_add_(&written, 1, 1, (uint32_t)text.size + 2) = '"';
  for (size_t at = 0; at < text.size; at++) {
    uint8_t c = text.data[at];
    if (c < 0x20) {
      uint8_t *to = (uint8_t *)mr_list_add_(&written, 1, 6, 8);
      memcpy(to, "\\u00", 4);
      to[4] = (uint8_t)digits[c >> 4];
      to[5] = (uint8_t)digits[c & 15];
    } else {
      if (c == '"' || c == '\\') *(uint8_t *)mr_list_add_(&written, 1, 1, 8) = '\\';
      *(uint8_t *)mr_list_add_(&written, 1, 1, 8) = c;
    }
  }
  *(uint8_t *)mr_list_add_(&written, 1, 1, 8) = '"';
  return mr_bytes_of(written.items, written.count);
}

static uint8_t mr_lower_(uint8_t c) { return c >= 'A' && c <= 'Z' ? (uint8_t)(c + 32) : c; }

mr_bytes mr_request_header(const mr_request *request, const char *name) {
  mr_bytes wanted = mr_text(name);
  for (uint32_t index = 0; index < request->header_count; index++) {
    mr_bytes known = request->headers[index].name;
    size_t same = 0;
    if (known.size != wanted.size) continue;
    while (same < known.size && mr_lower_(known.data[same]) == mr_lower_(wanted.data[same])) same++;
    if (same == known.size) return mr_present_(request->headers[index].value);
  }
  return mr_absent();
}

mr_bytes mr_request_last(const mr_request *request) {
  size_t start = request->path.size;
  while (start > 0 && request->path.data[start - 1] != '/') start--;
  return mr_bytes_of(request->path.data + start, request->path.size - start);
}

/* The body as a whole; 0, or the status that says what is wrong with it. */
static uint32_t mr_read_body_(uint32_t request, mr_bytes *body) {
  uint32_t result[3], stream;
  mr_list_ read;
  memset(&read, 0, sizeof(read));
  mr_wasi_consume_(request, result);
  if ((result[0] & 0xff) != 0) return 400;
  mr_wasi_stream_(result[1], result);
  if ((result[0] & 0xff) != 0) return 400;
  stream = result[1];
  for (;;) {
    mr_wasi_read_(stream, MR_READ_BYTES_, result);
    if ((result[0] & 0xff) != 0) {
      /* The stream is closed at the end of the body, and failed if the body was cut off. */
      *body = mr_present_(mr_bytes_of(read.items, read.count));
      return (result[1] & 0xff) == 1 ? 0 : 400;
    }
    if (result[2] == 0) continue;
    if (read.count + (size_t)result[2] > MR_BODY_BYTES_MAX_) return 413;
    memcpy(mr_list_add_(&read, 1, result[2], result[2]), (const void *)(uintptr_t)result[1], result[2]);
  }
}

static mr_request mr_read_request_(uint32_t request, uint32_t *wrong) {
  static const char *const methods[] = {"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"};
  mr_request read;
  uint32_t result[3], method;
  const uint8_t *query;
  memset(&read, 0, sizeof(read));
  mr_wasi_method_(request, result);
  method = result[0] & 0xff;
  read.method = method < 9 ? mr_text(methods[method]) : mr_bytes_of((const void *)(uintptr_t)result[1], result[2]);
  mr_wasi_target_(request, result);
  read.target = (result[0] & 0xff) == 0 ? mr_text("") : mr_bytes_of((const void *)(uintptr_t)result[1], result[2]);
  read.path = read.target;
  query = (const uint8_t *)memchr(read.target.data, '?', read.target.size);
  if (query != NULL) {
    read.path.size = (size_t)(query - read.target.data);
    read.query = mr_bytes_of(query + 1, read.target.size - read.path.size - 1);
  }
  mr_wasi_entries_(mr_wasi_headers_(request), result);
  read.headers = (const mr_header *)(uintptr_t)result[0];
  read.header_count = result[1];
  *wrong = mr_read_body_(request, &read.body);
  return read;
}

static void mr_give_(const mr_response *response, uint32_t out) {
  uint64_t result[5];
  const uint32_t *numbers = (const uint32_t *)result;
  const mr_header *headers = (const mr_header *)response->headers.items;
  uint32_t fields = mr_wasi_fields_(), outgoing, body, stream;
  for (uint32_t index = 0; index < response->headers.count; index++) {
    const mr_header *header = &headers[index];
    mr_wasi_append_(fields, header->name.data, header->name.size, header->value.data, header->value.size, result);
    if ((numbers[0] & 0xff) != 0) mr_fail_("a header of the answer cannot be sent");
  }
  outgoing = mr_wasi_response_(fields);
  if (mr_wasi_set_status_(outgoing, response->status) != 0) mr_fail_("the status of the answer is none");
  mr_wasi_body_(outgoing, result);
  body = numbers[1];
  mr_wasi_set_(out, 0, outgoing, 0, 0, 0, 0, 0, 0);
  mr_wasi_write_(body, result);
  stream = numbers[1];
  for (size_t at = 0; at < response->body.size; at += MR_WRITE_BYTES_) {
    size_t left = response->body.size - at;
    mr_wasi_flush_(stream, response->body.data + at, left < MR_WRITE_BYTES_ ? left : MR_WRITE_BYTES_, result);
    /* Whoever asked may be gone by now. */
    if ((numbers[0] & 0xff) != 0) break;
  }
  mr_wasi_drop_stream_(stream);
  mr_wasi_finish_(body, 0, 0, result);
}

void mr_run_http(uint32_t request, uint32_t out, mr_answer_request answer) {
  mr_response response;
  uint32_t wrong;
  mr_request read = mr_read_request_(request, &wrong);
  memset(&response, 0, sizeof(response));
  response.status = 200;
  if (wrong == 0) {
    answer(&read, &response);
  } else {
    mr_respond_text(&response, wrong, mr_text(wrong == 413 ? "the body is too large" : "the body cannot be read"));
  }
  mr_give_(&response, out);
}

/* A position in a blob that is being written. */
typedef struct mr_blob_ {
  uint8_t *data;
  size_t size;
} mr_blob_;

static mr_span_ mr_put_(mr_blob_ *blob, mr_bytes bytes) {
  mr_span_ span;
  span.start = bytes.data == NULL ? 0 : (uint32_t)blob->size;
  span.length = bytes.data == NULL ? MR_NONE_ : (uint32_t)bytes.size;
  mr_copy_(blob->data + blob->size, bytes.data, bytes.size);
  blob->size += bytes.size;
  return span;
}

/* `send` has more parameters than are passed one by one, so they are in memory, as in the contract. */
typedef struct mr_send_arguments_ {
  mr_bytes topic;
  mr_bytes data;
  const mr_span_ *keys;
  size_t key_numbers;
  const mr_span_ *values;
  size_t value_numbers;
  const uint32_t *header_ends;
  size_t messages;
  const mr_span_ *headers;
  size_t header_numbers;
  const uint32_t *partitions;
  size_t partition_count;
  const uint64_t *times;
  size_t time_count;
  uint32_t has_key;
  mr_bytes key;
} mr_send_arguments_;

MR_IMPORT("producer", "send") void mr_host_send_(const mr_send_arguments_ *arguments, void *result);
MR_IMPORT("producer", "settled")
void mr_host_settled_(const uint8_t *processor, size_t processor_size, const uint8_t *topic, size_t topic_size, const uint32_t *partitions,
                      size_t count, const uint64_t *offsets, size_t offset_count, uint32_t repeated, uint64_t ms, void *result);

static const char *mr_send_error_ = "";

const char *mr_send_error(void) { return mr_send_error_; }

/* The status of an answer: its error is a case and a text. */
static mr_send_status mr_send_status_(const uint32_t *result) {
  if ((result[0] & 0xff) == 0) return MR_SENT;
  mr_send_error_ = mr_c_string_(mr_bytes_of((const void *)(uintptr_t)result[2], result[3]));
  return (mr_send_status)(1 + (result[1] & 0xff));
}

mr_send_status mr_send_once(const char *topic, mr_bytes key, const mr_outgoing *messages, uint32_t count, mr_sent *sent) {
  mr_send_arguments_ arguments;
  uint32_t result[6], header = 0, headers = 0;
  size_t size = 0;
  mr_blob_ blob;
  mr_span_ *keys = (mr_span_ *)mr_allocate((size_t)count * 8), *values = (mr_span_ *)mr_allocate((size_t)count * 8), *header_spans;
  uint32_t *ends = (uint32_t *)mr_allocate((size_t)count * 4), *partitions = (uint32_t *)mr_allocate((size_t)count * 4);
  uint64_t *times = (uint64_t *)mr_allocate((size_t)count * 16);
  mr_send_status status;
  for (uint32_t index = 0; index < count; index++) {
    size += messages[index].key.size + messages[index].value.size;
    headers += messages[index].header_count;
    for (uint32_t at = 0; at < messages[index].header_count; at++)
      size += messages[index].headers[at].name.size + messages[index].headers[at].value.size;
  }
  blob.data = (uint8_t *)mr_allocate(size);
  blob.size = 0;
  header_spans = (mr_span_ *)mr_allocate((size_t)headers * 16);
  for (uint32_t index = 0; index < count; index++) {
    const mr_outgoing *message = &messages[index];
    keys[index] = mr_put_(&blob, message->key);
    values[index] = mr_put_(&blob, message->value);
    for (uint32_t at = 0; at < message->header_count; at++, header++) {
      header_spans[header * 2] = mr_put_(&blob, message->headers[at].name);
      header_spans[header * 2 + 1] = mr_put_(&blob, message->headers[at].value);
    }
    ends[index] = header;
    partitions[index] = message->has_partition ? message->partition : MR_NONE_;
    times[index * 2] = message->timestamp;
    times[index * 2 + 1] = message->deliver_at;
  }
  arguments.topic = mr_utf8_(mr_text(topic));
  arguments.data = mr_bytes_of(blob.data, blob.size);
  arguments.keys = keys, arguments.key_numbers = (size_t)count * 2;
  arguments.values = values, arguments.value_numbers = (size_t)count * 2;
  arguments.header_ends = ends, arguments.messages = count;
  arguments.headers = header_spans, arguments.header_numbers = (size_t)headers * 4;
  arguments.partitions = partitions, arguments.partition_count = count;
  arguments.times = times, arguments.time_count = (size_t)count * 2;
  arguments.has_key = key.data != NULL;
  arguments.key = mr_utf8_(mr_present_(key));
  mr_host_send_(&arguments, result);
  status = mr_send_status_(result);
  if (status == MR_SENT && sent != NULL) {
    sent->partitions = (const uint32_t *)(uintptr_t)result[1];
    sent->count = result[2];
    sent->offsets = (const uint64_t *)(uintptr_t)result[3];
    sent->repeated = (result[5] & 0xff) != 0;
  }
  return status;
}

mr_send_status mr_send(const char *topic, const mr_outgoing *messages, uint32_t count, mr_sent *sent) {
  return mr_send_once(topic, mr_absent(), messages, count, sent);
}

mr_send_status mr_settled(const char *processor, const char *topic, const mr_sent *sent, uint64_t ms, bool *settled) {
  uint32_t result[4];
  mr_bytes owner = mr_utf8_(mr_text(processor)), name = mr_utf8_(mr_text(topic));
  mr_send_status status;
  mr_host_settled_(owner.data, owner.size, name.data, name.size, sent->partitions, sent->count, sent->offsets, sent->count, sent->repeated,
                   ms, result);
  status = mr_send_status_(result);
  *settled = status == MR_SENT && (result[1] & 0xff) != 0;
  return status;
}

MR_IMPORT("views", "partitions")
void mr_host_view_partitions_(const uint8_t *processor, size_t processor_size, uint32_t has_topic, const uint8_t *topic, size_t topic_size,
                              void *result);
MR_IMPORT("views", "get")
void mr_host_view_get_(const uint8_t *processor, size_t processor_size, uint32_t has_topic, const uint8_t *topic, size_t topic_size,
                       uint32_t has_partition, uint32_t partition, const uint8_t *data, size_t size, const mr_span_ *keys, size_t numbers,
                       void *result);
MR_IMPORT("views", "scan")
void mr_host_view_scan_(const uint8_t *processor, size_t processor_size, uint32_t has_topic, const uint8_t *topic, size_t topic_size,
                        uint32_t partition, const uint8_t *prefix, size_t prefix_size, uint32_t has_after, const uint8_t *after,
                        size_t after_size, uint32_t max, void *result);

static const char *mr_view_error_ = "";

const char *mr_view_error(void) { return mr_view_error_; }

static mr_view_status mr_view_status_(const uint32_t *result) {
  if ((result[0] & 0xff) == 0) return MR_VIEWED;
  mr_view_error_ = mr_c_string_(mr_bytes_of((const void *)(uintptr_t)result[2], result[3]));
  return (mr_view_status)(1 + (result[1] & 0xff));
}

static mr_bytes mr_view_topic_(const mr_view *view) { return view->topic == NULL ? mr_absent() : mr_utf8_(mr_text(view->topic)); }

mr_view_status mr_view_partitions(const mr_view *view, uint32_t *partitions) {
  uint32_t result[4];
  mr_bytes processor = mr_utf8_(mr_text(view->processor)), topic = mr_view_topic_(view);
  mr_view_status status;
  mr_host_view_partitions_(processor.data, processor.size, topic.data != NULL, topic.data, topic.size, result);
  status = mr_view_status_(result);
  if (status == MR_VIEWED) *partitions = result[1];
  return status;
}

mr_view_status mr_view_get(const mr_view *view, mr_bytes key, mr_bytes *value) { return mr_view_get_many(view, NULL, &key, 1, value); }

mr_view_status mr_view_get_many(const mr_view *view, const uint32_t *partition, const mr_bytes *keys, uint32_t count, mr_bytes *values) {
  uint32_t result[5];
  mr_bytes processor = mr_utf8_(mr_text(view->processor)), topic = mr_view_topic_(view);
  size_t size = 0;
  mr_blob_ blob;
  mr_span_ *spans = (mr_span_ *)mr_allocate((size_t)count * 8);
  mr_view_status status;
  for (uint32_t index = 0; index < count; index++) size += keys[index].size;
  blob.data = (uint8_t *)mr_allocate(size);
  blob.size = 0;
  for (uint32_t index = 0; index < count; index++) spans[index] = mr_put_(&blob, mr_present_(keys[index]));
  mr_host_view_get_(processor.data, processor.size, topic.data != NULL, topic.data, topic.size, partition != NULL,
                    partition == NULL ? 0 : *partition, blob.data, blob.size, spans, (size_t)count * 2, result);
  status = mr_view_status_(result);
  if (status != MR_VIEWED) return status;
  for (uint32_t index = 0; index < count; index++)
    values[index] = mr_span_bytes_((const uint8_t *)(uintptr_t)result[1], ((const mr_span_ *)(uintptr_t)result[3])[index]);
  return status;
}

mr_view_status mr_view_scan(const mr_view *view, uint32_t partition, mr_bytes prefix, mr_bytes after, uint32_t max, mr_entries *entries) {
  uint32_t result[8];
  mr_bytes processor = mr_utf8_(mr_text(view->processor)), topic = mr_view_topic_(view);
  const uint8_t *data;
  mr_entry *read;
  mr_view_status status;
  prefix = mr_present_(prefix);
  mr_host_view_scan_(processor.data, processor.size, topic.data != NULL, topic.data, topic.size, partition, prefix.data, prefix.size,
                     after.data != NULL, after.data, after.size, max, result);
  status = mr_view_status_(result);
  if (status != MR_VIEWED) return status;
  data = (const uint8_t *)(uintptr_t)result[1];
  entries->count = result[4] / 2;
  entries->has_more = (result[7] & 0xff) != 0;
  read = (mr_entry *)mr_allocate((size_t)entries->count * sizeof(mr_entry));
  for (uint32_t index = 0; index < entries->count; index++) {
    read[index].key = mr_span_bytes_(data, ((const mr_span_ *)(uintptr_t)result[3])[index]);
    read[index].value = mr_span_bytes_(data, ((const mr_span_ *)(uintptr_t)result[5])[index]);
  }
  entries->entries = read;
  return status;
}

#ifdef __cplusplus
}
#endif
#endif
#endif /* MILLRACE_IMPLEMENTATION */
