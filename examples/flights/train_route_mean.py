"""Trains a shrunken, recency-weighted mean per route; see `trainer.py`."""

import datetime

import trainer
from model import route


def fit(rows, shrink, half_life_days, progress=lambda pct, message: None):
    """Each route's weighted mean, pulled towards a straight line in distance.

    A row loses half its weight every `half_life_days`; a route's own mean
    counts as much as the line once it has `shrink` rows' worth of weight.
    """
    newest = max(datetime.date.fromisoformat(row["date"]) for row in rows)
    points = []
    for row in rows:
        age = (newest - datetime.date.fromisoformat(row["date"])).days
        points.append((route(row), float(row["distance"]), float(row["air_time"]), 0.5 ** (age / half_life_days)))
    total = sum(w for _, _, _, w in points)
    mean_x = sum(w * x for _, x, _, w in points) / total
    mean_y = sum(w * y for _, _, y, w in points) / total
    spread = sum(w * (x - mean_x) ** 2 for _, x, _, w in points)
    if spread <= 0:
        raise ValueError("every flight has the same distance: no line can be fitted")
    per_mile = sum(w * (x - mean_x) * (y - mean_y) for _, x, y, w in points) / spread
    base = mean_y - per_mile * mean_x
    progress(40, f"line fitted: {base:.1f} min + {per_mile * 1000:.1f} min per 1000 miles")
    sums = {}
    for name, x, y, w in points:
        held = sums.setdefault(name, [0.0, 0.0, x])
        held[0] += w * y
        held[1] += w
    routes = {
        name: (wy + shrink * (base + per_mile * x)) / (w + shrink) for name, (wy, w, x) in sorted(sums.items())
    }
    progress(60, f"{len(routes)} routes")
    return {"family": "route-mean", "base": base, "per_mile": per_mile, "routes": routes}


def main():
    trainer.run(
        lambda rows, progress: fit(
            rows,
            trainer.setting("SHRINK", 2.0, above=0),
            trainer.setting("HALF_LIFE_DAYS", 21.0, above=0),
            progress,
        )
    )


if __name__ == "__main__":
    main()
