//! Stops a process at any write: before it or after it, inside the database or
//! outside. The product has no switch for this; wrappers around its traits do it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
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

/// Which write: by its number among all, from 0, or by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Point {
    Number(usize),
    Named(Write),
}

impl From<usize> for Point {
    fn from(number: usize) -> Self {
        Self::Number(number)
    }
}

impl From<Write> for Point {
    fn from(write: Write) -> Self {
        Self::Named(write)
    }
}

/// Counts writes, and dies at one of them: from then on, nothing returns.
#[derive(Debug, Clone)]
pub struct Crash {
    /// The first of them that comes.
    at: Vec<(Point, When)>,
    died: CancellationToken,
    made: Arc<Mutex<Made>>,
    instead: Option<Instead>,
    frozen: Arc<tokio::sync::watch::Sender<bool>>,
    files: Arc<tokio::sync::watch::Sender<Files>>,
    outage: Arc<tokio::sync::watch::Sender<Outage>>,
}

/// Whether the database is away, and the calls that it did not answer.
#[derive(Debug, Default)]
struct Outage {
    away: bool,
    unanswered: Vec<&'static str>,
}

/// What becomes of a read of a version's files; its manifest is always read, and lists are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Files {
    #[default]
    Readable,
    /// As with a right to list and none to read.
    Denied,
    /// Nothing comes, until that changes.
    Held,
}

#[derive(Debug, Default)]
struct Made {
    counts: BTreeMap<String, usize>,
    trace: Vec<Write>,
    /// The names of those that came back.
    done: BTreeSet<String>,
    last: Option<(Write, When)>,
}

/// What happens at a write instead of dying.
#[derive(Clone)]
enum Instead {
    Freeze,
    Do(Act),
}

type Act = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

impl fmt::Debug for Instead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Freeze => f.write_str("Freeze"),
            Self::Do(_) => f.write_str("Do"),
        }
    }
}

impl Crash {
    /// Counts only.
    pub fn never() -> Self {
        Self {
            at: vec![],
            died: CancellationToken::new(),
            made: Arc::default(),
            instead: None,
            frozen: Arc::new(tokio::sync::watch::Sender::new(false)),
            files: Arc::default(),
            outage: Arc::default(),
        }
    }

    /// Dies at a write.
    pub fn at(point: impl Into<Point>, when: When) -> Self {
        Self { at: vec![(point.into(), when)], ..Self::never() }
    }

    /// Dies at whatever of these comes first.
    pub fn at_first_of(points: &[(Write, When)]) -> Self {
        let at = points.iter().map(|(write, when)| (Point::Named(write.clone()), *when));
        Self { at: at.collect(), ..Self::never() }
    }

    /// At a write, everything of the process stands still until `thaw`.
    pub fn freeze_at(point: impl Into<Point>, when: When) -> Self {
        Self { instead: Some(Instead::Freeze), ..Self::at(point, when) }
    }

    /// At a write, `act` happens, and the process goes on.
    pub fn meanwhile<F>(
        point: impl Into<Point>,
        when: When,
        act: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self { instead: Some(Instead::Do(Arc::new(move || Box::pin(act())))), ..Self::at(point, when) }
    }

    /// From now on everything of the process stands still until `thaw`.
    pub fn freeze(&self) {
        self.frozen.send_replace(true);
    }

    /// Returns when the process stands still.
    pub async fn is_frozen(&self) {
        self.frozen.subscribe().wait_for(|frozen| *frozen).await.expect("the sender lives");
    }

    /// The process wakes up.
    pub fn thaw(&self) {
        self.frozen.send_replace(false);
    }

    /// From now on, reads of files go like this.
    pub fn files(&self, files: Files) {
        self.files.send_replace(files);
    }

    /// From now on the database is away, or back.
    pub fn outage(&self, away: bool) {
        self.outage.send_modify(|outage| outage.away = away);
    }

    /// Returns when the database, being away, did not answer `call`.
    pub async fn unanswered(&self, call: &str) {
        let mut outage = self.outage.subscribe();
        outage.wait_for(|outage| outage.unanswered.contains(&call)).await.expect("the sender lives");
    }

    /// Whether the database answers `call`.
    pub fn answers(&self, call: &'static str) -> bool {
        let answers = !self.outage.borrow().away;
        if !answers {
            self.outage.send_modify(|outage| outage.unanswered.push(call));
        }
        answers
    }

    async fn read(&self, at: &Path) -> object_store::Result<()> {
        if at.filename() == Some("manifest.json") {
            return Ok(());
        }
        let mut files = self.files.subscribe();
        match *files.wait_for(|files| *files != Files::Held).await.expect("the sender lives") {
            Files::Denied => Err(object_store::Error::PermissionDenied {
                path: at.to_string(),
                source: "403 Forbidden".into(),
            }),
            Files::Readable | Files::Held => Ok(()),
        }
    }

    /// The writes so far.
    pub fn trace(&self) -> Vec<Write> {
        self.made.lock().unwrap().trace.clone()
    }

    /// The names of the writes so far.
    pub fn names(&self) -> Vec<String> {
        self.trace().into_iter().map(|write| write.name).collect()
    }

    /// What it died at.
    pub fn last(&self) -> Option<(Write, When)> {
        self.made.lock().unwrap().last.clone()
    }

    /// Whether a write called `name` was made.
    pub fn made(&self, name: &str) -> bool {
        self.made.lock().unwrap().done.contains(name)
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
        self.frozen.subscribe().wait_for(|frozen| !frozen).await.expect("the sender lives");
    }

    /// Makes a write, or dies at it.
    pub async fn around<T>(&self, name: &str, write: impl Future<Output = T>) -> T {
        self.alive().await;
        let this = self.number(name);
        self.meet(&this, When::Before).await;
        let written = write.await;
        self.made.lock().unwrap().done.insert(name.to_owned());
        self.meet(&this, When::After).await;
        self.alive().await;
        written
    }

    /// The write's number among all, and its name.
    fn number(&self, name: &str) -> (usize, Write) {
        let mut made = self.made.lock().unwrap();
        let count = made.counts.entry(name.to_owned()).or_default();
        let this = Write { name: name.to_owned(), nth: *count };
        *count += 1;
        made.trace.push(this.clone());
        (made.trace.len() - 1, this)
    }

    async fn meet(&self, (number, this): &(usize, Write), when: When) {
        let here = |(point, then): &(Point, When)| {
            let same = match point {
                Point::Number(wanted) => wanted == number,
                Point::Named(wanted) => wanted == this,
            };
            same && *then == when
        };
        if !self.at.iter().any(here) {
            return;
        }
        match &self.instead {
            Some(Instead::Do(act)) => act().await,
            Some(Instead::Freeze) => {
                self.freeze();
                self.alive().await;
            }
            None => {
                self.made.lock().unwrap().last.get_or_insert((this.clone(), when));
                self.died.cancel();
                std::future::pending::<()>().await;
            }
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
        self.crash.read(at).await?;
        self.inner.get_opts(at, options).await
    }

    /// One by one, so that it may die between two.
    fn delete_stream(
        &self,
        paths: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        let (inner, crash) = (Arc::clone(&self.inner), self.crash.clone());
        let deleted = paths.then(move |path| {
            let (inner, crash) = (Arc::clone(&inner), crash.clone());
            async move {
                let path = path?;
                let name = format!("delete {}", path.filename().unwrap_or_default());
                crash.around(&name, inner.delete(&path)).await.map(|()| path)
            }
        });
        deleted.boxed()
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
