//! What PID 1 does when: a state machine without I/O.
//!
//! ```text
//!            state mounted + provisioned
//!   Starting ───────────────────────────► Up ─ program ends ─► waits, starts it again
//!      │                                   │
//!      └── fault that a new VM may mend ───┼── PowerOff ──► Stopping (program asked, then killed)
//!                                          ▼                    │
//!                                       Stopping ───────────────┴──► Leaving (last words sent) ──► PowerOff
//! ```
//!
//! Invariants: the clock is set before the router program is first started. A provision after the first (the agent
//! was restarted) sets the clock and is answered by a ready, and never touches the router program. After `PowerOff`
//! nothing is started. What is reported while nobody is connected is kept, at most [`BACKLOG_MAX`] messages.

use std::{collections::VecDeque, time::Duration};

use wire::control::{FromInit, ToInit};

/// Reports kept for a host agent that is not connected; the oldest go first.
pub(crate) const BACKLOG_MAX: usize = 16;

/// How long mounting the state is tried: virtiofsd may come up later than the kernel.
pub(crate) const MOUNT_TRIED: Duration = Duration::from_secs(5);
const MOUNT_AGAIN: Duration = Duration::from_millis(50);

/// How long the router program may take to end after SIGTERM.
const STOP_PATIENCE: Duration = Duration::from_secs(3);
/// How long the host agent may take to acknowledge the last message by closing the connection.
const GOODBYE_PATIENCE: Duration = Duration::from_secs(2);
/// How long a fault waits for a host agent to report it to.
const FAULT_PATIENCE: Duration = Duration::from_secs(10);

const RESTART_MIN: Duration = Duration::from_millis(100);
const RESTART_MAX: Duration = Duration::from_secs(5);
/// A program that ran this long was well: the next restart is quick again.
const RAN_WELL: Duration = Duration::from_secs(60);

/// What happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// The kernel has started PID 1.
    Booted,
    /// The control connection stands.
    Connected,
    /// The control connection is gone.
    Disconnected,
    /// The host agent said something.
    Message(ToInit),
    /// The state is at `/state`.
    StateMounted,
    /// It is not, and why.
    StateFailed(String),
    /// The router program runs.
    ProgramStarted,
    /// The router program ended, or could not be started; how, in words.
    ProgramEnded(String),
    /// Something failed that does not keep the VM from working.
    Failure(String),
    /// Something failed that only a new VM can mend.
    Fault(String),
    /// Nothing but time passed.
    Tick,
}

/// What to do about it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Mount the state; answered by [`Event::StateMounted`] or [`Event::StateFailed`].
    MountState,
    /// Set the clock to nanoseconds since the epoch.
    SetClock(u64),
    /// Check and start the router program; answered by started, ended or a fault.
    StartProgram,
    /// Send SIGTERM to the router program.
    StopProgram,
    /// Send SIGKILL to the router program.
    KillProgram,
    /// Send a ready with the figures of this moment.
    SendReady,
    /// Send this.
    Send(FromInit),
    /// Unmount the state.
    UnmountState,
    /// The end.
    PowerOff,
}

#[derive(Debug, PartialEq, Eq)]
enum Program {
    /// Not yet started; it is once the state is mounted and the clock set.
    Unstarted,
    /// The shell is starting it.
    Starting,
    Running {
        since: Duration,
    },
    /// It ended and is started again at this time.
    Waiting {
        until: Duration,
    },
    /// Nothing is ever started again.
    Gone,
}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    Up,
    /// The program was asked to end; `kill_at` is `None` once it was killed.
    Stopping {
        kill_at: Option<Duration>,
    },
    /// Last words are out, or wait for somebody to hear them.
    Leaving {
        until: Duration,
    },
    Off,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    /// For the benchmark: there is none.
    Unwanted,
    Unmounted {
        give_up: Duration,
        again: Option<Duration>,
    },
    Mounted,
}

/// The state machine. Times are since the kernel began.
#[derive(Debug)]
pub(crate) struct Machine {
    bare: bool,
    phase: Phase,
    state: State,
    program: Program,
    provisioned: bool,
    /// A provision was not yet answered.
    ready_owed: bool,
    connected: bool,
    backlog: VecDeque<FromInit>,
    restart: Duration,
    actions: VecDeque<Action>,
}

impl Machine {
    /// A machine before [`Event::Booted`]; `bare` is the benchmark's.
    pub(crate) fn new(bare: bool) -> Machine {
        Machine {
            bare,
            phase: Phase::Up,
            state: State::Unwanted,
            program: Program::Unstarted,
            provisioned: false,
            ready_owed: false,
            connected: false,
            backlog: VecDeque::new(),
            restart: RESTART_MIN,
            actions: VecDeque::new(),
        }
    }

