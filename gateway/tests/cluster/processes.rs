//! A cluster of real processes: `gaios replica` and `gaios gateway`, each with its own configuration file, on a loopback
//! address of the test's own so that nothing else can take its ports. Everything is killed when it is dropped.

#![allow(dead_code, reason = "each test target uses a part")]

#[cfg(not(feature = "etcd-client"))]
#[path = "issued.rs"]
pub(crate) mod issued;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use tempfile::TempDir;

/// Longest time that anything may take to come about.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Pause between two looks at a process.
const ASK_AGAIN: Duration = Duration::from_millis(10);

/// Clusters of this test process.
static CLUSTERS: AtomicU32 = AtomicU32::new(0);

pub(crate) struct Cluster {
    dir: TempDir,
    pub(crate) replicas: Vec<Process>,
    pub(crate) gateways: Vec<Process>,
    #[cfg(not(feature = "etcd-client"))]
    pub(crate) certificates: Option<issued::Certificates>,
}

/// What a cluster may have that others have not.
#[derive(Default)]
pub(crate) struct Setup<'a> {
    /// Files and connections that each replica may have open, if that is not what the system lets it.
    pub(crate) descriptors: Option<u32>,
    /// Links have certificates, signed by this CA.
    #[cfg(not(feature = "etcd-client"))]
    pub(crate) links: Option<&'a tls::make::Authority>,
    #[cfg(feature = "etcd-client")]
    pub(crate) links: Option<&'a ()>,
    /// The address of a node in the configuration of all, by its index and where it listens.
    pub(crate) address: Option<&'a dyn Fn(usize, SocketAddr) -> String>,
    /// More fields of a node in the configuration of all, by its index; they begin with a comma.
    pub(crate) node: Option<&'a dyn Fn(usize) -> String>,
    /// More fields of the section `cluster`.
    pub(crate) cluster: &'a str,
    /// More fields of a replica's configuration, by its index.
    pub(crate) replica: Option<&'a dyn Fn(usize) -> String>,
    /// More fields of a gateway's configuration, by its index.
    pub(crate) gateway: Option<&'a dyn Fn(usize) -> String>,
}

pub(crate) struct Process {
    name: String,
    role: &'static str,
    config: PathBuf,
    log: PathBuf,
    /// Where a replica keeps everything.
    data: Option<PathBuf>,
    /// Files and connections that it may have open, if that is not what the system lets it.
    descriptors: Option<u32>,
    /// Peers and gateways (of a replica), or clients (of a gateway) connect here.
    pub(crate) listen: SocketAddr,
    admin: SocketAddr,
    child: Option<Child>,
}

impl Cluster {
    pub(crate) fn start(replicas: usize, gateways: usize) -> Cluster {
        Cluster::start_as(replicas, gateways, &Setup::default())
    }

    pub(crate) fn start_as(replicas: usize, gateways: usize, setup: &Setup<'_>) -> Cluster {
        let mut cluster = Cluster::plan(replicas, gateways, setup);
        cluster.start_all();
        cluster
    }

    /// Starts all, and waits until they are ready.
    pub(crate) fn start_all(&mut self) {
        for process in self.replicas.iter_mut().chain(&mut self.gateways) {
            process.start();
        }
        self.wait_until_ready();
    }

    /// A cluster none of whose processes runs yet.
    pub(crate) fn plan(replicas: usize, gateways: usize, setup: &Setup<'_>) -> Cluster {
        let address = |index, listen: SocketAddr| match setup.address {
            Some(address) => address(index, listen),
            None => listen.to_string(),
        };
        let more = |fields: Option<&dyn Fn(usize) -> String>, index| {
            fields.map_or_else(String::new, |fields| fields(index))
        };
        let dir = tempfile::tempdir().unwrap();
        let mut addresses = free_addresses(2 * (replicas + gateways)).into_iter();
        let mut free_address = || addresses.next().expect("two for each process were drawn");
        let listens: Vec<_> = (0..replicas).map(|_| free_address()).collect();
        let nodes: String = listens
            .iter()
            .enumerate()
            .map(|(index, listen)| {
                let (id, address) = (index + 1, address(index, *listen));
                format!("    - {{id: {id}, address: \"{address}\"{}}}\n", more(setup.node, index))
            })
            .collect();
        let cluster = format!("cluster:\n  name: test\n  nodes:\n{nodes}{}", setup.cluster);
        let mut result = Cluster {
            dir,
            replicas: Vec::new(),
            gateways: Vec::new(),
            #[cfg(not(feature = "etcd-client"))]
            certificates: None,
        };
        let link_tls = result.issue(replicas, gateways, setup);
        for (index, listen) in listens.into_iter().enumerate() {
            let id = index + 1;
            let admin = free_address();
            let data = result.dir.path().join(format!("data-{id}"));
            let text = format!(
                "role: replica\nnode: {id}\ndata_dir: {}\nlisten: {listen}\nadmin_listen: {admin}\n\
                 snapshot: {{min_journal_bytes: 1MiB}}\njournal: {{segment_bytes: 1MiB}}\n{cluster}{}",
                data.display(),
                link_tls(&format!("replica-{id}")) + &more(setup.replica, index)
            );
            let mut process = result.process(format!("replica-{id}"), "replica", listen, admin, &text);
            process.data = Some(data);
            process.descriptors = setup.descriptors;
            result.replicas.push(process);
        }
        for index in 0..gateways {
            let (listen, admin) = (free_address(), free_address());
            let name = format!("gateway-{}", index + 1);
            let text = format!(
                "role: gateway\nname: {name}\nlisten: {listen}\nadmin_listen: {admin}\n\
                 advertise_client_urls: [\"http://{listen}\"]\n{cluster}{}",
                link_tls(&name) + &more(setup.gateway, index)
            );
            let process = result.process(name, "gateway", listen, admin, &text);
            result.gateways.push(process);
        }
        result
    }

