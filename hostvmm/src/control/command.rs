//! The commands of a control socket, [`Command`], and their arguments, judged in QEMU's words.

use serde_json::{Map, Value, json};

use super::session::{printable, version};
use super::types::{CapabilityStatus, TimeUnit};

/// A class of errors, as clients tell them apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ErrorClass {
    /// Any error but the other.
    GenericError,
    /// No such command, or not now.
    CommandNotFound,
}

impl ErrorClass {
    /// The class's name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::GenericError => "GenericError",
            Self::CommandNotFound => "CommandNotFound",
        }
    }
}

/// Why a command was not done.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{desc}")]
pub struct CommandError {
    /// Its class.
    pub class: ErrorClass,
    /// For a person to read.
    pub desc: String,
}

impl CommandError {
    /// An error of the class GenericError.
    pub fn generic(desc: impl Into<String>) -> Self {
        Self { class: ErrorClass::GenericError, desc: desc.into() }
    }
}

/// What a client asks of the VM.
#[derive(Clone, PartialEq, Debug)]
pub enum Command {
    /// `query-status`.
    QueryStatus,
    /// `stop`.
    Stop,
    /// `cont`.
    Cont,
    /// `migrate`.
    Migrate {
        /// Where to.
        uri: String,
    },
    /// `migrate-incoming`.
    MigrateIncoming {
        /// Where to listen.
        uri: String,
        /// Whether the process ends if the migration fails.
        exit_on_error: bool,
    },
    /// `migrate_cancel`.
    MigrateCancel,
    /// `migrate-start-postcopy`.
    MigrateStartPostcopy,
    /// `migrate-continue`.
    MigrateContinue {
        /// The phase that it is to leave.
        state: String,
    },
    /// `migrate-pause`.
    MigratePause,
    /// `migrate-recover`.
    MigrateRecover,
    /// `migrate-set-parameters`: what is named, and to what; neither has been judged.
    MigrateSetParameters(Map<String, Value>),
    /// `query-migrate-parameters`.
    QueryMigrateParameters,
    /// `migrate-set-capabilities`.
    MigrateSetCapabilities(Vec<CapabilityStatus>),
    /// `query-migrate-capabilities`.
    QueryMigrateCapabilities,
    /// `query-migrate`.
    QueryMigrate,
    /// `calc-dirty-rate`.
    CalcDirtyRate {
        /// How long to measure.
        time: u64,
        /// In which unit.
        unit: TimeUnit,
    },
    /// `query-dirty-rate`.
    QueryDirtyRate {
        /// Unit of the reply's `calc-time`.
        unit: TimeUnit,
    },
    /// `x-colo-lost-heartbeat`.
    ColoLostHeartbeat,
    /// `query-colo-status`.
    QueryColoStatus,
    /// `x-checkpoint`.
    Checkpoint,
    /// `x-tidemark-colo`.
    Colo {
        /// Checkpoints up to this one are not wanted.
        after: u64,
    },
    /// `x-tidemark-status`.
    Status,
    /// `x-tidemark-registers`.
    Registers,
    /// `x-tidemark-checksum`.
    Checksum,
    /// `x-tidemark-vcpus`.
    Vcpus,
    /// `quit`.
    Quit,
}

/// Every command's name, in the order of `query-commands`.
pub const COMMANDS: [&str; 30] = [
    "qmp_capabilities",
    "query-version",
    "query-commands",
    "query-name",
    "query-status",
    "stop",
    "cont",
    "quit",
    "migrate",
    "migrate-incoming",
    "migrate_cancel",
    "migrate-continue",
    "migrate-start-postcopy",
    "migrate-pause",
    "migrate-recover",
    "migrate-set-parameters",
    "query-migrate-parameters",
    "migrate-set-capabilities",
    "query-migrate-capabilities",
    "query-migrate",
    "calc-dirty-rate",
    "query-dirty-rate",
    "x-colo-lost-heartbeat",
    "query-colo-status",
    "x-checkpoint",
    "x-tidemark-colo",
    "x-tidemark-status",
    "x-tidemark-registers",
    "x-tidemark-checksum",
    "x-tidemark-vcpus",
];

