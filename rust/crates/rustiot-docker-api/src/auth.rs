//! `X-Registry-Auth`: credentials as base64 of JSON.
//!
//! Pure, total. An error never repeats what was sent. Public for the fuzz target.

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::Error;
use crate::types::RegistryAuth;

/// No token is longer.
const MAX: usize = 64 * 1024;

/// Credentials of a header, if it has any. URL-safe and plain base64, with and without padding, as clients send them.
///
/// # Errors
/// [`Error::Invalid`] when it is no base64 or no JSON object.
pub fn registry_auth(header: &[u8]) -> Result<Option<RegistryAuth>, Error> {
    let bad = |why: &str| Error::Invalid(format!("invalid X-Registry-Auth header: {why}"));
    let text: Vec<u8> = header
        .trim_ascii()
        .iter()
        .map(|b| match b {
            b'-' => b'+',
            b'_' => b'/',
            b => *b,
        })
        .collect();
    if text.is_empty() {
        return Ok(None);
    }
    if text.len() > MAX {
        return Err(bad("too long"));
    }
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let json = GeneralPurpose::new(&base64::alphabet::STANDARD, config)
        .decode(&text)
        .map_err(|_| bad("not base64"))?;
    if json.is_empty() {
        return Ok(None);
    }
    let auth: RegistryAuth =
        crate::http::decode::json(&json).map_err(|_| bad("not the JSON of credentials"))?;
    Ok((auth != RegistryAuth::default()).then_some(auth))
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE};

    #[test]
    fn every_kind_of_base64_is_read() {
        let json = br#"{"username":"me","password":"p>?~~","serveraddress":"registry.example","identitytoken":null}"#;
        let expected = RegistryAuth {
            username: "me".to_owned(),
            password: "p>?~~".to_owned(),
            server_address: "registry.example".to_owned(),
            ..RegistryAuth::default()
        };
        for text in [BASE64_URL_SAFE.encode(json), BASE64_STANDARD_NO_PAD.encode(json)] {
            assert_eq!(registry_auth(text.as_bytes()).unwrap(), Some(expected.clone()));
        }
        for none in ["", " ", "e30=", "bnVsbA=="] {
            assert_eq!(registry_auth(none.as_bytes()).unwrap(), None, "{none}");
        }
    }

    #[test]
    fn an_error_and_a_debug_print_hold_no_secret() {
        for bad in [&b"secret!"[..], b"c2VjcmV0", b"WyJzZWNyZXQiXQ=="] {
            let text = registry_auth(bad).unwrap_err().to_string();
            assert!(text.starts_with("invalid X-Registry-Auth header") && !text.contains("secret"), "{text}");
        }
        let auth = RegistryAuth { password: "hunter2".to_owned(), ..RegistryAuth::default() };
        assert!(!format!("{auth:?}").contains("hunter2"));
    }
}
