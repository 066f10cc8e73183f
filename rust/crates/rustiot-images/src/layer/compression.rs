//! Layers as registries have them: gzip, zstd, or as they are, told apart by their first bytes as Docker does.
//!
//! Bounded: 8 MiB of window for zstd. Called by the pull and by `load`.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// What every decoder must offer by the format's recommendation, and what `zstd -19` uses at the most.
const WINDOW: u64 = 8 << 20;
const BUFFER: usize = 64 << 10;

/// The stream without its compression. Several gzip members or zstd frames in a row are one stream, as both formats
/// have it.
pub(crate) fn decompress<'a>(from: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut first = [0; 4];
    let mut from = BufReader::with_capacity(BUFFER, from);
    let mut have = 0;
    while let Some(rest @ [_, ..]) = first.get_mut(have..) {
        match from.read(rest)? {
            0 => break,
            read => have += read,
        }
    }
    let start = io::Cursor::new(first.get(..have).unwrap_or_default().to_vec());
    let all = start.chain(from);
    Ok(match first {
        [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(all)),
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => Box::new(Zstd::new(all)),
        _ => Box::new(all),
    })
}

/// Frames one after the other.
struct Zstd<R: BufRead> {
    from: R,
    decoder: FrameDecoder,
    inside: bool,
}

impl<R: BufRead> Zstd<R> {
    fn new(from: R) -> Zstd<R> {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(WINDOW);
        Zstd { from, decoder, inside: false }
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        loop {
            if self.inside {
                while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                    let one = BlockDecodingStrategy::UptoBlocks(1);
                    self.decoder.decode_blocks(&mut self.from, one).map_err(io::Error::other)?;
                }
                let read = self.decoder.read(into)?;
                if read > 0 {
                    return Ok(read);
                }
                let sums = (self.decoder.get_checksum_from_data(), self.decoder.get_calculated_checksum());
                if matches!(sums, (Some(said), Some(is)) if said != is) {
                    return Err(io::Error::other("zstd: the checksum of a frame is wrong"));
                }
                self.inside = false;
            }
            if self.from.fill_buf()?.is_empty() {
                return Ok(0);
            }
            match self.decoder.init(&mut self.from) {
                Ok(()) => self.inside = true,
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let length = u64::from(length);
                    if io::copy(&mut (&mut self.from).take(length), &mut io::sink())? != length {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn all(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        decompress(bytes)?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn each_kind_in_several_parts() {
        let text: Vec<u8> = (0..300_000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        let gzip = |part: &[u8]| {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            out.write_all(part).unwrap();
            out.finish().unwrap()
        };
        let zstd = |part: &[u8]| {
            ruzstd::encoding::compress_to_vec(part, ruzstd::encoding::CompressionLevel::Fastest)
        };
        let (one, two) = text.split_at(500_000);
        assert_eq!(all(&text).unwrap(), text);
        assert_eq!(all(&[gzip(one), gzip(two)].concat()).unwrap(), text);
        let skip = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
        assert_eq!(all(&[&zstd(one)[..], &skip, &zstd(two)].concat()).unwrap(), text);
        assert_eq!(all(&[&skip[..], &zstd(&text)].concat()).unwrap(), text);
        assert_eq!(all(b"").unwrap(), b"");
        assert_eq!(all(b"ab").unwrap(), b"ab");
        for packed in [gzip(&text), zstd(&text)] {
            assert!(all(&packed[..packed.len() - 3]).is_err(), "cut short");
            assert!(all(&[&packed[..], b"garbage behind"].concat()).is_err(), "garbage behind it");
        }
    }

    #[test]
    fn a_window_that_does_not_fit_is_refused() {
        // A frame header that asks for a window of 1 GiB: exponent 20, mantissa 0.
        let error = all(&[0x28, 0xb5, 0x2f, 0xfd, 0x00, 20 << 3, 1, 0, 0]).unwrap_err().to_string();
        assert!(error.contains("indow"), "{error}");
    }
}
