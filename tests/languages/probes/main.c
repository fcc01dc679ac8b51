/* Everything that the SDK for C has for routes, in one answer: tests/languages/templates --probe. */
#define MILLRACE_IMPLEMENTATION
#include "millrace.h"

static const char *word(bool is) { return is ? "true" : "false"; }

static mr_bytes placed(const mr_sent *sent, uint32_t index) {
  if (sent->offsets[index] == MR_LATER) return mr_format("%u:later", (unsigned)sent->partitions[index]);
  return mr_format("%u:%llu", (unsigned)sent->partitions[index], (unsigned long long)sent->offsets[index]);
}

static void probe(mr_response *response) {
  mr_view view = {"counts", NULL}, others = {"others", NULL};
  mr_header header = {mr_text("h"), mr_text("w")};
  mr_outgoing messages[2] = {{0}, {0}};
  mr_bytes ada, bob, absent, first, second;
  mr_entries page, last;
  mr_sent sent;
  uint32_t partitions;
  int64_t number;
  bool settled;

  if (mr_view_get(&view, mr_text("ada"), &ada) != MR_VIEWED || mr_view_get(&view, mr_text("bob"), &bob) != MR_VIEWED) __builtin_trap();
  if (mr_view_partitions(&view, &partitions) != MR_VIEWED) __builtin_trap();
  if (mr_view_scan(&view, 0, mr_text("a"), mr_absent(), 1, &page) != MR_VIEWED) __builtin_trap();
  if (mr_view_scan(&view, 0, mr_text("a"), mr_text("ada"), 10, &last) != MR_VIEWED) __builtin_trap();
  memcpy(&number, ada.data, 8);
  messages[0].value = mr_text("v");
  messages[0].headers = &header, messages[0].header_count = 1;
  messages[0].has_partition = true, messages[0].partition = 1;
  messages[0].timestamp = 5, messages[0].deliver_at = 9999999999999u;
  messages[1].key = mr_text("k");
  if (mr_send("t", messages, 2, &sent) != MR_SENT || mr_settled("counts", "t", &sent, 5, &settled) != MR_SENT) __builtin_trap();
  first = placed(&sent, 0), second = placed(&sent, 1);
  mr_respond_text(response, 200,
                  mr_format("number %lld, bob %s, partitions %u, first %.*s, more %s, last %u %s, placed %.*s %.*s, settled %s, other view %s, other topic %s",
                            (long long)number, mr_is_absent(bob) ? "none" : "some", (unsigned)partitions, (int)page.entries[0].key.size,
                            page.entries[0].key.data, word(page.has_more), (unsigned)last.count, word(last.has_more), (int)first.size, first.data,
                            (int)second.size, second.data, word(settled),
                            mr_view_get(&others, mr_text("ada"), &absent) == MR_VIEW_NOT_GRANTED ? "not-granted" : "granted",
                            mr_send("others", messages, 2, &sent) == MR_SEND_NOT_GRANTED ? "not-granted" : "granted"));
  mr_response_header(response, "X-Probe", mr_text("yes"));
}

static void answer(const mr_request *request, mr_response *response) {
  mr_bytes name = mr_request_header(request, "X-Name");
  if (!mr_equal(request->method, mr_text("POST"))) {
    probe(response);
    return;
  }
  mr_respond_text(response, 200,
                  mr_format("POST %.*s %.*s %.*s %u", (int)request->path.size, request->path.data, (int)request->query.size, request->query.data,
                            (int)name.size, name.data, (unsigned)request->body.size));
}

MR_HTTP(answer)
