//! What the reference model takes from its neighbours among the crate's tests.

#[path = "../../common/request.rs"]
pub mod request;

pub mod wire {
    //! What `request` takes from its neighbour.

    /// Two bytes as a number.
    pub fn le16(bytes: &[u8], at: usize) -> u16 {
        u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
    }

    /// Four bytes as a number.
    pub fn le32(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
    }

    /// Eight bytes as a number.
    pub fn le64(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
    }
}
