//! Versions in stores: one suite, run on a directory, on a real S3 server and on Vercel Blob.

mod clients;
mod faulty;
mod killed;
mod lines;
mod suite;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use refit::adapter::{ArtifactStore, BuildError, Deps};
use refit::artifacts;
use refit::domain::id::SecretName;
use refit::secret::{Secret, Secrets};
use serde_json::json;

use crate::support::python;
use crate::support::vercel_blob::{Access, VercelBlob};

/// refit's own client, one for all: making one reads every root certificate of the machine.
fn http() -> reqwest::Client {
    static CLIENT: LazyLock<reqwest::Client> =
        LazyLock::new(|| refit::http_client::build().expect("a client"));
    CLIENT.clone()
}

pub fn deps(project: &Path) -> Deps {
    let secret = |name: &str| (name.parse::<SecretName>().expect("a name"), Secret::new("test"));
    let token = ("BLOB_TOKEN".parse().expect("a name"), Secret::new(VercelBlob::token()));
    Deps {
        project: project.to_owned(),
        secrets: Secrets::fixed([secret("S3_ID"), secret("S3_KEY"), token].into()),
        http: http(),
        stores: Arc::new(BTreeMap::new()),
    }
}

pub fn local(dir: &Path) -> ArtifactStore {
    artifacts::build(json!({"kind": "local", "path": "store"}), &deps(dir)).expect("a store")
}

pub fn s3(server: &python::Program, prefix: &str) -> ArtifactStore {
    s3_at(server.port, prefix)
}

pub fn s3_at(port: u16, prefix: &str) -> ArtifactStore {
    let options = json!({
        "kind": "s3",
        "bucket": "models",
        "prefix": prefix,
        "endpoint": format!("http://127.0.0.1:{port}"),
        "access_key_id": "S3_ID",
        "secret_access_key": "S3_KEY",
    });
    artifacts::build(options, &deps(Path::new("/"))).expect("a store")
}

pub fn vercel_blob(service: &VercelBlob, access: Access, prefix: &str) -> ArtifactStore {
    let options = json!({
        "kind": "vercel-blob", "access": access.word(), "token": "BLOB_TOKEN", "prefix": prefix,
        "api_url": service.api_url(),
    });
    artifacts::build(options, &deps(Path::new("/"))).expect("a store")
}

