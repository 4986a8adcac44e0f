//! What simulations left, cleared by `refit gc`.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, SystemTime};

use insta::assert_snapshot;

use super::refit::refit;

const DAY: Duration = Duration::from_secs(86_400);

/// A file that was written so many days ago.
fn file(dir: &Path, name: &str, days: u32) -> File {
    let path = dir.join(".refit/simulate").join(name);
    fs::create_dir_all(path.parent().expect("a parent")).expect("made");
    let file = File::create(path).expect("made");
    #[expect(clippy::disallowed_methods, reason = "ages of files are told by the machine's clock")]
    let now = SystemTime::now();
    file.set_modified(now - days * DAY).expect("set");
    file
}

#[test]
fn gc_clears_what_no_simulation_used_for_long_and_nothing_of_one_under_way() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path();
    fs::write(at.join("refit.toml"), "[retention]\nrun_files = \"3d\"\n").expect("written");
    for (name, days) in [
        ("past/lock", 4),
        ("past/trained/5e884898da28/finished.json", 5),
        ("past/weeks/20130226T000000/data/data.csv", 4),
        ("used/lock", 0),
        ("used/trained/2c26b46b68ff/finished.json", 4),
        ("used/trained/fcde2b2edba5/finished.json", 2),
        ("used/trained/486ea46224d1/finished.draft", 0),
        ("used/weeks/20130226T000000/data/data.csv", 4),
        ("at-work/trained/9834876dcfb0/finished.json", 9),
    ] {
        file(at, name, days);
    }
    let at_work = file(at, "at-work/lock", 9);
    at_work.try_lock().expect("free");
    assert_snapshot!(refit(at, &["gc", "--dry-run"]), @r"
    exit code: 0
    --- stdout
    would be deleted: 0 B
    WHAT                                   SIZE  WHY
    simulation of past: trained            0 B   no simulation used it for 3d
    simulation of past: weeks              0 B   no simulation used it for 3d
    simulation of used: training 2c26b46b  0 B   no simulation used it for 3d
    2 folders kept: of trainings that a simulation used less than 3d ago
    1 folder kept: of simulations under way
    ");
    assert!(at.join(".refit/simulate/past/weeks").exists());
    assert!(refit(at, &["gc", "--yes", "-q"]).contains("deleted 3 things"));
    let left = |dir: &str| {
        let entries = fs::read_dir(at.join(".refit/simulate").join(dir)).expect("there");
        let mut left: Vec<_> =
            entries.map(|entry| entry.expect("readable").file_name().into_string().expect("text")).collect();
        left.sort();
        left
    };
    assert_eq!(left("past"), ["lock"]);
    assert_eq!(left("used"), ["lock", "trained", "weeks"]);
    assert_eq!(left("used/trained"), ["486ea46224d1", "fcde2b2edba5"]);
    assert_eq!(left("at-work/trained"), ["9834876dcfb0"]);
}
