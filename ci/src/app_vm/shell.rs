//! The guest shell: commands go into the VM over a virtio serial port, an AF_UNIX socket on our side, and their output
//! and status come back. Many may run at once.
//!
//! To the VM: `ID COMMAND-IN-BASE64`, a newline. From it: `TAG STATUS BYTES`, a newline, so many bytes. A tag is the
//! identifier of a command, or the name of an event (`boot`, `lease`).

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail};

/// How much longer than the VM's own limit we wait for an answer.
const SLACK: Duration = Duration::from_secs(20);
/// No answer is larger: the VM cuts it (init.sh). Larger output goes through `sha256sum` or `wc`.
const ANSWER_BYTES_MAX: u64 = 30_000;

/// What a command did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Its exit status: 143 or 137 when its time was up.
    pub(crate) status: i32,
    /// What it wrote, errors too.
    pub(crate) output: String,
    /// From sending the command to having the answer.
    pub(crate) time: Duration,
}

impl Answer {
    /// The output of a command that succeeded.
    ///
    /// # Errors
    /// When it failed: its status and output.
    pub(crate) fn ok(self) -> Result<String> {
        if self.status != 0 {
            bail!("status {} after {:.1} s: {}", self.status, self.time.as_secs_f64(), self.output.trim());
        }
        Ok(self.output)
    }
}

/// A connection to a VM's shell.
#[derive(Debug)]
pub(crate) struct Shell {
    stream: UnixStream,
    inbox: Arc<Inbox>,
    next: AtomicU64,
    /// Two programs that use one shell after the other do not mistake each other's answers.
    series: u64,
}

#[derive(Debug, Default)]
struct Inbox {
    state: Mutex<State>,
    news: Condvar,
}

#[derive(Debug, Default)]
struct State {
    messages: HashMap<String, Message>,
    closed: bool,
}

#[derive(Clone, Debug)]
struct Message {
    at: Instant,
    status: i32,
    body: String,
}

/// A command that runs.
#[derive(Debug)]
pub(crate) struct Pending<'a> {
    shell: &'a Shell,
    id: String,
    sent: Instant,
    limit: Duration,
}

impl Shell {
    /// Connects to the socket, which QEMU makes soon after its start; gives up when `alive` fails.
    ///
    /// # Errors
    /// The error of `alive`, or when there is no socket in time.
    pub(crate) fn connect(path: &Path, mut alive: impl FnMut() -> Result<()>) -> Result<Shell> {
        let end = Instant::now() + SLACK;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > end => {
                    return Err(error).with_context(|| format!("cannot connect to {}", path.display()));
                }
                Err(_) => alive()?,
            }
            thread::sleep(Duration::from_millis(2));
        };
        let inbox = Arc::new(Inbox::default());
        let (reader, inside) = (stream.try_clone()?, inbox.clone());
        thread::spawn(move || {
            inside.receive(reader);
            inside.lock().closed = true;
            inside.news.notify_all();
        });
        let series = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
        Ok(Shell { stream, inbox, next: AtomicU64::new(0), series })
    }

    /// Runs a command and waits for its answer; the VM kills it after `limit`.
    ///
    /// # Errors
    /// When no answer comes. A command that fails is an [`Answer`].
    pub(crate) fn run(&self, command: &str, limit: Duration) -> Result<Answer> {
        self.begin(command, limit)?.wait()
    }

    /// Starts a command.
    ///
    /// # Errors
    /// When it cannot be sent.
    pub(crate) fn begin(&self, command: &str, limit: Duration) -> Result<Pending<'_>> {
        let id = format!("{}-{}", self.series, self.next.fetch_add(1, Ordering::Relaxed));
        // The inner shell makes one process group's worth of work one thing to kill.
        let bounded = format!("exec timeout -s KILL {} sh -c {}\n", limit.as_secs().max(1), quoted(command));
        let line = format!("{id} {}\n", base64(bounded.as_bytes()));
        (&self.stream).write_all(line.as_bytes()).context("the VM's shell is gone")?;
        Ok(Pending { shell: self, id, sent: Instant::now(), limit })
    }

    /// Waits for an event; gives when it came and what it says.
    ///
    /// # Errors
    /// When it does not come before `end`.
    pub(crate) fn event(&self, name: &str, end: Instant) -> Result<(Instant, String)> {
        let message = self.inbox.wait(name, end).with_context(|| format!("the VM did not report {name:?}"))?;
        Ok((message.at, message.body))
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both); // ends the reader
    }
}

