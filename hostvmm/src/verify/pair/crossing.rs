//! One migration between two VMs, watched: [`Crossing`].

use std::time::Duration;

use serde_json::{Value, json};

use super::{MigrateSpec, PairError, Place, Side, Watch};

/// Pages are sent at least so long before post-copy takes over, so that there is a pre-copy to speak of.
const BEFORE_POSTCOPY: u64 = 1;

/// The option of `hostvmm run` that plants a fault at a boundary of its migrations.
pub(in crate::verify) const PLANT: &str = "--plant-migration-fault";

/// A migration of a guest from one VM to another.
pub(in crate::verify) struct Crossing<'a> {
    /// What is asked for.
    pub(in crate::verify) spec: &'a MigrateSpec,
    /// Where the VMs are.
    pub(in crate::verify) place: &'a Place,
    /// Bounds its waits.
    pub(in crate::verify) watch: Watch<'a>,
}

/// What a migration came to.
#[derive(Debug)]
pub(in crate::verify) struct Outcome {
    /// What `query-migrate` says of it at the source.
    pub(in crate::verify) info: Value,
    /// Whether both sides were ever seen to run the guest.
    pub(in crate::verify) both_ran: bool,
}

impl Outcome {
    /// Its status, as QEMU names it.
    pub(in crate::verify) fn status(&self) -> &str {
        self.info["status"].as_str().unwrap_or("none")
    }
}

/// Whether a migration of this status has ended.
pub(in crate::verify) fn has_ended(status: &str) -> bool {
    matches!(status, "completed" | "cancelled" | "failed")
}

impl Crossing<'_> {
    /// A VM that runs the guest from its start.
    pub(in crate::verify) fn first(&self, name: &str, extra: &[String]) -> Result<Side, PairError> {
        let mut side = self.start(name, &self.options(extra))?;
        self.spec.tune(&mut side)?;
        Ok(side)
    }

    /// A VM that waits for a guest at `uri`.
    pub(in crate::verify) fn incoming(&self, name: &str, uri: &str, extra: &[String]) -> Result<Side, PairError> {
        let mut options = self.options(extra);
        options.extend(["--incoming".to_owned(), "defer".to_owned()]);
        if self.spec.verify_guest {
            options.push("--verify-guest".to_owned());
        }
        let mut side = self.start(name, &options)?;
        self.spec.tune(&mut side)?;
        side.execute("migrate-incoming", json!({ "uri": uri }))?;
        Ok(side)
    }

    fn start(&self, name: &str, options: &[String]) -> Result<Side, PairError> {
        match (&self.spec.via, self.place.far()) {
            (Some(_), Some(far)) => Side::start_far(self.place, far, name, options),
            _ => Side::start(self.place, name, options),
        }
    }

    fn options(&self, extra: &[String]) -> Vec<String> {
        let mut options = self.spec.run_options();
        options.extend_from_slice(extra);
        options
    }

    /// Begins a migration.
    pub(in crate::verify) fn begin(&self, source: &mut Side, uri: &str) -> Result<(), PairError> {
        source.execute("migrate", json!({ "uri": uri })).map(drop)
    }

    /// Waits until a migration has ended at the source, lets stopped processes go on, and looks whether both sides ever run
    /// the guest.
    pub(in crate::verify) fn wait(
        &self,
        source: &mut Side,
        mut destination: Option<&mut Side>,
    ) -> Result<Outcome, PairError> {
        let what = format!("the end of the migration from VM {}", source.name());
        let _awake: Vec<_> =
            [Some(&*source), destination.as_deref()].into_iter().flatten().map(Side::keep_awake).collect();
        let mut both_ran = false;
        let mut postcopy = false;
        let info = self.watch.until(&what, || {
            // The destination first: once it runs the guest, the source never does again.
            let there = match &mut destination {
                Some(side) => side.runs()?,
                None => false,
            };
            both_ran |= source.runs()? && there;
            let info = source.migration()?;
            let status = info["status"].as_str().unwrap_or("none");
            let syncs = info["ram"]["dirty-sync-count"].as_u64().unwrap_or(0);
            if self.spec.is_postcopy() && !postcopy && status == "active" && syncs > BEFORE_POSTCOPY {
                postcopy = true;
                // It may have ended meanwhile.
                drop(source.execute("migrate-start-postcopy", json!({})));
            }
            Ok(has_ended(status).then_some(info))
        })?;
        Ok(Outcome { info, both_ran })
    }

    /// Waits until the guest runs at `side`.
    pub(in crate::verify) fn wait_running(&self, side: &mut Side) -> Result<(), PairError> {
        let what = format!("the guest to run in VM {}", side.name());
        self.watch.until(&what, || {
            // A process that has ended never will.
            side.execute("query-status", json!({})).map(|status| (status["running"] == true).then_some(()))
        })
    }

    /// Waits until `side` has received a guest that it does not run.
    pub(in crate::verify) fn wait_arrived(&self, side: &mut Side) -> Result<(), PairError> {
        let what = format!("the guest to arrive in VM {}", side.name());
        self.watch.until(&what, || {
            let status = side.execute("query-status", json!({}))?;
            Ok((status["status"] != "inmigrate").then_some(()))
        })
    }

    /// Whether `side`, whose guest has moved away, stands still for `time`.
    pub(in crate::verify) fn stands_still(&self, side: &mut Side, time: Duration) -> Result<bool, PairError> {
        let before = side.steps()?;
        self.watch.pass(time)?;
        // Steps are counted in guest memory: where that was handed over, it is the destination's steps that are seen. A kernel's
        // last lines may still be on their way.
        let unseen = self.spec.way.shares_memory() || self.spec.base.machine.kernel.is_some();
        Ok(!side.runs()? && (unseen || side.steps()? == before))
    }
}
