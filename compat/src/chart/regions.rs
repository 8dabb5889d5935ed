//! The pods of all releases of a cluster, each release in a Kubernetes cluster of its own: what controllers, Services, the DNS
//! and the kubelet do for them.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::Value;
use test_kubernetes::Api;
use tls::make::Authority;
use tokio::time::sleep;

use super::callers::{Clients, Door};
use super::dns::{Dns, Member, Records, inside, outside};
use super::manifest::{Kind, Monitor, Release, Service, Template, Workload, has, items, text};
use super::pod::{ASK_AGAIN, Files, Machine, PATIENCE, Pod, Programs, get};
use super::secrets::{Keys, Origin, Step, authority_files, new_authority, trusted, trusting};
use super::service::Relay;
use crate::Problem;

/// The port for clients.
const CLIENTS: &str = "clients";
/// The volume with certificates, in all pods that have some.
const CERTIFICATES: &str = "tls";
/// The port for operators.
const ADMIN: &str = "admin";
/// By which a pod is told of its zone.
const ZONE_FIELD: &str = "metadata.labels['topology.kubernetes.io/zone']";
/// The domain of every Kubernetes cluster.
const CLUSTER_DOMAIN: &str = "cluster.local";
/// The ConfigMap that is in every namespace.
const ROOT_CAS: &str = "kube-root-ca.crt";
/// Modes of files where a volume does not say.
const DEFAULT_MODE: u64 = 0o644;
/// Zones of a region, to which the scheduler gives pods in turn.
const ZONES: [&str; 3] = ["a", "b", "c"];

pub(crate) struct Regions {
    title: String,
    home: PathBuf,
    programs: Programs,
    keys: Keys,
    all: Vec<Region>,
    /// What clients outside know.
    clients: Clients,
}

/// A Kubernetes cluster with its release.
struct Region {
    release: Release,
    origin: Origin,
    machine: Machine,
    ips: Ips,
    api: Api,
    dns: Dns,
    services: Vec<(Service, Address)>,
    sets: Vec<Set>,
    /// A pod of `helm test` that is kept for what it has of certificates: whoever calls has the same.
    client: Option<(Template, Pod)>,
}

/// The address of a Service, and what relays from there, by the names of its ports.
struct Address {
    ip: Ipv4Addr,
    relays: Vec<(String, Relay)>,
}

/// A workload and its pods.
struct Set {
    template: Template,
    pods: Vec<Pod>,
    /// How many there have been.
    made: u64,
}

/// Addresses of a region's pods, 10.10.0.0/16 of the first, and of its Services.
struct Ips {
    region: u8,
    pods: u16,
    services: u8,
}

impl Ips {
    fn pod(&mut self) -> Ipv4Addr {
        self.pods += 1;
        let [high, low] = self.pods.to_be_bytes();
        Ipv4Addr::new(10, self.region, high, low)
    }

    fn service(&mut self) -> Ipv4Addr {
        self.services += 1;
        Ipv4Addr::new(10, self.region, 255, self.services)
    }

    fn zone(&self) -> &'static str {
        ZONES[usize::from(self.pods) % ZONES.len()]
    }
}

impl Regions {
    pub(crate) async fn load(
        paths: &[PathBuf],
        programs: Programs,
        clients: Clients,
        home: &Path,
    ) -> Result<Regions, Problem> {
        let mut all = Vec::new();
        for (number, path) in (1_u8..).zip(paths) {
            let release = Release::load(path)?;
            all.push(Region::new(release, &home.join(number.to_string()), number * 10).await?);
        }
        let titles: Vec<_> = all.iter().map(|region| region.release.title.as_str()).collect();
        let title = titles.join(" + ");
        let keys = Keys::new(home.join("people"), &programs.gaios)?;
        Ok(Regions { title, home: home.to_owned(), programs, keys, all, clients })
    }

    pub(crate) fn title(&self) -> &str {
        &self.title
    }

    pub(crate) fn pods(&self) -> usize {
        self.sets().map(|set| set.pods.len()).sum()
    }

    fn sets(&self) -> impl Iterator<Item = &Set> {
        self.all.iter().flat_map(|region| &region.sets)
    }

