//! What has been fetched and built: `.tidemark/lab` in the checkout, with a manifest that says of each item where it is
//! from and the SHA-256 of each of its files. An item whose files are not as recorded is not used.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::Error;

const VERSION: u32 = 1;

/// The manifest's content: items by name (`6.12`, `4k48`, `busybox`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    version: u32,
    items: BTreeMap<String, Item>,
}

/// Something fetched or built, in a directory of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Item {
    /// The package that it is from.
    pub(crate) package: String,
    /// That package's version.
    pub(crate) version: String,
    /// SHA-256 of what it was made from: the package, or package and configuration.
    pub(crate) sha256: String,
    /// File names in the item's directory, with their SHA-256.
    pub(crate) files: BTreeMap<String, String>,
}

/// The cache's directory, which several processes may use at once: [`Reader`] keeps items as they are, [`Maker`] makes
/// one process fetch or build an item and others wait for it; neither waits for the other but for a moment.
#[derive(Debug)]
pub(crate) struct Cache {
    directory: PathBuf,
}

/// While it lives no item is replaced.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    cache: &'a Cache,
    _lock: File,
}

/// While it lives no other process makes the same item.
#[derive(Debug)]
pub(crate) struct Maker {
    _lock: File,
}

impl Reader<'_> {
    /// The item and its directory, its files checked; none if it was never put there.
    pub(crate) fn get(&self, name: &str, remedy: &str) -> Result<Option<(Item, PathBuf)>, Error> {
        let Some(item) = self.cache.manifest()?.items.remove(name) else { return Ok(None) };
        let directory = self.cache.directory.join(name);
        for (file, sha256) in &item.files {
            let path = directory.join(file);
            if sha256_of(&path)? != *sha256 {
                return Err(Error::Changed { path, remedy: remedy.to_owned() });
            }
        }
        Ok(Some((item, directory)))
    }
}

impl Cache {
    /// The cache in `directory`, which is made if it is not there.
    pub(crate) fn open(directory: &Path) -> Result<Self, Error> {
        fs::create_dir_all(directory).map_err(Error::file("create", directory))?;
        Ok(Self { directory: directory.to_owned() })
    }

    /// The directory itself.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Waits until no item is being replaced: a moment. A process that holds a reader must drop it before it puts.
    pub(crate) fn reader(&self) -> Result<Reader<'_>, Error> {
        let (lock, path) = self.lock_file("manifest")?;
        lock.lock_shared().map_err(Error::file("lock", &path))?;
        Ok(Reader { cache: self, _lock: lock })
    }

    /// Waits until no other process makes `what`, which may be minutes, and says so.
    pub(crate) fn maker(&self, what: &str) -> Result<Maker, Error> {
        let (lock, path) = self.lock_file(what)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                eprintln!("lab: waiting for another process, which makes {what}");
                lock.lock().map_err(Error::file("lock", &path))?;
            }
            Err(TryLockError::Error(error)) => return Err(Error::file("lock", &path)(error)),
        }
        Ok(Maker { _lock: lock })
    }

    fn lock_file(&self, what: &str) -> Result<(File, PathBuf), Error> {
        let path = self.directory.join(format!("{what}.lock"));
        let file = File::create(&path).map_err(Error::file("create", &path))?;
        Ok((file, path))
    }

    /// Takes over `files` (name in the item, where it is now) as the item `name`, in place of an earlier one.
    pub(crate) fn put(
        &self,
        name: &str,
        package: &str,
        version: &str,
        sha256: &str,
        files: &[(String, PathBuf)],
    ) -> Result<Item, Error> {
        let (lock, path) = self.lock_file("manifest")?;
        lock.lock().map_err(Error::file("lock", &path))?;
        let directory = self.directory.join(name);
        // The manifest must not name an item that is half replaced.
        let mut manifest = self.manifest()?;
        if manifest.items.remove(name).is_some() {
            self.write(&manifest)?;
        }
        if directory.exists() {
            fs::remove_dir_all(&directory).map_err(Error::file("remove", &directory))?;
        }
        fs::create_dir_all(&directory).map_err(Error::file("create", &directory))?;
        let mut item = Item {
            package: package.to_owned(),
            version: version.to_owned(),
            sha256: sha256.to_owned(),
            files: BTreeMap::new(),
        };
        for (file, from) in files {
            let to = directory.join(file);
            fs::copy(from, &to).map_err(Error::file("copy", from))?;
            item.files.insert(file.clone(), sha256_of(&to)?);
        }
        manifest.items.insert(name.to_owned(), item.clone());
        self.write(&manifest)?;
        Ok(item)
    }

    fn manifest(&self) -> Result<Manifest, Error> {
        let path = self.manifest_path();
        if !path.exists() {
            return Ok(Manifest { version: VERSION, items: BTreeMap::new() });
        }
        let text = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
        decode(&text).map_err(|source| Error::Manifest { path, source })
    }

    /// Written beside and renamed: a reader sees the old one or the new one.
    fn write(&self, manifest: &Manifest) -> Result<(), Error> {
        let (path, beside) = (self.manifest_path(), self.directory.join("manifest.json.new"));
        let text = serde_json::to_string_pretty(manifest).expect("strings and maps by string always encode");
        fs::write(&beside, text + "\n").map_err(Error::file("write", &beside))?;
        fs::rename(&beside, &path).map_err(Error::file("replace", &path))
    }

    fn manifest_path(&self) -> PathBuf {
        self.directory.join("manifest.json")
    }
}

