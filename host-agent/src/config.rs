//! What a person may choose: options of the command line, then a TOML file, then what is usual.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use wire::{
    bridge::Transport,
    entry::{TorEntry, Vanguards},
    network::{NetworkError, TorNetwork},
};

use crate::{
    entry::{self, BridgeText, EntryError},
    image::{Image, ImageError, PUBLIC_NETWORK},
    paths::{self, RunDir, StateDir},
    routes::geoip,
};

/// Memory of the router VM in MiB, where nothing else is said.
pub const MEMORY_MIB: u32 = 96;

/// Where the service of the system has its shared socket (systemd/agent.toml), and where `oht` looks for it.
pub const SHARED_SOCKET: &str = "/run/onion-router-shared/api.sock";

/// Options of `host-agent run` and `oht up`, and the keys of the configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Where sockets and logs go.
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Where state is kept: VMs, Tor's guards.
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// The router VM's image.
    #[arg(long, value_name = "DIR")]
    pub image: Option<PathBuf>,
    /// Description of another Tor network than the public one.
    #[arg(long, value_name = "FILE")]
    pub tor_network: Option<PathBuf>,
    /// How the router VM is executed: auto, kvm or tcg.
    #[arg(long, value_name = "HOW", value_parser = accelerator)]
    pub accel: Option<String>,
    /// Memory of the router VM in MiB.
    #[arg(long, value_name = "MIB")]
    pub memory_mib: Option<u32>,
    /// The directory with drop-ins that say which connections go where, in place of /etc/oht/routes.d or
    /// ~/.config/oht/routes.d.
    #[arg(long, value_name = "DIR")]
    pub routes_dir: Option<PathBuf>,
    /// The directory with the file geoip of Debian's package tor-geoipdb, in place of /usr/share/tor.
    #[arg(long, value_name = "DIR")]
    pub geoip_dir: Option<PathBuf>,
    /// A directory to look for helper programs in; may be given several times.
    #[arg(long, value_name = "DIR")]
    pub programs: Vec<PathBuf>,
    /// A group whose members may use all of the API, over the shared socket.
    #[arg(long, value_name = "GROUP")]
    pub group: Option<String>,
    /// A second socket of the API, to which every user may connect: members of the group, and who has a token.
    #[arg(long, value_name = "PATH")]
    pub shared_socket: Option<PathBuf>,
    /// Keep keys in memory only: they vanish with the agent, and a key store that is there is left alone.
    #[arg(long)]
    pub ephemeral: bool,
    /// Lock the key store when it was not used for so long; never where nothing is given.
    #[arg(long, value_name = "SECONDS")]
    pub auto_lock_s: Option<u64>,
    /// Enter the Tor network through this bridge only, a line as for C tor; may be given several times. Everybody on this
    /// host can see the command line: the configuration file is the better place.
    #[arg(long = "bridge", value_name = "LINE")]
    pub bridges: Vec<BridgeText>,
    /// The programs of pluggable transports, by the transport's name; in the configuration file only.
    #[arg(skip)]
    pub transports: BTreeMap<String, PathBuf>,
    /// How guards of onion services are kept: lite for days, or full, for services that stay for weeks.
    #[arg(long, value_name = "HOW", value_parser = entry::vanguards)]
    pub vanguards: Option<Vanguards>,
    /// What to log: error, warn, info or debug, also for parts of the agent, as in warn,host_agent::control=debug.
    #[arg(long, value_name = "LEVEL")]
    pub log: Option<String>,
}

