//! Scans: what an IIO device puts into its buffer at each trigger.
//!
//! A scan holds one element for each channel that is switched on, in the order of their indices. Each element
//! is as long as its storage and begins at a multiple of that length; the scan is padded to a multiple of the
//! longest. How an element is made up says its type, `le:s12/16>>4`: byte order, signed or not, 12 bits in
//! 16 bits of storage, which stand 4 bits from the right.
//!
//! Absent: elements that repeat (quaternions), and how the bytes are had (`driver::sensors`).
//!
//! Source: Documentation/ABI/testing/sysfs-bus-iio of Linux 6.1, `scan_elements`.

use std::str::FromStr;

/// How one channel stands in a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Element {
    big_endian: bool,
    signed: bool,
    bits: u32,
    storage_bytes: usize,
    shift: u32,
}

impl FromStr for Element {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse(text).ok_or_else(|| {
            format!("`{text}` is no type of an element that can be read, such as le:s12/16>>4")
        })
    }
}

fn parse(text: &str) -> Option<Element> {
    let (order, rest) = text.split_once(':')?;
    let big_endian = match order {
        "be" => true,
        "le" => false,
        _ => return None,
    };
    let signed = match rest.get(..1)? {
        "s" => true,
        "u" => false,
        _ => return None,
    };
    let (bits, rest) = rest[1..].split_once('/')?;
    let (storage, shift) = rest.split_once(">>")?;
    let (bits, storage, shift): (u32, u32, u32) =
        (bits.parse().ok()?, storage.parse().ok()?, shift.parse().ok()?);
    let fits = [8, 16, 32, 64].contains(&storage)
        && (1..=storage).contains(&bits)
        && shift <= storage - bits;
    let storage_bytes = (storage / 8) as usize;
    fits.then_some(Element { big_endian, signed, bits, storage_bytes, shift })
}

impl Element {
    #[allow(clippy::cast_precision_loss, reason = "converters of more than 52 bits do not exist")]
    fn value(self, bytes: &[u8]) -> f64 {
        let append = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        let number = match self.big_endian {
            true => bytes.iter().fold(0, append),
            false => bytes.iter().rev().fold(0, append),
        };
        let unused = 64 - self.bits;
        let top = number >> self.shift << unused;
        match self.signed {
            true => (top.cast_signed() >> unused) as f64,
            false => (top >> unused) as f64,
        }
    }
}

/// Where one channel stands in the scans of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    element: Element,
    offset: usize,
    scan_bytes: usize,
}

impl Layout {
    /// The layout of scans with these channels, each with its index; `None` where `wanted` is none of them.
    pub fn new(mut channels: Vec<(u32, Element)>, wanted: u32) -> Option<Self> {
        channels.sort_by_key(|(index, _)| *index);
        let (mut end, mut longest, mut found) = (0_usize, 1, None);
        for (index, element) in channels {
            let offset = end.next_multiple_of(element.storage_bytes);
            end = offset + element.storage_bytes;
            longest = longest.max(element.storage_bytes);
            if index == wanted {
                found = Some((element, offset));
            }
        }
        let scan_bytes = end.next_multiple_of(longest);
        found.map(|(element, offset)| Self { element, offset, scan_bytes })
    }

    /// Bytes of one scan.
    pub fn scan_bytes(self) -> usize {
        self.scan_bytes
    }

    /// The channel's number in each whole scan.
    pub fn values(self, bytes: &[u8]) -> impl Iterator<Item = f64> {
        let Self { element, offset, scan_bytes } = self;
        let of = move |scan: &[u8]| element.value(&scan[offset..offset + element.storage_bytes]);
        bytes.chunks_exact(scan_bytes).map(of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(text: &str) -> Element {
        text.parse().unwrap()
    }

    #[test]
    fn an_element_is_read_as_its_type_says() {
        let table: [(&str, &[u8], f64); 10] = [
            ("le:s12/16>>4", &[0x10, 0x00], 1.0),
            ("le:s12/16>>4", &[0xff, 0xff], -1.0),
            ("le:s12/16>>4", &[0x0f, 0x80], -2048.0),
            ("be:u12/16>>0", &[0xf1, 0x23], 291.0),
            ("be:s16/16>>0", &[0x80, 0x00], -32768.0),
            ("le:u8/8>>0", &[200], 200.0),
            ("le:s8/8>>0", &[200], -56.0),
            ("be:u24/32>>8", &[0x01, 0x00, 0x00, 0xff], 65536.0),
            ("le:s64/64>>0", &[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], -2.0),
            ("le:u1/8>>7", &[0x80], 1.0),
        ];
        for (text, bytes, value) in table {
            assert_eq!(element(text).value(bytes), value, "{text}");
        }
    }

    #[test]
    fn what_is_no_type_is_refused() {
        for text in [
            "",
            "le",
            "le:",
            "le:s",
            "xe:s12/16>>4",
            "le:x12/16>>4",
            "le:s12/16",
            "le:s17/16>>0",
            "le:s12/16>>5",
            "le:s0/16>>0",
            "le:s12/24>>0",
            "le:s12/16X3>>4",
            "le:s-1/16>>0",
            "le:s99999999999/16>>0",
            "le:é12/16>>4",
        ] {
            assert!(text.parse::<Element>().is_err(), "{text}");
        }
    }

    #[test]
    fn elements_stand_at_multiples_of_their_length_in_the_order_of_their_indices() {
        // A byte, two bytes behind a gap, and the time behind another: 16 bytes.
        let channels = [(9, "le:s64/64>>0"), (0, "le:u8/8>>0"), (3, "be:s16/16>>0")];
        let channels: Vec<_> = channels.map(|(index, text)| (index, element(text))).to_vec();
        let mut scan = vec![7, 0xee, 0x01, 0x02, 0xee, 0xee, 0xee, 0xee];
        scan.extend(5_i64.to_le_bytes());
        for (wanted, value) in [(0, 7.0), (3, 258.0), (9, 5.0)] {
            let layout = Layout::new(channels.clone(), wanted).unwrap();
            assert_eq!(layout.scan_bytes(), 16);
            assert_eq!(layout.values(&scan.repeat(2)).collect::<Vec<_>>(), [value; 2]);
            assert_eq!(layout.values(&scan[..15]).count(), 0, "half a scan is none");
        }
        assert_eq!(Layout::new(channels, 4), None);
        // Padded to the longest at the end as well.
        let short = vec![(0, element("le:s32/32>>0")), (1, element("le:s16/16>>0"))];
        assert_eq!(Layout::new(short, 1).unwrap().scan_bytes(), 8);
    }
}
