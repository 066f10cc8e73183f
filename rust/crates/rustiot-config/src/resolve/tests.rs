//! What the owner of a device with a bad file gets: tables of files, and properties over any bytes.

use super::*;
use proptest::prelude::*;

const FILE: &str = "/config/rustiot.toml";
const KEY_A: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f a";

fn fragment(file: &str, text: impl AsRef<[u8]>) -> Fragment {
    Fragment { file: file.into(), content: Content::Bytes(text.as_ref().to_vec()) }
}

fn run(text: impl AsRef<[u8]>, last_good: &LastGood) -> Outcome {
    resolve(None, &[fragment(FILE, text)], last_good)
}

fn messages(outcome: &Outcome) -> Vec<String> {
    outcome.messages.iter().map(ToString::to_string).collect()
}

/// A device that ran well with this file before.
fn before() -> LastGood {
    let text = format!(
        "hostname = 'kitchen'\n[ssh]\nauthorized_keys = ['{KEY_A}']\n[health]\nsettle = '7s'\n\
         [network.lan]\nname = 'eth0'\ndhcp = false\naddresses = ['10.0.0.2/24']\n"
    );
    let outcome = run(text, &LastGood::default());
    assert_eq!(messages(&outcome), [""; 0]);
    outcome.last_good
}

#[test]
fn a_good_file() {
    let outcome = run("hostname = 'a'\nhealth.soak = '1h'\n", &before());
    assert_eq!(messages(&outcome), [""; 0]);
    assert_eq!(outcome.settings.hostname.as_ref().unwrap().as_str(), "a");
    assert_eq!(outcome.settings.health.soak.as_secs(), 3600);
    // What a whole file does not say has its default, not its last good value.
    assert_eq!(outcome.settings.ssh.authorized_keys, []);
    assert_eq!(outcome.last_good.keys.keys().collect::<Vec<_>>(), ["health.soak", "hostname"]);
}

#[test]
fn each_message_says_where_what_and_what_now() {
    let good = before();
    for (text, expected) in [
        (
            "hostname = 'not a host'\n",
            r#"/config/rustiot.toml:1:12: error: hostname: expected a host name: letters, digits and hyphens, 1 to 63 characters a label, 64 in all; hostname stays "kitchen" (last good value)"#,
        ),
        (
            "hostname = 5\n",
            r#"/config/rustiot.toml:1:12: error: hostname: invalid type: integer `5`, expected a host name: letters, digits and hyphens, 1 to 63 characters a label, 64 in all; hostname stays "kitchen" (last good value)"#,
        ),
        (
            "[health]\n  soak = '5 minutes'\n",
            r#"/config/rustiot.toml:2:10: error: health.soak: expected a duration such as "20s", "5m", "1h30m" or "2d"; health.soak is "2m" (default)"#,
        ),
        (
            "[update]\npolicy = 'autoo'\n",
            r#"/config/rustiot.toml:2:10: error: update.policy: unknown variant `autoo`, expected one of `auto`, `automatic`, `check`, `notify`, `manual`; update.policy is "manual" (default)"#,
        ),
        (
            "[health]\nsetle = '5s'\n",
            r#"/config/rustiot.toml:2:1: warning: health.setle: unknown key; did you mean "settle"?; it is ignored"#,
        ),
        (
            "[healht]\nsettle = '5s'\n",
            r#"/config/rustiot.toml:1:2: warning: healht: unknown key; did you mean "health"?; it is ignored"#,
        ),
        (
            "health = 'yes'\n",
            r#"/config/rustiot.toml:1:10: error: health: expected a section [health]; its keys keep their last good values"#,
        ),
        (
            "[watchdog]\ntimeout = '1s'\n",
            r#"/config/rustiot.toml:2:11: error: watchdog.timeout: expected a duration from 10s to 10m; watchdog.timeout is "1m" (default)"#,
        ),
        (
            "[network.LAN]\ndhcp = true\n",
            r#"/config/rustiot.toml:1:10: error: network.LAN: expected a section name of 1 to 32 lower-case letters, digits, hyphens and underscores; the section is left out"#,
        ),
        (
            "[network.w]\ntype = 'wifi'\nssid = 's'\npsk = 12345678\n",
            "/config/rustiot.toml:4:7: error: network.w.psk: expected a passphrase of 8 to 63 printable ASCII characters; network.w.psk is unset",
        ),
        (
            "[update]\nwindows = ['02:00-04:00', 'mo 02:00-04:00']\n",
            r#"/config/rustiot.toml:2:27: error: update.windows: expected a window such as "02:00-05:00", "mon-fri 22:00-04:00" or "sat,sun 00:00-24:00 Europe/Berlin"; this entry is left out"#,
        ),
        (
            "[update]\nmirrors = ['https://m.example']\n",
            "/config/rustiot.toml:2:11: error: update.mirrors: expected update.source, as there are mirrors of it; update.mirrors is a list of 0 entries (default)",
        ),
        (
            "[update]\nreport_url = 'http://r.example'\n",
            "/config/rustiot.toml:2:14: error: update.report_url: expected an https:// address; update.report_url is unset (default)",
        ),
        (
            "[update]\nrate_limit = '100'\n",
            "/config/rustiot.toml:2:14: error: update.rate_limit: expected a size of at least 1K (bytes a second); update.rate_limit is unset (default)",
        ),
        (
            "[engine]\ninsecure_registries = ['192.168.1.5:5000', 'http://registry.example']\n",
            r#"/config/rustiot.toml:2:44: error: engine.insecure_registries: expected a registry without scheme and path, such as "registry.example.com" or "192.168.1.5:5000"; this entry is left out"#,
        ),
        (
            "[engine]\nmirrors = ['https://mirror.example']\n",
            r#"/config/rustiot.toml:2:12: error: engine.mirrors: expected a registry, "=" and the address of its mirror, such as "docker.io=https://mirror.example.com"; engine.mirrors is a list of 0 entries (default)"#,
        ),
        (
            "[engine]\nmirrors = ['docker.io=http://mirror.example:5000']\n",
            "/config/rustiot.toml:2:11: error: engine.mirrors: expected https:// for mirrors, or the mirror's host (with its port) in engine.insecure_registries; engine.mirrors is a list of 0 entries (default)",
        ),
        (
            "[engine]\nimage_share = 100\n",
            "/config/rustiot.toml:2:15: error: engine.image_share: expected a percentage from 1 to 95, or 0 to let none go; engine.image_share is 0 (default)",
        ),
        (
            "[engine]\nlog_size = '1K'\n",
            r#"/config/rustiot.toml:2:12: error: engine.log_size: expected a size of at least 64K; engine.log_size is "4M" (default)"#,
        ),
        (
            "[time]\nservers = 1979-05-27\n",
            r#"/config/rustiot.toml:2:11: error: time.servers: expected a list such as ["…"], found a date; time.servers is a list of 1 entry (default)"#,
        ),
    ] {
        assert_eq!(messages(&run(text, &good)), [expected], "{text:?}");
    }
}

