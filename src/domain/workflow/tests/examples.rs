use std::time::Duration;

use super::super::step::*;
use super::super::units::BasisPoints;
use super::*;

const RETRAIN: &str = include_str!("../../../../workflows/retrain.yaml");

/// A file that uses every key this version knows.
pub(super) const EVERYTHING: &str = include_str!("everything.yaml");

fn files() -> BTreeMap<String, String> {
    BTreeMap::from([("sql/results.sql".to_owned(), "select * from results".to_owned())])
}

fn read(source: &str) -> Workflow {
    match parse("w.yaml", source, &files()) {
        Ok((workflow, warnings)) => {
            assert_eq!(warnings, Vec::new());
            workflow
        }
        Err(diagnostics) => panic!("{}", diagnostics.render("w.yaml", source)),
    }
}

#[test]
fn the_workflow_for_vercel_has_no_warnings() {
    let workflow = read(include_str!("../../../../workflows/raceday-vercel.yaml"));
    assert_eq!((workflow.model.as_str(), workflow.mode), ("race-times", Mode::Advise));
    let secrets: Vec<&str> = workflow.secrets.iter().map(|name| name.as_str()).collect();
    assert_eq!(secrets, ["APP_DATABASE_URL"]);
}

#[test]
fn the_first_workflow_has_no_warnings() {
    let workflow = read(RETRAIN);
    assert_eq!(workflow.name.as_str(), "retrain");
    assert_eq!(workflow.mode, Mode::Advise);
    assert_eq!(workflow.concurrency.key.source(), "${{ model }}");
    let train = workflow.step(&"train".parse().expect("id")).expect("train");
    assert_eq!(train.timeout, Duration::from_secs(7200));
    assert_eq!(train.needs.iter().map(|id| id.as_str()).collect::<Vec<_>>(), ["data"]);
    let StepKind::Run(run) = &train.kind else { panic!("run") };
    assert_eq!(run.limits.memory, Some(4 << 30));
    assert_eq!(run.stdout_metrics.len(), 2);
    let canary = workflow.step(&"canary".parse().expect("id")).expect("canary");
    let StepKind::Canary(canary) = &canary.kind else { panic!("canary") };
    assert_eq!(canary.stages, [Stage { share: BasisPoints(1000), min_time: Duration::ZERO }]);
    let compare = workflow.step(&"compare".parse().expect("id")).expect("compare");
    let StepKind::Compare(compare) = &compare.kind else { panic!("compare") };
    assert_eq!(compare.rules[0].margin, Margin::Ratio(1.5));
    assert_eq!(compare.rules[0].acceptable_below, Some(0.05));
    assert_eq!(compare.rules[1].margin, Margin::Ratio(2.0));
    assert_eq!((compare.alpha, compare.beta), (0.02, 0.05));
}

