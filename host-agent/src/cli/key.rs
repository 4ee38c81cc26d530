//! `oht key …` and `oht vm new-identity`.

mod root;
mod secret;
mod signature;
mod tree;

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Subcommand;
use hyper::Method;
use key_tree::{RootKey, rand_core::OsRng, secrecy::ExposeSecret as _};
use serde_json::{Value, json};
use wire::VmName;

use super::{Places, output};
use crate::{
    api::{Revoked, SetUpDone, UnlockedBy},
    client::Client,
    keys::{
        HostRequest, Limits,
        report::{KeyBranch, KeyTree, KeysStatus, NewGrant, PurposeName},
    },
};
use root::Form;
use secret::{By, From, Secrets};

/// What can be done with keys.
#[derive(Debug, Subcommand)]
pub(super) enum Key {
    /// Make keys that are kept: a root, sealed with a passphrase, and a store for the keys of this host.
    ///
    /// Asks for the root's passphrase, which is needed again once a month (`oht key renew`), and for one of the store,
    /// which is needed at every start of the agent, unless --keyfile or --credential unlocks it. VMs get new keys.
    Init {
        /// Write the sealed root to this file, and keep none in the agent's state directory.
        #[arg(long, value_name = "FILE")]
        root_out: Option<PathBuf>,
        #[command(flatten)]
        by: By,
        #[command(flatten)]
        from: From,
        #[command(flatten)]
        places: Places,
    },
    /// Show the tree of keys: which there are, until when they are valid, and why one cannot be used.
    Tree(Places),
    /// Renew the host's grant, which lasts 31 days: asks for the root's passphrase.
    Renew {
        /// The sealed root, where the agent does not keep it.
        #[arg(long, value_name = "FILE")]
        root: Option<PathBuf>,
        /// Set the agent's time back to this machine's clock, which had jumped forward and is right now. Keys that were
        /// passed by are live again.
        #[arg(long)]
        set_clock: bool,
        #[command(flatten)]
        from: From,
        #[command(flatten)]
        places: Places,
    },
    /// Revoke a key and all below it, at once: `host`, a VM, VM/PURPOSE/NAME, or a revocation identifier.
    Revoke {
        /// As `oht key tree` names it.
        what: String,
        #[command(flatten)]
        places: Places,
    },
    /// Lock the store: the agent forgets the secrets. Keys end when their grants do, since nothing is renewed.
    Lock(Places),
    /// Unlock the store.
    Unlock {
        #[command(flatten)]
        from: From,
        #[command(flatten)]
        places: Places,
    },
    /// Change what unlocks the store: to another passphrase, or to --keyfile or --credential.
    Passphrase {
        #[command(flatten)]
        by: By,
        #[command(flatten)]
        from: From,
        #[command(flatten)]
        places: Places,
    },
    /// Give a VM a key for a purpose, within limits: its ports, exits and days, and what else Datalog says.
    ///
    /// Where there is such a key, it gets a new grant, and its earlier one is revoked. It is renewed with these limits.
    Grant {
        /// Which VM.
        vm: VmName,
        /// What for.
        #[arg(long)]
        purpose: PurposeName,
        /// What the key is called, such as the name of a service; the VM's name where nothing is said.
        #[arg(long)]
        name: Option<String>,
        /// These ports only.
        #[arg(long, value_name = "PORT", value_delimiter = ',')]
        port: Vec<u16>,
        /// Exits in these countries only, as CH.
        #[arg(long, value_name = "CC", value_delimiter = ',')]
        exit: Vec<String>,
        /// On these days only (monday … sunday), in UTC.
        #[arg(long, value_name = "DAY", value_delimiter = ',')]
        days: Vec<String>,
        /// Hours that a grant lasts, at most 24.
        #[arg(long)]
        hours: Option<u8>,
        /// Facts and checks in Biscuit's Datalog, such as 'check if minute($m), $m < 720;'.
        #[arg(long, value_name = "DATALOG", default_value = "")]
        check: String,
        #[command(flatten)]
        places: Places,
    },
    /// Sign a file with a VM's signing key; prints the signature with its grants, as JSON.
    Sign {
        /// Whose key.
        vm: VmName,
        /// Which file.
        file: PathBuf,
        /// Which of the VM's signing keys.
        #[arg(long)]
        name: Option<String>,
        /// Write the signature to this file, which must not be there.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        #[command(flatten)]
        places: Places,
    },
    /// Verify a signature that `oht key sign` made. Needs no agent where --root is given.
    Verify {
        /// The file that was signed.
        file: PathBuf,
        /// Its signature.
        signature: PathBuf,
        /// The root that is trusted, in hexadecimal digits; the agent's where nothing is said.
        #[arg(long, value_name = "KEY")]
        root: Option<String>,
        /// Take a signature whose grants have ended: it shows that the key has signed, not that it still may.
        #[arg(long)]
        ended: bool,
        #[command(flatten)]
        places: Places,
    },
    /// Make a new store for the same root, where the old one is lost, damaged or cannot be unlocked.
    ///
    /// Needs the root: its sealed file and passphrase, or with --shares enough of its shares, a line each, after the
    /// passphrases. Whatever stands in the old store's place is moved aside, not deleted. All keys below the root are
    /// new, so onion services get new names.
    Restore {
        /// The sealed root, where the agent does not keep it.
        #[arg(long, value_name = "FILE", conflicts_with = "shares")]
        root: Option<PathBuf>,
        /// Restore the root from its shares, and seal it with a new passphrase.
        #[arg(long)]
        shares: bool,
        #[command(flatten)]
        by: By,
        #[command(flatten)]
        from: From,
        #[command(flatten)]
        places: Places,
    },
    /// The root itself: split it into shares for paper, and put it together again.
    Root {
        #[command(subcommand)]
        what: Root,
    },
}

