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

/// The first look of a team on Vercel, before anything is set.
#[test]
fn what_the_template_for_vercel_lacks_is_said_all_at_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let wrote = refit(dir.path(), &["init", "--template", "raceday-vercel"]);
    assert!(wrote.starts_with("exit code: 0\n"), "{wrote}");
    with_settings!({filters => [(r"Python [\d.]+", "Python [version]")]}, {
        assert_snapshot!(refit(dir.path(), &["doctor"]), @r"
        exit code: 2
        --- stdout
        CHECK                        FOUND
        settings            ok       refit.toml
        workflows           ok       retrain
        database            problem  cannot find the database: secret `REFIT_DATABASE_URL` is not set: put it into the environment, or name a file for it under [secrets] in refit.toml
        stores.models       problem  secret `BLOB_READ_WRITE_TOKEN` is not set: put it into the environment, or name a file for it under [secrets] in refit.toml
        targets.production  problem  secret `VERCEL_TOKEN` is not set: put it into the environment, or name a file for it under [secrets] in refit.toml
        notifiers.mail      problem  secret `RESEND_API_KEY` is not set: put it into the environment, or name a file for it under [secrets] in refit.toml
        notifiers.team      problem  secret `SLACK_BOT_TOKEN` is not set: put it into the environment, or name a file for it under [secrets] in refit.toml
        secrets             problem  not set: APP_DATABASE_URL
        python3             ok       Python [version]

        hint: database: or name the database with --db
        hint: secrets: put them into the environment, or name files for them under [secrets] in refit.toml
        ");
    });
    assert_snapshot!(refit(dir.path(), &["notify", "test", "team"]), @r"
        exit code: 2
        --- stderr
        error: [notifiers.team]: secret `SLACK_BOT_TOKEN` is not set: put it into the environment, or name a file for it under [secrets] in refit.toml
        hint: `refit doctor` checks the settings
        ");
    let settings = fs::read_to_string(dir.path().join("refit.toml")).expect("the settings");
    let slip = settings.replace("channel = \"#models\"", "chanel = \"#models\"");
    fs::write(dir.path().join("refit.toml"), slip).expect("written");
    let mistake = refit(dir.path(), &["notify", "test", "team"]);
    assert!(
        mistake.ends_with("hint: mend [notifiers.team] in refit.toml; `refit doctor` checks it\n"),
        "{mistake}"
    );
    fs::write(dir.path().join("refit.toml"), settings).expect("written");
    assert_snapshot!(refit(dir.path(), &["notify", "test", "tema"]), @r"
        exit code: 2
        --- stderr
        error: refit.toml has no notifier `tema`
        hint: did you mean `team`?
        ");
    let plan = refit(dir.path(), &["plan", "retrain"]);
    let compares =
        "error rate below 5 % or worse by less than 50 %, share of slow requests below 15 % or worse";
    assert!(plan.contains(compares), "{plan}");
}

#[test]
fn a_place_to_adopt_that_is_no_stores_is_explained() {
    let dir = tempfile::tempdir().expect("a directory");
    refit(dir.path(), &["init"]);
    let adopt = |place: &str| refit(dir.path(), &["adopt", place, "--champion", "2026-11-15"]);
    assert_snapshot!(adopt("/srv/models/race-times"), @r"
        exit code: 2
        --- stderr
        error: `/srv/models/race-times` does not begin with a store of refit.toml
        hint: write STORE/PATH, the path below the store's own prefix, such as `models/MODEL`; there are: models
        ");
    assert_snapshot!(adopt("model/race-times"), @r"
        exit code: 2
        --- stderr
        error: `model/race-times` does not begin with a store of refit.toml
        hint: did you mean `models`?
        ");
}

#[test]
fn what_refit_published_is_not_adopted_as_a_version_of_before() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path();
    refit(at, &["init"]);
    let ran = refit(at, &["trigger", "retrain", "--follow", "--yes"]);
    assert!(ran.starts_with("exit code: 0\n"), "{ran}");
    // Versions of before, a model of another project, and half an upload of one: all in the place where refit publishes.
    for file in ["v1/model.json", "v2/model.json", "arrivals/7/_claim.json", "other/1/manifest.json"] {
        let file = at.join("models").join(file);
        fs::create_dir_all(file.parent().expect("a directory")).expect("made");
        fs::write(file, "{}").expect("written");
    }
    assert_snapshot!(refit(at, &["adopt", "models", "--champion", "v2"]), @r"
        exit code: 0
        --- stdout
        adopted 2 versions of delivery-time as they lie in models; nothing was moved or written there
          v2  1 file, 2 B, the champion on production
          v1  1 file, 2 B
        --- stderr
        arrivals is where versions of a model are, and no version: left out
        delivery-time is where versions of a model are, and no version: left out
        other is where versions of a model are, and no version: left out
        reading v1: 1 file
        reading v2: 1 file
        ");
}

#[test]
fn a_database_that_was_not_there_is_said_to_be_new() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    let wrote = refit(dir, &["init"]);
    assert!(wrote.starts_with("exit code: 0\n"), "{wrote}");
    let first = refit(dir, &["status", "--db", "typo.db"]);
    assert!(first.contains("note: there was no database at typo.db; an empty one was made"), "{first}");
    let second = refit(dir, &["status", "--db", "typo.db"]);
    assert!(!second.contains("note: there was no database"), "{second}");
}

#[test]
fn who_is_to_approve_is_shown_what_the_workflow_says() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path();
    refit(at, &["init"]);
    let asks = "name: asks\nmodel: m\nsteps:\n  - { id: ask, uses: approve, with: { message: 'Is the fair in ${{ model }} over?', at_most: 6h } }\n";
    fs::write(at.join("workflows/asks.yaml"), asks).expect("written");
    let waits = ": Is the fair in m over?";
    let followed = refit(at, &["trigger", "asks", "--follow"]);
    assert!(followed.contains(waits), "{followed}");
    let shown = refit(at, &["run", "show", "last"]);
    assert!(shown.contains(waits), "{shown}");
}

#[test]
fn what_came_of_an_approval_stands_at_its_step() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path();
    refit(at, &["init"]);
    for (name, at_most) in [("rejected", "6h"), ("unanswered", "1ms")] {
        let asks = format!(
            "name: {name}\nmodel: {name}\nsteps: [{{ id: ask, uses: approve, with: {{ at_most: {at_most} }} }}]\n"
        );
        fs::write(at.join(format!("workflows/{name}.yaml")), asks).expect("written");
    }
    refit(at, &["trigger", "rejected", "--follow"]);
    refit(at, &["run", "reject", "last", "--reason", "too slow"]);
    let rejected = refit(at, &["run", "resume", "last", "--follow"]);
    assert!(rejected.contains("✗ ask") && rejected.contains("  rejected by "), "{rejected}");
    let shown = refit(at, &["run", "show", "last"]);
    assert!(shown.contains("✗ ask") && shown.contains(": too slow\n\nnext"), "{shown}");
    let receipt = refit(at, &["receipt", "last"]);
    assert!(receipt.contains(" UTC: too slow") && !receipt.contains("What was checked"), "{receipt}");

    refit(at, &["trigger", "unanswered", "--follow"]);
    let unanswered = refit(at, &["run", "resume", "last", "--follow"]);
    assert!(unanswered.contains("exit code: 2") || unanswered.contains("nobody"), "{unanswered}");
    let shown = refit(at, &["run", "show", "last"]);
    assert!(shown.contains("✗ ask") && shown.contains("  nobody answered in time"), "{shown}");
}
