//! The types of single values: how each is written, and what it is once checked.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// A single value, as opposed to a list or a section.
pub(crate) trait Scalar: Sized {
    /// How to write one, for the reference and for messages: "a duration (100ms, 5s, 1h30m)".
    const KIND: &'static str;

    /// The value, or what is wrong with `text`.
    fn parse(text: &str) -> Result<Self, String>;
}

/// A number of bytes, written with a unit: `64MiB`, `1.5MiB`, `512B`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(u64);

impl Size {
    /// The size that is `bytes` bytes.
    #[must_use]
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// In bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, scale) = SIZE_UNITS
            .iter()
            .rev()
            .find(|(_, scale)| self.0 >= *scale && self.0.is_multiple_of(*scale))
            .unwrap_or(&("B", 1));
        write!(f, "{}{unit}", self.0 / scale)
    }
}

const SIZE_UNITS: [(&str, u64); 5] =
    [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];

impl Scalar for Size {
    const KIND: &'static str = "a size (512B, 64KiB, 1.5MiB, 2GiB)";

    fn parse(text: &str) -> Result<Self, String> {
        let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let unit = unit.trim();
        if unit.is_empty() && number.parse::<u64>().is_ok() {
            return Err(format!("a size needs a unit, such as {number}B or {number}MiB"));
        }
        let Some((_, scale)) = SIZE_UNITS.iter().find(|(name, _)| *name == unit) else {
            let known = SIZE_UNITS.map(|(name, _)| name).join(", ");
            return Err(format!("`{text}` is no size: units are {known}, in powers of 1024"));
        };
        let wrong = || format!("`{text}` is no size, which is {}", Self::KIND);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        // Six decimals are more than a byte of any unit in use; more digits would be noise.
        if fraction.is_empty() || fraction.len() > 6 {
            return Err(wrong());
        }
        let whole: u64 = whole.parse().map_err(|_| wrong())?;
        let parts: u64 = fraction.parse().map_err(|_| wrong())?;
        let per_unit = 10_u64.pow(u32::try_from(fraction.len()).expect("at most 6"));
        let fraction_bytes = u128::from(parts) * u128::from(*scale) / u128::from(per_unit);
        let bytes = u128::from(whole) * u128::from(*scale) + fraction_bytes;
        u64::try_from(bytes).map(Self).map_err(|_| format!("`{text}` is too large a size"))
    }
}

const DURATION_UNITS: [(&str, u64); 5] =
    [("us", 1_000), ("ms", 1_000_000), ("s", 1_000_000_000), ("m", 60_000_000_000), ("h", 3_600_000_000_000)];

impl Scalar for Duration {
    const KIND: &'static str = "a duration (100ms, 5s, 1h30m)";

    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no duration, which is {}", Self::KIND);
        let mut nanos: u64 = 0;
        let mut rest = text;
        if rest.is_empty() {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            let (number, after) = rest.split_at(digits);
            let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
            let (unit, after) = after.split_at(letters);
            let number: u64 = number.parse().map_err(|_| wrong())?;
            if unit.is_empty() && after.is_empty() {
                return Err(format!("a duration needs a unit, such as {number}ms or {number}s"));
            }
            let (_, scale) = DURATION_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
            nanos = number
                .checked_mul(*scale)
                .and_then(|part| nanos.checked_add(part))
                .ok_or_else(|| format!("`{text}` is too long a duration"))?;
            rest = after;
        }
        Ok(Self::from_nanos(nanos))
    }
}

macro_rules! integer {
    ($($type:ty),+) => {$(
        impl Scalar for $type {
            const KIND: &'static str = "a whole number";

            fn parse(text: &str) -> Result<Self, String> {
                // `parse` would take a plus sign, which YAML readers disagree about.
                if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
                    return Err(format!("`{text}` is no whole number"));
                }
                text.parse().map_err(|_| format!("`{text}` is above {}", <$type>::MAX))
            }
        }
    )+};
}
integer!(u32, u64);

