use std::collections::BTreeMap;

use serde_json::json;

use super::*;
use crate::domain::id::Epoch;
use crate::domain::run::{FailureKind, StepFailure, Undo};
use crate::domain::workflow::parse;

const FLOW: &str = "
name: flow
model: m
steps:
  - { id: a, run: 'true' }
  - { id: left, run: 'true', needs: [a] }
  - { id: right, run: 'true', needs: [a] }
  - { id: join, run: 'true', needs: [left, right] }
on_failure:
  - { id: sorry, run: 'true' }
";

struct Case {
    workflow: Workflow,
    attempts: Vec<Attempt>,
    intents: Vec<Intent>,
    ending: Option<(Outcome, &'static str)>,
}

fn at(seconds: i64) -> Timestamp {
    chrono::DateTime::from_timestamp(seconds, 0).expect("in range")
}

fn id(step: &str) -> StepId {
    step.parse().expect("a step id")
}

fn case(source: &str, attempts: &[(&str, u32, AttemptState)]) -> Case {
    let (workflow, _) = parse("flow.yaml", source, &BTreeMap::new())
        .map_err(|mistakes| mistakes.render("flow.yaml", source))
        .expect("a workflow");
    let attempts = attempts
        .iter()
        .map(|(step, number, state)| Attempt {
            state: *state,
            ..Attempt::started(id(step), *number, Epoch(1), at(0))
        })
        .collect();
    Case { workflow, attempts, intents: vec![], ending: None }
}

impl Case {
    fn next(&self) -> Next {
        let scope = Scope::new().with("steps", json!({})).with("model", json!("m"));
        let view = View {
            workflow: &self.workflow,
            attempts: &self.attempts,
            intents: &self.intents,
            ending: self.ending,
            scope: &scope,
        };
        next(view, at(100))
    }

    fn failed(mut self, step: &str, retry_at: Option<i64>) -> Self {
        let attempt =
            self.attempts.iter_mut().rev().find(|attempt| attempt.step == id(step)).expect("an attempt");
        attempt.state = AttemptState::Failed;
        attempt.wake_at = retry_at.map(at);
        attempt.error =
            Some(StepFailure { kind: FailureKind::Permanent, message: "no".to_owned(), hint: None });
        self
    }

    fn ending(mut self, outcome: Outcome) -> Self {
        self.ending = Some((outcome, "because"));
        self
    }

