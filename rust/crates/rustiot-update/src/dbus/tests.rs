//! The bus face over an in-memory connection: the committed XML, the options, errors and changes as clients see them.

use zbus::Guid;
use zbus::connection::{Builder, socket::channel::Channel};

use super::*;
use crate::status::{Phase, Progress};

const XML: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../docs/contracts/org.rustiot.Update1.xml");

struct Peer {
    server: Connection,
    client: Connection,
    commands: mpsc::Receiver<Command>,
    hawkbit: mpsc::Receiver<Ask>,
    status: watch::Sender<Status>,
}

async fn peer() -> Peer {
    let (sender, commands) = mpsc::channel(4);
    let (ask, hawkbit) = mpsc::channel(4);
    let (status, receiver) = watch::channel(Status::default());
    let guid = Guid::generate();
    let (a, b) = Channel::pair();
    let server = Builder::authenticated_socket(a, guid.clone())
        .unwrap()
        .p2p()
        .unique_name(":1.1")
        .unwrap()
        .serve_at(PATH, Update::new(sender, ask, receiver))
        .unwrap()
        .build()
        .await
        .unwrap();
    let client = Builder::authenticated_socket(b, guid).unwrap().p2p().build().await.unwrap();
    Peer { server, client, commands, hawkbit, status }
}

async fn proxy(peer: &Peer) -> Update1Proxy<'static> {
    Update1Proxy::builder(&peer.client).destination(":1.1").unwrap().build().await.unwrap()
}

/// The part of the introspection that is ours, without the standard interfaces.
fn ours(xml: &str) -> String {
    let start = xml.find("<interface name=\"org.rustiot.Update1\">").unwrap();
    let end = xml[start..].find("</interface>").unwrap() + start + "</interface>".len();
    let mut text = xml[start..end].to_owned();
    while let (Some(from), Some(to)) = (text.find("<!--"), text.find("-->")) {
        text.replace_range(from..to + 3, "");
    }
    text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
}

/// `RUSTIOT_BLESS=1 cargo test` writes the file anew.
#[tokio::test]
async fn the_committed_xml_is_what_the_service_says_of_itself() {
    let p = peer().await;
    let xml: String = p
        .client
        .call_method(Some(":1.1"), PATH, Some("org.freedesktop.DBus.Introspectable"), "Introspect", &())
        .await
        .unwrap()
        .body()
        .deserialize()
        .unwrap();
    if std::env::var_os("RUSTIOT_BLESS").is_some() {
        let text = format!(
            "<!DOCTYPE node PUBLIC \"-//freedesktop//DTD D-BUS Object Introspection 1.0//EN\"\n \"http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd\">\n<node>\n  {}\n</node>\n",
            ours(&xml)
        );
        rustiot_durable::atomic_write(XML.as_ref(), text.as_bytes()).unwrap();
    }
    let committed = std::fs::read_to_string(XML).unwrap();
    assert_eq!(
        ours(&committed),
        ours(&xml),
        "RUSTIOT_BLESS=1 writes docs/contracts/org.rustiot.Update1.xml anew"
    );
}

#[tokio::test]
async fn an_order_reaches_the_engine_and_its_answer_the_caller() {
    let mut p = peer().await;
    let proxy = proxy(&p).await;
    let options = HashMap::from([("hold", "reboot".into()), ("force", true.into())]);
    let call = proxy.install("http://h/x", options);
    let engine = async {
        let Some(Command::Install(request, reply)) = p.commands.recv().await else {
            panic!("not an install")
        };
        assert_eq!(
            (request.source.as_str(), request.hold, request.force),
            ("http://h/x", Hold::Reboot, true)
        );
        reply.send(Ok(request.id.clone())).unwrap();
        request.id
    };
    let (answer, id) = tokio::join!(call, engine);
    assert_eq!(answer.unwrap(), id);
    assert_eq!(uuid::Uuid::parse_str(&id).unwrap().get_version_num(), 4);
}

#[tokio::test]
async fn a_refusal_keeps_its_kind_text_and_hint() {
    let mut p = peer().await;
    let proxy = proxy(&p).await;
    for kind in [Kind::Busy, Kind::NotNow, Kind::Usage, Kind::State] {
        let engine = async {
            let Some(Command::Cancel(reply)) = p.commands.recv().await else { panic!("not a cancel") };
            reply.send(Err(Failure::new(kind, "no").because("cause").hint("wait"))).unwrap();
        };
        let (answer, ()) = tokio::join!(proxy.cancel(), engine);
        let failure = answer.unwrap_err().into_failure();
        assert_eq!(failure.kind.exit_code(), kind.exit_code());
        assert_eq!((failure.message.as_str(), failure.hint.as_deref()), ("no: cause", Some("wait")));
    }
}

#[tokio::test]
async fn unknown_and_senseless_options_are_refused_without_asking_the_engine() {
    let mut p = peer().await;
    let proxy = proxy(&p).await;
    for (name, value) in [
        ("hodl", zbus::zvariant::Value::from("none")),
        ("hold", "sometimes".into()),
        ("hold", true.into()),
        ("force", "yes".into()),
        ("by", "me".into()),
        ("size", 0_u64.into()),
        ("size", "5".into()),
        ("sha256", "ab".into()),
        ("sha256", "x".repeat(64).into()),
    ] {
        let failure = proxy.install("/x", HashMap::from([(name, value)])).await.unwrap_err().into_failure();
        assert_eq!(failure.kind, Kind::Usage, "{name}");
    }
    assert!(p.commands.try_recv().is_err());
}

