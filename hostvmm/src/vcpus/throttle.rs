//! Slows a guest down: vCPUs are held out of it for a share of each [`PERIOD`], so that a migration can converge.
//!
//! As QEMU's cpu-throttle, but with one thread that opens and closes the door for all vCPUs: at the start of a period it is
//! open, then it is closed and whoever is inside is kicked. A vCPU at the closed door waits as a paused one does, so a
//! pause takes effect at once. The thread sleeps while there is nothing to throttle, paused machines included.

use std::time::{Duration, Instant};

use super::control::Shared;

/// How often the door is opened.
const PERIOD: Duration = Duration::from_millis(10);

/// Largest share of time in percent: the guest must go on.
pub(super) const MAX_PERCENT: u8 = 99;

/// Opens and closes the door until the machine is stopped.
pub(super) fn run(shared: &Shared) {
    let mut start = Instant::now();
    let mut control = shared.lock();
    while !control.stopping {
        let percent = u32::from(control.throttle_percent);
        if percent == 0 || control.paused {
            control.throttled = false;
            control = shared.wait_throttle(control, None);
            start = Instant::now();
            continue;
        }
        let open = PERIOD * (100 - percent) / 100;
        let now = Instant::now();
        let passed = now.saturating_duration_since(start);
        let closes = passed >= open;
        if passed >= PERIOD {
            start = now;
            control.throttled = false;
            shared.announce();
        } else if closes && !control.throttled {
            control.throttled = true;
            for vcpu in 0..control.seats.len() {
                shared.vm().kick(vcpu);
            }
        }
        let until = if control.throttled { PERIOD } else { open };
        let left = (start + until).saturating_duration_since(Instant::now());
        control = shared.wait_throttle(control, Some(left));
    }
}
