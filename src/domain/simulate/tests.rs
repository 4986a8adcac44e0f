//! Policies over weeks that were made up.

use super::*;
use crate::domain::id::MetricName;
use crate::domain::workflow::parse;

/// The first day of a week is hard, for all models alike.
fn weather(day: u32) -> f64 {
    if day == 0 { 3.0 } else { 1.0 }
}

/// Weeks of seven days of 20 rows. `errors[model]` is how far a model is off, in any week: better or worse for good.
fn past(errors: &[f64]) -> Past {
    let mae: MetricName = "mae".parse().expect("a name");
    let mut past = Past { better: [(mae.clone(), Better::Lower)].into(), ..Past::default() };
    for (week, own) in errors.iter().enumerate() {
        let metrics = Metrics { values: [(mae.clone(), *own)].into(), n: Some(140), ..Metrics::default() };
        past.weeks.push(PastWeek { name: format!("w{week:02}"), refused: None, trained: Some(metrics) });
        for (model, error) in errors.iter().enumerate().take(week + 1) {
            let mut scores = Scores::default();
            for day in 0..7 {
                let name = format!("w{week:02}d{day}");
                let weather = weather(day);
                let errors = vec![error * weather; 20];
                for error in &errors {
                    let row = (100.0, 100.0 + own * weather, Some(100.0 + error));
                    scores.holdout.row(&name, "", row.0, row.1, row.2).expect("finite");
                }
                scores.blocks.push(Block { name, errors });
            }
            past.scores.insert((week, model), scores);
        }
    }
    past
}

fn workflow(gate: &str, compare: &str) -> crate::domain::workflow::Workflow {
    let source = format!(
        "name: retrain\nmodel: m\nmetrics: {{ mae: {{ better: lower }} }}\nsteps:\n  \
         - {{ id: train, run: 'true', metrics: {{ file: true }} }}\n  \
         - {{ id: gate, uses: gate, with: {{ rules: [{{ metric: mae, {gate} }}] }} }}\n  \
         - {{ id: publish, uses: publish, with: {{ store: models }} }}\n  \
         - {{ id: canary, uses: canary, with: {{ target: production, stages: [50%], compare: compare }} }}\n  \
         - {{ id: watch, uses: wait, with: {{ for: 7d, until: \"canary.verdict != 'inconclusive'\", at_most: 21d }} }}\n  \
         - {{ id: compare, uses: compare, with: {{ {compare} }} }}\n  \
         - {{ id: promote, uses: promote }}\n"
    );
    parse("retrain.yaml", &source, &Default::default())
        .unwrap_or_else(|mistakes| panic!("{}", mistakes.render("retrain.yaml", &source)))
        .0
}

const COMPARE: &str =
    "rules: [{ metric: abs_error, worse_by_at_most: 10% }], on_inconclusive: hold, hold_for: 7d";

fn written(gate: &str) -> Policy {
    as_written(&workflow(gate, COMPARE)).0
}

fn of<'t>(tallies: &'t [Tally], policy: &str) -> &'t Tally {
    tallies.iter().find(|tally| tally.policy == policy).expect("a row")
}

/// Every third model is much worse, every other a little better than the one before.
const UNEVEN: [f64; 12] = [10.0, 9.8, 14.0, 9.6, 9.4, 14.0, 9.2, 9.0, 14.0, 8.8, 8.6, 8.4];

#[test]
fn never_serves_the_first_for_ever_and_always_the_newest() {
    let tallies = tally(&[], &past(&UNEVEN), Setting::default()).expect("all is known");
    let (always, never, best) =
        (of(&tallies, "always"), of(&tallies, "never"), of(&tallies, "best in hindsight"));
    assert_eq!((never.good, never.bad, always.bad), (0, 0, 3));
    // 10 on average, times the weather of a week.
    let weather = (0..7).map(weather).sum::<f64>() / 7.0;
    assert!((never.error - 10.0 * weather).abs() < 1e-9, "{}", never.error);
    assert!(best.error < never.error && best.error < always.error);
    assert_eq!((best.regret, best.bad, best.missed), (0.0, 0, 0));
    assert!(always.regret > 0.0 && always.vs_never > 0.0 && never.vs_always < 0.0);
}

