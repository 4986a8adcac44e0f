//! Seven Sundays: from cron to promoted, to rolled back, to refused, to held and out of it.

use chrono::TimeDelta;
use refit::clock::Clock as _;
use refit::domain::id::{ModelName, RunId, TargetName};
use refit::domain::run::{Outcome, Run, RunStatus, SignalKind};

use super::app::App;
use super::place::Place;
use crate::store::database::Database;
use crate::store::on_both;
use crate::support::instance::Instance;

/// Between two turns; a thousand predictions a day are seven in ten minutes.
const TURN: TimeDelta = TimeDelta::minutes(10);
const REQUESTS: u32 = 7;

/// What the steps of the workflow run that train and export.
const TRAINERS: [&str; 2] = ["-m research.scripts.train_models", "-m research.scripts.export_artifacts"];

/// In place of both: what was left before is left again.
const AGAIN: &str = "
import pathlib
print('MAE: 400\\nR²: 0.95')
for file in pathlib.Path('apps/web/src/data/ml-models').glob('*.json'):
    file.touch()
";

struct RaceDay {
    place: Place,
    refit: Instance,
    app: App,
}

impl RaceDay {
    async fn on(database: &Database) -> Self {
        let quick = ("140.6\n    timeout: 2h", "140.6 --rounds 60\n    timeout: 2h");
        let place = Place::new(database.url.starts_with("postgres"), &[quick]).await;
        let refit = Instance::on(place.root(), &database.url, database.clock.clone()).await;
        let app = App::start(&place, &format!("http://{}", refit.address)).await;
        Self { place, refit, app }
    }

    /// The next Sunday, 02:00, with the races of the weekend before.
    async fn sunday(&self) -> RunId {
        let days = 7 - i64::from(chrono::Datelike::weekday(&self.refit.clock.now()).num_days_from_sunday());
        let sunday = self.refit.clock.now() + TimeDelta::days(days);
        self.place.race_until(&sunday.date_naive().to_string(), &[]);
        let run = self.refit.tick().await;
        assert_eq!(self.refit.clock.now().date_naive(), sunday.date_naive(), "cron said so");
        run
    }

    /// Lets time pass, with the app's traffic, until the run is as `done` wants it.
    async fn until(&mut self, run: RunId, done: impl Fn(&Run) -> bool) -> Run {
        for number in 0..6 * 24 * 6 {
            let seen = self.refit.settle(run).await;
            if done(&seen) || number % 72 == 0 {
                self.refit.show().await;
            }
            if done(&seen) {
                return seen;
            }
            assert!(seen.status != RunStatus::Finished, "it ended: {:?} {:?}", seen.outcome, seen.reason);
            // Before the first release the team's old deployment answers.
            if self.place.release().is_some() {
                self.app.serve(self.refit.clock.now(), REQUESTS).await;
            }
            self.refit.clock.advance(TURN);
        }
        let attempts = self.refit.engine.store.attempts(run).await.expect("readable");
        let canary = self.refit.engine.store.canary_of(run).await.expect("readable");
        let why = canary.map(|canary| canary.reason);
        panic!("the run never became so: {why:?} {attempts:#?}");
    }

    async fn finish(&mut self, run: RunId) -> Run {
        self.until(run, |run| run.status == RunStatus::Finished).await
    }

    /// The canary of `run` goes out; returns its version.
    async fn on_canary(&mut self, run: RunId) -> String {
        let seen = self.refit.settle(run).await;
        assert_eq!(seen.status, RunStatus::Waiting, "{:?} {:?}", seen.outcome, seen.reason);
        self.place.serving().1.expect("a canary")
    }

    /// A Sunday whose canary throws before it writes its rows, until the run is held; returns it and the version.
    async fn silent_sunday(&mut self) -> (RunId, String) {
        let run = self.sunday().await;
        let canary = self.on_canary(run).await;
        self.app.switch(&canary, "silent").await;
        self.until(run, |run| run.status == RunStatus::Held).await;
        (run, canary)
    }

    /// How long the run took, from its tick.
    fn took(&self, run: &Run) -> TimeDelta {
        self.refit.clock.now() - run.created_at
    }
}

fn model() -> ModelName {
    "race-times".parse().expect("a name")
}

fn target() -> TargetName {
    "production".parse().expect("a name")
}

/// How many predictions of a version were reported to refit, and how many of them went well.
async fn told(refit: &Instance, version: &str) -> (i64, i64) {
    let version = [version.parse().expect("a version")];
    let (mut told, mut after) = ((0, 0), 0);
    loop {
        let minutes = refit.engine.store.evidence(&model(), &version, after, 1000).await.expect("readable");
        let Some(last) = minutes.last() else { return told };
        after = last.seq;
        for counts in minutes.iter().map(|minute| minute.counts) {
            told.0 += counts.n as i64;
            told.1 += (counts.n - counts.errors) as i64;
        }
    }
}

