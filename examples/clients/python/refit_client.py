"""refit in a Python app, 3.9 or newer. Copy this file; it needs nothing else.

    Releases   follows the release document: which version serves this request
    Reports    tells refit what was served, in batches

Neither ever raises into a prediction, and neither makes it wait for a refit
that is down: without a document the built-in version serves, and reports that
cannot be delivered are dropped and counted.
"""

import atexit
import collections
import datetime
import hashlib
import json
import logging
import math
import os
import random
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from typing import Any, Deque, Dict, List, Mapping, NamedTuple, Optional, Tuple

LOG = logging.getLogger("refit")

# No release document is longer.
LONGEST = 256 * 1024
# refit believes the time of a row for so long; an older one would count in the wrong minute.
BELIEVED = 10 * 60.0


class Version(NamedTuple):
    """A version, as an app finds it."""

    version: str
    base_url: str  # URL or directory below which its files are
    manifest_sha256: Optional[str] = None  # of its manifest.json, in lower-case hex


class Canary(NamedTuple):
    """A version that serves a share of the units."""

    serve: Version
    basis_points: int  # 1,000 are 10 %
    salt: str
    valid_until: datetime.datetime  # from then on it serves nobody


class Document(NamedTuple):
    """What refit writes, as far as an app needs it."""

    champion: Optional[Version]
    canary: Optional[Canary]


class Route(NamedTuple):
    """Who serves one request."""

    arm: str  # champion | canary | built-in
    serve: Version
    stable: Version  # what to answer with when `serve` is a canary that fails


class Releases:
    """Follows the release document at `url`: `GET /v1/models/{model}/release` of
    refit, or a public object.

    For `ttl` seconds a document is not asked for again; for `stale` seconds
    after that, the old one is used while the new one is fetched. A prediction
    waits `timeout` seconds at most, and only when it has no document that is
    young enough. `built_in` serves a cold start that finds no document.
    """

    def __init__(
        self,
        url: str,
        *,
        built_in: Version,
        token: Optional[str] = None,
        ttl: float = 15.0,
        stale: float = 60.0,
        timeout: float = 1.0,
    ) -> None:
        self._url, self._token, self._built_in = url, token, built_in
        self._ttl, self._stale, self._timeout = ttl, stale, timeout
        self._good: Optional[Document] = None  # the last one that made sense
        self._etag: Optional[str] = None
        self._good_at = -math.inf  # when it was last known to be the newest
        self._next_at = -math.inf  # no attempt begins before: one is under way, or the last one failed
        self._asked = threading.Event()
        self._failing = False
        self._lock = threading.Lock()
        _in_every_child(self)

    def route(self, unit: Optional[str] = None) -> Route:
        """Who serves `unit`: the same one every time, for a user or a session. No unit means the champion."""
        document = self.document()
        stable = (document and document.champion) or self._built_in
        if document and document.canary and routes_to_canary(document.canary, unit, _now()):
            return Route("canary", document.canary.serve, stable)
        return Route("champion" if document and document.champion else "built-in", stable, stable)

    def document(self) -> Optional[Document]:
        """The last good document; None before the first."""
        with self._lock:
            now = time.monotonic()
            age = now - self._good_at
            if age >= self._ttl and now >= self._next_at:
                # A server that answers a byte a second keeps no other attempt away for long.
                self._next_at = now + 2 * self._timeout
                self._asked = threading.Event()
                threading.Thread(target=self._ask, args=(now, self._asked), daemon=True).start()
            asked, failing = self._asked, self._failing
        # Only the first to meet a dead server waits for it; while it is dead nobody does.
        if age >= self._ttl + self._stale and not failing and not asked.wait(self._timeout):
            self._failing = True
        return self._good

    def _ask(self, now: float, asked: threading.Event) -> None:
        try:
            request = urllib.request.Request(self._url, headers={"Accept": "application/json"})
            _authorize(request, self._token)
            if self._good and self._etag:
                request.add_header("If-None-Match", self._etag)
            try:
                with urllib.request.urlopen(request, timeout=self._timeout) as response:
                    text = response.read(LONGEST + 1)
                    if len(text) > LONGEST:
                        raise ValueError("it is too long")
                    self._good, self._etag = _checked(json.loads(text)), response.headers.get("ETag")
            except urllib.error.HTTPError as error:
                error.close()
                if error.code != 304 or not self._good:
                    raise
            self._good_at, self._next_at, self._failing = now, -math.inf, False
        except Exception as error:  # whatever it is, the last good document goes on serving
            self._next_at, self._failing = time.monotonic() + self._ttl, True
            LOG.warning("no release document from %s: %s", _place(self._url), error)
        finally:
            asked.set()

    def _in_child(self) -> None:
        self._lock, self._next_at = threading.Lock(), -math.inf


