//! Names of images, as a person or a client types them: what is taken means the same when it is written again, in full
//! and as Docker shows it, and never climbs out of the registry.
#![no_main]

use rustiot_images::Reference;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let Ok(reference) = text.parse::<Reference>() else { return };
    assert_eq!(reference.to_string().parse().as_ref(), Ok(&reference));
    assert_eq!(reference.familiar().parse().as_ref(), Ok(&reference), "{}", reference.familiar());
    assert!(reference.tag().is_some() || reference.digest().is_some());
    assert!(!reference.registry().contains('/') && !reference.registry().is_empty());
    assert!(reference.repository().split('/').all(|part| !part.is_empty() && part != "." && part != ".."));
});
