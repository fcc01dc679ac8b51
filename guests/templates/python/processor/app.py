"""Greets each name, and counts how often. The word of greeting is a setting."""

from millrace import Message, Outcome, config, emit, processor, reject, state


@processor
def process(message: Message) -> Outcome:
    if message.value is None:
        return reject("no-value", "there is nobody to greet")
    name = message.text()
    greeting = config.get("greeting", "hello")
    times = state.add(message, name)
    return emit(message.output(f"{greeting}, {name}", headers={"times": str(times)}))
