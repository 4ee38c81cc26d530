//! Fixed vectors: what was written once must be read for ever. If one of these fails, the format has changed: raise its
//! version, and keep reading the old one.

use key_tree::{Chain, Country, Level, RootKey, Share, Terms, Weekday, secrecy::SecretString};

use crate::planted::{DAY, HOUR, NOON, ONION, PUBLISH, Planted, exercise, name, none, now, rng, span};

fn from_hex(text: &str) -> Vec<u8> {
    text.as_bytes().chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The tree of seed 42: its root, and the grants of a host, a VM and an onion service.
const ROOT: &str = "78eda21ba04a15e2000fe8810fe3e56741d23bb9ae44aa9d5bb21b76675ff34b";
const GRANTS: [&str; 3] = [
    "1294020aa9010a096f68745f6772616e740a077375626a6563740a056c6576656c0a04686f73740a046e616d650a066c6170746f700a\
     0573746172740a03656e64180322090a070880081202100122290a2708810812222a20594f29c8c67ca4c0b6210d63b1d33ceb3e438b\
     f2a6967d7b68372dc57b72f37c220a0a080882081203188308220a0a080884081203188508220d0a0b088608120620c0ec80d806220d\
     0a0b088708120620c0e1a5d806122408001220604db0979c20ed9d01b111521b31dcc8de85ebb981e773b0c8281bfcc05567031a406a\
     669443135f4eddfe7d2ff87c0cb658ec4fbae54954d38404026b86873088c814f9085a53f447163c3ffe3fc680bd9acd110b11b7f4ae\
     9da9d138141f4c9f03224212404de0b63a52575bd44ca0f309b4adbc20ba0f775b0f2c16f7c80218ac4720b816cd3faf85324edf51e0\
     a60557d756b4a22924a345415068bdf6df3b200b74c30b",
    "12de030af1020a096f68745f6772616e740a077375626a6563740a056c6576656c0a02766d0a046e616d650a037765620a0573746172\
     740a03656e640a04657869740a0576616c75650a0243480a0249530a077765656b6461790a066672696461790a066d6f6e6461790a08\
     74687572736461790a07747565736461790a097765646e6573646179180622090a070880081202100122290a2708810812222a2012b6\
     1dfcbda8941e300eefa0ab26142aa409994b395c933896b22851159f8091220a0a080882081203188308220a0a080884081203188508\
     220d0a0b088608120620c0ec80d806220d0a0b088708120620c08f86d80632370a330a02081b120808880812030889081a230a0e0a0c\
     3a0a0a03188a080a03188b080a050a030889080a041a0208050a0412020800100232460a420a02081b1208088c0812030889081a320a\
     1d0a1b3a190a03188d080a03188e080a03188f080a031890080a031891080a050a030889080a041a0208050a04120208001002122408\
     0012207cd464f1d613fd49c5202cb2b4aae9dad53794fa77fe25bfef7e800f760461091a4052f3116d2d4457a6bff495dd53b685721d\
     bb2b875a86d4672f1ac8df6465d93757534b3de3d450bda642f17cc2fc50857f2c388ca131d80421579293384da407280122421240b8\
     78d3d9ccce82cee0d35662a274141478c5bf3754912449bf55b252eded121de4cf7d9d6bc6067ce502f98bae3d87a25e80c7a99e871d\
     01ab88ea377f626a08",
    "12b0030ac3020a096f68745f6772616e740a077375626a6563740a056c6576656c0a0d6f6e696f6e2d736572766963650a046e616d65\
     0a0473686f700a0573746172740a03656e640a046f70656e0a04706f72740a0576616c75650a01700a04686f73740a066c6170746f70\
     180622090a070880081202100122290a2708810812222a2071a6bed0e3b2e7901b3ab6b9befac5d7c5b2405786fe826559ecc89e93d6\
     742e220a0a080882081203188308220a0a080884081203188508220d0a0b088608120620c0ec80d806220d0a0b088708120620d08881\
     d80622090a070888081202105032360a320a02081b12080889081203088a081a220a0d0a0b3a090a0210500a0310bb030a050a03088a\
     080a041a0208050a04120208001002322a0a180a02081b12080889081203088b0812080888081203088b080a0e0a02081b1208088c08\
     1203188d081224080012201279995c01750250d2f71481b21fe310169f8d0963088353c9d6f96af3cceb5f1a409e30dfd6ab6c1b8b73\
     38edd29aaa7e3d0419626c55b5c02862c636605adeffcbdb9c34d4325882825599e1079b58bf694ea29325844b0620f718fd43acb3ef\
     0e280122421240268eb2fa59e8fccdd5410c60ed9aeabfeff3cf883a4d874a94307795229a2f2d6977c8a88f82997e0b842999474d49\
     366d1b5aa7ecb291c3defeb5da4315d40d",
];

/// Share 2 of 3, of which 2 are needed, of the root of seed 42.
const WORDS: &str = "tuna next keep hard data sets judo able acid acid fact gems real what kept saga puma cola flux omit \
     kick scar deli mild zaps need work limp aunt obey yurt very warm vibe oboe epic away horn away idea \
     tuna zoom lazy jowl twin user";
const UR: &str = "UR:SSKR/HDDASSJOAEADADFTGSRLWTKTSAPACAFXOTKKSRDIMDZSNDWKLPATOYYTVYWMVEOEECAYHNAYIATAZMIETSGYWD";

fn chain() -> Chain {
    let host = Terms::new(Level::Host, name("laptop"), span(NOON, 7 * DAY));
    let countries: [Country; 2] = ["CH", "IS"].map(|text| text.parse().unwrap());
    let vm = Terms::new(Level::Vm, name("web"), span(NOON, DAY)).exits(&countries).weekdays(&Weekday::WORKING_DAYS);
    let leaf = Terms::new(ONION, name("shop"), span(NOON, HOUR)).ports(&[80, 443]);
    let leaf = leaf.datalog(r#"open(80); check if port($p), open($p) or host("laptop");"#).unwrap();
    Planted::new(42).grow(&host, &vm, &leaf, now(NOON)).unwrap()
}

#[test]
fn grants_are_written_as_ever() {
    let chain = chain();
    assert_eq!(chain.root().to_string(), ROOT);
    assert_eq!(chain.grants().map(|grant| to_hex(grant.as_bytes())).collect::<Vec<_>>(), GRANTS);
}

#[test]
fn grants_are_read_as_ever() {
    let chain = Chain::read(ROOT.parse().unwrap(), GRANTS.map(from_hex)).unwrap();
    let names: Vec<_> = chain.grants().map(|grant| (grant.level(), grant.name().to_string())).collect();
    assert_eq!(names, [(Level::Host, "laptop".into()), (Level::Vm, "web".into()), (ONION, "shop".into())]);
    assert_eq!(chain.validity(), Some(span(NOON, HOUR)));
    let checks: Vec<_> = chain.grants().flat_map(|grant| grant.checks()).collect();
    assert_eq!(
        checks,
        [
            r#"reject if exit($value), !{"CH", "IS"}.contains($value)"#,
            r#"reject if weekday($value), !{"friday", "monday", "thursday", "tuesday", "wednesday"}.contains($value)"#,
            r#"reject if port($value), !{80, 443}.contains($value)"#,
            r#"check if port($p), open($p) or host("laptop")"#,
        ]
    );
    assert!(exercise(&chain, &Planted::new(42).leaf, &PUBLISH, now(NOON), &none).is_ok());
}

#[test]
fn shares_are_written_and_read_as_ever() {
    let root = Planted::new(42).root;
    let shares = root.split(2, 3, &mut rng(43)).unwrap();
    assert_eq!(*shares[1].words(), WORDS);
    assert_eq!(*shares[1].ur(), UR);
    let by_words = Share::from_words(WORDS).unwrap();
    assert_eq!((by_words.needed(), by_words.number()), (2, 2));
    let restored = RootKey::combine(&[shares[2].clone(), by_words]).unwrap();
    assert_eq!(restored.public().to_string(), ROOT);
}

/// Sealed with a small work factor, so that the test is quick.
const SEALED: &str = "oht root 1 78eda21ba04a15e2000fe8810fe3e56741d23bb9ae44aa9d5bb21b76675ff34b \
     cfa85a210f52d184133d6b95d6a90e48da848e70c1865bb143e2ac262d2e3aad\n\
     -----BEGIN AGE ENCRYPTED FILE-----\n\
     YWdlLWVuY3J5cHRpb24ub3JnL3YxCi0+IHNjcnlwdCBpKys0bmR2a3YydEJ2cUZn\n\
     Q0dpbTFBIDEwCnFsVGpvNm90UlQrMEFCTlpJa0RVWFhFekpzQ0dnWVNZSHNFajFT\n\
     MndTakkKLS0tIFp1cng1NlRyYnc2Q2NQaVpuTTZ5TlJ2T1JoSEpacVlBaXg1YkQw\n\
     c2F6NE0KID+DeUumIHcx+X635MvaVKUm2u60okObl3bRqQGvoft9ggnc+k+w5b8s\n\
     o+f+wnopSF+DpWJU5eEhGq4sjYiBpQ==\n\
     -----END AGE ENCRYPTED FILE-----\n";

#[test]
fn a_sealed_root_is_opened_as_ever() {
    let passphrase = SecretString::from("correct horse battery staple".to_owned());
    assert_eq!(RootKey::unseal(SEALED, &passphrase).unwrap().public().to_string(), ROOT);
}