#[test]
fn every_key_is_read() {
    let workflow = read(EVERYTHING);
    // The whole of it as types, so that a key that is accepted but not read shows here.
    insta::assert_debug_snapshot!(workflow.triggers, @r#"
    Triggers {
        schedules: [
            Schedule {
                cron: "0 2 * * 0",
                timezone: Europe/Berlin,
                catch_up: All,
            },
            Schedule {
                cron: "*/5 1-3 1,15 * MON-FRI",
                timezone: UTC,
                catch_up: Latest,
            },
        ],
        events: [
            EventTrigger {
                name: "ml/retrain",
                condition: Some(
                    Expr(
                        "event.data.rows >= 500",
                    ),
                ),
                debounce: Some(
                    1800s,
                ),
            },
        ],
        inputs: {
            "days": Input {
                kind: Number,
                required: false,
                default: Some(
                    Number(7),
                ),
            },
            "force": Input {
                kind: Boolean,
                required: false,
                default: Some(
                    Bool(false),
                ),
            },
            "reason": Input {
                kind: String,
                required: false,
                default: Some(
                    String("none"),
                ),
            },
        },
    }
    "#);
    let kinds: Vec<String> = workflow.steps.iter().map(|step| format!("{:?}", Shown(step))).collect();
    insta::assert_snapshot!(kinds.join("\n"), @r#"
    data Some("The data") [] Some("!inputs.force") 5400s ["gpu"] 1x1s Expectations { columns: [("id", Int), ("at", Timestamp), ("finish_s", Float), ("name", String), ("ok", Bool), ("day", Date)], rows: RowBounds { min: Some(10), max: Some(1000), min_vs_previous: Some(0.95) }, newest: Some(Newest { column: "at", max_age: 864000s, on_stale: Skip }), null_rate: [("finish_s", 0.01)], unique: ["id", "day"] }
    more None ["data"] None 1200s ["gpu"] 5x1s Expectations { columns: [], rows: RowBounds { min: None, max: None, min_vs_previous: None }, newest: None, null_rate: [], unique: [] }
    lite None ["more"] None 1200s ["gpu"] 5x1s Expectations { columns: [], rows: RowBounds { min: None, max: None, min_vs_previous: None }, newest: None, null_rate: [], unique: [] }
    train None ["lite"] None 1200s [] 5x1s "./train \"$X\"" Some("research") [("X", "${{ steps.data.rows }}"), ("Y", "5")] Limits { memory: Some(4294967296), log: Some(1048576), output: Some(1000000000) } 30s [("mae", Some(Mean))] true Some(Outputs { from: "out", files: "*.json", count: Some(18), max_total: Some(419430400) })
    evaluate None ["train"] None 3600s [] 5x1s Some(StepId("train")) Some("r.csv") "./score \"$Z\"" Some("research") [("Z", "1")] Limits { memory: Some(1073741824), log: None, output: None } 20s [("auc", None)] true None
    gate None ["evaluate"] None 1200s [] 5x1s Accept Continue [("mae", Some(600.0), Some(0.0), None, false, None), ("mae", None, None, Some(VsChampion { worse_by_at_most: 0.02, confidence: Some(0.95), stored_holdout: false }), false, None), ("r2", None, None, Some(VsChampion { worse_by_at_most: 0.02, confidence: None, stored_holdout: true }), true, Some(150))]
    publish None ["gate"] None 1200s [] 5x1s Publish { store: StoreName("models"), version: Semver, from: Some(StepId("train")), keep_latest: Some(3) }
    canary None ["publish"] None 1200s [] 5x1s Canary { target: TargetName("prod"), stages: [Stage { share: BasisPoints(100), min_time: 0ns }, Stage { share: BasisPoints(1000), min_time: 3600s }], compare: Some(StepId("compare")), max_look_gap: Some(900s) }
    wait None ["canary"] None 1200s [] 5x1s 3600s Some("canary.verdict == 'pass'") Some(86400s) Some("canary.verdict in ['fail', 'error']")
    shadow None ["wait"] None 1200s [] 5x1s 7200s Some("canary.verdict != 'inconclusive'") Some(864000s) None 1800s "./predict" None [] Limits { memory: None, log: None, output: None } 10s [] false None
    compare None ["shadow"] None 1200s [] 5x1s RollBack Hold 259200s Zero [(ErrorRate, Points { points: 0.003 }, Some(0.05), Some(0.2), 0ns, Gating), (AbsError, Ratio(1.1), Some(12.5), None, 21600s, Observe)] 0.01 0.1 [Some(0.75), Some(0.25)]
    approve None ["compare"] None 1200s [] 5x1s Some("${{ model }}?") Some(172800s)
    promote None ["approve"] None 1200s [] 5x1s Promote { target: Some(TargetName("prod")), bake: Some(21600s) }
    http None ["promote"] None 1200s [] 5x1s POST https://example.com/hook ["a"] Some("{\"m\": \"${{ model }}\"}") [200, 204]
    notify None ["http"] None 1200s [] 5x1s [Slack(NotifierName("team")), Email(["a@example.com"]), Webhook(NotifierName("hook")), Console] s ${{ steps.train }}${{ event.data.x }}
    "#);
}

fn shown_wait(f: &mut std::fmt::Formatter<'_>, it: &Wait) -> std::fmt::Result {
    let source = |expr: &Option<crate::domain::expr::Expr>| expr.as_ref().map(|it| it.source().to_owned());
    write!(f, "{:?} {:?} {:?} {:?}", it.at_least, source(&it.until), it.at_most, source(&it.abort_if))
}

fn shown_command(f: &mut std::fmt::Formatter<'_>, it: &Run) -> std::fmt::Result {
    let env: Vec<(&String, &str)> = it.env.iter().map(|(name, value)| (name, value.source())).collect();
    let picks: Vec<_> = it.stdout_metrics.iter().map(|(name, it)| (name.as_str(), it.pick)).collect();
    write!(
        f,
        "{:?} {:?} {env:?} {:?} {:?} {picks:?} {} {:?}",
        it.command, it.working_dir, it.limits, it.grace, it.metrics_file, it.outputs
    )
}

/// A step without its places and expression trees.
struct Shown<'a>(&'a Step);

impl std::fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Step { id, name, needs, condition, timeout, retry, labels, kind, at: _ } = self.0;
        let needs: Vec<&str> = needs.iter().map(|id| id.as_str()).collect();
        let condition = condition.as_ref().map(|expr| expr.source());
        write!(
            f,
            "{id} {name:?} {needs:?} {condition:?} {timeout:?} {labels:?} {}x{:?} ",
            retry.attempts, retry.backoff
        )?;
        match kind {
            StepKind::Fetch(it) => write!(f, "{:?}", it.expect),
            StepKind::Run(it) => shown_command(f, it),
            StepKind::Evaluate(it) => {
                write!(f, "{:?} {:?} ", it.from, it.holdout)?;
                shown_command(f, &it.command)
            }
            StepKind::Shadow(it) => {
                shown_wait(f, &it.wait)?;
                write!(f, " {:?} ", it.every)?;
                shown_command(f, &it.command)
            }
            StepKind::Gate(it) => write!(
                f,
                "{:?} {:?} {:?}",
                it.first_version,
                it.inconclusive,
                it.rules
                    .iter()
                    .map(|r| (r.metric.as_str(), r.max, r.min, r.vs_champion, r.each_segment, r.min_rows))
                    .collect::<Vec<_>>()
            ),
            StepKind::Publish(it) => write!(f, "{it:?}"),
            StepKind::Canary(it) => write!(f, "{it:?}"),
            StepKind::Wait(it) => shown_wait(f, it),
            StepKind::Approve(it) => {
                write!(f, "{:?} {:?}", it.message.as_ref().map(|t| t.source()), it.at_most)
            }
            StepKind::Compare(it) => write!(
                f,
                "{:?} {:?} {:?} {:?} {:?} {} {} {:?}",
                it.on_inconclusive,
                it.when_underpowered,
                it.hold_for,
                it.hold_traffic,
                it.rules
                    .iter()
                    .map(|r| (r.metric, r.margin, r.acceptable_below, r.never_above, r.label_horizon, r.role))
                    .collect::<Vec<_>>(),
                it.alpha,
                it.beta,
                it.rules.iter().map(|r| r.weight).collect::<Vec<_>>()
            ),
            StepKind::Promote(it) => write!(f, "{it:?}"),
            StepKind::Rollback(it) => write!(f, "{:?} {:?}", it.target, it.to.as_ref().map(|t| t.source())),
            StepKind::Notify(it) => write!(f, "{:?} {} {}", it.to, it.subject.source(), it.message.source()),
            StepKind::Http(it) => write!(
                f,
                "{} {} {:?} {:?} {:?}",
                it.method,
                it.url.source(),
                it.headers.keys().collect::<Vec<_>>(),
                it.body.as_ref().map(|t| t.source()),
                it.expect
            ),
        }
    }
}

