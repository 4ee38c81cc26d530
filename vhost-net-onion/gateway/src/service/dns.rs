//! DNS over TCP (RFC 7766): messages with their length before them, as many as the VM likes, answered in order.

use bytes::{Buf, BufMut, BytesMut};

use super::{Context, Step};
use crate::dns::{self, Carrier, Reply};

/// Bytes of a message's length.
const LENGTH_BYTES: usize = 2;

/// Answers the whole messages in `input`, until there is enough in `output`.
pub(super) fn handle(input: &mut BytesMut, output: &mut BytesMut, context: &mut Context<'_>) -> Step {
    while let [high, low, rest @ ..] = &input[..] {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if length > dns::QUERY_BYTES_MAX {
            return Step::Close;
        }
        if output.len() >= super::OUTPUT_BYTES_MAX {
            return Step::Flush;
        }
        let Some(message) = rest.get(..length) else { break };
        let Context { now, policy, names, counters } = context;
        let reply = dns::handle(*now, message, Carrier::Tcp, *policy, names, counters);
        input.advance(LENGTH_BYTES + length);
        match reply {
            Reply::None => return Step::Close,
            Reply::Now(reply) => put(&reply, output),
            Reply::Later(question) => return Step::Resolve(question),
        }
    }
    Step::Read
}

/// Writes a message with its length.
pub(super) fn put(message: &[u8], output: &mut BytesMut) {
    output.put_u16(u16::try_from(message.len()).expect("the messages for this carrier are no longer"));
    output.put_slice(message);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::tests::Around;

    /// A question for the address of `a.example`.
    const QUESTION: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01a\x07example\0\0\x01\0\x01";

    fn message() -> Vec<u8> {
        [&(QUESTION.len() as u16).to_be_bytes()[..], QUESTION].concat()
    }

    #[test]
    fn questions_are_answered_in_order_however_they_are_cut() {
        let mut around = Around::new();
        let stream = message().repeat(3);
        for piece in [1, 2, 7, stream.len()] {
            let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
            for bytes in stream.chunks(piece) {
                input.extend_from_slice(bytes);
                assert_eq!(handle(&mut input, &mut output, &mut around.context()), Step::Read);
            }
            let length = usize::from(u16::from_be_bytes([output[0], output[1]])) + 2;
            assert_eq!((output.len(), input.len()), (3 * length, 0), "in pieces of {piece}");
            assert_eq!(&output[2..4], b"\x12\x34");
        }
    }

    #[test]
    fn what_is_no_question_ends_the_connection() {
        let step = |bytes: &[u8]| {
            let (mut input, mut output) = (BytesMut::from(bytes), BytesMut::new());
            handle(&mut input, &mut output, &mut Around::new().context())
        };
        assert_eq!(step(&[0x10, 0x01]), Step::Close, "too long to be one");
        assert_eq!(step(&[0, 0]), Step::Close, "too short to be one");
        let mut response = message();
        response[4] |= 0x80;
        assert_eq!(step(&response), Step::Close);
        for length in 0..message().len() {
            assert_eq!(step(&message()[..length]), Step::Read, "{length}");
        }
    }

    #[test]
    fn answers_that_are_not_taken_stop_the_questions() {
        let mut around = Around::new();
        let (mut input, mut output) = (BytesMut::from(&message().repeat(10_000)[..]), BytesMut::new());
        assert_eq!(handle(&mut input, &mut output, &mut around.context()), Step::Flush);
        assert!(output.len() < super::super::OUTPUT_BYTES_MAX + 1000);
        while handle(&mut input, &mut output, &mut around.context()) == Step::Flush {
            output.clear();
        }
        assert_eq!((input.len(), around.counters.dns_replies), (0, 10_000));
    }
}
