//! Applies a delta and does nothing else, so that its time and its memory are the codec's: what `rustiot bench delta`
//! measures. `apply DELTA SOURCE…` prints one JSON document; a result that is not the target is an error. With
//! `--to FILE` in front the result is also written there, for whoever wants to look at it himself.

use std::error::Error;
use std::fs::{File, read_to_string};
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    const USAGE: &str = "usage: apply [--to FILE] DELTA SOURCE…";
    let mut paths = std::env::args_os().skip(1).map(PathBuf::from).peekable();
    let mut out = match paths.next_if(|path| path.as_os_str() == "--to") {
        Some(_) => Some(File::create(paths.next().ok_or(USAGE)?)?),
        None => None,
    };
    let delta = open(paths.next().ok_or(USAGE)?)?;
    let sources = paths.map(open).collect::<Result<Vec<_>, _>>()?;
    let started = Instant::now();
    let header = rustiot_delta::apply(delta, sources, &mut |part| match &mut out {
        Some(out) => out.write_all(part),
        None => Ok(()),
    })?;
    let seconds = started.elapsed().as_secs_f64();
    let sha256: String = header.target_sha256.iter().map(|byte| format!("{byte:02x}")).collect();
    let (cpu, peak) = (processor_time()?, most_held()?);
    println!(r#"{{"seconds":{seconds:.3},"cpu_seconds":{cpu:.3},"peak_bytes":{peak},"sha256":"{sha256}"}}"#);
    Ok(())
}

fn open(path: PathBuf) -> Result<rustiot_delta::FileAt, Box<dyn Error>> {
    let file = File::open(&path).map_err(|e| format!("cannot open {}: {e}", path.display()))?;
    rustiot_delta::FileAt::new(file).map_err(|e| format!("cannot read {}: {e}", path.display()).into())
}

/// Time on a processor since the process began, seconds: what others do on the machine is not in it.
fn processor_time() -> Result<f64, Box<dyn Error>> {
    let text = read_to_string("/proc/self/schedstat")?;
    let nanoseconds: u64 = text.split(' ').next().ok_or("no time in /proc/self/schedstat")?.parse()?;
    Ok(nanoseconds as f64 / 1e9)
}

/// The most memory that this process had so far, bytes: its own pages and what it uses of its file.
fn most_held() -> Result<u64, Box<dyn Error>> {
    let text = read_to_string("/proc/self/status")?;
    let peak = text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
    Ok(peak.ok_or("no VmHWM in /proc/self/status")?.trim().parse::<u64>()? * 1024)
}
