//! A share as words and as a QR code.

use qrcode::{
    EcLevel, QrCode,
    render::{svg, unicode},
};
use ur::bytewords::{self, Style};
use zeroize::Zeroizing;

use crate::{
    SharesError,
    shares::{SHARE_BYTES, Share},
};

/// CBOR's head of a share (RFC 8949, section 3): tag 40309, which BCR-2020-011 and the IANA registry give to SSKR.
const CBOR_TAG: [u8; 3] = [0xd9, 0x9d, 0x75];

/// CBOR's head of a byte string of 37 bytes.
const CBOR_BYTES: [u8; 2] = [0x58, SHARE_BYTES as u8];

/// The type in the uniform resource (BCR-2020-011).
const UR_PREFIX: &str = "ur:sskr/";

/// Words of a share: five bytes of CBOR, the share, and four of checksum, a word each.
pub const SHARE_WORDS: usize = CBOR_TAG.len() + CBOR_BYTES.len() + SHARE_BYTES + 4;

/// How many words a text is looked at for, before it is refused for its length.
const WORDS_MAX: usize = 4 * SHARE_WORDS;

/// Why words or a scanned text are not a share.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WordsError {
    /// A word that there is not.
    #[error("word {position}, {word:?}, is none of the 256 words{}", meant_text(.meant.as_deref()))]
    Unknown {
        /// Which word, from 1.
        position: usize,
        /// What stands there.
        word: String,
        /// The word with the same first and last letter.
        meant: Option<String>,
    },
    /// Every word exists, and the checksum fits if this one is replaced.
    #[error("word {position}, {word:?}, is probably wrong: with {meant:?} the checksum would fit")]
    Wrong {
        /// Which word, from 1.
        position: usize,
        /// What stands there.
        word: String,
        /// What would fit.
        meant: String,
    },
    /// Too few or too many words.
    #[error("there are {0} words, a share has {SHARE_WORDS}")]
    Count(usize),
    /// Every word exists, and more than one of them is wrong, or their order is.
    #[error("the checksum does not fit: several words are wrong, or in a wrong order")]
    Checksum,
    /// A scanned text of something else.
    #[error("this is not the QR code of a share, which begins with {UR_PREFIX:?}")]
    NotUr,
    /// A share, but none of a root.
    #[error(transparent)]
    Share(#[from] SharesError),
}

fn meant_text(meant: Option<&str>) -> String {
    meant.map_or(String::new(), |meant| format!("; is it {meant:?}?"))
}

impl Share {
    /// The share as [`SHARE_WORDS`] words, with a space between.
    #[must_use]
    pub fn words(&self) -> Zeroizing<String> {
        Zeroizing::new(bytewords::encode(&self.cbor(&CBOR_TAG), Style::Standard))
    }

    /// Reads the words of a share. Capitals, and any white space or hyphens between the words, do not matter.
    ///
    /// # Errors
    /// Names a word that is none and its position; where all words exist but one was taken for another, names that
    /// one, which takes some milliseconds to find.
    pub fn from_words(text: &str) -> Result<Share, WordsError> {
        let lower = Zeroizing::new(text.to_lowercase());
        let separator = |c: char| c.is_whitespace() || c == '-' || c == ',';
        let words: Vec<&str> = lower.split(separator).filter(|word| !word.is_empty()).take(WORDS_MAX).collect();
        let table = Table::new();
        for (before, word) in words.iter().enumerate() {
            if !table.words().any(|known| known == *word) {
                let meant = table.words().find(|known| ends(known) == ends(word)).map(str::to_owned);
                return Err(WordsError::Unknown { position: before + 1, word: shortened(word), meant });
            }
        }
        if words.len() != SHARE_WORDS {
            return Err(WordsError::Count(words.len()));
        }
        let decode = |words: &[&str]| bytewords::decode(&Zeroizing::new(words.join(" ")), Style::Standard).ok();
        match decode(&words) {
            Some(bytes) => Share::from_cbor(&Zeroizing::new(bytes), &CBOR_TAG),
            None => Err(table.find_wrong(&words, |words| decode(words).is_some())),
        }
    }

