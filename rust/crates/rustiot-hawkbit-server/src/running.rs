//! The server on a port of this machine, in a thread of its own, so that tests need not be asynchronous. Called by
//! tests and the lab; never outlives its value.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::thread::JoinHandle;

use tokio::sync::oneshot;

use crate::HawkBit;

/// A running server; it ends with this value.
#[derive(Debug)]
pub struct Running {
    hawkbit: HawkBit,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// An empty hawkBit on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// There is no port, or no thread.
    pub fn start() -> io::Result<Self> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let hawkbit = HawkBit::default();
        let router = hawkbit.router();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().spawn(move || {
            runtime.block_on(async {
                let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
                tokio::select! {
                    _ = axum::serve(listener, router).into_future() => {}
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { hawkbit, address, stop: Some(stop), thread: Some(thread) })
    }

    /// Its address on this machine.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Its address as the guest of a QEMU machine sees it.
    #[must_use]
    pub fn guest_url(&self) -> String {
        format!("http://10.0.2.2:{}", self.address.port())
    }
}

impl Deref for Running {
    type Target = HawkBit;

    fn deref(&self) -> &HawkBit {
        &self.hawkbit
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
