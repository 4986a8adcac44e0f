"""Turns the trained models into the JSON files that the app loads, one per model."""

import argparse
import pathlib

import xgboost as xgb


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--input-dir", type=pathlib.Path, required=True)
    options.add_argument("--output-dir", type=pathlib.Path, required=True)
    options = options.parse_args()

    options.output_dir.mkdir(parents=True, exist_ok=True)
    for path in sorted(options.input_dir.glob("*.ubj")):
        booster = xgb.Booster(model_file=path)
        booster.save_model(options.output_dir / f"{path.stem}.json")
    print(f"exported {len(list(options.output_dir.glob('*.json')))} models to {options.output_dir}")


if __name__ == "__main__":
    main()
