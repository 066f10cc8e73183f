//! U-Boot's environment as bytes: CRC-32 (little-endian) over the rest, then `name=value` strings, each ended by NUL,
//! an empty one at the end, NULs to fill. The plain format, as `env import -c` and `env export -c` know it.
//!
//! Pure. Any bytes may come. Called by [`crate::UbootLoader`] and by the image builder.

/// Why bytes are not an environment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    /// Shorter than its checksum.
    #[error("{0} bytes are too short for an environment")]
    Short(usize),
    /// Damaged, or never written.
    #[error("checksum is wrong")]
    Checksum,
    /// The list of variables does not end.
    #[error("the variables have no end")]
    Unterminated,
}

/// The variables, in order. Names and values are bytes: U-Boot does not say how they are encoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Env(Vec<Vec<u8>>);

/// Reads one copy, all of its bytes. Total.
///
/// # Errors
/// [`EnvError`] says what is wrong.
pub fn parse(bytes: &[u8]) -> Result<Env, EnvError> {
    let (crc, data) = bytes.split_first_chunk::<4>().ok_or(EnvError::Short(bytes.len()))?;
    if crc32fast::hash(data) != u32::from_le_bytes(*crc) {
        return Err(EnvError::Checksum);
    }
    let mut entries = Vec::new();
    let mut rest = data;
    loop {
        let end = rest.iter().position(|byte| *byte == 0).ok_or(EnvError::Unterminated)?;
        let (entry, after) = rest.split_at(end);
        if entry.is_empty() {
            return Ok(Env(entries));
        }
        entries.push(entry.to_vec());
        rest = after.get(1..).unwrap_or_default();
    }
}

impl Env {
    /// The value of `name`, if it is set and text.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find_map(|entry| value(entry, name)).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// Sets `name`; all other variables stay as they are. Neither may hold a NUL nor the name a `=`.
    pub fn set(&mut self, name: &str, to: &str) {
        let entry = format!("{name}={to}").into_bytes();
        match self.0.iter_mut().find(|entry| value(entry, name).is_some()) {
            Some(old) => *old = entry,
            None => self.0.push(entry),
        }
    }

    /// Unsets `name`.
    pub fn unset(&mut self, name: &str) {
        self.0.retain(|entry| value(entry, name).is_none());
    }

    /// A copy of exactly `size` bytes.
    ///
    /// # Errors
    /// The length that the variables would need, when they do not fit.
    pub fn to_bytes(&self, size: usize) -> Result<Vec<u8>, usize> {
        let mut data = Vec::with_capacity(size);
        for entry in &self.0 {
            data.extend(entry);
            data.push(0);
        }
        data.push(0);
        let needed = data.len().saturating_add(4);
        if needed > size {
            return Err(needed);
        }
        data.resize(size.saturating_sub(4), 0);
        let mut bytes = crc32fast::hash(&data).to_le_bytes().to_vec();
        bytes.extend(data);
        Ok(bytes)
    }
}

fn value<'a>(entry: &'a [u8], name: &str) -> Option<&'a [u8]> {
    entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Made by `printf 'slot_default=a\nslot_gen=1\n' | mkenvimage -s 64 -p 0 -` of u-boot-tools 2025.01.
    const MKENVIMAGE: [u8; 64] = *include_bytes!("../tests/env64.bin");

    #[test]
    fn agrees_with_mkenvimage() {
        let env = parse(&MKENVIMAGE).unwrap();
        assert_eq!((env.get("slot_default"), env.get("slot_gen")), (Some("a"), Some("1")));
        assert_eq!(env.to_bytes(64).unwrap(), MKENVIMAGE);
    }

    #[test]
    fn sets_and_unsets_one_and_keeps_the_others() {
        let mut env = Env::default();
        env.set("ethaddr", "02:00:00:00:00:01");
        env.set("slot", "x");
        env.set("slot_next", "b");
        env.set("slot", "y");
        assert_eq!(env.get("slot"), Some("y"));
        env.unset("slot_next");
        assert_eq!(env.get("slot_next"), None);
        assert_eq!(env.get("ethaddr"), Some("02:00:00:00:00:01"));
        assert_eq!(parse(&env.to_bytes(64).unwrap()), Ok(env));
    }

    #[test]
    fn what_does_not_fit_says_how_much_it_needs() {
        let mut env = Env::default();
        env.set("name", "value");
        assert_eq!(env.to_bytes(15), Err(16));
        assert_eq!(env.to_bytes(16).unwrap().len(), 16);
    }

    #[test]
    fn blank_flash_is_no_environment() {
        assert_eq!(parse(&[0xff; 64]), Err(EnvError::Checksum));
        assert_eq!(parse(&[]), Err(EnvError::Short(0)));
        // The CRC of nothing is 0, and then the end is missing.
        assert_eq!(parse(&[0; 4]), Err(EnvError::Unterminated));
    }

    proptest! {
        #[test]
        fn an_environment_survives_the_round_trip(entries in proptest::collection::vec("[a-z_]{1,9}=[^\0]{0,9}", 0..9)) {
            let env = Env(entries.into_iter().map(String::into_bytes).collect());
            prop_assert_eq!(parse(&env.to_bytes(1024).unwrap()), Ok(env));
        }

        #[test]
        fn any_bytes_parse_or_are_refused(mut bytes: Vec<u8>, seal: bool) {
            if let (Some((crc, data)), true) = (bytes.split_first_chunk_mut::<4>(), seal) {
                *crc = crc32fast::hash(data).to_le_bytes();
            }
            let _ = parse(&bytes);
        }
    }
}
