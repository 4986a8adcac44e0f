//! An object store that breaks at one operation: before it, after it, or halfway.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};

/// Counts writes (puts, parts, completions) and dies at the `at`-th: from then on nothing works.
#[derive(Debug)]
pub struct Faults {
    at: usize,
    /// The write that dies is made, only its answer is lost.
    made: bool,
    writes: AtomicUsize,
    puts: std::sync::Mutex<Vec<String>>,
}

impl Faults {
    pub fn new(at: usize, made: bool) -> Arc<Self> {
        Arc::new(Self { at, made, writes: AtomicUsize::new(0), puts: std::sync::Mutex::default() })
    }

    /// Never breaks.
    pub fn none() -> Arc<Self> {
        Self::new(usize::MAX, false)
    }

    pub fn writes(&self) -> usize {
        self.writes.load(Ordering::SeqCst)
    }

    /// What was written whole, in order: objects by put, and begun uploads in parts.
    pub fn puts(&self) -> Vec<String> {
        self.puts.lock().expect("not poisoned").clone()
    }

    fn note(&self, path: &Path) {
        self.puts.lock().expect("not poisoned").push(path.to_string());
    }

    /// Whether this write is made, and whether its answer comes.
    fn write(&self) -> (bool, bool) {
        let n = self.writes.fetch_add(1, Ordering::SeqCst);
        (n < self.at || (n == self.at && self.made), n < self.at)
    }

    fn alive(&self) -> bool {
        self.writes() <= self.at
    }
}

fn cut<T>() -> Result<T> {
    Err(Error::Generic { store: "faulty", source: "the line was cut".into() })
}

/// `inner` with `faults`.
#[derive(Debug)]
pub struct Faulty {
    pub inner: Arc<dyn ObjectStore>,
    pub faults: Arc<Faults>,
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "faulty {}", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let (made, answered) = self.faults.write();
        if !made {
            return cut();
        }
        self.faults.note(at);
        let result = self.inner.put_opts(at, payload, options).await;
        if answered { result } else { cut() }
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        if !self.faults.alive() {
            return cut();
        }
        self.faults.note(at);
        let inner = self.inner.put_multipart_opts(at, options).await?;
        Ok(Box::new(FaultyUpload { inner, faults: self.faults.clone() }))
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        if self.faults.alive() { self.inner.get_opts(at, options).await } else { cut() }
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[derive(Debug)]
struct FaultyUpload {
    inner: Box<dyn MultipartUpload>,
    faults: Arc<Faults>,
}

#[async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (made, answered) = self.faults.write();
        if !made {
            return Box::pin(async { cut() });
        }
        let part = self.inner.put_part(data);
        Box::pin(async move { if answered { part.await } else { part.await.and_then(|()| cut()) } })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let (made, answered) = self.faults.write();
        if !made {
            return cut();
        }
        let result = self.inner.complete().await;
        if answered { result } else { cut() }
    }

    async fn abort(&mut self) -> Result<()> {
        // A process that was killed drops nothing.
        if self.faults.alive() { self.inner.abort().await } else { cut() }
    }
}
