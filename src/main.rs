//! The `refit` program.

use std::process::ExitCode;

use refit::trainers::guard;

fn main() -> ExitCode {
    // First of all: a guard shares nothing with the rest, not even its arguments.
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some(guard::SUBCOMMAND) {
        return ExitCode::from(u8::try_from(guard::guard_main(args)).unwrap_or(2));
    }
    refit::cli::run(std::env::args_os())
}
