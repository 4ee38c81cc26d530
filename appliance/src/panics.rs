//! What a panic does: a part that died silently is worse than a program that is started again.
//!
//! A panic ends the program, and guest-init starts it anew, except inside the task of one VM: that one is contained
//! and only this VM's network starts anew ([`crate::vm`]), so that no VM can take down its neighbours.

use std::future::Future;

tokio::task_local! {
    static CONTAINED: ();
}

/// Exit status after a panic, as Rust's own.
const STATUS: i32 = 101;

/// From now on a panic outside of [`contained`] ends the program.
pub(crate) fn end_the_program() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        if CONTAINED.try_with(|()| ()).is_err() {
            std::process::exit(STATUS);
        }
    }));
}

/// Runs a future whose panic its caller handles.
pub(crate) fn contained<F: Future>(future: F) -> impl Future<Output = F::Output> {
    CONTAINED.scope((), future)
}
