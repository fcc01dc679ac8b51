#!/usr/bin/env python3
"""The matrix of clients and proxies: does every client get the answer, and may it keep its connections?

Each client asks a host directly and through each proxy: requests that are refused with their body still to come, messages that are taken,
a message on a connection that was idle for longer than a minute, and a page that changes behind a cache. What is wanted is that the
client sees the host's own status every time. A client or proxy that cannot be had is skipped, and said.

    MILLRACE=target/debug/millrace tests/clients/run.py [--work DIR] [--only CLIENT,…] [--idle SECONDS]

Clients come from npm, PyPI, Maven and Go's own library, proxies from Debian (downloaded and unpacked in the work directory, nothing is
installed). All traffic is on loopback. Prints a table and, at its end, `N passed, N failed`; ends with 1 if one failed.
"""

import argparse
import concurrent.futures
import glob
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
PROXIES = ("nginx", "haproxy", "caddy", "varnish")
REFUSED_BYTES = 2 << 20
TOO_LARGE_BYTES = 40 << 20
RAW = {"content-type": "application/octet-stream"}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run(command, **how):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **how)
    if done.returncode != 0:
        raise RuntimeError("`%s`: %s" % (" ".join(command), done.stdout.strip()[-400:]))
    return done.stdout


class Started:
    """Processes that end with this one."""

    def __init__(self):
        self.all = []

    def start(self, command, log, **how):
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **how)
        self.all.append(process)
        return process

    def end(self):
        for process in reversed(self.all):
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def answers(url, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(url + "/health/live", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            time.sleep(0.2)
    return False


# --- proxies ---------------------------------------------------------------------------------------------------------------------------

NGINX = """
daemon off; master_process off; worker_processes 1; pid %(dir)s/nginx.pid; error_log %(dir)s/nginx.log;
events { worker_connections 256; }
http {
  access_log off; client_max_body_size 0; keepalive_timeout 120s;
  client_body_temp_path %(dir)s/nb; proxy_temp_path %(dir)s/np; fastcgi_temp_path %(dir)s/nf; uwsgi_temp_path %(dir)s/nu; scgi_temp_path %(dir)s/ns;
  upstream host { server 127.0.0.1:%(host)d; keepalive 16; keepalive_timeout 120s; }
  proxy_cache_path %(dir)s/ncache keys_zone=pages:1m;
  server {
    listen 127.0.0.1:%(port)d;
    location / { proxy_pass http://host; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host localhost; proxy_cache pages; proxy_cache_valid 200 404 2m; }
  }
}
"""
HAPROXY = """
global
  maxconn 256
defaults
  mode http
  timeout connect 5s
  timeout client 120s
  timeout server 120s
  timeout http-keep-alive 120s
  http-reuse always
frontend front
  bind 127.0.0.1:%(port)d
  default_backend host
backend host
  http-request set-header Host localhost
  server one 127.0.0.1:%(host)d pool-purge-delay 120s
"""
CADDY = """
{
  admin off
  auto_https off
  storage file_system %(dir)s/caddy
}
http://127.0.0.1:%(port)d {
  reverse_proxy 127.0.0.1:%(host)d {
    header_up Host localhost
    transport http {
      keepalive 120s
    }
  }
}
"""
VARNISH = """
vcl 4.1;
backend host { .host = "127.0.0.1"; .port = "%(host)d"; }
sub vcl_backend_fetch { set bereq.http.Host = "localhost"; }
"""


class Proxies:
    def __init__(self, work, started, log):
        self.root = os.path.join(work, "root")
        self.work, self.started, self.log = work, started, log
        self.env = dict(os.environ)

    def fetch(self):
        """Unpacks Debian's packages beside this run; nothing is installed."""
        cache = os.path.join(self.work, "apt")
        if not os.path.isdir(self.root):
            os.makedirs(os.path.join(cache, "partial"), exist_ok=True)
            run(["apt-get", "-y", "-q", "--no-install-recommends", "--download-only", "-o", "Dir::Cache::archives=" + cache, "install", *PROXIES])
            for package in glob.glob(cache + "/*.deb"):
                run(["dpkg", "-x", package, self.root])
        libraries = [os.path.dirname(path) for path in glob.glob(self.root + "/usr/lib/**/*.so*", recursive=True)]
        self.env["LD_LIBRARY_PATH"] = ":".join(sorted(set(libraries)))

    def binary(self, name):
        for folder in ("usr/sbin", "usr/bin"):
            path = os.path.join(self.root, folder, name)
            if os.path.exists(path):
                return path
        found = shutil.which(name)
        if not found:
            raise RuntimeError(name + " is not there")
        return found

    def start(self, name, host):
        port = free_port()
        told = {"dir": self.work, "host": host, "port": port}
        text = {"nginx": NGINX, "haproxy": HAPROXY, "caddy": CADDY, "varnish": VARNISH}[name] % told
        path = os.path.join(self.work, name + ".conf")
        with open(path, "w") as file:
            file.write(text)
        command = {
            "nginx": lambda: [self.binary("nginx"), "-c", path, "-p", self.work],
            "haproxy": lambda: [self.binary("haproxy"), "-f", path],
            "caddy": lambda: [self.binary("caddy"), "run", "--config", path, "--adapter", "caddyfile"],
            "varnish": lambda: [self.binary("varnishd"), "-F", "-n", self.work + "/vd", "-a", "127.0.0.1:%d" % port, "-f", path, "-s", "malloc,16m",
                                "-p", "vmod_path=" + self.vmods(), "-p", "backend_idle_timeout=120", "-p", "timeout_idle=120"],
        }[name]()
        self.started.start(command, self.log, env=self.env, cwd=self.work)
        url = "http://127.0.0.1:%d" % port
        if not answers(url):
            raise RuntimeError(name + " does not answer")
        return url

    def vmods(self):
        found = glob.glob(self.root + "/usr/lib/**/vmods", recursive=True) or glob.glob("/usr/lib/**/varnish/vmods", recursive=True)
        return found[0] if found else "/usr/lib/varnish/vmods"


# --- clients ---------------------------------------------------------------------------------------------------------------------------


def go(work):
    binary = os.path.join(work, "go-client")
    run(["go", "build", "-o", binary, "."], cwd=os.path.join(HERE, "go"))
    return [binary]


def java(which):
    def made(work):
        folder = os.path.join(work, "java")
        if not os.path.isdir(folder):
            shutil.copytree(os.path.join(HERE, "java"), folder)
            run(["mvn", "-q", "-B", "package", "dependency:copy-dependencies"], cwd=folder)
        return ["java", "-cp", folder + "/target/classes:" + folder + "/target/dependency/*", "Client", which]

    return made


def node(which):
    def made(work):
        folder = os.path.join(work, "node")
        if not os.path.isdir(folder):
            shutil.copytree(os.path.join(HERE, "node"), folder)
            run(["npm", "install", "--silent", "--no-audit", "--no-fund"], cwd=folder)
        return ["node", os.path.join(folder, "client.mjs"), which]

    return made


def python(which):
    def made(work):
        folder = os.path.join(work, "python")
        if not os.path.isdir(folder):
            run([sys.executable, "-m", "venv", folder])
            run([folder + "/bin/pip", "install", "-q", "-r", os.path.join(HERE, "python", "requirements.txt")])
        return [folder + "/bin/python", os.path.join(HERE, "python", "client.py"), which]

    return made


def curl(work):
    return [sys.executable, os.path.join(HERE, "python", "by_curl.py")]


CLIENTS = {
    "curl": curl,
    "go": go,
    "java": java("java"),
    "okhttp": java("okhttp"),
    "httpclient5": java("httpclient5"),
    "fetch": node("fetch"),
    "axios": node("axios"),
    "http.client": python("http.client"),
    "requests": python("requests"),
    "httpx": python("httpx"),
    "aiohttp": python("aiohttp"),
}


def questions(client, doors, idle):
    """What a client is told to do, and what each answer has to be."""
    commands, wanted = [], {}

    def ask(door, what, want, method, path, bytes=0, chunked=False, headers=None, find=None):
        name = "%s|%s" % (door, what)
        while name in wanted:
            name += "'"
        wanted[name] = want
        commands.append({"id": name, "method": method, "url": doors[door] + path, "bytes": bytes, "chunked": chunked,
                         "headers": {**(RAW if bytes else {}), **(headers or {})}, **({"find": find} if find else {})})

    for door in doors:
        for chunked in (False, True):
            how = dict(bytes=REFUSED_BYTES, chunked=chunked)
            ask(door, "refused", "404", "POST", "/v1/topics/none/messages", **how)
            ask(door, "refused", "404", "POST", "/v1/nothing", **how)
            ask(door, "refused", "405", "PUT", "/v1/topics/t/messages", **how)
            ask(door, "refused", "400", "POST", "/v1/topics/t/messages?partition=x", **how)
            ask(door, "refused", "400", "POST", "/v1/topics/t/messages", headers={"idempotency-key": '"open'}, **how)
            ask(door, "refused", "403", "POST", "/v1/topics/t/messages", headers={"origin": "https://elsewhere.example"}, **how)
            ask(door, "too large", "413", "POST", "/v1/topics/t/messages", bytes=TOO_LARGE_BYTES, chunked=chunked)
            ask(door, "taken", "200", "POST", "/v1/topics/t/messages", bytes=100_000, chunked=chunked)
        topic = "%s-%s" % (client.replace(".", "-"), door)
        page = "/v1/topics/%s/partitions/0/messages" % topic
        ask(door, "cache", "404 false", "GET", page, find='"offset":')
        commands.append({"create": topic})
        ask(door, "cache", "200 false", "GET", page, find='"offset":')
        ask(door, "cache", "200", "POST", "/v1/topics/%s/messages" % topic, bytes=3)
        ask(door, "cache", "200 true", "GET", page, find='"offset":')
    for door in doors:
        ask(door, "idle", "200", "POST", "/v1/topics/t/messages", bytes=10)
    commands.append({"sleep": idle})
    for door in doors:
        ask(door, "idle", "200", "POST", "/v1/topics/t/messages", bytes=10)
    return commands, wanted


def converse(client, command, doors, idle):
    commands, wanted = questions(client, doors, idle)
    seen = {}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        for told in commands:
            if "create" in told:
                body = json.dumps({"name": told["create"], "durability": "os"}).encode()
                request = urllib.request.Request(doors["direct"] + "/v1/topics", body, {"content-type": "application/json"})
                urllib.request.urlopen(request, timeout=60).close()
                continue
            process.stdin.write(json.dumps(told) + "\n")
            process.stdin.flush()
            if "sleep" not in told:
                line = process.stdout.readline()
                if not line:
                    raise RuntimeError("it ended: " + process.stderr.read()[-400:])
                name, _, answer = line.rstrip("\n").partition("\t")
                seen[name] = answer
    except (OSError, RuntimeError) as error:
        seen["itself"] = str(error)
        wanted["direct|itself"] = "to run to its end"
    finally:
        process.stdin.close()
        process.kill()
        process.wait()
    return [(name.split("|")[0], name.split("|")[1].rstrip("'"), want, seen.get(name, "no answer")) for name, want in wanted.items()]


def main():
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--work", help="a directory for what is downloaded and built; kept, so that the next run is quicker")
    given.add_argument("--only", help="clients, separated by commas")
    given.add_argument("--proxies", default=",".join(PROXIES), help="proxies, separated by commas")
    given.add_argument("--idle", type=float, default=65, help="seconds for which connections are left idle")
    told = given.parse_args()
    binary = os.environ.get("MILLRACE") or sys.exit("MILLRACE has to name the binary")
    work = os.path.abspath(told.work or tempfile.mkdtemp(prefix="millrace-clients-"))
    os.makedirs(work, exist_ok=True)
    started, skipped, results = Started(), [], []
    log = open(os.path.join(work, "log"), "ab")
    data = tempfile.mkdtemp(prefix="millrace-data-")
    try:
        port = free_port()
        # What is under trial is the default; the environment has no say in it.
        env = {name: value for name, value in os.environ.items() if not name.startswith("MILLRACE_")}
        started.start([binary, "serve", "--listen", "127.0.0.1:%d" % port, "--data-dir", data + "/data"], log, env=env)
        doors = {"direct": "http://127.0.0.1:%d" % port}
        if not answers(doors["direct"]):
            sys.exit("the host does not start; see " + log.name)
        topic = urllib.request.Request(doors["direct"] + "/v1/topics", b'{"name": "t", "durability": "os"}', {"content-type": "application/json"})
        urllib.request.urlopen(topic, timeout=60).close()
        proxies = Proxies(work, started, log)
        for name in filter(None, told.proxies.split(",")):
            try:
                proxies.fetch()
                doors[name] = proxies.start(name, port)
            except (OSError, RuntimeError) as error:
                skipped.append("%s: %s" % (name, error))
        clients = {}
        for name in told.only.split(",") if told.only else CLIENTS:
            try:
                clients[name] = CLIENTS[name](work)
            except (OSError, RuntimeError) as error:
                skipped.append("%s: %s" % (name, error))
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            runs = {name: pool.submit(converse, name, command, doors, told.idle) for name, command in clients.items()}
            results = [(name, *row) for name, run_ in runs.items() for row in run_.result()]
    finally:
        started.end()
        shutil.rmtree(data, ignore_errors=True)
    return table(results, list(doors), skipped)


def table(results, doors, skipped):
    print("%-14s" % "" + "".join("%-12s" % door for door in doors))
    for client in dict.fromkeys(row[0] for row in results):
        cells = []
        for door in doors:
            rows = [row for row in results if row[0] == client and row[1] == door]
            right = sum(want == seen for *_, want, seen in rows)
            cells.append("%-12s" % ("%d of %d" % (right, len(rows))))
        print("%-14s" % client + "".join(cells))
    failed = [row for row in results if row[3] != row[4]]
    for client, door, what, want, seen in failed:
        print("FAILED %s through %s: %s: wanted %s, saw %s" % (client, door, what, want, seen[:160]))
    for what in skipped:
        print("SKIPPED " + what)
    print("%d passed, %d failed" % (len(results) - len(failed), len(failed)))
    return 1 if failed or not results else 0


if __name__ == "__main__":
    sys.exit(main())