#[tokio::test]
async fn a_server_says_on_whose_behalf_it_orders_and_what_the_file_must_have() {
    let mut p = peer().await;
    let proxy = proxy(&p).await;
    let options =
        HashMap::from([("by", "server".into()), ("size", 5_u64.into()), ("sha256", "AB".repeat(32).into())]);
    let engine = async {
        let Some(Command::Install(request, reply)) = p.commands.recv().await else { panic!() };
        assert_eq!((request.by, request.file.size), (By::Server, Some(5)));
        assert_eq!(request.file.sha256, Some("ab".repeat(32)));
        reply.send(Ok(request.id)).unwrap();
    };
    let (answer, ()) = tokio::join!(proxy.install("http://h/x", options), engine);
    answer.unwrap();
}

#[tokio::test]
async fn consent_and_looks_reach_hawkbit() {
    let mut p = peer().await;
    let proxy = proxy(&p).await;
    let hawkbit = async {
        let Some(Ask::Consent(false, reply)) = p.hawkbit.recv().await else { panic!() };
        reply.send(Err(Failure::new(Kind::NotNow, "no"))).unwrap();
        assert!(matches!(p.hawkbit.recv().await, Some(Ask::Poll)));
        let Some(Command::Check(reply)) = p.commands.recv().await else { panic!() };
        reply.send(Err(Failure::new(Kind::NothingNew, "no"))).unwrap();
    };
    let calls = async {
        assert_eq!(proxy.consent(false).await.unwrap_err().into_failure().kind, Kind::NotNow);
        assert!(proxy.check().await.is_err());
        assert_eq!(proxy.hawkbit().await.unwrap(), "");
    };
    tokio::join!(calls, hawkbit);
}

#[tokio::test]
async fn holds_and_times_are_read_before_they_are_passed_on() {
    let mut p = peer().await;
    let proxy = proxy(&p).await;
    assert_eq!(proxy.set_hold("lunch").await.unwrap_err().into_failure().kind, Kind::Usage);
    assert_eq!(proxy.schedule("none", 5).await.unwrap_err().into_failure().kind, Kind::Usage);
    assert!(p.commands.try_recv().is_err());
    let engine = async {
        let Some(Command::Schedule(Stage::Reboot, 5, reply)) = p.commands.recv().await else { panic!() };
        reply.send(Ok(())).unwrap();
        let Some(Command::Install(request, reply)) = p.commands.recv().await else { panic!() };
        assert_eq!((request.source.as_str(), request.hold), ("", Hold::Install));
        reply.send(Ok("id".into())).unwrap();
    };
    let calls = async {
        proxy.schedule("reboot", 5).await.unwrap();
        assert_eq!(proxy.download().await.unwrap(), "id");
    };
    tokio::join!(calls, engine);
}

#[tokio::test]
async fn an_engine_that_is_gone_is_an_error() {
    let mut p = peer().await;
    p.commands.close();
    assert!(proxy(&p).await.activate().await.is_err());
}

#[tokio::test]
async fn clients_see_changes_and_the_phase_last() {
    let p = peer().await;
    let proxy = proxy(&p).await;
    let announcing = announce(&p.server, p.status.subscribe());
    let script = async {
        assert_eq!(proxy.phase().await.unwrap(), "idle");
        p.status.send_modify(|s| {
            s.phase = Phase::Installing;
            s.message = "writing".into();
            s.progress = Progress { percent: 7, bytes: 8, total: 9, step: "x".into(), ..Progress::default() };
        });
        use futures_lite::StreamExt;
        let mut phases = proxy.receive_phase_changed().await;
        while phases.next().await.unwrap().get().await.unwrap() != "installing" {}
        assert_eq!(proxy.progress().await.unwrap(), (7, 8, 9, "x".to_owned()));
        assert_eq!(proxy.message().await.unwrap(), "writing");
        assert_eq!(
            (proxy.why().await.unwrap(), proxy.transaction().await.unwrap()),
            (String::new(), String::new())
        );
    };
    tokio::select! {
        result = announcing => panic!("ended: {result:?}"),
        () = script => {}
    }
}

#[test]
fn why_and_history_are_json() {
    let why = crate::status::Why {
        transaction: "t".into(),
        source: "/x".into(),
        version: None,
        at: 3,
        failure: Failure::new(Kind::Signature, "no"),
    };
    let value: serde_json::Value = serde_json::from_str(&json(&why)).unwrap();
    assert_eq!((value["kind"].as_str(), value["at"].as_u64()), (Some("signature"), Some(3)));
    assert_eq!(serde_json::from_value::<crate::status::Why>(value).unwrap(), why);
}

#[test]
fn a_refusal_keeps_its_exit_code_over_the_bus_and_says_nothing_twice() {
    for kind in [Kind::Usage, Kind::NotNow, Kind::Busy, Kind::Untrusted, Kind::Signature, Kind::Unreachable] {
        let back = Error::from(Failure::new(kind, "why").hint("what to do")).into_failure();
        assert_eq!(back.kind.exit_code(), kind.exit_code(), "{kind:?}");
        assert_eq!((back.message.as_str(), back.hint.as_deref()), ("why", Some("what to do")));
    }
    let mut failure = Failure::new(Kind::Untrusted, "a: b");
    failure.chain = vec!["a: b".into(), "b".into(), "c".into()];
    assert_eq!(Error::from(failure).into_failure().message, "a: b: c");
}
