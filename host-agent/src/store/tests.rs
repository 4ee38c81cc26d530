//! What is written is there; what was changed is refused.

use std::fs;

use redb::ReadableTable as _;
use tempfile::TempDir;

use super::*;

type Table<'a> = redb::Table<'a, &'static str, &'static [u8]>;

/// A place to make a store in.
struct Place {
    dir: TempDir,
    vault: Vault,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let vault = Vault::new(dir.path().join("keys"));
        Place { dir, vault }
    }

    fn unlock(&self) -> Unlock {
        Unlock::KeyFile(self.dir.path().join("key"))
    }

    /// A store of some values, after some writes.
    fn with_values() -> (Place, Values) {
        let place = Place::new();
        let mut values: Values = (0..40).map(|n| (format!("vm/vm-{n}"), value(&format!("{n}").repeat(200)))).collect();
        let mut disk = place.vault.create(&place.unlock(), &values).unwrap();
        for n in 0..5 {
            disk.write(&[put("clock/floor", &n.to_string()), Change::Remove(format!("vm/vm-{n}"))]).unwrap();
            values.remove(&format!("vm/vm-{n}"));
        }
        values.insert("clock/floor".into(), value("4"));
        (place, values)
    }

    fn key(&self) -> SealKey {
        self.vault.look().unwrap().unwrap().open(&self.unlock()).unwrap()
    }

    fn open(&self) -> Result<(Disk, Values), StoreError> {
        Disk::open(&self.vault, self.key())
    }
}

fn value(text: &str) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(text.as_bytes().to_vec())
}

fn put(place: &str, text: &str) -> Change {
    Change::Put(place.into(), value(text))
}

fn is_damaged<T>(result: Result<T, StoreError>) -> bool {
    result.is_err_and(|error| {
        let said = error.to_string();
        matches!(error, StoreError::Damaged { .. }) && said.contains("oht key restore")
    })
}

#[test]
fn what_is_written_is_there_and_closed_to_others() {
    use std::os::unix::fs::PermissionsExt as _;
    let (place, values) = Place::with_values();
    assert_eq!(place.open().unwrap().1, values);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(place.vault.path()), 0o700);
    for entry in fs::read_dir(place.vault.path()).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
        let content = fs::read(&path).unwrap();
        assert!(!content.windows(8).any(|window| window == b"77777777"), "{} is sealed", path.display());
    }
    assert!(place.vault.create(&place.unlock(), &values).is_err(), "never over one that is there");
    assert_eq!(place.open().unwrap().1, values);
}

#[test]
fn one_that_is_not_there_is_none_and_half_of_one_is_refused() {
    let place = Place::new();
    assert!(place.vault.look().unwrap().is_none());
    // What a crash while a store was being made left.
    fs::create_dir(place.vault.path().with_extension("new")).unwrap();
    place.vault.create(&place.unlock(), &Values::new()).unwrap();
    for name in ["store.key", "store.redb", "store.mark"] {
        let (path, away) = (place.vault.path().join(name), place.dir.path().join("away"));
        fs::rename(&path, &away).unwrap();
        let error = place.vault.look().unwrap_err();
        assert!(error.to_string().contains(&format!("{name} is missing")), "{error}");
        assert!(is_damaged(Err::<(), _>(error)));
        fs::rename(&away, &path).unwrap();
    }
    assert!(place.open().unwrap().1.is_empty());
}

#[test]
fn a_truncated_or_emptied_file_is_refused() {
    let (place, values) = Place::with_values();
    let key = place.key();
    for name in ["store.redb", "store.mark"] {
        let path = place.vault.path().join(name);
        let whole = fs::read(&path).unwrap();
        let step = (whole.len() / 50).max(1);
        for length in (0..whole.len()).step_by(step) {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(is_damaged(Disk::open(&place.vault, key.clone())), "{name} cut to {length}");
            assert_eq!(fs::read(&path).unwrap(), &whole[..length], "a refused file is not touched");
        }
        fs::write(&path, &whole).unwrap();
    }
    assert_eq!(place.open().unwrap().1, values);
}

