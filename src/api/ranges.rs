//! Parts of a content (RFC 9110, section 14), for transfers that go on where they broke off.

use std::io::SeekFrom;
use std::ops::Range;

use actix_web::body::SizedStream;
use actix_web::http::header::{HeaderMap, IF_RANGE, RANGE};
use actix_web::web::Bytes;
use futures::{Stream, stream};
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

/// Bytes read at once.
const PIECE: u64 = 64 << 10;

/// What of a content is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// All of it.
    Whole,
    /// These bytes.
    Part(Range<u64>),
    /// Bytes that it does not have.
    Outside,
}

impl Wanted {
    /// What the headers ask of a content of `length` bytes that is tagged `etag`. A range of another content (If-Range),
    /// several ranges and what is no range are answered with the whole, as the RFC has it.
    pub fn of(headers: &HeaderMap, etag: &str, length: u64) -> Self {
        let is_of_another = headers
            .get(IF_RANGE)
            .is_some_and(|tag| tag.as_bytes() != etag.as_bytes());
        if is_of_another {
            return Self::Whole;
        }
        headers
            .get(RANGE)
            .and_then(|range| range.to_str().ok()?.strip_prefix("bytes="))
            .and_then(|range| Self::parse(range.trim(), length))
            .unwrap_or(Self::Whole)
    }

    fn parse(range: &str, length: u64) -> Option<Self> {
        let (first, last) = range.split_once('-')?;
        let number = |text: &str| -> Option<u64> {
            // No sign: that would be two of them.
            text.bytes()
                .all(|byte| byte.is_ascii_digit())
                .then_some(())?;
            text.parse().ok()
        };
        let part = match (first, last) {
            ("", last) => length.saturating_sub(number(last)?)..length,
            (first, "") => number(first)?..length,
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                if last < first {
                    return None;
                }
                first..last.saturating_add(1).min(length)
            }
        };
        Some(if part.start < part.end {
            Self::Part(part)
        } else {
            Self::Outside
        })
    }
}

/// These bytes of a file.
///
/// # Errors
/// When the file cannot be read there.
pub async fn read(
    file: std::fs::File,
    part: Range<u64>,
) -> std::io::Result<SizedStream<impl Stream<Item = std::io::Result<Bytes>>>> {
    let mut file = File::from_std(file);
    file.seek(SeekFrom::Start(part.start)).await?;
    let length = part.end - part.start;
    let pieces = Box::pin(stream::try_unfold((file, length), next_piece));
    Ok(SizedStream::new(length, pieces))
}

async fn next_piece(
    (mut file, left): (File, u64),
) -> std::io::Result<Option<(Bytes, (File, u64))>> {
    if left == 0 {
        return Ok(None);
    }
    let mut piece = vec![0; left.min(PIECE) as usize];
    file.read_exact(&mut piece).await?;
    let left = left - piece.len() as u64;
    Ok(Some((piece.into(), (file, left))))
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;

    use super::*;

    fn wanted(range: Option<&'static str>, tag: Option<&'static str>) -> Wanted {
        let mut headers = HeaderMap::new();
        for (name, value) in [(RANGE, range), (IF_RANGE, tag)] {
            if let Some(value) = value {
                headers.insert(name, HeaderValue::from_static(value));
            }
        }
        Wanted::of(&headers, "\"abc\"", 100)
    }

    #[test]
    fn a_range_is_a_part_the_whole_or_outside() {
        let part = |range| wanted(Some(range), None);
        assert_eq!(part("bytes=0-15"), Wanted::Part(0..16));
        assert_eq!(part("bytes=90-"), Wanted::Part(90..100));
        assert_eq!(part("bytes=90-500"), Wanted::Part(90..100));
        assert_eq!(part("bytes=-7"), Wanted::Part(93..100));
        assert_eq!(part("bytes=-700"), Wanted::Part(0..100));
        for outside in ["bytes=100-", "bytes=100-200", "bytes=-0"] {
            assert_eq!(part(outside), Wanted::Outside, "{outside}");
        }
        for no_range in [
            "bytes=5-1",
            "bytes=a-b",
            "bytes=0-1,5-6",
            "bytes=-",
            "bytes=+1-2",
            "bytes=99999999999999999999-",
            "rows=0-1",
            "",
        ] {
            assert_eq!(part(no_range), Wanted::Whole, "{no_range}");
        }
        assert_eq!(wanted(None, None), Wanted::Whole);
    }

    #[test]
    fn a_range_of_another_content_is_the_whole() {
        let range = Some("bytes=90-");
        assert_eq!(wanted(range, Some("\"abc\"")), Wanted::Part(90..100));
        for other in ["\"abd\"", "W/\"abc\"", "Thu, 01 Jan 1970 00:00:00 GMT"] {
            assert_eq!(wanted(range, Some(other)), Wanted::Whole, "{other}");
        }
    }
}
