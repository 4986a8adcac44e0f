"""Lets a test call the Python client: one JSON command a line, one JSON answer a line.

    python3 driver.py path/to/its/directory
"""

import json
import logging
import sys

sys.path.insert(0, sys.argv[1])
sys.dont_write_bytecode = True

import refit_client as refit  # noqa: E402

TROUBLES = []
logging.getLogger("refit").addFilter(lambda record: TROUBLES.append(record.getMessage()))


class Driver:
    def make(self, given):
        def seconds(**names):
            return {name: given[key] / 1000 for name, key in names.items() if given.get(key) is not None}

        document = {"url": given.get("document_url"), "token": given.get("token")}
        if given.get("connection"):
            document = refit.global_config(given["connection"], given["key"])
        self.releases = refit.Releases(
            **document,
            built_in=refit.Version("built-in", "/models"),
            **seconds(ttl="ttl_ms", stale="stale_ms", timeout="timeout_ms"),
        )
        self.reports = refit.Reports(
            given["refit_url"],
            given["model"],
            token=given.get("token"),
            **seconds(flush_every="flush_ms", timeout="timeout_ms"),
            **{key: given[key] for key in ("batch_rows", "capacity") if given.get(key) is not None},
        )

    def route(self, unit):
        route = self.releases.route(unit)
        return {"arm": route.arm, "version": route.serve.version, "stable": route.stable.version}

    def routes(self, units):
        return [self.route(unit) for unit in units]

    def observe(self, rows):
        for row in rows:
            self.reports.observe(**row)

    def observe_nonsense(self, _):
        self.reports.observe(request_id="circle", version="v1", ok=True, shadow={"v2": object()})

    def flush(self, ms):
        self.reports.flush(ms / 1000)

    def dropped(self, _):
        return self.reports.dropped

    def troubles(self, _):
        return TROUBLES

    def vectors(self, path):
        with open(path, encoding="utf-8") as file:
            given = json.load(file)
        return {
            "buckets": [refit.bucket(it["salt"], it["unit"]) for it in given["buckets"]],
            "routes": [
                refit.routes_to_canary(refit._canary(it["canary"]), it["unit"], refit.parse_time(it["now"]))
                for it in given["routes"]
            ],
        }

    def half_a_pair(self, _):
        return refit.bucket("salt", "\ud83c")


driver = Driver()
for line in sys.stdin:
    ((name, given),) = json.loads(line).items()
    print(json.dumps(getattr(driver, name)(given)), flush=True)
