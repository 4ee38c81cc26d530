//! The two ways to a port.

use std::{
    io::{ErrorKind, Read, Write},
    os::{
        fd::AsFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use port::{Options, Port, Put, Stop, serve};
use wire::{
    VmName,
    hello::{HELLO_BYTES_MAX, Hello, Role},
    link::{Decoder, Message, Offload, encode},
};

use crate::{Clock, Done, frames::Frames, thread_cpu_seconds};

/// Milliseconds between two looks at whether it should be over.
const LOOK_MS: u16 = 50;

/// Bytes that are collected for one write.
const BATCH_BYTES: usize = 64 * 1024;

/// Frames that are taken from the port at once.
const BUDGET: usize = 64;

/// Through a port on a thread of its own, by its link.
pub(crate) fn link(path: &Path, vhost_user: UnixListener, frames: &mut Frames) -> Result<Done> {
    let vm: VmName = "echo".parse()?;
    let listener = UnixListener::bind(path)?;
    let stop = Stop::new()?;
    let (stopped, name) = (stop.clone(), vm.clone());
    let port = std::thread::spawn(move || -> Result<_> {
        let counters = serve(&name, vhost_user, listener, Options::default(), &stopped)?;
        Ok((counters, thread_cpu_seconds()?))
    });
    let carried = carry(greeted(path, vm)?, frames);
    stop.stop();
    let (counters, port_cpu_seconds) = port.join().ok().context("the port panicked")??;
    // The port waits while testpmd starts: there is nothing to be taken off.
    Ok(Done { seconds: carried?, port_cpu_seconds, counters })
}

fn greeted(path: &Path, vm: VmName) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(path)?;
    stream.write_all(&Hello::for_vm(Role::Router, vm.clone()).encode())?;
    let expected = Hello::for_vm(Role::Port, vm);
    let mut answer = [0; HELLO_BYTES_MAX];
    let answer = &mut answer[..expected.encode().len()];
    stream.read_exact(answer)?;
    ensure!(answer == expected.encode(), "the port says a wrong hello");
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// Sends and receives until the end. Returns how many seconds that took.
fn carry(mut stream: UnixStream, frames: &mut Frames) -> Result<f64> {
    let (mut out, mut written) = (Vec::with_capacity(2 * BATCH_BYTES), 0);
    let mut decoder = Decoder::default();
    let mut clock = Clock::start()?;
    let mut echoed = false;
    while !frames.ended() {
        while out.len() < BATCH_BYTES
            && let Some(frame) = frames.upcoming()
        {
            encode(frame, Offload::default(), &mut out)?;
            frames.sent();
        }
        if written < out.len() {
            match stream.write(&out[written..]) {
                Ok(count) => written += count,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return Err(e.into()),
            }
        }
        if written == out.len() {
            out.clear();
            written = 0;
        }
        match stream.read(decoder.spare()) {
            Ok(0) => bail!("the port closed the link"),
            Ok(count) => decoder.filled(count),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                let wanted = if out.is_empty() { PollFlags::POLLIN } else { PollFlags::POLLIN | PollFlags::POLLOUT };
                poll(&mut [PollFd::new(stream.as_fd(), wanted)], PollTimeout::from(LOOK_MS))?;
            }
            Err(e) => return Err(e.into()),
        }
        while let Some(message) = decoder.next_message()? {
            if let Message::Frame(_, frame) = message {
                frames.receive(frame);
            }
        }
        if frames.echoes() && !std::mem::replace(&mut echoed, true) {
            clock = Clock::start()?;
        }
    }
    Ok(clock.began.elapsed().as_secs_f64())
}

/// Through a port that is driven here.
pub(crate) fn in_process(vhost_user: UnixListener, frames: &mut Frames) -> Result<Done> {
    let mut port = Port::new(vhost_user, Options::default())?;
    let mut clock = Clock::start()?;
    let mut echoed = false;
    while !frames.ended() {
        let mut more = port.turn()?;
        more |= port.take_tx(BUDGET, |_, frame| frames.receive(&frame));
        while let Some(frame) = frames.upcoming()
            && port.put_rx(Offload::default(), frame, &[]) != Put::NoBuffers
        {
            frames.sent();
        }
        port.publish();
        if frames.echoes() && !std::mem::replace(&mut echoed, true) {
            clock = Clock::start()?;
        }
        if !more {
            poll(&mut [PollFd::new(port.as_fd(), PollFlags::POLLIN)], PollTimeout::from(LOOK_MS))?;
        }
    }
    Ok(Done {
        seconds: clock.began.elapsed().as_secs_f64(),
        port_cpu_seconds: thread_cpu_seconds()? - clock.cpu_before,
        counters: port.counters().clone(),
    })
}
