"""Trains one XGBoost model per airport. It knows nothing of refit: what it says, it prints."""

import argparse
import csv
import pathlib

import numpy as np
import xgboost as xgb

FEATURES = ["distance", "hour", "wind_speed", "wind_dir", "temp", "seats"]
MODELS = pathlib.Path("research/models")


def design(rows):
    return np.array([[float(row[name] or "nan") for name in FEATURES] for row in rows])


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--airports", default="EWR,JFK,LGA")
    options.add_argument("--weeks", type=float, required=True, help="the newest of them is held out")
    options = options.parse_args()

    with open("data/flights.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["air_time"]]
    MODELS.mkdir(parents=True, exist_ok=True)
    for airport in options.airports.split(","):
        flights = [row for row in rows if row["origin"] == airport and int(row["week"]) <= options.weeks]
        train = [row for row in flights if int(row["week"]) < options.weeks]
        holdout = [row for row in flights if int(row["week"]) == options.weeks]
        print(f"{airport}: training on {len(train)} flights, judging on {len(holdout)}")

        actual = np.array([float(row["air_time"]) for row in holdout])
        labels = np.array([float(row["air_time"]) for row in train])
        settings = {"max_depth": 4, "eta": 0.2, "nthread": 1, "seed": 7}
        booster = xgb.train(settings, xgb.DMatrix(design(train), labels), num_boost_round=60)
        errors = booster.predict(xgb.DMatrix(design(holdout))) - actual
        print(f"  MAE: {np.abs(errors).mean():.2f} minutes")
        print(f"  R²: {1 - (errors**2).sum() / ((actual - actual.mean()) ** 2).sum():.4f}")
        booster.save_model(MODELS / f"{airport}.ubj")


if __name__ == "__main__":
    main()
