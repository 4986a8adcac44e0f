//! `refit demo`.

use super::Exit;
use super::args::Demo;
use super::error::CliError;
use super::output::Output;

/// Plays the demo.
pub async fn run(args: &Demo, out: Output) -> Result<Exit, CliError> {
    // PLUG demo: `crate::demo::…` in `args.directory`, or `refit-demo` here.
    let _ = (args, out);
    Err(CliError::usage("this build has no demo"))
}
