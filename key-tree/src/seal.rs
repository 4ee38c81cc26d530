//! The root's key, sealed with a passphrase, as text that may be stored and printed.
//!
//! ```text
//! oht root 1 <public key, 64 hexadecimal digits> <SHA-256 of what follows, 64 hexadecimal digits>
//! -----BEGIN AGE ENCRYPTED FILE-----
//! …
//! -----END AGE ENCRYPTED FILE-----
//! ```
//!
//! What follows the first line is an age file (<https://age-encryption.org/v1>) for one scrypt recipient, in its ASCII
//! armor: `tail -n +2 FILE | age --decrypt` opens it too, and gives the 32 bytes of the secret (RFC 8032). age itself
//! cannot tell a wrong passphrase from some damage to the file. The checksum can: it says "damaged" before a
//! passphrase is tried, so that nobody tries all their passphrases on a broken file.

use std::io::{Read as _, Write as _};

use age::{
    Decryptor, Encryptor,
    armor::{ArmoredReader, ArmoredWriter, Format},
    scrypt,
    secrecy::{ExposeSecret as _, SecretString},
};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::{
    PublicKey, RootKey,
    key::{KEY_BYTES, hex_bytes},
};

/// scrypt's log2(N): 256 MiB and about a second. It is what age's own command uses (FiloSottile/age,
/// `NewScryptRecipient`: "1s on a modern machine"), written here so that sealing does not depend on how busy the
/// machine is, as the crate's default does.
pub const WORK_FACTOR: u8 = 18;

/// The largest that is accepted when unsealing: 4 GiB of memory. age's own command accepts the same
/// (`NewScryptIdentity`, 22). A file with more would only exhaust the machine.
pub const WORK_FACTOR_MAX: u8 = 22;

/// Bytes of the longest text that is looked at; a sealed root has some 500.
const SEALED_BYTES_MAX: usize = 4096;

/// How the first line begins.
const MAGIC: &str = "oht root 1 ";

