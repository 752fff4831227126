//! From what `query-migrate` answers to a [`MigrationEntry`].

use serde_json::Value;

use super::migration::{
    BytesEntry, DowntimeEntry, EstimateEntry, MigrationEntry, RegistersEntry, RoundEntry, SlotDigestsEntry,
    ThrottleEntry,
};

/// Nanoseconds in a millisecond, the unit of QEMU's times.
const NS_PER_MS: u64 = 1_000_000;

impl MigrationEntry {
    /// The ledger's entry of a migration of which `query-migrate` says `info`. What is not in there is zero or absent.
    pub fn from_query(info: &Value) -> Self {
        let number = |at: &Value| at.as_u64().unwrap_or(0);
        let ns = |name: &str| number(&info[name]).saturating_mul(NS_PER_MS);
        let ram = &info["ram"];
        let split = &info["x-downtime"];
        let throttled = number(&info["cpu-throttle-percentage"]);
        Self {
            status: info["status"].as_str().unwrap_or("none").to_owned(),
            total_ns: ns("total-time"),
            setup_ns: ns("setup-time"),
            transferred: number(&ram["transferred"]),
            normal: number(&ram["normal"]),
            zero: number(&ram["duplicate"]),
            syncs: number(&ram["dirty-sync-count"]),
            downtime_host_ns: split["total-ns"].as_u64().unwrap_or_else(|| ns("downtime")),
            error: info["error-desc"].as_str().map(str::to_owned),
            downtime: split.is_object().then(|| DowntimeEntry {
                final_pass_ns: number(&split["final-pass-ns"]),
                state_ns: number(&split["state-ns"]),
                transfer_ns: number(&split["transfer-ns"]),
                load_ns: number(&split["load-ns"]),
                digest_ns: number(&split["digest-ns"]).saturating_add(number(&split["verify-ns"])),
                resume_ns: number(&split["resume-ns"]),
            }),
            digests: digests(&info["x-digest"]),
            estimate: estimate(&info["x-estimate"]),
            rounds: rounds(&info["x-passes"]),
            throttle: (throttled > 0).then(|| ThrottleEntry { most_percent: throttled.min(100) as u8, raises: 0 }),
            bytes: ram.is_object().then(|| bytes(info)),
            registers: registers(&info["x-registers"]),
            ..Self::default()
        }
    }
}

fn registers(info: &Value) -> Option<RegistersEntry> {
    let text = |name: &str| info[name].as_str().unwrap_or_default().to_owned();
    let lines = |name: &str| {
        let lines = info[name].as_array().into_iter().flatten();
        lines.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    info.is_object().then(|| RegistersEntry {
        from: text("from"),
        to: text("to"),
        written: info["written"].as_u64().unwrap_or(0),
        translate_ns: info["translate-ns"].as_u64().unwrap_or(0),
        notes: lines("notes"),
        unheld: lines("unheld"),
    })
}

fn digests(info: &Value) -> Vec<SlotDigestsEntry> {
    let hex = |side: &str| format!("{:#x}", info[side].as_u64().unwrap_or(0));
    let Some(equal) = info["equal"].as_bool() else { return Vec::new() };
    let (source, destination) = (hex("source"), hex("destination"));
    vec![SlotDigestsEntry { slot: "all memory".to_owned(), source, destination, equal }]
}

fn estimate(info: &Value) -> Option<EstimateEntry> {
    let number = |name: &str| info[name].as_u64().unwrap_or(0);
    info.is_object().then(|| EstimateEntry {
        passes: number("passes"),
        bytes: number("bytes"),
        downtime_ns: number("downtime-ns"),
        converges: info["passes"].is_u64(),
    })
}

fn rounds(info: &Value) -> Vec<RoundEntry> {
    let round = |pass: &Value| {
        let number = |name: &str| pass[name].as_u64().unwrap_or(0);
        RoundEntry { pass: number("pass"), dirty: number("pages"), bytes: number("bytes"), ns: number("ns") }
    };
    info.as_array().map_or_else(Vec::new, |passes| passes.iter().map(round).collect())
}

fn bytes(info: &Value) -> BytesEntry {
    let ram = |name: &str| info["ram"][name].as_u64().unwrap_or(0);
    let delta = info["xbzrle-cache"]["bytes"].as_u64().unwrap_or(0);
    let postcopy = ram("postcopy-bytes");
    // Pages that were sent in post-copy are among the whole ones.
    let normal = ram("normal-bytes").saturating_sub(postcopy);
    // With compression fewer bytes are sent than the pages have: what was sent is then all compressed.
    let whole = ram("transferred");
    let (normal, compressed) =
        if normal + delta + postcopy <= whole { (normal, 0) } else { (0, whole.saturating_sub(delta + postcopy)) };
    let protocol = whole.saturating_sub(normal + compressed + delta + postcopy);
    BytesEntry { normal, delta, compressed, postcopy, protocol, ..BytesEntry::default() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_migration_shows_is_in_its_entry() {
        let entry = MigrationEntry::from_query(&json!({
            "status": "completed", "total-time": 12, "setup-time": 1, "downtime": 4,
            "ram": {"transferred": 5000, "normal": 1, "normal-bytes": 4096, "duplicate": 7, "dirty-sync-count": 3},
            "x-estimate": {"passes": 3, "bytes": 6000, "downtime-ns": 5},
            "x-passes": [{"pass": 0, "pages": 8, "bytes": 4900, "ns": 10}],
            "x-downtime": {"total-ns": 4_100_000, "final-pass-ns": 1, "digest-ns": 2, "verify-ns": 3},
            "x-digest": {"mode": "full", "source": 255, "destination": 255, "equal": true},
        }));
        assert_eq!((entry.status.as_str(), entry.total_ns, entry.syncs, entry.zero), ("completed", 12_000_000, 3, 7));
        assert_eq!(entry.downtime_host_ns, 4_100_000);
        assert_eq!(entry.downtime.unwrap().digest_ns, 5);
        assert_eq!(entry.digests[0].source, "0xff");
        assert!(entry.estimate.unwrap().converges);
        assert_eq!(entry.rounds[0].dirty, 8);
        assert_eq!(entry.bytes, Some(BytesEntry { normal: 4096, protocol: 904, ..BytesEntry::default() }));
    }

    #[test]
    fn pages_sent_in_post_copy_are_not_counted_twice() {
        let ram = json!({"transferred": 9000, "normal-bytes": 8192, "postcopy-bytes": 4096});
        let entry = MigrationEntry::from_query(&json!({"status": "completed", "ram": ram}));
        let bytes = BytesEntry { normal: 4096, postcopy: 4096, protocol: 808, ..BytesEntry::default() };
        assert_eq!(entry.bytes, Some(bytes));
    }

    #[test]
    fn nothing_known_is_an_empty_entry() {
        let entry = MigrationEntry::from_query(&json!({}));
        assert_eq!(entry, MigrationEntry { status: "none".to_owned(), ..MigrationEntry::default() });
    }
}
