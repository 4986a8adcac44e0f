//! The `refit` program.

use std::process::ExitCode;

use refit::trainers::guard;

fn main() -> ExitCode {
    // First of all: a guard shares nothing with the rest, not even its arguments.
    if std::env::args_os().nth(1).is_some_and(|word| word == guard::SUBCOMMAND) {
        return ExitCode::from(u8::try_from(guard::guard_main(std::env::args().skip(2))).unwrap_or(2));
    }
    refit::cli::run(std::env::args_os())
}
