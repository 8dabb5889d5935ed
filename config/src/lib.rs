//! Configuration: typed YAML, in two stages. What was written becomes a tree that knows its lines and columns
//! ([`document`]); the tables in [`schema`] turn that into checked values, or into the list of all mistakes.
//!
//! One place per field holds name, type, default, range and help; `docs/configuration.md` is generated from it.
//! This crate reads a file and knows no behaviour: nothing here opens a port or starts a thread.

mod dev;
mod document;
mod given;
mod json_schema;
mod number;
mod problem;
mod reference;
mod schema;
mod table;
mod value;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

pub use dev::Dev;
use document::Content;
pub use given::Given;
pub use json_schema::json_schema;
pub use number::fnv1a;
pub use problem::{Place, Problem, Problems};
pub use reference::reference;
pub use schema::{
    ClientTls, Cluster, Gateway, Group, Journal, Limits, LinkTls, Log, Member, Node, Replica, Snapshot,
    Timing,
};
pub use value::{
    AccessLog, ClientAuth, ClientUrl, HostPort, LogFormat, LogLevel, Name, NodeAddress, Role, Size,
    TlsVersion,
};

/// Larger files are refused: a configuration of thousands of nodes is still below it.
pub const MAX_FILE_BYTES: u64 = 1 << 20;

/// A checked file of either role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Config {
    /// `role: replica`.
    Replica(Replica),
    /// `role: gateway`.
    Gateway(Gateway),
}

impl Config {
    /// Checks `text`, whose field `role` tells what it is. `file` is only for messages.
    ///
    /// # Errors
    /// All mistakes.
    pub fn parse(file: &str, text: &str) -> Result<Self, Problems> {
        Self::parse_with(file, text, &Given::default())
    }

    /// Checks `text` with what was given beside it.
    ///
    /// # Errors
    /// All mistakes.
    pub fn parse_with(file: &str, text: &str, given: &Given) -> Result<Self, Problems> {
        let root = parse_document(file, text)?;
        match &root.content {
            Content::Map(fields)
                if fields.iter().any(|(key, value)| key.name == "role" && is_gateway(value)) =>
            {
                read(file, root, given).map(Self::Gateway)
            }
            // Without a role the file is read as a replica's, which reports that among all other mistakes.
            Content::Map(_) | Content::Empty | Content::Scalar(_) | Content::List(_) => {
                read(file, root, given).map(Replica::with_own_paths).map(Self::Replica)
            }
        }
    }

    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// The file could not be read, or all mistakes.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        Self::load_with(path, &Given::default())
    }

    /// Reads and checks the file at `path` with what was given beside it.
    ///
    /// # Errors
    /// The file could not be read, or all mistakes.
    pub fn load_with(path: &Path, given: &Given) -> Result<Self, LoadError> {
        let text = read_file(path)?;
        Ok(Self::parse_with(&path.display().to_string(), &text, given)?)
    }

    /// Reads and checks the file at `path` with what was given beside it. If there are no mistakes, `further` looks at what
    /// fields stand for, such as files, and names those with something wrong about it: the paths of the fields, and what.
    ///
    /// # Errors
    /// The file could not be read, or all mistakes.
    pub fn load_and_look(
        path: &Path,
        given: &Given,
        further: impl FnOnce(&Self) -> Vec<(String, String)>,
    ) -> Result<Self, LoadError> {
        let (file, text) = (path.display().to_string(), read_file(path)?);
        let config = Self::parse_with(&file, &text, given)?;
        let root = parse_document(&file, &text)?;
        let found = further(&config).into_iter();
        let mut list: Vec<Problem> =
            found.map(|(field, what)| Problem::at(root.place_of(&field), field, what)).collect();
        list.sort();
        if list.is_empty() { Ok(config) } else { Err(Problems { file, list }.into()) }
    }
}

impl Replica {
    /// Checks `text`. `file` is only for messages.
    ///
    /// # Errors
    /// All mistakes.
    pub fn parse(file: &str, text: &str) -> Result<Self, Problems> {
        read(file, parse_document(file, text)?, &Given::default()).map(Self::with_own_paths)
    }

    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// The file could not be read, or all mistakes.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        Self::load_with(path, &Given::default())
    }

    /// Reads and checks the file at `path` with what was given beside it.
    ///
    /// # Errors
    /// The file could not be read, or all mistakes.
    pub fn load_with(path: &Path, given: &Given) -> Result<Self, LoadError> {
        let (file, text) = (path.display().to_string(), read_file(path)?);
        Ok(read(&file, parse_document(&file, &text)?, given).map(Self::with_own_paths)?)
    }
}

impl Gateway {
    /// Checks `text`. `file` is only for messages.
    ///
    /// # Errors
    /// All mistakes.
    pub fn parse(file: &str, text: &str) -> Result<Self, Problems> {
        read(file, parse_document(file, text)?, &Given::default())
    }

    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// The file could not be read, or all mistakes.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        Self::load_with(path, &Given::default())
    }

    /// Reads and checks the file at `path` with what was given beside it.
    ///
    /// # Errors
    /// The file could not be read, or all mistakes.
    pub fn load_with(path: &Path, given: &Given) -> Result<Self, LoadError> {
        let (file, text) = (path.display().to_string(), read_file(path)?);
        Ok(read(&file, parse_document(&file, &text)?, given)?)
    }
}

/// Why a file gave no configuration.
#[derive(Debug)]
pub enum LoadError {
    /// It could not be read.
    Io {
        /// The file.
        path: PathBuf,
        /// The reason.
        error: io::Error,
    },
    /// It has mistakes.
    Invalid(Problems),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { path, error } => write!(f, "{}: {error}", path.display()),
            Self::Invalid(problems) => problems.fmt(f),
        }
    }
}

impl std::error::Error for LoadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { error, .. } => Some(error),
            Self::Invalid(_) => None,
        }
    }
}

impl From<Problems> for LoadError {
    fn from(problems: Problems) -> Self {
        Self::Invalid(problems)
    }
}

fn read_file(path: &Path) -> Result<String, LoadError> {
    let failed = |error| LoadError::Io { path: path.to_owned(), error };
    let file = fs::File::open(path).map_err(failed)?;
    let mut text = String::new();
    // One byte more than allowed tells a file that is too large from one that just fits, whatever its metadata say.
    file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        let message = format!("larger than {MAX_FILE_BYTES} bytes");
        return Err(failed(io::Error::new(io::ErrorKind::InvalidData, message)));
    }
    Ok(text)
}

fn parse_document(file: &str, text: &str) -> Result<document::Node, Problems> {
    document::parse(text).map_err(|problem| Problems { file: file.to_owned(), list: vec![problem] })
}

fn read<T: table::Read>(file: &str, root: document::Node, given: &Given) -> Result<T, Problems> {
    let mut list = Vec::new();
    let value = T::read(&given.over(root), "", &mut list);
    given.explain(&mut list);
    list.sort();
    match value {
        Some(value) if list.is_empty() => Ok(value),
        Some(_) | None => Err(Problems { file: file.to_owned(), list }),
    }
}

fn is_gateway(role: &document::Node) -> bool {
    matches!(&role.content, Content::Scalar(word) if word == Role::Gateway.as_str())
}
