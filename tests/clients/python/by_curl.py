"""curl as a client of the matrix of clients and proxies (../run.py): one process for each request, as scripts use it."""

import json
import subprocess
import sys
import time

for line in sys.stdin:
    command = json.loads(line)
    if command.get("sleep"):
        time.sleep(command["sleep"])
        continue
    arguments = ["curl", "-sS", "--noproxy", "*", "--max-time", "60", "-X", command["method"], "-w", "\n%{http_code}", command["url"]]
    for name, value in command.get("headers", {}).items():
        arguments += ["-H", f"{name}: {value}"]
    body = b"x" * command.get("bytes", 0)
    if body:
        arguments += ["--data-binary", "@-"]
        if command.get("chunked"):
            arguments += ["-H", "transfer-encoding: chunked"]
    done = subprocess.run(arguments, input=body, capture_output=True)
    text, _, status = done.stdout.decode("utf-8", "replace").rpartition("\n")
    find = command.get("find")
    said = status + (f" {str(find in text).lower()}" if find else "")
    if done.returncode != 0:
        said = f"curl ended with {done.returncode}: {done.stderr.decode('utf-8', 'replace').strip()}".replace("\n", " ")
    print(f"{command['id']}\t{said}", flush=True)
