"""Tests of the flights example: `python3 -m unittest` in this directory."""

import contextlib
import csv
import datetime
import gzip
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import unittest
import urllib.error
import urllib.request

import model
import serve
import train_ridge
import train_route_mean
import trainer

HERE = os.path.dirname(os.path.abspath(__file__))
with gzip.open(os.path.join(HERE, "flights.csv.gz"), "rt", encoding="utf-8") as packed:
    FLIGHTS = [row for row in csv.DictReader(packed) if int(row["week"]) <= 5]
LANDED = [row for row in FLIGHTS if row["air_time"]]


def flight(**changes):
    return dict(FLIGHTS[0], **changes)


def constant(minutes):
    return {"family": "route-mean", "base": minutes, "per_mile": 0.0, "routes": {}}


class Trainers(unittest.TestCase):
    def setUp(self):
        held = tempfile.TemporaryDirectory()
        self.addCleanup(held.cleanup)
        self.dir = held.name

    def path(self, name):
        return os.path.join(self.dir, name)

    def train(self, family, rows=None, **extra):
        with open(self.path("flights.csv"), "w", newline="", encoding="utf-8") as file:
            out = csv.DictWriter(file, FLIGHTS[0].keys())
            out.writeheader()
            out.writerows(FLIGHTS if rows is None else rows)
        os.makedirs(self.path("out"), exist_ok=True)
        env = {
            "PATH": os.environ["PATH"],
            "FAMILY": family,
            "REFIT_DATA": self.dir,
            "REFIT_OUT": self.path("out"),
            "REFIT_METRICS": self.path("metrics.json"),
            "REFIT_ERRORS": self.path("errors.csv"),
            **extra,
        }
        return subprocess.run(
            [sys.executable, os.path.join(HERE, "train.py")], env=env, capture_output=True, text=True, timeout=60
        )

    def test_both_families_keep_the_trainer_contract(self):
        for family in model.FAMILIES:
            with self.subTest(family):
                done = self.train(family)
                self.assertEqual(done.returncode, 0, done.stderr)
                for line in done.stdout.splitlines():
                    self.assertEqual(json.loads(line)["refit"], "progress")
                with open(self.path("metrics.json"), encoding="utf-8") as file:
                    metrics = json.load(file)
                self.assertEqual(set(metrics), {"mae", "r2", "n", "segments"})
                self.assertEqual(metrics["n"], sum(row["week"] == "5" for row in LANDED))
                self.assertEqual(sum(s["n"] for s in metrics["segments"].values()), metrics["n"])
                self.assertLess(metrics["mae"], 10)
                self.assertGreater(metrics["r2"], 0.95)
                trained = model.load_dir(self.path("out"))
                self.assertEqual(trained["family"], family)
                self.assertEqual(trained["trained_on"]["weeks"], [1, 4])

    def test_errors_hold_both_versions_on_the_same_holdout(self):
        self.train("route-mean")
        champion = self.path("champion")
        os.rename(self.path("out"), champion)
        done = self.train("ridge", REFIT_CHAMPION=champion)
        self.assertEqual(done.returncode, 0, done.stderr)
        with open(self.path("errors.csv"), newline="", encoding="utf-8") as file:
            errors = list(csv.DictReader(file))
        self.assertEqual(list(errors[0]), ["block", "segment", "actual", "predicted", "champion_predicted"])
        held_out = [row for row in LANDED if row["week"] == "5"]
        stable = model.load_dir(champion)
        self.assertEqual(len(errors), len(held_out))
        for row, error in zip(held_out, errors):
            self.assertAlmostEqual(float(error["champion_predicted"]), model.predict(stable, row), places=2)
            self.assertEqual(error["block"], model.block(row))

    def test_without_a_champion_its_column_is_empty(self):
        self.train("route-mean")
        with open(self.path("errors.csv"), newline="", encoding="utf-8") as file:
            self.assertEqual({row["champion_predicted"] for row in csv.DictReader(file)}, {""})

    def test_flights_that_never_landed_are_not_learned_from(self):
        rows = [dict(row, air_time="") if at % 5 == 0 else row for at, row in enumerate(FLIGHTS)]
        done = self.train("ridge", rows)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_bad_inputs_exit_1_with_one_line_and_no_model(self):
        cases = {
            "unknown family": ("lasso", None, {}),
            "no rows": ("ridge", [], {}),
            "no training weeks": ("ridge", [row for row in FLIGHTS if row["week"] == "5"], {}),
            "infinite setting": ("ridge", None, {"HALF_LIFE_DAYS": "inf"}),
            "negative setting": ("route-mean", None, {"SHRINK": "-1"}),
            "broken champion": ("ridge", None, {"REFIT_CHAMPION": "/nonexistent"}),
        }
        for name, (family, rows, extra) in cases.items():
            with self.subTest(name):
                done = self.train(family, rows, **extra)
                self.assertEqual(done.returncode, 1)
                self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)
                self.assertFalse(os.path.exists(self.path("out/model.json")))

    def test_a_holdout_without_spread_has_no_r2(self):
        metrics = trainer.score([flight(air_time="100"), flight(air_time="100")], [90.0, 130.0])
        self.assertNotIn("r2", metrics)
        self.assertEqual(metrics["mae"], 20.0)