impl Pending<'_> {
    /// Waits for the answer.
    ///
    /// # Errors
    /// When none comes.
    pub(crate) fn wait(self) -> Result<Answer> {
        let end = self.sent + self.limit + SLACK;
        let message = self.shell.inbox.wait(&self.id, end).context("the VM's shell gave no answer")?;
        Ok(Answer { status: message.status, output: message.body, time: message.at - self.sent })
    }
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends when the VM does, or says something that is no message.
    fn receive(&self, stream: UnixStream) {
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        while reader.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
            let Some((tag, status, bytes)) = header(&line) else { return };
            let mut body = Vec::new();
            if reader.by_ref().take(bytes).read_to_end(&mut body).is_err() || body.len() as u64 != bytes {
                return;
            }
            let body = String::from_utf8_lossy(&body).into_owned();
            self.lock().messages.insert(tag, Message { at: Instant::now(), status, body });
            self.news.notify_all();
            line.clear();
        }
    }

    fn wait(&self, tag: &str, end: Instant) -> Result<Message> {
        let mut state = self.lock();
        loop {
            if let Some(message) = state.messages.get(tag) {
                return Ok(message.clone());
            }
            if state.closed {
                bail!("the connection to the VM's shell ended");
            }
            let Some(left) = end.checked_duration_since(Instant::now()) else { bail!("its time is up") };
            state = self.news.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn header(line: &str) -> Option<(String, i32, u64)> {
    let mut words = line.trim_end().split(' ');
    let (tag, status, bytes) = (words.next()?, words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    (bytes <= ANSWER_BYTES_MAX && words.next().is_none()).then(|| (tag.to_owned(), status, bytes))
}

/// As one word of a shell.
pub(crate) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0_u32, |word, &byte| word << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
        for index in 0..4 {
            let symbol = ALPHABET[(word >> (18 - 6 * index) & 63) as usize];
            text.push(if index <= chunk.len() { char::from(symbol) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn base64_pads() {
        assert_eq!(
            ["", "f", "fo", "foo", "foob"].map(|t| base64(t.as_bytes())),
            ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg=="]
        );
    }

    #[test]
    fn headers_that_are_none() {
        assert_eq!(header("a 0 5\n"), Some(("a".into(), 0, 5)));
        for wrong in ["", "a", "a 0", "a x 5", "a 0 -1", "a 0 5 6", "a 0 99999999999"] {
            assert_eq!(header(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn answers_find_their_commands_in_any_order_and_an_end_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let shell = Shell::connect(&path, || Ok(())).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let limit = Duration::from_secs(5);
        let (one, two, three) =
            (shell.begin("1", limit).unwrap(), shell.begin("2", limit).unwrap(), shell.begin("3", limit).unwrap());
        let mut lines = BufReader::new(&stream).lines();
        let ids = [(); 3].map(|()| lines.next().unwrap().unwrap().split(' ').next().unwrap().to_owned());
        (&stream).write_all(format!("{} 7 4\ntwo\n{} 0 0\nboot 0 1\n!", ids[1], ids[0]).as_bytes()).unwrap();
        assert_eq!(one.wait().unwrap().ok().unwrap(), "");
        let answer = two.wait().unwrap();
        assert_eq!((answer.status, answer.output.as_str()), (7, "two\n"));
        assert!(answer.ok().unwrap_err().to_string().contains("status 7"));
        assert_eq!(shell.event("boot", Instant::now() + limit).unwrap().1, "!");
        stream.shutdown(std::net::Shutdown::Both).unwrap();
        assert!(three.wait().is_err());
    }
}
