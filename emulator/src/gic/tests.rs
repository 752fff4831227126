//! What a guest and the host may expect of the GIC.
