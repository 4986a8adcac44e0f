"""Trains a ridge regression with seasonal features; see `trainer.py`."""

import datetime
import math

import trainer
from model import features


def solve(matrix, vector):
    """Solves a symmetric positive definite system by Cholesky, in place."""
    n = len(vector)
    for i in range(n):
        row = matrix[i]
        for j in range(i + 1):
            other = matrix[j]
            total = row[j] - sum(map(float.__mul__, row[:j], other[:j]))
            if i == j:
                if total <= 0:
                    raise ValueError("the normal matrix is not positive definite: raise RIDGE_LAMBDA")
                row[i] = math.sqrt(total)
            else:
                row[j] = total / other[j]
    for i in range(n):
        row = matrix[i]
        vector[i] = (vector[i] - sum(map(float.__mul__, row[:i], vector[:i]))) / row[i]
    for i in reversed(range(n)):
        vector[i] = (vector[i] - sum(matrix[k][i] * vector[k] for k in range(i + 1, n))) / matrix[i][i]
    return vector


def fit(rows, penalty, half_life_days, progress=lambda pct, message: None):
    """Weights that minimise squared error + `penalty` x squared weights.

    A row loses half its weight every `half_life_days`. The bias is not
    penalised.
    """
    newest = max(datetime.date.fromisoformat(row["date"]) for row in rows)
    index = {}
    designs = []
    for row in rows:
        age = (newest - datetime.date.fromisoformat(row["date"])).days
        weight = 0.5 ** (age / half_life_days)
        design = [(index.setdefault(name, len(index)), value) for name, value in features(row).items()]
        designs.append((sorted(design, reverse=True), weight, float(row["air_time"])))
    n = len(index)
    progress(30, f"{n} features from {len(rows)} flights")
    matrix = [[0.0] * n for _ in range(n)]
    vector = [0.0] * n
    for design, weight, minutes in designs:
        for at, (i, value) in enumerate(design):
            scaled = value * weight
            row = matrix[i]
            vector[i] += scaled * minutes
            for j, other in design[at:]:
                row[j] += scaled * other
    for name, i in index.items():
        matrix[i][i] += 1e-6 if name == "bias" else penalty
    progress(60, "solving the normal equations")
    solution = solve(matrix, vector)
    return {"family": "ridge", "weights": {name: solution[i] for name, i in index.items()}}


def main():
    trainer.run(
        lambda rows, progress: fit(
            rows,
            trainer.setting("RIDGE_LAMBDA", 1.0, above=0),
            trainer.setting("HALF_LIFE_DAYS", 60.0, above=0),
            progress,
        )
    )


if __name__ == "__main__":
    main()
