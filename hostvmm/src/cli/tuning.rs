//! Options that tune a migration, and what they are in QEMU's terms: [`TuningArgs`].

use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use super::quantity;

/// Options that tune a migration.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Options of a migration")]
pub(crate) struct TuningArgs {
    /// Stop the guest for the last pass once that takes no longer than this [default: 300].
    #[arg(long, allow_negative_numbers = true, value_name = "MS", value_parser = clap::value_parser!(u64).range(..=2_000_000))]
    pub(crate) downtime_limit: Option<u64>,
    /// Send no more than SIZE bytes a second while the guest runs [default: no limit].
    #[arg(long, allow_negative_numbers = true, value_name = "SIZE", value_parser = quantity::size)]
    pub(crate) max_bandwidth: Option<u64>,
    /// Send pages over N streams of their own.
    #[arg(long, allow_negative_numbers = true, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=64))]
    pub(crate) multifd_channels: Option<u64>,
    /// How pages are made smaller: not at all, as what changed in them, or by zstd [default: none].
    #[arg(long, value_enum)]
    pub(crate) compress: Option<Compress>,
    /// Slow the vCPUs down if the guest dirties faster than is sent.
    #[arg(long)]
    pub(crate) auto_converge: bool,
    /// Let the guest run at the destination before all of its memory is there: once pass 0 is sent, unless the guest could be
    /// stopped within the limit by then; with `migrate -d` when the QMP command migrate-start-postcopy says so.
    #[arg(long)]
    pub(crate) postcopy: bool,
    /// When all of memory is compared: before the guest resumes, or after [default: full].
    #[arg(long, value_enum)]
    pub(crate) digest: Option<DigestArg>,
    /// Whether the guest's counter shows the downtime [default: runs-on].
    #[arg(long, value_enum)]
    pub(crate) counter: Option<CounterArg>,
}

/// `--compress`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Compress {
    /// Pages as they are.
    None,
    /// What changed in a page since it was last sent.
    Xbzrle,
    /// Compressed by zstd.
    Zstd,
}

/// `--digest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DigestArg {
    /// Before the guest resumes.
    Full,
    /// By what was sent before the guest resumes, by memory itself after.
    Deferred,
}

/// `--counter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CounterArg {
    /// The guest's counter shows the downtime.
    RunsOn,
    /// It does not.
    Stops,
}

impl TuningArgs {
    /// Arguments of `migrate-set-parameters`; what is not named keeps its default.
    pub(crate) fn parameters(&self) -> Map<String, Value> {
        let mut parameters = Map::new();
        let mut set = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                parameters.insert(name.to_owned(), value);
            }
        };
        set("downtime-limit", self.downtime_limit.map(Value::from));
        set("max-bandwidth", self.max_bandwidth.map(Value::from));
        set("multifd-channels", self.multifd_channels.map(Value::from));
        set("multifd-compression", (self.compress == Some(Compress::Zstd)).then(|| json!("zstd")));
        set("x-digest", self.digest.as_ref().map(|it| json!(name(it))));
        set("x-counter", self.counter.as_ref().map(|it| json!(name(it))));
        parameters
    }

    /// Capabilities to be switched on.
    pub(crate) fn capabilities(&self) -> Vec<String> {
        let wanted = [
            ("multifd", self.multifd_channels.is_some()),
            ("xbzrle", self.compress == Some(Compress::Xbzrle)),
            ("auto-converge", self.auto_converge),
            ("postcopy-ram", self.postcopy),
        ];
        wanted.into_iter().filter(|(_, wanted)| *wanted).map(|(name, _)| name.to_owned()).collect()
    }

    /// The options again, as they are written.
    pub(crate) fn flags(&self) -> String {
        let mut words = Vec::new();
        let mut add = |option: &str, value: Option<String>| {
            if let Some(value) = value {
                words.push(format!("--{option} {value}"));
            }
        };
        add("downtime-limit", self.downtime_limit.map(|it| it.to_string()));
        add("max-bandwidth", self.max_bandwidth.map(|it| it.to_string()));
        add("multifd-channels", self.multifd_channels.map(|it| it.to_string()));
        add("compress", self.compress.as_ref().map(name));
        add("digest", self.digest.as_ref().map(name));
        add("counter", self.counter.as_ref().map(name));
        for (option, given) in [("auto-converge", self.auto_converge), ("postcopy", self.postcopy)] {
            if given {
                words.push(format!("--{option}"));
            }
        }
        words.join(" ")
    }
}

/// How a value is written.
fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        tuning: TuningArgs,
    }

    fn parse(text: &str) -> TuningArgs {
        Only::try_parse_from(std::iter::once("x").chain(text.split_whitespace())).unwrap().tuning
    }

    #[test]
    fn options_are_qemus_parameters_and_capabilities() {
        let tuning = parse("--downtime-limit 50 --max-bandwidth 1M --compress zstd --postcopy --counter stops");
        let parameters = json!({
            "downtime-limit": 50, "max-bandwidth": 1 << 20, "multifd-compression": "zstd", "x-counter": "stops",
        });
        assert_eq!(Value::Object(tuning.parameters()), parameters);
        assert_eq!(tuning.capabilities(), ["postcopy-ram"]);
    }

    #[test]
    fn the_options_repeat_themselves() {
        let text = "--downtime-limit 50 --compress xbzrle --digest deferred --auto-converge";
        assert_eq!(parse(text).flags(), text);
        assert_eq!(parse("").flags(), "");
        assert!(parse("").parameters().is_empty() && parse("").capabilities().is_empty());
    }
}
