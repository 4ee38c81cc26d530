//! The shell around the state machine: one thread, one `poll`, and the actions carried out.

use std::{
    os::fd::AsFd,
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
    unistd::Pid,
};
use wire::control::FromInit;

use crate::{
    control::{Control, News},
    machine::{Action, Event, Machine},
    mounts,
    program::{self, StartError},
    system::{self, Arguments},
};

/// How long a PID 1 that panicked tries to say so.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Runs as PID 1 until the VM is powered off. A fault of its own is reported, too.
pub(crate) fn run() -> ExitCode {
    let mut control = Control::new();
    let ended = catch_unwind(AssertUnwindSafe(|| Vm::new(&mut control).and_then(|mut vm| vm.run())));
    let what = match ended {
        Ok(Err(what)) => what,
        Ok(Ok(never)) => match never {},
        Err(_) => "PID 1 panicked; the serial log says where".to_owned(),
    };
    system::log(&what);
    last_words(&mut control, FromInit::Failure { what });
    system::power_off()
}

enum Never {}

struct Vm<'a> {
    control: &'a mut Control,
    machine: Machine,
    arguments: Arguments,
    signals: SignalFd,
    router: Option<Pid>,
}

impl<'a> Vm<'a> {
    fn new(control: &'a mut Control) -> Result<Vm<'a>, String> {
        mounts::proc()?;
        let arguments = Arguments::of_kernel();
        let mask = SigSet::from(Signal::SIGCHLD);
        mask.thread_block().map_err(|error| format!("cannot block SIGCHLD: {error}"))?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .map_err(|error| format!("cannot watch for ended children: {error}"))?;
        Ok(Vm { control, machine: Machine::new(arguments.bare), arguments, signals, router: None })
    }

    fn run(&mut self) -> Result<Never, String> {
        if !self.arguments.bare {
            for what in mounts::others() {
                self.handle(Event::Failure(what));
            }
        }
        self.handle(Event::Booted);
        loop {
            self.wait()?;
            while let Some(news) = self.control.advance(system::uptime()) {
                self.handle(match news {
                    News::Connected => Event::Connected,
                    News::Message(message) => Event::Message(message),
                    News::Disconnected(why) => {
                        system::log(&why);
                        Event::Disconnected
                    }
                });
            }
            while let Ok(Some(_)) = self.signals.read_signal() {}
            while let Some((pid, how)) = program::reap() {
                if self.router == Some(pid) {
                    self.router = None;
                    system::log(&format!("the router {how}"));
                    self.handle(Event::ProgramEnded(how));
                }
            }
            self.handle(Event::Tick);
        }
    }

    /// Sleeps until something happens or is due. What `handle` has queued to be sent leaves by the next advance.
    fn wait(&self) -> Result<(), String> {
        let due = [self.machine.deadline(), self.control.deadline()].into_iter().flatten().min();
        let timeout = due.map_or(PollTimeout::NONE, |due| timeout(due, system::uptime()));
        let mut polled = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        polled.extend(self.control.interest().map(|(socket, events)| PollFd::new(socket, events)));
        match poll(&mut polled, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(format!("poll failed: {error}")),
        }
    }

    /// Hands an event to the machine and carries out what it asks for, with what comes of that.
    fn handle(&mut self, event: Event) {
        self.machine.handle(event, system::uptime());
        while let Some(action) = self.machine.next_action() {
            if let Some(outcome) = self.carry_out(action) {
                self.machine.handle(outcome, system::uptime());
            }
        }
    }

    fn carry_out(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::MountState => Some(match mounts::state() {
                Ok(()) => Event::StateMounted,
                Err(what) => Event::StateFailed(what),
            }),
            Action::SetClock(unix_time_ns) => failure(system::set_clock(unix_time_ns)),
            Action::StartProgram => Some(self.start()),
            Action::StopProgram => failure(self.signal(Signal::SIGTERM)),
            Action::KillProgram => failure(self.signal(Signal::SIGKILL)),
            Action::SendReady => self.send(&system::ready()),
            Action::Send(message) => self.send(&message),
            Action::UnmountState => failure(mounts::unmount_state()),
            Action::PowerOff => system::power_off(),
        }
    }