/// What can be done with the root.
#[derive(Debug, Subcommand)]
pub(super) enum Root {
    /// Split the root into shares, some of which restore it, and fewer say nothing about it.
    Split {
        /// How many restore it: 2 to 16.
        #[arg(long, value_name = "K")]
        needed: usize,
        /// How many there are: up to 16.
        #[arg(long, value_name = "N")]
        count: usize,
        /// How they are shown.
        #[arg(long, default_value = "words")]
        form: Form,
        /// Write them to files in this directory: words and text as .txt, QR codes as .svg.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// The sealed root, where the agent does not keep it.
        #[arg(long, value_name = "FILE")]
        root: Option<PathBuf>,
        #[command(flatten)]
        from: From,
        #[command(flatten)]
        places: Places,
    },
    /// Put the root together from its shares, a line each, and seal it with a new passphrase. Needs no agent.
    Combine {
        /// Write the sealed root to this file, which must not be there.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        #[command(flatten)]
        from: From,
    },
}

/// Days that the host's grant lasts.
const HOST_DAYS: u8 = 31;

impl Key {
    /// Does what was asked.
    ///
    /// # Errors
    /// Says what failed and what to do.
    pub(super) async fn run(
        self,
        client: &impl Fn(Places) -> anyhow::Result<Client>,
        json: bool,
    ) -> anyhow::Result<()> {
        match self {
            Key::Init { root_out, by, from, places } => init(&client(places)?, root_out, &by, &from, json).await,
            Key::Tree(places) => {
                let tree: KeyTree = client(places)?.get("/keys").await?;
                if json { output::json(&tree) } else { output::text(&tree::text(&tree)) }
            }
            Key::Renew { root, set_clock, from, places } => {
                let (client, mut secrets) = (client(places)?, Secrets::new(&from)?);
                let sealed = root::sealed(&client, root.as_deref()).await?;
                let (root, _) = root::unseal(&sealed, &mut secrets)?;
                let request: HostRequest = client.post("/keys/host", &json!({})).await?;
                let grant = root::grant(&root, &request, HOST_DAYS, set_clock)?;
                let body = json!({ "grant": grant, "set_clock": set_clock });
                say(&client.post::<KeysStatus>("/keys/renew", &body).await?, "renewed", json)
            }
            Key::Revoke { what, places } => {
                let revoked: Revoked = client(places)?.post("/keys/revoke", &json!({ "what": what })).await?;
                let text = format!("revoked {} grants of {what}", revoked.revoked);
                if json { output::json(&revoked) } else { output::text(&text) }
            }
            Key::Lock(places) => say(&client(places)?.post("/keys/lock", &json!({})).await?, "locked", json),
            Key::Unlock { from, places } => {
                let (client, mut secrets) = (client(places)?, Secrets::new(&from)?);
                let with = old_unlock(&client, &mut secrets).await?;
                say(&client.post("/keys/unlock", &json!({ "with": with })).await?, "unlocked", json)
            }
            Key::Passphrase { by, from, places } => {
                let (client, mut secrets) = (client(places)?, Secrets::new(&from)?);
                let old = old_unlock(&client, &mut secrets).await?;
                let body = json!({ "old": old, "new": secrets.new_unlock(&by, None)? });
                say(&client.send(Method::PUT, "/keys/unlock", &body).await?, "changed", json)
            }
            Key::Grant { vm, purpose, name, port, exit, days, hours, check, places } => {
                let limits = Limits { ports: port, exits: exit, days, check, hours };
                let new = NewGrant { vm, purpose, name, limits };
                let branch: KeyBranch = client(places)?.post("/keys/grants", &new).await?;
                if json { output::json(&branch) } else { output::text(&tree::line(&branch)) }
            }
            Key::Sign { vm, file, name, out, places } => {
                signature::sign(&client(places)?, &vm, &file, name.as_deref(), out.as_deref()).await
            }
            Key::Verify { file, signature, root, ended, places } => {
                let root = match root {
                    Some(root) => root,
                    None => {
                        let tree: KeyTree = client(places)?.get("/keys").await?;
                        tree.keys
                            .root
                            .context("the agent does not know its root while the store is locked: give --root")?
                    }
                };
                signature::verify(&file, &signature, &root, ended, json)
            }
            Key::Restore { root, shares, by, from, places } => {
                restore(&client(places)?, root, shares, &by, &from, json).await
            }
            Key::Root { what } => what.run(client, json).await,
        }
    }
}

