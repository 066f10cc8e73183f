//! Finds what a person named: a full id, a name, or the beginning of an id, in Docker's order.
//!
//! Pure. Called by implementations of [`crate::Engine`] for containers, networks and images by id.

use crate::Error;

/// The id that `reference` stands for: an exact id first, then an exact name (a leading slash is dropped), then the one
/// id that begins with it. `Ok(None)` when there is none.
///
/// # Errors
/// [`Error::Ambiguous`] when more than one id begins with it.
pub fn find<'a, I>(known: I, reference: &str) -> Result<Option<&'a str>, Error>
where
    I: Iterator<Item = (&'a str, &'a str)>,
{
    let name = reference.strip_prefix('/').unwrap_or(reference);
    if name.is_empty() {
        return Ok(None);
    }
    let mut by_name = None;
    let mut by_prefix = None;
    let mut several = false;
    for (id, its_name) in known {
        if id == reference {
            return Ok(Some(id));
        }
        if its_name == name {
            by_name = Some(id);
        }
        if id.starts_with(reference) {
            several |= by_prefix.is_some();
            by_prefix = Some(id);
        }
    }
    match (by_name, several) {
        (Some(id), _) => Ok(Some(id)),
        (None, true) => Err(Error::Ambiguous(reference.to_owned())),
        (None, false) => Ok(by_prefix),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [(&str, &str); 3] = [("aabb", "web"), ("aacc", "db"), ("ddee", "aa")];

    fn of(reference: &str) -> Result<Option<&'static str>, String> {
        find(KNOWN.into_iter(), reference).map_err(|e| e.to_string())
    }

    #[test]
    fn an_id_wins_over_a_name_and_a_name_over_a_prefix() {
        assert_eq!(of("aabb"), Ok(Some("aabb")));
        assert_eq!(of("/web"), Ok(Some("aabb")));
        assert_eq!(of("aa"), Ok(Some("ddee")));
        assert_eq!(of("aac"), Ok(Some("aacc")));
        assert_eq!(of("zz"), Ok(None));
        assert_eq!(of(""), Ok(None));
        assert_eq!(of("/"), Ok(None));
        assert_eq!(of("a"), Err("Multiple IDs found with provided prefix: a".to_owned()));
    }
}