/// What a request came to.
#[derive(Debug)]
pub(super) enum Decoded {
    /// Something for the VM.
    Command(Command),
    /// Answered already.
    Answer(Value),
}

/// Checks the arguments of `qmp_capabilities`.
pub(super) fn negotiate(arguments: Map<String, Value>) -> Result<(), CommandError> {
    let mut arguments = Arguments(arguments);
    let enable = arguments.0.remove("enable");
    arguments.finish()?;
    match enable {
        None => Ok(()),
        Some(Value::Array(names)) if names.is_empty() => Ok(()),
        Some(Value::Array(_)) => Err(CommandError::generic("Capability oob is not available")),
        Some(_) => Err(wrong_type("enable", "array")),
    }
}

/// The command `name` with its arguments.
pub(super) fn decode(name: &str, arguments: Map<String, Value>) -> Result<Decoded, CommandError> {
    let mut arguments = Arguments(arguments);
    let command = match name {
        "query-version" => return arguments.answer(version()),
        "query-name" => return arguments.answer(json!({})),
        "query-commands" => {
            return arguments.answer(COMMANDS.iter().map(|name| json!({ "name": name })).collect());
        }
        "query-status" => Command::QueryStatus,
        "stop" => Command::Stop,
        "cont" => Command::Cont,
        "quit" => Command::Quit,
        "migrate" => migrate(&mut arguments)?,
        "migrate-incoming" => {
            arguments.refuse_channels()?;
            let uri = arguments.required_string("uri")?;
            Command::MigrateIncoming { uri, exit_on_error: arguments.boolean("exit-on-error")?.unwrap_or(true) }
        }
        "migrate_cancel" => Command::MigrateCancel,
        "migrate-start-postcopy" => Command::MigrateStartPostcopy,
        "migrate-continue" => Command::MigrateContinue { state: arguments.required_string("state")? },
        "migrate-pause" => Command::MigratePause,
        "migrate-recover" => {
            arguments.required_string("uri")?;
            Command::MigrateRecover
        }
        "migrate-set-parameters" => Command::MigrateSetParameters(std::mem::take(&mut arguments.0)),
        "query-migrate-parameters" => Command::QueryMigrateParameters,
        "migrate-set-capabilities" => Command::MigrateSetCapabilities(capabilities(&mut arguments)?),
        "query-migrate-capabilities" => Command::QueryMigrateCapabilities,
        "query-migrate" => Command::QueryMigrate,
        "calc-dirty-rate" => calc_dirty_rate(&mut arguments)?,
        "query-dirty-rate" => Command::QueryDirtyRate { unit: arguments.unit()? },
        "x-colo-lost-heartbeat" => Command::ColoLostHeartbeat,
        "query-colo-status" => Command::QueryColoStatus,
        "x-checkpoint" => Command::Checkpoint,
        "x-tidemark-colo" => Command::Colo { after: arguments.integer("after")?.unwrap_or(u64::MAX) },
        "x-tidemark-status" => Command::Status,
        "x-tidemark-registers" => Command::Registers,
        "x-tidemark-checksum" => Command::Checksum,
        "x-tidemark-vcpus" => Command::Vcpus,
        name => {
            return Err(CommandError {
                class: ErrorClass::CommandNotFound,
                desc: format!("The command {} has not been found", printable(name)),
            });
        }
    };
    arguments.finish()?;
    Ok(Decoded::Command(command))
}

fn migrate(arguments: &mut Arguments) -> Result<Command, CommandError> {
    arguments.refuse_channels()?;
    let uri = arguments.required_string("uri")?;
    // QEMU has ignored it since it exists: a migrate command by QMP never waits.
    arguments.boolean("detach")?;
    if arguments.boolean("resume")? == Some(true) {
        return Err(CommandError::generic("Cannot resume if there is no paused migration"));
    }
    Ok(Command::Migrate { uri })
}

