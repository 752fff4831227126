//! What can be chosen about a migration: [`Parameters`] and [`Capabilities`], by QEMU's names, bounds and defaults.
//!
//! Both are kept by a [`super::Monitor`] from one migration to the next, as in QEMU, and most parameters take effect while
//! one is under way. Where a default differs from QEMU's, the field says so. Names that begin with `x-` are Tidemark's own.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::wire::MAX_PAGE_CHANNELS;

/// Numbers and choices of a migration; serialises as the answer to `query-migrate-parameters`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Parameters {
    /// Milliseconds that the guest may stand still, 0 to 2000000; 300. What it covers: [`super::Estimate::downtime_ns`].
    pub downtime_limit: u64,
    /// Bytes a second that are sent at most, before the guest is stopped; 0, the default here, is no limit (in QEMU 0 is
    /// none as well, but the default is 128 MiB/s).
    pub max_bandwidth: u64,
    /// Page channels with the capability `multifd`, 1 to 16 (QEMU: 255); 2.
    pub multifd_channels: u8,
    /// How pages are compressed, on any number of channels (in QEMU: with `multifd` alone).
    pub multifd_compression: Compression,
    /// Level of zstd, 1 to 20; 1.
    pub multifd_zstd_level: u8,
    /// Bytes of the cache of sent pages with the capability `xbzrle`, a power of two and at least 64K; 32 MiB (QEMU:
    /// 64 MiB, which beside the buffers would be more than a migration may take).
    pub xbzrle_cache_size: u64,
    /// How much of its time a vCPU is first throttled by, in percent, 1 to 99; 20.
    pub cpu_throttle_initial: u8,
    /// By how much more each time that was not enough, 1 to 99; 10.
    pub cpu_throttle_increment: u8,
    /// The most it is throttled by, 1 to 99; 99.
    pub max_cpu_throttle: u8,
    /// Percent of the bytes sent that, dirtied meanwhile, are too many, 1 to 100; 50.
    pub throttle_trigger_threshold: u8,
    /// Directory of certificates; without one, connections are not encrypted. (In QEMU the id of an object that names it.)
    pub tls_creds: Option<PathBuf>,
    /// Whose certificate the destination must show; the name in the URI without it.
    pub tls_hostname: Option<String>,
    /// When all memory is digested.
    pub x_digest: DigestMode,
    /// What the guest's counter shows of the downtime.
    pub x_counter: CounterPolicy,
    /// Milliseconds after which a peer that owes an answer to a stopped guest is taken for gone, 1 to 3600000; 30000.
    pub x_switchover_timeout: u64,
    /// Milliseconds for which a destination may take nothing, or acknowledge nothing, while the guest runs on at the source, 1 to
    /// 86400000; 60000. Then the migration fails.
    pub x_silence_timeout: u64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            downtime_limit: 300,
            max_bandwidth: 0,
            multifd_channels: 2,
            multifd_compression: Compression::None,
            multifd_zstd_level: 1,
            xbzrle_cache_size: 32 << 20,
            cpu_throttle_initial: 20,
            cpu_throttle_increment: 10,
            max_cpu_throttle: 99,
            throttle_trigger_threshold: 50,
            tls_creds: None,
            tls_hostname: None,
            x_digest: DigestMode::Full,
            x_counter: CounterPolicy::RunsOn,
            x_switchover_timeout: 30_000,
            x_silence_timeout: 60_000,
        }
    }
}

/// A parameter or capability that does not exist, or a value it does not take; in QEMU's words.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ParameterError {
    /// No such name.
    #[error("Parameter '{name}' is unexpected")]
    Unknown {
        /// The name given.
        name: String,
    },
    /// Not a value for it.
    #[error("Parameter '{name}' expects {expected}")]
    Invalid {
        /// Which.
        name: String,
        /// What it takes.
        expected: String,
    },
    /// The process has no descriptor left.
    #[error("cannot change the migration's bandwidth: {reason}")]
    Host {
        /// As the host says.
        reason: std::io::ErrorKind,
    },
    /// It cannot be changed now.
    #[error("Parameter '{name}' cannot be changed during a migration")]
    Busy {
        /// Which.
        name: String,
    },
}

