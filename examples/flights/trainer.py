"""What both trainers share: inputs, holdout, scoring and the files refit reads.

In:  `$REFIT_DATA/flights.csv`, `$REFIT_CHAMPION/model.json` when a champion
     serves, and the settings `TRAIN_WEEKS`, `HALF_LIFE_DAYS` and the family's own.
Out: `$REFIT_OUT/model.json`, `$REFIT_METRICS`, `$REFIT_ERRORS`, and progress
     lines on stdout.

The newest week of the data is the holdout and the `TRAIN_WEEKS` weeks before
it are trained on: time-ordered, so nothing is learned from the future.
"""

import csv
import json
import math
import os
import sys

import model

SEGMENTS = ("short", "medium", "long")


class Refused(Exception):
    """Why no model can be trained from these inputs."""


def progress(pct, message):
    """One progress line in refit's trainer contract."""
    print(json.dumps({"refit": "progress", "pct": pct, "message": message}), flush=True)


def setting(name, default, above):
    """The number in the environment variable `name`; empty counts as absent."""
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    value = model.number(text, None)
    if value is None or value <= above:
        raise Refused(f"{name} must be a number above {above}, not {text!r}")
    return value


def split(rows, train_weeks):
    """(training rows, holdout rows): the newest week is held out."""
    rows = model.landed(rows)
    if not rows:
        raise Refused("no flight in the data has an air time")
    newest = max(int(row["week"]) for row in rows)
    training = [row for row in rows if newest - train_weeks <= int(row["week"]) < newest]
    if not training:
        raise Refused(f"no flights in the {train_weeks:g} weeks before week {newest}")
    return training, [row for row in rows if int(row["week"]) == newest]


def mean(values):
    return math.fsum(values) / len(values)


def score(holdout, predictions):
    """The metrics of the trainer contract: MAE in minutes, R2, n, segments."""
    actual = [float(row["air_time"]) for row in holdout]
    errors = [abs(a - p) for a, p in zip(actual, predictions)]
    centre = mean(actual)
    spread = math.fsum((a - centre) ** 2 for a in actual)
    residual = math.fsum((a - p) ** 2 for a, p in zip(actual, predictions))
    segments = {}
    for name in SEGMENTS:
        own = [e for row, e in zip(holdout, errors) if model.segment(row) == name]
        if own:
            segments[name] = {"mae": round(mean(own), 4), "n": len(own)}
    metrics = {"mae": round(mean(errors), 4), "n": len(errors), "segments": segments}
    if spread > 0:  # without spread there is no R2; absent fails the gate, zero would lie
        metrics["r2"] = round(1 - residual / spread, 6)
    return metrics


def write_errors(path, holdout, predictions, champion_predictions):
    with open(path, "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["block", "segment", "actual", "predicted", "champion_predicted"])
        for row, predicted, champion in zip(holdout, predictions, champion_predictions):
            shown = "" if champion is None else f"{champion:.3f}"
            out.writerow([model.block(row), model.segment(row), row["air_time"], f"{predicted:.3f}", shown])


def train(fit):
    env = os.environ
    rows = model.read_rows(os.path.join(env["REFIT_DATA"], "flights.csv"))
    training, holdout = split(rows, setting("TRAIN_WEEKS", 12.0, above=0))
    weeks = sorted({int(row["week"]) for row in training})
    progress(10, f"weeks {weeks[0]} to {weeks[-1]}: {len(training)} flights; holdout week {holdout[0]['week']}: {len(holdout)}")
    trained = fit(training, progress)
    predictions = [model.predict(trained, row) for row in holdout]
    champion_dir = env.get("REFIT_CHAMPION")
    champion = model.load_dir(champion_dir) if champion_dir else None
    champion_predictions = [model.predict(champion, row) if champion else None for row in holdout]
    with open(os.path.join(env["REFIT_OUT"], "model.json"), "w", encoding="utf-8") as file:
        trained["trained_on"] = {"weeks": [weeks[0], weeks[-1]], "rows": len(training)}
        json.dump(trained, file, allow_nan=False, sort_keys=True)
    metrics = score(holdout, predictions)
    with open(env["REFIT_METRICS"], "w", encoding="utf-8") as file:
        json.dump(metrics, file, allow_nan=False)
    if env.get("REFIT_ERRORS"):
        write_errors(env["REFIT_ERRORS"], holdout, predictions, champion_predictions)
    progress(100, f"{trained['family']}: off by {metrics['mae']:.2f} minutes on average")


def run(fit):
    """Trains with `fit(rows, progress) -> model`; a refusal exits 1 with one line."""
    try:
        train(fit)
    except KeyError as error:
        sys.exit(f"missing environment variable or column {error}")
    except (Refused, ValueError, OSError) as error:
        sys.exit(str(error))
