//! The salted digest. (Skeleton.)
