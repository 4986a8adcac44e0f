//! Stops a process at any write: before it or after it, inside the database or
//! outside. The product has no switch for this; wrappers around its traits do it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use refit::adapter::{AdapterError, Observed, Target, TargetTraits};
use refit::domain::id::*;
use refit::domain::release::Release;
use tokio_util::sync::CancellationToken;

/// Where a process dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// The write was not made.
    Before,
    /// The write was made; nobody heard of it.
    After,
}

/// One write: its name, and how many of that name were made before it. What
/// runs side by side comes in any order, but each name counts for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    pub name: String,
    pub nth: usize,
}

impl fmt::Display for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.name, self.nth)
    }
}

/// Counts writes, and dies at one of them: from then on, nothing returns.
#[derive(Debug, Clone)]
pub struct Crash {
    at: Option<(Write, When)>,
    died: CancellationToken,
    made: Arc<Mutex<Made>>,
}

#[derive(Debug, Default)]
struct Made {
    counts: BTreeMap<String, usize>,
    trace: Vec<Write>,
}

impl Crash {
    /// Counts only.
    pub fn never() -> Self {
        Self { at: None, died: CancellationToken::new(), made: Arc::default() }
    }

    /// Dies at `write`.
    pub fn at(write: Write, when: When) -> Self {
        Self { at: Some((write, when)), ..Self::never() }
    }

    /// The writes so far.
    pub fn trace(&self) -> Vec<Write> {
        self.made.lock().unwrap().trace.clone()
    }

    /// Returns when the process died.
    pub async fn died(&self) {
        self.died.cancelled().await;
    }

    /// Never returns in a dead process.
    pub async fn alive(&self) {
        if self.died.is_cancelled() {
            std::future::pending::<()>().await;
        }
    }

    /// Makes a write, or dies at it.
    pub async fn around<T>(&self, name: &str, write: impl Future<Output = T>) -> T {
        self.alive().await;
        let this = self.number(name);
        self.die_if(&this, When::Before).await;
        let written = write.await;
        self.die_if(&this, When::After).await;
        self.alive().await;
        written
    }

    fn number(&self, name: &str) -> Write {
        let mut made = self.made.lock().unwrap();
        let count = made.counts.entry(name.to_owned()).or_default();
        let this = Write { name: name.to_owned(), nth: *count };
        *count += 1;
        made.trace.push(this.clone());
        this
    }

    async fn die_if(&self, this: &Write, when: When) {
        if self.at.as_ref().is_some_and(|(write, then)| write == this && *then == when) {
            self.died.cancel();
            std::future::pending::<()>().await;
        }
    }
}

/// A target whose writes can be the last thing a process does.
pub struct CrashingTarget {
    /// The real one.
    pub inner: Arc<dyn Target>,
    /// When.
    pub crash: Crash,
}

#[async_trait]
impl Target for CrashingTarget {
    fn traits(&self) -> TargetTraits {
        self.inner.traits()
    }

    async fn read(&self, model: &ModelName) -> Result<Option<Observed>, AdapterError> {
        self.crash.alive().await;
        self.inner.read(model).await
    }

    async fn apply(&self, release: &Release, instance: InstanceId) -> Result<(), AdapterError> {
        self.crash.around("target.apply", self.inner.apply(release, instance)).await
    }

    async fn check(&self) -> Result<String, AdapterError> {
        self.inner.check().await
    }
}

/// An object store whose writes can be the last thing a process does.
#[derive(Debug)]
pub struct CrashingObjects {
    /// The real one.
    pub inner: Arc<dyn ObjectStore>,
    /// When.
    pub crash: Crash,
}

impl fmt::Display for CrashingObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.inner)
    }
}

#[async_trait]
impl ObjectStore for CrashingObjects {
    async fn put_opts(
        &self,
        at: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        let name = format!("put {}", at.filename().unwrap_or_default());
        self.crash.around(&name, self.inner.put_opts(at, payload, options)).await
    }

    /// The tests' files are small; one that is sent in parts would not be counted.
    async fn put_multipart_opts(
        &self,
        at: &Path,
        _: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        panic!("{at} is sent in parts, and parts are not counted")
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.crash.alive().await;
        self.inner.get_opts(at, options).await
    }

    fn delete_stream(
        &self,
        _: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        panic!("nothing is deleted by a run")
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.crash.alive().await;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, _: CopyOptions) -> object_store::Result<()> {
        panic!("{from} is copied to {to}, and copies are not counted")
    }
}
