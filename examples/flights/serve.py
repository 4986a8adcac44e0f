"""A small prediction server that follows refit's release document.

    python3 serve.py --release release.json [--port 0] [--replay]

`POST /predict` takes `{"rows": [{"request_id", "unit", ...features}]}` and
answers each row in order: `{request_id, unit, version, ok, latency_ms,
prediction, shadow}`. While a canary is out both versions score every row and
`shadow` holds the other one's prediction: paired evidence once the flight has
landed. `GET /healthz` says which versions serve. The first line on stdout is
`{"listening": port}`.

With `--replay` a batch may name its own time, `"at": "2013-03-12T06:00:00Z"`,
for replaying the past; otherwise the wall clock decides whether a canary is
still valid.
"""

import argparse
import datetime
import hashlib
import json
import os
import re
import sys
import threading
import time
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import model

MAX_BODY = 16 * 1024 * 1024

# Serves a cold start without any document or model: 20 minutes and 7.5 miles a minute.
BUILT_IN = {"family": "route-mean", "base": 20.0, "per_mile": 1 / 7.5, "routes": {}}
BUILT_IN_VERSION = "built-in"


def bucket(salt, unit):
    """Sticky bucket 0..9999, the same in every language."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{unit}".encode()).digest()[:4], "big") % 10000


def parse_time(text):
    """An RFC 3339 time; one without an offset is refused."""
    # Before Python 3.11 neither `Z` nor nanoseconds are understood.
    text = re.sub(r"\.(\d+)", lambda digits: "." + digits[1][:6].ljust(6, "0"), text)
    at = datetime.datetime.fromisoformat(re.sub("[Zz]$", "+00:00", text))
    if at.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return at


def directory(base_url):
    """The local directory a version's `base_url` names: a path or `file://`."""
    parts = urllib.parse.urlsplit(base_url)
    if parts.scheme == "file":
        return urllib.request.url2pathname(parts.path)
    if parts.scheme:
        raise ValueError(f"{base_url}: this server reads local stores only")
    return base_url


def checked_release(document):
    """The document, if a server can route by it; `ValueError` and kin if not."""
    for arm in ("champion", "canary"):
        release = document[arm]
        if release is None and arm == "canary":
            continue
        for key in ("version", "base_url"):
            if not isinstance(release[key], str):
                raise ValueError(f"{arm}.{key} is not text")
    canary = document["canary"]
    if canary is not None:
        if not isinstance(canary["salt"], str):
            raise ValueError("canary.salt is not text")
        if type(canary["basis_points"]) is not int or not 0 <= canary["basis_points"] <= 10000:
            raise ValueError("canary.basis_points is not a whole number from 0 to 10000")
        parse_time(canary["valid_until"])
    return document


class Releases:
    """The newest readable release document and the models it names.

    A document that cannot be read, and a champion that cannot be loaded, leave
    the last good ones serving. `trouble` holds what is wrong, or is empty.
    """

    def __init__(self, path):
        self.path = path
        self.stamp = None
        self.document = None
        self.models = {}
        self.trouble = ""
        self.lock = threading.Lock()  # one thread a connection

    def _model(self, release):
        """The release's model, or None; a failed load is tried again next time."""
        key = (release["version"], release["base_url"], release.get("manifest_sha256"))
        if key not in self.models:
            try:
                where = directory(release["base_url"])
                if key[2]:
                    with open(os.path.join(where, "manifest.json"), "rb") as file:
                        found = hashlib.sha256(file.read()).hexdigest()
                    if found != key[2]:
                        raise model.BadModel(f"{where}: the manifest is not the released one")
                self.models[key] = model.load_dir(where)
            except (OSError, ValueError) as error:
                self.trouble = str(error)
                return None
        return self.models[key]

    def current(self, now):
        """(champion, canary or None) as `(version, model or None, release)`."""
        with self.lock:
            return self._current(now)

    def _current(self, now):
        try:
            found = os.stat(self.path)
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
            if stamp != self.stamp:
                with open(self.path, encoding="utf-8") as file:
                    document = checked_release(json.load(file))
                self.trouble = ""
                if self._model(document["champion"]) is not None:
                    self.document = document
                    self.stamp = stamp
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.trouble = f"{self.path}: {type(error).__name__}: {error}"
        if self.document is None:
            return (BUILT_IN_VERSION, BUILT_IN, None), None
        champion, canary = self.document["champion"], self.document["canary"]
        stable = (champion["version"], self._model(champion), champion)
        if canary is None or parse_time(canary["valid_until"]) <= now:
            return stable, None
        return stable, (canary["version"], self._model(canary), canary)


