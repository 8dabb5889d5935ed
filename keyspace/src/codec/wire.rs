//! Numbers, bytes and lists.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{DecodeError, MAX_TXN_ITEMS};

/// Where an encoding goes.
pub(crate) trait Sink {
    fn put(&mut self, bytes: &[u8]);

    fn put_byte(&mut self, byte: u8) {
        self.put(&[byte]);
    }

    /// Takes what need not be copied to be kept.
    fn put_shared(&mut self, bytes: &Bytes) {
        self.put(bytes);
    }
}

impl Sink for BytesMut {
    fn put(&mut self, bytes: &[u8]) {
        self.put_slice(bytes);
    }

    fn put_byte(&mut self, byte: u8) {
        self.put_u8(byte);
    }
}

/// How many bytes an encoding has.
#[derive(Default)]
pub(crate) struct Length(pub(crate) usize);

impl Sink for Length {
    fn put(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }
}

pub(crate) struct Writer<'a, S = BytesMut> {
    out: &'a mut S,
}

impl Writer<'_> {
    pub(crate) fn len(&self) -> usize {
        self.out.len()
    }
}

impl<'a, S: Sink> Writer<'a, S> {
    pub(crate) fn new(out: &'a mut S, version: u8) -> Writer<'a, S> {
        out.put_byte(version);
        Writer { out }
    }

    /// Goes on with an encoding.
    pub(crate) fn within(out: &'a mut S) -> Writer<'a, S> {
        Writer { out }
    }

    pub(crate) fn u8(&mut self, value: u8) {
        self.out.put_byte(value);
    }

    pub(crate) fn u64(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.out.put_byte(value as u8 | 0x80);
            value >>= 7;
        }
        self.out.put_byte(value as u8);
    }

    pub(crate) fn i64(&mut self, value: i64) {
        self.u64(zigzag(value));
    }

    pub(crate) fn u128(&mut self, value: u128) {
        self.out.put(&value.to_be_bytes());
    }

    pub(crate) fn fixed_u64(&mut self, value: u64) {
        self.out.put(&value.to_be_bytes());
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.u64(bytes.len() as u64);
        self.out.put(bytes);
    }

    /// As [`Writer::bytes`], of what may be long.
    pub(crate) fn shared(&mut self, bytes: &Bytes) {
        self.u64(bytes.len() as u64);
        self.out.put_shared(bytes);
    }

    /// Up to eight yes-or-no fields in one byte, the first in the lowest bit.
    pub(crate) fn flags<const N: usize>(&mut self, flags: [bool; N]) {
        const { assert!(N <= 8, "a byte holds eight flags") };
        self.u8(flags.iter().rev().fold(0, |byte, flag| byte << 1 | u8::from(*flag)));
    }

    pub(crate) fn list<T>(&mut self, items: &[T], mut write: impl FnMut(&mut Writer<'_, S>, &T)) {
        self.u64(items.len() as u64);
        for item in items {
            write(self, item);
        }
    }
}

/// Small numbers of either sign stay short.
fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63).cast_unsigned()
}

pub(crate) struct Reader {
    bytes: Bytes,
    /// How many more comparisons and operations may come.
    txn_items: usize,
}

type Decoded<T> = Result<T, DecodeError>;

pub(crate) fn malformed<T>(reason: &'static str) -> Decoded<T> {
    Err(DecodeError::Malformed(reason))
}

impl Reader {
    pub(crate) fn new(bytes: Bytes) -> Reader {
        Reader { bytes, txn_items: MAX_TXN_ITEMS }
    }

    /// Reads a version byte and one value, which must be all there is.
    pub(crate) fn whole<T>(
        bytes: Bytes,
        version: u8,
        read: impl FnOnce(&mut Reader) -> Decoded<T>,
    ) -> Decoded<T> {
        let mut reader = Reader::new(bytes);
        reader.version(version)?;
        let value = read(&mut reader)?;
        if reader.is_empty() { Ok(value) } else { malformed("bytes after the end") }
    }

    pub(crate) fn version(&mut self, known: u8) -> Decoded<()> {
        let found = self.u8()?;
        if found == known { Ok(()) } else { Err(DecodeError::UnknownVersion { found, known }) }
    }

    /// Reads a version of which there are several.
    pub(crate) fn version_among(&mut self, least: u8, known: u8) -> Decoded<u8> {
        let found = self.u8()?;
        if (least..=known).contains(&found) {
            Ok(found)
        } else {
            Err(DecodeError::UnknownVersion { found, known })
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn u8(&mut self) -> Decoded<u8> {
        self.bytes.try_get_u8().or(malformed("a byte is missing"))
    }

    pub(crate) fn u64(&mut self) -> Decoded<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        malformed("a number is too long")
    }

    pub(crate) fn i64(&mut self) -> Decoded<i64> {
        let value = self.u64()?;
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    pub(crate) fn u128(&mut self) -> Decoded<u128> {
        self.bytes.try_get_u128().or(malformed("a long number is cut off"))
    }

    pub(crate) fn fixed_u64(&mut self) -> Decoded<u64> {
        self.bytes.try_get_u64().or(malformed("a number is cut off"))
    }

    pub(crate) fn bytes(&mut self) -> Decoded<Bytes> {
        let len = self.u64()?;
        match usize::try_from(len) {
            Ok(len) if len <= self.bytes.len() => Ok(self.bytes.split_to(len)),
            Ok(_) | Err(_) => malformed("bytes are cut off"),
        }
    }

    pub(crate) fn flags<const N: usize>(&mut self) -> Decoded<[bool; N]> {
        let byte = self.u8()?;
        if N < 8 && byte >> N != 0 {
            return malformed("unknown flags");
        }
        Ok(std::array::from_fn(|index| byte >> index & 1 == 1))
    }

    /// Reads a list whose items take `item_len_min` bytes at least.
    pub(crate) fn list<T>(
        &mut self,
        item_len_min: usize,
        mut read: impl FnMut(&mut Reader) -> Decoded<T>,
    ) -> Decoded<Vec<T>> {
        let len = self.u64()?;
        if len > (self.bytes.len() / item_len_min) as u64 {
            return malformed("a list is cut off");
        }
        (0..len).map(|_| read(self)).collect()
    }

    /// As [`Reader::list`], for the comparisons or operations of a transaction.
    pub(crate) fn txn_list<T>(&mut self, read: impl FnMut(&mut Reader) -> Decoded<T>) -> Decoded<Vec<T>> {
        let mut ahead = Reader::new(self.bytes.clone());
        let len = ahead.u64()?;
        match usize::try_from(len).ok().and_then(|len| self.txn_items.checked_sub(len)) {
            Some(rest) => self.txn_items = rest,
            None => return malformed("too many operations"),
        }
        self.list(1, read)
    }
}
