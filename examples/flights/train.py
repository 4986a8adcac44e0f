"""Trains the family named in `$FAMILY`, so one workflow can retrain either."""

import os
import sys

import train_ridge
import train_route_mean

TRAINERS = {"ridge": train_ridge.main, "route-mean": train_route_mean.main}


def main():
    family = os.environ.get("FAMILY", "")
    if family not in TRAINERS:
        sys.exit(f"FAMILY is {family!r}; known: {', '.join(TRAINERS)}")
    TRAINERS[family]()


if __name__ == "__main__":
    main()
