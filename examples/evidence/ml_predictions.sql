-- A table that a batch job or a service fills, one row a prediction:
--   ml_predictions(id, model_version, predicted_at, latency_ms, error, prediction)
-- `error` is empty for a prediction that went well; `prediction` is compared with the truth once
-- `refit truth` says it.
--
--   evidence:
--     sql:
--       url: ${{ secrets.APP_DATABASE_URL }}
--       query_file: sql/ml_predictions.sql
SELECT
    predicted_at AS at,
    id AS request_id,
    model_version AS version,
    (error IS NULL) AS ok,
    latency_ms,
    prediction
FROM ml_predictions
