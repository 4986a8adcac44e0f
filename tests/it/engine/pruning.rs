//! Old evidence goes once a day, by whichever process has the time.

use std::sync::Arc;

use chrono::TimeDelta;
use refit::engine::Engine;
use refit::store::{ObservationBatch, OldEvidence, Prediction};
use tokio_util::sync::CancellationToken;

use super::on_both;
use crate::support::crash::{Crash, When, Write};
use crate::support::world::World;

/// A request of which no truth will come.
async fn served(engine: &Engine, id: &str) {
    let at = engine.clock.now();
    let prediction = Prediction {
        request_id: id.to_owned(),
        version: "1".parse().expect("a name"),
        value: 1.0,
        shadow: vec![],
        at,
    };
    let batch = ObservationBatch {
        model: "m".parse().expect("a name"),
        batch_id: id.to_owned(),
        minutes: vec![],
        predictions: vec![prediction],
        at,
    };
    engine.store.observe(&batch).await.expect("kept");
}

async fn prune(engine: &Arc<Engine>) -> Option<OldEvidence> {
    engine.prune(&CancellationToken::new()).await.expect("the database answers")
}

fn one_request() -> OldEvidence {
    OldEvidence { predictions: 1, batch_ids: 1, ..OldEvidence::default() }
}

#[tokio::test]
async fn old_evidence_goes_once_a_day_whichever_process_has_the_time() {
    on_both(async |world: World| {
        let (one, two) = (world.process(&Crash::never()).await, world.process(&Crash::never()).await);
        served(&one, "old").await;
        world.pass(TimeDelta::days(100));
        assert_eq!(prune(&one).await, None, "who sees a database first has a day to say what is old");
        world.pass(TimeDelta::days(1));
        let gone = tokio::join!(prune(&one), prune(&two));
        assert!(matches!(gone, (Some(_), None) | (None, Some(_))), "one of them does it: {gone:?}");
        assert_eq!(gone.0.or(gone.1), Some(one_request()));

        served(&one, "young").await;
        world.pass(TimeDelta::hours(23));
        let restarted = world.process(&Crash::never()).await;
        assert_eq!((prune(&one).await, prune(&restarted).await), (None, None), "not before the next day");
        world.pass(TimeDelta::hours(1));
        assert_eq!(prune(&restarted).await, Some(OldEvidence::default()), "what is young stays");
    })
    .await;
}

#[tokio::test]
async fn what_a_process_leaves_that_stops_or_dies_the_next_one_does() {
    on_both(async |world: World| {
        let at = Write { name: "forget_evidence".to_owned(), nth: 0 };
        let mortal = Crash::at(at, When::Before);
        let (first, dying) = (world.process(&Crash::never()).await, world.process(&mortal).await);
        served(&first, "old").await;
        assert_eq!(prune(&first).await, None);
        world.pass(TimeDelta::days(100));
        let stop = CancellationToken::new();
        stop.cancel();
        assert_eq!(first.prune(&stop).await.expect("the database answers"), None, "it is about to stop");

        let pruning = tokio::spawn(async move { prune(&dying).await });
        mortal.died().await;
        pruning.abort();
        assert_eq!(prune(&first).await, None, "the other one is at it, as far as anybody knows");
        world.pass(TimeDelta::minutes(11));
        assert_eq!(prune(&first).await, Some(one_request()));
    })
    .await;
}
