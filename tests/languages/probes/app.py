"""Everything that the SDK for Python has for routes, in one answer: tests/languages/templates --probe."""

from millrace import Outgoing, Request, Response, View, http, producer, views


@http
def answer(request: Request) -> Response:
    if request.method == "POST":
        return Response.text(200, f"POST {request.path} {request.query} {request.header('X-Name')} {len(request.body)}")
    view = View("counts")
    page = view.scan(0, "a", max=1)
    last = view.scan(0, "a", after="ada", max=10)
    messages = [Outgoing("v", headers={"h": "w"}, partition=1, timestamp=5, deliver_at=9999999999999), Outgoing(None, key="k")]
    sent = producer.send("t", messages)
    placed = " ".join(f"{place.partition}:{'later' if place.offset is None else place.offset}" for place in sent.places)
    parts = [
        f"number {view.number('ada')}",
        f"bob {view.text('bob') or 'none'}",
        f"partitions {view.partitions()}",
        f"first {page.entries[0].key.decode()}",
        f"more {str(page.has_more).lower()}",
        f"last {len(last.entries)} {str(last.has_more).lower()}",
        f"placed {placed}",
        f"settled {str(producer.settled('counts', 't', sent, 5)).lower()}",
    ]
    try:
        View("others").get("ada")
    except views.NotGranted:
        parts.append("other view not-granted")
    try:
        producer.send("others", messages)
    except producer.NotGranted:
        parts.append("other topic not-granted")
    return Response.text(200, ", ".join(parts), {"X-Probe": "yes"})