#[test]
fn a_bad_entry_costs_itself_and_a_list_without_a_good_one_stays() {
    let mixed = format!("[ssh]\nauthorized_keys = ['{KEY_A}', 'ssh-ed25519 AAAA']\n");
    let outcome = run(mixed, &LastGood::default());
    assert_eq!(outcome.settings.ssh.authorized_keys.len(), 1);
    assert_eq!(outcome.messages.len(), 1);
    assert_eq!(outcome.messages[0].now, "this entry is left out");

    let outcome = run("[ssh]\nauthorized_keys = ['x', 'y']\n", &before());
    assert_eq!(outcome.settings.ssh.authorized_keys[0].as_str(), KEY_A);
    assert_eq!(outcome.messages[1].now, "ssh.authorized_keys stays a list of 1 entry (last good value)");

    let outcome = run("[ssh]\nauthorized_keys = []\n", &before());
    assert_eq!(outcome.settings.ssh.authorized_keys, [], "an empty list is what the owner wants");
    assert_eq!(run("[time]\nservers = 'a.example'\n", &before()).settings.time.servers.len(), 1);
}

#[test]
fn a_damaged_file_keeps_what_it_no_longer_says() {
    let good = before();
    let cases: &[(&str, Content)] = &[
        ("empty", Content::Bytes(vec![])),
        ("missing", Content::Missing),
        ("10 MB", Content::TooLarge(10 << 20)),
        ("I/O error", Content::Unreadable("Input/output error (os error 5)".into())),
        ("UTF-16", Content::Bytes(vec![0xff, 0xfe, b'h', 0, b'o', 0])),
        ("noise", Content::Bytes((0..=255).cycle().take(5000).collect())),
        ("half", Content::Bytes(b"hostname = 'kitchen'\n[ssh]\nauthorized_keys = ['ssh-ed2551".to_vec())),
    ];
    for (name, content) in cases {
        let fragment = Fragment { file: FILE.into(), content: content.clone() };
        let outcome = resolve(None, &[fragment], &good);
        assert!(!outcome.messages.is_empty(), "{name}");
        assert_eq!(outcome.settings.hostname.as_ref().unwrap().as_str(), "kitchen", "{name}");
        assert_eq!(outcome.settings.ssh.authorized_keys[0].as_str(), KEY_A, "{name}");
        assert_eq!(outcome.settings.network.len(), 1, "{name}");
        assert_eq!(outcome.last_good.keys.len(), good.keys.len(), "{name}");
    }
}

