//! A small tree for the tests.

use std::time::Duration;

use biscuit_auth::builder::{Algorithm, BiscuitBuilder};
use key_tree::{
    Chain, Challenge, Clock, IssueError, KeyPair, Level, Name, Now, Operation, Permit, Purpose, Refusal, RevocationId,
    RootKey, Terms, Timestamp, Validity, issue, rand_core::SeedableRng as _,
};
use rand_chacha::ChaCha20Rng;

/// A Friday noon: 2026-11-20T12:00:00Z.
pub(crate) const NOON: u64 = 1_795_176_000;

pub(crate) const DAY: u64 = 86_400;

pub(crate) const HOUR: u64 = 3600;

pub(crate) fn rng(seed: u64) -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(seed)
}

/// The time, as a clock tells it that was never wrong.
pub(crate) fn now(seconds: u64) -> Now {
    Clock::resume(Timestamp::default(), Duration::ZERO).now(Timestamp::from_unix(seconds), Duration::ZERO)
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// From `start` on, for `seconds`.
pub(crate) fn span(start: u64, seconds: u64) -> Validity {
    Validity::new(Timestamp::from_unix(start), Timestamp::from_unix(start + seconds)).unwrap()
}

pub(crate) fn terms(level: Level, validity: Validity) -> Terms {
    Terms::new(level, name("web"), validity)
}

pub(crate) const PUBLISH: Operation = Operation::Publish { port: 80 };

pub(crate) const ONION: Level = Level::Purpose(Purpose::OnionService);

/// Nothing was revoked.
pub(crate) fn none(_: &RevocationId) -> bool {
    false
}

/// A root, and one key of every level below it.
pub(crate) struct Planted {
    pub(crate) root: RootKey,
    pub(crate) host: KeyPair,
    pub(crate) vm: KeyPair,
    pub(crate) leaf: KeyPair,
}

impl Planted {
    pub(crate) fn new(seed: u64) -> Planted {
        let rng = &mut rng(seed);
        Planted {
            root: RootKey::generate(rng),
            host: KeyPair::generate(rng),
            vm: KeyPair::generate(rng),
            leaf: KeyPair::generate(rng),
        }
    }

    /// Grants on these terms, from the top.
    pub(crate) fn grow(&self, host: &Terms, vm: &Terms, leaf: &Terms, now: Now) -> Result<Chain, IssueError> {
        let rng = &mut rng(9);
        let chain = Chain::of_root(self.root.public());
        let chain = issue(self.root.key(), &chain, &self.host.public(), host, now, rng)?;
        let chain = issue(&self.host, &chain, &self.vm.public(), vm, now, rng)?;
        issue(&self.vm, &chain, &self.leaf.public(), leaf, now, rng)
    }

    /// A week for the host, a day for the VM, an hour for a leaf of this purpose, all from noon.
    pub(crate) fn usual(&self, leaf: Level) -> Chain {
        let (host, vm) = (terms(Level::Host, span(NOON, 7 * DAY)), terms(Level::Vm, span(NOON, DAY)));
        self.grow(&host, &vm, &terms(leaf, span(NOON, HOUR)), now(NOON)).unwrap()
    }
}

/// Uses the chain with this key, as both sides do it.
pub(crate) fn exercise(
    chain: &Chain,
    key: &KeyPair,
    operation: &Operation,
    now: Now,
    revoked: &impl Fn(&RevocationId) -> bool,
) -> Result<Permit, Refusal> {
    let challenge = Challenge::new(&mut rng(5), now);
    let proof = key.prove(&chain.root(), &challenge.nonce(), operation);
    chain.verify(operation, now, revoked, challenge, &proof)
}

/// A token of whatever Datalog, signed by a key that does not ask `issue` whether it may.
pub(crate) fn signed(parent: &KeyPair, source: &str) -> Vec<u8> {
    signed_block(parent, BiscuitBuilder::new().code(source).unwrap())
}

pub(crate) fn signed_block(parent: &KeyPair, block: BiscuitBuilder) -> Vec<u8> {
    let private = biscuit_auth::PrivateKey::from_bytes(parent.secret().as_ref(), Algorithm::Ed25519).unwrap();
    block.build(&biscuit_auth::KeyPair::from(&private)).unwrap().to_vec().unwrap()
}

/// The head of a grant, as Datalog.
pub(crate) fn head(child: &KeyPair, level: &str, validity: Validity) -> String {
    format!(
        "oht_grant(1); subject(hex:{}); level(\"{level}\"); name(\"web\"); start({}); end({});",
        child.public(),
        validity.start(),
        validity.end()
    )
}