#[test]
fn query_files_are_found_before_the_file_is_read() {
    assert_eq!(referenced_files(EVERYTHING), ["sql/results.sql"]);
    let outside = EVERYTHING.replace("sql/results.sql", "../secret.sql");
    assert_eq!(referenced_files(&outside), Vec::<String>::new());
    assert!(brief(EVERYTHING).contains("`sql/results.sql` cannot be read"));
    assert_eq!(referenced_files(": : :"), Vec::<String>::new());
}

#[test]
fn branches_come_from_needs() {
    let workflow = read(&with_steps(
        "- { id: a, run: 'true' }\n- { id: b, run: 'true' }\n- { id: c, run: 'true', needs: a }\n- { id: d, run: 'true', needs: [b, c] }\n- { id: e, run: 'true', needs: [] }",
    ));
    let needs: Vec<Vec<&str>> =
        workflow.steps.iter().map(|step| step.needs.iter().map(|id| id.as_str()).collect()).collect();
    assert_eq!(needs, [vec![], vec!["a"], vec!["a"], vec!["b", "c"], vec![]]);
}

#[test]
fn a_workflow_can_be_shared_between_threads() {
    fn shared<T: Send + Sync + 'static>() {}
    shared::<Workflow>();
}

#[test]
fn a_canary_that_names_no_rules_gets_the_only_ones() {
    let source = RETRAIN.replace(", compare: compare }", " }");
    assert_ne!(source, RETRAIN);
    let workflow = read(&source);
    let canary = workflow.step(&"canary".parse().expect("id")).expect("canary");
    let StepKind::Canary(canary) = &canary.kind else { panic!("canary") };
    let (id, rules) = workflow.rules_of(canary).expect("rules");
    assert_eq!((id.as_str(), rules.rules.len()), ("compare", 2));
}