    /// What stands in the configuration of a process of that name for its links.
    #[cfg(not(feature = "etcd-client"))]
    fn issue(&mut self, replicas: usize, gateways: usize, setup: &Setup<'_>) -> Box<dyn Fn(&str) -> String> {
        let Some(authority) = setup.links else { return Box::new(|_| String::new()) };
        let certificates = issued::Certificates::new(self.dir.path());
        certificates.trust(&[authority]);
        certificates.issue(authority, &issued::members(replicas, gateways));
        let dir = self.dir.path().join("tls").display().to_string();
        self.certificates = Some(certificates);
        Box::new(move |name| {
            format!(
                "link_tls:\n  cert_file: {dir}/{name}.crt\n  key_file: {dir}/{name}.key\n  ca_file: {dir}/ca.crt\n"
            )
        })
    }

    #[cfg(feature = "etcd-client")]
    fn issue(&mut self, _: usize, _: usize, setup: &Setup<'_>) -> Box<dyn Fn(&str) -> String> {
        assert!(setup.links.is_none(), "there are no certificates here");
        Box::new(|_| String::new())
    }

    pub(crate) fn wait_until_ready(&mut self) {
        for process in self.replicas.iter_mut().chain(&mut self.gateways) {
            process.wait_until_ready();
        }
    }

    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.gateways.iter().map(|gateway| format!("http://{}", gateway.listen)).collect()
    }

    /// The index of the replica that leads, once exactly one says so.
    pub(crate) fn leader(&self) -> usize {
        wait_for("one leader", || {
            let leads = |process: &Process| {
                process.is_running()
                    && process.get("/metrics").is_some_and(|(_, text)| {
                        text.lines().any(|line| line == "gaios_group_is_leader{group=\"1\"} 1")
                    })
            };
            let leaders: Vec<_> =
                self.replicas.iter().enumerate().filter(|(_, process)| leads(process)).collect();
            match leaders.as_slice() {
                [(index, _)] => Some(*index),
                _ => None,
            }
        })
    }

    /// What every process has logged, for a test that failed.
    pub(crate) fn logs(&self) -> String {
        self.replicas
            .iter()
            .chain(&self.gateways)
            .map(|process| format!("--- {}\n{}\n", process.name, process.log_tail()))
            .collect()
    }

    fn process(
        &self,
        name: String,
        role: &'static str,
        listen: SocketAddr,
        admin: SocketAddr,
        text: &str,
    ) -> Process {
        let config = self.dir.path().join(format!("{name}.yaml"));
        fs::write(&config, text).unwrap();
        let log = self.dir.path().join(format!("{name}.log"));
        Process { name, role, config, log, data: None, descriptors: None, listen, admin, child: None }
    }
}

