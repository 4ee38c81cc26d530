//! Reads the routes again when a drop-in changes (inotify(7)).
//!
//! A directory that is not there when the agent starts is not watched: `oht route reload` reads it then.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::Arc,
    time::Duration,
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::{Interest, unix::AsyncFd};

use super::Routes;
use crate::{router_vm::words, supervise::Shared};

/// How long nothing must change before the files are read: several may be changed together.
const QUIET: Duration = Duration::from_millis(50);

/// After so many changes they are read anyway.
const CHANGES_MAX: usize = 20;

/// Reads the routes again whenever a drop-in changes, as long as the task lives. Returns if that cannot be watched.
pub async fn run(routes: Arc<Routes>, shared: Shared) {
    let watch = match watch(&routes.directory) {
        Ok(watch) => watch,
        Err(error) => {
            let directory = routes.directory.display();
            return tracing::info!("{directory} is not watched ({error}): `oht route reload` reads what changes there");
        }
    };
    while changed(&watch).await.is_ok() {
        for _ in 0..CHANGES_MAX {
            if tokio::time::timeout(QUIET, changed(&watch)).await.is_err() {
                break;
            }
        }
        match routes.reload().await {
            Ok(_) => tracing::info!("the drop-ins with routes were read again"),
            Err(error) => shared.model().failure(words(&error)),
        }
    }
}

struct Watch {
    inotify: Inotify,
    readable: AsyncFd<OwnedFd>,
}

fn watch(directory: &Path) -> std::io::Result<Watch> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    // Not while a file is being written: half of it says something else.
    let flags = AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_ONLYDIR;
    inotify.add_watch(directory, flags)?;
    #[allow(deprecated, reason = "its successor is unsafe code; an OwnedFd is the same open file until it is dropped")]
    let readable = AsyncFd::with_interest(inotify.as_fd().try_clone_to_owned()?, Interest::READABLE)?;
    Ok(Watch { inotify, readable })
}

/// Waits for something to happen, and takes all of it.
async fn changed(watch: &Watch) -> std::io::Result<()> {
    loop {
        let mut ready = watch.readable.readable().await?;
        match ready.try_io(|_| Ok(watch.inotify.read_events()?)) {
            Ok(events) => return events.map(drop),
            Err(_would_block) => {}
        }
    }
}
