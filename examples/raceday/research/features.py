"""What the models know of an athlete and a race, in the order that they know it."""

FEATURES = ["age", "is_female", "swim_pace_s", "bike_kmh", "run_pace_s", "temp_c", "climb_m"]
DISTANCES = ["sprint", "olympic", "70.3", "140.6"]
# On the long distances there is a cut-off: how late may it get?
LEGS = {distance: ["swim", "bike", "run", "finish"] for distance in DISTANCES}
for _distance in ("70.3", "140.6"):
    LEGS[_distance].append("finish_p90")
