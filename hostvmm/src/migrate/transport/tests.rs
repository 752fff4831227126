//! Channels of every kind between two threads: what arrives, what ends a blocked call, who is turned away.
