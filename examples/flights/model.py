"""How a flight's features become a predicted air time, for both model families.

Shared by the trainers, which write `model.json`, and by the prediction
server, which reads it. A model is data only: loading one runs no code.
"""

import csv
import datetime
import json
import math
import os

FAMILIES = ("ridge", "route-mean")

# What a missing or unreadable weather value counts as: the year's middle.
DEFAULT_WIND = 10.0
DEFAULT_TEMP = 55.0


class BadModel(ValueError):
    """A model file that cannot be used for predictions."""


def number(text, default):
    """The finite number in `text`, or `default` where there is none."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return default
    return value if math.isfinite(value) else default


def read_rows(path):
    """The CSV's rows as dicts of text, in file order."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def landed(rows):
    """Rows whose air time is known; cancelled and diverted flights have none."""
    return [row for row in rows if number(row["air_time"], None) is not None]


def route(row):
    """The route a row flies, `JFK-LAX`; also the unit of sticky routing."""
    return f"{row['origin']}-{row['dest']}"


def segment(row):
    """Short, medium or long haul: errors differ by a factor of three."""
    miles = number(row["distance"], 0.0)
    return "short" if miles < 700 else "medium" if miles < 1600 else "long"


def block(row):
    """The day a flight leaves. Flights of one day fly through the same wind, so
    their errors move together: a day is one piece of evidence, not ninety."""
    return row["date"]


def season(date):
    """Sine and cosine of the day of the year, one turn a year."""
    day = datetime.date.fromisoformat(date).timetuple().tm_yday
    turn = 2 * math.pi * day / 365.25
    return math.sin(turn), math.cos(turn)


def features(row):
    """The ridge's features by name, each of order one.

    Seasonal terms come alone and times distance: winter's jet stream slows
    a long westbound flight by more minutes than a short one.
    """
    miles = number(row["distance"], 0.0) / 1000
    sine, cosine = season(row["date"])
    wind = number(row["wind_speed"], DEFAULT_WIND) / 10
    angle = math.radians(number(row["wind_dir"], 0.0)) if row["wind_dir"] else None
    west = wind * -math.sin(angle) if angle is not None else 0.0
    return {
        "bias": 1.0,
        "distance": miles,
        "hour": (number(row["hour"], 12.0) - 12) / 6,
        "temp": (number(row["temp"], DEFAULT_TEMP) - DEFAULT_TEMP) / 20,
        "wind": wind,
        "west_wind*distance": west * miles,
        "season_sin": sine,
        "season_cos": cosine,
        "season_sin*distance": sine * miles,
        "season_cos*distance": cosine * miles,
        f"origin:{row['origin']}": 1.0,
        f"dest:{row['dest']}": 1.0,
        f"carrier:{row['carrier']}": 1.0,
    }


def predict(model, row):
    """Minutes in the air, never below ten. An unknown route or carrier still
    gets an answer: from the distance."""
    if model["family"] == "ridge":
        weights = model["weights"]
        minutes = sum(value * weights.get(name, 0.0) for name, value in features(row).items())
    else:
        minutes = model["routes"].get(route(row))
        if minutes is None:
            minutes = model["base"] + model["per_mile"] * number(row["distance"], 0.0)
    return max(10.0, minutes)


def load(path):
    """The model in `path`; `BadModel` unless every number in it is finite."""
    try:
        with open(path, encoding="utf-8") as file:
            model = json.load(file)
        family = model["family"]
        if family == "ridge":
            numbers = list(model["weights"].values())
        elif family == "route-mean":
            numbers = [model["base"], model["per_mile"], *model["routes"].values()]
        else:
            raise BadModel(f"{path}: unknown family {family!r}, known: {', '.join(FAMILIES)}")
        if not numbers or not all(type(n) in (int, float) and math.isfinite(n) for n in numbers):
            raise BadModel(f"{path}: a number is missing or not finite")
    except (OSError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise BadModel(f"{path}: {error}") from error
    return model


def load_dir(directory):
    """The model in a version's directory."""
    return load(os.path.join(directory, "model.json"))