/// Everything decided.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Sockets and logs.
    pub run: RunDir,
    /// State.
    pub state: StateDir,
    /// The image, where one is given; else it is searched for.
    pub image: Option<PathBuf>,
    /// The Tor network's description, where one is given; else the image's.
    pub tor_network: Option<PathBuf>,
    /// How the router VM is executed.
    pub accel: qemu::Accel,
    /// Its memory in MiB.
    pub memory_mib: u32,
    /// Drop-ins with routes.
    pub routes_dir: PathBuf,
    /// Which addresses are in which country.
    pub geoip_dir: PathBuf,
    /// Where to look for helper programs first.
    pub programs: Vec<PathBuf>,
    /// The group whose members may use all of the API.
    pub group: Option<String>,
    /// The socket of the API for everybody.
    pub shared_socket: Option<PathBuf>,
    /// Whether keys are in memory only.
    pub ephemeral: bool,
    /// After how long without use the key store is locked.
    pub auto_lock: Option<Duration>,
    /// Bridges and vanguards.
    pub entry: TorEntry,
    /// The programs of the transports that bridges need.
    pub transports: BTreeMap<Transport, PathBuf>,
    /// What to log.
    pub log: String,
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The configuration does not parse.
    #[error("the configuration {path} is wrong: {message}")]
    Toml {
        /// Which.
        path: PathBuf,
        /// What and where.
        message: String,
    },
    /// A word that names no accelerator.
    #[error(transparent)]
    Accel(#[from] qemu::accel::AccelError),
    /// Too little or too much memory.
    #[error("the router VM cannot run in {0} MiB: give --memory-mib 48 to 65536 ({MEMORY_MIB} is usual)")]
    Memory(u32),
    /// The Tor network's description is wrong.
    #[error("the Tor network described in {path} cannot be used")]
    Network {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: NetworkError,
    },
    /// Bridges or transports that are none.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// There is no image to take the public network's description from.
    #[error(transparent)]
    Image(#[from] ImageError),
}

impl Settings {
    /// Settings from the command line and the configuration file: the one given, else the usual one where it exists.
    ///
    /// # Errors
    /// When the file cannot be read, or a value is wrong.
    pub fn new(options: Options, config: Option<&Path>) -> Result<Settings, ConfigError> {
        let file = match config {
            Some(path) => read_file(path)?,
            None => {
                let usual = usual_file();
                if usual.exists() { read_file(&usual)? } else { Options::default() }
            }
        };
        let memory_mib = options.memory_mib.or(file.memory_mib).unwrap_or(MEMORY_MIB);
        if !(48..=65536).contains(&memory_mib) {
            return Err(ConfigError::Memory(memory_mib));
        }
        let bridges = if options.bridges.is_empty() { file.bridges } else { options.bridges };
        let entry = entry::read(&bridges, options.vanguards.or(file.vanguards).unwrap_or_default())?;
        let transports = entry::transports(&entry, &file.transports)?;
        Ok(Settings {
            entry,
            transports,
            run: RunDir::new(options.run_dir.or(file.run_dir)),
            state: StateDir::new(options.state_dir.or(file.state_dir)),
            image: options.image.or(file.image),
            tor_network: options.tor_network.or(file.tor_network),
            accel: options.accel.or(file.accel).as_deref().unwrap_or("auto").parse()?,
            memory_mib,
            routes_dir: options.routes_dir.or(file.routes_dir).unwrap_or_else(|| usual("routes.d")),
            geoip_dir: options.geoip_dir.or(file.geoip_dir).unwrap_or_else(|| geoip::USUAL_DIRECTORY.into()),
            programs: [options.programs, file.programs].concat(),
            group: options.group.or(file.group),
            shared_socket: options.shared_socket.or(file.shared_socket),
            ephemeral: options.ephemeral || file.ephemeral,
            auto_lock: options.auto_lock_s.or(file.auto_lock_s).map(Duration::from_secs),
            log: options.log.or(file.log).unwrap_or_else(|| "info".into()),
        })
    }

    /// The Tor network that is to be used.
    ///
    /// # Errors
    /// When its description cannot be read or is wrong.
    pub fn network(&self) -> Result<TorNetwork, ConfigError> {
        let path = match &self.tor_network {
            Some(path) => path.clone(),
            None => Image::find(self.image.as_deref())?.file(PUBLIC_NETWORK),
        };
        let json = fs::read(&path).map_err(|source| ConfigError::Read { path: path.clone(), source })?;
        TorNetwork::from_json(&json).map_err(|source| ConfigError::Network { path, source })
    }
}

impl Options {
    /// These options as arguments, for handing them on to `host-agent run`.
    #[must_use]
    pub fn to_arguments(&self) -> Vec<std::ffi::OsString> {
        let mut arguments = Vec::new();
        let mut add = |name: &str, value: Option<std::ffi::OsString>| {
            arguments.extend(value.into_iter().flat_map(|value| [name.into(), value]));
        };
        let path = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone()).into_os_string();
        add("--run-dir", self.run_dir.as_ref().map(path));
        add("--state-dir", self.state_dir.as_ref().map(path));
        add("--image", self.image.as_ref().map(path));
        add("--tor-network", self.tor_network.as_ref().map(path));
        add("--accel", self.accel.clone().map(Into::into));
        add("--memory-mib", self.memory_mib.map(|mib| mib.to_string().into()));
        add("--routes-dir", self.routes_dir.as_ref().map(path));
        add("--geoip-dir", self.geoip_dir.as_ref().map(path));
        self.programs.iter().for_each(|directory| add("--programs", Some(path(directory))));
        add("--group", self.group.clone().map(Into::into));
        add("--shared-socket", self.shared_socket.as_ref().map(path));
        add("--auto-lock-s", self.auto_lock_s.map(|seconds| seconds.to_string().into()));
        self.bridges.iter().for_each(|bridge| add("--bridge", Some(bridge.line().into())));
        add("--vanguards", self.vanguards.map(|vanguards| entry::word(vanguards).into()));
        add("--log", self.log.clone().map(Into::into));
        if self.ephemeral {
            arguments.push("--ephemeral".into());
        }
        arguments
    }
}