def attempt(loaded, row):
    """(prediction, error text): exactly one of them is None."""
    if loaded is None:
        return None, "the model cannot be loaded"
    try:
        return round(model.predict(loaded, row), 3), None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        return None, f"{type(error).__name__}: {error}"


def answer(row, champion, canary):
    """One row's answer. A canary that fails is reported as failed, and the
    champion's prediction is what the caller gets."""
    row = row if isinstance(row, dict) else {}
    unit = row.get("unit")
    to_canary = canary is not None and unit is not None and bucket(canary[2]["salt"], unit) < canary[2]["basis_points"]
    version, loaded, _ = canary if to_canary else champion
    started = time.perf_counter()
    prediction, error = attempt(loaded, row)
    latency = (time.perf_counter() - started) * 1000
    shadow = {}
    if canary is not None:
        other = champion if to_canary else canary
        shadow[other[0]] = attempt(other[1], row)[0]
    result = {
        "request_id": row.get("request_id"),
        "unit": unit,
        "version": version,
        "ok": error is None,
        "latency_ms": round(latency, 4),
        "prediction": shadow.get(champion[0]) if to_canary and error else prediction,
        "shadow": shadow,
    }
    if error is not None:
        result["error"] = error
    return result


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body leave in one packet each: waiting for the other side's
    # delayed acknowledgement would cost 40 ms a batch.
    disable_nagle_algorithm = True

    def log_message(self, *_):
        """No access log: the driver reports what was served."""

    def reply(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        if self.path != "/healthz":
            return self.reply(404, {"detail": "POST /predict or GET /healthz"})
        champion, canary = self.server.releases.current(datetime.datetime.now(datetime.timezone.utc))
        self.reply(200, {
            "champion": champion[0],
            "canary": canary and canary[0],
            "trouble": self.server.releases.trouble,
        })

    def do_POST(self):
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or int(length) > MAX_BODY:
            self.close_connection = True
            return self.reply(413, {"detail": f"a Content-Length of at most {MAX_BODY} bytes is needed"})
        body = self.rfile.read(int(length))
        if self.path != "/predict":
            return self.reply(404, {"detail": "POST /predict or GET /healthz"})
        try:
            batch = json.loads(body)
            rows = batch["rows"]
            if not isinstance(rows, list):
                raise ValueError("`rows` is not a list")
            now = datetime.datetime.now(datetime.timezone.utc)
            if self.server.replay and "at" in batch:
                now = parse_time(batch["at"])
        except (ValueError, KeyError, TypeError) as error:
            return self.reply(400, {"detail": f"not a batch of rows: {error}"})
        champion, canary = self.server.releases.current(now)
        document = self.server.releases.document
        self.reply(200, {
            "generation": document and document.get("generation"),
            "predictions": [answer(row, champion, canary) for row in rows],
        })


def server(release_path, port=0, replay=False):
    """A server bound to loopback, not yet serving."""
    bound = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    bound.releases = Releases(release_path)
    bound.replay = replay
    return bound


def main():
    parser = argparse.ArgumentParser(description="Predicts air times by refit's release document.")
    parser.add_argument("--release", required=True, help="path of the release document")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--replay", action="store_true", help="batches may name their own time")
    options = parser.parse_args()
    bound = server(options.release, options.port, options.replay)
    print(json.dumps({"listening": bound.server_port}), flush=True)
    try:
        bound.serve_forever()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