    /// Makes the Secrets, starts all pods of all regions, and waits until each is ready.
    pub(crate) async fn start(&mut self) -> Result<(), Problem> {
        for region in &mut self.all {
            match region.origin {
                Origin::People => {
                    let name = region.secret_of_pods()?;
                    region.api.set_secret(&name, &self.keys.make(&region.release).await?);
                }
                Origin::CertManager => region.sign(&mut self.keys).await?,
                Origin::Hook => region.run_jobs(&region.release.hooks(), &self.programs).await?,
            }
            for set in &mut region.sets {
                for _ in 0..set.template.replicas {
                    set.add(&mut region.ips, &region.machine)?;
                }
            }
        }
        self.publish().await;
        for region in &mut self.all {
            region.sync()?;
            for set in &mut region.sets {
                for pod in &mut set.pods {
                    pod.start(&set.template, &self.programs).await?;
                }
            }
        }
        for set in self.all.iter_mut().flat_map(|region| &mut region.sets) {
            for pod in &mut set.pods {
                pod.wait_until_ready(&set.template).await?;
            }
        }
        self.publish().await;
        self.load_door()
    }

    /// What `helm test` would run, in each region.
    pub(crate) async fn run_tests(&mut self) -> Result<(), Problem> {
        for region in &mut self.all {
            region.run_jobs(&region.release.tests(), &self.programs).await?;
        }
        Ok(())
    }

    /// Reads the metrics of each pod: where the Prometheus operator is told to, or its annotations say. Returns how many.
    pub(crate) async fn scrape(&self) -> Result<usize, Problem> {
        let mut scraped = 0;
        for region in &self.all {
            for set in &region.sets {
                let (port, path) = region.metrics_of(set)?;
                for pod in &set.pods {
                    match get(pod.ip, port, &path).await {
                        Some((200, body)) if body.contains("\ngaios_") => scraped += 1,
                        other => return Err(format!("{}: {path} on port {port}: {other:?}", pod.name)),
                    }
                }
            }
        }
        Ok(scraped)
    }

    /// Every gateway must know all gateways and nodes, and where each of them stands.
    pub(crate) async fn check_status(&self) -> Result<(), Problem> {
        let place = |region: &Region, pod: &Pod| -> Result<Place, Problem> {
            Ok((pod.name.clone(), region.name()?, pod.field(ZONE_FIELD)?))
        };
        let (mut gateways, mut nodes, mut asked) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
        for region in &self.all {
            for set in &region.sets {
                for pod in &set.pods {
                    if set.template.port(CLIENTS).is_some() {
                        gateways.insert(place(region, pod)?);
                        asked.push((pod, set.template.port(ADMIN).unwrap_or_default()));
                    } else {
                        nodes.insert(place(region, pod)?);
                    }
                }
            }
        }
        let begun = Instant::now();
        for (pod, port) in asked {
            loop {
                let answer = get(pod.ip, port, "/debug/status").await;
                let status = answer.and_then(|(_, body)| serde_json::from_str::<Value>(&body).ok());
                let status = status.unwrap_or_default();
                let seen = [places(&status["gateways"]), places(&status["nodes"])];
                if seen == [gateways.clone(), nodes.clone()] {
                    break;
                }
                if begun.elapsed() > PATIENCE {
                    return Err(format!("{} sees {seen:?}, and there are {gateways:?}, {nodes:?}", pod.name));
                }
                sleep(ASK_AGAIN).await;
            }
        }
        Ok(())
    }

    /// What a client does that follows `MemberList`: every URL there must lead to a gateway that it can trust.
    pub(crate) async fn check_urls(&mut self) -> Result<(), Problem> {
        for region in &mut self.all {
            let follow = region.client.as_ref().map(|(template, _)| {
                template.told(&["--command-timeout=20s", "endpoint", "health", "--cluster"])
            });
            region.run_jobs(follow.as_slice(), &self.programs).await?;
        }
        Ok(())
    }

