//! Little-endian fields at fixed places, checked against the size of their structure when compiled.

/// A field of `LEN` bytes at byte `AT`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field<const AT: usize, const LEN: usize>;

impl<const AT: usize, const LEN: usize> Field<AT, LEN> {
    /// The field's bytes. A field that does not lie inside `N` bytes does not compile.
    pub(super) fn get<const N: usize>(self, bytes: &[u8; N]) -> [u8; LEN] {
        const { assert!(AT + LEN <= N) };
        let mut field = [0; LEN];
        field.copy_from_slice(&bytes[AT..AT + LEN]);
        field
    }

    /// Sets the field's bytes.
    pub(super) fn put<const N: usize>(self, bytes: &mut [u8; N], field: [u8; LEN]) {
        const { assert!(AT + LEN <= N) };
        bytes[AT..AT + LEN].copy_from_slice(&field);
    }
}

impl<const AT: usize> Field<AT, 2> {
    /// The field as a number.
    pub(super) fn u16<const N: usize>(self, bytes: &[u8; N]) -> u16 {
        u16::from_le_bytes(self.get(bytes))
    }

    /// Sets the field to a number.
    pub(super) fn put_u16<const N: usize>(self, bytes: &mut [u8; N], value: u16) {
        self.put(bytes, value.to_le_bytes());
    }
}

impl<const AT: usize> Field<AT, 4> {
    /// The field as a number.
    pub(super) fn u32<const N: usize>(self, bytes: &[u8; N]) -> u32 {
        u32::from_le_bytes(self.get(bytes))
    }

    /// Sets the field to a number.
    pub(super) fn put_u32<const N: usize>(self, bytes: &mut [u8; N], value: u32) {
        self.put(bytes, value.to_le_bytes());
    }
}

impl<const AT: usize> Field<AT, 8> {
    /// The field as a number.
    pub(super) fn u64<const N: usize>(self, bytes: &[u8; N]) -> u64 {
        u64::from_le_bytes(self.get(bytes))
    }

    /// Sets the field to a number.
    pub(super) fn put_u64<const N: usize>(self, bytes: &mut [u8; N], value: u64) {
        self.put(bytes, value.to_le_bytes());
    }
}

/// CRC-32C (Castagnoli, RFC 3720 appendix B.4) of `bytes`.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    // The crate returns every width as 64 bits; 32 of them are in use here.
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes);
    u32::try_from(crc & u64::from(u32::MAX)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_is_castagnoli() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn fields_are_little_endian_and_in_place() {
        let mut bytes = [0; 16];
        Field::<4, 4>.put_u32(&mut bytes, 0x0102_0304);
        Field::<8, 8>.put_u64(&mut bytes, 5);
        assert_eq!(bytes, [0, 0, 0, 0, 4, 3, 2, 1, 5, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Field::<4, 4>.u32(&bytes), 0x0102_0304);
        assert_eq!(Field::<8, 8>.u64(&bytes), 5);
    }
}
