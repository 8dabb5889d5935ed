//! How messages of clients may be packed, and what is said of those that are too large.

use tonic::codec::CompressionEncoding;

/// Taken from clients as etcd takes it, and bounded by its decompressed size. Answers go uncompressed: that is allowed, and
/// costs nothing.
pub(super) const COMPRESSION: CompressionEncoding = CompressionEncoding::Gzip;

/// The two numbers in tonic's message, if it is the one about a message too large to decode.
pub(super) fn sizes_of_too_large(message: &str) -> Option<(u64, u64)> {
    if !message.contains("decoded") || !message.contains("too") {
        return None;
    }
    // The message may be percent-encoded; a number after a `%20` would swallow its digits.
    let message = message.replace("%20", " ").replace("%2C", ",").replace("%3A", ":");
    let mut numbers = message.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}
