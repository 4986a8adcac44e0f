-- A table of predictions as Prisma makes it:
--   prediction(id, "modelVersion", "errorRate", "predictionTime", "createdAt")
-- `errorRate` is 0 for a prediction that went well; `predictionTime` is in milliseconds.
--
--   evidence:
--     sql:
--       url: ${{ secrets.APP_DATABASE_URL }}
--       query_file: sql/prediction.sql
--       error_if: row.error_rate > 0.0
SELECT
    "createdAt" AS at,
    id AS request_id,
    "modelVersion" AS version,
    CAST("errorRate" AS DOUBLE PRECISION) AS error_rate,
    "predictionTime" AS latency_ms
FROM prediction
