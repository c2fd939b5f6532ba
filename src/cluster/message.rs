//! The bytes that signatures are over.

/// A message to be signed: a context of its own for each purpose, then fields that each carry their length, so that no
/// two lists of fields, and no two purposes, ever give the same bytes. No context may be a prefix of another.
pub(super) struct Message(Vec<u8>);

impl Message {
    pub(super) fn new(context: &'static str) -> Self {
        Self(context.as_bytes().to_vec())
    }

    pub(super) fn bytes(mut self, field: &[u8]) -> Self {
        self.0
            .extend_from_slice(&(field.len() as u64).to_le_bytes());
        self.0.extend_from_slice(field);
        self
    }

    pub(super) fn number(self, field: u64) -> Self {
        self.bytes(&field.to_le_bytes())
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.0
    }
}
