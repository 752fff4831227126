//! From a decoded instruction to an [`crate::op::Op`].