/// Checks the word on the command line, where a wrong one is a mistake like any other there.
fn accelerator(word: &str) -> Result<String, qemu::accel::AccelError> {
    word.parse::<qemu::Accel>().map(|_| word.to_owned())
}

fn read_file(path: &Path) -> Result<Options, ConfigError> {
    let text = fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
    toml::from_str(&text).map_err(|error| ConfigError::Toml { path: path.into(), message: error.to_string() })
}

/// The configuration file that is read where none is given, if it is there.
#[must_use]
pub fn usual_file() -> PathBuf {
    usual("agent.toml")
}

/// Where this name is in the directory for configuration.
fn usual(name: &str) -> PathBuf {
    let system = PathBuf::from("/etc/oht");
    if paths::is_root() { system } else { paths::xdg("XDG_CONFIG_HOME", ".config").join("oht") }.join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(toml: &str, options: Options) -> Result<Settings, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        fs::write(&path, toml).unwrap();
        Settings::new(options, Some(&path))
    }

    #[test]
    fn the_command_line_goes_before_the_file() {
        let options = Options { memory_mib: Some(80), ..Options::default() };
        let settings = settings("memory_mib = 128\naccel = \"tcg\"\nrun_dir = \"/r\"\n", options).unwrap();
        assert_eq!((settings.memory_mib, settings.accel), (80, qemu::Accel::Tcg));
        assert_eq!(settings.run.path(), Path::new("/r"));
    }

    #[test]
    fn wrong_values_are_refused_and_named() {
        let error = |toml| settings(toml, Options::default()).unwrap_err().to_string();
        assert!(error("memory = 1").contains("unknown field"));
        assert!(error("memory_mib = 1").contains("1 MiB"));
        assert!(error("accel = \"fast\"").contains("auto, kvm or tcg"));
        assert!(
            Settings::new(Options::default(), Some(Path::new("/nowhere")))
                .unwrap_err()
                .to_string()
                .contains("/nowhere")
        );
    }

    #[test]
    fn a_wrong_network_names_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net.json");
        fs::write(&path, "{}").unwrap();
        let options = Options { tor_network: Some(path.clone()), ..Options::default() };
        let error = settings("", options).unwrap().network().unwrap_err();
        assert!(matches!(error, ConfigError::Network { path: named, .. } if named == path));
    }

    #[test]
    fn options_survive_being_handed_on() {
        let options = Options {
            run_dir: Some("/r".into()),
            programs: vec!["/a".into(), "/b".into()],
            memory_mib: Some(64),
            ephemeral: true,
            auto_lock_s: Some(600),
            bridges: vec!["192.0.2.1:443 x".parse().unwrap()],
            vanguards: Some(Vanguards::Full),
            ..Options::default()
        };
        #[derive(clap::Parser)]
        struct Run {
            #[command(flatten)]
            options: Options,
        }
        let arguments = [vec!["run".into()], options.to_arguments()].concat();
        assert_eq!(<Run as clap::Parser>::parse_from(arguments).options, options);
    }
}