def bucket(salt: str, unit: str) -> int:
    """The bucket of a unit, 0 to 9,999: the same in every language."""
    # As JavaScript encodes text: half a surrogate pair is U+FFFD.
    text = f"{salt}:{unit}".encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % 10_000


def routes_to_canary(canary: Canary, unit: Optional[str], now: datetime.datetime) -> bool:
    """Whether the canary serves `unit` at `now`."""
    return unit is not None and now < canary.valid_until and bucket(canary.salt, unit) < canary.basis_points


def global_config(connection: str, key: str) -> Dict[str, str]:
    """Where an item of Vercel Global Config is read, by the connection string in `GLOBAL_CONFIG`:
    `Releases(**global_config(...), built_in=...)`."""
    parts = urllib.parse.urlsplit(connection)
    token = urllib.parse.parse_qs(parts.query).get("token", [""])[0]
    return {"url": f"{parts.scheme}://{parts.netloc}{parts.path}/item/{key}?version=1", "token": token}


def _checked(value: Any) -> Document:
    """The document, if an app can route by it; ValueError and kin if not."""
    if not isinstance(value, dict):
        raise ValueError("the document is not an object")
    champion, canary = value.get("champion"), value.get("canary")
    return Document(
        None if champion is None else _version(champion, "champion"),
        None if canary is None else _canary(canary),
    )


def _canary(value: Any) -> Canary:
    serve = _version(value, "canary")
    share, salt, until = value.get("basis_points"), value.get("salt"), value.get("valid_until")
    if not isinstance(salt, str):
        raise ValueError("canary.salt is not text")
    if type(share) is not int or not 0 <= share <= 10_000:
        raise ValueError("canary.basis_points is not a whole number from 0 to 10,000")
    if not isinstance(until, str):
        raise ValueError("canary.valid_until is no time")
    return Canary(serve, share, salt, parse_time(until))


def _version(value: Any, name: str) -> Version:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not an object")
    for key in ("version", "base_url"):
        if not isinstance(value.get(key), str):
            raise ValueError(f"{name}.{key} is not text")
    return Version(value["version"], value["base_url"], value.get("manifest_sha256"))


def parse_time(text: str) -> datetime.datetime:
    """An RFC 3339 time; one without an offset is refused."""
    # Before Python 3.11 neither `Z` nor nanoseconds are understood.
    text = re.sub(r"\.(\d+)", lambda digits: "." + digits[1][:6].ljust(6, "0"), text)
    at = datetime.datetime.fromisoformat(re.sub("[Zz]$", "+00:00", text))
    if at.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return at


# --- Reports ------------------------------------------------------------------


class _Batch:
    """Rows on their way: sent again under the same id they are counted once."""

    def __init__(self, rows: List[str]) -> None:
        self.id, self.rows = str(uuid.uuid4()), rows
        self.attempts, self.cut_at, self.due_at = 0, time.monotonic(), 0.0