/// Why a root is not sealed or unsealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// No passphrase.
    #[error("the passphrase is empty: choose six random words or more")]
    EmptyPassphrase,
    /// The text is something else.
    #[error("this is not a sealed root: its first line should begin with {MAGIC:?}")]
    NotSealed,
    /// The text is not what was written.
    #[error("the sealed root is damaged ({0}): take another copy, or restore the root from its shares")]
    Damaged(&'static str),
    /// The text is whole, and the passphrase does not open it.
    #[error("the passphrase is wrong; the sealed root itself is undamaged")]
    WrongPassphrase,
    /// The file asks for too much work.
    #[error("unsealing would take 2^{0} steps of scrypt, more than the 2^{WORK_FACTOR_MAX} that are accepted")]
    TooMuchWork(u8),
    /// The encryption itself failed.
    #[error("age could not seal the root")]
    Age(#[source] std::io::Error),
}

impl RootKey {
    /// Seals the root with a passphrase. Takes about a second and 256 MiB.
    ///
    /// The salt and the file's key come from the operating system, by way of the crate `age`.
    ///
    /// # Errors
    /// When the passphrase is empty, or age fails.
    pub fn seal(&self, passphrase: &SecretString) -> Result<String, SealError> {
        self.seal_with(passphrase, WORK_FACTOR)
    }

    fn seal_with(&self, passphrase: &SecretString, work_factor: u8) -> Result<String, SealError> {
        if passphrase.expose_secret().is_empty() {
            return Err(SealError::EmptyPassphrase);
        }
        let mut recipient = scrypt::Recipient::new(passphrase.clone());
        recipient.set_work_factor(work_factor);
        let encryptor = Encryptor::with_recipients(std::iter::once(&recipient as _)).expect("there is one recipient");
        let mut age = vec![];
        let armor = ArmoredWriter::wrap_output(&mut age, Format::AsciiArmor).map_err(SealError::Age)?;
        let mut writer = encryptor.wrap_output(armor).map_err(SealError::Age)?;
        writer.write_all(self.key().secret().as_slice()).map_err(SealError::Age)?;
        writer.finish().and_then(ArmoredWriter::finish).map_err(SealError::Age)?;
        let age = String::from_utf8(age).expect("the armor is ASCII");
        Ok(format!("{MAGIC}{} {}\n{age}", self.public(), checksum(&age)))
    }

    /// Opens what [`RootKey::seal`] made. Takes as long as sealing.
    ///
    /// # Errors
    /// Tells apart a text that is something else, one that was damaged, and a wrong passphrase.
    pub fn unseal(sealed: &str, passphrase: &SecretString) -> Result<RootKey, SealError> {
        let (public, age) = parse(sealed)?;
        let decryptor = Decryptor::new(ArmoredReader::new(age.as_bytes())).map_err(|error| refusal(&error))?;
        if !decryptor.is_scrypt() {
            return Err(SealError::Damaged("it is not sealed with a passphrase"));
        }
        let mut identity = scrypt::Identity::new(passphrase.clone());
        identity.set_max_work_factor(WORK_FACTOR_MAX);
        let mut reader = decryptor.decrypt(std::iter::once(&identity as _)).map_err(|error| refusal(&error))?;
        let mut secret = Zeroizing::new([0; KEY_BYTES]);
        let damaged = |_| SealError::Damaged("what it holds cannot be read");
        reader.read_exact(secret.as_mut_slice()).map_err(damaged)?;
        if reader.read(&mut [0]).map_err(damaged)? != 0 {
            return Err(SealError::Damaged("it holds more than a key"));
        }
        let root = RootKey::from_secret(&secret);
        if root.public() == public { Ok(root) } else { Err(SealError::Damaged("it holds the key of another root")) }
    }

    /// The public key of a sealed root, without opening it.
    ///
    /// # Errors
    /// When the text is something else, or damaged.
    pub fn public_of_sealed(sealed: &str) -> Result<PublicKey, SealError> {
        parse(sealed).map(|(public, _)| public)
    }
}

/// The public key and the age file.
fn parse(sealed: &str) -> Result<(PublicKey, String), SealError> {
    let rest = sealed.trim_start().strip_prefix(MAGIC).ok_or(SealError::NotSealed)?;
    if sealed.len() > SEALED_BYTES_MAX {
        return Err(SealError::Damaged("it is too long"));
    }
    let (head, age) = rest.split_once('\n').ok_or(SealError::Damaged("it ends after its first line"))?;
    let (public, sum) = head.trim_end().split_once(' ').ok_or(SealError::Damaged("its first line is cut short"))?;
    // Line ends that a mail program or a printer changed are no damage.
    let age: String = age.lines().map(str::trim_end).filter(|l| !l.is_empty()).flat_map(|l| [l, "\n"]).collect();
    let sum: [u8; 32] = hex_bytes(sum).ok_or(SealError::Damaged("its first line is cut short"))?;
    if sum[..] != Sha256::digest(&age)[..] {
        return Err(SealError::Damaged("its checksum does not fit"));
    }
    Ok((public.parse().map_err(|_| SealError::Damaged("the public key in its first line is none"))?, age))
}

fn checksum(age: &str) -> String {
    Sha256::digest(age).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn refusal(error: &age::DecryptError) -> SealError {
    use age::DecryptError;
    match error {
        // The checksum fitted, so the stanza is what was written.
        DecryptError::DecryptionFailed | DecryptError::KeyDecryptionFailed | DecryptError::NoMatchingKeys => {
            SealError::WrongPassphrase
        }
        DecryptError::ExcessiveWork { required, .. } => SealError::TooMuchWork(*required),
        _ => SealError::Damaged("it is not an age file"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Quick, for tests: N = 4.
    const QUICK: u8 = 2;

    fn phrase(text: &str) -> SecretString {
        SecretString::from(text.to_owned())
    }

    fn root(seed: u8) -> RootKey {
        RootKey::from_secret(&[seed; KEY_BYTES])
    }

    #[test]
    fn the_real_work_factor_seals_and_unseals() {
        let sealed = root(1).seal(&phrase("six random words")).unwrap();
        assert_eq!(RootKey::public_of_sealed(&sealed).unwrap(), root(1).public());
        assert_eq!(RootKey::unseal(&sealed, &phrase("six random words")).unwrap().public(), root(1).public());
    }

    #[test]
    fn a_wrong_passphrase_is_not_damage_and_damage_is_no_wrong_passphrase() {
        let sealed = root(1).seal_with(&phrase("right"), QUICK).unwrap();
        assert!(matches!(RootKey::unseal(&sealed, &phrase("wrong")), Err(SealError::WrongPassphrase)));
        assert!(matches!(RootKey::unseal(&sealed, &phrase("")), Err(SealError::WrongPassphrase)));
        assert!(matches!(root(1).seal(&phrase("")), Err(SealError::EmptyPassphrase)));
        assert!(matches!(RootKey::unseal("-----BEGIN AGE", &phrase("right")), Err(SealError::NotSealed)));
        let of_another = sealed.replace(&root(1).public().to_string(), &root(2).public().to_string());
        assert!(matches!(RootKey::unseal(&of_another, &phrase("right")), Err(SealError::Damaged(_))));
    }

    #[test]
    fn a_file_that_asks_for_too_much_work_is_refused_before_the_work() {
        let sealed = root(1).seal_with(&phrase("right"), QUICK).unwrap();
        let (_, age) = parse(&sealed).unwrap();
        let mut plain = vec![];
        ArmoredReader::new(age.as_bytes()).read_to_end(&mut plain).unwrap();
        let at = plain.windows(3).position(|three| three == b" 2\n").unwrap();
        plain.splice(at..at + 2, *b" 40");
        let mut armored = vec![];
        let mut armor = ArmoredWriter::wrap_output(&mut armored, Format::AsciiArmor).unwrap();
        armor.write_all(&plain).unwrap();
        armor.finish().unwrap();
        let age = String::from_utf8(armored).unwrap();
        let sealed = format!("{MAGIC}{} {}\n{age}", root(1).public(), checksum(&age));
        assert!(matches!(RootKey::unseal(&sealed, &phrase("right")), Err(SealError::TooMuchWork(40))));
    }

    #[test]
    fn line_ends_do_not_matter() {
        let sealed = root(1).seal_with(&phrase("right"), QUICK).unwrap();
        let printed = format!("\r\n{}\r\n\r\n", sealed.replace('\n', "\r\n"));
        assert_eq!(RootKey::unseal(&printed, &phrase("right")).unwrap().public(), root(1).public());
    }

    proptest! {
        #[test]
        fn what_is_sealed_is_unsealed(secret: [u8; KEY_BYTES], text in ".+") {
            let root = RootKey::from_secret(&secret);
            let sealed = root.seal_with(&phrase(&text), QUICK).unwrap();
            prop_assert_eq!(RootKey::unseal(&sealed, &phrase(&text)).unwrap().key().secret(), root.key().secret());
        }

        #[test]
        fn any_change_is_damage_and_never_a_wrong_passphrase(at: proptest::sample::Index, bit in 0..7_u32, cut: bool) {
            let sealed = root(1).seal_with(&phrase("right"), QUICK).unwrap();
            let at = at.index(sealed.len() - 1);
            let mut bytes = sealed.clone().into_bytes();
            if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
            let Ok(changed) = String::from_utf8(bytes) else { return Ok(()) };
            match RootKey::unseal(&changed, &phrase("right")) {
                // A change of white space only, or of a hexadecimal digit's case.
                Ok(unsealed) => prop_assert_eq!(unsealed.public(), root(1).public()),
                Err(error) => prop_assert!(matches!(error, SealError::NotSealed | SealError::Damaged(_)), "{error}"),
            }
        }
    }
}
