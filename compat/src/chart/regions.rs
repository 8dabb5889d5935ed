//! The pods of all releases of a cluster, each release in a Kubernetes cluster of its own: what controllers, Services and
//! the kubelet do for them.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use super::callers::Endpoints;
use super::manifest::{Release, Template, Workload, items, text};
use super::pod::{Files, Names, Pod, Programs, get};
use crate::Problem;
use crate::servers::HOME;

/// The port for clients, and that for nodes and gateways, by their names.
const CLIENTS: &str = "clients";
const LINKS: &str = "links";
/// The annotation by which ExternalDNS names the pods of a headless Service for everybody.
const EXTERNAL_NAME: &str = "external-dns.alpha.kubernetes.io/hostname";

pub(crate) struct Regions {
    title: String,
    home: PathBuf,
    programs: Programs,
    all: Vec<Region>,
    /// What clients outside know of the gateways of all regions.
    endpoints: Endpoints,
    ips: Ips,
}

struct Region {
    release: Release,
    home: PathBuf,
    sets: Vec<Set>,
}

/// A workload and its pods.
struct Set {
    template: Template,
    pods: Vec<Pod>,
    /// The pods of a Deployment have new names each time.
    made: u64,
}

/// Addresses of loopback that no other program of this machine takes: 127.128.0.0/9, by the id of this process.
struct Ips {
    next: u32,
}

impl Ips {
    fn new() -> Ips {
        Ips { next: 0x7f80_0000 | (std::process::id() & 0x7fff) << 8 }
    }

    fn draw(&mut self) -> Ipv4Addr {
        self.next += 1;
        Ipv4Addr::from_bits(self.next)
    }
}

impl Regions {
    pub(crate) fn load(
        paths: &[PathBuf],
        programs: Programs,
        endpoints: Endpoints,
    ) -> Result<Regions, Problem> {
        let home = Path::new(HOME).join(format!("run/chart-{}", std::process::id()));
        if home.exists() {
            fs::remove_dir_all(&home).map_err(|error| format!("{}: {error}", home.display()))?;
        }
        let mut all = Vec::new();
        for path in paths {
            let release = Release::load(path)?;
            let sets =
                release.workloads().into_iter().map(|template| Set { template, pods: Vec::new(), made: 0 });
            all.push(Region { home: home.join(&release.title), sets: sets.collect(), release });
        }
        let titles: Vec<_> = all.iter().map(|region| region.release.title.as_str()).collect();
        let title = titles.join(" + ");
        Ok(Regions { title, home, programs, all, endpoints, ips: Ips::new() })
    }

    pub(crate) fn title(&self) -> &str {
        &self.title
    }

    pub(crate) fn pods(&self) -> usize {
        self.all.iter().flat_map(|region| &region.sets).map(|set| set.pods.len()).sum()
    }

    /// Starts all pods of all regions, and waits until each is ready.
    pub(crate) async fn start(&mut self) -> Result<(), Problem> {
        for region in &mut self.all {
            for set in &mut region.sets {
                for _ in 0..set.template.replicas {
                    set.add(&region.home, self.ips.draw())?;
                }
            }
        }
        let names = self.names();
        for region in &mut self.all {
            for set in &mut region.sets {
                for pod in &mut set.pods {
                    fill(&region.release, &set.template, pod, &names)?;
                    pod.start(&set.template, &self.programs).await?;
                }
            }
        }
        for set in self.all.iter_mut().flat_map(|region| &mut region.sets) {
            for pod in &mut set.pods {
                pod.wait_until_ready(&set.template).await?;
            }
        }
        self.publish();
        Ok(())
    }

    /// What `helm test` would run, in each region.
    pub(crate) async fn run_tests(&mut self) -> Result<(), Problem> {
        let names = self.names();
        for region in &self.all {
            for template in region.release.tests() {
                let (home, claims) = (region.home.join("tests"), region.home.join("claims"));
                let mut pod = Pod::new(&template, template.name.clone(), self.ips.draw(), &home, &claims)?;
                fill(&region.release, &template, &mut pod, &names)?;
                pod.run(&template, &self.programs).await?;
            }
        }
        Ok(())
    }

    /// Reads the metrics of each pod, where its annotations say. Returns how many there are.
    pub(crate) async fn scrape(&self) -> Result<usize, Problem> {
        let mut scraped = 0;
        for set in self.all.iter().flat_map(|region| &region.sets) {
            let said = |what: &str| set.template.annotations.get(&format!("prometheus.io/{what}"));
            let (Some("true"), Some(port), Some(path)) = (
                said("scrape").map(String::as_str),
                said("port").and_then(|port| port.parse().ok()),
                said("path"),
            ) else {
                return Err(format!("{}: its pods do not say where their metrics are", set.template.name));
            };
            for pod in &set.pods {
                match get(pod.ip, port, path).await {
                    Some((200, body)) if body.contains("\ngaios_") => scraped += 1,
                    other => return Err(format!("{}: {path} on port {port}: {other:?}", pod.name)),
                }
            }
        }
        Ok(scraped)
    }

