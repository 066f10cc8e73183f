//! JSON bodies as Go reads them: `null` is "not there", what is not known is ignored, what is known and not supported is
//! refused by name.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::Error;

/// Reads JSON into a type, `null`s left out.
pub fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    from_value(value(bytes)?)
}

/// Reads JSON, `null`s left out.
pub fn value(bytes: &[u8]) -> Result<Value, Error> {
    let mut value: Value =
        serde_json::from_slice(bytes).map_err(|error| Error::Invalid(format!("invalid JSON: {error}")))?;
    strip(&mut value);
    if value.is_null() {
        value = Value::Object(Map::new());
    }
    if !value.is_object() {
        return Err(Error::Invalid("invalid JSON: an object is expected".to_owned()));
    }
    Ok(value)
}

/// The second half of [`json`].
pub fn from_value<T: DeserializeOwned>(value: Value) -> Result<T, Error> {
    serde_json::from_value(value).map_err(|error| Error::Invalid(format!("invalid JSON: {error}")))
}

/// serde_json bounds the depth of what it parsed, so this recursion is bounded.
fn strip(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.values_mut().for_each(strip);
        }
        Value::Array(list) => list.iter_mut().for_each(strip),
        _ => {}
    }
}

/// Refuses fields that Docker knows and this engine does not, unless they say nothing.
pub fn refuse(value: &Value, at: &str, fields: &[&str]) -> Result<(), Error> {
    for field in fields {
        if let Some(content) = value.get(field)
            && !says_nothing(content)
        {
            let dot = if at.is_empty() { "" } else { "." };
            return Err(Error::Unsupported(format!("{at}{dot}{field} is not supported by this engine")));
        }
    }
    Ok(())
}

fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty() || s == "default",
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

/// Fields of `HostConfig` that are refused: other systems, kernel features that are gone, GPUs.
pub const HOST_CONFIG: &[&str] = &[
    "CpuRealtimePeriod",
    "CpuRealtimeRuntime",
    "KernelMemory",
    "KernelMemoryTCP",
    "DeviceRequests",
    "CpuCount",
    "CpuPercent",
    "IOMaximumIOps",
    "IOMaximumBandwidth",
    "Isolation",
    "Cgroup",
    "Capabilities",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ContainerInspect, CreateContainer, HostConfig};
    use proptest::prelude::*;

    #[test]
    fn null_is_not_there_and_a_command_may_be_one_string() {
        let text = br#"{"Image":"busybox","Cmd":"ls","Entrypoint":null,"Env":null,"Labels":null,"Unknown":1,
            "HostConfig":{"Binds":null,"Memory":5,"PortBindings":{"80/tcp":null,"81/tcp":[{"HostPort":"8"}]},
            "RestartPolicy":{"Name":"always"},"Init":true,"ConsoleSize":[24,80],"BlkioDeviceReadIOps":[{"Path":"/dev/x","Rate":3}]},
            "NetworkingConfig":{"EndpointsConfig":{"n":{"IPAMConfig":{"IPv4Address":"10.0.0.2"},"Aliases":["a"]}}}}"#;
        let create: CreateContainer = json(text).unwrap();
        assert_eq!(create.config.cmd, Some(vec!["ls".to_owned()]));
        assert_eq!(create.config.entrypoint, None);
        assert_eq!(create.host_config.resources.memory, 5);
        assert_eq!(create.host_config.init, Some(true));
        assert_eq!(create.host_config.resources.blkio_device_read_iops[0].rate, 3);
        assert!(!create.host_config.port_bindings.contains_key("80/tcp"));
        let end = &create.networking_config.endpoints_config["n"];
        assert_eq!(end.ipam_config.as_ref().unwrap().ipv4_address, "10.0.0.2");
        assert_eq!(json::<CreateContainer>(b"null").unwrap(), CreateContainer::default());
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name_and_only_if_it_says_something() {
        let host = |text: &str| {
            refuse(&serde_json::from_str(text).unwrap(), "HostConfig", HOST_CONFIG)
                .map_err(|e| (e.status(), e.to_string()))
        };
        assert_eq!(
            host(r#"{"KernelMemory":0,"DeviceRequests":[],"Isolation":"default","Cgroup":""}"#),
            Ok(())
        );
        assert_eq!(
            host(r#"{"DeviceRequests":[{"Count":-1}]}"#),
            Err((501, "HostConfig.DeviceRequests is not supported by this engine".to_owned()))
        );
    }

    #[test]
    fn what_inspection_shows_can_be_sent_again() {
        let shown = serde_json::to_vec(&HostConfig::default()).unwrap();
        assert_eq!(json::<HostConfig>(&shown).unwrap(), HostConfig::default());
        let inspect = serde_json::to_value(ContainerInspect::default()).unwrap();
        assert_eq!(inspect["State"]["StartedAt"], "0001-01-01T00:00:00Z");
        assert_eq!(inspect["NetworkSettings"]["IPAddress"], "");
    }

    proptest! {
        #[test]
        fn no_body_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = json::<CreateContainer>(&bytes);
        }
    }
}
