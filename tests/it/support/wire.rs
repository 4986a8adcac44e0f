//! The way to a database, which may forget the connections that go through it: neither end is told, and nothing comes
//! through any more. Those made later are well.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// A port on loopback that leads to another one, until it is dropped.
pub struct Wire {
    /// What leads through it.
    pub url: String,
    forgotten: Arc<watch::Sender<u64>>,
    _task: AbortOnDropHandle<()>,
}

impl Wire {
    /// The way to the server of `url`.
    pub async fn to(url: &str) -> Self {
        let mut url = url::Url::parse(url).expect("a URL");
        let server = (url.host_str().expect("a host").to_owned(), url.port().unwrap_or(5432));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        url.set_host(Some("127.0.0.1")).expect("a host");
        url.set_port(Some(port)).expect("a port");
        let forgotten = Arc::new(watch::Sender::new(0));
        let forgetting = Arc::clone(&forgotten);
        let task = tokio::spawn(async move {
            loop {
                let (near, _) = listener.accept().await.expect("a connection");
                let (server, forgotten) = (server.clone(), forgetting.subscribe());
                tokio::spawn(async move {
                    let far = TcpStream::connect(server).await.expect("the server answers");
                    carry(near, far, forgotten).await;
                });
            }
        });
        Self { url: url.to_string(), forgotten, _task: AbortOnDropHandle::new(task) }
    }

    /// Nothing comes through the connections there are.
    pub fn forget(&self) {
        self.forgotten.send_modify(|times| *times += 1);
    }
}

/// Carries what either end says, until one hangs up or the wire is gone; nothing once it is forgotten, not even that one
/// hung up.
async fn carry(near: TcpStream, far: TcpStream, mut forgotten: watch::Receiver<u64>) {
    forgotten.mark_unchanged();
    let (mut near_read, mut near_write) = near.into_split();
    let (mut far_read, mut far_write) = far.into_split();
    tokio::select! {
        biased;
        known = forgotten.changed() => {
            // Both ends stay as they are while the wire is there.
            while known.is_ok() && forgotten.changed().await.is_ok() {}
        }
        () = one_way(&mut near_read, &mut far_write) => {}
        () = one_way(&mut far_read, &mut near_write) => {}
    }
}

async fn one_way(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) {
    // A connection that breaks ends for both.
    let _ = tokio::io::copy(from, to).await;
}
