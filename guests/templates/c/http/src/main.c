/* {{name}}: takes names by HTTP and sends them to a topic; says which greeting they will get.
 *
 * GET …/greeting: the greeting of the settings, as JSON
 * POST …/names with a name as the body: sends it, and says where it is */
#define MILLRACE_IMPLEMENTATION
#include "millrace.h"

#define NAME_BYTES_MAX 100u

static bool is(mr_bytes bytes, const char *text) { return mr_equal(bytes, mr_text(text)); }

static mr_bytes setting(const char *key, const char *usual) {
  mr_bytes value = mr_config(key);
  return mr_is_absent(value) ? mr_text(usual) : value;
}

static void fail(mr_response *response, uint32_t status, const char *why) {
  mr_bytes text = mr_json_string(mr_text(why));
  mr_respond_json(response, status, mr_format("{\"error\": %.*s}", (int)text.size, text.data));
}

static void refuse_method(mr_response *response, const char *allowed) {
  fail(response, 405, "this path has another method");
  mr_response_header(response, "allow", mr_text(allowed));
}

static void greet(mr_response *response) {
  mr_bytes greeting = mr_json_string(setting("greeting", "hello"));
  mr_respond_json(response, 200, mr_format("{\"greeting\": %.*s}", (int)greeting.size, greeting.data));
}

/* An answer that makes the caller do what helps: try again, or stop. */
static void fail_to_send(mr_response *response, mr_send_status status) {
  mr_logf(MR_ERROR, "a name was not sent: %s", mr_send_error());
  switch (status) {
    case MR_SEND_UNAVAILABLE: fail(response, 503, "try again later"); break;
    case MR_SEND_KEY_REUSED: fail(response, 409, "the key was used for another name"); break;
    case MR_SEND_REFUSED: fail(response, 422, "the topic does not take this name"); break;
    default: fail(response, 500, "the route is not set up");
  }
}

static void take(const mr_request *request, mr_response *response) {
  mr_outgoing message = {0};
  mr_bytes topic = setting("topic", "names"), shown = mr_json_string(topic);
  mr_sent sent;
  mr_send_status status;

  if (request->body.size == 0 || request->body.size > NAME_BYTES_MAX) {
    fail(response, 400, "send a name as the body, as text");
    return;
  }
  message.key = message.value = request->body;
  /* A caller that repeats a request with the same key sends one message. Without a key, each call sends. */
  status = mr_send_once((const char *)mr_format("%.*s", (int)topic.size, topic.data).data, mr_request_header(request, "idempotency-key"),
                        &message, 1, &sent);
  if (status != MR_SENT) {
    fail_to_send(response, status);
    return;
  }
  mr_respond_json(response, 202,
                  mr_format("{\"topic\": %.*s, \"partition\": %u, \"offset\": %llu}", (int)shown.size, shown.data,
                            (unsigned)sent.partitions[0], (unsigned long long)sent.offsets[0]));
}

static void answer(const mr_request *request, mr_response *response) {
  /* The path begins with that of the route, wherever that is. */
  mr_bytes last = mr_request_last(request);
  if (is(last, "greeting")) {
    if (is(request->method, "GET")) greet(response);
    else refuse_method(response, "GET");
  } else if (is(last, "names")) {
    if (is(request->method, "POST")) take(request, response);
    else refuse_method(response, "POST");
  } else {
    fail(response, 404, "there are only greeting and names");
  }
}

MR_HTTP(answer)