class Reports:
    """Tells refit at `url` what was served of `model`.

    Rows leave in batches, every `flush_every` seconds or when `batch_rows` are
    there, from a thread of their own. `capacity` rows are kept while refit does
    not answer; then the oldest are dropped. `dropped` counts rows that never
    reached refit.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        token: Optional[str] = None,
        flush_every: float = 5.0,
        batch_rows: int = 500,
        capacity: int = 10_000,
        timeout: float = 5.0,
    ) -> None:
        self._url = f"{url.rstrip('/')}/v1/models/{urllib.parse.quote(model, safe='')}/observations"
        self._token, self._timeout = token, timeout
        self._flush_every, self._batch_rows, self._capacity = flush_every, batch_rows, capacity
        self.dropped = 0
        self._rows: Deque[str] = collections.deque()
        self._batch: Optional[_Batch] = None
        self._urgent_until = -math.inf  # somebody waits in `flush`
        self._thread: Optional[threading.Thread] = None
        self._changed = threading.Condition()
        _in_every_child(self)
        atexit.register(self.flush)

    def observe(
        self,
        *,
        request_id: str,
        version: str,
        ok: bool,
        unit: Optional[str] = None,
        latency_ms: Optional[float] = None,
        prediction: Optional[float] = None,
        shadow: Optional[Mapping[str, float]] = None,
        cold: bool = False,
        at: Optional[datetime.datetime] = None,
    ) -> None:
        """Keeps a row to be sent; returns at once and never raises.

        `request_id` is what the truth is joined to it by; `version` is that of
        `Route.serve`, also when another one had to answer; `shadow` holds what
        other versions predicted; `cold` is the first answer of a new process,
        whose latency says nothing of the model.
        """
        try:
            row = {
                "at": (at or _now()).isoformat(), "request_id": request_id, "unit": unit, "version": version, "ok": ok,
                "latency_ms": _finite(latency_ms), "prediction": _finite(prediction), "shadow": shadow and dict(shadow),
                "cold": cold,
            }
            line = json.dumps({key: value for key, value in row.items() if value is not None}, allow_nan=False)
        except Exception as error:  # no JSON
            LOG.warning("an observation was dropped: %s", error)
            line = None
        with self._changed:
            if line is None:
                self.dropped += 1
                return
            self._rows.append(line)
            if len(self._rows) > self._capacity:
                self._rows.popleft()
                self.dropped += 1
            # Made with the first row: a server that forks has its own in every child.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name="refit-reports", daemon=True)
                self._thread.start()
            if len(self._rows) >= self._batch_rows:
                self._changed.notify_all()

    def flush(self, within: float = 2.0) -> None:
        """Sends what is kept, and returns when it is sent or `within` seconds are over. Called at exit."""
        until = time.monotonic() + within
        with self._changed:
            self._urgent_until = max(self._urgent_until, until)
            self._changed.notify_all()
            if self._thread and self._thread.is_alive():
                self._changed.wait_for(lambda: not self._rows and not self._batch, within)

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._batch:
                    self._gather()
                batch = self._batch
                if not batch:
                    continue
                wait = batch.due_at - time.monotonic()
                if wait > 0:
                    self._changed.wait(wait)
                    continue
            keep, trouble = self._send(batch)
            with self._changed:
                if not keep:
                    self._batch = None
                    self.dropped += len(batch.rows) if trouble else 0
                self._changed.notify_all()

    def _gather(self) -> None:
        """Waits for a full batch, at most `flush_every` seconds, and cuts it."""
        until = time.monotonic() + self._flush_every
        while len(self._rows) < self._batch_rows:
            now = time.monotonic()
            if now >= until or (self._rows and now < self._urgent_until):
                break
            self._changed.wait(until - now)
        rows = [self._rows.popleft() for _ in range(min(self._batch_rows, len(self._rows)))]
        self._batch = _Batch(rows) if rows else None

    def _send(self, batch: _Batch) -> Tuple[bool, Optional[str]]:
        """Whether to keep the batch, and what went wrong."""
        batch.attempts += 1
        delay = min(30.0, 0.25 * 2**batch.attempts) * random.uniform(0.5, 1.5)
        try:
            request = urllib.request.Request(
                self._url,
                data=("\n".join(batch.rows) + "\n").encode(),
                headers={"Content-Type": "application/x-ndjson", "Idempotency-Key": batch.id},
            )
            _authorize(request, self._token)
            with urllib.request.urlopen(request, timeout=self._timeout) as response:
                answer = response.read(64 * 1024).decode(errors="replace")
            refused = re.search(r'"refused":([1-9]\d*)', answer)
            if refused:
                LOG.warning("%s observations make no sense to refit: %s", refused[1], answer[:500])
            return False, None
        except urllib.error.HTTPError as error:
            trouble, again = f"it answers {error.code}", error.code in (408, 429) or error.code >= 500
            asked = error.headers.get("Retry-After", "")
            delay = max(delay, float(asked)) if asked.isascii() and asked.isdigit() else delay
            error.close()
        except Exception as error:  # no connection, a torn answer, a time-out
            trouble, again = str(error), True
        batch.due_at = time.monotonic() + delay
        if again and batch.due_at < batch.cut_at + BELIEVED:
            LOG.warning("observations are kept for now, %s does not take them: %s", _place(self._url), trouble)
            return True, trouble
        LOG.warning("%d observations were dropped: %s", len(batch.rows), trouble)
        return False, trouble

    def _in_child(self) -> None:
        # What the parent kept is the parent's to send.
        self._changed, self._thread, self._batch = threading.Condition(), None, None
        self._rows.clear()


# --- What both need -----------------------------------------------------------


def _in_every_child(half: Any) -> None:
    """Threads and held locks do not survive a fork."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=half._in_child)


def _authorize(request: urllib.request.Request, token: Optional[str]) -> None:
    if token:
        # Not sent on to where a redirect leads.
        request.add_unredirected_header("Authorization", f"Bearer {token}")


def _place(url: str) -> str:
    """Never the query: it may hold a token."""
    return url.split("?")[0]


def _finite(number: Optional[float]) -> Optional[float]:
    return float(number) if number is not None and math.isfinite(number) else None


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)
