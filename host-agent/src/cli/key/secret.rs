//! Passphrases and shares, as a person or a program gives them: on the terminal, or a line each from standard input or
//! another descriptor. Never on the command line, where every process can read them, and never in the environment.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, IsTerminal as _},
    path::PathBuf,
};

use anyhow::{Context as _, bail, ensure};
use key_tree::secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

/// Bytes of the longest line that is taken.
const LINE_BYTES_MAX: u64 = 4096;

/// Where passphrases come from.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct From {
    /// Read passphrases from standard input, a line each, in the order in which they would be asked for.
    #[arg(long, conflicts_with = "passphrase_fd")]
    passphrase_stdin: bool,
    /// Read passphrases from this open file descriptor, a line each.
    #[arg(long, value_name = "NUMBER")]
    passphrase_fd: Option<u32>,
}

/// What is to unlock the store.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct By {
    /// Unlock the store by a key in this file, without a person, at every start of the agent; the file is made where it
    /// is not there. It must be readable by the agent's user only.
    #[arg(long, value_name = "FILE", conflicts_with = "credential")]
    keyfile: Option<PathBuf>,
    /// Unlock the store by the systemd credential oht-store-key (64 hexadecimal digits).
    #[arg(long)]
    credential: bool,
}

/// Asks for one secret after the other.
pub(super) struct Secrets(Option<Box<dyn BufRead>>);

impl Secrets {
    /// From where the options say.
    ///
    /// # Errors
    /// When there is nothing to ask.
    pub(super) fn new(from: &From) -> anyhow::Result<Secrets> {
        if from.passphrase_stdin {
            return Ok(Secrets(Some(Box::new(BufReader::new(io::stdin())))));
        }
        if let Some(number) = from.passphrase_fd {
            let file = File::open(format!("/dev/fd/{number}")).with_context(|| format!("--passphrase-fd {number}"))?;
            return Ok(Secrets(Some(Box::new(BufReader::new(file)))));
        }
        Ok(Secrets(None))
    }

    /// A passphrase that exists.
    ///
    /// # Errors
    /// When none is given.
    pub(super) fn passphrase(&mut self, what: &str) -> anyhow::Result<SecretString> {
        match &mut self.0 {
            Some(lines) => {
                let line = line(lines)?.with_context(|| format!("no line is left for: {what}"))?;
                Ok(line.as_str().to_owned().into())
            }
            None => {
                let told = "give --passphrase-stdin or --passphrase-fd where there is no terminal";
                Ok(rpassword::prompt_password(format!("{what}: ")).context(told)?.into())
            }
        }
    }

    /// A new passphrase; a person types it twice.
    ///
    /// # Errors
    /// When none is given, or the two differ.
    pub(super) fn new_passphrase(&mut self, what: &str) -> anyhow::Result<SecretString> {
        let first = self.passphrase(what)?;
        ensure!(!first.expose_secret().is_empty(), "the passphrase is empty: choose six random words or more");
        if self.0.is_none() {
            let second = self.passphrase("the same again")?;
            ensure!(first.expose_secret() == second.expose_secret(), "the two are not the same: nothing was done");
        }
        Ok(first)
    }

    /// One share; `None` when there are no more. A person sees what they type: 46 words want to be corrected.
    ///
    /// # Errors
    /// When the line cannot be read.
    pub(super) fn share(&mut self) -> anyhow::Result<Option<Zeroizing<String>>> {
        match &mut self.0 {
            Some(lines) => line(lines),
            None => {
                if io::stdin().is_terminal() {
                    eprintln!("one share, as words or as ur:sskr/…, on one line:");
                }
                line(&mut io::stdin().lock())
            }
        }
    }

    /// What is to unlock a new store, as the API takes it; `root` is the root's passphrase, which may not serve.
    ///
    /// # Errors
    /// When none is given.
    pub(super) fn new_unlock(&mut self, by: &By, root: Option<&SecretString>) -> anyhow::Result<serde_json::Value> {
        if let Some(path) = &by.keyfile {
            return Ok(serde_json::json!({ "key_file": std::path::absolute(path)? }));
        }
        if by.credential {
            return Ok(serde_json::json!({ "credential": {} }));
        }
        let passphrase =
            self.new_passphrase("new passphrase of the key store, which the agent is told at every start")?;
        if root.is_some_and(|root| root.expose_secret() == passphrase.expose_secret()) {
            bail!(
                "this is the root's passphrase, which the agent must never know: choose another one for the key store"
            );
        }
        Ok(serde_json::json!({ "passphrase": passphrase.expose_secret() }))
    }
}

fn line(lines: &mut dyn BufRead) -> anyhow::Result<Option<Zeroizing<String>>> {
    let mut line = Zeroizing::new(String::with_capacity(LINE_BYTES_MAX as usize));
    let read = io::Read::take(lines, LINE_BYTES_MAX).read_line(&mut line).context("cannot read a line")?;
    ensure!((read as u64) < LINE_BYTES_MAX, "a line is longer than {LINE_BYTES_MAX} bytes");
    if read == 0 {
        return Ok(None);
    }
    Ok(Some(Zeroizing::new(line.trim_end_matches(['\n', '\r']).to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &'static str) -> Secrets {
        Secrets(Some(Box::new(text.as_bytes())))
    }

    #[test]
    fn every_question_takes_a_line() {
        let mut secrets = lines("one two\r\nthree\n");
        assert_eq!(secrets.new_passphrase("a").unwrap().expose_secret(), "one two");
        assert_eq!(secrets.passphrase("b").unwrap().expose_secret(), "three");
        assert!(secrets.passphrase("the third").unwrap_err().to_string().contains("the third"));
        assert!(lines("\n").new_passphrase("a").is_err());
        let by = By { keyfile: None, credential: false };
        let root = SecretString::from("same".to_owned());
        assert!(lines("same\n").new_unlock(&by, Some(&root)).unwrap_err().to_string().contains("another one"));
    }
}