fn calc_dirty_rate(arguments: &mut Arguments) -> Result<Command, CommandError> {
    let time = arguments.integer("calc-time")?.ok_or_else(|| missing("calc-time"))?;
    let unit = arguments.unit()?;
    let most = match unit {
        TimeUnit::Second => 60,
        TimeUnit::Millisecond => 60_000,
    };
    if !(1..=most).contains(&time) {
        return Err(CommandError::generic(format!("calc-time is out of range[1, {most}].")));
    }
    if let Some(mode) = arguments.string("mode")?
        && mode != "dirty-bitmap"
    {
        return Err(CommandError::generic(format!(
            "Parameter 'mode' does not accept value '{}': the rate is measured by the dirty log, mode dirty-bitmap",
            printable(&mode)
        )));
    }
    if arguments.0.contains_key("sample-pages") {
        return Err(CommandError::generic("sample-pages is only used in page-sampling mode"));
    }
    Ok(Command::CalcDirtyRate { time, unit })
}

fn capabilities(arguments: &mut Arguments) -> Result<Vec<CapabilityStatus>, CommandError> {
    let Some(list) = arguments.0.remove("capabilities") else { return Err(missing("capabilities")) };
    let Value::Array(list) = list else { return Err(wrong_type("capabilities", "array")) };
    list.into_iter()
        .map(|entry| {
            let Value::Object(entry) = entry else { return Err(wrong_type("capabilities[]", "object")) };
            let mut entry = Arguments(entry);
            let capability = entry.required_string("capability")?;
            let state = entry.boolean("state")?.ok_or_else(|| missing("state"))?;
            entry.finish()?;
            Ok(CapabilityStatus { capability, state })
        })
        .collect()
}

/// What there is no capability of that name for.
pub fn unknown_capability(name: &str) -> CommandError {
    not_accepted("capability", name)
}

fn missing(name: &str) -> CommandError {
    CommandError::generic(format!("Parameter '{name}' is missing"))
}

fn wrong_type(name: &str, expected: &str) -> CommandError {
    CommandError::generic(format!("Invalid parameter type for '{name}', expected: {expected}"))
}

fn not_accepted(name: &str, value: &str) -> CommandError {
    CommandError::generic(format!("Parameter '{name}' does not accept value '{}'", printable(value)))
}

/// A request's arguments, from which each that is known is taken.
struct Arguments(Map<String, Value>);

impl Arguments {
    fn string(&mut self, name: &str) -> Result<Option<String>, CommandError> {
        match self.0.remove(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(wrong_type(name, "string")),
        }
    }

    fn required_string(&mut self, name: &str) -> Result<String, CommandError> {
        self.string(name)?.ok_or_else(|| missing(name))
    }

    fn boolean(&mut self, name: &str) -> Result<Option<bool>, CommandError> {
        match self.0.remove(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(_) => Err(wrong_type(name, "boolean")),
        }
    }

    fn integer(&mut self, name: &str) -> Result<Option<u64>, CommandError> {
        match self.0.remove(name) {
            None => Ok(None),
            Some(value) => match value.as_u64() {
                Some(number) => Ok(Some(number)),
                // A negative number is an integer to QEMU, only out of every range: the caller says of which.
                None if value.is_i64() => Ok(Some(u64::MAX)),
                None => Err(CommandError::generic(format!("Parameter '{name}' expects uint64"))),
            },
        }
    }

    fn one_of(&mut self, name: &str, values: &[&str]) -> Result<Option<String>, CommandError> {
        match self.string(name)? {
            Some(value) if !values.contains(&value.as_str()) => Err(not_accepted(name, &value)),
            value => Ok(value),
        }
    }

    fn unit(&mut self) -> Result<TimeUnit, CommandError> {
        match self.one_of("calc-time-unit", &["second", "millisecond"])?.as_deref() {
            Some("millisecond") => Ok(TimeUnit::Millisecond),
            _ => Ok(TimeUnit::Second),
        }
    }

    fn refuse_channels(&self) -> Result<(), CommandError> {
        if self.0.contains_key("channels") {
            return Err(CommandError::generic(
                "Parameter 'channels' is not supported: name the other side by 'uri', and the number of streams by the \
                 migration parameter 'multifd-channels'",
            ));
        }
        Ok(())
    }

    fn answer(self, value: Value) -> Result<Decoded, CommandError> {
        self.finish().map(|()| Decoded::Answer(value))
    }

    /// Nothing may be left.
    fn finish(self) -> Result<(), CommandError> {
        match self.0.keys().next() {
            Some(name) => Err(CommandError::generic(format!("Parameter '{}' is unexpected", printable(name)))),
            None => Ok(()),
        }
    }
}
