//! `refit init`: a first project that validates, runs and explains itself.

use std::io::Write;
use std::path::Path;

use serde_json::json;

use super::Exit;
use super::args::Init;
use super::error::CliError;
use super::output::Output;

/// A kind of project: its files, by path.
struct Template {
    name: &'static str,
    files: &'static [(&'static str, &'static str)],
    /// What git should leave alone; added to a `.gitignore` that is there.
    ignored: &'static str,
    /// What to do then.
    next: &'static str,
}

const TEMPLATES: &[Template] = &[
    Template {
        name: "local",
        files: &[
            ("refit.toml", include_str!("../../templates/init/local/refit.toml")),
            ("workflows/retrain.yaml", include_str!("../../templates/init/local/workflows/retrain.yaml")),
            ("train.py", include_str!("../../templates/init/local/train.py")),
            ("data/deliveries.csv", include_str!("../../templates/init/local/data/deliveries.csv")),
        ],
        ignored: include_str!("../../templates/init/local/gitignore"),
        next: "  refit validate                   is everything right?
  refit plan retrain               what would it do?
  refit trigger retrain --follow   do it
  refit serve                      do it every Sunday, and watch what serves",
    },
    Template {
        name: "raceday-vercel",
        files: &[
            ("refit.toml", include_str!("../../templates/init/raceday-vercel/refit.toml")),
            ("workflows/retrain.yaml", include_str!("../../workflows/raceday-vercel.yaml")),
            ("sql/results.sql", include_str!("../../examples/raceday/sql/results.sql")),
            ("apps/web/src/lib/refit.ts", include_str!("../../examples/clients/typescript/refit.ts")),
        ],
        ignored: ".refit/\n.secrets/\n",
        next: "  in refit.toml, workflows/retrain.yaml and sql/results.sql: your names, addresses and columns
  refit doctor                     are the services there, and may refit use them?
  refit adopt models --champion VERSION
                                   take what serves today, at models/VERSION/, as champion
  refit trigger retrain --follow   a first run; it changes nothing that is served
  refit serve                      do it every Sunday, and watch what serves",
    },
];

/// Writes the files of a template here.
pub fn run(args: &Init, out: Output) -> Result<Exit, CliError> {
    let template = TEMPLATES.iter().find(|template| template.name == args.template).ok_or_else(|| {
        let known: Vec<&str> = TEMPLATES.iter().map(|template| template.name).collect();
        CliError::usage(format!("there is no template `{}`", args.template))
            .hint(format!("there are: {}", known.join(", ")))
    })?;
    // One that says the same already, of an earlier try or of the team's own, stays.
    let (mut taken, mut missing) = (vec![], vec![]);
    for (path, text) in template.files {
        match Path::new(path).exists() {
            false => missing.push((*path, *text)),
            true if std::fs::read_to_string(path).is_ok_and(|there| there == *text) => {}
            true => taken.push(*path),
        }
    }
    if !taken.is_empty() {
        let verb = match taken.len() {
            1 => "is here already, and says",
            _ => "are here already, and say",
        };
        return Err(CliError::usage(format!(
            "{} {verb} something else; nothing was written",
            taken.join(", ")
        ))
        .hint("move it away, or start in another directory, `refit -C DIR init`, and copy from there"));
    }
    let mut written: Vec<&str> = vec![];
    for (path, text) in missing {
        write(Path::new(path), text).map_err(|error| {
            CliError::usage(format!("cannot write {path}: {error}")).hint("may you write to this directory?")
        })?;
        written.push(path);
    }
    let ignored = ignore(template.ignored)
        .map_err(|error| CliError::usage(format!("cannot write .gitignore: {error}")))?;
    written.extend(ignored.then_some(".gitignore"));
    out.result(&json!({"template": template.name, "written": written}), || {
        let files: String = written.iter().map(|path| format!("\n  {path}")).collect();
        let wrote = if written.is_empty() { "everything is here already" } else { "wrote" };
        format!("{wrote}{files}\n\nnext\n{}", template.next)
    });
    Ok(Exit::Ok)
}

fn write(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    // Never over a file that came in between.
    std::fs::File::create_new(path)?.write_all(text.as_bytes())
}

/// Adds what is missing to `.gitignore`; says whether anything was.
fn ignore(wanted: &str) -> std::io::Result<bool> {
    let path = Path::new(".gitignore");
    let mut text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    let missing: Vec<&str> =
        wanted.lines().filter(|line| !text.lines().any(|known| known.trim() == *line)).collect();
    if missing.is_empty() {
        return Ok(false);
    }
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.extend(missing.iter().flat_map(|line| [line, "\n"]));
    std::fs::write(path, text)?;
    Ok(true)
}