fn decode(text: &str) -> Result<Manifest, serde_json::Error> {
    use serde::de::Error as _;
    let manifest: Manifest = serde_json::from_str(text)?;
    if manifest.version != VERSION {
        return Err(serde_json::Error::custom(format!("version {} is not {VERSION}", manifest.version)));
    }
    Ok(manifest)
}

/// The SHA-256 of a file, in hexadecimal.
pub(crate) fn sha256_of(path: &Path) -> Result<String, Error> {
    Ok(sha256(&fs::read(path).map_err(Error::file("read", path))?))
}

/// The SHA-256 of some bytes, in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache_with_item() -> (tempfile::TempDir, Cache) {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("source");
        fs::write(&source, "kernel").unwrap();
        let cache = Cache::open(&directory.path().join("lab")).unwrap();
        cache.put("6.12", "linux-image", "6.12.1-1", "abc", &[("Image".to_owned(), source)]).unwrap();
        (directory, cache)
    }

    #[test]
    fn an_item_is_found_again_by_another_process() {
        let (directory, cache) = cache_with_item();
        drop(cache);
        let cache = Cache::open(&directory.path().join("lab")).unwrap();
        let (item, place) = cache.reader().unwrap().get("6.12", "fetch").unwrap().unwrap();
        assert_eq!((item.version.as_str(), item.sha256.as_str()), ("6.12.1-1", "abc"));
        assert_eq!(fs::read_to_string(place.join("Image")).unwrap(), "kernel");
        assert!(cache.reader().unwrap().get("6.1", "fetch").unwrap().is_none());
    }

    #[test]
    fn a_changed_file_is_refused_until_fetched_again() {
        let (directory, cache) = cache_with_item();
        fs::write(directory.path().join("lab/6.12/Image"), "kernel!").unwrap();
        assert!(matches!(cache.reader().unwrap().get("6.12", "fetch"), Err(Error::Changed { .. })));
        cache.put("6.12", "p", "v", "s", &[("Image".to_owned(), directory.path().join("source"))]).unwrap();
        assert!(cache.reader().unwrap().get("6.12", "fetch").unwrap().is_some());
    }

    #[test]
    fn an_item_that_is_being_made_keeps_nobody_from_another() {
        let (directory, cache) = cache_with_item();
        let making = cache.maker("4k48").unwrap();
        let other = Cache::open(&directory.path().join("lab")).unwrap();
        assert!(other.reader().unwrap().get("6.12", "fetch").unwrap().is_some());
        other.put("6.1", "p", "v", "s", &[("Image".to_owned(), directory.path().join("source"))]).unwrap();
        let (lock, _) = other.lock_file("4k48").unwrap();
        assert!(matches!(lock.try_lock(), Err(TryLockError::WouldBlock)));
        drop(making);
        lock.try_lock().unwrap();
    }

    #[test]
    fn a_manifest_of_another_version_is_refused() {
        assert!(decode(r#"{"version":1,"items":{}}"#).is_ok());
        assert!(decode(r#"{"version":2,"items":{}}"#).unwrap_err().to_string().contains("version 2"));
        assert!(decode(r#"{"version":1,"items":{},"more":0}"#).is_err());
    }

    #[test]
    fn hashes_are_those_of_fips_180() {
        assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
