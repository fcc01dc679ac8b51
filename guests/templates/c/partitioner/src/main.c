/* {{name}}: messages whose keys begin with the same region share a partition. */
#define MILLRACE_IMPLEMENTATION
#include "millrace.h"

static uint32_t choose(const mr_message *message, uint32_t partitions) {
  uint32_t hash = 2166136261u; /* FNV-1a */
  for (size_t at = 0; at < message->key.size && message->key.data[at] != '-'; at++) hash = (hash ^ message->key.data[at]) * 16777619u;
  return hash % partitions;
}

MR_PARTITIONER(choose)
