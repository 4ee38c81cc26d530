//! The far ends of flows: each port has a manner of its own.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};
use vhost_net_onion::{Egress, egress::Request, gateway::Failure};

/// Refuses.
pub(crate) const REFUSED: u16 = 1;
/// Cannot be reached.
pub(crate) const UNREACHABLE: u16 = 2;
/// Takes a moment to accept, in which the VM may have given up.
pub(crate) const SLOW: u16 = 3;
/// Sends back what it gets, and ends after [`ECHO_END`]: Tor cannot tell it that the VM has ended.
pub(crate) const ECHO: u16 = 80;
/// The last byte of an echo.
pub(crate) const ECHO_END: u8 = 255;
/// Says something and ends at once.
pub(crate) const SHORT: u16 = 81;
/// Sends without end and does not read.
pub(crate) const ENDLESS: u16 = 82;

const SLOW_TIME: Duration = Duration::from_millis(20);

/// Opens flows to far ends in this process.
pub(crate) struct FarEnds;

impl Egress for FarEnds {
    type Stream = UnixStream;

    async fn connect(&self, Request { target, .. }: Request) -> Result<UnixStream, Failure> {
        match target.port {
            REFUSED => return Err(Failure::Refused),
            UNREACHABLE => return Err(Failure::Unreachable),
            SLOW => tokio::time::sleep(SLOW_TIME).await,
            _ => {}
        }
        let (ours, theirs) = UnixStream::pair().map_err(|_| Failure::Unreachable)?;
        tokio::spawn(async move {
            // Its failure is the VM's going away.
            let _ = behave(target.port, theirs).await;
        });
        Ok(ours)
    }
}

async fn behave(port: u16, mut stream: UnixStream) -> std::io::Result<()> {
    match port {
        SHORT => stream.write_all(b"that is all").await,
        ENDLESS => loop {
            stream.write_all(&[7; 4096]).await?;
        },
        _ => {
            let mut bytes = [0; 4096];
            loop {
                match stream.read(&mut bytes).await? {
                    0 => return Ok(()),
                    count => stream.write_all(&bytes[..count]).await?,
                }
                if bytes.contains(&ECHO_END) {
                    return Ok(());
                }
            }
        }
    }
}