#[tokio::test]
async fn a_local_directory() {
    let dir = tempfile::tempdir().expect("a directory");
    suite::exercise(|name| {
        let project = dir.path().join(name);
        std::fs::create_dir_all(&project).expect("made");
        local(&project)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_s3_server() {
    let server = python::s3().await;
    suite::exercise(|name| s3(&server, &format!("team/{name}"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vercel_blob_public() {
    let service = VercelBlob::start(Access::Public);
    suite::exercise(|name| vercel_blob(&service, Access::Public, &format!("team/{name}"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vercel_blob_private() {
    let service = VercelBlob::start(Access::Private);
    service.page_at_most(2);
    suite::publishes(|name| vercel_blob(&service, Access::Private, &format!("team/{name}"))).await;
}

#[tokio::test]
async fn what_apps_are_told_of_vercel_blob_comes_from_the_service() {
    let service = VercelBlob::start(Access::Public);
    let store = vercel_blob(&service, Access::Public, "team a");
    let (model, version) = ("m".parse().expect("a name"), "v1".parse().expect("a name"));
    let unknown = store.base_url(&model, &version).expect_err("no answer yet").to_string();
    assert!(unknown.contains("say where apps find m/v1") && unknown.contains("public_url"), "{unknown}");
    let at = store.prefix.clone().join("x.json");
    object_store::ObjectStoreExt::put(&*store.objects, &at, "x".into()).await.expect("written");
    let told = store.base_url(&model, &version).expect("known");
    assert_eq!(told, format!("{}/team%20a/m/v1", service.files_url()));
    // Another process learns it from a list, and a stated one needs no answer.
    let other = vercel_blob(&service, Access::Public, "team a");
    futures::TryStreamExt::try_collect::<Vec<_>>(other.objects.list(None)).await.expect("listed");
    assert_eq!(other.base_url(&model, &version).expect("known"), told);
    let stated = json!({
        "kind": "vercel-blob", "access": "public", "token": "BLOB_TOKEN", "public_url": "https://cdn.example/m/",
    });
    let stated = artifacts::build(stated, &deps(Path::new("/"))).expect("a store");
    assert_eq!(stated.base_url(&model, &version).expect("stated"), "https://cdn.example/m/m/v1");
}

#[test]
fn a_token_of_vercel_blob_is_shown_nowhere() {
    let token = VercelBlob::token();
    let options = json!({"kind": "vercel-blob", "access": "public", "token": "BLOB_TOKEN"});
    let store = artifacts::build(options, &deps(Path::new("/"))).expect("a store");
    let shown = format!("{:?} {} {}", store.objects, store.objects, store.label);
    let secret = token.rsplit('_').next().expect("a secret");
    assert!(shown.contains("aB3dE5gH7jK9mN1p") && !shown.contains(secret), "{shown}");
    let mut wrong = deps(Path::new("/"));
    wrong.secrets =
        Secrets::fixed([("T".parse().expect("a name"), Secret::new(token.replace("rw", "r")))].into());
    let options = json!({"kind": "vercel-blob", "access": "public", "token": "T"});
    let error = artifacts::build(options, &wrong).err().expect("no token").to_string();
    assert!(error.contains("is not a read-write token") && !error.contains(secret), "{error}");
}

#[tokio::test]
async fn an_s3_server_that_is_not_there_is_unavailable() {
    let options = json!({
        "kind": "s3", "bucket": "models", "endpoint": "http://127.0.0.1:1",
        "access_key_id": "S3_ID", "secret_access_key": "S3_KEY",
    });
    let store = artifacts::build(options, &deps(Path::new("/"))).expect("a store");
    let model = "m".parse().expect("a name");
    let error = artifacts::sealed::list_sealed(&store, &model).await.expect_err("nobody there");
    assert!(error.is_transient(), "{error}");
}

#[test]
fn settings_that_make_no_sense_are_refused_by_name() {
    let build = |options| match artifacts::build(options, &deps(Path::new("/"))) {
        Ok(_) => panic!("built"),
        Err(error) => error,
    };
    insta::assert_snapshot!(build(json!({"kind": "s33"})), @"no store is called `s33`; there are local, s3, vercel-blob");
    insta::assert_snapshot!(build(json!({"dir": "x"})), @"`kind` is missing: one of local, s3, vercel-blob");
    insta::assert_snapshot!(
        build(json!({"kind": "local", "pth": "x"})),
        @"local: unknown field `pth`, expected one of `path`, `public_url`, `gzip`"
    );
    let half = json!({"kind": "s3", "bucket": "b", "access_key_id": "S3_ID"});
    assert!(matches!(build(half), BuildError::Options { kind: "s3", .. }));
    let missing = json!({"kind": "s3", "bucket": "b", "access_key_id": "NOWHERE"});
    assert!(matches!(build(missing), BuildError::Secret(_)));
}

#[test]
fn apps_are_told_where_files_are() {
    let base = |options| {
        let store = artifacts::build(options, &deps(Path::new("/"))).expect("a store");
        store.base_url(&"m".parse().expect("a name"), &"v1".parse().expect("a name")).expect("known")
    };
    let keys = |mut options: serde_json::Value| {
        options["access_key_id"] = json!("S3_ID");
        options["secret_access_key"] = json!("S3_KEY");
        base(options)
    };
    assert_eq!(
        keys(json!({"kind": "s3", "bucket": "b", "prefix": "p/q", "region": "eu-west-1"})),
        "https://b.s3.eu-west-1.amazonaws.com/p/q/m/v1"
    );
    assert_eq!(
        keys(json!({"kind": "s3", "bucket": "b", "endpoint": "https://r2.example"})),
        "https://r2.example/b/m/v1"
    );
    assert_eq!(
        keys(json!({"kind": "s3", "bucket": "b", "public_url": "https://cdn.example/x/"})),
        "https://cdn.example/x/m/v1"
    );
}
