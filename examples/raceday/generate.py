"""Race results for the example: synthetic, the same for the same seed.

    python3 generate.py --sqlite app.db --until 2026-11-21 --weeks 12
    python3 generate.py --until 2026-11-21 --weeks 12 | psql "$APP_DATABASE_URL"

No real athlete or race is in them. Every week has new races of four distances;
athletes come back with the same strengths; heat and hills cost time; and the
field drifts: bikes get a little faster every week, so last season's model grows
worse. `--broken` leaves a sixth of the newest week's finish times out, as a
timing provider does that lost its mats.
"""

import argparse
import datetime
import math
import random
import sqlite3
import sys

# Swim in metres, bike and run in kilometres; how often it is raced.
DISTANCES = {
    "sprint": (750, 20, 5, 4),
    "olympic": (1500, 40, 10, 3),
    "70.3": (1900, 90, 21.1, 2),
    "140.6": (3800, 180, 42.2, 1),
}
EPOCH = datetime.date(2024, 1, 1)  # a Monday; weeks are counted from here

TABLE = """CREATE TABLE IF NOT EXISTS results (
    race_id text NOT NULL, athlete_id bigint NOT NULL, distance text NOT NULL, race_date date NOT NULL,
    age integer NOT NULL, is_female integer NOT NULL, swim_pace_s double precision NOT NULL,
    bike_kmh double precision NOT NULL, run_pace_s double precision NOT NULL, temp_c double precision NOT NULL,
    climb_m double precision NOT NULL, swim_s double precision, bike_s double precision, run_s double precision,
    finish_s double precision, PRIMARY KEY (race_id, athlete_id))"""
COLUMNS = 15


def athlete(seed, number):
    """Who somebody is, every time the same: age, sex, and three threshold paces as a watch knows them."""
    its = random.Random(f"{seed}/athlete/{number}")
    fitness = its.gauss(0, 1)
    age = min(75, max(18, round(its.gauss(38, 10))))
    is_female = int(its.random() < 0.35)
    slow = 1 + 0.004 * abs(age - 30) + 0.08 * is_female

    def pace(base, spread):
        return base * slow * math.exp(spread * (0.75 * fitness + 0.66 * its.gauss(0, 1)))

    # Seconds per 100 m, km/h, seconds per km.
    return age, is_female, pace(105, -0.14), 34 / pace(1, -0.10), pace(270, -0.13)


def race(seed, week, distance, number, starters, population):
    """The rows of one race."""
    swim_m, bike_km, run_km, _ = DISTANCES[distance]
    name = f"{week}-{distance}-{number}"
    its = random.Random(f"{seed}/race/{name}")
    date = EPOCH + datetime.timedelta(days=7 * week + its.choice((5, 6)))
    temp = 15 + 9 * math.sin(2 * math.pi * (week % 52 - 16) / 52) + its.gauss(0, 3)
    climb = max(0.0, its.gauss(8, 5)) * bike_km
    for number in its.sample(range(population), starters):
        age, is_female, swim_pace, bike_kmh, run_pace = athlete(seed, number)
        day = math.exp(its.gauss(0, 0.007))
        heat = 1 + 0.004 * max(0.0, temp - 20)
        drift = 1 - 0.0006 * (week - 104)
        swim = swim_m / 100 * swim_pace * day * math.exp(its.gauss(0, 0.012))
        bike = bike_km / bike_kmh * 3600 * (1 + climb / bike_km * 0.006) * drift * day * math.exp(its.gauss(0, 0.01))
        tired = 1.04 + 0.10 * bike_km / 180
        run = run_km * run_pace * tired * heat * day * math.exp(its.gauss(0, 0.012))
        finish = swim + bike + run + 150 + bike_km * 2
        yield (
            name, number, distance, date.isoformat(), age, is_female, round(swim_pace, 1), round(bike_kmh, 2),
            round(run_pace, 1), round(temp, 1), round(climb), round(swim, 1), round(bike, 1), round(run, 1),
            round(finish, 1),
        )


def results(options):
    """The rows of all races in `weeks` weeks that end before `until`."""
    last = (options.until - EPOCH).days // 7
    lost = random.Random(f"{options.seed}/lost/{last}")
    for week in range(last - options.weeks, last):
        for distance, (*_, often) in DISTANCES.items():
            for number in range(often):
                for row in race(options.seed, week, distance, number, options.starters, options.population):
                    is_lost = options.broken and week == last - 1 and lost.random() < 1 / 6
                    yield row[:-1] + (None,) if is_lost else row


def statements(rows):
    """SQL for Postgres and SQLite alike."""
    yield TABLE
    for row in rows:
        values = ", ".join("NULL" if value is None else f"'{value}'" if isinstance(value, str) else repr(value) for value in row)
        yield f"INSERT INTO results VALUES ({values}) ON CONFLICT DO NOTHING"


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sqlite", help="write here; SQL on stdout when absent")
    options.add_argument("--until", type=datetime.date.fromisoformat, default=datetime.date.today())
    options.add_argument("--weeks", type=int, default=26)
    options.add_argument("--starters", type=int, default=60, help="of each of ten races a week")
    options.add_argument("--population", type=int, default=4000)
    options.add_argument("--seed", type=int, default=7)
    options.add_argument("--broken", action="store_true", help="the newest week misses finish times")
    options = options.parse_args()
    if options.sqlite is None:
        sys.stdout.writelines(f"{statement};\n" for statement in ["BEGIN", *statements(results(options)), "COMMIT"])
        return
    with sqlite3.connect(options.sqlite) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute(TABLE)
        marks = ", ".join("?" * COLUMNS)
        database.executemany(f"INSERT INTO results VALUES ({marks}) ON CONFLICT DO NOTHING", results(options))
    database.close()


if __name__ == "__main__":
    main()
