//! The variables: every prefix of the writes, every answer of the list, what nobody can read, what somebody else set.

use refit::domain::id::InstanceId;
use refit::domain::release::Release;
use serde_json::json;

use super::{says, target, values};
use crate::hosting::suite::release;
use crate::hosting::vercel_config::sound;
use crate::support::faults::Fault;
use crate::support::vercel::{ListShape, NAME, Vercel};

#[tokio::test]
async fn every_prefix_of_the_writes_is_safe_for_a_deployment_that_takes_it() {
    let first = release(1, "v1", None);
    let begun = [first.clone(), release(2, "v1", Some(("v2", 1_000)))];
    let stories: [(&[_], _, &[[&str; 3]]); 5] = [
        (&begun[..1], release(2, "v1", Some(("v2", 1_000))), &[["v1", "v2", "0"], ["v1", "v2", "10"]]),
        (&begun[..1], release(2, "v1", Some(("v3", 0))), &[["v1", "v3", "0"]]),
        (&begun, release(3, "v1", Some(("v2", 5_000))), &[["v1", "v2", "50"]]),
        (&begun, release(3, "v1", None), &[["v1", "v2", "0"], ["v1", "v1", "0"]]),
        (&begun, release(3, "v2", None), &[["v1", "v2", "0"], ["v2", "v2", "0"]]),
    ];
    for (before, change, expected) in stories {
        assert_eq!(prefixes(before, &change).await, expected);
    }
}

/// What the variables say after each request of a change.
async fn prefixes(before: &[Release], change: &Release) -> Vec<[String; 3]> {
    let (us, mut seen, mut began) = (InstanceId::generate(), vec![], None);
    for at in 0.. {
        let vercel = Vercel::start();
        let target = target(&vercel, json!({}));
        for earlier in before {
            target.apply(earlier, us).await.expect("applied");
        }
        let began = began.get_or_insert_with(|| values(&vercel));
        vercel.server.fault_after(at, Fault::StopAfter);
        let done = tokio::select! {
            applied = target.apply(change, us) => applied.is_ok(),
            () = vercel.server.stopped() => false,
        };
        let now = values(&vercel);
        if seen.last().unwrap_or(began) != &now {
            seen.push(now);
        }
        if done {
            break;
        }
    }
    seen
}

#[tokio::test]
async fn every_answer_of_the_list_is_understood() {
    let us = InstanceId::generate();
    for shape in [ListShape::Envs, ListShape::Paginated, ListShape::Single] {
        let vercel = Vercel::start();
        vercel.with(|world| {
            world.shape = shape;
            world.set("MODEL_VERSION", "v0");
        });
        let target = target(&vercel, json!({"project": NAME}));
        target.apply(&release(1, "v1", None), us).await.expect("applied");
        assert_eq!(values(&vercel), ["v1", "v1", "0"], "{shape:?}");
        sound(&vercel);
    }
}

#[tokio::test]
async fn a_variable_of_several_environments_is_changed_and_not_doubled() {
    let vercel = Vercel::start();
    vercel.with(|world| {
        world.set("MODEL_VERSION", "v0");
        world.variables[0].targets = vec!["production".to_owned(), "preview".to_owned()];
        world.variables[0].kind = "encrypted".to_owned();
    });
    let target = target(&vercel, json!({}));
    target.apply(&release(1, "v1", None), InstanceId::generate()).await.expect("applied");
    vercel.with(|world| {
        let all: Vec<_> = world.variables.iter().filter(|it| it.key == "MODEL_VERSION").collect();
        assert_eq!((all.len(), all[0].value.as_str(), all[0].targets.len()), (1, "v1", 2));
    });
    sound(&vercel);
}

#[tokio::test]
async fn what_cannot_be_read_back_or_was_not_written_is_an_error() {
    let us = InstanceId::generate();
    let vercel = Vercel::start();
    vercel.with(|world| {
        world.set("CANARY_PERCENT", "0");
        world.variables[0].kind = "sensitive".to_owned();
    });
    let error = target(&vercel, json!({})).apply(&release(1, "v1", None), us).await.expect_err("unreadable");
    insta::assert_snapshot!(error, @r#"Vercel project prj_raceday could not read `CANARY_PERCENT`: it is `sensitive`, which nobody can read back: remove it, refit makes it anew as `plain`; where the team's policy allows no readable ones, take `kind = "vercel-config"`"#);

    let vercel = Vercel::start();
    vercel.with(|world| world.fail_create = Some("MAX_ENVS_EXCEEDED"));
    let error = target(&vercel, json!({})).apply(&release(1, "v1", None), us).await.expect_err("refused");
    insta::assert_snapshot!(error, @"Vercel project prj_raceday could not write `REFIT_RELEASE`: MAX_ENVS_EXCEEDED: It was not created.");

    // Somebody was faster with the same name: looked at again, it works.
    let vercel = Vercel::start();
    vercel.with(|world| world.fail_create = Some("ENV_CONFLICT"));
    let target = target(&vercel, json!({}));
    let error = target.apply(&release(1, "v1", None), us).await.expect_err("refused");
    assert!(error.is_transient(), "{error}");
    target.apply(&release(1, "v1", None), us).await.expect("applied");
    assert_eq!(vercel.made(), 1);
    sound(&vercel);
}

#[tokio::test]
async fn what_somebody_set_by_hand_is_kept_and_the_canary_goes_all_the_same() {
    let (vercel, us) = (Vercel::start(), InstanceId::generate());
    let target = target(&vercel, json!({}));
    target.apply(&release(1, "v1", None), us).await.expect("applied");
    target.apply(&release(2, "v1", Some(("v2", 1_000))), us).await.expect("applied");
    vercel.with(|world| world.set("MODEL_VERSION", "v0"));
    let promote = target.apply(&release(3, "v2", None), us).await;
    insta::assert_snapshot!(
        promote.expect_err("by hand"),
        @"Vercel project prj_raceday was changed by somebody else: `MODEL_VERSION` says v0, not v1 as refit wrote at generation 2: set it back, or promote that version by hand"
    );
    assert_eq!(values(&vercel), ["v0", "v0", "0"], "the canary is off, the rest is kept");
    assert_eq!(says(&vercel).await["model"]["version"], "v0");
    // Promoting what was set makes it refit's.
    target.apply(&release(4, "v0", None), us).await.expect("applied");
    target.apply(&release(5, "v2", None), us).await.expect("applied");
    assert_eq!(values(&vercel), ["v2", "v2", "0"]);
    sound(&vercel);
}
