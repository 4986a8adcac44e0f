//! What somebody new does, in order, and what they see.

use std::fs;
use std::path::Path;

use insta::{assert_snapshot, with_settings};

use super::refit::{refit, steady};

/// The program with its words in `steady` form, and columns whose width depends on durations closed up.
fn filters() -> Vec<(&'static str, &'static str)> {
    let mut filters =
        vec![(r"(?m)^… .* runs\n", ""), (r"(?m)^[0-9a-f]{8} ", "[run] "), (r"(?m) [0-9a-f]{8}$", " [run]")];
    filters.extend(steady());
    filters.extend([(r"TOOK +", "TOOK  "), (r"\[took\] +", "[took]  "), (r"VERSION +", "VERSION  ")]);
    filters
}

fn act(dir: &Path) {
    let path = dir.join("workflows/retrain.yaml");
    let text = fs::read_to_string(&path).expect("the workflow");
    assert!(text.contains("mode: advise"));
    fs::write(path, text.replace("mode: advise", "mode: act   ")).expect("written");
}

#[test]
fn from_nothing_to_a_served_version() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    let wrote = refit(dir, &["init"]);
    assert!(wrote.starts_with("exit code: 0\n"), "{wrote}");
    let fine = refit(dir, &["validate"]);
    assert!(fine.starts_with("exit code: 0\n"), "{fine}");
    let plan = refit(dir, &["plan", "retrain"]);
    assert!(plan.starts_with("exit code: 0\n"), "{plan}");

    with_settings!({filters => filters()}, {
        assert_snapshot!(refit(dir, &["trigger", "retrain", "--follow", "--yes"]), @r"
            exit code: 0
            --- stdout
            run [run] succeeded: all steps are done
            --- stderr
            run [run] of retrain ([id])
            ✓ data [took]  500 rows, 11.9 KiB
            ✓ train [took]  mae 2.581, r2 0.93933, 1 file, 219 B
            ✓ gate [took]  pass: mae is 2.581; at most 6 allowed · r2 is 0.93933; at least 0.8 allowed
            ✓ publish [took]  [version]
            ✓ canary [took]  not done: mode is not act
            ✓ watch [took]  there is no canary to watch
            ✓ compare [took]  inconclusive: mode is not act: the version had no traffic
            ✓ promote [took]  mode is not act: [version] was not promoted on production
            hint: nothing that serves was changed; write `mode: act` into workflows/retrain.yaml when you trust it
            ");
        assert!(!dir.join("release.json").exists(), "advise touches nothing");
        assert_snapshot!(refit(dir, &["run", "ls"]), @r"
            exit code: 0
            --- stdout
            RUN       WORKFLOW  STATUS     STARTED               TOOK  BY       WHY
            [run]  retrain   succeeded  [time] [took]  trigger  all steps are done
            ");
        assert_snapshot!(refit(dir, &["model", "ls"]), @r"
            exit code: 0
            --- stdout
            MODEL          VERSION  SERVES  METRICS                SIZE   MADE                  RUN
            delivery-time  [version]  -       mae 2.581, r2 0.93933  219 B  [time]  [run]
            ");
        assert_snapshot!(refit(dir, &["status"]), @r"
            exit code: 0
            --- stdout
            nothing is served yet; `refit adopt` takes what serves today, a promoted run makes the first

            no server is running: nothing is started, watched or sent until `refit serve` runs
            ");

        let last = refit(dir, &["run", "show"]);
        assert!(last.starts_with("exit code: 0\n"), "{last}");

        act(dir);
        assert_snapshot!(refit(dir, &["trigger", "retrain", "--follow", "--yes"]), @r"
            exit code: 0
            --- stdout
            run [run] promoted: first version
            --- stderr
            run [run] of retrain ([id])
            ✓ data [took]  500 rows, 11.9 KiB
            ✓ train [took]  mae 2.581, r2 0.93933, 1 file, 219 B
            ✓ gate [took]  pass: mae is 2.581; at most 6 allowed · r2 is 0.93933; at least 0.8 allowed
            ✓ publish [took]  [version]
            ✓ canary [took]  [version] is the first version: no canary
            ✓ watch [took]  there is no canary to watch
            ✓ compare [took]  pass: first version: there is no champion to compare with
            ✓ promote [took]  [version] serves everybody: first version
            ");
        assert!(dir.join("release.json").exists());
        assert_snapshot!(refit(dir, &["status"]), @r"
            exit code: 0
            --- stdout
            delivery-time on production
              champion  [version], since [time]

            no server is running: nothing is started, watched or sent until `refit serve` runs
            ");
    });
}
