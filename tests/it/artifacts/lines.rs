//! Stores at the end of a line that breaks.

use std::time::{Duration, Instant};

use object_store::ObjectStoreExt;
use refit::adapter::{AdapterError, ArtifactStore};
use refit::artifacts::sealed::{self, SealedError};
use refit::artifacts::upload::{CHUNK, UploadError};

use super::suite::{Training, listed, model, name, object};
use crate::support::faults::Fault;
use crate::support::line::{Call, Line, Op};
use crate::support::vercel_blob::{Access, VercelBlob};
use crate::support::{python, s3_line};

/// One file that is sent whole, one in two parts.
const FILES: [(&str, usize); 2] = [("model.json", 1_000), ("large.bin", CHUNK + 1_000)];

/// Whatever breaks once, the version is made, at the latest when it is asked for again, and is whole.
async fn a_line_that_breaks_once(fresh: impl Fn(&str) -> ArtifactStore, line: &Line) {
    let training = Training::of(&FILES);
    training.publish(&fresh("calm"), "1").await.expect("published");
    let writes = line.calls().iter().filter(|call| call.op.writes()).count();
    assert!(writes >= 7, "claim, file, begin, two parts, complete, manifest: {:?}", line.calls());
    for write in 0..writes {
        for (kind, fault) in
            [Fault::CutAtOnce, Fault::CutHalfway, Fault::LostAnswer, Fault::Torn].into_iter().enumerate()
        {
            let store = fresh(&format!("cut-{write}-{kind}"));
            line.fault(line.on(fault.clone(), |call| call.op.writes()).after(write).once());
            if let Err(error) = training.publish(&store, "1").await {
                assert!(transient(&error), "{write} {fault:?}: {error}");
                assert!(listed(&store).await.is_empty(), "{write} {fault:?}");
                line.mend();
                training
                    .publish(&store, "1")
                    .await
                    .unwrap_or_else(|error| panic!("{write} {fault:?}: {error}"));
            }
            line.mend();
            sealed::verify(&store, &model(), &name("1")).await.expect("whole");
        }
    }
}

fn transient(error: &UploadError) -> bool {
    outside(error).is_some_and(AdapterError::is_transient)
}

/// What the store answered, whichever part of an upload asked.
fn outside(error: &UploadError) -> Option<&AdapterError> {
    match error {
        UploadError::Store(error) | UploadError::Sealed(SealedError::Store(error)) => Some(error),
        _ => None,
    }
}

/// A storm outlasts every retry: a clear error, nothing sealed, and all is well when it is over.
async fn a_storm(fresh: impl Fn(&str) -> ArtifactStore, line: &Line) {
    let training = Training::of(&FILES);
    for (name, fault) in [("500", line.refused(500, "InternalError")), ("429", line.rate_limited("1"))] {
        let store = fresh(name);
        line.fault(line.on(fault, |call| matches!(call.op, Op::Part | Op::Put)).after(1));
        let error = training.publish(&store, "1").await.expect_err(name);
        assert!(transient(&error) && error.to_string().contains(name), "{error}");
        line.mend();
        assert!(listed(&store).await.is_empty());
        training.publish(&store, "1").await.expect("the storm is over");
    }
}

/// Slow answers are waited for; a token that expired is not tried again.
async fn slow_and_expired(fresh: impl Fn(&str) -> ArtifactStore, line: &Line) {
    let training = Training::of(&FILES);
    line.fault(line.on(Fault::Slow(Duration::from_millis(150)), |_| true));
    training.publish(&fresh("slow"), "1").await.expect("published");
    line.mend();
    let store = fresh("expired");
    line.fault(line.on(line.expired(), |_| true).after(3));
    line.forget_calls();
    let error = training.publish(&store, "1").await.expect_err("expired");
    assert!(matches!(outside(&error), Some(AdapterError::Denied { .. })), "{error}");
    assert!(line.calls().len() < 12, "not tried again and again: {:?}", line.calls());
    line.mend();
    assert!(listed(&store).await.is_empty());
    training.publish(&store, "1").await.expect("with a new token");
}

/// A file is read to its end although the line is cut.
async fn torn_downloads(store: &ArtifactStore, line: &Line) {
    let training = Training::of(&FILES);
    training.publish(store, "1").await.expect("published");
    line.fault(
        line.on(Fault::Torn, |call: &Call| call.op == Op::Download && call.pathname.ends_with("large.bin"))
            .times(2),
    );
    line.fault(line.on(Fault::CutAtOnce, |call: &Call| call.op == Op::Download).times(2));
    let to = training.dir.path().join("fetched");
    sealed::fetch(store, &model(), &name("1"), &to).await.expect("fetched");
    for file in &training.files {
        assert!(
            std::fs::read(to.join(&file.path)).expect("there") == std::fs::read(&file.source).expect("there")
        );
    }
}

/// Whether a version is there is seen from its manifest and one list: a rollback waits for no file.
async fn seen_without_reading(store: &ArtifactStore, line: &Line) {
    let training = Training::of(&FILES);
    training.publish(store, "1").await.expect("published");
    line.forget_calls();
    sealed::verify_presence(store, &model(), &name("1")).await.expect("there");
    let read: Vec<String> = line
        .calls()
        .into_iter()
        .filter(|call| call.op == Op::Download)
        .map(|call| call.pathname)
        .filter(|path| !path.ends_with("manifest.json"))
        .collect();
    assert_eq!(read, [""; 0]);
    let large = object(store, "1", "large.bin");
    store.objects.delete(&large).await.expect("deleted");
    let gone = sealed::verify_presence(store, &model(), &name("1")).await.expect_err("not there");
    assert!(gone.to_string().contains("large.bin") && gone.to_string().contains("not there"), "{gone}");
    store.objects.put(&large, "short".into()).await.expect("written");
    let short = sealed::verify_presence(store, &model(), &name("1")).await.expect_err("another size");
    assert!(short.to_string().contains("it has 5 bytes"), "{short}");
}

