//! The deterministic CBOR (RFC 8949, section 4.2) of entries and nodes, in the few shapes that they use.
//!
//! General decoders accept many encodings of one value; here exactly one is accepted (shortest heads, definite lengths),
//! because a node is known by the hash of its bytes. Reading never allocates; every length is checked against what is
//! left of the input and against the bound that the caller names.

const UINT: u8 = 0;
const NEGATIVE: u8 = 1;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const ARRAY: u8 = 4;
const MAP: u8 = 5;
const TAG: u8 = 6;
const SIMPLE: u8 = 7;

/// What is wrong with an encoding.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub(super) struct Malformed(pub(super) &'static str);

/// Appends items to a buffer.
#[derive(Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
    fn head(&mut self, major: u8, value: u64) {
        let major = major << 5;
        let bytes = value.to_be_bytes();
        match value {
            0..=23 => self.0.push(major | bytes[7]),
            24..=0xff => self.0.extend([major | 24, bytes[7]]),
            0x100..=0xffff => {
                self.0.push(major | 25);
                self.0.extend(&bytes[6..]);
            }
            0x1_0000..=0xffff_ffff => {
                self.0.push(major | 26);
                self.0.extend(&bytes[4..]);
            }
            _ => {
                self.0.push(major | 27);
                self.0.extend(bytes);
            }
        }
    }
    pub(super) fn uint(&mut self, value: u64) {
        self.head(UINT, value);
    }
    pub(super) fn int(&mut self, value: i64) {
        match u64::try_from(value) {
            Ok(value) => self.head(UINT, value),
            // -1 - value is !value in two's complement.
            Err(_) => self.head(NEGATIVE, (!value).unsigned_abs()),
        }
    }
    pub(super) fn bytes(&mut self, value: &[u8]) {
        self.head(BYTES, value.len() as u64);
        self.0.extend(value);
    }
    pub(super) fn text(&mut self, value: &str) {
        self.head(TEXT, value.len() as u64);
        self.0.extend(value.as_bytes());
    }
    pub(super) fn array(&mut self, items: usize) {
        self.head(ARRAY, items as u64);
    }
    pub(super) fn map(&mut self, pairs: usize) {
        self.head(MAP, pairs as u64);
    }
    /// An item that is encoded already.
    pub(super) fn raw(&mut self, item: &[u8]) {
        self.0.extend(item);
    }
}

/// Takes items from the front of a slice.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }
    /// Bytes that are left.
    pub(super) fn left(&self) -> usize {
        self.0.len()
    }
    /// Nothing may follow.
    pub(super) fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Malformed("bytes after the end"))
        }
    }
    fn take(&mut self, length: u64) -> Result<&'a [u8], Malformed> {
        let taken = usize::try_from(length)
            .ok()
            .and_then(|length| self.0.split_at_checked(length));
        let (taken, rest) = taken.ok_or(Malformed("cut short"))?;
        self.0 = rest;
        Ok(taken)
    }
    /// Major type, and the number that goes with it. Of simple values and floats (major type 7) the payload is not
    /// held to the shortest form: they occur in unknown fields only, which are kept as they came.
    fn head(&mut self) -> Result<(u8, u64), Malformed> {
        let first = self.take(1)?.first().copied().unwrap_or_default();
        let (major, low) = (first >> 5, first & 31);
        let width = match low {
            0..=23 => return Ok((major, u64::from(low))),
            24..=27 => 1 << (low - 24),
            _ => return Err(Malformed("an indefinite length or a reserved head")),
        };
        let value = self
            .take(width)?
            .iter()
            .fold(0, |value, &byte| value << 8 | u64::from(byte));
        let least = match low {
            24 => 24,
            25 => 1 << 8,
            26 => 1 << 16,
            _ => 1 << 32,
        };
        if major != SIMPLE && value < least {
            return Err(Malformed("a number in more bytes than it needs"));
        }
        Ok((major, value))
    }
    fn expect(&mut self, wanted: u8) -> Result<u64, Malformed> {
        match self.head()? {
            (major, value) if major == wanted => Ok(value),
            _ => Err(Malformed("an item of another type than expected")),
        }
    }
    fn length(&mut self, wanted: u8, max: usize) -> Result<usize, Malformed> {
        let length = self.expect(wanted)?;
        // Every item takes at least a byte, so a length beyond the input is a lie.
        usize::try_from(length)
            .ok()
            .filter(|&length| length <= max && length <= self.0.len())
            .ok_or(Malformed("longer than allowed"))
    }
    pub(super) fn uint(&mut self) -> Result<u64, Malformed> {
        self.expect(UINT)
    }
    pub(super) fn uint_max(&mut self, max: u64) -> Result<u64, Malformed> {
        match self.uint()? {
            value if value <= max => Ok(value),
            _ => Err(Malformed("a number larger than allowed")),
        }
    }
    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        u32::try_from(self.uint()?).map_err(|_| Malformed("a number larger than allowed"))
    }
    pub(super) fn int(&mut self) -> Result<i64, Malformed> {
        let (major, value) = self.head()?;
        let value = i64::try_from(value).map_err(|_| Malformed("a number larger than allowed"))?;
        match major {
            UINT => Ok(value),
            NEGATIVE => Ok(!value),
            _ => Err(Malformed("an item of another type than expected")),
        }
    }
    pub(super) fn bytes(&mut self, max: usize) -> Result<&'a [u8], Malformed> {
        let length = self.length(BYTES, max)?;
        self.take(length as u64)
    }
    pub(super) fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.bytes(N)?
            .try_into()
            .map_err(|_| Malformed("a byte string of the wrong length"))
    }
    pub(super) fn text(&mut self, max: usize) -> Result<&'a str, Malformed> {
        let length = self.length(TEXT, max)?;
        std::str::from_utf8(self.take(length as u64)?).map_err(|_| Malformed("text is not UTF-8"))
    }
    pub(super) fn array(&mut self, max: usize) -> Result<usize, Malformed> {
        self.length(ARRAY, max)
    }
    /// Whether an array comes next.
    pub(super) fn is_array(&self) -> bool {
        self.0.first().is_some_and(|first| first >> 5 == ARRAY)
    }
    pub(super) fn map(&mut self, max: usize) -> Result<usize, Malformed> {
        self.length(MAP, max)
    }
    /// One item of any type, whole, at most `max` bytes.
    pub(super) fn raw(&mut self, max: usize) -> Result<&'a [u8], Malformed> {
        let start = self.0;
        // A count instead of recursion: nesting as deep as the input is long does no harm.
        let mut pending: u64 = 1;
        while pending > 0 {
            pending -= 1;
            let (major, value) = self.head()?;
            let inside = match major {
                BYTES | TEXT => {
                    self.take(value)?;
                    0
                }
                ARRAY => value,
                MAP => value.saturating_mul(2),
                TAG => 1,
                _ => 0,
            };
            pending = pending.saturating_add(inside);
            if pending > self.0.len() as u64 {
                return Err(Malformed("cut short"));
            }
        }
        match start.get(..start.len() - self.0.len()) {
            Some(item) if item.len() <= max => Ok(item),
            _ => Err(Malformed("longer than allowed")),
        }
    }
}