    /// Every gateway must tell clients of the gateways of its own region, and of no others.
    pub(crate) async fn check_members(&self) -> Result<(), Problem> {
        let begun = Instant::now();
        for region in &self.all {
            for set in &region.sets {
                let Some(port) = set.template.port(CLIENTS) else { continue };
                let there: BTreeSet<_> = set.pods.iter().map(|pod| pod.name.clone()).collect();
                for pod in &set.pods {
                    loop {
                        let told = self.clients.door.members(&format!("{}:{port}", pod.ip)).await;
                        if told.as_ref() == Ok(&there) {
                            break;
                        }
                        if begun.elapsed() > PATIENCE {
                            return Err(format!("{} tells of {told:?}, and there are {there:?}", pod.name));
                        }
                        sleep(ASK_AGAIN).await;
                    }
                }
            }
        }
        Ok(())
    }

    /// Another CA, other certificates by it, and the old ones of no use any more, in steps, each on all processes before the
    /// next; where cert-manager renews, it is other certificates by the same CA. Returns how many steps there were.
    pub(crate) async fn rotate(&mut self) -> Result<usize, Problem> {
        if self.all.iter().any(|region| region.origin == Origin::CertManager) {
            for region in &mut self.all {
                region.sign(&mut self.keys).await?;
            }
            self.take_up(&["link", "client"]).await?;
            return Ok(1);
        }
        let new = new_authority("the next one")?;
        let old: Vec<_> = self.all.iter().map(Region::trusted).collect::<Result<_, _>>()?;
        let steps = [Step::TrustBoth, Step::SignAnew, Step::TrustNew];
        for step in steps {
            self.clients.stage.set(format!("{step:?}"));
            if step == Step::SignAnew {
                self.keys.replace_authority(&new)?;
            }
            for (region, old) in self.all.iter_mut().zip(&old) {
                region.rotate(step, &new, old, &self.keys, &self.programs).await?;
            }
            let doors: &[&str] = if step == Step::SignAnew { &["link", "client"] } else { &["link"] };
            self.take_up(doors).await?;
        }
        for old in &old {
            self.expect_refused(old).await?;
        }
        Ok(steps.len())
    }

    /// Who trusts these CAs alone must find no gateway to be one.
    async fn expect_refused(&self, authorities: &[u8]) -> Result<(), Problem> {
        let folder = self.home.join("stranger");
        let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
        fs::create_dir_all(&folder).map_err(failed)?;
        fs::write(folder.join("ca.crt"), authorities).map_err(failed)?;
        let stranger = Door::default();
        stranger.load(&self.client()?.0, &folder)?;
        for address in self.clients.endpoints.all() {
            if stranger.connect(&address.to_string()).await.is_ok() {
                return Err(format!("the gateway at {address} still shows a certificate of the old CA"));
            }
        }
        Ok(())
    }

    /// Shows all pods their Secrets as they are, and waits until every one has taken them up at these doors, if it has them.
    async fn take_up(&mut self, doors: &[&str]) -> Result<(), Problem> {
        let before: Vec<_> = self.doors(doors).map(|(pod, door)| taken_up(pod, door)).collect();
        for region in &self.all {
            region.sync()?;
        }
        self.load_door()?;
        let begun = Instant::now();
        for ((pod, door), before) in self.doors(doors).zip(before) {
            while taken_up(pod, door) == before {
                if begun.elapsed() > PATIENCE {
                    let name = &pod.name;
                    return Err(format!("{name} does not take up certificates for {door}\n{}", pod.log()));
                }
                sleep(ASK_AGAIN).await;
            }
        }
        Ok(())
    }

