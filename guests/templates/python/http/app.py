"""Takes names by HTTP and sends them to a topic; says which greeting they will get.

GET …/greeting  the greeting of the settings, as JSON
POST …/names    with a name as the body: sends it, and says where it is
"""

from millrace import Outgoing, Request, Response, config, http, log, producer

#: Characters of a name.
NAME_CHARS_MAX = 100


@http
def answer(request: Request) -> Response:
    # The path begins with that of the route, wherever that is.
    match request.path.rpartition("/")[2], request.method:
        case "greeting", "GET":
            return Response.json(200, {"greeting": config.get("greeting", "hello")})
        case "greeting", _:
            return failure(405, "a greeting is read with GET", {"allow": "GET"})
        case "names", "POST":
            return take(request)
        case "names", _:
            return failure(405, "a name is sent with POST", {"allow": "POST"})
        case _:
            return failure(404, "there are only greeting and names")


def take(request: Request) -> Response:
    name = request.text().strip()
    if not 0 < len(name) <= NAME_CHARS_MAX:
        return failure(400, "send a name as the body, as text")
    topic = config.get("topic", "names")
    messages = [Outgoing(name, key=name)]
    # A caller that repeats a request with the same key sends one message.
    key = request.header("idempotency-key")
    try:
        sent = producer.send(topic, messages) if key is None else producer.send_once(topic, key, messages)
    except producer.SendError as error:
        return not_sent(error)
    place = sent.places[0]
    return Response.json(202, {"topic": topic, "partition": place.partition, "offset": place.offset})


def not_sent(error: producer.SendError) -> Response:
    """An answer that makes the caller do what helps: try again, or stop."""
    log.error(f"a name was not sent: {error}")
    match error:
        case producer.Unavailable():
            return failure(503, "try again later")
        case producer.KeyReused():
            return failure(409, "the key was used for another name")
        case producer.Refused():
            return failure(422, "the topic does not take this name")
        case _:
            return failure(500, "the route is not set up")


def failure(status: int, why: str, headers: dict[str, str] | None = None) -> Response:
    return Response.json(status, {"error": why}, headers)