async fn seven_sundays(database: Database) {
    let mut day = RaceDay::on(&database).await;

    // The first version has nothing to be compared with: somebody has to look.
    let first = day.sunday().await;
    day.until(first, |run| run.status == RunStatus::Waiting).await;
    assert_eq!(day.place.serving(), (None, None), "nothing is served before somebody approved");
    let approve = SignalKind::Approve { step: "gate".parse().expect("a name") };
    let (store, now) = (&day.refit.engine.store, day.refit.clock.now());
    assert!(store.signal(first, &approve, "ann", None, now).await.expect("approved"));
    let first = day.finish(first).await;
    assert_eq!(first.outcome, Some(Outcome::Promoted), "{:?}", first.reason);
    assert_eq!(day.place.serving(), (Some("2026-11-22".to_owned()), None));
    assert_eq!(day.place.versions()["2026-11-22"], 18);

    // A canary that errs is taken back, and no visitor sees an error.
    let second = day.sunday().await;
    let canary = day.on_canary(second).await;
    day.app.switch(&canary, "errs").await;
    let second = day.finish(second).await;
    assert_eq!(second.outcome, Some(Outcome::RolledBack), "{:?}", second.reason);
    assert_eq!(day.place.serving(), (Some("2026-11-22".to_owned()), None));
    assert!(day.took(&second) < TimeDelta::hours(24), "{}", day.took(&second));

    // A canary that does its work is promoted, with what a thousand requests a day can show.
    let third = day.sunday().await;
    let good = day.on_canary(third).await;
    let third = day.finish(third).await;
    assert_eq!(third.outcome, Some(Outcome::Promoted), "{:?}", third.reason);
    assert_eq!(day.place.serving(), (Some(good.clone()), None));
    assert!(day.took(&third) >= TimeDelta::hours(24), "{}", day.took(&third));

    // From here on it is the canaries that differ: the trainer leaves what it left before, in no time.
    std::fs::write(day.place.root().join("again.py"), AGAIN).expect("written");
    day.place.edit("workflows/retrain.yaml", &TRAINERS.map(|trainer| (trainer, "again.py")));

    // A slow canary is taken back.
    let fourth = day.sunday().await;
    let canary = day.on_canary(fourth).await;
    day.app.switch(&canary, "slow").await;
    let fourth = day.finish(fourth).await;
    assert_eq!(fourth.outcome, Some(Outcome::RolledBack), "{:?}", fourth.reason);
    assert_eq!(day.place.serving(), (Some(good.clone()), None));

    // A canary that throws before it writes its row: its traffic goes, and somebody has to decide.
    let (fifth, canary) = day.silent_sunday().await;
    assert_eq!(day.place.serving(), (Some(good), None), "silence gets no traffic");
    day.app.switch(&canary, "works").await;
    let version = canary.parse().expect("a version");
    let engine = &day.refit.engine;
    engine
        .promote_by_hand(&model(), &target(), &version, false, "ann", Some("the table was full"))
        .await
        .expect("promoted");
    let fifth = day.finish(fifth).await;
    assert_eq!(fifth.outcome, Some(Outcome::Promoted), "{:?}", fifth.reason);
    assert_eq!(day.place.serving(), (Some(canary.clone()), None));

    // The same, and nobody decides: when its time is over it is taken back.
    day.place.edit("workflows/retrain.yaml", &[("hold_for: 6d", "hold_for: 2h")]);
    let (sixth, silent) = day.silent_sunday().await;
    assert_eq!(day.place.serving(), (Some(canary.clone()), None), "silence gets no traffic");
    let held = day.refit.clock.now();
    let sixth = day.finish(sixth).await;
    assert_eq!(sixth.outcome, Some(Outcome::RolledBack), "{:?}", sixth.reason);
    assert_eq!(day.refit.clock.now() - held, TimeDelta::hours(2));
    assert_eq!(day.place.serving(), (Some(canary.clone()), None));
    let why = sixth.reason.expect("a reason");
    for said in
        ["nobody decided while it was held for 2h: the canary is silent: about ", " and none was reported"]
    {
        assert!(why.contains(said), "{why}");
    }
    let mail = day.place.mail(&format!("race-times {silent} was rolled back"));
    assert!(mail.starts_with(&format!("{canary} serves all traffic since ")), "{mail}");
    assert!(mail.contains("Nothing has to be done.") && mail.contains(&why), "{mail}");

    // A model that is no good never gets as far as the store.
    let poor = [
        ("again.py --distances", "-m research.scripts.train_models --distances"),
        ("--rounds 60", "--rounds 1"),
    ];
    day.place.edit("workflows/retrain.yaml", &poor);
    let seventh = day.sunday().await;
    let before = day.place.versions();
    let seventh = day.finish(seventh).await;
    assert_eq!(seventh.outcome, Some(Outcome::Rejected), "{:?}", seventh.reason);
    assert_eq!((day.place.versions(), day.place.serving()), (before, (Some(canary), None)));

    // The app's own table has what refit was told, row for row.
    let RaceDay { place, refit, app } = day;
    app.stop().await;
    let kept = place.predictions().await;
    let wrote = ["2026-11-22", "2026-11-29", "2026-12-06", "2026-12-13", "2026-12-20"];
    assert_eq!(kept.keys().collect::<Vec<_>>(), wrote, "the last silent one never did");
    for (version, counted) in &kept {
        assert_eq!(told(&refit, version).await, *counted, "{version}");
    }

    // Each once: mails of what was taken back and of the silence, a message for each run.
    assert_eq!(
        place.subjects(),
        [
            "race-times 2026-11-29 was rolled back",
            "race-times 2026-12-13 was rolled back",
            "race-times: somebody has to look now",
            "race-times: somebody has to look now",
            "race-times 2026-12-27 was rolled back",
        ]
    );
    let messages = place.slack.messages();
    assert!(messages.iter().filter(|message| message.thread_ts.is_none()).count() >= 7, "{messages:#?}");
}

on_both! { seven_sundays }