    /// All pods with those of these doors that they have. Only gateways have one for clients.
    fn doors<'a>(&'a self, doors: &'a [&'a str]) -> impl Iterator<Item = (&'a Pod, &'a str)> {
        let has = |set: &Set, door: &str| door == "link" || set.template.port(CLIENTS).is_some();
        let of_set = move |set: &'a Set| {
            let doors = doors.iter().copied().filter(move |door| has(set, door));
            doors.flat_map(move |door| set.pods.iter().map(move |pod| (pod, door)))
        };
        self.sets().flat_map(of_set)
    }

    /// An upgrade, region by region: nodes one after the other from the highest id down, each when the one before is ready;
    /// of gateways a new one first. A pod that takes the place of another has another address.
    pub(crate) async fn replace_all(&mut self) -> Result<(), Problem> {
        for region in 0..self.all.len() {
            let hooks = self.all[region].release.hooks();
            self.all[region].run_jobs(&hooks, &self.programs).await?;
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
        let Region { sets, ips, machine, .. } = &mut self.all[region];
        let Set { template, pods, .. } = &mut sets[set];
        let mut old = pods.pop().ok_or("a set without pods")?;
        self.clients.stage.set(format!("{} stops", old.name));
        old.stop(template).await?;
        self.clients.stage.set(format!("{} starts", old.name));
        let new = Pod::new(template, old.name.clone(), ips.pod(), ips.zone(), machine)?;
        pods.insert(0, new);
        self.start_new(region, set, 0).await
    }

    async fn replace_gateway(&mut self, region: usize, set: usize) -> Result<(), Problem> {
        let Region { sets, ips, machine, .. } = &mut self.all[region];
        sets[set].add(ips, machine)?;
        let last = sets[set].pods.len() - 1;
        self.clients.stage.set(format!("{} starts", sets[set].pods[last].name));
        self.start_new(region, set, last).await?;
        let mut old = self.all[region].sets[set].pods.remove(0);
        self.clients.stage.set(format!("{} stops", old.name));
        // A pod that is about to end takes no new connections.
        self.publish().await;
        old.stop(&self.all[region].sets[set].template).await
    }

    /// Starts a pod that has just been made, and waits until it is ready.
    async fn start_new(&mut self, region: usize, set: usize, pod: usize) -> Result<(), Problem> {
        self.publish().await;
        self.all[region].sync()?;
        let Set { template, pods, .. } = &mut self.all[region].sets[set];
        pods[pod].start(template, &self.programs).await?;
        pods[pod].wait_until_ready(template).await?;
        self.publish().await;
        Ok(())
    }

    /// Ends everything, gateways first.
    pub(crate) async fn stop(&mut self) -> Result<(), Problem> {
        for region in &mut self.all {
            for set in region.sets.iter_mut().rev() {
                for pod in &mut set.pods {
                    pod.stop(&set.template).await?;
                }
            }
        }
        Ok(())
    }

    /// Clients have what a pod of `helm test` has.
    fn load_door(&self) -> Result<(), Problem> {
        let (name, folder) = self.client()?;
        self.clients.door.load(&name, &folder)
    }

    /// The name by which clients know gateways, and where the certificates of clients are.
    fn client(&self) -> Result<(String, PathBuf), Problem> {
        let with_client = self.all.iter().find_map(|region| Some((region, region.client.as_ref()?)));
        let (region, (_, pod)) =
            with_client.ok_or("no release has tests, whose certificates clients could use")?;
        let service = region.services.iter().find(|(service, _)| service.kind == Kind::ClusterIp);
        let (service, _) = service.ok_or("no Service for clients")?;
        let name = format!("{}.{}.svc.{CLUSTER_DOMAIN}", service.name, region.release.namespace());
        Ok((name, pod.volume(CERTIFICATES)))
    }

    /// Tells DNS, Services and clients which pods there are.
    async fn publish(&mut self) {
        let members: Vec<_> = self.all.iter().map(Region::members).collect();
        let mut everybody = Records::new();
        for (region, members) in self.all.iter().zip(&members) {
            for (service, address) in &region.services {
                everybody.extend(outside(service, address.ip, members));
            }
        }
        let mut gateways = Vec::new();
        for (region, members) in self.all.iter_mut().zip(&members) {
            let domain = format!("{}.svc.{CLUSTER_DOMAIN}", region.release.namespace());
            let mut records = everybody.clone();
            for (service, address) in &region.services {
                records.extend(inside(service, &domain, address.ip, members));
                for (target, relay) in &address.relays {
                    relay.endpoints.set(ready(members, service, target));
                }
            }
            region.dns.publish(records).await;
            let ports = members.iter().filter(|pod| pod.ready);
            gateways.extend(
                ports.filter_map(|pod| Some(SocketAddr::new(pod.ip.into(), *pod.ports.get(CLIENTS)?))),
            );
        }
        self.clients.endpoints.set(gateways);
    }
}

/// Name, region and zone.
type Place = (String, String, String);

/// What a status says of gateways, or of nodes.
fn places(list: &Value) -> BTreeSet<Place> {
    let place = |one: &Value| (text(&one["name"]), text(&one["region"]), text(&one["zone"]));
    items(list).iter().map(place).collect()
}