#[test]
fn a_typo_on_the_very_first_boot_still_lets_the_owner_in() {
    let text = format!("hostname = my kitchen\n[ssh]\nauthorized_keys = ['{KEY_A}']\n");
    let outcome = run(text, &LastGood::default());
    assert_eq!(outcome.settings.ssh.authorized_keys.len(), 1);
    assert_eq!(outcome.settings.hostname, None);
    assert_eq!(outcome.messages.len(), 1);
    assert!(outcome.messages[0].to_string().starts_with("/config/rustiot.toml:1:12: error: not valid TOML"));
}

#[test]
fn later_files_win_and_a_removed_one_takes_its_values_along() {
    let main = fragment(FILE, "hostname = 'a'\n[log]\nrate = 100\n");
    let extra = fragment("/config/rustiot.d/10.toml", "hostname = 'b'\n");
    let both = resolve(None, &[main.clone(), extra], &LastGood::default());
    assert_eq!(both.settings.hostname.as_ref().unwrap().as_str(), "b");
    let without = resolve(None, std::slice::from_ref(&main), &both.last_good);
    assert_eq!(without.settings.hostname.as_ref().unwrap().as_str(), "a");
    // A bad value in the later file does not fall through to the earlier file, but to the last good value.
    let bad = fragment("/config/rustiot.d/10.toml", "hostname = '-'\n");
    let outcome = resolve(None, &[main, bad], &both.last_good);
    assert_eq!(outcome.settings.hostname.as_ref().unwrap().as_str(), "b");
}

#[test]
fn the_image_has_its_own_defaults() {
    let image = fragment("/usr/lib/rustiot/defaults.toml", "[log]\nrate = 500\n[health]\nsettle = '3s'\n");
    let outcome = resolve(Some(&image), &[fragment(FILE, "log.rate = 'x'\n")], &LastGood::default());
    assert_eq!((outcome.settings.log.rate, outcome.settings.health.settle.as_secs()), (500, 3));
    assert_eq!(outcome.messages[0].now, "log.rate is 500 (the image's default)");
    assert_eq!(outcome.last_good, LastGood::default(), "a new image brings new defaults");
}

#[test]
fn rules_between_keys() {
    let lan = before();
    for (text, what) in [
        (
            "[watchdog]\ninterval = '40s'\n",
            "expected watchdog.interval to be less than half of watchdog.timeout",
        ),
        ("[health]\nsettle = '20m'\n", "expected health.settle to be shorter than health.deadline"),
        ("[network.lan]\ndhcp = false\n", "expected addresses, as dhcp is off"),
        ("[network.w]\ntype = 'wifi'\n", "expected an ssid, as the type is \"wifi\""),
        ("[network.w]\nssid = 'x'\n", "expected type = \"wifi\", as there is an ssid or a psk"),
        (
            "[network.w]\ngateway = ['10.0.0.1', '10.0.0.2']\n",
            "expected at most one gateway for IPv4 and one for IPv6",
        ),
        (
            "[update]\nsource = 'https://s'\nhawkbit.url = 'https://h'\nhawkbit.target_token_file = '/config/t'\n",
            "expected update.source or update.hawkbit.url, not both: one of them decides about releases",
        ),
        (
            "[update.hawkbit]\nurl = 'http://h'\ntarget_token_file = '/config/t'\n",
            "expected an https:// address, or allow_http = true for a laboratory",
        ),
        ("[update.hawkbit]\nkey = '/config/k'\n", "expected certificate and key, as one of them is given"),
        (
            "[update.hawkbit]\nurl = 'https://h'\n",
            "expected one of target_token_file, gateway_token_file and certificate, by which hawkBit knows the device",
        ),
        (
            "[update.hawkbit]\nurl = 'https://h'\ntarget_token_file = '/a'\ngateway_token_file = '/b'\n",
            "expected one of target_token_file, gateway_token_file and certificate, by which hawkBit knows the device",
        ),
    ] {
        for last_good in [&LastGood::default(), &lan] {
            let outcome = run(text, last_good);
            assert_eq!(outcome.messages.len(), 1, "{text:?}: {:?}", messages(&outcome));
            assert_eq!(outcome.messages[0].what, what);
            assert!(outcome.messages[0].place.line > 0);
            assert!(violations(&outcome.settings).is_empty(), "{text:?}");
        }
    }
}

