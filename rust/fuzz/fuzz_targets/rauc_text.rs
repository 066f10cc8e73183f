//! What RAUC says on D-Bus about a bundle that somebody else made: `source`, a zero byte, the text; the first four
//! bytes are those of the file as well.
#![no_main]

use rustiot_update::{Failure, Kind, classify, refine};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let head = bytes.first_chunk().copied();
    let at = bytes.iter().position(|byte| *byte == 0).unwrap_or(0);
    let (source, text) = bytes.split_at(at);
    let (source, text) = (String::from_utf8_lossy(source), String::from_utf8_lossy(text));

    let failure = classify(&source, &text);
    assert!(!failure.message.is_empty());
    assert!(
        failure.chain.iter().all(|part| !part.is_empty() && text.contains(part)),
        "words that RAUC never said"
    );
    let said = text.trim().split(": ").any(|part| !part.trim().is_empty());
    assert_eq!(failure.chain.is_empty(), !said, "RAUC's words are lost");
    if text.contains("signature verification failed") {
        assert!(!failure.kind.is_of_the_way(), "another way cannot mend a signature");
        assert!(failure.kind == Kind::Busy || !failure.kind.is_transient(), "nor can time");
    }

    for head in [None, head, Some(*b"hsqs")] {
        let refined = refine(failure.clone(), &source, head);
        assert_eq!((refined.kind.exit_code(), &refined.chain), (failure.kind.exit_code(), &failure.chain));
        assert_eq!(refine(refined.clone(), &source, head), refined);
        let json = serde_json::to_vec(&refined).expect("a failure is always told");
        assert_eq!(serde_json::from_slice::<Failure>(&json).expect("and understood"), refined);
    }
});
