//! A team's weekly retrain as it is today, end to end: an XGBoost trainer that
//! prints its metrics and exports files, a real S3 server, a real mail server,
//! Slack's webhook.

mod program;
mod shop;
mod watched;