    /// An upgrade, region by region: nodes one after the other from the highest id down, each when the one before is ready;
    /// of gateways a new one first.
    pub(crate) async fn replace_all(&mut self) -> Result<(), Problem> {
        for region in 0..self.all.len() {
            for set in 0..self.all[region].sets.len() {
                for _ in 0..self.all[region].sets[set].pods.len() {
                    match self.all[region].sets[set].template.workload {
                        Workload::StatefulSet { .. } => self.replace_node(region, set).await?,
                        Workload::Deployment => self.replace_gateway(region, set).await?,
                        Workload::Once => {}
                    }
                }
            }
        }
        Ok(())
    }

    /// Pods are kept in the order in which they are to be replaced next, and the new one goes to the end.
    async fn replace_node(&mut self, region: usize, set: usize) -> Result<(), Problem> {
        let names = self.names();
        let Region { release, home, sets } = &mut self.all[region];
        let Set { template, pods, .. } = &mut sets[set];
        let mut old = pods.pop().ok_or("a set without pods")?;
        old.stop(template).await?;
        let mut new = Pod::new(template, old.name.clone(), old.ip, &home.join("pods"), &home.join("claims"))?;
        fill(release, template, &mut new, &names)?;
        new.start(template, &self.programs).await?;
        new.wait_until_ready(template).await?;
        pods.insert(0, new);
        Ok(())
    }

    async fn replace_gateway(&mut self, region: usize, set: usize) -> Result<(), Problem> {
        let names = self.names();
        let ip = self.ips.draw();
        let Region { release, home, sets } = &mut self.all[region];
        sets[set].add(home, ip)?;
        let Set { template, pods, .. } = &mut sets[set];
        let new = pods.last_mut().ok_or("a set without pods")?;
        fill(release, template, new, &names)?;
        new.start(template, &self.programs).await?;
        new.wait_until_ready(template).await?;
        let mut old = pods.remove(0);
        // A pod that is about to end takes no new connections.
        self.publish();
        old.stop(&self.all[region].sets[set].template).await
    }

    /// Ends everything, gateways first.
    pub(crate) async fn stop(mut self) -> Result<(), Problem> {
        for region in &mut self.all {
            for set in region.sets.iter_mut().rev() {
                for pod in &mut set.pods {
                    pod.stop(&set.template).await?;
                }
            }
        }
        fs::remove_dir_all(&self.home).map_err(|error| format!("{}: {error}", self.home.display()))
    }

    /// Tells clients which gateways are there.
    fn publish(&self) {
        let sets = self.all.iter().flat_map(|region| &region.sets);
        let ports = sets.filter_map(|set| Some((set, set.template.port(CLIENTS)?)));
        let all = ports.flat_map(|(set, port)| set.pods.iter().map(move |pod| (pod.ip, port).into()));
        self.endpoints.set(all.collect());
    }

    /// What the names of nodes and of Services for clients lead to.
    fn names(&self) -> Names {
        let mut names = Names::new();
        for region in &self.all {
            let namespace = region.release.namespace();
            for service in &region.release.services() {
                let own = format!("{}.{namespace}.svc.cluster.local", service.name);
                let external = service.annotations.get(EXTERNAL_NAME).filter(|_| service.headless);
                let selected = || region.sets.iter().filter(|set| service.selects(&set.template.labels));
                for (set, port) in selected().filter_map(|set| Some((set, set.template.port(LINKS)?))) {
                    for (domain, pod) in [Some(&own), external]
                        .into_iter()
                        .flatten()
                        .flat_map(|domain| set.pods.iter().map(move |pod| (domain, pod)))
                    {
                        names.push((format!("{}.{domain}:{port}", pod.name), format!("{}:{port}", pod.ip)));
                    }
                }
                // The discovery of etcdctl asks the DNS server of the machine.
                let gateways = selected().filter_map(|set| Some((set, set.template.port(CLIENTS)?)));
                let urls: Vec<_> = gateways
                    .flat_map(|(set, port)| {
                        set.pods.iter().map(move |pod| format!("http://{}:{port}", pod.ip))
                    })
                    .collect();
                if !urls.is_empty() {
                    names.push((format!("--discovery-srv={own}"), format!("--endpoints={}", urls.join(","))));
                }
            }
        }
        names
    }
}

impl Set {
    fn add(&mut self, home: &Path, ip: Ipv4Addr) -> Result<(), Problem> {
        let number = match self.template.workload {
            Workload::StatefulSet { start } => start + self.made,
            Workload::Deployment | Workload::Once => self.made,
        };
        self.made += 1;
        let name = format!("{}-{number}", self.template.name);
        self.pods.push(Pod::new(&self.template, name, ip, &home.join("pods"), &home.join("claims"))?);
        Ok(())
    }
}

/// Puts into the volumes of a pod what its manifest names.
fn fill(
    release: &Release,
    template: &Template,
    pod: &mut Pod,
    names: &[(String, String)],
) -> Result<(), Problem> {
    pod.resolve(names.to_vec());
    for volume in items(&template.spec["volumes"]) {
        let Some(map) = volume["configMap"]["name"].as_str() else {
            return Err(format!("{}: volume {} is of no kind that is known here", pod.name, volume["name"]));
        };
        let mut files = Files::new();
        for (file, content) in release.config_map(map)? {
            files.push((file, pod.translate(&content).into_bytes()));
        }
        pod.fill(&text(&volume["name"]), &files)?;
    }
    Ok(())
}
