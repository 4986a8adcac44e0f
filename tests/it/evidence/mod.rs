//! Evidence that refit fetches from where the app keeps it. One suite, which
//! every kind of source passes through the engine's own looks.

mod apps;
mod endless;
mod examples;
mod labels;
mod status;
mod suite;
mod watched;

/// Makes one test of each function of the suite for a kind of app.
macro_rules! tests_of {
    ($app:ident, $make:expr, all) => {
        tests_of! { $app, $make, [
            what_is_new_counts_once
            missed_minutes_are_read
            late_rows_and_rows_out_of_order_count_once
            a_death_at_the_commit_neither_loses_nor_doubles
            a_source_that_is_away_is_said_once_and_read_later
            rows_that_make_no_sense_are_refused_and_the_others_count
            nothing_there_is_no_evidence
        ] }
    };
    ($app:ident, $make:expr, [$($test:ident)*]) => {
        mod $app {
            use super::apps::*;

            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::suite::$test(&$make.await).await;
            })*
        }
    };
}

tests_of! { sqlite, SqliteTable::new("TEXT"), all }
tests_of! { sqlite_numbers, SqliteTable::new("INTEGER"), [
    what_is_new_counts_once
    missed_minutes_are_read
    late_rows_and_rows_out_of_order_count_once
] }
tests_of! { postgres, PostgresTable::new(), all }
tests_of! { http_since, Endpoint::new(Listing::Since), all }
tests_of! { http_after, Endpoint::new(Listing::After), all }
tests_of! { http_after_for_long, Endpoint::new(Listing::After), [rows_of_long_ago_do_not_count] }
// Counts without rows: none comes late or makes no sense.
tests_of! { prometheus, Counters::new(), [
    what_is_new_counts_once
    missed_minutes_are_read
    a_death_at_the_commit_neither_loses_nor_doubles
    a_source_that_is_away_is_said_once_and_read_later
    nothing_there_is_no_evidence
] }
