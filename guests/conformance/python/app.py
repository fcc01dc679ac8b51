"""The conformance processor in Python: what it does is in ../README.md."""

from millrace import Batch, Message, Outcome, batch_processor, config, emit, log, metrics, reject, retry, state


@batch_processor
def process(batch: Batch) -> list[Outcome]:
    suffix = config.get("suffix", "").encode()
    counts = state.add_each(batch)
    outcomes = [decide(message, count, suffix) for message, count in zip(batch, counts)]
    metrics.add("handled", len(batch), {"language": "python"})
    return outcomes


def decide(message: Message, count: int, suffix: bytes) -> Outcome:
    headers = {"count": str(count)}
    value = message.value
    if value is None:
        return emit(message.output(headers=headers))
    if value.startswith(b"retry"):
        return retry("later", "told to wait")
    if value.startswith(b"reject"):
        log.warn(f"rejected the message at offset {message.offset}")
        return reject("bad", "told to reject")
    if value.startswith(b"trap"):
        raise RuntimeError("told to trap")
    return emit(message.output(value.upper() + suffix, headers=headers))