impl Scalar for bool {
    const KIND: &'static str = "`true` or `false`";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(format!("`{}` is not {}", text.escape_debug(), Self::KIND)),
        }
    }
}

impl Scalar for SocketAddr {
    const KIND: &'static str = "an IP address and port (0.0.0.0:2379, [::]:2379)";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse()
            .map_err(|_| format!("`{text}` is no IP address with a port, such as 0.0.0.0:2379 or [::]:2379"))
    }
}

impl Scalar for PathBuf {
    const KIND: &'static str = "a path";

    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.contains('\0') {
            return Err(format!("`{}` is no path", text.escape_debug()));
        }
        Ok(Self::from(text))
    }
}

/// A name for people and metrics: 1 to 63 letters, digits, `-`, `_` and `.`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    /// The name, if `text` is one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(text: &str) -> Result<Self, String> {
        Self::parse(text)
    }

    /// As written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Scalar for Name {
    const KIND: &'static str = "a name (1 to 63 letters, digits, `-`, `_`, `.`)";

    fn parse(text: &str) -> Result<Self, String> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if (1..=63).contains(&text.len()) && text.chars().all(allowed) {
            return Ok(Self(text.to_owned()));
        }
        Err(format!("`{}` is not {}", text.escape_debug(), Self::KIND))
    }
}

/// A host name or IP address, and a port: where others reach something.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    host: String,
    port: u16,
}

impl HostPort {
    /// A name or an IP address, the latter without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The TCP port; never 0.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl From<SocketAddr> for HostPort {
    fn from(address: SocketAddr) -> Self {
        Self { host: address.ip().to_string(), port: address.port() }
    }
}

/// In the form that `ToSocketAddrs` understands.
impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            return write!(f, "[{}]:{}", self.host, self.port);
        }
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl Scalar for HostPort {
    const KIND: &'static str = "a host and port (node-1.example:2380, 10.0.0.1:2380, [::1]:2380)";

    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{}` is not {}", text.escape_debug(), Self::KIND);
        if let Ok(address) = text.parse::<SocketAddr>() {
            return if address.port() == 0 { Err(wrong()) } else { Ok(Self::from(address)) };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port: u16 = port.parse().map_err(|_| wrong())?;
        // RFC 1123: labels of letters, digits and hyphens, 253 characters in all; `_` is common in container names.
        let label = |part: &str| {
            (1..=63).contains(&part.len())
                && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
        };
        if port == 0 || host.len() > 253 || !host.trim_end_matches('.').split('.').all(label) {
            return Err(wrong());
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

/// Where a node is reached: a host and port, or the name of a service, whose SRV records tell hosts and ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodeAddress {
    /// A host, with one or more addresses, and a port.
    HostPort(HostPort),
    /// Such as `_gaios-replica._tcp.example`.
    Service(String),
}

impl From<SocketAddr> for NodeAddress {
    fn from(address: SocketAddr) -> Self {
        Self::HostPort(HostPort::from(address))
    }
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HostPort(address) => address.fmt(f),
            Self::Service(name) => f.write_str(name),
        }
    }
}

impl Scalar for NodeAddress {
    const KIND: &'static str = "a host and port (node-1.example:2380, 10.0.0.1:2380, [::1]:2380) or the name of SRV records \
                                (_gaios-replica._tcp.example)";

    fn parse(text: &str) -> Result<Self, String> {
        let wrong = |_| format!("`{}` is not {}", text.escape_debug(), Self::KIND);
        if !text.starts_with('_') || text.contains(':') {
            return HostPort::parse(text).map(Self::HostPort).map_err(wrong);
        }
        // RFC 2782: the service and its protocol, both with an underscore, before the name.
        let mut labels = text.split('.');
        let (service, protocol) = (labels.next().unwrap_or_default(), labels.next().unwrap_or_default());
        let underscored = |label: &str| label.len() > 1 && label.starts_with('_');
        // Its labels are those of a host; any port will do.
        let named = HostPort::parse(&format!("{text}:1")).is_ok();
        if named && underscored(service) && protocol == "_tcp" && labels.next().is_some() {
            return Ok(Self::Service(text.to_owned()));
        }
        Err(wrong(String::new()))
    }
}

/// The URL of a front door, as clients are told it: `http://host:port` or `https://host:port`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClientUrl {
    https: bool,
    address: HostPort,
}