#[test]
fn a_second_source_does_not_take_the_first_ones_place() {
    let first = run("[update]\nsource = 'https://s'\n", &LastGood::default());
    let both =
        "[update]\nsource = 'https://s'\n[update.hawkbit]\nurl = 'https://h'\ntarget_token_file = '/t'\n";
    let outcome = run(both, &first.last_good);
    assert_eq!(outcome.settings.update.source.unwrap().as_str(), "https://s");
    assert_eq!((outcome.settings.update.hawkbit.url, outcome.messages.len()), (None, 1));
}

#[test]
fn attributes_are_the_owners_own_and_each_stands_for_itself() {
    let text = "[update.hawkbit.attributes]\nsite = 'north'\n'a.b' = 'x'\nfloor = 5\n\"\" = 'x'\n";
    let outcome = run(text, &LastGood::default());
    let attributes = &outcome.settings.update.hawkbit.attributes;
    let known: Vec<_> = attributes.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    assert_eq!(known, [("site", "north")]);
    assert_eq!(outcome.messages.len(), 3, "{:?}", messages(&outcome));
    let again = run("[update.hawkbit.attributes]\nsite = ['x']\n", &outcome.last_good);
    assert_eq!(again.settings.update.hawkbit.attributes, *attributes, "the last good value");
    let none = run("[update.hawkbit]\nattributes = 'north'\n", &outcome.last_good);
    assert_eq!((none.settings.update.hawkbit.attributes.len(), none.messages.len()), (0, 1));
    let many: String = (0..100).map(|n| format!("a{n} = 'x'\n")).collect();
    let outcome = run(format!("[update.hawkbit.attributes]\n{many}"), &LastGood::default());
    assert_eq!(outcome.settings.update.hawkbit.attributes.len(), MAX_ATTRIBUTES);
}

#[test]
fn a_hawkbit_address_holds_no_credentials() {
    let text = "[update.hawkbit]\nurl = 'https://me:hunter2@h'\n";
    let outcome = run(text, &LastGood::default());
    assert_eq!((outcome.settings.update.hawkbit.url, outcome.messages.len()), (None, 1));
    assert!(!outcome.messages[0].to_string().contains("hunter2"));
}

#[test]
fn last_good_values_of_another_release_are_checked_too() {
    let good: LastGood = serde_json::from_str(
        r#"{"keys":{
            "hostname":{"value":"not a host","file":"/config/rustiot.toml","line":1,"column":1},
            "gone.key":{"value":1,"file":"/config/rustiot.toml","line":1,"column":1},
            "health":{"value":{"settle":"1d"},"file":"/config/rustiot.toml","line":1,"column":1},
            "":{"value":1,"file":"/config/rustiot.toml","line":1,"column":1},
            "network.a/b.dhcp":{"value":true,"file":"/config/rustiot.toml","line":1,"column":1}}}"#,
    )
    .unwrap();
    let outcome = run("", &good);
    assert_eq!(outcome.settings, Settings::default());
    assert_eq!(outcome.last_good, LastGood::default());
}

#[test]
fn no_message_holds_a_secret() {
    let secret = "hunter2hunter2ü";
    let text = format!("[network.w]\ntype = 'wifi'\nssid = 's'\npsk = '{secret}'\n");
    let outcome = run(text, &LastGood::default());
    assert_eq!(outcome.messages.len(), 1);
    assert!(!messages(&outcome)[0].contains("hunter2"));
    let text = "[network.w]\ntype = 'wifi'\nssid = 's'\npsk = 'hunter2hunter2'\n";
    let settings = run(text, &LastGood::default()).settings;
    assert!(serde_json::to_string(&settings).unwrap().contains("hunter2"));
    assert!(!serde_json::to_string(&settings.without_secrets()).unwrap().contains("hunter2"));
}

#[test]
fn a_hostile_file_is_answered_with_a_page_of_messages() {
    let text: String = (0..50_000).map(|n| format!("k{n}=1\n")).collect();
    let outcome = run(text, &LastGood::default());
    assert_eq!(outcome.messages.len(), MAX_MESSAGES + 1);
    let text: String = (0..20_000).map(|n| format!("[network.n{n}]\nmetric={n}\n")).collect();
    assert_eq!(run(text, &LastGood::default()).settings.network.len(), MAX_NETWORKS);
}

#[test]
fn a_list_has_a_limit() {
    let text = format!("[time]\nservers = [{}]\n", "'a.example',".repeat(MAX_ENTRIES + 1));
    let outcome = run(text, &LastGood::default());
    assert_eq!(outcome.settings.time.servers.len(), MAX_ENTRIES);
    assert_eq!(outcome.messages.len(), 1);
    assert_eq!(outcome.messages[0].what, "expected at most 256 entries, found 257");
}

