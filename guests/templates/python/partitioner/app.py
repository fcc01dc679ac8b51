"""Puts all messages of one region into one partition. The region is the part of the key before the first "-": "eu-4711" is of "eu"."""

from millrace import Message, partitioner


@partitioner
def choose(message: Message, partitions: int) -> int:
    region = message.key_text().split("-")[0]
    return fnv1a(region.encode()) % partitions


def fnv1a(text: bytes) -> int:
    """A hash: short, and the same in every language."""
    hash = 0x811C9DC5
    for byte in text:
        hash = (hash ^ byte) * 0x01000193 & 0xFFFFFFFF
    return hash
