//! Numbers on the command line: sizes with K, M, G suffixes, addresses in hexadecimal or decimal, and times.

use std::time::Duration;

/// Bytes, as `4096`, `64K`, `8M`, `2G` (binary multiples; `8MiB` is understood, too).
///
/// # Errors
/// A sentence saying what is wrong, for clap to show.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    if text.trim_start().starts_with(['-', '+', '.']) {
        return Err(format!("{text:?} is not a size; write a number of bytes, or one with K, M or G, like 8M"));
    }
    parse_size::Config::new().with_binary().parse_size(text).map_err(|error| {
        format!("{text:?} is not a size ({error}); write a number of bytes, or one with K, M or G, like 8M")
    })
}

/// An address, as `0x2000_0000`, `0x20000000` or decimal.
///
/// # Errors
/// A sentence saying what is wrong, for clap to show.
pub(crate) fn address(text: &str) -> Result<u64, String> {
    let digits = text.replace('_', "");
    match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => digits.parse(),
    }
    .map_err(|error| format!("{text:?} is not an address ({error}); write it like 0x20000000"))
}

/// A time of up to one day, in whole milliseconds.
///
/// # Errors
/// A sentence saying what is wrong, for clap to show.
pub(crate) fn milliseconds(text: &str) -> Result<Duration, String> {
    match text.parse::<u64>() {
        Ok(ms) if ms <= 86_400_000 => Ok(Duration::from_millis(ms)),
        _ => Err(format!("{text:?} is not a number of milliseconds up to one day")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary() {
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("8M"), Ok(8 << 20));
        assert_eq!(size("64k"), Ok(64 << 10));
        assert_eq!(size("2G"), Ok(2 << 30));
        assert_eq!(size("1MiB"), Ok(1 << 20));
    }

    #[test]
    fn what_is_not_a_size_is_refused() {
        for text in ["", "M", "-1", "8X", "99999999999999999999G", "0x10"] {
            assert!(size(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn addresses_are_hexadecimal_or_decimal() {
        assert_eq!(address("0x2000_0000"), Ok(0x2000_0000));
        assert_eq!(address("536870912"), Ok(0x2000_0000));
        assert!(address("0x").is_err());
        assert!(address("20000000h").is_err());
    }
}
