//! Targets: one suite, which every target passes.

mod own_host;
mod suite;
mod vercel;
mod vercel_config;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use object_store::{ObjectStoreExt, PutPayload};
use refit::adapter::{AdapterError, Target};
use refit::hosting;
use serde_json::json;

use crate::artifacts::{deps, s3};
use crate::support::python;
use suite::Host;

fn pointer(project: &Path, options: serde_json::Value) -> Arc<dyn Target> {
    hosting::build(options, &deps(project)).expect("a target")
}

#[tokio::test]
async fn a_pointer_file() {
    let dir = tempfile::tempdir().expect("a directory");
    suite::exercise(|name| {
        let path = format!("public/{name}/{{model}}.json");
        let file = dir.path().join(format!("public/{name}/race-times.json"));
        Host::local(
            pointer(dir.path(), json!({"kind": "pointer", "path": path})),
            pointer(dir.path(), json!({"kind": "pointer", "path": path, "take_over": true})),
            move |text| {
                std::fs::write(&file, text).expect("written");
                Box::pin(async {})
            },
        )
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pointer_object_in_a_real_s3_server() {
    let server = python::s3().await;
    suite::exercise(|name| {
        let store = s3(&server, name);
        let mut deps = deps(Path::new("/"));
        deps.stores = Arc::new(BTreeMap::from([("models".parse().expect("a name"), store.clone())]));
        let build = |options| hosting::build(options, &deps).expect("a target");
        let at = store.prefix.clone().join("race-times").join("release.json");
        Host::local(
            build(json!({"kind": "pointer", "store": "models"})),
            build(json!({"kind": "pointer", "store": "models", "take_over": true})),
            move |text| {
                let (objects, at) = (store.objects.clone(), at.clone());
                Box::pin(async move {
                    objects.put(&at, PutPayload::from(text)).await.expect("written");
                })
            },
        )
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writers_of_one_file_leave_the_newest_release() {
    let dir = tempfile::tempdir().expect("a directory");
    let target = pointer(dir.path(), json!({"kind": "pointer", "path": "release.json"}));
    let us = refit::domain::id::InstanceId::generate();
    let mut writers = tokio::task::JoinSet::new();
    for generation in 1..=40 {
        let target = target.clone();
        writers.spawn(async move { target.apply(&suite::release(generation, "1", None), us).await });
    }
    for written in writers.join_all().await {
        assert!(matches!(written, Ok(()) | Err(AdapterError::Conflict { .. })), "{written:?}");
    }
    let there = target.read(&suite::model()).await.expect("readable").expect("there");
    assert_eq!(there.document.generation.0, 40);
    let files: Vec<_> = std::fs::read_dir(dir.path()).expect("readable").collect();
    assert_eq!(files.len(), 2, "the document and its lock: {files:?}");
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_is_found_by_doctor() {
    let target = pointer(Path::new("/proc/nowhere"), json!({"kind": "pointer", "path": "release.json"}));
    target.check().await.expect_err("not writable");
    let release = suite::release(1, "1", None);
    target.apply(&release, refit::domain::id::InstanceId::generate()).await.expect_err("not writable");
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let build = |options| match hosting::build(options, &deps(Path::new("/"))) {
        Ok(_) => panic!("built"),
        Err(error) => error,
    };
    insta::assert_snapshot!(build(json!({"kind": "vercell"})), @"no target is called `vercell`; there are pointer, vercel-config, vercel, http, command");
    insta::assert_snapshot!(
        build(json!({"kind": "pointer"})),
        @"pointer: it needs either `path`, or `store` and perhaps `object`"
    );
    insta::assert_snapshot!(
        build(json!({"kind": "pointer", "store": "nowhere"})),
        @"pointer: there is no store `nowhere`"
    );
}
