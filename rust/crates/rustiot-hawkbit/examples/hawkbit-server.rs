//! The tests' hawkBit on a port of this machine, so that other suites can be run against it:
//! `cargo run -p rustiot-hawkbit --example hawkbit-server -- 8080`.

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let port: u16 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(8080);
    let hawkbit = rustiot_hawkbit_server::HawkBit::default();
    let v4 = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    let v6 = tokio::net::TcpListener::bind(("::1", port)).await;
    let other = hawkbit.router();
    if let Ok(v6) = v6 {
        tokio::spawn(async move { axum::serve(v6, other).await });
    }
    println!("hawkBit for tests on port {port}");
    axum::serve(v4, hawkbit.router()).await
}
