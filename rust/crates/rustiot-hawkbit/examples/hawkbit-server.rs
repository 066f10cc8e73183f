//! The tests' hawkBit on a port of this machine, so that other suites can be run against it:
//! `cargo run -p rustiot-hawkbit --example hawkbit-server -- 8080`.

#[allow(dead_code, missing_docs, reason = "shared with the tests, which use more of it")]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a server for tests")]
#[path = "../tests/server/mod.rs"]
mod server;

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let port: u16 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(8080);
    let hawkbit = server::HawkBit::default();
    let v4 = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    let v6 = tokio::net::TcpListener::bind(("::1", port)).await;
    let other = hawkbit.router();
    if let Ok(v6) = v6 {
        tokio::spawn(async move { axum::serve(v6, other).await });
    }
    println!("hawkBit for tests on port {port}");
    axum::serve(v4, hawkbit.router()).await
}
