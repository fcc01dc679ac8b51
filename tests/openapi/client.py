"""Produces, fetches and reads dead letters with a client that is generated from the document."""

import json
import os
import time

from generated import Client
from generated.api.dead_letters import get_processor_dead_letters
from generated.api.messages import get_topic_partition_messages, post_topic_messages
from generated.api.topics import get_topic
from generated.models import ErrorBody, MessageIn, Many

client = Client(base_url=os.environ["MILLRACE_HOST"])

messages = [
    MessageIn(key="py", value=json.dumps({"amount": 500})),
    MessageIn(key="py", value="no json"),
]
produced = post_topic_messages.sync(client=client, topic="orders", body=Many(messages=messages))
assert produced.count == 2, produced
place = produced.placed[0]

fetched = get_topic_partition_messages.sync(
    client=client, topic="orders", partition=place.partition, from_=str(place.offset), max_=1
)
message = fetched.messages[0]
assert (message.key, message.offset) == ("py", place.offset), message

until = time.monotonic() + 60
while True:
    letters = get_processor_dead_letters.sync(client=client, name="sift", key="py").dead_letters
    if letters:
        break
    assert time.monotonic() < until, "no dead letter within a minute"
    time.sleep(0.05)
assert letters[0].message.value == "no json", letters[0]
assert letters[0].origin_topic == "orders", letters[0]

unknown = get_topic.sync(client=client, topic="none")
assert isinstance(unknown, ErrorBody), unknown
assert unknown.error.code == "unknown-topic", unknown