#[test]
fn every_flipped_bit_is_refused_or_of_no_importance() {
    let (place, values) = Place::with_values();
    let key = place.key();
    let path = place.vault.path().join("store.redb");
    let whole = fs::read(&path).unwrap();
    let zeroes = vec![0; 64];
    // One bit of every byte of the header, and one in each stretch that is not empty.
    let stretches = (0..whole.len()).step_by(64).filter(|at| whole[*at..].get(..64) != Some(zeroes.as_slice()));
    let bits = (0..320).map(|at| at * 8 + at % 8).chain(stretches.map(|at| (at + at / 64 % 64) * 8 + at / 64 % 8));
    let (mut refused, mut harmless) = (0, 0);
    for bit in bits {
        let mut changed = whole.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &changed).unwrap();
        match Disk::open(&place.vault, key.clone()) {
            Ok((mut disk, there)) => {
                assert_eq!(there, values, "bit {bit}");
                disk.write(&[put("clock/floor", "4")]).unwrap();
                drop(disk);
                assert_eq!(place.open().unwrap().1, values, "after a write, bit {bit}");
                harmless += 1;
            }
            error @ Err(StoreError::Damaged { .. }) => {
                assert!(is_damaged(error));
                assert!(fs::read(&path).unwrap() == changed, "a refused file is not touched, bit {bit}");
                refused += 1;
            }
            Err(error) => panic!("bit {bit}: {error}"),
        }
        let mark = place.vault.mark();
        file::replace(&mark, &key.seal("mark", &6_u64.to_le_bytes())).unwrap();
    }
    println!("{refused} flips were refused, {harmless} were of no importance");
    assert!(refused > 100, "{refused}");
}

#[test]
fn an_older_file_is_refused() {
    let (place, _) = Place::with_values();
    let path = place.vault.path().join("store.redb");
    let before = fs::read(&path).unwrap();
    let (mut disk, values) = place.open().unwrap();
    disk.write(&[put("revoked/1", "x")]).unwrap();
    drop(disk);
    fs::write(&path, &before).unwrap();
    let error = place.open().map(drop).unwrap_err();
    assert!(error.to_string().contains("old one"), "{error}");
    // Killed between the two: the mark lags behind, which is no fault.
    file::replace(&place.vault.mark(), &place.key().seal("mark", &5_u64.to_le_bytes())).unwrap();
    assert_eq!(place.open().unwrap().1, values);
}

#[test]
fn a_value_that_somebody_took_out_or_moved_is_missed() {
    let (place, _) = Place::with_values();
    let path = place.vault.path().join("store.redb");
    let whole = fs::read(&path).unwrap();
    let values: redb::TableDefinition<'_, &str, &[u8]> = redb::TableDefinition::new("values");
    let change = |act: &dyn Fn(&mut Table<'_>)| {
        let database = redb::Database::open(&path).unwrap();
        let transaction = database.begin_write().unwrap();
        act(&mut transaction.open_table(values).unwrap());
        transaction.commit().unwrap();
        drop(database);
        let error = place.open().map(drop);
        fs::write(&path, &whole).unwrap();
        error
    };
    assert!(is_damaged(change(&|table| drop(table.remove("vm/vm-7").unwrap()))));
    assert!(is_damaged(change(&|table| drop(table.remove("head").unwrap()))));
    assert!(is_damaged(change(&|table| {
        let other = table.get("vm/vm-8").unwrap().unwrap().value().to_vec();
        table.insert("vm/vm-7", other.as_slice()).unwrap();
    })));
    assert!(change(&|_| {}).is_ok(), "and nothing else is");
}

#[test]
fn another_key_opens_nothing_and_a_second_process_is_told() {
    let (place, values) = Place::with_values();
    assert!(is_damaged(Disk::open(&place.vault, SealKey::generate())));
    let (disk, _) = place.open().unwrap();
    assert!(matches!(place.open(), Err(StoreError::InUse(_))));
    drop(disk);
    assert_eq!(place.open().unwrap().1, values);
}

#[test]
fn too_much_is_refused_and_changes_nothing() {
    let (place, values) = Place::with_values();
    let (mut disk, _) = place.open().unwrap();
    let long = "x".repeat(disk::VALUE_BYTES_MAX + 1);
    assert!(matches!(disk.write(&[put("vm/long", &long)]), Err(StoreError::Values)));
    let many: Vec<_> = (0..disk::VALUES_MAX).map(|n| put(&format!("revoked/{n}"), "")).collect();
    assert!(matches!(disk.write(&many), Err(StoreError::Values)));
    disk.write(&[put("clock/floor", "4")]).unwrap();
    drop(disk);
    assert_eq!(place.open().unwrap().1, values);
}

#[test]
fn a_store_is_moved_aside_and_never_deleted() {
    let (place, _) = Place::with_values();
    let first = place.vault.move_aside("now").unwrap().unwrap();
    assert!(place.vault.move_aside("now").unwrap().is_none());
    place.vault.create(&place.unlock(), &Values::new()).unwrap();
    let second = place.vault.move_aside("now").unwrap().unwrap();
    assert!(first != second && first.join("store.redb").exists() && second.join("store.redb").exists());
    let vault = Vault::new(first);
    let key = vault.look().unwrap().unwrap().open(&place.unlock()).unwrap();
    assert_eq!(Disk::open(&vault, key).unwrap().1.len(), 36);
}