    /// The share as a uniform resource, in capitals: what its QR code holds.
    #[must_use]
    pub fn ur(&self) -> Zeroizing<String> {
        let ur = Zeroizing::new(ur::encode(&self.cbor(&[]), &ur::Type::Custom("sskr")));
        Zeroizing::new(ur.to_ascii_uppercase())
    }

    /// Reads the text of a scanned QR code.
    ///
    /// # Errors
    /// When it is not a uniform resource of a share, or was changed.
    pub fn from_ur(text: &str) -> Result<Share, WordsError> {
        let lower = Zeroizing::new(text.trim().to_ascii_lowercase());
        let body = lower.strip_prefix(UR_PREFIX).ok_or(WordsError::NotUr)?;
        let bytes = bytewords::decode(body, Style::Minimal).map_err(|_| WordsError::Checksum)?;
        Share::from_cbor(&Zeroizing::new(bytes), &[])
    }

    /// The QR code as an SVG image.
    #[must_use]
    pub fn qr_svg(&self) -> Zeroizing<String> {
        Zeroizing::new(self.qr().render::<svg::Color<'_>>().min_dimensions(256, 256).build())
    }

    /// The QR code as text of half-block characters, two rows a line, dark on light: for a terminal or a printer.
    #[must_use]
    pub fn qr_text(&self) -> Zeroizing<String> {
        Zeroizing::new(self.qr().render::<unicode::Dense1x2>().build())
    }

    /// Error correction Q (ISO/IEC 18004): a quarter of the code may be stained. It is for paper.
    fn qr(&self) -> QrCode {
        QrCode::with_error_correction_level(self.ur().as_bytes(), EcLevel::Q).expect("94 characters fit a QR code")
    }

    fn cbor(&self, tag: &[u8]) -> Zeroizing<Vec<u8>> {
        Zeroizing::new([tag, &CBOR_BYTES, self.as_bytes()].concat())
    }

    fn from_cbor(bytes: &[u8], tag: &[u8]) -> Result<Share, WordsError> {
        let inside = bytes.strip_prefix(tag).and_then(|bytes| bytes.strip_prefix(&CBOR_BYTES[..]));
        let inside = inside.ok_or(SharesError::NoShare("it is not SSKR of this length"))?;
        Ok(Share::from_bytes(inside)?)
    }
}

/// The 256 words, by the byte that each stands for, separated by spaces. The crate `ur` does not show its own list.
struct Table(String);

impl Table {
    fn new() -> Table {
        Table(bytewords::encode(&Vec::from_iter(0..=u8::MAX), Style::Standard))
    }

    fn words(&self) -> impl Iterator<Item = &str> {
        // Behind the 256 words stands the checksum of them.
        self.0.split(' ').take(256)
    }

