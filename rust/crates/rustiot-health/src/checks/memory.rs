//! Memory: the share of time in which some process waited for it (PSI), and what is still available.

use crate::check::Verdict;

/// Judges the texts of `/proc/pressure/memory` and `/proc/meminfo`. `limit` is the highest `some avg60` in percent; 0
/// turns the check off.
#[must_use]
pub fn judge(pressure: Option<&str>, meminfo: Option<&str>, limit: u8) -> Verdict {
    if limit == 0 {
        return Verdict::Pass;
    }
    if let Some(percent) = pressure.and_then(some_avg60)
        && percent > f64::from(limit)
    {
        return Verdict::Fail(format!(
            "processes wait for memory {percent:.0} % of the time, {limit} % is allowed"
        ));
    }
    match meminfo.and_then(available_percent) {
        Some(percent) if percent < 5 => Verdict::Warn(format!("{percent} % of the memory is available")),
        _ => Verdict::Pass,
    }
}

/// `some … avg60=` of a pressure file (Documentation/accounting/psi.rst), in percent.
fn some_avg60(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with("some "))?;
    line.split(' ').find_map(|word| word.strip_prefix("avg60="))?.parse().ok().filter(|p: &f64| p.is_finite())
}

fn available_percent(text: &str) -> Option<u64> {
    let value = |key: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
        rest.split_ascii_whitespace().next()?.parse::<u64>().ok()
    };
    value("MemAvailable:")?.checked_mul(100)?.checked_div(value("MemTotal:")?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn psi(avg60: &str) -> String {
        format!(
            "some avg10=0.00 avg60={avg60} avg300=0.10 total=9\nfull avg10=0.00 avg60=99.00 avg300=0 total=1\n"
        )
    }

    #[test]
    fn pressure_fails_and_little_memory_warns() {
        let much = "MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:  500 kB\n";
        let little = "MemTotal:  1000 kB\nMemAvailable:  40 kB\n";
        assert_eq!(judge(Some(&psi("60.00")), Some(much), 60), Verdict::Pass);
        assert!(matches!(judge(Some(&psi("60.01")), Some(much), 60), Verdict::Fail(_)));
        assert_eq!(judge(Some(&psi("99.00")), Some(much), 0), Verdict::Pass, "turned off");
        assert!(matches!(judge(Some(&psi("0.00")), Some(little), 60), Verdict::Warn(_)));
        assert_eq!(judge(None, None, 60), Verdict::Pass, "a kernel without PSI");
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(a in "(?s).{0,200}", b in "(MemTotal|MemAvailable|some avg60|.)*[:= ]{0,2}[0-9]{0,30}") {
            let _ = judge(Some(&a), Some(&b), 60);
            let _ = judge(Some(&b), Some(&a), 60);
        }
    }
}
