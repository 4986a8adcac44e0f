//! Evidence that refit fetches from where the app keeps it. One suite, which
//! every kind of source passes through the engine's own looks.

mod apps;
mod endless;
mod examples;
mod labels;
mod status;
mod suite;
mod watched;

/// Makes one test of each function for each kind of app.
macro_rules! for_every_app {
    ($($app:ident: $make:expr => { $($test:ident)* })*) => {
        $(mod $app {
            use super::apps::*;

            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::suite::$test(&$make.await).await;
            })*
        })*
    };
}

for_every_app! {
    sqlite: SqliteTable::new("TEXT") => {
        what_is_new_counts_once
        missed_minutes_are_read
        late_rows_and_rows_out_of_order_count_once
        a_death_at_the_commit_neither_loses_nor_doubles
        a_source_that_is_away_is_said_once_and_read_later
        rows_that_make_no_sense_are_refused_and_the_others_count
        nothing_there_is_no_evidence
    }
    sqlite_numbers: SqliteTable::new("INTEGER") => {
        what_is_new_counts_once
        missed_minutes_are_read
        late_rows_and_rows_out_of_order_count_once
    }
    postgres: PostgresTable::new() => {
        what_is_new_counts_once
        missed_minutes_are_read
        late_rows_and_rows_out_of_order_count_once
        a_death_at_the_commit_neither_loses_nor_doubles
        a_source_that_is_away_is_said_once_and_read_later
        rows_that_make_no_sense_are_refused_and_the_others_count
        nothing_there_is_no_evidence
    }
    http_since: Endpoint::new(Listing::Since) => {
        what_is_new_counts_once
        missed_minutes_are_read
        late_rows_and_rows_out_of_order_count_once
        a_death_at_the_commit_neither_loses_nor_doubles
        a_source_that_is_away_is_said_once_and_read_later
        rows_that_make_no_sense_are_refused_and_the_others_count
        nothing_there_is_no_evidence
    }
    http_after: Endpoint::new(Listing::After) => {
        what_is_new_counts_once
        missed_minutes_are_read
        late_rows_and_rows_out_of_order_count_once
        a_death_at_the_commit_neither_loses_nor_doubles
        a_source_that_is_away_is_said_once_and_read_later
        rows_that_make_no_sense_are_refused_and_the_others_count
        nothing_there_is_no_evidence
    }
    http_after_for_long: Endpoint::new(Listing::After) => {
        rows_of_long_ago_do_not_count
    }
    prometheus: Counters::new() => {
        what_is_new_counts_once
        missed_minutes_are_read
        a_death_at_the_commit_neither_loses_nor_doubles
        a_source_that_is_away_is_said_once_and_read_later
        nothing_there_is_no_evidence
    }
}