    /// Which single word, replaced, makes the checksum fit; nothing is said where several would do.
    fn find_wrong(&self, words: &[&str], fits: impl Fn(&[&str]) -> bool) -> WordsError {
        let mut found = None;
        let mut words = words.to_vec();
        for at in 0..words.len() {
            let word = words[at];
            for meant in self.words() {
                words[at] = meant;
                if fits(&words) {
                    if found.is_some() {
                        return WordsError::Checksum;
                    }
                    found = Some(WordsError::Wrong { position: at + 1, word: word.into(), meant: meant.into() });
                }
            }
            words[at] = word;
        }
        found.unwrap_or(WordsError::Checksum)
    }
}

/// The first and the last letter, which no two words have in common (BCR-2020-012).
fn ends(word: &str) -> (Option<char>, Option<char>) {
    (word.chars().next(), word.chars().next_back())
}

/// What a person typed, as far as it is worth showing.
fn shortened(word: &str) -> String {
    word.chars().take(16).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng as _;

    use super::*;
    use crate::RootKey;

    fn share(seed: u64) -> Share {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        RootKey::generate(&mut rng).split(2, 3, &mut rng).unwrap().remove(1)
    }

    fn replaced(share: &Share, at: usize, by: &str) -> String {
        let words = share.words();
        let mut words: Vec<_> = words.split(' ').collect();
        words[at] = by;
        words.join(" ")
    }

    #[test]
    fn words_are_46_and_begin_with_the_tag_of_the_format() {
        let words = share(1).words();
        assert_eq!(words.split(' ').count(), SHARE_WORDS);
        assert!(words.starts_with("tuna next keep hard "), "{}", &words[..20]);
    }

    #[test]
    fn a_mistyped_word_is_named_with_its_position() {
        let typed = replaced(&share(1), 0, "tunna");
        let expected = WordsError::Unknown { position: 1, word: "tunna".into(), meant: Some("tuna".into()) };
        assert_eq!(Share::from_words(&typed), Err(expected.clone()));
        assert_eq!(expected.to_string(), r#"word 1, "tunna", is none of the 256 words; is it "tuna"?"#);
        let long = "x".repeat(1000);
        let Err(WordsError::Unknown { position: 7, word, meant: None }) =
            Share::from_words(&replaced(&share(1), 6, &long))
        else {
            panic!("it should be refused")
        };
        assert_eq!(word.len(), 16);
    }

    #[test]
    fn words_that_are_missing_or_exchanged_are_noticed() {
        let words = share(1).words();
        let words: Vec<_> = words.split(' ').collect();
        assert_eq!(Share::from_words(&words[1..].join(" ")), Err(WordsError::Count(45)));
        assert_eq!(Share::from_words(""), Err(WordsError::Count(0)));
        assert_eq!(Share::from_words(&[&words[..], &["able"; 500]].concat().join(" ")), Err(WordsError::Count(184)));
        let mut exchanged = words.clone();
        exchanged.swap(10, 30);
        assert_eq!(Share::from_words(&exchanged.join(" ")), Err(WordsError::Checksum));
    }

    #[test]
    fn what_is_no_share_of_a_root_is_refused() {
        let short = bytewords::encode(&[0xd9, 0x9d, 0x75, 0x40], Style::Standard);
        assert_eq!(Share::from_words(&short), Err(WordsError::Count(8)));
        let of_bytes = ur::encode(b"data", &ur::Type::Bytes);
        assert_eq!(Share::from_ur(&of_bytes), Err(WordsError::NotUr));
        let other = ur::encode(b"data", &ur::Type::Custom("sskr"));
        assert!(matches!(Share::from_ur(&other), Err(WordsError::Share(_))));
        assert_eq!(Share::from_ur("ur:sskr/ä"), Err(WordsError::Checksum));
    }

    #[test]
    fn the_qr_code_is_drawn_as_image_and_as_text() {
        let share = share(1);
        assert!(share.qr_svg().starts_with("<?xml") && share.qr_svg().ends_with("</svg>"));
        // 94 characters of the alphanumeric alphabet are version 6 with this correction: 41 modules and 8 of margin.
        assert_eq!(share.qr_text().lines().next().unwrap().chars().count(), 41 + 8);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn words_and_qr_code_are_the_same_share(seed: u64) {
            let share = share(seed);
            prop_assert_eq!(Share::from_words(&share.words()), Ok(share.clone()));
            let shouted = share.words().to_uppercase().replace(' ', "\n - ");
            prop_assert_eq!(Share::from_words(&shouted), Ok(share.clone()));
            prop_assert_eq!(Share::from_ur(&share.ur()), Ok(share.clone()));
            prop_assert_eq!(Share::from_ur(&share.ur().to_lowercase()), Ok(share));
        }

        #[test]
        fn one_word_taken_for_another_is_found(seed: u64, at in 0..SHARE_WORDS, by: u8) {
            let share = share(seed);
            let table = Table::new();
            let by = table.words().nth(by.into()).unwrap();
            let right = share.words().split(' ').nth(at).unwrap().to_owned();
            prop_assume!(by != right);
            let expected = WordsError::Wrong { position: at + 1, word: by.into(), meant: right };
            prop_assert_eq!(Share::from_words(&replaced(&share, at, by)), Err(expected));
        }

        #[test]
        fn any_text_is_taken_or_refused(text: String) {
            let _ = (Share::from_words(&text), Share::from_ur(&text), Share::from_ur(&format!("{UR_PREFIX}{text}")));
        }
    }
}
