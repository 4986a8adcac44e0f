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

/// What is done just before a write.
type Before = (usize, Box<dyn FnOnce() + Send>);

/// Counts writes (puts, parts, completions) and dies at the `at`-th: from then on nothing works.
pub struct Faults {
    /// Bytes that still fit.
    space: std::sync::Mutex<Option<usize>>,
    before: std::sync::Mutex<Option<Before>>,
    at: usize,
    /// The write that dies is made, only its answer is lost.
    made: bool,
    writes: AtomicUsize,
    puts: std::sync::Mutex<Vec<String>>,
}

impl Faults {
    pub fn new(at: usize, made: bool) -> Arc<Self> {
        Arc::new(Self {
            space: std::sync::Mutex::default(),
            before: std::sync::Mutex::default(),
            at,
            made,
            writes: AtomicUsize::new(0),
            puts: std::sync::Mutex::default(),
        })
    }

    /// The disk is full after `space` bytes.
    pub fn full_after(space: usize) -> Arc<Self> {
        let faults = Self::none();
        *faults.space.lock().expect("not poisoned") = Some(space);
        faults
    }

    /// Does something before the write with this number, from 0.
    pub fn before_write(&self, number: usize, what: impl FnOnce() + Send + 'static) {
        *self.before.lock().expect("not poisoned") = Some((number, Box::new(what)));
    }

    /// Whether `bytes` more fit.
    fn fit(&self, bytes: usize) -> Result<()> {
        let mut space = self.space.lock().expect("not poisoned");
        match *space {
            Some(left) if left < bytes => {
                *space = Some(0);
                let source = std::io::Error::from_raw_os_error(28).into();
                Err(Error::Generic { store: "full", source })
            }
            Some(left) => {
                *space = Some(left - bytes);
                Ok(())
            }
            None => Ok(()),
        }
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
        let before = self.before.lock().expect("not poisoned").take_if(|(number, _)| *number == n);
        if let Some((_, what)) = before {
            what();
        }
        (n < self.at || (n == self.at && self.made), n < self.at)
    }

    fn alive(&self) -> bool {
        self.writes() <= self.at
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults").field("at", &self.at).finish_non_exhaustive()
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
        self.faults.fit(payload.content_length())?;
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
        if let Err(full) = self.faults.fit(data.content_length()) {
            return Box::pin(async { Err(full) });
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
