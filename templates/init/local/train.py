"""Trains the delivery-time model: a linear regression, nothing but the standard library.

refit gives a trainer
    $REFIT_DATA     a directory with what the fetch steps fetched (read only)
    $REFIT_OUT      an empty directory: every file left here becomes part of the version
    $REFIT_METRICS  where to write the metrics, as JSON
and takes what it prints as its log. It exits with 0 when it trained a model, and with anything else when not.
"""

import csv
import json
import os
import pathlib

FEATURES = ["distance_km", "stops", "rush_hour"]
HOLDOUT = 0.2  # the newest fifth: a model is judged on days it has not seen


def design(row):
    return [1.0] + [float(row[name]) for name in FEATURES]


def solve(matrix, vector):
    """Solves matrix * x = vector by elimination with pivoting."""
    n = len(vector)
    rows = [list(line) + [value] for line, value in zip(matrix, vector)]
    for i in range(n):
        pivot = max(range(i, n), key=lambda k: abs(rows[k][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for k in range(i + 1, n):
            factor = rows[k][i] / rows[i][i]
            rows[k] = [a - factor * b for a, b in zip(rows[k], rows[i])]
    x = [0.0] * n
    for i in reversed(range(n)):
        x[i] = (rows[i][n] - sum(rows[i][k] * x[k] for k in range(i + 1, n))) / rows[i][i]
    return x


def fit(rows):
    xs, ys = [design(row) for row in rows], [float(row["minutes"]) for row in rows]
    n = range(len(xs[0]))
    matrix = [[sum(x[i] * x[j] for x in xs) for j in n] for i in n]
    return solve(matrix, [sum(x[i] * y for x, y in zip(xs, ys)) for i in n])


def predict(weights, row):
    return sum(weight * value for weight, value in zip(weights, design(row)))


def main():
    with open(pathlib.Path(os.environ["REFIT_DATA"]) / "deliveries.csv", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["date"])
    rows = [row for row in rows if row["minutes"]]
    cut = int(len(rows) * (1 - HOLDOUT))
    train, holdout = rows[:cut], rows[cut:]
    print(f"training on {len(train)} deliveries, judging on the {len(holdout)} newest")

    weights = fit(train)
    actual = [float(row["minutes"]) for row in holdout]
    errors = [predict(weights, row) - minutes for row, minutes in zip(holdout, actual)]
    mean = sum(actual) / len(actual)
    mae = sum(abs(error) for error in errors) / len(errors)
    r2 = 1 - sum(error**2 for error in errors) / sum((minutes - mean) ** 2 for minutes in actual)
    print(f"MAE {mae:.2f} minutes, R2 {r2:.3f}")

    model = {"features": FEATURES, "weights": weights, "trained_until": train[-1]["date"]}
    (pathlib.Path(os.environ["REFIT_OUT"]) / "model.json").write_text(json.dumps(model, indent=2) + "\n")
    metrics = {"mae": mae, "r2": r2, "n": len(holdout)}
    pathlib.Path(os.environ["REFIT_METRICS"]).write_text(json.dumps(metrics) + "\n")


if __name__ == "__main__":
    main()
