//! The workflow files of a project, read and checked.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::string::FromUtf8Error;
use std::sync::Arc;

use crate::domain::run::Definition;
use crate::domain::workflow::diagnostic::{Diagnostic, Diagnostics};
use crate::domain::workflow::{Position, SAVE_AS_UTF8, Workflow, not_utf8, parse_file, referenced_files};

/// One workflow file that can be run.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The file and all it refers to.
    pub definition: Definition,
    /// What it says.
    pub workflow: Arc<Workflow>,
    /// What is odd about it.
    pub warnings: Vec<Diagnostic>,
}

/// A workflow file that cannot be run.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FileError {
    /// It has mistakes.
    #[error("{}", diagnostics.render(path, source_text))]
    Mistakes {
        /// The path, as messages show it.
        path: String,
        /// The text.
        source_text: String,
        /// The mistakes.
        diagnostics: Diagnostics,
    },
    /// It, or a file it refers to, cannot be read.
    #[error("cannot read {path}: {cause}")]
    Unreadable {
        /// The path.
        path: String,
        /// Why.
        cause: String,
    },
    /// Two files give one name.
    #[error("workflow `{name}` is in {first} and in {second}: names must differ")]
    TwoOfOneName {
        /// The name.
        name: String,
        /// One file.
        first: String,
        /// The other.
        second: String,
    },
}

impl FileError {
    /// The file of a workflow called `name`, as far as a file with mistakes says so.
    pub fn file_of(&self, name: &str) -> Option<&str> {
        let (path, text) = match self {
            Self::Mistakes { path, source_text, .. } => (path, source_text.as_str()),
            Self::Unreadable { path, .. } => (path, ""),
            Self::TwoOfOneName { second, .. } => (second, ""),
        };
        let named = |line: &str| {
            let value = line.strip_prefix("name:")?.split(" #").next()?;
            (value.trim().trim_matches(['\'', '"']) == name).then_some(())
        };
        let by_file = Path::new(path).file_stem().is_some_and(|stem| stem == name);
        (by_file || text.lines().any(|line| named(line).is_some())).then_some(path)
    }
}

/// All workflow files of a project.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    workflows: Vec<Loaded>,
    /// Files that cannot be run.
    pub errors: Vec<FileError>,
}

impl Catalog {
    /// Reads `workflows/*.yaml` and `*.yml` of `project`, in the order of their names.
    pub fn load(project: &Path) -> Self {
        let mut catalog = Self::default();
        for path in workflow_files(project) {
            match load_file(project, &path) {
                Ok(loaded) => catalog.add(loaded),
                Err(error) => catalog.errors.push(error),
            }
        }
        catalog
    }

    fn add(&mut self, loaded: Loaded) {
        match self.get(loaded.workflow.name.as_str()) {
            Some(first) => {
                let error = FileError::TwoOfOneName {
                    name: loaded.workflow.name.to_string(),
                    first: first.definition.path.clone(),
                    second: loaded.definition.path.clone(),
                };
                self.errors.push(error);
            }
            None => self.workflows.push(loaded),
        }
    }

    /// Those that can be run.
    pub fn workflows(&self) -> &[Loaded] {
        &self.workflows
    }

    /// The one called `name`.
    pub fn get(&self, name: &str) -> Option<&Loaded> {
        self.workflows.iter().find(|loaded| loaded.workflow.name.as_str() == name)
    }
}

/// The workflow files of `project`, in the order of their names.
pub fn workflow_files(project: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(project.join("workflows")) else { return vec![] };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml"))
        .collect();
    files.sort();
    files
}

/// Reads and checks one workflow file; what it refers to is relative to `project`.
pub fn load_file(project: &Path, path: &Path) -> Result<Loaded, FileError> {
    let shown = path.strip_prefix(project).unwrap_or(path).display().to_string();
    let unreadable = |path: &str, error: std::io::Error| FileError::Unreadable {
        path: path.to_owned(),
        cause: error.to_string(),
    };
    let bytes = std::fs::read(path).map_err(|error| unreadable(&shown, error))?;
    let source = String::from_utf8(bytes).map_err(|error| bad_text(&shown, error))?;
    let mut files = BTreeMap::new();
    for file in referenced_files(&source) {
        let bytes = std::fs::read(project.join(&file)).map_err(|error| unreadable(&file, error))?;
        let text = String::from_utf8(bytes)
            .map_err(|error| FileError::Unreadable { path: file.clone(), cause: not_utf8(&error) })?;
        files.insert(file, text);
    }
    match parse_file(&shown, &source, &files) {
        Ok((workflow, warnings)) => {
            let definition = Definition { path: shown, source, files };
            Ok(Loaded { definition, workflow: Arc::new(workflow), warnings })
        }
        Err(diagnostics) => Err(FileError::Mistakes { path: shown, source_text: source, diagnostics }),
    }
}

/// The first byte that is no UTF-8, shown where it stands.
fn bad_text(path: &str, error: FromUtf8Error) -> FileError {
    let at = Position::of_not_utf8(&error);
    let diagnostic = Diagnostic::error(at, "not UTF-8").hint(SAVE_AS_UTF8);
    FileError::Mistakes {
        path: path.to_owned(),
        source_text: String::from_utf8_lossy(error.as_bytes()).into_owned(),
        diagnostics: Diagnostics { path: path.to_owned(), items: vec![diagnostic] },
    }
}
