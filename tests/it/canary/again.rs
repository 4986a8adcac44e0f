//! What was kept of a canary, decided over once more by people with a shell.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use super::*;

fn asked(at: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_refit"));
    command.current_dir(at).args(words).env("REFIT_DATABASE_URL", at.join("refit.db"));
    command.output().expect("runs")
}

fn refit(at: &Path, words: &[&str]) -> Output {
    let output = asked(at, words);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

impl World {
    /// `refit canary minutes RUN | refit canary replay -`: the last line, and what is told.
    fn again(&self, limits: &[&str]) -> (Value, String) {
        let at = self.dir.path();
        std::fs::write(at.join("refit.toml"), "").expect("written");
        let minutes = refit(at, &["canary", "minutes", &self.run.to_string()]).stdout;
        std::fs::write(at.join("past"), minutes).expect("written");
        let output = refit(at, &[&["canary", "replay", "past"], limits].concat());
        let text = String::from_utf8_lossy(&output.stdout);
        let last = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
        (last, String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Two stages, a rule on errors and one on blocks of truth whose scale comes from before the canary.
#[tokio::test]
async fn a_recorded_canary_is_rolled_back_again_at_the_same_look() {
    let of = |metric, ratio| CompareRule {
        margin: Margin::Ratio(ratio),
        acceptable_below: Some(1e-6),
        ..CompareRule::of(metric)
    };
    let rules = Compare {
        rules: vec![of(OnlineMetric::ErrorRate, 1.5), of(OnlineMetric::AbsError, 1.1)],
        ..Compare::without_rules()
    };
    let world = world_with(&[(1000, 3), (2500, 600)], rules, true).await;
    let mut looks = 0;
    while world.canary().await.state == CanaryState::Watching {
        looks += 1;
        assert!(looks < 120, "{}", world.canary().await.reason);
        world.scored(&format!("race-{looks}"), 25.0, Some(60.0)).await;
        world.minute((10, u32::from(looks % 4 == 0)), (90, 1)).await;
    }
    let canary = world.canary().await;
    assert_eq!((canary.verdict, canary.stage), (Verdict::Fail, 1), "{}", canary.reason);
    assert!(canary.reason.starts_with("canary mean error"), "{}", canary.reason);
    let (last, told) = world.again(&[]);
    assert_eq!(
        (&last["same"], &last["verdict"], &last["reason"]),
        (&true.into(), &"fail".into(), &canary.reason.into())
    );
    assert_eq!(last["decided_at"], serde_json::json!(world.clock.now()), "{last:#}");
    assert!(told.ends_with("the same was concluded when it was out\n"), "{told}");
    let (last, told) = world.again(&["--alpha", "0.000000001"]);
    assert_eq!((&last["same"], &last["decision"]), (&false.into(), &"inconclusive".into()), "{last:#}");
    assert!(told.contains("when it was out: roll back: canary mean error"), "{told}");

    // A limit that would change nothing is no limit.
    let at = world.dir.path();
    let past = std::fs::read_to_string(at.join("past")).expect("readable");
    let (first, rest) = past.split_once('\n').expect("lines");
    let mut canary: Value = serde_json::from_str(first).expect("JSON");
    canary["recorded"]["canary"]["rules"]["rules"].as_array_mut().expect("a list").remove(0);
    std::fs::write(at.join("past"), format!("{canary}\n{rest}")).expect("written");
    let refused = asked(at, &["canary", "replay", "past", "--margin", "2"]);
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && told.contains("had no rule on the error rate"), "{told}");
}