#[tokio::test(flavor = "multi_thread")]
async fn vercel_blob_cut_in_every_part() {
    let service = VercelBlob::start(Access::Public);
    a_line_that_breaks_once(|name| super::vercel_blob(&service, Access::Public, name), &service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vercel_blob_in_a_storm() {
    let service = VercelBlob::start(Access::Public);
    let fresh = |name: &str| super::vercel_blob(&service, Access::Public, name);
    a_storm(fresh, &service).await;
    slow_and_expired(fresh, &service).await;
    torn_downloads(&fresh("torn"), &service).await;
    service.mend();
    seen_without_reading(&fresh("seen"), &service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_cut_in_every_part() {
    let server = python::s3().await;
    let line = s3_line::to(server.port);
    a_line_that_breaks_once(|name| super::s3_at(line.port, name), &line).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_in_a_storm() {
    let server = python::s3().await;
    let line = s3_line::to(server.port);
    let fresh = |name: &str| super::s3_at(line.port, name);
    a_storm(fresh, &line).await;
    slow_and_expired(fresh, &line).await;
    torn_downloads(&fresh("torn"), &line).await;
    line.mend();
    seen_without_reading(&fresh("seen"), &line).await;
}

/// The service says how long: refit waits that long, and no longer than it has patience for.
#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_of_vercel_blob_is_waited_for() {
    let service = VercelBlob::start(Access::Public);
    let store = super::vercel_blob(&service, Access::Public, "");
    let at = object(&store, "1", "a.json");
    service.fault(service.on(service.rate_limited("1"), |_| true).times(2));
    let begin = Instant::now();
    store.objects.put(&at, "a".into()).await.expect("written");
    assert!(begin.elapsed() >= Duration::from_secs(2), "{:?}", begin.elapsed());
    assert_eq!(service.calls().len(), 3);

    service.fault(service.on(service.rate_limited("3600"), |_| true));
    let begin = Instant::now();
    let error = sealed::list_sealed(&store, &model()).await.expect_err("for an hour");
    assert!(begin.elapsed() < Duration::from_secs(20));
    let asked = Duration::from_secs(3600);
    assert!(
        matches!(&error, AdapterError::Unavailable { retry_after: Some(wait), .. } if *wait == asked),
        "the engine waits: {error:?}"
    );
}

/// Every refusal is an error that says what to do, with no secret in it.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_of_vercel_blob_say_what_to_do() {
    let service = VercelBlob::start(Access::Public);
    let store = super::vercel_blob(&service, Access::Public, "");
    let refused = async |fault| {
        service.mend();
        service.fault(service.on(fault, |_| true));
        let error = sealed::list_sealed(&store, &model()).await.expect_err("refused");
        assert!(matches!(error, AdapterError::Denied { .. }), "{error:?}");
        assert!(!error.to_string().contains("s3cr3t"), "{error}");
        error.to_string()
    };
    assert!(refused(service.expired()).await.contains("make a new read-write token"));
    assert!(refused(service.refused(403, "store_suspended")).await.contains("its page on Vercel says why"));
    assert!(refused(service.refused(404, "store_not_found")).await.contains("connect another one"));
    assert!(refused(service.refused(403, "not_allowed")).await.contains("read-write token of this store"));
    service.mend();
    let private = super::vercel_blob(&service, Access::Private, "");
    let wrong = Training::of(&FILES).publish(&private, "1").await.expect_err("a public store").to_string();
    assert!(wrong.contains("The store is configured with public access"), "{wrong}");
}

/// What was overwritten meanwhile is not overwritten again.
#[tokio::test(flavor = "multi_thread")]
async fn vercel_blob_updates_only_what_was_read() {
    use object_store::{Error, PutMode, UpdateVersion};
    let service = VercelBlob::start(Access::Public);
    let store = super::vercel_blob(&service, Access::Public, "");
    let at = object(&store, "1", "pointer.json");
    let update = |e_tag: Option<String>| PutMode::Update(UpdateVersion { e_tag, version: None });
    let first = store.objects.put(&at, "1".into()).await.expect("written");
    let second =
        store.objects.put_opts(&at, "2".into(), update(first.e_tag.clone()).into()).await.expect("updated");
    assert_ne!(first.e_tag, second.e_tag);
    let late = store.objects.put_opts(&at, "3".into(), update(first.e_tag).into()).await.expect_err("late");
    assert!(matches!(late, Error::Precondition { .. }), "{late}");
    let blind = store.objects.put_opts(&at, "3".into(), update(None).into()).await.expect_err("blind");
    assert!(matches!(blind, Error::NotSupported { .. }), "{blind}");
    let there = store.objects.put_multipart(&at).await.expect_err("never overwritten in parts");
    assert!(matches!(there, Error::AlreadyExists { .. }), "{there}");
    assert_eq!(store.objects.get(&at).await.expect("there").bytes().await.expect("read"), "2");
    let mut parts = store.objects.put_multipart(&object(&store, "1", "parts")).await.expect("begun");
    parts.put_part(vec![0; 100].into()).await.expect("sent");
    let small = parts.put_part(vec![0; 100].into()).await.expect_err("a small part before the last");
    assert!(small.to_string().contains("can only be the last one"), "{small}");
}
