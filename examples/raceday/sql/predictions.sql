-- The app's own prediction table in the words of an observation.
SELECT "predictionTime" AS at, "requestId" AS request_id, "athleteId" AS unit, "modelVersion" AS version,
       error IS NULL AS ok, "durationMs" AS latency_ms, "finishS" AS prediction, cold
FROM predictions
ORDER BY "predictionTime", "requestId"