    fn start(&mut self) -> Event {
        match program::start(self.arguments.log.as_deref()) {
            Ok(pid) => {
                self.router = Some(pid);
                Event::ProgramStarted
            }
            Err(StartError::Refused(how)) => Event::ProgramEnded(how),
            Err(StartError::Unfit(what)) => Event::Fault(what),
        }
    }

    fn signal(&self, signal: Signal) -> Result<(), String> {
        self.router.map_or(Ok(()), |pid| program::signal(pid, signal))
    }

    fn send(&mut self, message: &FromInit) -> Option<Event> {
        match message {
            FromInit::Failure { what } => system::log(what),
            FromInit::Ready { uptime_ms, .. } => system::log(&format!("ready after {uptime_ms} ms")),
            FromInit::PoweringOff => system::log("powering off"),
            FromInit::ProgramEnded { .. } => {}
        }
        self.control.send(message);
        None
    }
}

fn failure(result: Result<(), String>) -> Option<Event> {
    result.err().map(Event::Failure)
}

/// Rounded up, so that a deadline has passed when `poll` returns.
fn timeout(due: Duration, now: Duration) -> PollTimeout {
    let left_ms = due.saturating_sub(now).as_micros().div_ceil(1000);
    PollTimeout::try_from(left_ms).unwrap_or(PollTimeout::MAX)
}

/// Sends one message and waits until the other side has closed the connection, for a bounded time.
fn last_words(control: &mut Control, message: FromInit) {
    let give_up = system::uptime() + LAST_WORDS;
    control.send(&message);
    let mut message = Some(message).filter(|_| !control.is_open());
    loop {
        let now = system::uptime();
        match control.advance(now) {
            Some(News::Connected) => {
                if let Some(message) = message.take() {
                    control.send(&message);
                }
                continue;
            }
            Some(News::Disconnected(_)) => return,
            Some(News::Message(_)) => continue,
            None => {}
        }
        if now >= give_up {
            return;
        }
        let due = control.deadline().map_or(give_up, |due| due.min(give_up));
        let mut polled: Vec<PollFd<'_>> =
            control.interest().into_iter().map(|(socket, events)| PollFd::new(socket, events)).collect();
        if poll(&mut polled, timeout(due, now)).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_rounded_up_and_bounded() {
        let ms = Duration::from_millis;
        assert_eq!(timeout(ms(5), ms(7)), PollTimeout::ZERO);
        assert_eq!(timeout(Duration::from_micros(1), ms(0)), PollTimeout::from(1u8));
        assert_eq!(timeout(Duration::MAX, ms(0)), PollTimeout::MAX);
    }

    #[test]
    fn last_words_reach_an_agent_that_then_hangs_up() {
        use std::io::{Read, Write};
        use wire::{control, hello::Hello, hello::Role};
        let (ours, mut agent) = std::os::unix::net::UnixStream::pair().unwrap();
        let heard = std::thread::spawn(move || {
            agent.write_all(&Hello::new(Role::Agent).encode()).unwrap();
            let mut bytes = vec![0; 4096];
            let mut at_hand = 0;
            while at_hand <= 8 || control::decode::<FromInit>(&bytes[8..at_hand]).unwrap().is_none() {
                at_hand += agent.read(&mut bytes[at_hand..]).unwrap();
            }
            control::decode::<FromInit>(&bytes[8..at_hand]).unwrap().unwrap().0
        });
        let message = FromInit::Failure { what: "panicked".into() };
        last_words(&mut Control::over(ours.into()), message.clone());
        assert_eq!(heard.join().unwrap(), message);
    }
}
