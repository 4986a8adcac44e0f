//! RaceDay's weekly retrain on Vercel, as `init --template raceday-vercel` writes it: results from
//! the app's database, a real XGBoost trainer, the app on Node with the client in it, at its real
//! traffic on a virtual clock. Every request to Vercel, Blob, Resend and Slack is judged by the vendor's contract.

mod app;
mod door;
mod killed;
mod killed_for_real;
mod modes;
mod place;
mod program;
mod secrets;
mod stories;
mod team;
