//! The gateway's randomness.

/// Random bytes from the operating system.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("Linux has getrandom since 3.17");
    bytes
}

pub(crate) fn random_u32() -> u32 {
    u32::from_le_bytes(random())
}