#[test]
fn the_secrets_of_a_workflow_are_known() {
    let secrets: Vec<String> = read(EVERYTHING).secrets.iter().map(ToString::to_string).collect();
    assert_eq!(secrets, ["DB", "T"]);
}

#[test]
fn aliases_are_copies() {
    let workflow = read(&with_steps(
        "- { id: a, run: 'true', retry: &r { attempts: 7 } }\n- { id: b, run: 'true', retry: *r }",
    ));
    assert_eq!(workflow.steps[1].retry.attempts, 7);
}

#[test]
fn a_plan_in_plain_words() {
    let lines: Vec<String> = plan::outline(&read(RETRAIN))
        .iter()
        .map(|line| format!("{} {}: {}", line.kind, line.step, line.text))
        .collect();
    insta::assert_snapshot!(lines.join("\n"), @r#"
    fetch data: fetches data/results.csv into results.csv and checks: 4 columns, at least 1000 rows, at least 95 % of the last fetch, newest `race_date` at most 10d old, at most 1 % of `finish_s` empty
    run train: runs `python3 train.py --data "$REFIT_DATA/results.csv" --out "$REFIT_OUT" --reason "$ …` for at most 2h, reads mae, r2 from what it prints
    gate gate: lets the version pass if mae at most 600, r2 at least 0.85; the first version waits for approval
    publish publish: uploads the version to `models` and seals it
    canary canary: sends 10 % of the traffic of `production` to the version and watches it (only said, not done: mode is advise)
    wait watch: waits for 1d, until canary.verdict != 'inconclusive', for at most 3d in all
    compare compare: compares canary and champion: error rate below 5 % or worse by less than 50 %, share of slow requests worse by less than 100 %; holds what is undecided
    promote promote: promotes, rolls back or holds, as the verdict says, then watches for 6h (only said, not done: mode is advise)
    "#);
}
