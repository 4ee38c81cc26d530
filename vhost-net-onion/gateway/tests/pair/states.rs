//! Hostile segments in every state of RFC 9293, section 3.3.2: none of them changes anything but the exact RST.

use gateway::{Config, Event, FlowId};
use smoltcp::wire::{TcpControl, TcpRepr, TcpSeqNumber};

use crate::raw::{self, Bare, segment, tcp_of};
use crate::world::REMOTE;

const PORT: u16 = 1000;

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    SynReceived,
    Established,
    FinWait1,
    FinWait2,
    CloseWait,
    Closing,
    LastAck,
    TimeWait,
}

const STATES: [State; 8] = [
    State::SynReceived,
    State::Established,
    State::FinWait1,
    State::FinWait2,
    State::CloseWait,
    State::Closing,
    State::LastAck,
    State::TimeWait,
];

/// A flow in a state, the VM's next number, and what the VM acknowledges.
struct Flow {
    bare: Bare,
    flow: FlowId,
    seq: i32,
    ack: TcpSeqNumber,
}

impl Flow {
    fn new(state: State) -> Flow {
        let mut bare = Bare::new(Config::default());
        if state == State::SynReceived {
            bare.exchange(&raw::tcp(REMOTE, &segment(TcpControl::Syn, PORT, 1000, None)));
            let Some(Event::Connect { flow, .. }) = bare.gateway.poll_event() else { panic!() };
            bare.gateway.connected(bare.now, flow);
            let frames = bare.frames();
            return Flow { bare, flow, seq: 1001, ack: tcp_of(&frames[0]).seq_number + 1 };
        }
        let (flow, next) = bare.established(PORT);
        let mut flow = Flow { bare, flow, seq: 1001, ack: next };
        let vm_first = matches!(state, State::CloseWait | State::LastAck);
        if vm_first {
            flow.fin();
        }
        if !matches!(state, State::Established | State::CloseWait) {
            flow.bare.gateway.finish(flow.bare.now, flow.flow);
            assert_eq!(tcp_of(&flow.bare.frames()[0]).control, TcpControl::Fin);
        }
        if state == State::Closing {
            flow.fin();
        }
        if matches!(state, State::FinWait2 | State::TimeWait) {
            flow.ack += 1;
            let ack = segment(TcpControl::None, PORT, flow.seq, Some(flow.ack));
            assert!(flow.bare.exchange(&raw::tcp(REMOTE, &ack)).is_empty());
        }
        if state == State::TimeWait {
            flow.fin();
        }
        flow.bare.events();
        flow
    }

    fn fin(&mut self) {
        let fin = segment(TcpControl::Fin, PORT, self.seq, Some(self.ack));
        self.seq += 1;
        let frames = self.bare.exchange(&raw::tcp(REMOTE, &fin));
        assert_eq!(tcp_of(&frames[0]).ack_number, Some(TcpSeqNumber(self.seq)));
    }

    /// The answers to a segment whose numbers are off by so much.
    fn provoke(&mut self, control: TcpControl, seq: i32, ack: Option<i32>, payload: &'static [u8]) -> Vec<Vec<u8>> {
        let ack = ack.map(|ack| TcpSeqNumber(self.ack.0.wrapping_add(ack)));
        let segment = TcpRepr { payload, ..segment(control, PORT, self.seq.wrapping_add(seq), ack) };
        self.bare.exchange(&raw::tcp(REMOTE, &segment))
    }
}

#[test]
fn nothing_wild_changes_anything() {
    for state in STATES {
        let mut flow = Flow::new(state);
        let far = [-100_000, 300_000, i32::MAX, i32::MIN];
        for seq in far {
            assert!(flow.provoke(TcpControl::Rst, seq, Some(0), b"").is_empty(), "{state:?}: an RST out of the window");
        }
        for control in [TcpControl::Fin, TcpControl::Psh, TcpControl::Syn] {
            for seq in far.into_iter().filter(|seq| *seq < 0) {
                for frame in flow.provoke(control, seq, Some(0), b"wild") {
                    let answer = tcp_of(&frame);
                    assert_eq!((answer.control, answer.ack_number), (TcpControl::None, Some(TcpSeqNumber(flow.seq))));
                }
            }
        }
        for (seq, payload) in [(0, &b""[..]), (1, b"x"), (0, b"data")] {
            for frame in flow.provoke(TcpControl::None, seq, None, payload) {
                // The window is closed after a FIN.
                let answer = tcp_of(&frame);
                assert_eq!((answer.control, answer.ack_number), (TcpControl::None, Some(TcpSeqNumber(flow.seq))));
                assert!(state as u8 > State::FinWait2 as u8, "{state:?}: no acknowledgement");
            }
        }
        for ack in [1000, i32::MAX, i32::MIN] {
            for frame in flow.provoke(TcpControl::None, 0, Some(ack), b"") {
                let answer = tcp_of(&frame);
                let expected = if state == State::SynReceived { TcpControl::Rst } else { TcpControl::None };
                assert_eq!(answer.control, expected, "{state:?}: an acknowledgement of what was never sent");
            }
        }
        assert!(flow.bare.events().is_empty(), "{state:?}");
        assert_eq!(flow.bare.gateway.flows(), 1, "{state:?}");
    }
}

