//! The proxy behind Tor: a SOCKS5 client (RFC 1928, RFC 1929) on a stream that is open to the proxy.

use std::time::Duration;

use gateway::{Failure, Host, Target};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tor_socksproto::{
    Buffer, Handshake as _, NextStep, PreciseReads, SocksAddr, SocksAuth, SocksClientHandshake, SocksCmd, SocksRequest,
    SocksStatus, SocksVersion,
};
use wire::route::Hop;

/// How long the proxy may take for its part, connecting included.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Asks the proxy `hop` at the other end of `stream` to lead on to `target`. The stream carries the bytes of the
/// connection then.
///
/// # Errors
/// What the VM is to be told: what the proxy says of the target, else that it is not reached.
pub(crate) async fn lead_on<S>(stream: &mut S, hop: &Hop, target: &Target) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let request = request(hop, target).ok_or(Failure::Unreachable)?;
    match tokio::time::timeout(ANSWER_TIMEOUT, shake_hands(stream, request)).await {
        Ok(Some(status)) => judge(status),
        // It broke off, or speaks another protocol, or refuses the login.
        Ok(None) => Err(Failure::Unreachable),
        Err(_) => Err(Failure::TimedOut),
    }
}

fn request(hop: &Hop, target: &Target) -> Option<SocksRequest> {
    let address = match &target.host {
        Host::Name(name) => SocksAddr::Hostname(name.clone().try_into().ok()?),
        Host::Address(address) => SocksAddr::Ip(*address),
    };
    let login = hop.login().map(|login| SocksAuth::Username(login.user.clone().into(), login.password.clone().into()));
    let login = login.unwrap_or(SocksAuth::NoAuth);
    SocksRequest::new(SocksVersion::V5, SocksCmd::CONNECT, address, target.port, login).ok()
}

/// The proxy's last word. Reads no byte of what comes after it.
async fn shake_hands<S>(stream: &mut S, request: SocksRequest) -> Option<SocksStatus>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut handshake = SocksClientHandshake::new(request);
    let mut buffer: Buffer<PreciseReads> = Buffer::new_precise();
    loop {
        match handshake.step(&mut buffer).ok()? {
            NextStep::Send(bytes) => {
                stream.write_all(&bytes).await.ok()?;
                stream.flush().await.ok()?;
            }
            NextStep::Recv(mut step) => {
                let read = stream.read(step.buf()).await.ok()?;
                step.note_received(read).ok()?;
            }
            NextStep::Finished(reply) => return Some(reply.into_output_forbid_pipelining().ok()?.status()),
        }
    }
}

/// RFC 1928, section 6.
fn judge(status: SocksStatus) -> Result<(), Failure> {
    match status {
        SocksStatus::SUCCEEDED => Ok(()),
        SocksStatus::CONNECTION_REFUSED => Err(Failure::Refused),
        SocksStatus::TTL_EXPIRED => Err(Failure::TimedOut),
        _ => Err(Failure::Unreachable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hop(text: &str) -> Hop {
        text.parse().unwrap()
    }

    /// What a proxy that says `answers`, each after it has read something, gets; and what becomes of it.
    async fn met(hop: &Hop, target: &Target, answers: &[&[u8]]) -> (Vec<u8>, Result<(), Failure>) {
        let (mut ours, mut theirs) = tokio::io::duplex(1000);
        let proxy = async {
            let mut said = vec![];
            for answer in answers {
                if theirs.read_buf(&mut said).await.unwrap() == 0 {
                    break;
                }
                theirs.write_all(answer).await.unwrap();
            }
            drop(theirs);
            said
        };
        let (said, result) = tokio::join!(proxy, lead_on(&mut ours, hop, target));
        let mut rest = vec![];
        ours.read_to_end(&mut rest).await.unwrap();
        (said, result.map(|()| assert_eq!(rest, b"hello", "nothing of the connection is lost")))
    }

    const DONE: &[u8] = b"\x05\0\0\x01\0\0\0\0\0\0hello";

    #[tokio::test]
    async fn the_proxy_is_told_the_name_and_the_login() {
        let target = Target { host: Host::Name("shop.example".into()), port: 443 };
        let (said, result) = met(&hop("socks5://proxy.example:1080"), &target, &[b"\x05\0", DONE]).await;
        assert_eq!((said.as_slice(), result), (&b"\x05\x01\0\x05\x01\0\x03\x0cshop.example\x01\xbb"[..], Ok(())));
        let hop = hop("socks5://me:a%20secret@proxy.example:1080");
        let (said, result) = met(&hop, &target, &[b"\x05\x02", b"\x01\0", DONE]).await;
        assert!(said.windows(14).any(|part| part == b"\x01\x02me\x08a secret\x05"), "{said:?}");
        assert_eq!(result, Ok(()));
        let target = Target { host: Host::Address([192, 0, 2, 1].into()), port: 80 };
        let (said, _) = met(&hop, &target, &[b"\x05\x02", b"\x01\0", DONE]).await;
        assert!(said.ends_with(b"\x05\x01\0\x01\xc0\0\x02\x01\0\x50"), "{said:?}");
    }

    #[tokio::test]
    async fn what_the_proxy_says_is_what_the_vm_is_told() {
        let target = Target { host: Host::Name("shop.example".into()), port: 443 };
        let hop = hop("socks5://me:secret@proxy.example:1080");
        for (answers, failure) in [
            (&[&b"\x05\x02"[..], b"\x01\0", b"\x05\x05\0\x01\0\0\0\0\0\0"][..], Failure::Refused),
            (&[b"\x05\x02", b"\x01\0", b"\x05\x04\0\x01\0\0\0\0\0\0"], Failure::Unreachable),
            (&[b"\x05\x02", b"\x01\x01"], Failure::Unreachable),
            (&[b"\x05\xff"], Failure::Unreachable),
            (&[b"HTTP/1.1 400 Bad Request\r\n\r\n"], Failure::Unreachable),
            (&[b""], Failure::Unreachable),
        ] {
            assert_eq!(met(&hop, &target, answers).await.1, Err(failure), "{answers:?}");
        }
    }
}