impl Process {
    pub(crate) fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let limit = self.descriptors.map(|limit| format!("ulimit -n {limit}; ")).unwrap_or_default();
        // Past a limit on the size of its files it is to get an error, as on a full disk, and not the signal.
        let script = format!("{limit}trap '' XFSZ; exec \"$@\"");
        let child = Command::new("sh")
            .args(["-c", &script, "sh"])
            .arg(gaios())
            .arg(self.role)
            .arg("--config")
            .arg(&self.config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// Writes another configuration.
    pub(crate) fn edit(&self, change: impl FnOnce(String) -> String) {
        fs::write(&self.config, change(fs::read_to_string(&self.config).unwrap())).unwrap();
    }

    /// Waits until the log says this.
    pub(crate) fn wait_for_log(&self, said: &str) {
        wait_for(said, || fs::read_to_string(&self.log).unwrap().contains(said).then_some(()));
    }

    /// How many lines of the log say this.
    pub(crate) fn log_lines(&self, said: &str) -> usize {
        fs::read_to_string(&self.log).unwrap().lines().filter(|line| line.contains(said)).count()
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap_or_else(|| panic!("{} does not run", self.name));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// How large the files of a running process may be; to one that is above it, its disk looks full.
    pub(crate) fn limit_files(&self, bytes: Option<u64>) {
        let child = self.child.as_ref().unwrap_or_else(|| panic!("{} does not run", self.name));
        let limit = Rlimit { current: bytes, maximum: None };
        prlimit(Some(Pid::from_child(child)), Resource::Fsize, limit).unwrap();
    }

    /// Where a replica keeps everything.
    pub(crate) fn data_dir(&self) -> &Path {
        self.data.as_deref().expect("gateways have no data")
    }

    /// Everything it has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Removes the data directory of a replica that does not run.
    pub(crate) fn empty(&self) {
        assert!(!self.is_running(), "{} uses its directory", self.name);
        fs::remove_dir_all(self.data.as_ref().expect("gateways have no data")).unwrap();
    }

    /// A process that does not run will listen at another IP address of this cluster's, at the same port.
    #[allow(dead_code, reason = "not every test moves processes")]
    pub(crate) fn move_to(&mut self, ip: Ipv4Addr) {
        assert!(!self.is_running(), "{} listens", self.name);
        let (old, new) = (self.listen, SocketAddr::new(ip.into(), self.listen.port()));
        let text = fs::read_to_string(&self.config).unwrap();
        let moved = text.replace(&format!("listen: {old}"), &format!("listen: {new}"));
        assert!(moved != text, "{} is configured to listen at {old}", self.name);
        fs::write(&self.config, moved).unwrap();
        self.listen = new;
    }

    /// SIGTERM, and waits for the end. Returns whether it ended well.
    pub(crate) fn terminate(&mut self) -> bool {
        self.signal(Signal::TERM);
        let mut child = self.child.take().expect("it was just sent a signal");
        wait_for("the end of a process", || child.try_wait().unwrap()).success()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().unwrap_or_else(|| panic!("{} does not run", self.name));
        kill_process(Pid::from_child(child), signal).unwrap();
    }

    /// Where operators' tools connect.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin
    }

    pub(crate) fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Waits until it is ready. Fails at once if it has ended.
    pub(crate) fn wait_until_ready(&mut self) {
        let begun = Instant::now();
        loop {
            let answer = self.get("/readyz");
            if answer.as_ref().is_some_and(|(status, _)| *status == 200) {
                return;
            }
            let ended = self.child.as_mut().and_then(|child| child.try_wait().unwrap());
            assert!(
                ended.is_none() && begun.elapsed() < PATIENCE,
                "{} is not ready after {:?}: {answer:?}, ended: {ended:?}\n{}",
                self.name,
                begun.elapsed(),
                self.log_tail()
            );
            std::thread::park_timeout(ASK_AGAIN);
        }
    }

    fn log_tail(&self) -> String {
        let text = self.log();
        let tail: Vec<_> = text.lines().rev().take(60).collect();
        tail.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// GET on the admin port: status and body. Waits as long as the process takes, within reason.
    pub(crate) fn get(&self, path: &str) -> Option<(u16, String)> {
        self.get_from(self.admin, path)
    }

    /// The same on the port that clients use.
    pub(crate) fn get_client(&self, path: &str) -> Option<(u16, String)> {
        self.get_from(self.listen, path)
    }

    fn get_from(&self, address: SocketAddr, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.split_whitespace().nth(1)?.parse().ok()?;
        Some((status, body.to_owned()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // A stopped process is killed too.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The binary: cargo's of this package, else the one that the variable `GAIOS` names.
pub(crate) fn gaios() -> PathBuf {
    match option_env!("CARGO_BIN_EXE_gaios") {
        Some(path) => path.into(),
        None => std::env::var_os("GAIOS").expect("GAIOS names the binary").into(),
    }
}

/// Asks until there is an answer.
pub(crate) fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        std::thread::park_timeout(ASK_AGAIN);
    }
}

/// An IP address that no other cluster has.
pub(crate) fn unused_ip() -> Ipv4Addr {
    own_ip(std::process::id(), CLUSTERS.fetch_add(1, Ordering::Relaxed))
}

/// Addresses that were free a moment ago, drawn together so that they differ. No other test takes one of them before its
/// process does: they are on an IP address of this cluster's own, and no connection begins at it (Linux lets those to
/// 127.0.0.0/8 begin at 127.0.0.1).
fn free_addresses(count: usize) -> Vec<SocketAddr> {
    let ip = unused_ip();
    let listeners: Vec<_> =
        (0..count).map(|_| TcpListener::bind(SocketAddrV4::new(ip, 0)).unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap()).collect()
}

/// In 127.64.0.0/10: 18 bits of the process, 4 of the cluster in it, so that a process has 16.
fn own_ip(process: u32, cluster: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x7f40_0000 | (process & 0x3_ffff) << 4 | cluster & 0xf)
}
