//! The connection of one front-end: receives its requests, has the device serve them, answers.

use std::{
    io::{self, Write},
    os::unix::net::UnixStream,
};

use crate::{
    device::{Answer, Device, DeviceError},
    message::{MessageError, Received, Receiver, Reply, Request, encode_reply},
    poller::Watched,
};

/// Why a front-end's connection is closed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("the front-end does not take an answer")]
    Answer(#[source] io::Error),
}

/// A request that is to be served.
pub(crate) struct Incoming {
    code: u32,
    need_reply: bool,
    request: Request,
}

/// What a look at the connection brought.
pub(crate) enum Next {
    Request(Incoming),
    Pending,
    End,
}

/// One front-end and its device.
pub(crate) struct Session {
    stream: Watched<UnixStream>,
    receiver: Receiver,
    pub(crate) device: Device,
}

impl Session {
    /// `stream` must not block.
    pub(crate) fn new(stream: Watched<UnixStream>, device: Device) -> Session {
        Session { stream, receiver: Receiver::new(), device }
    }

    /// The next request.
    pub(crate) fn next(&mut self) -> Result<Next, SessionError> {
        Ok(match self.receiver.receive(&self.stream)? {
            Received::Message(m) => {
                Next::Request(Incoming { code: m.code, need_reply: m.need_reply, request: m.request })
            }
            Received::Pending => Next::Pending,
            Received::End => Next::End,
        })
    }

    /// Serves a request and answers it.
    pub(crate) fn serve(&mut self, incoming: Incoming) -> Result<(), SessionError> {
        let Incoming { code, need_reply, request } = incoming;
        tracing::trace!(?request, need_reply, "front-end");
        let answer = self.device.handle(request)?;
        let wanted = need_reply && self.device.acknowledges();
        let reply = match answer {
            Answer::Reply(reply) => reply,
            Answer::Done if wanted => Reply::U64(0),
            Answer::Refused if wanted => Reply::U64(1),
            Answer::Done | Answer::Refused => return Ok(()),
        };
        (&mut &*self.stream).write_all(&encode_reply(code, reply)).map_err(SessionError::Answer)
    }
}
