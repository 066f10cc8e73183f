//! `serve`: the lab's web server for people. Plain files with range requests, nothing else.

use crate::fail::{Done, Fail};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

/// Serves until Ctrl-C.
pub fn run(dir: &Path, port: u16) -> Done {
    if !dir.is_dir() {
        return Err(Fail::usage(format!("{} is no directory", dir.display())));
    }
    let server = testbed::FileServer::bind(dir, SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    let port = server.address().port();
    println!("serving {} at http://127.0.0.1:{port}/", dir.display());
    for entry in std::fs::read_dir(dir)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".raucb") {
            println!("on a machine in QEMU: rustiot update install {}", server.guest_url(&name));
        }
    }
    println!("Ctrl-C ends it.");
    loop {
        std::thread::park();
    }
}
