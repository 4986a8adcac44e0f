//! Leaving refit, and what one is left with.

use std::path::Path;

use insta::{assert_snapshot, with_settings};

use super::refit::{refit, steady};

fn write(dir: &Path, name: &str, text: &str) {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
    std::fs::write(path, text).expect("written");
}

fn project() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    refit(dir.path(), &["init"]);
    let path = dir.path().join("workflows/retrain.yaml");
    let text = std::fs::read_to_string(&path).expect("the workflow").replace("mode: advise", "mode: act");
    std::fs::write(path, text).expect("written");
    write(dir.path(), "models/delivery-time/v1/model.json", "{}");
    write(dir.path(), "models/delivery-time/v2/model.json", "{}");
    refit(dir.path(), &["adopt", "models/delivery-time", "--champion", "v1"]);
    dir
}

fn document(dir: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(dir.join("release.json")).expect("a document"))
        .expect("JSON")
}

#[test]
fn what_serves_goes_on_serving_and_the_rest_is_said() {
    let dir = project();
    let dir = dir.path();
    let before = document(dir);
    assert!(refit(dir, &["eject"]).starts_with("exit code: 2\n"), "nobody can be asked");
    with_settings!({filters => steady()}, {
        assert_snapshot!(refit(dir, &["eject", "--yes"]), @r"
            exit code: 0
            --- stdout
            delivery-time on production
              v1 serves everybody, from [dir]/models/delivery-time/v1
              the last release document has generation 1

            instead of workflow retrain
              a cron job at 0 2 * * 0 UTC
              $ python3 train.py
              then somebody who looks at its metrics, uploads the files under a new name, and changes `champion` in the release document

            what stays
              versions, where they are; each has a manifest.json with the SHA-256 of its files
              the release document: apps go on reading it, and no canary is in it
              reports of apps: nobody reads them; take `Reports` out when it suits you

            then
              drop the database (sqlite [dir]/.refit/refit.db), and revoke the secrets that refit had
            --- stderr
            a last release document is written for every release; what serves goes on serving
            ");
    });
    assert_eq!(document(dir), before);
    // Twice is once.
    assert!(refit(dir, &["eject", "--yes"]).starts_with("exit code: 0\n"));
}

#[test]
fn a_run_at_work_keeps_one_from_leaving() {
    let dir = project();
    let dir = dir.path();
    // No server runs: it is queued.
    let started = refit(dir, &["trigger", "retrain", "--json"]);
    assert!(started.starts_with("exit code: 0\n"), "{started}");
    let busy = refit(dir, &["eject", "--yes"]);
    assert!(busy.starts_with("exit code: 7\n") && busy.contains("refit run cancel"), "{busy}");
}
