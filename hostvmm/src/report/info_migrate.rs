//! A migration for people, from what `query-migrate` answers: [`migration_text`].

use serde_json::Value;

/// A migration as QEMU's `info migrate` shows it, and what was foreseen beside what happened.
pub fn migration_text(info: &Value) -> String {
    let mut text = Text(String::new());
    let Some(status) = info["status"].as_str() else { return "no migration yet\n".to_owned() };
    text.row("status", status);
    if let Some(error) = info["error-desc"].as_str() {
        text.row("error", error);
    }
    for (name, field) in [
        ("total time", "total-time"),
        ("setup", "setup-time"),
        ("downtime", "downtime"),
        ("expected downtime", "expected-downtime"),
    ] {
        if let Some(ms) = info[field].as_u64() {
            text.row(name, &format!("{ms} ms"));
        }
    }
    memory(&mut text, &info["ram"]);
    if let Some(percent) = info["cpu-throttle-percentage"].as_u64() {
        text.row("vCPUs throttled", &format!("{percent} %"));
    }
    downtime(&mut text, &info["x-downtime"]);
    foreseen(&mut text, info);
    if let Some(equal) = info["x-digest"]["equal"].as_bool() {
        let mode = info["x-digest"]["mode"].as_str().unwrap_or_default();
        text.row("memory compared", &format!("{mode}, {}", if equal { "equal" } else { "DIFFERENT" }));
    }
    registers(&mut text, &info["x-registers"]);
    text.0
}

struct Text(String);

impl Text {
    fn row(&mut self, name: &str, value: &str) {
        self.0.push_str(&format!("{name:<18}{value}\n"));
    }
}

fn memory(text: &mut Text, ram: &Value) {
    if !ram.is_object() {
        return;
    }
    let number = |name: &str| ram[name].as_u64().unwrap_or(0);
    text.row(
        "memory",
        &format!(
            "{}, {} sent, {} remaining",
            mib(number("total")),
            mib(number("transferred")),
            mib(number("remaining"))
        ),
    );
    text.row(
        "pages",
        &format!("{} sent, {} zero, {} bytes each", number("normal"), number("duplicate"), number("page-size")),
    );
    text.row(
        "passes",
        &format!(
            "{}, {} pages/s dirtied, {:.0} Mbit/s",
            number("dirty-sync-count"),
            number("dirty-pages-rate"),
            ram["mbps"].as_f64().unwrap_or(0.0)
        ),
    );
    if number("postcopy-requests") > 0 {
        text.row(
            "post-copy",
            &format!("{} pages asked for, {}", number("postcopy-requests"), mib(number("postcopy-bytes"))),
        );
    }
}

fn downtime(text: &mut Text, split: &Value) {
    if !split.is_object() {
        return;
    }
    let part = |name: &str| split[name].as_u64().unwrap_or(0);
    let parts = ["final-pass", "state", "digest", "transfer", "verify", "load", "resume"]
        .map(|name| format!("{name} {}", ms(part(&format!("{name}-ns")))));
    text.row("downtime, split", &format!("{} = {}", ms(part("total-ns")), parts.join(" + ")));
}

/// What became of registers, one a line.
fn registers(text: &mut Text, report: &Value) {
    if !report.is_object() {
        return;
    }
    let word = |name: &str| report[name].as_str().unwrap_or_default();
    let micros = report["translate-ns"].as_u64().unwrap_or(0) as f64 / 1e3;
    let written = report["written"].as_u64().unwrap_or(0);
    text.row("registers", &format!("from {} to {}, {written} written, rules {micros:.0} µs", word("from"), word("to")));
    for (name, list) in [("", "notes"), ("not held", "unheld")] {
        for line in report[list].as_array().into_iter().flatten().filter_map(Value::as_str) {
            text.row(name, line);
        }
    }
}

/// The estimate beside what happened.
fn foreseen(text: &mut Text, info: &Value) {
    let estimate = &info["x-estimate"];
    if !estimate.is_object() {
        return;
    }
    let passes = info["x-passes"].as_array().map_or(0, Vec::len);
    let number = |name: &str| estimate[name].as_u64();
    let foreseen = match (number("passes"), number("bytes"), number("downtime-ns")) {
        (Some(passes), Some(bytes), Some(ns)) => format!("{passes} passes, {}, downtime {}", mib(bytes), ms(ns)),
        _ => "does not converge".to_owned(),
    };
    text.row("foreseen", &foreseen);
    let downtime = info["x-downtime"]["total-ns"].as_u64().map_or_else(|| "none yet".to_owned(), ms);
    let sent = info["ram"]["transferred"].as_u64().unwrap_or(0);
    text.row("happened", &format!("{passes} passes, {}, downtime {downtime}", mib(sent)));
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn ms(ns: u64) -> String {
    format!("{:.3} ms", ns as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_foreseen_stands_beside_what_happened() {
        let text = migration_text(&json!({
            "status": "completed", "total-time": 812, "downtime": 6,
            "ram": { "total": 2 << 20, "transferred": 3 << 20, "remaining": 0, "dirty-sync-count": 3, "mbps": 12.5 },
            "x-estimate": { "passes": 3, "bytes": 3 << 20, "downtime-ns": 5_000_000 },
            "x-passes": [{}, {}, {}],
            "x-downtime": { "total-ns": 6_250_000, "digest-ns": 1_000_000 },
        }));
        assert!(text.contains("foreseen          3 passes, 3.0 MiB, downtime 5.000 ms\n"), "{text}");
        assert!(text.contains("happened          3 passes, 3.0 MiB, downtime 6.250 ms\n"), "{text}");
        assert!(text.contains("6.250 ms = final-pass 0.000 ms"), "{text}");
    }

    #[test]
    fn what_became_of_registers_is_named_one_a_line() {
        let text = migration_text(&json!({
            "status": "completed",
            "x-registers": {
                "from": "kvm", "to": "emulator", "written": 240, "translate-ns": 31_400,
                "notes": ["MIDR_EL1: differs", "CCSIDR: left behind"], "unheld": ["ESR_EL1: reserved bits"],
            },
        }));
        let lines: Vec<_> = text.lines().skip(1).collect();
        assert_eq!(lines[0], "registers         from kvm to emulator, 240 written, rules 31 µs");
        assert!(lines[1].ends_with(" MIDR_EL1: differs") && lines[2].ends_with(" CCSIDR: left behind"), "{text}");
        assert_eq!(lines[3], "not held          ESR_EL1: reserved bits");
    }

    #[test]
    fn a_guest_that_does_not_converge_is_said_not_to() {
        let info = json!({ "status": "active", "x-estimate": { "passes": null, "bytes": null, "downtime-ns": null } });
        assert!(migration_text(&info).contains("foreseen          does not converge\n"));
        assert_eq!(migration_text(&json!({})), "no migration yet\n");
    }
}