impl Root {
    async fn run(self, client: &impl Fn(Places) -> anyhow::Result<Client>, json: bool) -> anyhow::Result<()> {
        match self {
            Root::Split { needed, count, form, out, root, from, places } => {
                let sealed = root::sealed(&client(places)?, root.as_deref()).await?;
                let (root, _) = root::unseal(&sealed, &mut Secrets::new(&from)?)?;
                root::split(&root, needed, count, form, out.as_deref(), json)
            }
            Root::Combine { out, from } => {
                let mut secrets = Secrets::new(&from)?;
                let passphrase = secrets.new_passphrase("new passphrase of the root")?;
                let root = root::combine(&mut secrets)?;
                root::write_new(&out, root.seal(&passphrase)?.as_bytes())?;
                let public = root.public().to_string();
                let text =
                    format!("the root {public} is in {}: compare its public key with the one you know", out.display());
                if json { output::json(&json!({ "root": public, "file": out })) } else { output::text(&text) }
            }
        }
    }
}

/// Gives a VM a new identity.
///
/// # Errors
/// When there is no such VM, or the store is locked.
pub(super) async fn new_identity(client: &Client, name: &VmName, json: bool) -> anyhow::Result<()> {
    let branch: KeyBranch = client.post(&format!("/vms/{name}/new-identity"), &json!({})).await?;
    if json { output::json(&branch) } else { output::text(&tree::line(&branch)) }
}

async fn init(client: &Client, root_out: Option<PathBuf>, by: &By, from: &From, json: bool) -> anyhow::Result<()> {
    let mut secrets = Secrets::new(from)?;
    let request: HostRequest = client.post("/keys/host", &json!({})).await?;
    let passphrase = secrets.new_passphrase("new passphrase of the root, which is needed once a month")?;
    let unlock = secrets.new_unlock(by, Some(&passphrase))?;
    let root = RootKey::generate(&mut OsRng);
    let sealed = root.seal(&passphrase)?;
    let grant = root::grant(&root, &request, HOST_DAYS, false)?;
    let kept = root_out.is_none().then_some(&sealed);
    let body = json!({ "root": root.public().to_string(), "grant": grant, "sealed_root": kept, "unlock": unlock });
    if let Some(path) = &root_out {
        // First, so that no keys are ever kept whose root is lost.
        root::write_new(path, sealed.as_bytes())?;
    }
    let done = client.post::<SetUpDone>("/keys/setup", &body).await;
    if let (Err(_), Some(path)) = (&done, &root_out) {
        let _ = std::fs::remove_file(path);
    }
    set_up(&done?, &root, json)
}

async fn restore(
    client: &Client,
    file: Option<PathBuf>,
    shares: bool,
    by: &By,
    from: &From,
    json: bool,
) -> anyhow::Result<()> {
    let mut secrets = Secrets::new(from)?;
    let (root, sealed, unlock) = if shares {
        let passphrase = secrets.new_passphrase("new passphrase of the root")?;
        let unlock = secrets.new_unlock(by, Some(&passphrase))?;
        let root = root::combine(&mut secrets)?;
        let sealed = root.seal(&passphrase)?;
        (root, Some(sealed), unlock)
    } else {
        let sealed = root::sealed(client, file.as_deref()).await?;
        let (root, passphrase) = root::unseal(&sealed, &mut secrets)?;
        let unlock = secrets.new_unlock(by, Some(&passphrase))?;
        (root, None, unlock)
    };
    let request: HostRequest = client.post("/keys/host", &json!({})).await?;
    // The new store begins at this machine's clock.
    let grant = root::grant(&root, &request, HOST_DAYS, true)?;
    let root_key = root.public().to_string();
    let body = json!({ "root": root_key, "grant": grant, "sealed_root": sealed, "unlock": unlock, "replace": true });
    set_up(&client.post::<SetUpDone>("/keys/setup", &body).await?, &root, json)
}

fn set_up(done: &SetUpDone, root: &RootKey, json: bool) -> anyhow::Result<()> {
    if json {
        return output::json(done);
    }
    let aside = done.aside.as_ref().map_or_else(String::new, |path| format!("\nthe old store is in {path}"));
    output::text(&format!("keys are kept; the root is {}{aside}", root.public()))
}

/// What unlocks the store now, as the API takes it.
async fn old_unlock(client: &Client, secrets: &mut Secrets) -> anyhow::Result<Value> {
    let now: UnlockedBy = client.get("/keys/unlock").await?;
    match (now.key_file, now.by.as_str()) {
        (Some(path), _) => Ok(json!({ "key_file": path })),
        (None, "a systemd credential") => Ok(json!({ "credential": {} })),
        _ => Ok(json!({ "passphrase": secrets.passphrase("passphrase of the key store")?.expose_secret() })),
    }
}

fn say(status: &KeysStatus, what: &str, json: bool) -> anyhow::Result<()> {
    if json { output::json(status) } else { output::text(&format!("{what}; keys are {}", status.detail)) }
}