class Fits(unittest.TestCase):
    def test_ridge_solves_its_normal_equations(self):
        matrix = [[4.0, 0.0, 0.0], [2.0, 5.0, 0.0], [1.0, 3.0, 6.0]]  # lower triangle
        want = [1.0, -2.0, 0.5]
        full = [[matrix[max(i, j)][min(i, j)] for j in range(3)] for i in range(3)]
        vector = [sum(a * x for a, x in zip(row, want)) for row in full]
        for found, expected in zip(train_ridge.solve(matrix, vector), want):
            self.assertAlmostEqual(found, expected, places=12)

    def test_ridge_finds_a_line_in_distance(self):
        rows = [flight(distance=str(d), air_time=str(20 + d // 10), dest="AAA") for d in range(200, 2600, 40)]
        fitted = train_ridge.fit(rows, 1e-6, 1e9)
        self.assertAlmostEqual(model.predict(fitted, flight(distance="1000", dest="AAA")), 120, delta=0.01)

    def test_route_mean_follows_recent_flights_and_shrinks_rare_routes(self):
        old = [flight(date="2013-01-01", dest="AAA", air_time="100", distance="500")] * 20
        new = [flight(date="2013-03-01", dest="AAA", air_time="120", distance="500")] * 20
        other = [flight(date="2013-03-01", dest="BBB", air_time="220", distance="1500")] * 20
        rare = [flight(date="2013-03-01", dest="CCC", air_time="400", distance="1500")]
        fitted = train_route_mean.fit(old + new + other + rare, 2.0, 14.0)
        origin = FLIGHTS[0]["origin"]
        self.assertGreater(fitted["routes"][f"{origin}-AAA"], 115)
        self.assertLess(fitted["routes"][f"{origin}-CCC"], 310)

    def test_an_unknown_route_is_predicted_from_its_distance(self):
        for fit, penalty in ((train_ridge.fit, 1.0), (train_route_mean.fit, 2.0)):
            fitted = fit([row for row in LANDED if row["week"] == "1"], penalty, 60.0)
            minutes = model.predict(fitted, flight(dest="ZZZ", distance="1000"))
            self.assertTrue(100 < minutes < 200, minutes)

    def test_a_model_with_a_missing_or_infinite_number_is_refused(self):
        bad = (
            "{", "[]", "null", '{"family":"tree"}', '{"family":"ridge","weights":{}}',
            '{"family":"ridge","weights":{"bias":NaN}}', '{"family":"ridge","weights":{"bias":"1"}}',
            '{"family":"route-mean","base":1e999,"per_mile":0,"routes":{}}', '{"family":"route-mean","base":1}',
        )
        for text in bad:
            with self.subTest(text), tempfile.TemporaryDirectory() as directory:
                with open(os.path.join(directory, "model.json"), "w", encoding="utf-8") as file:
                    file.write(text)
                with self.assertRaises(model.BadModel):
                    model.load_dir(directory)


class Server(unittest.TestCase):
    NOW = "2013-03-12T12:00:00Z"

    def setUp(self):
        held = tempfile.TemporaryDirectory()
        self.addCleanup(held.cleanup)
        self.dir = held.name
        self.release = os.path.join(self.dir, "release.json")
        self.version("v1", constant(100.0))
        self.version("v2", constant(200.0))
        self.server = serve.server(self.release, replay=True)
        running = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        running.start()
        self.addCleanup(running.join)
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)
        self.written = 0

    def version(self, name, content):
        where = os.path.join(self.dir, name)
        os.makedirs(where, exist_ok=True)
        with open(os.path.join(where, "model.json"), "w", encoding="utf-8") as file:
            json.dump(content, file)
        with open(os.path.join(where, "manifest.json"), "w", encoding="utf-8") as file:
            file.write(name)

    def arm(self, name, **more):
        return {
            "version": name,
            "base_url": "file://" + os.path.join(self.dir, name),
            "manifest_sha256": hashlib.sha256(name.encode()).hexdigest(),
            **more,
        }

    def canary(self, basis_points=5000, **more):
        return self.arm("v2", basis_points=basis_points, salt="s", valid_until="2013-03-13T00:00:00Z", **more)

    def write(self, champion, canary=None):
        document = {"model": "air-time", "instance": "i", "generation": 7, "champion": champion, "canary": canary,
                    "updated_at": self.NOW}
        self.put(json.dumps(document))

    def put(self, text):
        """Writes as refit does: a new file, renamed; never two of one time."""
        self.written += 1
        with open(self.release + ".new", "w", encoding="utf-8") as file:
            file.write(text)
        os.utime(self.release + ".new", (self.written, self.written))
        os.replace(self.release + ".new", self.release)

    def post(self, body):
        request = urllib.request.Request(f"http://127.0.0.1:{self.server.server_port}/predict", body)
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)

    def predict(self, rows, at=NOW):
        return self.post(json.dumps({"rows": rows, "at": at}).encode())["predictions"]

    def rows(self, count):
        return [dict(FLIGHTS[at], request_id=f"r{at}", unit=f"u{at}") for at in range(count)]

    def test_buckets_are_the_same_in_every_language(self):
        self.assertEqual(serve.bucket("salt", "unit"), int(hashlib.sha256(b"salt:unit").hexdigest()[:8], 16) % 10000)

    def test_the_champion_serves_alone_without_a_canary(self):
        self.write(self.arm("v1"))
        for got in self.predict(self.rows(5)):
            self.assertEqual((got["version"], got["ok"], got["prediction"], got["shadow"]), ("v1", True, 100.0, {}))

    def test_a_canary_gets_its_share_and_both_versions_score_every_row(self):
        self.write(self.arm("v1"), self.canary())
        rows = self.rows(400)
        answers = self.predict(rows)
        self.assertEqual([a["request_id"] for a in answers], [r["request_id"] for r in rows])
        for row, got in zip(rows, answers):
            to_canary = serve.bucket("s", row["unit"]) < 5000
            self.assertEqual(got["version"], "v2" if to_canary else "v1")
            self.assertEqual(got["shadow"], {"v1": 100.0} if to_canary else {"v2": 200.0})
        share = sum(a["version"] == "v2" for a in answers)
        self.assertTrue(160 < share < 240, share)

    def test_a_row_without_a_unit_goes_to_the_champion(self):
        self.write(self.arm("v1"), self.canary(10000))
        self.assertEqual(self.predict([flight(request_id="a")])[0]["version"], "v1")

    def test_an_expired_canary_gets_nothing(self):
        self.write(self.arm("v1"), self.canary(10000))
        self.assertEqual(self.predict(self.rows(1), at="2013-03-12T23:59:59.123456789Z")[0]["version"], "v2")
        self.assertEqual(self.predict(self.rows(1), at="2013-03-13T00:00:00Z")[0]["version"], "v1")

    def test_a_new_document_is_followed_and_a_bad_one_is_not(self):
        self.write(self.arm("v1"))
        self.assertEqual(self.predict(self.rows(1))[0]["version"], "v1")
        self.write(self.arm("v2"))
        self.assertEqual(self.predict(self.rows(1))[0]["version"], "v2")
        bad = ("", "{", "[]", "null", '{"champion":{"version":"v1"}}',
               json.dumps({"champion": self.arm("gone"), "canary": None}),
               json.dumps({"champion": self.arm("v1"), "canary": self.canary("half")}),
               json.dumps({"champion": dict(self.arm("v1"), manifest_sha256="0" * 64), "canary": None}),
               json.dumps({"champion": dict(self.arm("v1"), base_url="https://example.com/v1"), "canary": None}))
        for text in bad:
            with self.subTest(text):
                self.put(text)
                self.assertEqual(self.predict(self.rows(1))[0]["version"], "v2")
                self.assertNotEqual(self.server.releases.trouble, "")
        os.remove(self.release)
        self.assertEqual(self.predict(self.rows(1))[0]["version"], "v2")
        self.write(self.arm("v1"))
        self.assertEqual(self.predict(self.rows(1))[0]["version"], "v1")
        self.assertEqual(self.server.releases.trouble, "")

    def test_a_cold_start_without_a_document_serves_the_fallback(self):
        got = self.predict(self.rows(1))[0]
        self.assertEqual((got["version"], got["ok"]), ("built-in", True))
        self.assertTrue(math.isfinite(got["prediction"]))

    def test_a_canary_that_cannot_be_loaded_fails_while_its_callers_are_served(self):
        self.version("v2", {"family": "ridge", "weights": {}})
        self.write(self.arm("v1"), self.canary(10000))
        got = self.predict(self.rows(1))[0]
        self.assertEqual((got["version"], got["ok"], got["prediction"]), ("v2", False, 100.0))

    def test_a_bad_row_fails_alone(self):
        self.write(self.arm("v1"), self.canary())
        good, bad, worse = self.predict([self.rows(1)[0], {"request_id": "x"}, "nonsense"])
        self.assertTrue(good["ok"])
        self.assertEqual((bad["ok"], bad["prediction"], worse["ok"]), (False, None, False))

    def test_a_body_that_is_no_batch_is_400(self):
        self.write(self.arm("v1"))
        for body in (b"", b"{", b"[]", b'{"rows":1}', b'{"rows":[],"at":"yesterday"}', b'{"rows":[],"at":"2013-01-01T00:00:00"}'):
            with self.subTest(body), self.assertRaises(urllib.error.HTTPError) as refused:
                self.post(body)
            with contextlib.closing(refused.exception):
                self.assertEqual(refused.exception.code, 400)

    def test_the_wall_clock_decides_unless_replaying(self):
        self.server.replay = False
        self.write(self.arm("v1"), self.canary(10000))
        self.assertEqual(self.predict(self.rows(1))[0]["version"], "v1")

    def test_times_need_a_zone(self):
        self.assertEqual(serve.parse_time("2013-01-01T00:00:00.5Z").utcoffset(), datetime.timedelta(0))
        with self.assertRaises(ValueError):
            serve.parse_time("2013-01-01T00:00:00")


if __name__ == "__main__":
    unittest.main()