    fn intent(mut self, key: &str, state: IntentState) -> Self {
        self.intents.push(Intent {
            step: id("a"),
            key: key.to_owned(),
            detail: json!(null),
            undo: Some(Undo::WithdrawCanary {
                model: "m".parse().expect("a name"),
                target: "t".parse().expect("a name"),
                version: "v".parse().expect("a name"),
                generation: crate::domain::id::Generation(1),
            }),
            result: None,
            state,
        });
        self
    }
}

fn go(start: &[(&str, u32)]) -> Next {
    go_until(start, None)
}

fn go_until(start: &[(&str, u32)], until: Option<i64>) -> Next {
    let start = start.iter().map(|(step, attempt)| (id(step), *attempt)).collect();
    Next::Go { start, skip: vec![], until: until.map(at) }
}

use AttemptState::{Failed, Lost, Skipped, Sleeping, Started, Succeeded};

#[test]
fn steps_run_in_order_and_branches_side_by_side() {
    assert_eq!(case(FLOW, &[]).next(), go(&[("a", 1)]));
    assert_eq!(case(FLOW, &[("a", 1, Started)]).next(), go(&[]));
    assert_eq!(case(FLOW, &[("a", 1, Succeeded)]).next(), go(&[("left", 1), ("right", 1)]));
    let half = case(FLOW, &[("a", 1, Succeeded), ("left", 1, Succeeded), ("right", 1, Started)]);
    assert_eq!(half.next(), go(&[]));
    let both = [("a", 1, Succeeded), ("left", 1, Succeeded), ("right", 1, Succeeded)];
    assert_eq!(case(FLOW, &both).next(), go(&[("join", 1)]));
    let all = [("a", 1, Succeeded), ("left", 1, Succeeded), ("right", 1, Skipped), ("join", 1, Succeeded)];
    assert_eq!(
        case(FLOW, &all).next(),
        Next::Finish { outcome: Outcome::Succeeded, reason: "all steps are done".to_owned() }
    );
}

#[test]
fn a_failed_attempt_is_tried_again_when_it_is_due() {
    let due = case(FLOW, &[("a", 1, Failed)]).failed("a", Some(90));
    assert_eq!(due.next(), go(&[("a", 2)]));
    let later = case(FLOW, &[("a", 1, Failed)]).failed("a", Some(110));
    assert_eq!(later.next(), Next::Wait { until: Some(at(110)) });
    let never = case(FLOW, &[("a", 1, Failed)]).failed("a", None);
    assert_eq!(never.next(), Next::End { outcome: Outcome::Failed, reason: "step `a`: no".to_owned() });
    assert_eq!(case(FLOW, &[("a", 3, Lost)]).next(), go(&[("a", 4)]));
}

#[test]
fn a_failure_waits_for_the_branch_beside_it_then_undoes_then_says_sorry() {
    let running = [("a", 1, Succeeded), ("left", 1, Failed), ("right", 1, Started)];
    let failing = || case(FLOW, &running).failed("left", None);
    assert!(matches!(failing().next(), Next::End { outcome: Outcome::Failed, .. }));
    assert_eq!(failing().ending(Outcome::Failed).next(), Next::Interrupt);

    let stopped = [("a", 1, Succeeded), ("left", 1, Failed), ("right", 1, Failed)];
    let ended = || case(FLOW, &stopped).ending(Outcome::Failed);
    let undo = ended().intent("one", IntentState::Armed).intent("two", IntentState::Armed);
    assert_eq!(undo.next(), Next::Undo { key: "two".to_owned() });
    let half = ended().intent("one", IntentState::Armed).intent("two", IntentState::Undone);
    assert_eq!(half.next(), Next::Undo { key: "one".to_owned() });
    let dead = ended().intent("one", IntentState::Dead);
    assert_eq!(dead.next(), go(&[("sorry", 1)]));
    let sorry = [("a", 1, Succeeded), ("left", 1, Failed), ("right", 1, Failed), ("sorry", 1, Failed)];
    assert_eq!(
        case(FLOW, &sorry).ending(Outcome::Failed).next(),
        Next::Finish { outcome: Outcome::Failed, reason: "because".to_owned() }
    );
}

#[test]
fn a_run_that_ends_early_starts_nothing_more_and_a_promotion_lets_the_rest_go_on() {
    for outcome in [Outcome::Rejected, Outcome::RolledBack, Outcome::Skipped, Outcome::Cancelled] {
        let ended = case(FLOW, &[("a", 1, Succeeded)]).ending(outcome);
        assert_eq!(ended.next(), Next::Finish { outcome, reason: "because".to_owned() });
    }
    let promoted = case(FLOW, &[("a", 1, Succeeded)]).ending(Outcome::Promoted);
    assert_eq!(promoted.next(), go(&[("left", 1), ("right", 1)]));
    let late = case(FLOW, &[("a", 1, Succeeded)]).ending(Outcome::CancelledAfterPromotion);
    assert!(
        matches!(late.intent("one", IntentState::Armed).next(), Next::Finish { .. }),
        "nothing is undone"
    );
}

#[test]
fn sleepers_are_waited_for_until_the_earliest_wakes() {
    let mut sleeping = case(FLOW, &[("a", 1, Succeeded), ("left", 1, Sleeping), ("right", 1, Sleeping)]);
    sleeping.attempts[1].wake_at = Some(at(500));
    sleeping.attempts[2].wake_at = Some(at(300));
    assert_eq!(sleeping.next(), Next::Wait { until: Some(at(300)) });
    sleeping.attempts[1].wake_at = None;
    sleeping.attempts[2].wake_at = None;
    assert_eq!(sleeping.next(), Next::Wait { until: None });
}

const SIDES: &str = "
name: flow
model: m
steps:
  - { id: a, run: 'true' }
  - { id: long, run: 'true', needs: [a] }
  - { id: waits, run: 'true', needs: [a] }
  - { id: fails, run: 'true', needs: [a] }
  - { id: then, run: 'true', needs: [waits] }
on_failure:
  - { id: sorry, run: 'true' }
  - { id: waits-too, run: 'true' }
";

#[test]
fn what_sleeps_or_is_tried_again_beside_a_step_that_runs_has_its_time() {
    let beside = |retry_at: i64, wake_at: Option<i64>| {
        let all = [("a", 1, Succeeded), ("long", 1, Started), ("waits", 1, Sleeping), ("fails", 1, Failed)];
        let mut beside = case(SIDES, &all).failed("fails", Some(retry_at));
        beside.attempts[2].wake_at = wake_at.map(at);
        beside.next()
    };
    assert_eq!(beside(110, Some(300)), go_until(&[], Some(110)), "the retry is first");
    assert_eq!(beside(400, Some(300)), go_until(&[], Some(300)), "the sleeper is first");
    assert_eq!(beside(400, None), go_until(&[], Some(400)), "the sleeper waits for a signal");
    assert_eq!(beside(100, Some(300)), go_until(&[("fails", 2)], Some(300)), "one begins beside the sleeper");
    assert_eq!(beside(400, Some(90)), go_until(&[], Some(90)), "it is due, and not begun anew");

    // So it is in the steps of a run that failed.
    let failed = [("a", 1, Failed), ("sorry", 1, Started), ("waits-too", 1, Failed)];
    let ends = case(SIDES, &failed).failed("a", None).failed("waits-too", Some(110));
    assert_eq!(ends.ending(Outcome::Failed).next(), go_until(&[], Some(110)));
}

#[test]
fn sleepers_are_due_in_their_time_or_with_a_signal_that_they_have_not_heard() {
    let all = [("a", 1, Succeeded), ("long", 1, Started), ("waits", 1, Sleeping), ("fails", 2, Sleeping)];
    let mut attempts = case(SIDES, &all).attempts;
    attempts[2].wake_at = Some(at(200));
    let none = |_: &Attempt| false;
    assert_eq!(due(&attempts, none, at(199)), []);
    assert_eq!(due(&attempts, none, at(200)), [(id("waits"), 1)]);
    let one = |attempt: &Attempt| attempt.step == id("fails");
    assert_eq!(due(&attempts, one, at(100)), [(id("fails"), 2)]);
    assert_eq!(due(&attempts, |_| true, at(100)), [(id("waits"), 1), (id("fails"), 2)]);
}

#[test]
fn a_condition_skips_and_one_that_cannot_be_evaluated_fails() {
    let source = |condition: &str| {
        format!(
            "name: flow\nmodel: m\nsteps:\n  - {{ id: a, run: 'true', if: \"{condition}\" }}\n  - {{ id: b, run: 'true' }}\n"
        )
    };
    let skipped = case(&source("model == 'other'"), &[]).next();
    let Next::Go { start, skip, .. } = skipped else { panic!("goes on") };
    assert_eq!((start, skip.len()), (vec![(id("b"), 1)], 1), "what needs a skipped step runs");
    let broken = case(&source("model + 1 == 2"), &[]).next();
    assert!(matches!(broken, Next::End { outcome: Outcome::Failed, .. }), "{broken:?}");
}

#[test]
fn what_a_dead_process_started_is_lost_and_sleepers_wake_when_due_or_signalled() {
    let mut found = case(FLOW, &[("a", 1, Succeeded), ("left", 2, Started), ("right", 1, Sleeping)]).attempts;
    found[2].wake_at = Some(at(200));
    let lost = vec![(id("left"), 2)];
    assert_eq!(adopt(&found, false, at(100)), Adoption { lost: lost.clone(), woken: vec![] });
    let woken = vec![(id("right"), 1)];
    assert_eq!(adopt(&found, true, at(100)), Adoption { lost: lost.clone(), woken: woken.clone() });
    assert_eq!(adopt(&found, false, at(200)), Adoption { lost, woken });
}

#[test]
fn a_step_that_must_not_stay_half_done_is_tried_again_beside_one_that_failed_for_good() {
    let found = |attempts: &[(&str, u32, AttemptState)], retry_at| {
        let mut found = case(FLOW, attempts).attempts;
        found[1].wake_at = retry_at;
        found
    };
    let next = |attempts: &[Attempt]| complete(attempts, &id("left"), at(100));
    let failed = [("right", 3, Failed), ("left", 1, Failed)];
    assert_eq!(next(&found(&failed, Some(at(100)))), go(&[("left", 2)]));
    assert_eq!(next(&found(&failed, Some(at(200)))), Next::Wait { until: Some(at(200)) });
    let beside = [("right", 3, Started), ("left", 1, Failed)];
    assert_eq!(next(&found(&beside, Some(at(200)))), go_until(&[], Some(200)), "what runs is not left alone");
    for state in [Lost, AttemptState::Cancelled] {
        assert_eq!(next(&found(&[("right", 3, Failed), ("left", 1, state)], None)), go(&[("left", 2)]));
    }
    assert_eq!(next(&found(&[("right", 3, Failed), ("left", 1, Started)], None)), go(&[]));
}
