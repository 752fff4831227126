//! What can be chosen about a pair: [`ColoParameters`], set by name as QEMU's migration parameters are.
//!
//! `x-checkpoint-delay` is QEMU's; the others are Tidemark's own. All take effect at the next checkpoint or message, but for
//! `x-colo-compare`, which the two sides agree on when they meet.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::migrate::{DigestMode, ParameterError};

/// Numbers and choices of a pair; serialises under the names by which they are set.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ColoParameters {
    /// Milliseconds from one checkpoint's commit to the next checkpoint at the latest, 0 to 2³² − 1; 20000 as in QEMU.
    pub x_checkpoint_delay: u64,
    /// Milliseconds after which a side that has nothing to say says so, 1 to 60000; 100.
    pub x_colo_heartbeat: u64,
    /// Milliseconds of silence after which the other side is taken for lost, 10 to 3600000; 2000.
    pub x_colo_heartbeat_limit: u64,
    /// Whether both guests run and what they emit is compared. Without it the secondary's guest stands at the last
    /// checkpoint, and output is released by checkpoints alone. The primary's word counts.
    pub x_colo_compare: bool,
    /// Milliseconds between two harvests whose pages are sent into the cache while the guests run, 0 to 3600000; 0 is never;
    /// 100.
    pub x_colo_background: u64,
    /// What is digested in every checkpoint: all three memories, or (`deferred`) only what was sent and received.
    pub x_colo_digest: DigestMode,
    /// Records of output that may wait before a checkpoint is made, 1 to 1048576; 4096.
    pub x_colo_held_records: u64,
    /// Bytes of output that may wait before a checkpoint is made, 1 to 64 MiB; 4 MiB.
    pub x_colo_held_bytes: u64,
}

impl Default for ColoParameters {
    fn default() -> Self {
        Self {
            x_checkpoint_delay: 20_000,
            x_colo_heartbeat: 100,
            x_colo_heartbeat_limit: 2000,
            x_colo_compare: true,
            x_colo_background: 100,
            x_colo_digest: DigestMode::Full,
            x_colo_held_records: 4096,
            x_colo_held_bytes: 4 << 20,
        }
    }
}

impl ColoParameters {
    /// Sets the parameter `name`. Underscores count as hyphens, as in QEMU's monitor.
    ///
    /// # Errors
    /// [`ParameterError::Unknown`] where it is none of these, [`ParameterError::Invalid`]; then nothing has changed.
    pub fn set(&mut self, name: &str, value: &Value) -> Result<(), ParameterError> {
        let name = name.replace('_', "-");
        match name.as_str() {
            "x-checkpoint-delay" => self.x_checkpoint_delay = integer(&name, value, 0..=u64::from(u32::MAX))?,
            "x-colo-heartbeat" => self.x_colo_heartbeat = integer(&name, value, 1..=60_000)?,
            "x-colo-heartbeat-limit" => self.x_colo_heartbeat_limit = integer(&name, value, 10..=3_600_000)?,
            "x-colo-compare" => {
                self.x_colo_compare = value.as_bool().ok_or_else(|| invalid(&name, "a boolean".to_owned()))?;
            }
            "x-colo-background" => self.x_colo_background = integer(&name, value, 0..=3_600_000)?,
            "x-colo-digest" => {
                let mode = value.as_str().and_then(|text| text.parse().ok());
                self.x_colo_digest = mode.ok_or_else(|| invalid(&name, "one of full, deferred".to_owned()))?;
            }
            "x-colo-held-records" => self.x_colo_held_records = integer(&name, value, 1..=1 << 20)?,
            "x-colo-held-bytes" => self.x_colo_held_bytes = integer(&name, value, 1..=64 << 20)?,
            _ => return Err(ParameterError::Unknown { name }),
        }
        Ok(())
    }

    /// [`Self::x_checkpoint_delay`].
    pub const fn interval(&self) -> Duration {
        Duration::from_millis(self.x_checkpoint_delay)
    }

    /// [`Self::x_colo_heartbeat`].
    pub const fn heartbeat(&self) -> Duration {
        Duration::from_millis(self.x_colo_heartbeat)
    }

    /// [`Self::x_colo_heartbeat_limit`].
    pub const fn patience(&self) -> Duration {
        Duration::from_millis(self.x_colo_heartbeat_limit)
    }

    /// [`Self::x_colo_background`]; `None` where pages are sent in checkpoints alone.
    pub const fn background(&self) -> Option<Duration> {
        if self.x_colo_background == 0 { None } else { Some(Duration::from_millis(self.x_colo_background)) }
    }
}

fn invalid(name: &str, expected: String) -> ParameterError {
    ParameterError::Invalid { name: name.to_owned(), expected }
}

fn integer(name: &str, value: &Value, range: RangeInclusive<u64>) -> Result<u64, ParameterError> {
    value.as_u64().filter(|value| range.contains(value)).ok_or_else(|| {
        let (least, most) = range.into_inner();
        invalid(name, format!("an integer in the range of {least} to {most}"))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parameters_are_set_by_name_and_read_back() {
        let mut parameters = ColoParameters::default();
        for (name, value) in [
            ("x-checkpoint-delay", json!(5)),
            ("x-colo-heartbeat", json!(20)),
            ("x-colo-heartbeat-limit", json!(300)),
            ("x-colo-compare", json!(false)),
            ("x-colo-background", json!(0)),
            ("x-colo-digest", json!("deferred")),
            ("x-colo-held-records", json!(7)),
            ("x-colo-held-bytes", json!(9)),
        ] {
            parameters.set(name, &value).unwrap();
            assert_eq!(serde_json::to_value(&parameters).unwrap()[name], value);
        }
        assert_eq!(parameters.background(), None);
    }

    #[test]
    fn what_is_out_of_bounds_or_unknown_is_refused_and_changes_nothing() {
        let mut parameters = ColoParameters::default();
        for (name, value) in [
            ("x-checkpoint-delay", json!(1_u64 << 32)),
            ("x-colo-heartbeat", json!(0)),
            ("x-colo-compare", json!(1)),
            ("x-colo-digest", json!("none")),
            ("x-colo-held-bytes", json!(65 << 20)),
            ("downtime-limit", json!(1)),
        ] {
            assert!(parameters.set(name, &value).unwrap_err().to_string().contains(name));
        }
        assert_eq!(parameters, ColoParameters::default());
    }
}
