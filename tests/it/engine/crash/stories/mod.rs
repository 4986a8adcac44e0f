//! The stories, by what they are about.

pub mod bake;
pub mod endings;
pub mod errands;
pub mod followed;
pub mod held;
pub mod others;
pub mod promotion;

/// The whole main job. No step may fail a second time: a crash is no failed attempt.
pub const RETRAIN: &str = r#"
name: retrain
model: race-times
mode: act
defaults: { retry: { attempts: 1 } }
steps:
  - id: data
    uses: fetch
    with: { from: { file: rows.csv }, to: rows.csv }
    expect: { columns: { distance: string, finish_s: float }, rows: { min: 2 } }
  - id: train
    run: |
      echo began >> began
      cp "$REFIT_DATA/rows.csv" "$REFIT_OUT/rows.csv"
      echo "{\"trained\": \"$$ $(date +%s%N)\"}" > "$REFIT_OUT/model.json"
      echo "{\"mae\": $(cat mae)}" > "$REFIT_METRICS"
    metrics: { file: true }
  - id: gate
    uses: gate
    with: { first_version: accept, rules: [{ metric: mae, max: 10 }] }
  - id: publish
    uses: publish
    with: { store: models, version: counter }
  - id: canary
    uses: canary
    with: { target: production, stages: [{ share: 20%, min_time: 1m }, 50%], compare: compare }
  - id: watch
    uses: wait
    with: { for: 1m, until: "canary.verdict != 'inconclusive'", at_most: 30m }
  - id: check
    run: 'test ! -e broken'
  - id: compare
    uses: compare
    with: { rules: [{ metric: error_rate, acceptable_below: 5% }], on_inconclusive: hold }
  - id: promote
    uses: promote
    with: { bake: 2m }
on_failure:
  - { id: sorry, run: 'echo sorry >> sorry' }
notify:
  - { on: [canary_started, promoted, frozen, rolled_back, rejected, failed, cancelled], slack: team }
"#;
