"""Trains 18 XGBoost models: swim, bike, run and finish of four distances, and the 90 % quantile of two.

It knows nothing of refit: what it says, it prints. Data is read from
data/results.csv, or from where refit fetched it.
"""

import argparse
import csv
import os
import pathlib

import numpy as np
import xgboost as xgb

from research.features import DISTANCES, FEATURES, LEGS

MODELS = pathlib.Path("research/models")


def matrix(rows, labels=None):
    values = np.array([[float(row[name]) for name in FEATURES] for row in rows])
    return xgb.DMatrix(values, labels, feature_names=FEATURES)


def fit(rows, leg, rounds):
    labels = np.array([float(row[f"{leg.removesuffix('_p90')}_s"]) for row in rows])
    settings = {"max_depth": 4, "eta": 0.12, "min_child_weight": 3, "nthread": 1, "seed": 7}
    if leg.endswith("_p90"):
        settings |= {"objective": "reg:quantileerror", "quantile_alpha": 0.9}
    return xgb.train(settings, matrix(rows, labels), num_boost_round=rounds)


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--distances", default=",".join(DISTANCES))
    options.add_argument("--data", type=pathlib.Path, default=pathlib.Path(os.environ.get("REFIT_DATA", "data")) / "results.csv")
    options.add_argument("--rounds", type=int, default=250)
    options = options.parse_args()

    with open(options.data, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["finish_s"]]
    weeks = sorted({row["race_date"] for row in rows})
    # The newest fifth of the race days is held out: a model is judged on races it has not seen.
    cut = weeks[int(len(weeks) * 0.8)]
    MODELS.mkdir(parents=True, exist_ok=True)
    for distance in options.distances.split(","):
        races = [row for row in rows if row["distance"] == distance]
        train = [row for row in races if row["race_date"] < cut]
        holdout = [row for row in races if row["race_date"] >= cut]
        print(f"{distance}: {len(train)} results, {len(holdout)} held out since {cut}", flush=True)
        for leg in LEGS[distance]:
            booster = fit(train, leg, options.rounds)
            booster.save_model(MODELS / f"{distance}-{leg}.ubj")
            if leg == "finish":
                actual = np.array([float(row["finish_s"]) for row in holdout])
                errors = booster.predict(matrix(holdout)) - actual
                print(f"  MAE: {np.abs(errors).mean():.1f}")
                print(f"  R²: {1 - (errors**2).sum() / ((actual - actual.mean()) ** 2).sum():.4f}", flush=True)


if __name__ == "__main__":
    main()