/// How often a pod has taken up certificates at a door.
fn taken_up(pod: &Pod, door: &str) -> usize {
    pod.logged(&["took over new certificates", &format!("\"door\":\"{door}\"")])
}

/// Where a port of a Service leads.
fn ready(members: &[Member], service: &Service, target: &str) -> Vec<SocketAddr> {
    let behind = members.iter().filter(|pod| pod.ready && service.selects(&pod.labels));
    behind.filter_map(|pod| Some(SocketAddr::new(pod.ip.into(), *pod.ports.get(target)?))).collect()
}

impl Region {
    async fn new(release: Release, home: &Path, number: u8) -> Result<Region, Problem> {
        let failed = |error: std::io::Error| format!("{}: {error}", home.display());
        fs::create_dir_all(home).map_err(failed)?;
        let mut ips = Ips { region: number, pods: 0, services: 0 };
        let api = Api::start(SocketAddr::new(ips.service().into(), 443), home).await.map_err(failed)?;
        let dns_ip = ips.service();
        let dns = Dns::start(dns_ip).await.map_err(failed)?;
        let namespace = release.namespace();
        // As the kubelet writes it.
        let resolv_conf = home.join("resolv.conf");
        let text = format!(
            "nameserver {dns_ip}\nsearch {namespace}.svc.{CLUSTER_DOMAIN} svc.{CLUSTER_DOMAIN} {CLUSTER_DOMAIN}\n\
             options ndots:5\n"
        );
        fs::write(&resolv_conf, text).map_err(failed)?;
        let machine =
            Machine { resolv_conf, api: api.address(), pods: home.join("pods"), claims: home.join("claims") };
        let mut services = Vec::new();
        for service in release.services() {
            let mut address = Address { ip: ips.service(), relays: Vec::new() };
            if service.kind == Kind::ClusterIp || service.kind == Kind::LoadBalancer {
                for port in &service.ports {
                    let at = SocketAddr::new(address.ip.into(), port.number);
                    address.relays.push((port.target.clone(), Relay::start(at).await.map_err(failed)?));
                }
            }
            services.push((service, address));
        }
        let sets = release
            .workloads()
            .into_iter()
            .map(|template| Set { template, pods: Vec::new(), made: 0 })
            .collect();
        let client = match release.tests().into_iter().find(|test| test.has_volume(CERTIFICATES)) {
            Some(template) => {
                let pod = Pod::new(&template, "client".to_owned(), ips.pod(), ips.zone(), &machine)?;
                Some((template, pod))
            }
            None => None,
        };
        let origin = Origin::of(&release);
        Ok(Region { release, origin, machine, ips, api, dns, services, sets, client })
    }

    /// The region that the configurations of its pods name.
    fn name(&self) -> Result<String, Problem> {
        let data = self.release.of_kind("ConfigMap").filter_map(|map| map["data"].as_object());
        let lines = data.flat_map(|data| data.values()).filter_map(Value::as_str).flat_map(str::lines);
        let named: BTreeSet<_> = lines.filter_map(|line| line.strip_prefix("region: ")).collect();
        match named.into_iter().collect::<Vec<_>>().as_slice() {
            [one] => Ok((*one).to_owned()),
            other => Err(format!("{}: not one region: {other:?}", self.release.title)),
        }
    }

    fn members(&self) -> Vec<Member> {
        let pods = self.sets.iter().flat_map(|set| set.pods.iter().map(move |pod| (set, pod)));
        let member = |(set, pod): (&Set, &Pod)| Member {
            name: pod.name.clone(),
            ip: pod.ip,
            labels: pod.labels.clone(),
            ready: pod.ready,
            named_by: set.template.service.clone(),
            ports: items(&set.template.container()["ports"])
                .iter()
                .filter_map(|port| {
                    let name = text(&port["name"]);
                    set.template.port(&name).map(|number| (name, number))
                })
                .collect(),
        };
        pods.map(member).collect()
    }

    /// Puts into the volumes of all pods what their manifests name, as it is.
    fn sync(&self) -> Result<(), Problem> {
        for set in &self.sets {
            for pod in &set.pods {
                self.fill(&set.template, pod)?;
            }
        }
        if let Some((template, pod)) = &self.client {
            self.fill(template, pod)?;
        }
        Ok(())
    }