impl Parameters {
    /// Sets the parameter `name` from QMP. Underscores count as hyphens, as in QEMU's monitor.
    ///
    /// # Errors
    /// [`ParameterError::Unknown`], [`ParameterError::Invalid`]; then nothing has changed.
    pub fn set(&mut self, name: &str, value: &Value) -> Result<(), ParameterError> {
        let name = name.replace('_', "-");
        match name.as_str() {
            "downtime-limit" => self.downtime_limit = integer(&name, value, 0..=2_000_000)?,
            "max-bandwidth" => self.max_bandwidth = integer(&name, value, 0..=u64::MAX)?,
            "multifd-channels" => self.multifd_channels = small(&name, value, 1..=MAX_PAGE_CHANNELS as u8)?,
            "multifd-compression" => self.multifd_compression = choice(&name, value)?,
            "multifd-zstd-level" => self.multifd_zstd_level = small(&name, value, 1..=20)?,
            "xbzrle-cache-size" => {
                let size = integer(&name, value, 64 << 10..=1 << 40)?;
                if !size.is_power_of_two() {
                    return Err(invalid(&name, "a power of two no less than the target page size"));
                }
                self.xbzrle_cache_size = size;
            }
            "cpu-throttle-initial" => self.cpu_throttle_initial = small(&name, value, 1..=99)?,
            "cpu-throttle-increment" => self.cpu_throttle_increment = small(&name, value, 1..=99)?,
            "max-cpu-throttle" => self.max_cpu_throttle = small(&name, value, 1..=99)?,
            "throttle-trigger-threshold" => self.throttle_trigger_threshold = small(&name, value, 1..=100)?,
            "tls-creds" => self.tls_creds = text(&name, value)?.map(PathBuf::from),
            "tls-hostname" => self.tls_hostname = text(&name, value)?,
            "x-digest" => self.x_digest = choice(&name, value)?,
            "x-counter" => self.x_counter = choice(&name, value)?,
            "x-switchover-timeout" => self.x_switchover_timeout = integer(&name, value, 1..=3_600_000)?,
            "x-silence-timeout" => self.x_silence_timeout = integer(&name, value, 1..=86_400_000)?,
            _ => return Err(ParameterError::Unknown { name }),
        }
        Ok(())
    }

    /// Whether `name` takes effect while a migration is under way.
    pub fn is_live(name: &str) -> bool {
        let name = name.replace('_', "-");
        name.contains("throttle")
            || matches!(
                name.as_str(),
                "downtime-limit" | "max-bandwidth" | "x-silence-timeout" | "x-switchover-timeout"
            )
    }

    /// [`Self::downtime_limit`].
    pub const fn downtime(&self) -> Duration {
        Duration::from_millis(self.downtime_limit)
    }

    /// [`Self::x_switchover_timeout`].
    pub const fn switchover_timeout(&self) -> Duration {
        Duration::from_millis(self.x_switchover_timeout)
    }

    /// [`Self::x_silence_timeout`].
    pub const fn silence_timeout(&self) -> Duration {
        Duration::from_millis(self.x_silence_timeout)
    }
}

/// What a migration may do; serialises as an object of name and state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Capabilities {
    /// Pages that were sent before are sent as what has changed in them.
    pub xbzrle: bool,
    /// A guest that dirties faster than is sent is throttled.
    pub auto_converge: bool,
    /// The guest may be resumed at the destination before all of its memory is there.
    pub postcopy_ram: bool,
    /// Pages go over channels of their own.
    pub multifd: bool,
    /// MIGRATION and MIGRATION_PASS are told to the QMP client.
    pub events: bool,
    /// The destination answers. Always so here, so it changes nothing.
    pub return_path: bool,
    /// Pages at fixed offsets of a file. Always so here with `file:`, so it changes nothing.
    pub mapped_ram: bool,
    /// `migrate` gives the guest a secondary that runs beside it, rather than moving it.
    pub x_colo: bool,
}

impl Capabilities {
    /// Names and states, in QEMU's order.
    pub const fn list(&self) -> [(&'static str, bool); 8] {
        [
            ("xbzrle", self.xbzrle),
            ("auto-converge", self.auto_converge),
            ("events", self.events),
            ("postcopy-ram", self.postcopy_ram),
            ("return-path", self.return_path),
            ("multifd", self.multifd),
            ("mapped-ram", self.mapped_ram),
            ("x-colo", self.x_colo),
        ]
    }

    /// Sets the capability `name`.
    ///
    /// # Errors
    /// [`ParameterError::Unknown`] for one that Tidemark does not have; then nothing has changed.
    pub fn set(&mut self, name: &str, state: bool) -> Result<(), ParameterError> {
        let field = match name.replace('_', "-").as_str() {
            "xbzrle" => &mut self.xbzrle,
            "auto-converge" => &mut self.auto_converge,
            "postcopy-ram" => &mut self.postcopy_ram,
            "multifd" => &mut self.multifd,
            "events" => &mut self.events,
            "return-path" => &mut self.return_path,
            "mapped-ram" => &mut self.mapped_ram,
            "x-colo" => &mut self.x_colo,
            _ => return Err(ParameterError::Unknown { name: name.to_owned() }),
        };
        *field = state;
        Ok(())
    }
}

/// One of a few names.
trait Choice: Sized + Copy + PartialEq + 'static {
    const ALL: &'static [(&'static str, Self)];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, choice)| *choice == self).map_or("", |(name, _)| name)
    }

    fn of(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, choice)| *choice)
    }

    fn names() -> String {
        Self::ALL.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    }
}

