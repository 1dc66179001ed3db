//! Length-preserving encryption of blocks: batched AES-XTS (IEEE 1619).
