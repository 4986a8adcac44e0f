//! What serves is to serve: after a move, after somebody changed the host, and when nothing is left to do.

use std::fs;
use std::path::Path;

use insta::{assert_snapshot, with_settings};

use super::refit::{refit, steady};
use super::versions::project;

fn json(text: &str) -> serde_json::Value {
    let json = text.split_once("--- stdout\n").expect("a result").1;
    serde_json::from_str(json.split("--- stderr").next().expect("a part")).expect("JSON")
}

fn document(dir: &Path) -> serde_json::Value {
    serde_json::from_str(&fs::read_to_string(dir.join("release.json")).expect("there")).expect("JSON")
}

#[test]
fn a_project_that_was_moved_is_served_from_where_it_is_once_somebody_says_so() {
    let (was, parent) = (project(1), tempfile::tempdir().expect("a directory"));
    let is = parent.path().join("moved");
    let old = was.path().canonicalize().expect("there").join("models/delivery-time/1").display().to_string();
    fs::rename(was.path(), &is).expect("moved");
    let new = is.canonicalize().expect("there").join("models/delivery-time/1").display().to_string();
    let doctor = refit(&is, &["doctor"]);
    assert!(doctor.starts_with("exit code: 2\n"), "{doctor}");
    for part in [
        format!("1 is served from {old}, and stores.models has it at {new}"),
        "`refit promote 1 --model delivery-time --target production` sends apps to where it is now"
            .to_owned(),
    ] {
        assert!(doctor.contains(&part), "no {part:?} in\n{doctor}");
    }
    assert!(refit(&is, &["model", "verify", "1"]).starts_with("exit code: 0\n"));
    let shown = refit(&is, &["model", "show", "1"]);
    assert!(shown.contains(&format!("\nfiles at {new}\n")), "{shown}");
    assert_eq!(document(&is)["champion"]["base_url"], old.as_str(), "nothing is rewritten by itself");

    let again = ["promote", "1", "--model", "delivery-time", "--target", "production", "--yes"];
    with_settings!({filters => vec![(r"/\S*/models/", "[dir]/models/")]}, {
        assert_snapshot!(refit(&is, &again), @r"
            exit code: 0
            --- stdout
            1 serves everybody of delivery-time on production (generation 2)
            --- stderr
            1 serves everybody of delivery-time on production already; its release is written anew only if its files moved or somebody changed the host
            apps find it at [dir]/models/delivery-time/1 from now on
            nobody is told of it: everybody gets the version that was decided before
            ");
    });
    assert_eq!(document(&is)["champion"]["base_url"], new.as_str());
    let doctor = refit(&is, &["doctor"]);
    assert!(doctor.starts_with("exit code: 0\n"), "{doctor}");
}

#[test]
fn a_rollback_and_a_promotion_of_what_serves_say_so_and_change_nothing() {
    let dir = project(1);
    let at = dir.path();
    let said = |command: &str| refit(at, &[command, "1", "--yes"]);
    assert_snapshot!(said("promote"), @r"
        exit code: 0
        --- stdout
        1 serves everybody of delivery-time on production already (generation 1)
        --- stderr
        1 serves everybody of delivery-time on production already; its release is written anew only if its files moved or somebody changed the host
        ");
    assert_eq!(said("rollback"), said("promote"));
    for command in ["rollback", "promote"] {
        let value = json(&refit(at, &[command, "1", "--yes", "-q", "--json"]));
        assert_eq!((&value["changed"], &value["told"]), (&false.into(), &serde_json::Value::Null), "{value}");
        assert_eq!(value["release"]["generation"], 1);
    }
    assert_snapshot!(refit(at, &["rollback", "1", "--bad", "--yes"]), @r"
        exit code: 0
        --- stdout
        1 serves everybody of delivery-time on production already (generation 1)
        --- stderr
        1 serves everybody of delivery-time on production already; its release is written anew only if its files moved or somebody changed the host
        no version is marked bad: 1 takes the place of none
        ");
    with_settings!({filters => steady()}, {
        assert_snapshot!(refit(at, &["model", "history"]), @r"
            exit code: 0
            --- stdout
            WHEN                  MODEL          WHAT                                WHO           WHY
            [time]  delivery-time  production serves 1 (generation 1)  run [run]  first version
            [time]  delivery-time  1 sealed                            run [run]
            ");
    });
}

#[test]
fn what_somebody_changed_at_the_host_is_set_back_by_who_says_what_serves() {
    let dir = project(1);
    let at = dir.path();
    for (nth, command) in [(2, "promote"), (3, "rollback")] {
        let path = at.join("release.json");
        let text =
            fs::read_to_string(&path).expect("there").replace("\"version\": \"1\"", "\"version\": \"0\"");
        fs::write(&path, text).expect("changed by hand");
        let value = json(&refit(at, &[command, "1", "--yes", "-q", "--json"]));
        assert_eq!((&value["changed"], &value["told"]), (&true.into(), &serde_json::json!([])), "{value}");
        let shown = document(at);
        assert_eq!((&shown["champion"]["version"], &shown["generation"]), (&"1".into(), &nth.into()));
    }
}