    fn fill(&self, template: &Template, pod: &Pod) -> Result<(), Problem> {
        for volume in items(&template.spec["volumes"]) {
            let failed = |what: String| format!("{}: volume {}: {what}", pod.name, volume["name"]);
            let mut files = Files::new();
            let mut mode = DEFAULT_MODE;
            if let Some(map) = volume["configMap"]["name"].as_str() {
                for (file, content) in self.release.config_map(map)? {
                    files.push((file, pod.translate(&content).into_bytes()));
                }
            } else if volume["projected"].is_object() {
                mode = volume["projected"]["defaultMode"].as_u64().unwrap_or(mode);
                for source in items(&volume["projected"]["sources"]) {
                    files.extend(self.source(template, pod, source).map_err(failed)?);
                }
            } else if !volume["emptyDir"].is_object() {
                return Err(failed("is of no kind that is known here".to_owned()));
            }
            if !files.is_empty() {
                pod.fill(&text(&volume["name"]), &files, u32::try_from(mode).unwrap_or_default())?;
            }
        }
        Ok(())
    }

    /// The files of a projected volume's source.
    fn source(&self, template: &Template, pod: &Pod, source: &Value) -> Result<Files, String> {
        if let Some(name) = source["secret"]["name"].as_str() {
            let held = self.api.secret(name).ok_or_else(|| format!("no Secret {name}"))?;
            let chosen = items(&source["secret"]["items"]).iter().map(|item| {
                let key = text(&item["key"]);
                let bytes = held.get(&key).ok_or_else(|| format!("the Secret {name} has no {key}"))?;
                Ok((text(&item["path"]), bytes.clone()))
            });
            return chosen.collect();
        }
        if source["configMap"]["name"] == ROOT_CAS {
            return Ok(vec![("ca.crt".to_owned(), self.api.authority().as_bytes().to_vec())]);
        }
        if let Some(path) = source["serviceAccountToken"]["path"].as_str() {
            let account = text(&template.spec["serviceAccountName"]);
            let token = format!("token of {account}");
            self.api.allow(&token, self.release.rules(&account));
            return Ok(vec![(path.to_owned(), token.into_bytes())]);
        }
        if source["downwardAPI"].is_object() {
            let fields = items(&source["downwardAPI"]["items"]).iter().map(|item| {
                let field = text(&item["fieldRef"]["fieldPath"]);
                let value = match field.as_str() {
                    "metadata.namespace" => self.release.namespace(),
                    _ => pod.field(&field)?,
                };
                Ok((text(&item["path"]), value.into_bytes()))
            });
            return fields.collect();
        }
        Err(format!("is of no kind that is known here: {source}"))
    }

    /// Runs pods to their end, each in folders of its own.
    async fn run_jobs(&mut self, templates: &[Template], programs: &Programs) -> Result<(), Problem> {
        for template in templates {
            let ip = self.ips.pod();
            let name = format!("{}-{ip}", template.name);
            let mut pod = Pod::new(template, name, ip, self.ips.zone(), &self.machine)?;
            self.fill(template, &pod)?;
            pod.run(template, programs).await?;
        }
        Ok(())
    }

    /// cert-manager makes all that it is asked for, and people the Secret that the values name for tickets.
    async fn sign(&mut self, keys: &mut Keys) -> Result<(), Problem> {
        for certificate in self.release.certificates() {
            self.api.set_secret(&certificate.secret, &keys.sign(&certificate)?);
        }
        for name in self.secrets_of_pods() {
            if self.api.secret(&name).is_none() {
                self.api.set_secret(&name, &keys.tickets().await?);
            }
        }
        Ok(())
    }

    /// The names of all Secrets that pods mount.
    fn secrets_of_pods(&self) -> BTreeSet<String> {
        let volumes = self.sets.iter().flat_map(|set| items(&set.template.spec["volumes"]));
        let sources = volumes.flat_map(|volume| items(&volume["projected"]["sources"]));
        sources.filter_map(|source| Some(source["secret"]["name"].as_str()?.to_owned())).collect()
    }