impl ClientUrl {
    /// `http://address`.
    #[must_use]
    pub fn http(address: HostPort) -> Self {
        Self { https: false, address }
    }

    /// `https://address`.
    #[must_use]
    pub fn https(address: HostPort) -> Self {
        Self { https: true, address }
    }

    /// Whether clients shall use TLS.
    #[must_use]
    pub fn is_https(&self) -> bool {
        self.https
    }

    /// What follows the scheme.
    #[must_use]
    pub fn address(&self) -> &HostPort {
        &self.address
    }
}

impl fmt::Display for ClientUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.https { "https" } else { "http" }, self.address)
    }
}

impl Scalar for ClientUrl {
    const KIND: &'static str = "a URL (http://host:port, https://host:port)";

    fn parse(text: &str) -> Result<Self, String> {
        let (https, rest) = match (text.strip_prefix("http://"), text.strip_prefix("https://")) {
            (Some(rest), _) => (false, rest),
            (None, Some(rest)) => (true, rest),
            (None, None) => {
                return Err(format!("`{}` does not begin with http:// or https://", text.escape_debug()));
            }
        };
        let address = HostPort::parse(rest.strip_suffix('/').unwrap_or(rest))?;
        Ok(Self { https, address })
    }
}

/// A value out of a few words.
macro_rules! choice {
    (
        $(#[doc = $about:literal])+
        pub enum $name:ident ($kind:literal) { $( $(#[doc = $help:literal])+ $variant:ident = $word:literal, )+ }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $( $(#[doc = $help])+ $variant, )+ }

        impl $name {
            /// The word that stands for it in a file.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $word, )+ }
            }
        }

        impl Scalar for $name {
            const KIND: &'static str = $kind;

            fn parse(text: &str) -> Result<Self, String> {
                match text {
                    $( $word => Ok(Self::$variant), )+
                    _ => Err(format!("`{}` is not {}", text.escape_debug(), Self::KIND)),
                }
            }
        }
    };
}

choice! {
    /// What a process is.
    pub enum Role ("`replica` or `gateway`") {
        /// A node.
        Replica = "replica",
        /// A stateless proxy.
        Gateway = "gateway",
    }
}

choice! {
    /// Whether clients show certificates.
    pub enum ClientAuth ("`off`, `optional` or `required`") {
        /// They are not asked.
        Off = "off",
        /// They may.
        Optional = "optional",
        /// They have to.
        Required = "required",
    }
}

choice! {
    /// A version of TLS.
    pub enum TlsVersion ("`1.2` or `1.3`") {
        /// TLS 1.2.
        Tls12 = "1.2",
        /// TLS 1.3.
        Tls13 = "1.3",
    }
}

choice! {
    /// The least important messages to log.
    pub enum LogLevel ("`error`, `warn`, `info`, `debug` or `trace`") {
        /// Something failed and a person should look.
        Error = "error",
        /// Something failed and was handled.
        Warn = "warn",
        /// What an operator wants to see of a healthy process.
        Info = "info",
        /// For finding a bug.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}

choice! {
    /// Which requests have a line in the log.
    pub enum AccessLog ("`off`, `failures` or `all`") {
        /// None.
        Off = "off",
        /// Those that were answered with another code than OK.
        Failures = "failures",
        /// All.
        All = "all",
    }
}

choice! {
    /// What a line of the log looks like.
    pub enum LogFormat ("`text` or `json`") {
        /// For people.
        Text = "text",
        /// One JSON object a line, for collectors.
        Json = "json",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: Scalar + fmt::Debug>(text: &str, shown: &str) {
        assert_eq!(
            T::parse(text).map_or_else(|e| format!("error: {e}"), |v| format!("{v:?}")),
            shown,
            "{text}"
        );
    }

    #[test]
    fn sizes() {
        check::<Size>("64MiB", "Size(67108864)");
        check::<Size>("1.5MiB", "Size(1572864)");
        check::<Size>("2 GiB", "Size(2147483648)");
        check::<Size>("0B", "Size(0)");
        check::<Size>("16777215TiB", "Size(18446742974197923840)");
        check::<Size>("16777216TiB", "error: `16777216TiB` is too large a size");
        check::<Size>("100", "error: a size needs a unit, such as 100B or 100MiB");
        check::<Size>("5MB", "error: `5MB` is no size: units are B, KiB, MiB, GiB, TiB, in powers of 1024");
        for text in ["", "MiB", "-1B", "1.B", ".5MiB", "1.2.3B", "1.1234567MiB", "99999999999999999999B"] {
            assert!(Size::parse(text).is_err(), "{text}");
        }
        for (bytes, text) in
            [(0, "0B"), (1000, "1000B"), (1 << 20, "1MiB"), (1536 << 10, "1536KiB"), (1 << 40, "1TiB")]
        {
            assert_eq!(Size(bytes).to_string(), text);
            assert_eq!(Size::parse(text), Ok(Size(bytes)));
        }
    }

    #[test]
    fn durations() {
        check::<Duration>("100ms", "100ms");
        check::<Duration>("1h30m", "5400s");
        check::<Duration>("250us", "250µs");
        check::<Duration>("10", "error: a duration needs a unit, such as 10ms or 10s");
        check::<Duration>("9999999999h", "error: `9999999999h` is too long a duration");
        for text in ["", "ms", "-1s", "1.5s", "1s2", "1 s", "1d", "1h-30m", "99999999999999999999s"] {
            assert!(Duration::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses() {
        for text in ["node-1.example:2380", "10.0.0.1:2380", "[::1]:2380", "gaios_replica:1", "host.:80"] {
            assert_eq!(HostPort::parse(text).map(|address| address.to_string()).as_deref(), Ok(text));
        }
        for text in [
            "",
            "host",
            "host:",
            "host:0",
            ":80",
            "::1:80x",
            "a b:80",
            "host:65536",
            "1.2.3.4:0",
            "a..b:80",
            "é:80",
        ] {
            assert!(HostPort::parse(text).is_err(), "{text}");
        }
        assert_eq!(
            ClientUrl::parse("https://etcd.example:2379/").map(|u| u.to_string()).as_deref(),
            Ok("https://etcd.example:2379")
        );
        assert!(ClientUrl::parse("etcd.example:2379").is_err());
        for text in
            ["node-1.example:2380", "[::1]:2380", "_a:1", "_gaios-replica._tcp.example", "_x._tcp.a.b."]
        {
            assert_eq!(NodeAddress::parse(text).map(|address| address.to_string()).as_deref(), Ok(text));
        }
        for text in [
            "example",
            "_gaios-replica._tcp",
            "_x._udp.example",
            "_._tcp.example",
            "_x._tcp.a..b",
            "_x._tcp.a b",
        ] {
            assert!(NodeAddress::parse(text).is_err(), "{text}");
        }
        assert!(SocketAddr::parse("localhost:2379").is_err());
    }

    #[test]
    fn numbers_and_names() {
        check::<u32>("7", "7");
        check::<u32>("4294967296", "error: `4294967296` is above 4294967295");
        for text in ["", "+1", "-1", "1.0", "0x10", "1_000", "١"] {
            assert!(u32::parse(text).is_err(), "{text}");
        }
        assert!(
            Name::parse("").is_err() && Name::parse("a b").is_err() && Name::parse(&"x".repeat(64)).is_err()
        );
        check::<LogLevel>("loud", "error: `loud` is not `error`, `warn`, `info`, `debug` or `trace`");
    }
}
