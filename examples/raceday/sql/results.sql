-- What the models are trained on: a year of results. One text for Postgres and SQLite;
-- the order makes two fetches of the same rows the same file.
SELECT race_id, athlete_id, distance, race_date, age, is_female, swim_pace_s, bike_kmh, run_pace_s,
       temp_c, climb_m, swim_s, bike_s, run_s, finish_s
FROM results
ORDER BY race_date, race_id, athlete_id