    /// The name of the one Secret with everything.
    fn secret_of_pods(&self) -> Result<String, Problem> {
        let mut names = self.secrets_of_pods().into_iter();
        match (names.next(), names.next()) {
            (Some(name), None) => Ok(name),
            other => Err(format!("{}: not one Secret: {other:?}", self.release.title)),
        }
    }

    /// What its pods trust.
    fn trusted(&self) -> Result<Vec<u8>, Problem> {
        let held = self.api.secret(&self.secret_of_pods()?);
        held.map(|files| trusted(&files)).ok_or_else(|| format!("{}: no Secret", self.release.title))
    }

    async fn rotate(
        &mut self,
        step: Step,
        new: &Authority,
        old: &[u8],
        keys: &Keys,
        programs: &Programs,
    ) -> Result<(), Problem> {
        let name = self.secret_of_pods()?;
        let both: [&[u8]; 2] = [new.certificate().as_bytes(), old];
        match (step, self.origin) {
            (Step::TrustBoth | Step::SignAnew, Origin::Hook) => {
                let jobs = self.release.scheduled();
                let job = jobs.first().ok_or("no CronJob renews certificates")?;
                if step == Step::TrustBoth {
                    let authority = job.argument("--authority-secret").ok_or("a CronJob without a CA")?;
                    self.api.set_secret(authority, &authority_files(new));
                }
                self.run_jobs(&jobs, programs).await
            }
            (Step::TrustBoth, Origin::People | Origin::CertManager) => {
                let held = self.api.secret(&name).unwrap_or_default();
                self.api.set_secret(&name, &trusting(held, &both));
                Ok(())
            }
            (Step::SignAnew, Origin::People | Origin::CertManager) => {
                self.api.set_secret(&name, &trusting(keys.make(&self.release).await?, &both));
                Ok(())
            }
            (Step::TrustNew, _) => {
                let held = self.api.secret(&name).unwrap_or_default();
                self.api.set_secret(&name, &trusting(held, &both[..1]));
                Ok(())
            }
        }
    }

    /// Where the metrics of a workload's pods are: port and path.
    fn metrics_of(&self, set: &Set) -> Result<(u16, String), Problem> {
        let annotation = |what: &str| set.template.annotations.get(&format!("prometheus.io/{what}"));
        let annotated = match (
            annotation("scrape").map(String::as_str),
            annotation("port").and_then(|port| port.parse().ok()),
            annotation("path"),
        ) {
            (Some("true"), Some(port), Some(path)) => (port, path.clone()),
            _ => return Err(format!("{}: its pods do not say where their metrics are", set.template.name)),
        };
        let monitors = self.release.monitors();
        if monitors.is_empty() {
            return Ok(annotated);
        }
        let found: Vec<_> = monitors.iter().filter_map(|monitor| self.monitored(monitor, set)).collect();
        match found.as_slice() {
            [one] if *one == annotated => Ok(annotated),
            other => {
                Err(format!("{}: monitors look at {other:?}, its pods say {annotated:?}", set.template.name))
            }
        }
    }

    fn monitored(&self, monitor: &Monitor, set: &Set) -> Option<(u16, String)> {
        match monitor {
            Monitor::Pods { labels, port, path } => {
                let port = set.template.port(port).filter(|_| has(&set.template.labels, labels))?;
                Some((port, path.clone()))
            }
            Monitor::Services { labels, port, path } => {
                let services = self.services.iter().map(|(service, _)| service);
                let mut behind = services
                    .filter(|service| has(&service.labels, labels) && service.selects(&set.template.labels));
                let target = behind.find_map(|service| {
                    service.ports.iter().find(|known| known.name == *port).map(|known| known.target.clone())
                })?;
                Some((set.template.port(&target)?, path.clone()))
            }
        }
    }
}

impl Set {
    fn add(&mut self, ips: &mut Ips, machine: &Machine) -> Result<(), Problem> {
        let ip = ips.pod();
        let suffix = match self.template.workload {
            Workload::StatefulSet { start } => (start + self.made).to_string(),
            // No two have the same, of whatever region.
            Workload::Deployment | Workload::Once => format!("{:x}", ip.to_bits()),
        };
        self.made += 1;
        let name = format!("{}-{suffix}", self.template.name);
        self.pods.push(Pod::new(&self.template, name, ip, ips.zone(), machine)?);
        Ok(())
    }
}
