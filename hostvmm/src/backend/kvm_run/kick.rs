//! Stopping a vCPU from another thread: [`Kick`].
//!
//! `KVM_RUN` looks at `kvm_run.immediate_exit` once, when it enters the guest (kvm/api.rst 5); from then on only a signal
//! to its thread brings it back. A kick therefore sets the flag first and sends the signal second: a thread that has not
//! looked yet sees the flag, one that has is interrupted. The flag stays set until a `run` has reported the kick, which
//! makes kicks sticky. Who runs and who kicks meet under one lock, so that a signal never goes to a thread that has
//! left, and the flag is never written once the vCPU's mapping is gone.
#![expect(unsafe_code, reason = "one byte of kvm_run is shared with the thread that runs the vCPU; signals")]

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

/// How one vCPU is stopped.
pub(in crate::backend) struct Kick {
    state: Mutex<State>,
}

struct State {
    /// The vCPU's `immediate_exit`; `None` once the vCPU is gone.
    immediate_exit: Option<Flag>,
    /// The thread inside `KVM_RUN`.
    runner: Option<Thread>,
    kicked: bool,
}

/// A thread as signals are sent to it.
#[derive(Clone, Copy)]
struct Thread(libc::pthread_t);

// SAFETY: a thread's handle, a pointer in some C libraries, may be used by every thread of the process.
unsafe impl Send for Thread {}

/// Address of `immediate_exit` in the mapping that the kernel shares.
#[derive(Clone, Copy)]
struct Flag(*mut u8);

// SAFETY: it is only written, atomically, under the lock of the `Kick` that holds it.
unsafe impl Send for Flag {}

impl Flag {
    fn set(self, value: bool) {
        // SAFETY: the mapping lives until `Kick::detach`, after which no `Flag` is left; the byte is ours to write
        // while the kernel reads it.
        let flag = unsafe { AtomicU8::from_ptr(self.0) };
        flag.store(u8::from(value), Ordering::SeqCst);
    }
}

impl Kick {
    /// For the vCPU whose `kvm_run.immediate_exit` is at `immediate_exit`, valid until [`Self::detach`].
    pub(in crate::backend) fn new(immediate_exit: *mut u8) -> Self {
        install_handler();
        let state = State { immediate_exit: Some(Flag(immediate_exit)), runner: None, kicked: false };
        Self { state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the current run, or the next one, end.
    pub(in crate::backend) fn kick(&self) {
        let mut state = self.lock();
        state.kicked = true;
        if let Some(flag) = state.immediate_exit {
            flag.set(true);
        }
        if let Some(Thread(thread)) = state.runner {
            // SAFETY: the thread is inside `KVM_RUN` or on its way out, where it waits for this lock: it lives.
            unsafe { libc::pthread_kill(thread, signal()) };
        }
    }

    /// The calling thread is about to run the vCPU.
    pub(super) fn enter(&self) {
        // SAFETY: it has no preconditions.
        let thread = unsafe { libc::pthread_self() };
        self.lock().runner = Some(Thread(thread));
    }

    /// The calling thread runs the vCPU no more.
    pub(super) fn leave(&self) {
        self.lock().runner = None;
    }

    /// The interruption has been reported.
    pub(super) fn acknowledge(&self) {
        let mut state = self.lock();
        state.kicked = false;
        if let Some(flag) = state.immediate_exit {
            flag.set(false);
        }
    }

    /// Makes the runs in `body` end before the first instruction, whether kicked or not.
    pub(super) fn without_running<T>(&self, body: impl FnOnce() -> T) -> T {
        if let Some(flag) = self.lock().immediate_exit {
            flag.set(true);
        }
        let result = body();
        let state = self.lock();
        if let Some(flag) = state.immediate_exit {
            flag.set(state.kicked);
        }
        result
    }

    /// The vCPU's mapping is about to go.
    pub(super) fn detach(&self) {
        self.lock().immediate_exit = None;
    }
}

/// A real-time signal: the standard ones mean something to somebody else.
fn signal() -> libc::c_int {
    libc::SIGRTMIN()
}

extern "C" fn nothing(_: libc::c_int) {}

/// Without a handler the signal would end the process; with SA_RESTART, the call would go on.
fn install_handler() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: all zeroes is a valid `sigaction`: no flags, an empty mask, the default handler.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = nothing as *const () as libc::sighandler_t;
        // SAFETY: the handler does nothing, so it is safe at any point of any thread.
        unsafe { libc::sigaction(signal(), &raw const action, std::ptr::null_mut()) };
    });
}
