//! `kill -9` in the middle of an upload: the next process sends what is missing, and nothing twice.

use std::time::Duration;

use crate::processes::project::{Project, eventually};
use crate::support::faults::Fault;
use crate::support::line::Op;
use crate::support::vercel_blob::{Access, VercelBlob};

/// Half a minute: longer than the test, whose process is dead by then.
const STUCK: Fault = Fault::Slow(Duration::from_secs(30));

fn project(service: &VercelBlob) -> Project {
    let project = Project::sqlite();
    project.write(
        "refit.toml",
        &format!(
            "[worker]\ngrace_seconds = 3\n[stores.models]\nkind = \"vercel-blob\"\naccess = \"public\"\ntoken = \"BLOB\"\n\
             api_url = \"{}\"\n[secrets]\nBLOB = \"blob-token\"\n",
            service.api_url()
        ),
    );
    project.write("blob-token", &VercelBlob::token());
    project.write(
        "workflows/retrain.yaml",
        "
name: retrain
model: m
steps:
  - id: train
    run: 'for n in 1 2 3 4 5 6; do head -c 100000 /dev/urandom > $REFIT_OUT/$n.bin; done; head -c 9000000 /dev/urandom > $REFIT_OUT/large.bin'
  - { id: publish, uses: publish, with: { store: models, version: counter } }
",
    );
    project
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_goes_on_where_it_was_killed() {
    let service = VercelBlob::start(Access::Public);
    let project = project(&service);
    // The last small files and the second part get stuck.
    service.fault(service.on(STUCK, |call| call.pathname.ends_with("/6.bin") || call.part == Some(2)));
    let mut server = project.serve().ready();
    let run = project.trigger("retrain");
    let finished = || (1..=5).all(|n| service.brought(&format!("/{n}.bin")) == 1);
    eventually("five files and half of the large one", || {
        (finished() && service.calls().iter().any(|call| call.part == Some(2))).then_some(())
    });
    server.kill9();
    assert!(!service.pathnames().iter().any(|path| path.ends_with("manifest.json")), "nothing is sealed");
    service.mend();
    service.forget_calls();
    let server = project.serve();
    project.await_success(&[run]).await;
    for n in 1..=5 {
        assert_eq!(service.brought(&format!("/{n}.bin")), 0, "{n}.bin was sent again");
    }
    for name in ["/6.bin", "/large.bin", "/manifest.json"] {
        assert_eq!(service.brought(name), 1, "{name}");
    }
    assert_eq!(service.brought("_claim.json"), 0, "it is ours already");
    assert!(service.calls().iter().filter(|call| call.op == Op::Part).count() == 2);
    let log = server.log();
    assert!(!log.contains("s3cr3t"), "{log}");
    let version: serde_json::Value = serde_json::from_str(&project.says(&["model", "ls", "--json"])).unwrap();
    assert!(version.to_string().contains(&service.files_url()), "{version}");
}
