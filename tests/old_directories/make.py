#!/usr/bin/env python3
"""Makes a data directory as an earlier version left it when it was killed, for `scenarios old_directories`.

    make.py MILLRACE GUESTS OUT.tar.gz

MILLRACE is that version's binary, GUESTS the folder of its components. In the directory are a processor with state, one
with parked messages and dead letters, one with a revision on trial, delayed messages, a schedule, and a read position's
worth of plain messages; some of it stands in the checkpoint, the rest in the journal only.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.request

HOUR_MS = 60 * 60 * 1000


class Host:
    def __init__(self, binary, data):
        self.binary, self.data = binary, data

    def start(self):
        command = [self.binary, "serve", "--listen", "127.0.0.1:0", "--data-dir", self.data]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.url = self.process.stdout.readline().split()[-1]

    def stop(self):
        self.process.terminate()
        self.process.wait()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def ask(self, method, path, body=None, kind="application/json"):
        if body is not None and kind == "application/json":
            body = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=body, method=method)
        request.add_header("content-type", kind)
        with urllib.request.urlopen(request) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def produce(self, topic, messages):
        return self.ask("POST", f"/v1/topics/{topic}/messages", {"messages": messages})

    def wait(self, what, found):
        for _ in range(600):
            if found():
                return
            time.sleep(0.05)
        raise SystemExit(f"waited in vain: {what}")

    def standing(self, name):
        at = self.ask("GET", f"/v1/processors/{name}")["partitions"]
        return sum(one["lag"] for one in at), sum(one["parked"] for one in at)


def words(first, last):
    return [{"key": f"k{n % 10}", "value": str(n)} for n in range(first, last)]


def main():
    binary, guests, out = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3]
    with tempfile.TemporaryDirectory() as directory:
        host = Host(binary, os.path.join(directory, "data"))
        host.start()
        module = {}
        for name in ["counter", "flaky", "stamp_1", "stamp_2"]:
            component = (guests / f"{name}.wasm").read_bytes()
            module[name] = host.ask("POST", "/v1/modules", component, "application/wasm")["digest"]
        for topic in ["words", "counts", "work", "done", "letters", "stamped"]:
            host.ask("POST", "/v1/topics", {"name": topic, "partitions": 2})
        for topic in ["later", "ticks"]:
            host.ask("POST", "/v1/topics", {"name": topic, "partitions": 1})

        def deploy(name, component, topic, output, **more):
            body = {"module": module[component], "topics": [topic], "output": output, **more}
            host.ask("PUT", f"/v1/processors/{name}", body)

        waits = {"attempts_max": 5, "delay_first_ms": HOUR_MS, "delay_max_ms": HOUR_MS}
        deploy("count", "counter", "words", "counts")
        deploy("flaky", "flaky", "work", "done", retry=waits)
        deploy("stamp", "stamp_1", "letters", "stamped")
        # Ten keys, twenty times each.
        host.produce("words", words(0, 200))
        # Each fails once and waits an hour; two more of its key wait behind it.
        for n in range(5):
            failing = {"key": f"p{n}", "value": f"{n}.0", "headers": {"fail-times": "1"}}
            behind = [{"key": f"p{n}", "value": f"{n}.{m}"} for m in (1, 2)]
            host.produce("work", [failing, *behind])
        host.produce("work", [{"key": "r", "value": "bad", "headers": {"reject": "no-use"}}] * 2)
        host.produce("letters", words(0, 10))
        # Ten are due before anybody opens the directory, one may wait as long as a message may.
        delayed = [{"value": f"soon {n}", "delay_ms": HOUR_MS} for n in range(10)]
        host.produce("later", [*delayed, {"value": "late", "deliver_at": "2035-01-01T00:00:00Z"}])
        tick = {"topic": "ticks", "cron": "0 * * * *", "value": "tick"}
        host.ask("PUT", "/v1/schedules/hourly", tick)

        def rests(parked):
            return all(
                host.standing(name) == (0, parked if name == "flaky" else 0)
                for name in ["count", "flaky", "stamp"]
            )

        host.wait("all is processed", lambda: rests(15))
        # A start writes a checkpoint; from here on the journal alone has it.
        host.stop()
        host.start()
        deploy("stamp", "stamp_2", "letters", "stamped")
        host.produce("words", words(200, 300))
        host.produce("letters", words(10, 20))
        host.produce("work", [{"key": "r", "value": "bad", "headers": {"reject": "no-use"}}])
        host.produce("later", [{"value": "soon 10", "delay_ms": HOUR_MS}])
        host.wait("the rest is processed", lambda: rests(15))
        host.kill()

        # Without compiled code, which is made again. Most of the journal's files is zeros: holes here.
        command = ["tar", "--sparse", "--hole-detection=raw", "--exclude=data/code"]
        command += ["--owner=0", "--group=0", "--numeric-owner"]
        subprocess.run([*command, "-czf", os.path.abspath(out), "-C", directory, "data"], check=True)


main()
