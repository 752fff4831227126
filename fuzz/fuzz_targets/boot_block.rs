//! The boot block: whatever decodes must encode to bytes that decode to the same.
#![no_main]

use abi::boot::BootInfo;
use libfuzzer_sys::fuzz_target;
use zerocopy::IntoBytes;

fuzz_target!(|data: &[u8]| {
    if let Ok(info) = BootInfo::decode(data) {
        assert_eq!(BootInfo::decode(info.encode().as_bytes()), Ok(info));
    }
});