#[test]
fn suspicious_segments_are_challenged() {
    for state in [State::SynReceived, State::Established, State::FinWait1, State::FinWait2] {
        let mut flow = Flow::new(state);
        for (control, seq) in
            [(TcpControl::Rst, 1), (TcpControl::Rst, 5000), (TcpControl::Syn, 0), (TcpControl::Syn, 9)]
        {
            let frames = flow.provoke(control, seq, Some(0), b"");
            let answer = tcp_of(&frames[0]);
            assert_eq!(
                (answer.control, answer.ack_number),
                (TcpControl::None, Some(TcpSeqNumber(flow.seq))),
                "{state:?}"
            );
        }
        assert_eq!(flow.bare.gateway.counters().challenges, 4);
        for _ in 0..1000 {
            flow.provoke(TcpControl::Rst, 1, Some(0), b"");
        }
        assert_eq!(flow.bare.gateway.counters().challenges, 100, "so many in a second");
        assert!(flow.bare.events().is_empty());
    }
}

#[test]
fn the_exact_reset_ends_it() {
    for state in STATES {
        let mut flow = Flow::new(state);
        assert!(flow.provoke(TcpControl::Rst, 0, Some(0), b"").is_empty());
        // RFC 1337: not TIME-WAIT.
        let ends = state != State::TimeWait;
        assert_eq!(flow.bare.events().contains(&Event::Closed(flow.flow)), ends, "{state:?}");
        assert_eq!(flow.bare.gateway.flows(), usize::from(!ends), "{state:?}");
    }
}

#[test]
fn a_reset_of_the_pump_is_one_that_the_vm_believes() {
    for state in STATES.into_iter().filter(|state| *state != State::TimeWait) {
        let mut flow = Flow::new(state);
        flow.bare.gateway.reset(flow.bare.now, flow.flow);
        let frames = flow.bare.frames();
        let rst = tcp_of(&frames[0]);
        let has_sent_fin = matches!(state, State::FinWait1 | State::Closing | State::LastAck);
        let exact = flow.ack + usize::from(has_sent_fin);
        assert_eq!((rst.control, rst.seq_number, frames.len()), (TcpControl::Rst, exact, 1), "{state:?}");
    }
}

#[test]
fn everything_comes_to_its_end_from_every_state() {
    for state in STATES {
        let mut flow = Flow::new(state);
        if state == State::SynReceived {
            flow.provoke(TcpControl::None, 0, Some(0), b"");
        }
        flow.bare.gateway.finish(flow.bare.now, flow.flow);
        flow.bare.frames();
        if !matches!(state, State::FinWait2 | State::TimeWait) {
            flow.ack += 1;
        }
        if matches!(state, State::CloseWait | State::LastAck | State::Closing | State::TimeWait) {
            flow.provoke(TcpControl::None, 0, Some(0), b"");
        } else {
            flow.fin();
        }
        assert_eq!(flow.bare.events().contains(&Event::Closed(flow.flow)), state != State::TimeWait, "{state:?}");
        let passive = matches!(state, State::CloseWait | State::LastAck);
        assert_eq!(flow.bare.gateway.flows(), usize::from(!passive), "{state:?}");
    }
}

#[test]
fn a_syn_again_is_answered_again() {
    let mut flow = Flow::new(State::SynReceived);
    let frames = flow.provoke(TcpControl::Syn, -1, None, b"");
    let answer = tcp_of(&frames[0]);
    assert_eq!((answer.control, answer.seq_number), (TcpControl::Syn, TcpSeqNumber(flow.ack.0.wrapping_sub(1))));
    assert_eq!(answer.ack_number, Some(TcpSeqNumber(flow.seq)));
}

#[test]
fn a_keep_alive_is_answered() {
    for payload in [&b""[..], b"x"] {
        let mut flow = Flow::new(State::Established);
        let frames = flow.provoke(TcpControl::None, -1, Some(0), payload);
        assert_eq!(tcp_of(&frames[0]).ack_number, Some(TcpSeqNumber(flow.seq)));
    }
}