#[test]
fn a_gate_against_the_champion_refuses_the_worse_ones() {
    let written = written("vs: champion, worse_by_at_most: 2%");
    let strict = written.without(Part::Canary).with_tolerance(-0.05);
    let mut policies = built_in(&written);
    policies.push(Policy { name: "strict".to_owned(), ..strict });
    let tallies = tally(&policies, &past(&UNEVEN), Setting::default()).expect("all is known");
    let gate = of(&tallies, "gate alone");
    assert_eq!((gate.bad, gate.rejected), (0, 3));
    assert!(gate.regret.abs() < 1e-9, "{gate:?}");
    // It asks for more than these models have to give.
    let strict = of(&tallies, "strict");
    assert!(strict.missed > 0 && strict.regret > gate.regret, "{strict:?}");
}

#[test]
fn a_canary_alone_takes_the_worse_ones_back_and_costs_what_it_serves() {
    let policies = built_in(&written("vs: champion, worse_by_at_most: 2%"));
    let errors = [10.0, 40.0, 9.9, 9.8, 40.0, 9.7, 9.6, 40.0, 9.5, 9.4, 9.3, 9.2];
    let tallies = tally(&policies, &past(&errors), Setting::default()).expect("all is known");
    let canary = of(&tallies, "canary alone");
    assert!(canary.rolled_back > 0 && canary.bad == 0, "{canary:?}");
    assert!(canary.decisions[0].weeks < 3.0, "{canary:?}");
    assert!(canary.regret > 0.0, "half of the rows were served by what was taken back");
}

#[test]
fn a_block_counts_when_its_requests_are_as_old_as_the_horizon() {
    let with = |horizon: &str, at_most: f64| {
        let compare = COMPARE.replace("10%", &format!("10%{horizon}"));
        let policy = as_written(&workflow("max: 90", &compare)).0.with_time(at_most);
        let errors = [10.0, 40.0, 9.9, 9.8, 40.0, 9.7, 9.6, 40.0, 9.5, 9.4, 9.3, 9.2];
        let tallies = tally(&[policy], &past(&errors), Setting::default()).expect("all is known");
        let first = of(&tallies, "as written").decisions[0].clone();
        (first.ending, first.weeks)
    };
    let (ending, at_once) = with("", 5.0);
    assert_eq!(ending, Ending::RolledBack);
    let (ending, later) = with(", label_horizon: 6d", 5.0);
    assert_eq!(ending, Ending::RolledBack);
    // Nothing of the week before the canary was known either: its first seven blocks set the scale.
    assert!(
        (later - at_once - 2.0).abs() < 1e-6,
        "six days, one for its block, seven blocks: {at_once}, {later}"
    );
    assert_eq!(with(", label_horizon: 20d", 2.0).0, Ending::Held, "no truth until it is over");
}

#[test]
fn what_is_needed_is_named_once_and_only_what_is_needed() {
    let whole = past(&UNEVEN);
    let mut known = Past { scores: BTreeMap::new(), ..whole.clone() };
    let policies = built_in(&written("vs: champion, worse_by_at_most: 2%"));
    let mut rounds = 0;
    let tallies = loop {
        match tally(&policies, &known, Setting::default()) {
            Ok(tallies) => break tallies,
            Err(Stopped::Missing(Missing(missing))) => {
                rounds += 1;
                assert!(rounds < 200 && !missing.is_empty());
                for key in missing {
                    let scores = whole.scores.get(&key).expect("a model is not scored before it is trained");
                    assert!(known.scores.insert(key, scores.clone()).is_none(), "{key:?} was there");
                }
            }
            Err(error) => panic!("{error:?}"),
        }
    };
    assert_eq!(tallies, tally(&policies, &whole, Setting::default()).expect("all is known"));
}

#[test]
fn refused_data_and_weeks_without_a_model_decide_nothing() {
    let mut past = past(&UNEVEN);
    past.weeks[1].refused = Some("too many are empty".to_owned());
    past.weeks[3].trained = None;
    let tallies = tally(&[written("max: 20")], &past, Setting::default()).expect("all is known");
    let always = of(&tallies, "always");
    let candidates: Vec<&str> = always.decisions.iter().map(|it| it.candidate.as_str()).collect();
    assert!(!candidates.contains(&"w03"));
    assert_eq!((always.decisions[0].ending, always.rejected), (Ending::Rejected, 1));
}

#[test]
fn what_cannot_be_replayed_is_said() {
    let (policy, notes) =
        as_written(&workflow("max: 20", "rules: [{ metric: error_rate }], on_inconclusive: hold"));
    assert!(matches!(policy.rule, Rule::Checks { canary: None, gate: Some(_) }));
    assert!(notes.iter().any(|note| note.contains("were not kept")), "{notes:?}");
}