macro_rules! by_name {
    ($type:ty: $($name:literal => $value:expr),+) => {
        impl Choice for $type {
            const ALL: &'static [(&'static str, Self)] = &[$(($name, $value)),+];
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        impl FromStr for $type {
            type Err = String;

            fn from_str(name: &str) -> Result<Self, String> {
                Self::of(name).ok_or_else(|| format!("{name:?} is none of {}", Self::names()))
            }
        }

        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }
    };
}

/// How pages are compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// Each page by zstd, where that makes it smaller.
    Zstd,
}

by_name!(Compression: "none" => Self::None, "zstd" => Self::Zstd);

/// When all of memory is digested on both sides.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DigestMode {
    /// While the guest is stopped, before it resumes.
    #[default]
    Full,
    /// What was sent is compared with what was received before the guest resumes; the source digests its memory anew
    /// afterwards, and compares it with what the destination had at the resume.
    Deferred,
}

by_name!(DigestMode: "full" => Self::Full, "deferred" => Self::Deferred);

/// What the guest's counter shows of the downtime.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CounterPolicy {
    /// All of it: the counter goes on as if the guest had not stopped.
    #[default]
    RunsOn,
    /// Nothing: it goes on where it stopped.
    Stops,
}

by_name!(CounterPolicy: "runs-on" => Self::RunsOn, "stops" => Self::Stops);

fn invalid(name: &str, expected: impl Into<String>) -> ParameterError {
    ParameterError::Invalid { name: name.to_owned(), expected: expected.into() }
}

fn integer(name: &str, value: &Value, range: RangeInclusive<u64>) -> Result<u64, ParameterError> {
    value.as_u64().filter(|value| range.contains(value)).ok_or_else(|| {
        let (least, most) = range.into_inner();
        invalid(name, format!("an integer in the range of {least} to {most}"))
    })
}

fn small(name: &str, value: &Value, range: RangeInclusive<u8>) -> Result<u8, ParameterError> {
    let (least, most) = range.into_inner();
    let value = integer(name, value, u64::from(least)..=u64::from(most))?;
    Ok(u8::try_from(value).expect("the range is one of bytes"))
}

/// QEMU takes an empty text for none.
fn text(name: &str, value: &Value) -> Result<Option<String>, ParameterError> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
        _ => Err(invalid(name, "a string")),
    }
}

fn choice<T: Choice>(name: &str, value: &Value) -> Result<T, ParameterError> {
    value.as_str().and_then(T::of).ok_or_else(|| invalid(name, format!("one of {}", T::names())))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parameters_are_set_by_qemu_s_names_and_read_back() {
        let mut parameters = Parameters::default();
        for (name, value) in [
            ("downtime-limit", json!(5)),
            ("max-bandwidth", json!(1_u64 << 40)),
            ("multifd-channels", json!(16)),
            ("multifd-compression", json!("zstd")),
            ("xbzrle-cache-size", json!(1 << 20)),
            ("max-cpu-throttle", json!(40)),
            ("tls-creds", json!("/etc/tls")),
            ("x-digest", json!("deferred")),
            ("x-counter", json!("stops")),
        ] {
            parameters.set(name, &value).unwrap();
            assert_eq!(serde_json::to_value(&parameters).unwrap()[name], value);
        }
        parameters.set("downtime_limit", &json!(0)).unwrap();
        assert_eq!(parameters.downtime_limit, 0, "underscores are hyphens");
        parameters.set("tls-creds", &json!("")).unwrap();
        assert_eq!(parameters.tls_creds, None, "an empty text is none");
    }

    #[test]
    fn what_is_out_of_bounds_is_refused_and_changes_nothing() {
        let mut parameters = Parameters::default();
        for (name, value) in [
            ("downtime-limit", json!(2_000_001)),
            ("downtime-limit", json!(-1)),
            ("downtime-limit", json!("300")),
            ("multifd-channels", json!(0)),
            ("multifd-channels", json!(17)),
            ("multifd-compression", json!("lzo")),
            ("xbzrle-cache-size", json!(100_000)),
            ("cpu-throttle-initial", json!(100)),
            ("x-digest", json!("off")),
        ] {
            let error = parameters.set(name, &value).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
        assert!(matches!(parameters.set("block-incremental", &json!(true)), Err(ParameterError::Unknown { .. })));
        assert_eq!(parameters, Parameters::default());
    }

    #[test]
    fn capabilities_are_set_by_name_and_listed() {
        let mut capabilities = Capabilities::default();
        for (name, state) in capabilities.list() {
            assert!(!state);
            capabilities.set(name, true).unwrap();
        }
        assert!(capabilities.list().iter().all(|(_, state)| *state));
        assert!(capabilities.set("zero-blocks", true).is_err());
    }
}