    /// The next thing to do; its outcome, where it has one, is the next event.
    pub(crate) fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When the next tick is due at the latest.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        let phase = match self.phase {
            Phase::Stopping { kill_at } => kill_at,
            Phase::Leaving { until } => Some(until),
            Phase::Up | Phase::Off => None,
        };
        let program = match self.program {
            Program::Waiting { until } => Some(until),
            _ => None,
        };
        let state = match self.state {
            State::Unmounted { again, .. } => again,
            _ => None,
        };
        [phase, program, state].into_iter().flatten().min()
    }

    /// Takes in what happened at `now`.
    pub(crate) fn handle(&mut self, event: Event, now: Duration) {
        match event {
            Event::Booted if self.bare => {}
            Event::Booted => {
                self.state = State::Unmounted { give_up: now + MOUNT_TRIED, again: None };
                self.actions.push_back(Action::MountState);
            }
            Event::Connected => self.connected(now),
            Event::Disconnected => self.disconnected(),
            Event::Message(ToInit::Provision { unix_time_ns }) => self.provision(unix_time_ns),
            Event::Message(ToInit::PowerOff) => self.stop(now),
            Event::StateMounted => self.state = State::Mounted,
            Event::StateFailed(what) => self.state_failed(what, now),
            Event::ProgramStarted => self.program_started(now),
            Event::ProgramEnded(how) => self.program_ended(how, now),
            Event::Failure(what) => self.report(FromInit::Failure { what }),
            Event::Fault(what) => self.fault(what, now),
            Event::Tick => {}
        }
        self.run_due(now);
    }

    /// Everything that is due; calling it again at the same time does nothing.
    fn run_due(&mut self, now: Duration) {
        if let State::Unmounted { again: Some(at), give_up } = self.state
            && now >= at
            && self.phase == Phase::Up
        {
            self.state = State::Unmounted { again: None, give_up };
            self.actions.push_back(Action::MountState);
        }
        let start = match self.program {
            Program::Unstarted => self.provisioned && self.state == State::Mounted,
            Program::Waiting { until } => now >= until,
            _ => false,
        };
        if start && self.phase == Phase::Up {
            self.program = Program::Starting;
            self.actions.push_back(Action::StartProgram);
        }
        if self.ready_owed && self.connected && matches!(self.program, Program::Running { .. }) {
            self.ready_owed = false;
            self.actions.push_back(Action::SendReady);
        }
        match self.phase {
            Phase::Stopping { kill_at: Some(at) } if now >= at => {
                self.phase = Phase::Stopping { kill_at: None };
                self.actions.push_back(Action::KillProgram);
            }
            Phase::Leaving { until } if now >= until => self.off(),
            _ => {}
        }
    }

    fn connected(&mut self, now: Duration) {
        self.connected = true;
        self.actions.extend(self.backlog.drain(..).map(Action::Send));
        if self.bare && self.phase == Phase::Up {
            self.actions.push_back(Action::SendReady);
        }
        if let Phase::Leaving { .. } = self.phase {
            self.phase = Phase::Leaving { until: now + GOODBYE_PATIENCE };
        }
    }

    fn disconnected(&mut self) {
        let heard = self.connected;
        self.connected = false;
        if matches!(self.phase, Phase::Leaving { .. }) && heard {
            self.off();
        }
    }

    fn provision(&mut self, unix_time_ns: u64) {
        self.actions.push_back(Action::SetClock(unix_time_ns));
        self.provisioned = true;
        self.ready_owed = !self.bare;
    }

    fn state_failed(&mut self, what: String, now: Duration) {
        match self.state {
            State::Unmounted { give_up, .. } if now < give_up => {
                self.state = State::Unmounted { give_up, again: Some(now + MOUNT_AGAIN) };
            }
            _ => self.fault(what, now),
        }
    }

    fn program_started(&mut self, now: Duration) {
        self.program = Program::Running { since: now };
        if self.phase != Phase::Up {
            self.actions.push_back(Action::StopProgram);
        }
    }

    fn program_ended(&mut self, how: String, now: Duration) {
        let ran_well = matches!(self.program, Program::Running { since } if now.saturating_sub(since) >= RAN_WELL);
        if self.phase != Phase::Up {
            self.program = Program::Gone;
            return self.leave(now);
        }
        if ran_well {
            self.restart = RESTART_MIN;
        }
        let delay = self.restart;
        self.restart = (delay * 2).min(RESTART_MAX);
        self.program = Program::Waiting { until: now + delay };
        self.report(FromInit::ProgramEnded { how, restart_ms: u64::try_from(delay.as_millis()).unwrap_or(u64::MAX) });
    }

    fn fault(&mut self, what: String, now: Duration) {
        self.report(FromInit::Failure { what });
        if self.program == Program::Starting {
            self.program = Program::Gone;
        }
        self.stop(now);
    }

    fn stop(&mut self, now: Duration) {
        if self.phase != Phase::Up {
            return;
        }
        if matches!(self.program, Program::Running { .. } | Program::Starting) {
            self.phase = Phase::Stopping { kill_at: Some(now + STOP_PATIENCE) };
            self.actions.push_back(Action::StopProgram);
        } else {
            self.leave(now);
        }
    }

    fn leave(&mut self, now: Duration) {
        if matches!(self.phase, Phase::Leaving { .. } | Phase::Off) {
            return;
        }
        self.program = Program::Gone;
        if self.state == State::Mounted {
            self.actions.push_back(Action::UnmountState);
        }
        let unheard = !self.connected && !self.backlog.is_empty();
        self.report(FromInit::PoweringOff);
        if self.connected || unheard {
            let patience = if self.connected { GOODBYE_PATIENCE } else { FAULT_PATIENCE };
            self.phase = Phase::Leaving { until: now + patience };
        } else {
            self.off();
        }
    }

    fn off(&mut self) {
        self.phase = Phase::Off;
        self.actions.push_back(Action::PowerOff);
    }

    fn report(&mut self, message: FromInit) {
        if self.connected {
            self.actions.push_back(Action::Send(message));
            return;
        }
        if self.backlog.len() == BACKLOG_MAX {
            self.backlog.pop_front();
        }
        self.backlog.push_back(message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOCK: u64 = 1_800_000_000_000_000_000;

    /// A machine with a clock and what it did since last asked.
    struct Bench {
        machine: Machine,
        now: Duration,
    }

    impl Bench {
        fn new(bare: bool) -> Bench {
            Bench { machine: Machine::new(bare), now: Duration::ZERO }
        }

        fn on(&mut self, event: Event) -> Vec<Action> {
            self.machine.handle(event, self.now);
            std::iter::from_fn(|| self.machine.next_action()).collect()
        }

        fn after(&mut self, time: Duration) -> Vec<Action> {
            self.now += time;
            self.on(Event::Tick)
        }

        fn up() -> Bench {
            let mut bench = Bench::new(false);
            bench.on(Event::Booted);
            bench.on(Event::StateMounted);
            bench.on(Event::Connected);
            assert_eq!(bench.on(provision()), [Action::SetClock(CLOCK), Action::StartProgram]);
            assert_eq!(bench.on(Event::ProgramStarted), [Action::SendReady]);
            bench
        }
    }

    fn provision() -> Event {
        Event::Message(ToInit::Provision { unix_time_ns: CLOCK })
    }

    fn ended(restart_ms: u64) -> Action {
        Action::Send(FromInit::ProgramEnded { how: "x".into(), restart_ms })
    }

    #[test]
    fn the_program_starts_once_both_state_and_clock_are_there_in_either_order() {
        let mut bench = Bench::new(false);
        assert_eq!(bench.on(Event::Booted), [Action::MountState]);
        assert_eq!(bench.on(Event::Connected), []);
        assert_eq!(bench.on(provision()), [Action::SetClock(CLOCK)], "the state is not there yet");
        assert_eq!(bench.on(Event::StateMounted), [Action::StartProgram]);
        assert_eq!(bench.on(Event::ProgramStarted), [Action::SendReady]);
        Bench::up();
    }

    #[test]
    fn a_restarted_agent_gets_a_ready_and_the_router_is_left_alone() {
        let mut bench = Bench::up();
        assert_eq!(bench.on(Event::Disconnected), []);
        assert_eq!(bench.on(Event::Connected), []);
        assert_eq!(bench.on(provision()), [Action::SetClock(CLOCK), Action::SendReady]);
    }

    #[test]
    fn restarts_are_delayed_doubling_up_to_a_bound_and_quick_again_after_a_good_run() {
        let mut bench = Bench::up();
        for restart_ms in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            assert_eq!(bench.on(Event::ProgramEnded("x".into())), [ended(restart_ms)]);
            assert_eq!(bench.after(Duration::from_millis(restart_ms - 1)), []);
            assert_eq!(bench.machine.deadline(), Some(bench.now + Duration::from_millis(1)));
            assert_eq!(bench.after(Duration::from_millis(1)), [Action::StartProgram]);
            assert_eq!(bench.on(Event::ProgramStarted), [], "a restart is no ready");
        }
        assert_eq!(bench.after(RAN_WELL), []);
        assert_eq!(bench.on(Event::ProgramEnded("x".into())), [ended(100)]);
    }

    #[test]
    fn an_agent_that_provisions_while_the_program_is_down_gets_its_ready_when_it_is_up() {
        let mut bench = Bench::up();
        bench.on(Event::ProgramEnded("x".into()));
        assert_eq!(bench.on(provision()), [Action::SetClock(CLOCK)]);
        assert_eq!(bench.after(RESTART_MIN), [Action::StartProgram]);
        assert_eq!(bench.on(Event::ProgramStarted), [Action::SendReady]);
    }

    #[test]
    fn power_off_stops_unmounts_says_so_and_waits_for_the_acknowledgement() {
        let mut bench = Bench::up();
        assert_eq!(bench.on(Event::Message(ToInit::PowerOff)), [Action::StopProgram]);
        assert_eq!(bench.on(Event::Message(ToInit::PowerOff)), [], "asked twice");
        let last = [Action::UnmountState, Action::Send(FromInit::PoweringOff)];
        assert_eq!(bench.on(Event::ProgramEnded("x".into())), last);
        assert_eq!(bench.on(Event::Disconnected), [Action::PowerOff]);
        assert_eq!(bench.after(Duration::from_secs(60)), []);
    }

    #[test]
    fn a_program_that_will_not_end_is_killed_and_a_silent_agent_not_waited_for_forever() {
        let mut bench = Bench::up();
        bench.on(Event::Message(ToInit::PowerOff));
        assert_eq!(bench.after(STOP_PATIENCE), [Action::KillProgram]);
        bench.on(Event::ProgramEnded("x".into()));
        assert_eq!(bench.after(GOODBYE_PATIENCE), [Action::PowerOff]);
    }

    #[test]
    fn power_off_works_at_every_moment_and_nothing_starts_after_it() {
        let mut early = Bench::new(false);
        early.on(Event::Booted);
        early.on(Event::Connected);
        assert_eq!(early.on(Event::Message(ToInit::PowerOff)), [Action::Send(FromInit::PoweringOff)]);
        assert_eq!(early.on(provision()), [Action::SetClock(CLOCK)]);
        assert_eq!(early.on(Event::StateMounted), []);
        assert_eq!(early.on(Event::Disconnected), [Action::PowerOff]);

        let mut waiting = Bench::up();
        waiting.on(Event::ProgramEnded("x".into()));
        let last = [Action::UnmountState, Action::Send(FromInit::PoweringOff)];
        assert_eq!(waiting.on(Event::Message(ToInit::PowerOff)), last);
        assert_eq!(waiting.after(RESTART_MAX), [Action::PowerOff], "not started again");
    }

    #[test]
    fn a_state_that_comes_late_is_mounted_and_one_that_never_comes_is_a_fault() {
        let mut bench = Bench::new(false);
        bench.on(Event::Booted);
        bench.on(Event::Connected);
        assert_eq!(bench.on(Event::StateFailed("no tag".into())), []);
        assert_eq!(bench.after(MOUNT_AGAIN), [Action::MountState]);
        bench.now += MOUNT_TRIED;
        let failure = Action::Send(FromInit::Failure { what: "no tag".into() });
        let last = [failure, Action::Send(FromInit::PoweringOff)];
        assert_eq!(bench.on(Event::StateFailed("no tag".into())), last);
    }

    #[test]
    fn a_fault_before_anybody_listens_is_reported_once_somebody_does() {
        let mut bench = Bench::new(false);
        bench.on(Event::Booted);
        assert_eq!(bench.on(Event::Fault("broken".into())), []);
        bench.now += FAULT_PATIENCE / 2;
        let failure = Action::Send(FromInit::Failure { what: "broken".into() });
        assert_eq!(bench.on(Event::Connected), [failure, Action::Send(FromInit::PoweringOff)]);
        assert_eq!(bench.on(Event::Disconnected), [Action::PowerOff]);

        let mut alone = Bench::new(false);
        alone.on(Event::Booted);
        alone.on(Event::Fault("broken".into()));
        assert_eq!(alone.after(FAULT_PATIENCE), [Action::PowerOff]);
    }

    #[test]
    fn the_backlog_is_bounded() {
        let mut bench = Bench::new(false);
        for number in 0..100 {
            bench.on(Event::Failure(number.to_string()));
        }
        let sent = bench.on(Event::Connected);
        assert_eq!(sent.len(), BACKLOG_MAX);
        assert_eq!(sent.last(), Some(&Action::Send(FromInit::Failure { what: "99".into() })));
    }

    #[test]
    fn the_bare_machine_is_ready_as_soon_as_it_is_connected() {
        let mut bench = Bench::new(true);
        assert_eq!(bench.on(Event::Booted), []);
        assert_eq!(bench.on(Event::Connected), [Action::SendReady]);
        assert_eq!(bench.on(provision()), [Action::SetClock(CLOCK)]);
        assert_eq!(bench.on(Event::Message(ToInit::PowerOff)), [Action::Send(FromInit::PoweringOff)]);
        assert_eq!(bench.on(Event::Disconnected), [Action::PowerOff]);
    }
}
