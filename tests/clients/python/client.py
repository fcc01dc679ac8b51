"""Clients of the matrix of clients and proxies (../run.py): http.client, requests, httpx and aiohttp. Reads commands from standard input,
a JSON object a line, and answers each with a line: the id, and a status or what went wrong."""

import asyncio
import json
import sys
import time
from urllib.parse import urlsplit

PIECE = b"x" * (64 << 10)


def pieces(count):
    while count > 0:
        yield PIECE[:count]
        count -= len(PIECE)


async def pieces_later(count):
    for piece in pieces(count):
        yield piece


def body_of(command):
    if not command.get("bytes"):
        return None
    return pieces(command["bytes"]) if command.get("chunked") else b"x" * command["bytes"]


def by_http_client():
    from http.client import HTTPConnection

    kept = {}

    def ask(command):
        url = urlsplit(command["url"])
        connection = kept.setdefault(url.netloc, HTTPConnection(url.hostname, url.port, timeout=60))
        path = url.path + ("?" + url.query if url.query else "")
        try:
            connection.request(command["method"], path, body_of(command), command.get("headers", {}))
            answer = connection.getresponse()
            return answer.status, answer.read().decode("utf-8", "replace")
        except Exception:
            connection.close()
            raise

    return ask


def by_requests():
    import requests

    session = requests.Session()
    session.trust_env = False

    def ask(command):
        answer = session.request(command["method"], command["url"], data=body_of(command), headers=command.get("headers"), timeout=60)
        return answer.status_code, answer.text

    return ask


def by_httpx():
    import httpx

    # Longer than the default of 5 s: that a connection is used again after a minute is what is tried.
    client = httpx.Client(timeout=60, trust_env=False, limits=httpx.Limits(keepalive_expiry=120))

    def ask(command):
        answer = client.request(command["method"], command["url"], content=body_of(command), headers=command.get("headers"))
        return answer.status_code, answer.text

    return ask


def by_aiohttp():
    import aiohttp

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)

    async def made():
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(keepalive_timeout=120))

    session = loop.run_until_complete(made())

    async def asked(command):
        body = body_of(command)
        if command.get("chunked") and body is not None:
            body = pieces_later(command["bytes"])
        async with session.request(command["method"], command["url"], data=body, headers=command.get("headers")) as answer:
            return answer.status, await answer.text()

    return lambda command: loop.run_until_complete(asked(command))


ask = {"http.client": by_http_client, "requests": by_requests, "httpx": by_httpx, "aiohttp": by_aiohttp}[sys.argv[1]]()
for line in sys.stdin:
    command = json.loads(line)
    if command.get("sleep"):
        time.sleep(command["sleep"])
        continue
    try:
        status, text = ask(command)
        find = command.get("find")
        said = f"{status} {str(find in text).lower()}" if find else str(status)
    except Exception as error:  # Whatever a client raises is what its user sees.
        said = f"{type(error).__name__} {error}".replace("\n", " ")
    print(f"{command['id']}\t{said}", flush=True)