/// Every leaf of the settings, as the types tell it.
fn all_keys() -> Vec<String> {
    fn walk(prefix: &str, value: &Value, out: &mut Vec<String>) {
        match value {
            Value::Object(map) if !map.is_empty() => {
                for (name, value) in map {
                    walk(&format!("{prefix}.{name}"), value, out);
                }
            }
            Value::Object(_) if prefix.ends_with(".attributes") => {
                walk(&format!("{prefix}.site"), &Value::Null, out)
            }
            Value::Object(_) => walk(&format!("{prefix}.lan"), &network_template(), out),
            _ => out.push(prefix.trim_start_matches('.').to_owned()),
        }
    }
    let mut out = Vec::new();
    walk("", &template(), &mut out);
    out
}

#[test]
fn every_default_is_a_valid_value_of_its_key() {
    let keys = all_keys();
    assert!(keys.len() > 50 && keys.contains(&"network.lan.psk".to_owned()), "{keys:?}");
    for key in keys {
        let mut root = template();
        root["network"] = serde_json::json!({"lan": network_template()});
        root["update"]["hawkbit"]["attributes"] = serde_json::json!({"site": "north"});
        let default = root.pointer(&format!("/{}", key.replace('.', "/"))).unwrap().clone();
        assert_eq!(check(&key, &default), Ok(default), "{key}");
    }
}

proptest! {
    #[test]
    fn any_bytes_give_settings(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        fuzz(&bytes);
    }

    /// Real keys with values of every kind, cut anywhere: always settings that keep the rules, always messages
    /// for what is not in force, and the last good values bring the same settings back.
    #[test]
    fn any_values_give_settings(
        lines in proptest::collection::vec(
            (
                any::<prop::sample::Index>(),
                prop_oneof![
                    Just("'20s'".to_owned()), Just("'1d'".to_owned()), Just("true".to_owned()),
                    Just("false".to_owned()), Just("5".to_owned()), Just("-1".to_owned()), Just("1e9".to_owned()),
                    Just("'wifi'".to_owned()), Just("'10.0.0.1'".to_owned()), Just("['10.0.0.1/8']".to_owned()),
                    Just("['a','b']".to_owned()), Just("{a=1}".to_owned()), Just("1979-05-27".to_owned()),
                    "'[a-z0-9./: -]{0,12}'", "[\\PC]{0,8}",
                ],
            ),
            0..12,
        ),
        cut in any::<prop::sample::Index>(),
        whole in any::<bool>(),
    ) {
        let keys = all_keys();
        let mut text: String =
            lines.iter().map(|(key, value)| format!("{} = {value}\n", keys[key.index(keys.len())])).collect();
        if !whole && !text.is_empty() {
            let cut = (0..=cut.index(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            text.truncate(cut);
        }
        let outcome = run(&text, &before());
        prop_assert!(violations(&outcome.settings).is_empty());
        prop_assert!(outcome.messages.iter().all(|message| !message.now.is_empty()));
        let text = serde_json::to_string(&outcome.settings).unwrap();
        prop_assert_eq!(serde_json::from_str::<Settings>(&text).unwrap(), outcome.settings);
        fuzz(text.as_bytes());
    }
}

#[test]
fn a_plain_mirror_is_good_where_it_is_listed() {
    let text = "[engine]\nmirrors = ['docker.io=http://mirror.example:5000/cache']\n\
                insecure_registries = ['mirror.example:5000', '[fd00::1]:5000', 'registry.example']\nlog_rate = '0'\n";
    let outcome = run(text, &LastGood::default());
    assert_eq!(messages(&outcome), [""; 0]);
    let engine = outcome.settings.engine;
    assert_eq!(engine.mirrors[0].parts(), ("docker.io", "http://mirror.example:5000/cache"));
    assert_eq!(engine.mirrors[0].host(), "mirror.example:5000");
    assert_eq!((engine.insecure_registries.len(), engine.log_rate.bytes()), (3, 0));
    for bad in ["", "a/b", "https://a", "a:", "a:0", "a:70000", "a b", "[fd00::1", "[x]:1", "a:+5", "-a"] {
        assert!(bad.parse::<crate::scalar::Registry>().is_err(), "{bad:?}");
    }
    for bad in [
        "docker.io=",
        "docker.io=ftp://m",
        "=https://m",
        "docker.io=https://u:p@m",
        "docker.io=https://m?x",
        "d",
    ] {
        assert!(bad.parse::<crate::scalar::Mirror>().is_err(), "{bad:?}");
    }
}
